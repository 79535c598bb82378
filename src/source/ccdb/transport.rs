//! Requests with limits: one attempt, redirects, and rounds over all hosts.
//!
//! ```text
//!  round 0:  host a ──transient──▶ host b ──transient──▶ pause (jitter, Retry-After)
//!  round 1:  host a ──303/200/304/404──▶ done
//! ```
//!
//! Transient failures are refused connections, time-outs and the statuses 408, 429, 500, 502, 503
//! and 504: another attempt may succeed. Only refused and timed-out connections count against a
//! host.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, StatusCode, Url};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::address::{Address, AllowedPlaces, strip_credentials};
use super::host::CcdbHost;
use super::options::CcdbOptions;
use super::proxy::Proxies;
use crate::bounded_cache::BoundedCache;
use crate::source::{BodyError, SourceError, install_crypto_provider};

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum AttemptFailure {
    /// Another attempt may succeed; `after` is the pause that the server asked for.
    Transient { reason: String, after: Option<Duration> },
    /// The host is not asked for a while. Another host may answer; another round is only for a call
    /// that had asked this one before.
    LeftAlone { reason: String },
    /// The answer is not usable.
    Unusable { reason: String },
    /// The connection ended during the answer. Another attempt may succeed; if none does, the
    /// answer is unusable.
    Torn { reason: String },
    /// The server denies access.
    NotAllowed { reason: String },
    /// The server does not have the requested object.
    Missing { reason: String },
    /// The body cannot store the bytes.
    Body(BodyError),
}

impl AttemptFailure {
    pub(super) fn unusable(reason: impl fmt::Display) -> Self {
        Self::Unusable { reason: reason.to_string() }
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_worth_a_retry(&self) -> bool {
        matches!(self, Self::Transient { .. } | Self::Torn { .. })
    }

    /// The pause that the server asked for.
    pub(super) fn after(&self) -> Option<Duration> {
        match self {
            Self::Transient { after, .. } => *after,
            _ => None,
        }
    }
}

/// A request without its address.
#[derive(Debug, Clone, Default)]
pub(super) struct HttpRequest {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    /// Maximum bytes of the body that are read; more set [`HttpReply::overflow`].
    pub(super) read_bytes: usize,
    /// Time limit for the head of the answer, if it is not the usual one.
    pub(super) first_byte: Option<Duration>,
}

/// A whole answer, with as much of its body as requested.
#[derive(Debug)]
pub(super) struct HttpReply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The URL that answered, after redirects.
    pub(super) url: Url,
    pub(super) body: Bytes,
    /// Whether the body was longer.
    pub(super) overflow: bool,
}

/// The head of an answer before its body, with the permit of the bulkhead.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: reqwest::Response,
    pub(super) host: Arc<CcdbHost>,
    _place: OwnedSemaphorePermit,
}

/// Bulkhead of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    LookUp,
    Body,
}

/// The hosts of a source, and the HTTP client.
#[derive(Debug)]
pub(super) struct Transport {
    client: Client,
    proxies: Proxies,
    pub(super) url: String,
    pub(super) hosts: Vec<Arc<CcdbHost>>,
    /// Hosts reached by allowed redirects, with breakers and bulkheads of their own.
    foreign: BoundedCache<str, CcdbHost>,
    allowed: AllowedPlaces,
    pub(super) options: CcdbOptions,
    /// Index of the host that answered last. It is asked first.
    preferred: AtomicUsize,
}

impl Transport {
    pub(super) fn new(text: &str, options: CcdbOptions) -> Result<Self, SourceError> {
        let addresses = Address::parse_list(text)?;
        let url = addresses.iter().map(Address::label).collect::<Vec<_>>().join(",");
        let wrong = |reason: String| SourceError::Configuration { url: url.clone(), reason };
        if let Some((name, fault)) = options.fault() {
            return Err(wrong(format!("{name} {fault}")));
        }
        let allowed = AllowedPlaces::parse(&options.allowed_redirects).map_err(wrong)?;
        let proxies = Proxies::from_environment();
        install_crypto_provider();
        let client = proxies
            .apply(Client::builder())
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            // Metadata keys with a blank produce invalid header lines: only these are ignored.
            .http1_ignore_invalid_headers_in_responses(true)
            .connect_timeout(Duration::from_millis(options.connect_millis))
            .tcp_nodelay(true)
            .pool_max_idle_per_host(options.max_concurrent)
            .user_agent(concat!("iovcache/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| wrong(chain(&e)))?;
        let hosts = addresses.into_iter().map(|a| Arc::new(CcdbHost::new(a, &options))).collect();
        let foreign = BoundedCache::new(256);
        let preferred = AtomicUsize::new(0);
        Ok(Self { client, proxies, url, hosts, foreign, allowed, options, preferred })
    }

    /// The hosts, beginning with the one that answered last.
    pub(super) fn hosts_in_order(&self) -> impl Iterator<Item = (usize, &Arc<CcdbHost>)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.hosts.len();
        (0..count).map(move |n| (first + n) % count).map(|index| (index, &self.hosts[index]))
    }

    /// The host of `url`.
    pub(super) fn host_of(&self, url: &Url) -> Arc<CcdbHost> {
        match self.hosts.iter().find(|host| host.address.is_origin_of(url)) {
            Some(host) => Arc::clone(host),
            None => self.foreign.get_with(&url.origin().ascii_serialization(), || {
                Arc::new(CcdbHost::new(Address::foreign(url), &self.options))
            }),
        }
    }

    /// The absolute URL of a `Location` found at `base`, if it may be followed.
    ///
    /// `None` if it is not http(s) (alien://, root://, file://), or not an allowed place.
    pub(super) fn resolve(&self, base: &Url, location: &str) -> Option<Url> {
        let mut url = base.join(location).ok()?;
        strip_credentials(&mut url);
        url.set_fragment(None);
        let own = self.hosts.iter().map(|host| &host.address);
        self.allowed.admit(&url, own).then_some(url)
    }

    /// Makes one attempt at one URL: bulkhead, breaker, request, head of the answer.
    ///
    /// Transient statuses and denials are failures; all other statuses are answers.
    pub(super) async fn send(
        &self,
        request: &HttpRequest,
        url: &Url,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<Head, AttemptFailure> {
        let host = self.host_of(url);
        let label = self.proxies.name(&host.address.label(), url);
        let bulkhead = match purpose {
            Purpose::LookUp => &host.look_ups,
            Purpose::Body => &host.bodies,
        };
        let Some(place) = bulkhead.enter(deadline).await else {
            let reason = format!("no free place among the requests to {label}");
            return Err(AttemptFailure::LeftAlone { reason });
        };
        if let Err(left) = host.admit() {
            let reason = format!(
                "{label} refused its last connections and is left alone for {} ms more",
                left.as_millis()
            );
            return Err(AttemptFailure::LeftAlone { reason });
        }
        let response = self.head_of(request, url, &host, &label, deadline).await?;
        let status = response.status();
        let reason = || format!("status {} from {label}", status.as_u16());
        match status.as_u16() {
            401 | 403 | 407 => {
                host.count_failure();
                Err(AttemptFailure::NotAllowed { reason: reason() })
            }
            408 | 429 | 500 | 502 | 503 | 504 => {
                host.count_failure();
                if matches!(status.as_u16(), 429 | 503) {
                    bulkhead.withhold(place);
                }
                let after = retry_after(response.headers());
                Err(AttemptFailure::Transient { reason: reason(), after })
            }
            _ => {
                bulkhead.in_order();
                let host = Arc::clone(&host);
                Ok(Head { response, host, _place: place })
            }
        }
    }

    /// Sends the request and waits for the head of the answer, with any status.
    async fn head_of(
        &self,
        request: &HttpRequest,
        url: &Url,
        host: &CcdbHost,
        label: &str,
        deadline: Instant,
    ) -> Result<reqwest::Response, AttemptFailure> {
        host.count_request();
        let mut sent = self
            .client
            .request(request.method.clone(), url.clone())
            .headers(request.headers.clone());
        if let Some((user, password)) = host.address.credentials_for(url) {
            sent = sent.basic_auth(user, password.as_ref());
        }
        let usual = Duration::from_millis(self.options.first_byte_millis);
        let first_byte = request.first_byte.unwrap_or(usual);
        let asked = Instant::now();
        let until = deadline.min(asked + first_byte);
        let reason = match timeout_at(until, sent.send()).await {
            Ok(Ok(response)) => {
                host.connected();
                host.count_answer(asked.elapsed());
                return Ok(response);
            }
            Ok(Err(error)) => {
                if error.is_connect() {
                    host.refused();
                } else {
                    host.connected();
                }
                format!("{label}: {}", chain(&error))
            }
            Err(_) => format!("{label} sent no answer within the time limit"),
        };
        host.count_failure();
        Err(AttemptFailure::Transient { reason, after: None })
    }

    /// Sends a request that must not be repeated, to the host that answered last.
    ///
    /// # Errors
    /// [`SourceError::Down`] if there is no answer. An answer with any status is none.
    pub(super) async fn send_once(
        &self,
        method: Method,
        tail: &str,
        headers: HeaderMap,
        body: Option<reqwest::Body>,
        what: &str,
        deadline: Instant,
    ) -> Result<reqwest::Response, SourceError> {
        let down = |reason: String| SourceError::Down {
            url: self.url.clone(),
            what: what.to_owned(),
            reason,
        };
        let Some((_, host)) = self.hosts_in_order().next() else {
            return Err(down("no host to ask".into()));
        };
        let label = host.address.label();
        let url = host.address.url(tail).ok_or_else(|| down(format!("no address {tail:?}")))?;
        host.count_request();
        let mut request = self.client.request(method, url.clone()).headers(headers);
        if let Some((user, password)) = host.address.credentials_for(&url) {
            request = request.basic_auth(user, password.as_ref());
        }
        if let Some(body) = body {
            request = request.body(body);
        }
        match timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => {
                host.connected();
                Ok(response)
            }
            Ok(Err(error)) => {
                host.count_failure();
                Err(down(format!("{label}: {}", chain(&error))))
            }
            Err(_) => {
                host.count_failure();
                Err(down(format!("{label} sent no answer within the time limit")))
            }
        }
    }

    /// Requests `tail` from the hosts in order, in rounds, until an answer passes `check`.
    ///
    /// # Errors
    /// The failure of the last attempt; `what` names the requested object.
    pub(super) async fn ask(
        &self,
        tail: &str,
        request: &HttpRequest,
        what: &str,
        deadline: Instant,
        check: &(dyn Fn(&HttpReply) -> Result<(), String> + Send + Sync),
    ) -> Result<HttpReply, SourceError> {
        let mut rounds = Rounds::new(&self.options, deadline);
        loop {
            for (index, host) in self.hosts_in_order() {
                let Some(url) = host.address.url(tail) else { continue };
                let attempt = async {
                    let reply = self.follow(request, url, deadline).await?;
                    check(&reply).map_err(|reason| {
                        host.count_failure();
                        AttemptFailure::Unusable {
                            reason: format!(
                                "{reason} (status {} from {})",
                                reply.status.as_u16(),
                                reply.url
                            ),
                        }
                    })?;
                    Ok(reply)
                };
                match attempt.await {
                    Ok(reply) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok(reply);
                    }
                    Err(failure) => rounds.note(failure),
                }
            }
            if !rounds.pause().await {
                return Err(rounds.error(&self.url, what));
            }
        }
    }

    /// Sends a request, follows redirects that are not answers, and reads the requested part of the
    /// body.
    async fn follow(
        &self,
        request: &HttpRequest,
        url: Url,
        deadline: Instant,
    ) -> Result<HttpReply, AttemptFailure> {
        let (head, url) = self.follow_to_head(request, url, Purpose::LookUp, deadline).await?;
        self.read(request, url, head, deadline).await
    }

    /// Like [`ask`](Self::ask), without reading the body: it counts as one of the host's bodies
    /// until the head is dropped. Only a status of 200 is an answer.
    pub(super) async fn open(
        &self,
        tail: &str,
        request: &HttpRequest,
        what: &str,
        deadline: Instant,
    ) -> Result<(Head, Url), SourceError> {
        let mut rounds = Rounds::new(&self.options, deadline);
        loop {
            for (index, host) in self.hosts_in_order() {
                let Some(url) = host.address.url(tail) else { continue };
                match self.follow_to_head(request, url, Purpose::Body, deadline).await {
                    Ok((head, url)) if head.response.status() == StatusCode::OK => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Ok((head, url));
                    }
                    Ok((head, url)) => {
                        host.count_failure();
                        let status = head.response.status().as_u16();
                        rounds
                            .note(AttemptFailure::unusable(format!("status {status} from {url}")));
                    }
                    Err(failure) => rounds.note(failure),
                }
            }
            if !rounds.pause().await {
                return Err(rounds.error(&self.url, what));
            }
        }
    }

    /// Sends a request, and follows redirects that are not answers.
    async fn follow_to_head(
        &self,
        request: &HttpRequest,
        mut url: Url,
        purpose: Purpose,
        deadline: Instant,
    ) -> Result<(Head, Url), AttemptFailure> {
        for _ in 0..=self.options.max_redirects {
            let head = self.send(request, &url, purpose, deadline).await?;
            let response = &head.response;
            if response.status().is_redirection()
                && response.status() != StatusCode::NOT_MODIFIED
                && !names_a_version(response.headers())
            {
                let location = latin1(response.headers().get(LOCATION).map(|v| v.as_bytes()));
                let next = self.resolve(&url, &location).ok_or_else(|| {
                    head.host.count_failure();
                    AttemptFailure::unusable(format!(
                        "{url} redirects to {location:?}, which is not among the allowed hosts: add \
                         its host to allowed_redirects under [ccdb]"
                    ))
                })?;
                url = next;
                continue;
            }
            return Ok((head, url));
        }
        let limit = self.options.max_redirects;
        Err(AttemptFailure::unusable(format!("more than {limit} redirects, the last one to {url}")))
    }

    async fn read(
        &self,
        request: &HttpRequest,
        url: Url,
        mut head: Head,
        deadline: Instant,
    ) -> Result<HttpReply, AttemptFailure> {
        let status = head.response.status();
        let headers = std::mem::take(head.response.headers_mut());
        let mut body = Vec::new();
        let mut overflow = false;
        loop {
            // Without a requested body, the rest is not read, and a connection with one is closed.
            if request.read_bytes == 0 {
                break;
            }
            let step = Duration::from_millis(self.options.first_byte_millis);
            let until = deadline.min(Instant::now() + step);
            let chunk = match timeout_at(until, head.response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    head.host.count_failure();
                    return Err(AttemptFailure::Torn {
                        reason: format!("{url}: {}", chain(&error)),
                    });
                }
                Err(_) => {
                    head.host.count_failure();
                    let reason = format!("{url} stopped in the middle of its answer");
                    return Err(AttemptFailure::Transient { reason, after: None });
                }
            };
            if body.len() + chunk.len() > request.read_bytes {
                overflow = true;
                break;
            }
            body.extend_from_slice(&chunk);
        }
        Ok(HttpReply { status, headers, url, body: body.into(), overflow })
    }
}

/// State of repeated rounds over all hosts: counts, last failure, deadline.
#[derive(Debug)]
pub(super) struct Rounds<'a> {
    options: &'a CcdbOptions,
    deadline: Instant,
    started: Instant,
    round: u32,
    attempts: u32,
    /// Whether an attempt of any round may succeed later.
    was_transient: bool,
    retry: bool,
    after: Option<Duration>,
    last: Option<AttemptFailure>,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(options: &'a CcdbOptions, deadline: Instant) -> Self {
        Self {
            options,
            deadline,
            started: Instant::now(),
            round: 0,
            attempts: 0,
            was_transient: false,
            retry: false,
            after: None,
            last: None,
        }
    }

    /// Records the failure of an attempt.
    pub(super) fn note(&mut self, failure: AttemptFailure) {
        self.attempts += 1;
        let is_transient = failure.is_worth_a_retry();
        self.was_transient |= is_transient;
        // Many calls that wait for a host together are what makes it left alone: they wait on. A call
        // that finds it so fails at once.
        let is_left_alone = matches!(failure, AttemptFailure::LeftAlone { .. });
        self.retry |= is_transient || (is_left_alone && self.was_transient);
        self.after = self.after.max(failure.after());
        // The most informative failure is kept: 'missing' ranks lowest, then 'not asked', then the
        // others. So 'missing' is the result only if every host said it.
        let weight = |failure: &AttemptFailure| match failure {
            AttemptFailure::Missing { .. } => 0,
            AttemptFailure::LeftAlone { .. } => 1,
            _ => 2,
        };
        if self.last.as_ref().is_none_or(|last| weight(&failure) >= weight(last)) {
            self.last = Some(failure);
        }
    }

    /// Records a redirect that cannot be followed, unless a more informative failure is known.
    pub(super) fn note_detour(&mut self, reason: String) {
        if matches!(
            self.last,
            None | Some(AttemptFailure::Missing { .. } | AttemptFailure::LeftAlone { .. })
        ) {
            self.last = Some(AttemptFailure::Unusable { reason });
        }
    }

    /// Waits for the next round. Returns `false` if there is none.
    pub(super) async fn pause(&mut self) -> bool {
        if !self.retry || self.round >= self.options.retries {
            return false;
        }
        let longest = self.options.longest_pause(self.round);
        let pause = longest.mul_f64(jitter()).max(self.after.unwrap_or_default());
        let until = Instant::now() + pause;
        if until >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(until).await;
        self.round += 1;
        self.retry = false;
        self.after = None;
        true
    }

    /// The error after the last round.
    pub(super) fn error(self, url: &str, what: &str) -> SourceError {
        let (url, what) = (url.to_owned(), what.to_owned());
        let tries = format!(
            "{} attempt{} in {} ms",
            self.attempts,
            if self.attempts == 1 { "" } else { "s" },
            self.started.elapsed().as_millis()
        );
        match self.last {
            None => SourceError::Down { url, what, reason: "no host to ask".into() },
            Some(
                AttemptFailure::Transient { reason, .. } | AttemptFailure::LeftAlone { reason },
            ) => SourceError::Down { url, what, reason: format!("{reason} ({tries})") },
            Some(
                AttemptFailure::Unusable { reason }
                | AttemptFailure::Torn { reason }
                | AttemptFailure::Missing { reason },
            ) => SourceError::Unusable { url, what, reason },
            Some(AttemptFailure::NotAllowed { reason }) => {
                SourceError::NotAllowed { url, what, reason }
            }
            Some(AttemptFailure::Body(error)) => SourceError::Body { what, error },
        }
    }

    /// Whether every host said that it does not have the object.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self.last, Some(AttemptFailure::Missing { .. }))
    }
}

/// Whether a redirect is the answer to a look-up: it has some of CCDB's headers.
fn names_a_version(headers: &HeaderMap) -> bool {
    headers.contains_key("etag") || headers.contains_key("valid-from")
}

/// A header's value as text. CCDB's server writes Latin-1.
pub(super) fn latin1(value: Option<&[u8]>) -> String {
    value.unwrap_or_default().iter().map(|&byte| char::from(byte)).collect()
}

/// `Retry-After` in seconds. A date is ignored: the pause is capped in any case.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error with all of its causes: reqwest's own text lacks them.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A random number, evenly distributed in [0, 1).
fn jitter() -> f64 {
    // 53 of the lowest 62 bits of a random UUID, which are all random (the variant is above them).
    // An f64 represents 53 bits exactly, and no generator of our own is needed.
    let bits = (uuid::Uuid::new_v4().as_u128() as u64 & (u64::MAX >> 2)) >> 9;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_below_one_and_spreads() {
        let draws: Vec<f64> = (0..1000).map(|_| jitter()).collect();
        assert!(draws.iter().all(|d| (0.0..1.0).contains(d)));
        let mean = draws.iter().sum::<f64>() / 1000.0;
        assert!((0.4..0.6).contains(&mean), "mean {mean}");
    }

    #[tokio::test]
    async fn a_retry_after_beyond_the_deadline_ends_the_rounds_at_once() {
        let options = CcdbOptions::default();
        let started = Instant::now();
        let mut rounds = Rounds::new(&options, started + Duration::from_millis(500));
        let after = Some(Duration::from_secs(30));
        rounds.note(AttemptFailure::Transient { reason: "status 503".into(), after });
        assert!(!rounds.pause().await);
        assert!(started.elapsed() < Duration::from_millis(400));
        let error = rounds.error("http://a", "A/B at 7").to_string();
        assert!(error.contains("503") && error.contains("A/B at 7"), "{error}");
    }

    #[tokio::test]
    async fn errors_that_are_not_transient_are_not_retried() {
        let options = CcdbOptions::default();
        let mut rounds = Rounds::new(&options, Instant::now() + Duration::from_secs(5));
        rounds.note(AttemptFailure::unusable("no ETag"));
        assert!(!rounds.pause().await);
        assert!(matches!(rounds.error("u", "w"), SourceError::Unusable { .. }));
    }
}
