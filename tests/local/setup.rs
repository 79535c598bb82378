//! A service over a repository, and clients of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iovcache::Timestamp;
use iovcache::client::{Client, ClientOptions, Local, LocalPath, TableRequest};
use iovcache::shm::AskReason;
use tokio::runtime::Runtime;

use crate::common::{PATIENCE, Service, Version, put};

/// Longest time until a new version is seen: the refresh time of the services here, and as much again
/// for a machine that is busy with other tests.
pub(crate) const REFRESH: Duration = Duration::from_millis(200);

/// A version as these tests put it: its bytes say which one it is.
pub(crate) fn version(repository: &std::path::Path, path: &str, span: (i64, i64), created: i64) {
    let bytes = format!("{path} {} {} {created}", span.0, span.1);
    put_bytes(repository, path, span, created, bytes.as_bytes());
}

/// A version with these bytes.
pub(crate) fn put_bytes(
    repository: &std::path::Path,
    path: &str,
    (from, until): (i64, i64),
    created: i64,
    bytes: &[u8],
) {
    put(repository, &Version { path, from, until, created, bytes });
}

/// A client in a process that has a runtime, as those of applications do.
pub(crate) struct Consumer {
    pub(crate) runtime: Runtime,
    pub(crate) client: Client,
}

impl Consumer {
    /// Its tables always come from the service.
    pub(crate) fn new(url: &str, name: &str) -> Self {
        Self::with(url, name, true)
    }

    /// Its tables come from shared memory where they lie there.
    pub(crate) fn with_local_tables(url: &str, name: &str) -> Self {
        Self::with(url, name, false)
    }

    fn with(url: &str, name: &str, always_request: bool) -> Self {
        let runtime = Runtime::new().unwrap();
        let consumer = Some(name.to_owned());
        let options = ClientOptions { consumer, always_request, ..ClientOptions::default() };
        let client = runtime.block_on(Client::connect_with(url, options)).unwrap();
        Self { runtime, client }
    }

    pub(crate) fn local(&self) -> Local {
        self.client.local().unwrap()
    }

    /// The answer of the service itself: the bytes, or `None` if nothing is valid.
    pub(crate) fn asked(&self, path: &str, at: i64) -> Option<Vec<u8>> {
        let request = TableRequest::new().column("object", path).timestamps([at]);
        let table = self.client.table(request.missing_as_null());
        let table = Arc::new(self.runtime.block_on(table).unwrap());
        let column = table.column("object").unwrap();
        column.get(0).unwrap().map(<[u8]>::to_vec)
    }
}

pub(crate) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Asks until `path` is found at `millis` without a call.
pub(crate) fn until_local(path: &LocalPath, millis: i64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        path.at(at(millis)).unwrap();
        let reason = match path.try_at(at(millis)) {
            Ok(_) => return,
            Err(reason) => reason,
        };
        assert!(Instant::now() < deadline, "{path:?} is not published: {reason:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a look-up in shared memory has no answer, and gives the reason.
pub(crate) fn until_asked(path: &LocalPath, millis: i64) -> AskReason {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Err(reason) = path.try_at(at(millis)) {
            return reason;
        }
        assert!(Instant::now() < deadline, "{path:?} is still answered");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A service over a fresh repository with these versions.
pub(crate) fn service(
    versions: &[(&str, (i64, i64), i64)],
    arguments: &[&str],
) -> (Service, tempfile::TempDir) {
    let repository = tempfile::tempdir().unwrap();
    for (path, span, created) in versions {
        version(repository.path(), path, *span, *created);
    }
    let service = Service::over(repository.path(), arguments);
    (service, repository)
}
