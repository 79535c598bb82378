//! The HTTP port for operators: the status page, `/metrics` (Prometheus), `/healthz` (liveness),
//! `/readyz` (readiness).
//!
//! Plain HTTP/1.1, read only, on a separate port so that it can be opened to clients other than the
//! consumers. A new connection is always accepted: [`visitors`] ends another one for it.

mod exposition;
mod progress;
mod service;
mod visitors;
pub(super) use self::service::{HttpOptions, MAX_CONNECTIONS, Readiness, serve};
