//! TLS for the TCP port: 1.3 only, and replaced while the service runs.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::error::coded;

/// A certificate with its key, and the authority of clients. Clones share their state.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(…)")
    }
}

/// TLS cannot be set up. The message never shows the contents of a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is no PEM with the expected content.
    #[error("the {what} cannot be read, expected PEM")]
    Pem {
        /// The content of the file.
        what: &'static str,
        /// The fault.
        #[source]
        error: pem::Error,
    },
    /// Certificate and key do not belong together, or are invalid.
    #[error("certificate and key do not belong together")]
    Pair(#[source] rustls::Error),
    /// The authority of clients is invalid.
    #[error("the authority of clients cannot be used")]
    Authority(#[source] VerifierBuilderError),
}

coded! { TlsError {
    Pem => InvalidArgument 6031,
    Pair => InvalidArgument 6032,
    Authority => InvalidArgument 6033,
} }

fn certificates(what: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match all {
        Ok(all) if all.is_empty() => Err(pem::Error::NoItemsFound),
        all => all,
    }
    .map_err(|error| TlsError::Pem { what, error })
}

fn config(
    chain: &[u8],
    key: &[u8],
    client_authority: Option<&[u8]>,
) -> Result<ServerConfig, TlsError> {
    let chain = certificates("certificate", chain)?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsError::Pem { what: "key", error })?;
    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Pair)?;
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            for root in certificates("authority of clients", authority)? {
                roots.add(root).map_err(TlsError::Pair)?;
            }
            // A client without a certificate may have a token; without either it gets an error.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(TlsError::Authority)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

impl Tls {
    /// Reads PEM: the certificate with its chain, its key, and the authority that signs clients'
    /// certificates, if client certificates are accepted.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        client_authority: Option<&[u8]>,
    ) -> Result<Self, TlsError> {
        let config = config(chain, key, client_authority)?;
        Ok(Self(Arc::new(ArcSwap::from_pointee(config))))
    }

    /// Replaces the contents by those of `other`. Existing connections stay unchanged.
    pub fn replace(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.load_full()).accept(stream).await
    }
}

/// The names in the certificate of the client: DNS names and URIs.
pub(super) fn names(stream: &TlsStream<TcpStream>) -> Option<Arc<[String]>> {
    let (_, session) = stream.get_ref();
    let first = session.peer_certificates()?.first()?;
    // The handshake has verified it.
    let certificate = webpki::EndEntityCert::try_from(first).ok()?;
    let names = certificate.valid_dns_names().chain(certificate.valid_uri_names());
    Some(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Coded as _;

    #[test]
    fn a_certificate_needs_its_own_key_and_nothing_of_a_file_is_shown() {
        let make = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let (chain, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        assert!(Tls::from_pem(chain.as_bytes(), key.as_bytes(), None).is_ok());
        assert!(Tls::from_pem(chain.as_bytes(), key.as_bytes(), Some(chain.as_bytes())).is_ok());
        let wrong_key = other.signing_key.serialize_pem();
        let secret = key.lines().nth(1).unwrap();
        for (chain, key, authority) in [
            (&chain[..], &wrong_key[..], None),
            ("", &key[..], None),
            (&chain, "secret words", None),
            (&key, &key, None),
            (&chain, &key, Some("none")),
        ] {
            let authority = authority.map(str::as_bytes);
            let error = Tls::from_pem(chain.as_bytes(), key.as_bytes(), authority).unwrap_err();
            let message = error.message();
            assert!(!message.contains(secret) && !message.contains("secret words"), "{message}");
        }
    }
}
