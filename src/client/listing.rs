//! Lists the paths of a service, and the timeline of a path. No object is loaded.

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array as _, RecordBatch};
use arrow_flight::{Criteria, FlightInfo};
use serde::Deserialize;
use tonic::Streaming;

use super::error::ClientError;
use super::service::{Client, ClientCall, answer};
use crate::error::ErrorKind;
use crate::object::ObjectId;
use crate::table::{TableRequest, TimelinePage, TimelineRequest, TimelineSpan};

/// A path that a service knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PathEntry {
    /// The object path.
    pub path: String,
    /// Number of its versions.
    pub objects: u64,
}

/// The paths of a service as they arrive, in ascending order.
#[derive(Debug)]
pub struct PathStream {
    flights: Streaming<FlightInfo>,
}

impl PathStream {
    /// The next path; `None` after the last one.
    ///
    /// # Errors
    /// [`ClientError`] if the service ends its answer with an error, or is gone.
    pub async fn next(&mut self) -> Result<Option<PathEntry>, ClientError> {
        while let Some(flight) = self.flights.message().await? {
            // A timeframe in flight is listed, too.
            if let Ok(path) = serde_json::from_slice(&flight.app_metadata) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

impl Client {
    /// The known paths at `prefix` and below, all at once.
    ///
    /// # Errors
    /// [`ClientError`] if the service does not answer.
    pub async fn paths(&self, prefix: &str) -> Result<Vec<PathEntry>, ClientError> {
        let listed = self.until_answered(self.patience(), async |_| {
            let mut stream = self.list_paths(prefix).await?;
            let mut paths = Vec::new();
            while let Some(path) = stream.next().await? {
                paths.push(path);
            }
            Ok(paths)
        });
        listed.await
    }

    /// The known paths at `prefix` and below, one after the other: there may be hundreds of
    /// thousands. The call is repeated until the service begins to answer.
    ///
    /// # Errors
    /// [`ClientError`] if the service does not answer.
    pub async fn path_stream(&self, prefix: &str) -> Result<PathStream, ClientError> {
        self.until_answered(self.patience(), |_| self.list_paths(prefix)).await
    }

    fn list_paths<'a>(&'a self, prefix: &'a str) -> ClientCall<'a, PathStream> {
        Box::pin(async {
            let criteria = Criteria { expression: prefix.to_owned().into() };
            let flights = self.flight().list_flights(criteria).await?.into_inner();
            Ok(PathStream { flights })
        })
    }

    /// A page of the effective spans of a path. The service loads no object for it.
    ///
    /// [`TimelineRequest::after`] is the request for the next page. A service that does not know
    /// pages of timelines answers with all spans at once; it loads their objects.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn timeline(&self, request: &TimelineRequest) -> Result<TimelinePage, ClientError> {
        request.range()?;
        match self.act("timeline", &serde_json::json!(request)).await {
            Err(error) if is_unknown_action(&error) => self.whole_timeline(request).await,
            listed => listed,
        }
    }

    /// All spans at once, as the view `intervals`.
    async fn whole_timeline(&self, request: &TimelineRequest) -> Result<TimelinePage, ClientError> {
        let (from, until) = (request.from.unwrap_or(i64::MIN), request.until.unwrap_or(i64::MAX));
        let path = request.path.to_string();
        let mut table = TableRequest::new().column("object", path).intervals(from, until);
        if let Some(not_after) = request.not_after {
            table = table.not_after(not_after.as_millis());
        }
        if let Some(not_before) = request.not_before {
            table = table.not_before(not_before.as_millis());
        }
        let mut page = TimelinePage::default();
        for batch in self.batches(&table).await? {
            page.spans.extend(spans(&batch).ok_or_else(|| answer("no spans came"))?);
        }
        Ok(page)
    }
}

/// Whether the service does not know the action.
fn is_unknown_action(error: &ClientError) -> bool {
    let ClientError::Service { kind: ErrorKind::InvalidArgument, message, .. } = error else {
        return false;
    };
    message.contains("unknown action")
}

/// The spans of a batch of the view `intervals`.
fn spans(batch: &RecordBatch) -> Option<Vec<TimelineSpan>> {
    let times = |name| batch.column_by_name(name)?.as_primitive_opt::<Int64Type>();
    let (from, until) = (times("from")?, times("until")?);
    let ids = batch.column_by_name("object_id")?.as_string_opt::<i32>()?;
    (0..ids.len())
        .map(|row| {
            let object_id = ObjectId::parse(ids.value(row))?;
            Some(TimelineSpan { from: from.value(row), until: until.value(row), object_id })
        })
        .collect()
}
