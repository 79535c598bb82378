//! Files with which a client speaks TLS.

use crate::secret::Secret;

/// What TLS is spoken with, all PEM.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// The authorities that may have signed the service's certificate. Default: the system's.
    pub authority: Option<Vec<u8>>,
    /// The certificate with its chain and the key by which the service knows us. Default: none.
    pub identity: Option<(Vec<u8>, Secret)>,
    /// The name that the service's certificate is for. Default: that of the address.
    pub domain: Option<String>,
}
