//! The guard: every call of every service is checked here before it is served.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use hyper::header::AUTHORIZATION;
use hyper::{Request, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tower::{Layer, Service};

use super::auth::{Access, Denied, Identity, Role, needed_for_call};
use super::call_origin::CallOrigin;
use super::connection::PeerInfo;
use super::meter::Metered;
use super::outgoing::Outgoing;
use super::reset_limit::{BodyBroken, RunningCall};
use super::status::status;
use crate::cache::Cache;
use crate::secret::Secret;

/// Puts a guard before a service.
#[derive(Debug, Clone)]
pub(super) struct GuardLayer {
    access: Access,
    cache: Cache,
    /// Permits for concurrent calls, over all connections.
    calls: Arc<Semaphore>,
    max_calls: usize,
}

impl GuardLayer {
    pub(super) fn new(access: Access, cache: Cache, max_calls: usize) -> Self {
        let calls = Arc::new(Semaphore::new(max_calls));
        Self { access, cache, calls, max_calls }
    }

    /// Identifies the client, and takes a permit for the call until it is answered.
    fn admit<B>(&self, request: &Request<B>) -> Result<(Identity, OwnedSemaphorePermit), Denied> {
        let counters = self.cache.counters();
        let identity = match needed_for_call(request.uri().path()) {
            // Every client may call it: no identification is needed.
            None => Identity { name: "anybody".into(), role: Role::Read, by_key: false, uid: None },
            Some(needs) => {
                let entered = request.extensions().get::<PeerInfo>();
                let peer = &entered.ok_or(Denied::NoCredentials)?.peer;
                let identity = match bearer(request) {
                    Ok(token) => self.access.identify(peer, token.as_ref()),
                    Err(malformed) => self.access.identify_without_key(peer, malformed),
                };
                let checked = identity.and_then(|identity| {
                    identity.check(needs, request.uri().path()).map(|()| identity)
                });
                checked.inspect_err(|denied| match denied {
                    Denied::Peer(_) | Denied::Certificate { .. } | Denied::Role { .. } => {
                        counters.permission_denied.add(1);
                    }
                    _ => counters.unauthenticated.add(1),
                })?
            }
        };
        let place = Arc::clone(&self.calls).try_acquire_owned().map_err(|_| {
            counters.calls_refused.add(1);
            Denied::TooManyCalls { limit: self.max_calls }
        })?;
        Ok((identity, place))
    }
}

/// The token of `authorization: Bearer TOKEN`.
fn bearer<B>(request: &Request<B>) -> Result<Option<Secret>, Denied> {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match (token, values.next()) {
        (Some(token), None) if !token.is_empty() => Ok(Some(token.into())),
        _ => Err(Denied::Malformed),
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, by: self.clone() }
    }
}

/// A service with a guard before it.
#[derive(Debug, Clone)]
pub(super) struct Guard<S> {
    inner: S,
    by: GuardLayer,
}

impl<S> Service<Request<Body>> for Guard<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<PeerInfo>().map(|entered| &entered.peer);
        match self.by.admit(&request) {
            Err(denied) => {
                let refused = CallOrigin::new(peer, None).sync_scope(|| status(&denied));
                std::future::ready(Ok(refused.into_http())).boxed()
            }
            Ok((identity, place)) => {
                let key = identity.by_key.then(|| Arc::clone(&identity.name));
                let origin = CallOrigin::new(peer, key);
                // No later code needs the token, so none can reveal it.
                request.headers_mut().remove(AUTHORIZATION);
                request.extensions_mut().insert(identity);
                let entered = request.extensions().get::<PeerInfo>();
                let budget = entered.map(|entered| entered.budget.clone()).unwrap_or_default();
                let torn = BodyBroken::default();
                let line = entered.map(|entered| Arc::clone(&entered.line));
                let mut call = RunningCall::new(line, torn.clone());
                let request = request.map(|body| {
                    let body = body.map_err(move |error| {
                        torn.set();
                        error
                    });
                    Body::new(Metered::new(body, budget))
                });
                let answer = self.inner.call(request);
                async move {
                    let answer = Outgoing::unpack(origin.scope(answer).await?);
                    if answer.body().is_end_stream() {
                        call.done();
                    }
                    // The permit is returned with the last frame of the answer.
                    Ok(answer.map(|body| {
                        Body::new(body.map_frame(move |frame| {
                            let _ = &place;
                            if frame.is_trailers() {
                                call.done();
                            }
                            frame
                        }))
                    }))
                }
                .boxed()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Option<String>, Denied> {
        let mut request = Request::new(());
        for value in values {
            request.headers_mut().append(AUTHORIZATION, value.parse().unwrap());
        }
        bearer(&request).map(|token| token.map(|token| token.reveal().to_owned()))
    }

    #[test]
    fn one_bearer_token_is_read_and_anything_else_refused() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["Bearer abc"]), Ok(Some("abc".to_owned())));
        assert_eq!(read(&["bearer  abc"]), Ok(Some("abc".to_owned())));
        for wrong in [&["abc"][..], &["Basic abc"], &["Bearer "], &["Bearer a", "Bearer b"], &[""]]
        {
            assert_eq!(read(wrong), Err(Denied::Malformed), "{wrong:?}");
        }
    }
}
