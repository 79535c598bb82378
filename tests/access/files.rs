//! Shared by these tests: a repository, keys, and a service that uses them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iovcache::client::{Client, ClientError, ClientOptions, TableRequest};
use iovcache::error::{Coded as _, ErrorKind};
use iovcache::server::{Keys, Role};
use iovcache::table::ColumnRequest;
use iovcache::{ObjectPath, Secret, Timestamp};

use crate::common::{PATIENCE, Service, Version, put};

pub(crate) const DRIFT: &str = "TPC/Calib/VDrift";

/// A repository with one object, and a folder for keys.
pub(crate) struct Files {
    pub(crate) folder: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let version = Version { path: DRIFT, from: 0, until: 9, created: 1, bytes: b"drift" };
        put(&folder.path().join("repository"), &version);
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `text` and returns the path, as an argument.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The token of each key is equal to its name.
    pub(crate) fn keys(&self, of: &[(&str, Role, Option<i64>)]) -> String {
        let entry = |(name, role, expires): &(&str, Role, Option<i64>)| {
            Keys::entry(name, &Secret::from(*name), *role, expires.map(Timestamp::from_millis))
        };
        self.write("keys", &of.iter().map(entry).collect::<Vec<_>>().join("\n"))
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    pub(crate) fn serve(&self, arguments: &[&str]) -> Service {
        Service::over(&self.repository(), arguments)
    }
}

pub(crate) const ALL_ROLES: [(&str, Role, Option<i64>); 3] = [
    ("reader", Role::Read, None),
    ("source", Role::Register, None),
    ("operator", Role::Administer, None),
];

pub(crate) fn with_token(token: &str) -> ClientOptions {
    let token = Some(token).filter(|token| !token.is_empty()).map(Secret::from);
    ClientOptions { token, ..ClientOptions::default() }
}

pub(crate) async fn client(url: &str, token: &str) -> Client {
    Client::connect_with(url, with_token(token)).await.unwrap()
}

pub(crate) fn drift() -> TableRequest {
    TableRequest::new().column("drift", DRIFT).timestamps([5])
}

pub(crate) fn drift_column() -> Vec<ColumnRequest> {
    let path = ObjectPath::new(DRIFT).unwrap();
    vec![ColumnRequest::new("drift", path)]
}

/// Kind and code of the error, if any.
pub(crate) fn why<T>(result: Result<T, ClientError>) -> Option<(ErrorKind, u16)> {
    result.err().map(|error| (error.kind(), error.code().0))
}

/// Repeats the request until the answer is `right`: a signal takes effect after a moment.
pub(crate) async fn until_told<T: PartialEq + std::fmt::Debug>(
    right: T,
    mut ask: impl AsyncFnMut() -> T,
) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let told = ask().await;
        if told == right {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{told:?}, expected {right:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
