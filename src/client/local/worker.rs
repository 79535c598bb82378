//! Worker thread that requests objects which a look-up did not find.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::path::Local;
use super::shared::{LocalShared, Question, RequestedBytes, RequestedObject, RequestedObjects};
use crate::client::error::ClientError;
use crate::client::options::ClientOptions;
use crate::client::retry::until_answered;
use crate::client::service::{Client, PlaneUse};
use crate::client::table::Table;
use crate::error::{Coded as _, ErrorKind};
use crate::object::ObjectId;
use crate::shm::LocalPlane;
use crate::shm::attach::{LeasedBytes, process_generation};
use crate::table::TableRequest;

/// Name of the only column of a question.
const COLUMN: &str = "object";
/// Attempts to get a table and its objects view for the same versions. A path can change at each
/// refresh, which may be shorter than the two requests while the machine is loaded.
const ATTEMPTS: usize = 32;

/// Id of an object, and its validity interval in milliseconds since the Unix epoch.
type VersionFacts = (ObjectId, (i64, i64));

impl Client {
    /// Local look-ups: in shared memory without a request, for a client on the node of the service.
    /// Objects that are not there are requested from the service. All handles of a client share one
    /// session, distinct from that of the client.
    ///
    /// Blocks until the session is connected: at most 10 s, or as long as the client's patience if
    /// its service has answered before and is being restarted.
    ///
    /// # Errors
    /// [`ClientError::Connect`] and the other errors of connecting; [`ClientError::ForkedProcess`].
    pub fn local(&self) -> Result<Local, ClientError> {
        if self.process() != process_generation() {
            return Err(ClientError::ForkedProcess);
        }
        let mut local = self.local_shared().lock();
        if let Some(shared) = &*local {
            return Ok(Local::new(Arc::clone(shared)));
        }
        let waits = self.has_answered();
        let shared = start(self.url(), self.options().clone(), self.patience(), waits)?;
        *local = Some(Arc::clone(&shared));
        Ok(Local::new(shared))
    }
}

/// Starts the worker. It ends with the last handle. `waits`: a service that does not listen is waited
/// for.
fn start(
    url: &str,
    options: ClientOptions,
    patience: Duration,
    waits: bool,
) -> Result<Arc<LocalShared>, ClientError> {
    let (questions, asked) = unbounded_channel();
    let plane = Arc::new(ArcSwapOption::empty());
    let (connected, is_connected) = sync_channel(1);
    let failed = |error| ClientError::Io { what: "cannot start a thread".to_owned(), error };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let work = {
        let (url, plane) = (url.to_owned(), Arc::clone(&plane));
        move || {
            runtime.block_on(async move {
                let limit = if waits { patience } else { Duration::ZERO };
                match until_answered(|| limit, |_| connect(&url, options.clone())).await {
                    Ok(client) => {
                        publish_plane(&client, &plane).await;
                        let _ = connected.send(Ok(()));
                        serve(client, &plane, asked).await;
                    }
                    Err(error) => {
                        let _ = connected.send(Err(error));
                    }
                }
            });
        }
    };
    std::thread::Builder::new().name("iovcache-local".into()).spawn(work).map_err(failed)?;
    let gone = || ClientError::Closed { what: "connection of the local plane" };
    is_connected.recv().map_err(|_| gone())??;
    Ok(Arc::new(LocalShared { plane, questions, patience }))
}

async fn connect(url: &str, options: ClientOptions) -> Result<Client, ClientError> {
    let client = Client::connect_as(url, options, PlaneUse::Objects).await?;
    client.attach_beside().await?;
    Ok(client)
}

/// Answers questions until the last handle is dropped.
async fn serve(
    client: Client,
    plane: &Arc<ArcSwapOption<LocalPlane>>,
    mut asked: UnboundedReceiver<Question>,
) {
    while let Some(Question { path, times, answer, asker }) = asked.recv().await {
        let (client, plane) = (client.clone(), Arc::clone(plane));
        tokio::spawn(async move {
            let answered = async {
                let objects = ask(&client, path.as_str(), &times).await;
                publish_plane(&client, &plane).await;
                answer(objects);
            };
            tokio::select! {
                () = answered => {}
                _ = asker => {}
            }
        });
    }
}

/// Passes the plane of the client's session to the handles, if it has changed.
async fn publish_plane(client: &Client, plane: &ArcSwapOption<LocalPlane>) {
    let Some(session) = client.session().await else { return };
    let is_known = |known: &Arc<LocalPlane>| Arc::ptr_eq(known.attachment(), &session);
    if !plane.load().as_ref().is_some_and(is_known)
        && let Some(newer) = LocalPlane::new(session)
    {
        plane.store(Some(newer));
    }
}

/// Requests the objects of several times.
async fn ask(client: &Client, path: &str, times: &[i64]) -> RequestedObjects {
    match ask_together(client, path, times).await {
        Err(error) if error.kind() == ErrorKind::NotFound => match times {
            // The path has the policy that an object must be valid.
            [_] => Ok(vec![None]),
            _ => {
                let mut objects = Vec::with_capacity(times.len());
                for time in times {
                    match ask_together(client, path, &[*time]).await {
                        Ok(mut object) => objects.push(object.pop().flatten()),
                        Err(error) if error.kind() == ErrorKind::NotFound => objects.push(None),
                        Err(error) => return Err(error),
                    }
                }
                Ok(objects)
            }
        },
        objects => objects,
    }
}

async fn ask_together(client: &Client, path: &str, times: &[i64]) -> RequestedObjects {
    let mut attempts = ATTEMPTS;
    loop {
        let request = TableRequest::new().column(COLUMN, path);
        let request = request.timestamps(times.iter().copied()).missing_as_null();
        let table = client.table(request).await?;
        match client.objects(&table).await {
            Ok((_, batches)) => return objects_of(table, &descriptions(&batches)?),
            Err(ClientError::Changed) if attempts > 1 => attempts -= 1,
            Err(error) => return Err(error),
        }
    }
}

/// Versions in the objects view, by the first row of each run.
fn descriptions(batches: &[RecordBatch]) -> Result<HashMap<usize, VersionFacts>, ClientError> {
    let unreadable = |what: &str| ClientError::Answer { reason: format!("objects view: {what}") };
    let mut described = HashMap::new();
    for batch in batches {
        let integers = |name: &str| {
            let column = batch.column_by_name(name);
            let column = column.and_then(|column| column.as_primitive_opt::<Int64Type>());
            column.ok_or_else(|| unreadable(name))
        };
        let (starts, from) = (integers("row_start")?, integers("valid_from")?);
        let until = integers("valid_until")?;
        let ids = batch.column_by_name("object_id").and_then(|ids| ids.as_string_opt::<i32>());
        let ids = ids.ok_or_else(|| unreadable("object_id"))?;
        for row in 0..batch.num_rows() {
            let id = ObjectId::parse(ids.value(row)).ok_or_else(|| unreadable(ids.value(row)))?;
            let start = usize::try_from(starts.value(row)).map_err(|_| unreadable("row_start"))?;
            described.insert(start, (id, (from.value(row), until.value(row))));
        }
    }
    Ok(described)
}

/// Object of each row of a table with one column.
fn objects_of(table: Table, described: &HashMap<usize, VersionFacts>) -> RequestedObjects {
    let (rows, is_mapped) = (table.rows(), table.is_mapped());
    let column = table.column(COLUMN)?;
    let mut start = 0;
    let mut runs = Vec::new();
    for (run, end) in column.ends().iter().enumerate() {
        let cell = match column.run(run)? {
            None => None,
            Some(bytes) => {
                let header = column.header(start);
                let copied = (!is_mapped).then(|| Arc::<[u8]>::from(bytes));
                let missing = || ClientError::Answer { reason: format!("row {start} has no id") };
                Some((header, copied, *described.get(&start).ok_or_else(missing)?))
            }
        };
        runs.push((*end, cell));
        start = *end;
    }
    let pinned = table.into_pinned().map(Arc::new);
    let mut objects = Vec::with_capacity(rows);
    for (end, cell) in runs {
        let object = match (cell, &pinned) {
            (None, _) => None,
            (Some((_, Some(copied), (id, validity))), _) => {
                Some(RequestedObject { bytes: RequestedBytes::Copied(copied), id, validity })
            }
            (Some((Some(header), None, (id, validity))), Some(pinned)) => {
                let bytes = Arc::new(LeasedBytes::new(Arc::clone(pinned), &header)?);
                Some(RequestedObject { bytes: RequestedBytes::Leased(bytes), id, validity })
            }
            (Some(_), _) => return Err(ClientError::NotAttached),
        };
        objects.resize(end, object);
    }
    Ok(objects)
}
