//! TLS files of a client.

use crate::secret::Secret;

/// TLS files of a client, all in PEM.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Certificates of the authorities that may have signed the service's certificate. Default:
    /// those of the system.
    pub authority: Option<Vec<u8>>,
    /// The client's certificate with its chain, and its key. Default: none.
    pub identity: Option<(Vec<u8>, Secret)>,
    /// Name in the service's certificate. Default: that of the address.
    pub domain: Option<String>,
}
