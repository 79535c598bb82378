//! DoAction: all other requests. Bodies are JSON, except for Flight's own two actions.

use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightEndpoint,
    RenewFlightEndpointRequest,
};
use prost::Message as _;
use serde::Serialize;
use serde_json::json;
use tonic::{Request, Response, Status};

use super::auth::{Identity, needed_for_action};
use super::connection::PeerInfo;
use super::do_get::expiration;
use super::flight::{
    ResponseStream, Service, all, connection, origin, origin_of_session, patience,
};
use super::status::status;
use super::ticket;
use crate::cache::{CacheError, Caller, LeaseId, Origin};
use crate::error::Coded;
use crate::table::{
    CheckRequest, ConsumptionReport, DropTimeframe, Invalidate, NoFields, Prefetch, Release,
    RequestError, TimelineRequest, action_types, parse_action,
};

/// The answer of an action: its bytes, or the error.
type ActionResult = Result<Vec<u8>, Box<dyn Coded + Send + Sync>>;

fn json_of(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).unwrap_or_default()
}

impl Service {
    pub(super) async fn act(
        &self,
        request: Request<Action>,
    ) -> Result<Response<ResponseStream<arrow_flight::Result>>, Status> {
        let (patience, connection) = (patience(&request), connection(&request));
        let budget = PeerInfo::budget(&request);
        let origin = match &*request.get_ref().r#type {
            "CancelFlightInfo" => origin_of_session(&request).await,
            _ => origin(&request),
        };
        let identity = request.extensions().get::<Identity>().cloned();
        let Action { r#type, body } = request.into_inner();
        if let Some(identity) = identity
            && action_types().iter().any(|(name, _)| *name == r#type)
        {
            let checked = identity.check(needed_for_action(&r#type), &r#type);
            checked.map_err(|denied| {
                self.cache.counters().permission_denied.add(1);
                status(&denied)
            })?;
        }
        let _charge = ticket::charge(&body, &budget).map_err(|error| status(&error))?;
        let done = match &*r#type {
            "CancelFlightInfo" => self.cancel(&body, &origin, connection),
            _ => {
                let caller = Caller { patience, origin, budget, ..Caller::default() };
                self.done(&r#type, &body, &caller).await
            }
        };
        let body = done.map_err(|error| status(&*error))?;
        Ok(all(vec![arrow_flight::Result { body: body.into() }]))
    }

    async fn done(&self, name: &str, body: &[u8], caller: &Caller) -> ActionResult {
        let cache = &self.cache;
        // A missing body counts as an empty object.
        let body = if body.is_empty() { b"{}" } else { body };
        match name {
            "consumed" => {
                let ConsumptionReport { consumed, registration } = ConsumptionReport::parse(body)?;
                let (origin, budget) = (&caller.origin, &caller.budget);
                Ok(json_of(&cache.consumed_of(&consumed, registration, origin, budget)?))
            }
            "prefetch" => {
                let objects = cache.prefetch(&Prefetch::parse(body)?, caller).await?;
                Ok(json_of(&json!({"objects": objects})))
            }
            "invalidate" => {
                let Invalidate { path } = parse_action("invalidate", body)?;
                cache.invalidate(&path);
                Ok(json_of(&json!({"invalidated": path})))
            }
            "drop_timeframe" => {
                let DropTimeframe { timeframe } = parse_action("drop_timeframe", body)?;
                Ok(json_of(&cache.drop_timeframe_by(timeframe, &caller.origin)?))
            }
            "release" => self.release(body),
            "segments" => {
                let NoFields {} = parse_action("segments", body)?;
                Ok(json_of(&cache.segments()))
            }
            "status" => {
                let NoFields {} = parse_action("status", body)?;
                let mut answer = cache.status();
                answer.configuration = Some(self.reloads.status());
                Ok(json_of(&answer))
            }
            "timeline" => {
                let request: TimelineRequest = parse_action("timeline", body)?;
                Ok(json_of(&cache.timeline(&request, caller).await?))
            }
            "check" => {
                let CheckRequest { contents } = parse_action("check", body)?;
                Ok(json_of(&cache.check_running(contents).await))
            }
            "RenewFlightEndpoint" => self.renew(body),
            _ => {
                let known: Vec<&str> = action_types().iter().map(|(name, _)| *name).collect();
                let reason = format!("unknown action {name:?}; there are {}", known.join(", "));
                Err(RequestError::Malformed { what: "action", reason }.into())
            }
        }
    }

    fn release(&self, body: &[u8]) -> ActionResult {
        let Release { lease } = parse_action("release", body)?;
        match self.cache.release(&LeaseId::from(lease.as_str())) {
            true => Ok(json_of(&json!({"released": lease}))),
            false => Err(CacheError::LeaseEnded.into()),
        }
    }

    fn cancel(&self, body: &[u8], origin: &Origin, connection: Option<u64>) -> ActionResult {
        let request = CancelFlightInfoRequest::decode(body).map_err(|error| malformed(&error))?;
        let endpoints = request.info.unwrap_or_default().endpoint;
        let mut ended = 0;
        for ticket in endpoints.iter().filter_map(|endpoint| endpoint.ticket.as_ref()) {
            ended += match ticket::lease(&ticket.ticket) {
                Some(lease) => usize::from(self.cache.release(&lease)),
                None => {
                    self.cache.release_ticket_of(&ticket::key(&ticket.ticket), origin, connection)
                }
            };
        }
        let status = if ended > 0 { CancelStatus::Cancelled } else { CancelStatus::NotCancellable };
        Ok(CancelFlightInfoResult::new(status).encode_to_vec())
    }

    fn renew(&self, body: &[u8]) -> ActionResult {
        let request =
            RenewFlightEndpointRequest::decode(body).map_err(|error| malformed(&error))?;
        let endpoint = request.endpoint.unwrap_or_default();
        let ticket = endpoint.ticket.clone().unwrap_or_default();
        let limit = match ticket::lease(&ticket.ticket) {
            Some(lease) => self.cache.renew(&lease)?,
            None => self.cache.renew_ticket(&ticket::key(&ticket.ticket))?,
        };
        let renewed = FlightEndpoint { expiration_time: limit.map(expiration), ..endpoint };
        Ok(renewed.encode_to_vec())
    }
}

fn malformed(error: &prost::DecodeError) -> RequestError {
    RequestError::Malformed { what: "message of Arrow Flight", reason: error.to_string() }
}

impl From<RequestError> for Box<dyn Coded + Send + Sync> {
    fn from(error: RequestError) -> Self {
        Box::new(error)
    }
}

impl From<CacheError> for Box<dyn Coded + Send + Sync> {
    fn from(error: CacheError) -> Self {
        Box::new(error)
    }
}
