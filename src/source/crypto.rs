//! The cryptography of TLS connections to sources.

/// Makes `ring` the cryptography of this process's TLS connections, unless the process has chosen
/// one already. Call it before building an HTTP client: `reqwest` and `object_store` take the
/// process's choice.
pub fn install_crypto_provider() {
    // An error means that the process, or an earlier call, has made the choice.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
