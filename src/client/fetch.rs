//! Tables of the service: where each is taken from, its objects view and its bytes in chunks.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, UInt64Type};
use arrow_array::{Int64Array, RecordBatch};
use arrow_flight::Ticket;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_schema::Schema;
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use super::error::ClientError;
use super::local_join::LocalJoin;
use super::service::{Attached, Client, ClientCall, GRACE, answer, of_flight};
use super::table::{Hold, Table};
use crate::error::{Coded as _, ErrorKind};
use crate::object::ObjectId;
use crate::shm::MetaHeader;
use crate::shm::attach::{Attachment, process_generation};
use crate::table::{CellKind, Encoding, ServedDigest, TableRequest, VERSIONS, View};

/// A wait for a timeframe in shared memory that does not count against the time limit of a request.
const SHORT_WAIT: Duration = Duration::from_millis(100);

impl Client {
    /// A table. All of its objects stay pinned until it is dropped. It is taken from shared memory
    /// where all of its objects lie there and the request has no limits, lock, metadata or keys;
    /// else it is requested from the service.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service) with the error of the service.
    pub async fn table(&self, request: TableRequest) -> Result<Table, ClientError> {
        match self.plane_table(&request).await {
            Some(table) => Ok(table),
            None => self.service_table(request).await,
        }
    }

    fn service_table(&self, request: TableRequest) -> ClientCall<'_, Table> {
        Box::pin(self.awaited_or_requested_table(request))
    }

    async fn awaited_or_requested_table(
        &self,
        request: TableRequest,
    ) -> Result<Table, ClientError> {
        let (limit, began) = (self.patience_of(&request), Instant::now());
        if request.fields().timeframe.is_some() {
            if let Some(table) = self.awaited_timeframe(&request, limit).await {
                return Ok(table);
            }
            let waited = began.elapsed();
            if waited > SHORT_WAIT {
                // The rest of the time is for the service.
                return self.small_table(&request.wait(limit.saturating_sub(waited))).await;
            }
        }
        match self.small_table(&request).await {
            // Cells and answers have a size limit; chunks have none.
            Err(error)
                if error.kind() == ErrorKind::ResourceExhausted
                    && request.fields().cell.is_none()
                    && request.fields().session.is_none()
                    && self.is_remote().await =>
            {
                self.large_table(request, limit + GRACE).await
            }
            answered => answered,
        }
    }

    /// The table from shared memory, if all of it lies there.
    async fn plane_table(&self, request: &TableRequest) -> Option<Table> {
        // Before any lock, which another thread may have held when this process was forked.
        let tables = self.plane_tables();
        let tables = tables.filter(|_| self.process() == process_generation())?;
        tables.table(request, &self.session().await?)
    }

    async fn small_table(&self, request: &TableRequest) -> Result<Table, ClientError> {
        self.until_answered(self.patience_of(request), |left| {
            let request = within(request, left);
            async move {
                match self.requested_table(request.clone()).await {
                    // The service was restarted and does not know the session: attach anew.
                    Err(error)
                        if error.is_unknown_session()
                            && request.fields().session.is_none()
                            && self.forget_lost_session().await =>
                    {
                        self.requested_table(request).await
                    }
                    other => other,
                }
            }
        })
        .await
    }

    fn patience_of(&self, request: &TableRequest) -> Duration {
        let wait = request.fields().wait_ms.map(Duration::from_millis);
        wait.unwrap_or_else(|| self.patience())
    }

    /// A table of the service, whose columns are remembered for tables from shared memory.
    async fn requested_table(&self, request: TableRequest) -> Result<Table, ClientError> {
        let Some(tables) = self.plane_tables() else { return self.try_table(request).await };
        let fields = request.fields();
        let session = match (fields.timeframe, &fields.session) {
            (Some(_), None) => self.attachment(&request).await?,
            _ => None,
        };
        let claims = session.and_then(|session| tables.claims_before(&request, &session));
        let table = self.try_table(request.clone()).await?;
        tables.learn(&request, &table, claims);
        Ok(table)
    }

    async fn try_table(&self, request: TableRequest) -> Result<Table, ClientError> {
        let attachment = match &request.fields().session {
            Some(_) => None,
            None => self.attachment(&request).await?,
        };
        let request = request.with(|fields| {
            fields.encoding.get_or_insert(Encoding::RunEnd);
        });
        let request = match &attachment {
            Some(attachment) => request.session(attachment.session()),
            // A request with a session resolves its cells by that session.
            None if request.fields().session.is_some() => request,
            None => request.with(|fields| {
                fields.cell.get_or_insert(CellKind::Payload);
            }),
        };
        if let Some(attachment) = &attachment
            && let Some(held) = LocalJoin::of(&request)
            && let Some(table) = self.joined(held, &request, attachment).await?
        {
            return Ok(table);
        }
        let (schema, batches) = self.get(&request).await?;
        let hold = self.hold(attachment, &schema);
        if request.fields().cell == Some(CellKind::Payload) {
            // The payloads are in the batches already.
            drop(hold);
            return Table::new(&schema, batches, Hold::new(None, None, self.releases()), request);
        }
        Table::new(&schema, batches, hold, request)?.mapped().await
    }

    /// Holds the objects of an answer with this schema.
    pub(super) fn hold(&self, attachment: Option<Arc<Attachment>>, schema: &Schema) -> Hold {
        let lease = schema.metadata().get("iovcache.lease").cloned();
        Hold::new(attachment, lease, self.releases())
    }

    /// Whether objects are sent over the network: the service is on another node, or the options
    /// say so.
    async fn is_remote(&self) -> bool {
        matches!(&*self.0.attached.lock().await, Attached::Remote)
    }

    /// The objects view of `table`: which versions serve which rows. One row per run that is not
    /// null, with the columns of [`View::Objects`].
    ///
    /// # Errors
    /// [`ClientError::Changed`] if other versions serve it by now.
    pub async fn objects(
        &self,
        table: &Table,
    ) -> Result<(Arc<Schema>, Vec<RecordBatch>), ClientError> {
        let request = table.request().clone().objects_view();
        let limit = self.patience_of(&request);
        let objects = self.until_answered(limit, |left| {
            let request = within(&request, left);
            async move { self.get(&request).await }
        });
        let (schema, batches) = objects.await?;
        drop(self.hold(table.attachment(), &schema));
        match describes(&batches, table)? {
            true => Ok((schema, batches)),
            false => Err(ClientError::Changed),
        }
    }

    /// The table with rows made by the client from the spans; `None` if the timestamps must be sent
    /// to the service.
    async fn joined(
        &self,
        held: LocalJoin,
        request: &TableRequest,
        attachment: &Arc<Attachment>,
    ) -> Result<Option<Table>, ClientError> {
        let (schema, batches) = match self.get(&held.request).await {
            Ok(spans) => spans,
            Err(error) if LocalJoin::is_refused(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let joined = held.join(&schema, &batches)?;
        let gaps = joined.gaps;
        let hold = self.hold(Some(Arc::clone(attachment)), &schema);
        let table = Table::joined(joined, hold, request.clone());
        // The service treats gaps, column by column.
        if gaps {
            return Ok(None);
        }
        Ok(Some(table.mapped().await?))
    }

    /// Releases the objects of a table and waits for the service to confirm it. Dropping the table
    /// releases them too, without waiting.
    ///
    /// # Errors
    /// [`ClientError`] if the service does not confirm.
    pub async fn release(&self, table: Table) -> Result<(), ClientError> {
        match table.into_lease() {
            None => Ok(()),
            Some(lease) => {
                let _: serde_json::Value = self.act("release", &json!({"lease": lease})).await?;
                Ok(())
            }
        }
    }

    /// The batches of a table as received. Every field of the request is sent as given.
    ///
    /// Without a session or consumer in the request, the objects are not pinned after the answer,
    /// and its MetaHeaders may soon be stale.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn batches(&self, request: &TableRequest) -> Result<Vec<RecordBatch>, ClientError> {
        let patience = self.patience_of(request);
        let got = self.until_answered(patience, |left| {
            let request = within(request, left);
            async move { self.get(&request).await }
        });
        let (schema, batches) = got.await?;
        if request.fields().session.is_none() && request.fields().consumer.is_none() {
            self.end_lease(&schema).await?;
        }
        Ok(batches)
    }

    async fn end_lease(&self, schema: &Schema) -> Result<(), ClientError> {
        match schema.metadata().get("iovcache.lease") {
            None => Ok(()),
            Some(lease) => {
                let _: serde_json::Value = self.act("release", &json!({"lease": lease})).await?;
                Ok(())
            }
        }
    }

    pub(super) fn get<'a>(
        &'a self,
        request: &'a TableRequest,
    ) -> ClientCall<'a, (Arc<Schema>, Vec<RecordBatch>)> {
        Box::pin(async {
            let mut stream = self.stream(request).await?;
            let mut batches = Vec::new();
            while let Some(batch) = stream.next().await {
                batches.push(batch.map_err(|error| of_flight(&error))?);
            }
            let schema = stream.schema().cloned();
            let schema = schema.ok_or_else(|| answer("no schema came"))?;
            Ok((schema, batches))
        })
    }

    pub(super) fn stream<'a>(
        &'a self,
        request: &'a TableRequest,
    ) -> ClientCall<'a, FlightRecordBatchStream> {
        Box::pin(async {
            let ticket = Ticket::new(request.to_json()?);
            let stream = self.flight().do_get(ticket).await?.into_inner();
            let stream = stream.map_err(|status| FlightError::Tonic(Box::new(status)));
            Ok(FlightRecordBatchStream::new_from_flight_data(stream))
        })
    }

    /// The bytes of the object of `path` at `at` (milliseconds since the Unix epoch), sent in
    /// chunks of at most 1 MiB over the network. `take` gets each chunk, in order. For objects of
    /// any size; an object of 0 bytes has no chunk.
    ///
    /// Only the beginning is repeated if the service is restarted: chunks that were passed to
    /// `take` cannot be taken back.
    ///
    /// # Errors
    /// [`ClientError`], or the error of `take` as [`ClientError::Io`].
    pub async fn chunks(
        &self,
        path: &str,
        at: i64,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), ClientError> {
        let request =
            TableRequest::new().column("object", path).timestamps([at]).view(View::Chunks);
        // Chunks that were passed on cannot be taken back, so only the beginning is repeated.
        let mut stream = self.until_answered(self.patience(), |_| self.stream(&request)).await?;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(|error| of_flight(&error))?;
            let bytes = batch.column_by_name("bytes");
            let bytes = bytes
                .and_then(|column| column.as_any().downcast_ref::<arrow_array::BinaryArray>())
                .ok_or_else(|| answer("no column of bytes came"))?;
            for piece in bytes.iter().flatten() {
                take(piece).map_err(|error| ClientError::Io {
                    what: "cannot write the object".to_owned(),
                    error,
                })?;
            }
        }
        match stream.schema().cloned() {
            Some(schema) => self.end_lease(&schema).await,
            None => Err(answer("no schema came")),
        }
    }
}

/// Rows that one version serves, as an objects view names them.
struct ServedRun<'a> {
    column: &'a str,
    rows: Range<usize>,
    id: Option<ObjectId>,
    generation: u64,
}

/// The rows of an objects view.
fn served_runs(objects: &[RecordBatch]) -> Result<Vec<ServedRun<'_>>, ClientError> {
    let mut runs = Vec::new();
    for batch in objects {
        let column = |name| batch.column_by_name(name);
        let text = |name| column(name).and_then(|texts| texts.as_string_opt::<i32>());
        let numbers = |name| column(name).and_then(|one| one.as_primitive_opt::<Int64Type>());
        let generations = column("generation").and_then(|one| one.as_primitive_opt::<UInt64Type>());
        let rows = numbers("row_start").zip(numbers("row_end"));
        let (Some(names), Some(ids), Some((starts, ends)), Some(generations)) =
            (text("column"), text("object_id"), rows, generations)
        else {
            return Err(answer("no objects view came"));
        };
        runs.extend((0..batch.num_rows()).map(|row| {
            let at = |rows: &Int64Array| usize::try_from(rows.value(row)).unwrap_or(usize::MAX);
            ServedRun {
                column: names.value(row),
                rows: at(starts)..at(ends),
                id: ObjectId::parse(ids.value(row)),
                generation: generations.value(row),
            }
        }));
    }
    Ok(runs)
}

/// Whether an objects view describes the objects of `table`: by the table's digest, or by the
/// generations in its cells.
fn describes(objects: &[RecordBatch], table: &Table) -> Result<bool, ClientError> {
    let runs = served_runs(objects)?;
    Ok(match table.schema().metadata().get(VERSIONS) {
        Some(versions) => *versions == digest_of(&runs),
        None => have_generations_of(&runs, table),
    })
}

fn digest_of(runs: &[ServedRun<'_>]) -> String {
    let mut digest = ServedDigest::default();
    for ServedRun { column, rows, id, .. } in runs {
        id.iter().for_each(|id| digest.add(column, rows.clone(), *id));
    }
    digest.finish()
}

/// Whether the blocks of all cells have the generations of these runs, but where a slot pins the object
/// and the service has loaded it again. `false` if cells have no generation.
fn have_generations_of(runs: &[ServedRun<'_>], table: &Table) -> bool {
    let mut told: HashMap<&str, Vec<&ServedRun<'_>>> = HashMap::new();
    runs.iter().for_each(|run| told.entry(run.column).or_default().push(run));
    let is_told = |(start, header): &(usize, MetaHeader), told: &ServedRun<'_>| {
        *start == told.rows.start
            && (header.hint == told.generation
                || (told.id.is_some() && table.id_by_slot(header) == told.id))
    };
    let mut compared = 0;
    let agree = table.headers().all(|(name, seen)| {
        compared += 1;
        let told = told.get(name).map_or(&[][..], Vec::as_slice);
        seen.len() == told.len() && seen.iter().zip(told).all(|(seen, told)| is_told(seen, told))
    });
    agree && compared == table.columns().len()
}

/// The request with its time limited to the time left; unchanged the first time.
fn within(request: &TableRequest, left: Option<Duration>) -> TableRequest {
    match left {
        None => request.clone(),
        Some(left) => request.clone().wait(left),
    }
}
