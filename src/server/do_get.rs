//! Tables sent to clients (DoGet), and their descriptions (GetFlightInfo, GetSchema, ListFlights).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::{
    FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, PollInfo, SchemaAsIpc, SchemaResult,
    Ticket,
};
use arrow_ipc::writer::IpcWriteOptions;
use arrow_schema::Schema;
use futures::{StreamExt as _, stream};
use serde_json::json;
use tonic::{Response, Status};

use super::call_origin;
use super::connection::PeerInfo;
use super::flight::{ResponseStream, Service, connection, origin, origin_of_session, patience};
use super::outgoing::{self, Outgoing};
use super::status::status;
use super::ticket;
use crate::budget::ClientBudget;
use crate::cache::{Caller, Origin};
use crate::table::{EncodeError, Request, RequestError, View};

/// First element of the flight path of a timeframe.
pub(super) const TIMEFRAME: &str = "timeframe";
/// Memory of a listing of paths in progress: a part of the paths, and the state of the source.
const LISTING_BYTES: u64 = 4 << 20;

impl Service {
    /// DoGet.
    pub(super) async fn get(
        &self,
        request: tonic::Request<Ticket>,
    ) -> Result<Response<ResponseStream<FlightData>>, Status> {
        let (patience, connection) = (patience(&request), connection(&request));
        let budget = PeerInfo::budget(&request);
        let ticket = request.get_ref().ticket.clone();
        let mut charge = ticket::charge(&ticket, &budget).map_err(|error| status(&error))?;
        let (table, lease) = ticket::read(&ticket).map_err(|error| status(&error))?;
        self.requests.check(&table).map_err(|error| status(&error))?;
        ticket::charge_schema(&mut charge, &table).map_err(|error| status(&error))?;
        let origin = match &table.session {
            Some(_) => origin_of_session(&request).await,
            None => origin(&request),
        };
        let ticket = Some(ticket::key(&ticket));
        drop(request);
        let caller =
            Caller { origin, connection, ticket, lease, patience, budget, ..Caller::default() };
        let answer = self.cache.answer(&table, &caller).await.map_err(|error| {
            self.note_consumer(&table);
            status(&error)
        })?;
        drop(table);
        match answer.messages() {
            Ok(messages) => {
                // The schema is there until the last message is made.
                let messages = messages.inspect(move |_| {
                    let _held = &charge;
                });
                Ok(Outgoing::into_response(outgoing::of_table(messages, caller.budget)))
            }
            Err(error) => {
                self.cache.release(answer.lease());
                Err(status(&error))
            }
        }
    }

    /// Records the consumer for the log: the one that the request names, else that of the session.
    fn note_consumer(&self, request: &Request) {
        let session = request.session.as_deref();
        let consumer = request.consumer.clone();
        let consumer = consumer.or_else(|| self.cache.consumer_of_session(session?));
        if let Some(consumer) = consumer {
            call_origin::set_consumer(&consumer);
        }
    }

    /// GetSchema.
    pub(super) fn schema(
        &self,
        descriptor: &FlightDescriptor,
        budget: &ClientBudget,
    ) -> Result<Response<SchemaResult>, Status> {
        let request = request_of(descriptor).map_err(|error| status(&error))?;
        let mut charge = ticket::charge(&request, budget).map_err(|error| status(&error))?;
        let parsed = Request::parse(&request).map_err(|error| status(&error))?;
        self.requests.check(&parsed).map_err(|error| status(&error))?;
        ticket::charge_schema(&mut charge, &parsed).map_err(|error| status(&error))?;
        let described = self.cache.describe(&parsed).map_err(|error| status(&error))?;
        let options = IpcWriteOptions::default();
        let result = SchemaResult::try_from(SchemaAsIpc::new(&described.schema, &options));
        result.map(Response::new).map_err(|error| status(&EncodeError::from(error)))
    }

    /// GetFlightInfo. Loads nothing.
    pub(super) fn info(
        &self,
        descriptor: FlightDescriptor,
        origin: &Origin,
        budget: &ClientBudget,
    ) -> Result<Response<FlightInfo>, Status> {
        let request = request_of(&descriptor).map_err(|error| status(&error))?;
        let mut charge = ticket::charge(&request, budget).map_err(|error| status(&error))?;
        let parsed = Request::parse(&request).map_err(|error| status(&error))?;
        self.requests.check(&parsed).map_err(|error| status(&error))?;
        ticket::charge_schema(&mut charge, &parsed).map_err(|error| status(&error))?;
        let described = self.cache.describe(&parsed).map_err(|error| status(&error))?;
        if let Some(session) = &parsed.session {
            self.cache.check_session(session, origin).map_err(|error| status(&error))?;
        }
        // A client with a session, or a consumer of a timeframe, needs no lease with a time limit.
        let owned = parsed.session.is_some()
            || (parsed.consumer.is_some()
                && matches!(parsed.when, crate::table::When::Timeframe(_)));
        let (lease, limit) = if owned {
            (None, None)
        } else {
            let (lease, limit) = self.cache.open_lease(budget).map_err(|error| status(&error))?;
            (Some(lease), Some(limit))
        };
        let ticket = ticket::issue(&request, lease.as_ref()).map_err(|error| status(&error))?;
        let mut endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
        endpoint.expiration_time = limit.map(expiration);
        let rows = described.rows.filter(|_| parsed.view == View::Rows);
        let rows = rows.and_then(|rows| i64::try_from(rows).ok());
        let info = with_schema(FlightInfo::new(), &described.schema)?
            .with_descriptor(descriptor)
            .with_endpoint(endpoint)
            .with_total_records(rows.unwrap_or(-1))
            .with_total_bytes(-1)
            .with_ordered(true);
        Ok(Response::new(info))
    }

    /// PollFlightInfo: the progress of a table. The first call begins to load it, and opens the
    /// lease that will keep it. The descriptor for the next call is the ticket.
    pub(super) async fn poll(
        &self,
        descriptor: FlightDescriptor,
        origin: Origin,
        budget: ClientBudget,
    ) -> Result<Response<PollInfo>, Status> {
        let command = request_of(&descriptor).map_err(|error| status(&error))?;
        let mut charge = ticket::charge(&command, &budget).map_err(|error| status(&error))?;
        let (request, known) = ticket::read(&command).map_err(|error| status(&error))?;
        self.requests.check(&request).map_err(|error| status(&error))?;
        ticket::charge_schema(&mut charge, &request).map_err(|error| status(&error))?;
        let described = self.cache.describe(&request).map_err(|error| status(&error))?;
        let (lease, ticket) = match known {
            Some(lease) => (lease, command),
            None => {
                let (lease, _) = self.cache.open_lease(&budget).map_err(|error| status(&error))?;
                let ticket = ticket::issue(&command, Some(&lease));
                (lease, ticket.map_err(|error| status(&error))?)
            }
        };
        let caller = Caller { origin, budget, ..Caller::default() };
        let progress = match self.cache.poll(&request, &lease, &caller).await {
            Ok(progress) => progress,
            Err(error) => {
                self.cache.release(&lease);
                return Err(status(&error));
            }
        };
        let limit = self.cache.renew(&lease).map_err(|error| status(&error))?;
        let mut endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.clone()));
        endpoint.expiration_time = limit.map(expiration);
        let records = described.rows.and_then(|rows| i64::try_from(rows).ok()).unwrap_or(-1);
        let info = with_schema(FlightInfo::new(), &described.schema)?
            .with_descriptor(descriptor)
            .with_endpoint(endpoint)
            .with_total_records(records)
            .with_total_bytes(-1)
            .with_app_metadata(json!(progress).to_string())
            .with_ordered(true);
        Ok(Response::new(PollInfo {
            info: Some(info),
            flight_descriptor: (!progress.done).then(|| FlightDescriptor::new_cmd(ticket)),
            progress: Some(progress.share()),
            expiration_time: limit.map(expiration),
        }))
    }

    /// ListFlights: the paths below a prefix, and the timeframes in flight.
    pub(super) async fn list(
        &self,
        prefix: &[u8],
        budget: &ClientBudget,
    ) -> Result<Response<ResponseStream<FlightInfo>>, Status> {
        let prefix = std::str::from_utf8(prefix).map_err(|_| {
            let reason = "it is not UTF-8".to_owned();
            status(&RequestError::Malformed { what: "prefix of paths", reason })
        })?;
        let empty = with_schema(FlightInfo::new(), &Schema::empty())?;
        let mut flights: Vec<Result<FlightInfo, Status>> = Vec::new();
        if prefix.is_empty() || prefix == TIMEFRAME {
            for timeframe in self.cache.timeframes() {
                let about = json!(timeframe);
                let path = vec![TIMEFRAME.to_owned(), timeframe.timeframe.to_string()];
                let records = i64::try_from(timeframe.rows).unwrap_or(-1);
                flights.push(Ok(flight(&empty, path, records, &about)));
            }
        }
        let flights = stream::iter(flights);
        if prefix == TIMEFRAME {
            return Ok(Response::new(Box::pin(flights)));
        }
        let charge = budget.charge(LISTING_BYTES, "a listing of paths");
        let charge = charge.map_err(|error| status(&error))?;
        let parts = self.cache.path_parts(prefix).await.map_err(|error| status(&error))?;
        // A part is read, and a message is made, when it is sent.
        let paths = parts.flat_map(move |part| {
            let _ = &charge;
            let empty = empty.clone();
            let (paths, error) = match part {
                Ok(paths) => (paths, None),
                Err(error) => (Vec::new(), Some(Err(status(&error)))),
            };
            let listed = paths.into_iter().map(move |path| {
                let about = json!({"path": path.path, "objects": path.versions});
                let records = i64::try_from(path.versions).unwrap_or(-1);
                Ok(flight(&empty, vec![path.path.to_string()], records, &about))
            });
            stream::iter(listed.chain(error))
        });
        Ok(Response::new(Box::pin(paths.chain(flights))))
    }
}

/// A listed flight. `empty` has the schema without fields.
fn flight(
    empty: &FlightInfo,
    path: Vec<String>,
    records: i64,
    about: &serde_json::Value,
) -> FlightInfo {
    let flight = empty.clone().with_descriptor(FlightDescriptor::new_path(path));
    flight.with_total_records(records).with_total_bytes(-1).with_app_metadata(about.to_string())
}

fn with_schema(info: FlightInfo, schema: &Schema) -> Result<FlightInfo, Status> {
    info.try_with_schema(schema).map_err(|error| status(&EncodeError::from(error)))
}

/// The time `after` from now, in Flight's format.
pub(super) fn expiration(after: Duration) -> prost_types::Timestamp {
    let at = SystemTime::now() + after;
    let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(at.subsec_nanos()).unwrap_or(0),
    }
}

/// The request of a descriptor: its command, or the path of a timeframe.
fn request_of(descriptor: &FlightDescriptor) -> Result<Vec<u8>, RequestError> {
    let path: Vec<&str> = descriptor.path.iter().map(String::as_str).collect();
    match (DescriptorType::try_from(descriptor.r#type), &path[..]) {
        (Ok(DescriptorType::Path), [TIMEFRAME, id]) => {
            let timeframe = timeframe_id(id)?;
            Ok(json!({"timeframe": timeframe}).to_string().into_bytes())
        }
        (Ok(DescriptorType::Path), _) => Err(RequestError::Malformed {
            what: "descriptor of a table",
            reason: format!("path {path:?}, expected a command with a request in JSON"),
        }),
        _ => Ok(descriptor.cmd.to_vec()),
    }
}

/// # Errors
/// [`RequestError`] if it is not a u64.
pub(super) fn timeframe_id(text: &str) -> Result<u64, RequestError> {
    text.parse().map_err(|_| RequestError::Field {
        field: "timeframe",
        reason: format!("{text:?} is no id, expected a number"),
    })
}
