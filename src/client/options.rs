//! Options of a client.

use std::time::Duration;

use super::tls_files::TlsFiles;
use crate::secret::Secret;

/// Options of a client.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// Name of this process. Default: `process-<pid>`.
    pub consumer: Option<String>,
    /// Token for the service, if it requires one.
    pub token: Option<Secret>,
    /// TLS files, for addresses that begin with `grpc+tls://`.
    pub tls: TlsFiles,
    /// Whether to send the token even if others can read it: over plain TCP to another node.
    pub insecure: bool,
    /// Whether to fetch objects over the network even on the node of the service, without
    /// attaching.
    pub remote: bool,
    /// Whether to request every table from the service, also where all of its objects lie in shared
    /// memory. Then the service's log has each table.
    pub always_request: bool,
    /// How long a call waits for a service that is down; for a table, the request's own `wait`
    /// counts. `None`: 60 s. A call does not wait for a service that never answered.
    pub patience: Option<Duration>,
}
