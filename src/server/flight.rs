//! The calls of Arrow Flight, each implemented in its own file.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use futures::stream::{self, Stream};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::auth::Identity;
use super::connection::PeerInfo;
use super::limits::Limits;
use super::reloads::Reloads;
use super::status::status;
use crate::budget::{Charge, ClientBudget};
use crate::cache::{Cache, Origin};
use crate::table::{RequestLimits, action_types};

/// A stream of answers.
pub(super) type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Flight over a cache.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) cache: Cache,
    /// Longest pause of a client between two messages of a timeframe.
    pub(super) message_pause: Duration,
    /// Permits for registrations that wait for their answer.
    pub(super) registrations: Arc<Semaphore>,
    pub(super) max_registrations: usize,
    /// Limits of one request.
    pub(super) requests: RequestLimits,
    /// The state of the configuration, as the status reports it.
    pub(super) reloads: Reloads,
}

impl Service {
    pub(super) fn new(cache: Cache, limits: &Limits, reloads: Reloads) -> Self {
        let max_registrations = limits.registrations;
        Self {
            cache,
            message_pause: limits.message_pause.duration(),
            registrations: Arc::new(Semaphore::new(max_registrations)),
            max_registrations,
            requests: limits.requests(),
            reloads,
        }
    }
}

/// The proven facts about the client, as the guard stored them.
pub(super) fn origin<T>(request: &Request<T>) -> Origin {
    let identity = request.extensions().get::<Identity>();
    let unknown = Origin::Client { uid: None, tcp_uid: None, key: None, administers: false };
    identity.map_or(unknown, Identity::origin)
}

/// Like [`origin`], for a request that names a session: over loopback the kernel gives the user of
/// the client.
pub(super) async fn origin_of_session<T>(request: &Request<T>) -> Origin {
    let entered = request.extensions().get::<PeerInfo>().cloned();
    let origin = origin(request);
    match entered.as_ref().and_then(|entered| entered.line.loopback.as_ref()) {
        Some(loopback) => origin.with_tcp_user(loopback.user().await),
        None => origin,
    }
}

/// The number of the client's connection.
pub(super) fn connection<T>(request: &Request<T>) -> Option<u64> {
    request.extensions().get::<PeerInfo>().map(|entered| entered.line.number)
}

/// Charges a message of a stream for as long as the service keeps it.
///
/// # Errors
/// RESOURCE_EXHAUSTED.
pub(super) fn charge_message(
    message: &FlightData,
    budget: &ClientBudget,
) -> Result<Charge, Status> {
    let bytes = message.data_header.len() + message.data_body.len() + message.app_metadata.len();
    budget.charge(bytes as u64, "a message of timestamps").map_err(|error| status(&error))
}

/// The service stops waiting this long before the client's deadline, so that the client gets the
/// reason.
const ANSWER_TIME: Duration = Duration::from_millis(20);

/// The client's timeout, if given (`grpc-timeout`: up to 8 digits and a unit).
pub(super) fn patience<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    let time = match unit {
        "H" => Duration::from_secs(count.saturating_mul(3_600)),
        "M" => Duration::from_secs(count.saturating_mul(60)),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Some(time.saturating_sub(ANSWER_TIME.min(time / 4)))
}

pub(super) fn all<T: Send + 'static>(answers: Vec<T>) -> Response<ResponseStream<T>> {
    Response::new(Box::pin(stream::iter(answers.into_iter().map(Ok))))
}

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = ResponseStream<HandshakeResponse>;
    type ListFlightsStream = ResponseStream<FlightInfo>;
    type DoGetStream = ResponseStream<FlightData>;
    type DoPutStream = ResponseStream<PutResult>;
    type DoExchangeStream = ResponseStream<FlightData>;
    type DoActionStream = ResponseStream<arrow_flight::Result>;
    type ListActionsStream = ResponseStream<ActionType>;

    async fn handshake(
        &self,
        _request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("[IOV-6008] no authentication by handshake"))
    }

    async fn list_flights(
        &self,
        request: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        let budget = PeerInfo::budget(&request);
        self.list(&request.into_inner().expression, &budget).await
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let budget = PeerInfo::budget(&request);
        let origin = origin_of_session(&request).await;
        self.info(request.into_inner(), &origin, &budget)
    }

    async fn poll_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        let budget = PeerInfo::budget(&request);
        let origin = origin_of_session(&request).await;
        self.poll(request.into_inner(), origin, budget).await
    }

    async fn get_schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        self.schema(request.get_ref(), &PeerInfo::budget(&request))
    }

    async fn do_get(
        &self,
        request: Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        self.get(request).await
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        self.put(request).await
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        self.exchange(request).await
    }

    async fn do_action(
        &self,
        request: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        self.act(request).await
    }

    async fn list_actions(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        let types = action_types().iter().map(|(name, description)| ActionType {
            r#type: (*name).to_owned(),
            description: (*description).to_owned(),
        });
        Ok(all(types.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_timeout_is_read_in_every_unit() {
        let of = |text: &'static str| {
            let mut request = Request::new(());
            request.metadata_mut().insert("grpc-timeout", text.parse().unwrap());
            patience(&request)
        };
        assert_eq!(of("2S"), Some(Duration::from_millis(1_980)));
        assert_eq!(of("100m"), Some(Duration::from_millis(80)));
        assert_eq!(of("40m"), Some(Duration::from_millis(30)));
        assert_eq!(of("1H"), Some(Duration::from_millis(3_599_980)));
        assert_eq!(of("x"), None);
        assert_eq!(of("5"), None);
        assert_eq!(patience(&Request::new(())), None);
    }
}
