//! A CCDB server for tests. It answers header for header like the recorded exchanges with real
//! servers, and injects faults on demand.
//!
//! ```text
//!  upload(…) ─▶ versions ─┐
//!  inject(…) ─▶ faults  ──┤  one task per connection, HTTP/1.1 keep-alive
//!  counts()  ◀─ counters ─┘  GET and HEAD of /<path>/<t>, /<path>/<from>/<uuid>,
//!                            /download/<uuid>, /browse/<path>[/<t>][/k=v], /latest/…
//! ```
//!
//! The answers are written to the socket by hand: an HTTP library would change the spelling and
//! order of headers, forbid most of the faults, and repair the rest.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

mod pages;
mod store;
mod wire;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use uuid::Uuid;

pub use store::{Upload, Version};
use wire::Reply;

/// The real server to imitate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// File-backed: `Location: /path/from/UUID`.
    Local,
    /// SQL-backed: `Location: /download/UUID`, `Content-Location` for each replica.
    Sql,
    /// SQL-backed with `local.copy.first=true`: the body is sent at once, with status 200.
    SqlLocalCopyFirst,
    /// The node's cache: like file-backed, with `Location: from/UUID`.
    Memory,
}

/// The kind of request that an answer, a counter or a fault applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// `/path/t`: the valid version.
    LookUp,
    /// `/path/from/UUID` or `/download/UUID`.
    Body,
    /// `/browse/…`.
    Listing,
}

/// A fault.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status and no other header or body.
    Status(u16),
    /// 503 with `Retry-After` in seconds.
    RetryAfter(u64),
    /// The request is read and never answered.
    Hang,
    /// The connection ends without an answer.
    HangUp,
    /// The page of usage, with status 200.
    Usage,
    /// The body is sent byte by byte, with this pause after each.
    SlowBody(Duration),
    /// This many bytes of the body are missing, and Content-Length matches the rest.
    TruncatedWithMatchingLength(usize),
    /// This many bytes of the body are missing, and the connection closes.
    Torn(usize),
    /// One bit of the body is flipped.
    FlippedBit,
    /// Content-MD5 belongs to other bytes.
    WrongMd5,
    /// This header is left out.
    Without(&'static str),
    /// This header has another value (or is added).
    Header(&'static str, String),
    /// 303 to this place, without any header of CCDB.
    Redirect(String),
    /// 303 to itself, without any header of CCDB.
    RedirectToItself,
    /// Chunked, without a length.
    Chunked,
    /// Chunked, without an end.
    Endless,
    /// This Content-Length, whatever the body.
    Length(u64),
}

/// Place of metadata named like a key of the listing, where they do not replace that key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// Before the server's own keys.
    Before,
    /// After the server's own keys.
    After,
}

/// Number of requests of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: usize,
    pub look_ups: usize,
    pub bodies: usize,
    pub listings: usize,
    /// Look-ups answered with 304.
    pub not_modified: usize,
    /// Answers with status 200 that sent a body of a version.
    pub bodies_sent: usize,
    /// Requests that carried `Authorization`.
    pub with_credentials: usize,
    /// Bytes of answers, heads included.
    pub sent_bytes: usize,
    /// Requests beyond what the server bears.
    pub overload: usize,
}

struct Planned {
    ask: Ask,
    /// Applies only to paths that contain this.
    path: String,
    fault: Fault,
    /// Remaining requests; `None`: no limit.
    left: Option<usize>,
}

/// Settings that can be changed while the server runs.
#[derive(Default)]
pub struct Habits {
    /// Pause before each answer.
    pub latency: Duration,
    /// With more requests than this at one time, further ones are answered with 503.
    pub bears: Option<usize>,
    /// `Cache-Valid-Until` of newer servers: time until which an answer may be used.
    pub cache_valid_until: Option<i64>,
    /// The URLs of replicas have scheme and host.
    pub absolute_urls: bool,
    /// The Grid has a replica of each body: `alien://` comes first (SQL-backed).
    pub on_grid: bool,
    /// Only the Grid has one (SQL-backed).
    pub only_on_grid: bool,
    /// Replicas in the place of the server's own, with `{id}` for the UUID.
    pub replicas: Option<Vec<String>>,
    /// `/browse/A` also lists paths that merely begin with `A`.
    pub browse_unanchored: bool,
    /// Metadata named like a key of the listing stand beside that key, instead of replacing it.
    pub repeats_keys: Option<Repeat>,
    /// HEAD is answered with 501.
    pub no_head: bool,
    /// Redirect target of the node's cache for versions that it does not have.
    pub upstream: Option<String>,
}

pub(crate) struct State {
    kind: Kind,
    address: SocketAddr,
    versions: Mutex<Vec<Version>>,
    planned: Mutex<VecDeque<Planned>>,
    habits: Mutex<Habits>,
    counts: Mutex<Counts>,
    /// Bodies being answered now, and their maximum so far.
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

/// A running server on its own port; it ends when dropped.
pub struct FakeCcdb {
    state: Arc<State>,
    listening: JoinHandle<()>,
}

impl Drop for FakeCcdb {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl FakeCcdb {
    pub async fn start(kind: Kind) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = Arc::new(State {
            kind,
            address: listener.local_addr().unwrap(),
            versions: Mutex::default(),
            planned: Mutex::default(),
            habits: Mutex::default(),
            counts: Mutex::default(),
            busy: AtomicUsize::new(0),
            busiest: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        let listening = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                shared.counts.lock().unwrap().connections += 1;
                connections.spawn(serve(Arc::clone(&shared), stream));
            }
        });
        Self { state, listening }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.state.address)
    }

    /// Adds a version and returns its id.
    pub fn upload(&self, upload: Upload) -> Uuid {
        let version = upload.into_version();
        let id = version.id;
        self.state.versions.lock().unwrap().push(version);
        id
    }

    /// Changes a stored version behind its ETag.
    pub fn change(&self, id: Uuid, change: impl FnOnce(&mut Version)) {
        let mut versions = self.state.versions.lock().unwrap();
        change(versions.iter_mut().find(|version| version.id == id).unwrap());
    }

    /// Removes a version.
    pub fn delete(&self, id: Uuid) {
        self.state.versions.lock().unwrap().retain(|version| version.id != id);
    }

    /// Injects a fault into the next `times` requests of this kind (0: all of them).
    pub fn inject(&self, ask: Ask, fault: Fault, times: usize) {
        self.inject_for("", ask, fault, times);
    }

    /// Like [`inject`](Self::inject), for paths that contain `path`.
    pub fn inject_for(&self, path: &str, ask: Ask, fault: Fault, times: usize) {
        let left = (times > 0).then_some(times);
        let planned = Planned { ask, path: path.to_owned(), fault, left };
        self.state.planned.lock().unwrap().push_back(planned);
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.state.planned.lock().unwrap().clear();
    }

    pub fn habits(&self) -> MutexGuard<'_, Habits> {
        self.state.habits.lock().unwrap()
    }

    pub fn counts(&self) -> Counts {
        *self.state.counts.lock().unwrap()
    }

    /// Maximum number of requests answered at the same time.
    pub fn busiest(&self) -> usize {
        self.state.busiest.load(Ordering::SeqCst)
    }
}

impl State {
    fn next_fault(&self, ask: Ask, path: &str) -> Option<Fault> {
        let mut planned = self.planned.lock().unwrap();
        let index = planned.iter().position(|p| p.ask == ask && path.contains(&p.path))?;
        let fault = planned[index].fault.clone();
        if let Some(left) = &mut planned[index].left {
            *left -= 1;
            if *left == 0 {
                planned.remove(index);
            }
        }
        Some(fault)
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap());
    }
}

/// Tomcat's limit.
const REQUESTS_PER_CONNECTION: usize = 1000;

async fn serve(state: Arc<State>, mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::new();
    for number in 1..=REQUESTS_PER_CONNECTION {
        let Some(request) = wire::read_request(&mut stream, &mut buffer).await else { return };
        let busy = state.busy.fetch_add(1, Ordering::SeqCst) + 1;
        state.busiest.fetch_max(busy, Ordering::SeqCst);
        let (latency, bears) = {
            let habits = state.habits.lock().unwrap();
            (habits.latency, habits.bears)
        };
        let is_overload = bears.is_some_and(|most| busy > most);
        state.count(|counts| counts.overload += usize::from(is_overload));
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let ask = store::kind_of(&request);
        state.count(|counts| {
            match ask {
                Ask::LookUp => counts.look_ups += 1,
                Ask::Body => counts.bodies += 1,
                Ask::Listing => counts.listings += 1,
            }
            counts.with_credentials += usize::from(request.header("authorization").is_some());
        });
        let fault = state.next_fault(ask, &request.target);
        let mut reply = match &fault {
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::HangUp) => return,
            Some(Fault::Usage) => pages::usage(&request),
            Some(Fault::Status(status)) => pages::status(*status, "told to"),
            Some(Fault::RetryAfter(seconds)) => {
                let mut reply = pages::status(503, "told to");
                reply.set("Retry-After", &seconds.to_string());
                reply
            }
            _ if is_overload => pages::status(503, "too many requests"),
            Some(Fault::Redirect(location)) => Reply::redirect(location),
            Some(Fault::RedirectToItself) => Reply::redirect(&request.target),
            _ => state.answer(&request),
        };
        if let Some(fault) = &fault {
            reply.spoil(fault);
        }
        reply.last |= number == REQUESTS_PER_CONNECTION;
        state.count(|counts| {
            counts.not_modified += usize::from(reply.status == 304);
            counts.bodies_sent += usize::from(reply.is_version && request.method == "GET");
        });
        state.count(|counts| counts.sent_bytes += reply.bytes(&request));
        let sent = reply.write(&mut stream, &request).await;
        state.busy.fetch_sub(1, Ordering::SeqCst);
        if sent.is_err() || reply.last {
            return;
        }
    }
}
