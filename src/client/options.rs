//! Options of a client.

use std::time::Duration;

use super::tls_files::TlsFiles;
use crate::secret::Secret;

/// How a client introduces itself.
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// What the process calls itself. Default: `process-<pid>`.
    pub consumer: Option<String>,
    /// What lets it in, where a token is configured.
    pub token: Option<Secret>,
    /// What TLS is spoken with, where the address begins with `grpc+tls://`.
    pub tls: TlsFiles,
    /// Send the token even where it can be read on the way: over plain TCP to another node.
    pub insecure: bool,
    /// Never attach, even on the node: objects come over the wire.
    pub remote: bool,
    /// For how long a call waits for a service that is gone to come back; of a table, the request's
    /// own `wait` counts. `None`: 60 s. A service that never answered is not waited for.
    pub patience: Option<Duration>,
}
