//! Connects to an address: the channel, its token and its TLS.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow_flight::flight_service_client::FlightServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tonic::{Request, Status};
use tower::service_fn;

use super::error::ClientError;
use super::options::ClientOptions;
use super::tls_files::TlsFiles;
use crate::secret::Secret;

/// Maximum size of a received message. Batches are small, but one object can be one cell.
const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// Time limit for connecting.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A peer that answers no ping for this long is considered lost. A stopped process or an unplugged
/// network is detected in no other way.
const PING_INTERVAL: Duration = Duration::from_secs(4);
const PING_LIMIT: Duration = Duration::from_secs(5);

/// Flight client that sends the caller's token with each call.
pub(super) type FlightClient = FlightServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds a token to each call.
#[derive(Debug, Clone)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

const TOKEN_CHARACTERS: &str = "it has characters other than visible ASCII";

/// Token as it is sent: without a byte order mark, and without the white space that an editor,
/// `echo` or a Windows file adds around it. `None` if nothing remains.
pub(super) fn token(given: Option<Secret>) -> Result<Option<Secret>, ClientError> {
    let Some(given) = given else { return Ok(None) };
    let token = given.reveal().trim_start_matches('\u{feff}').trim();
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ClientError::Token { reason: TOKEN_CHARACTERS });
    }
    Ok((!token.is_empty()).then(|| Secret::from(token)))
}

impl Bearer {
    fn new(token: Option<&Secret>) -> Result<Self, ClientError> {
        let header = token.map(|token| format!("Bearer {}", token.reveal()).parse());
        let mut header: Option<MetadataValue<Ascii>> =
            header.transpose().map_err(|_| ClientError::Token { reason: TOKEN_CHARACTERS })?;
        if let Some(header) = &mut header {
            header.set_sensitive(true);
        }
        Ok(Self(header))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

impl TlsFiles {
    fn config(&self) -> ClientTlsConfig {
        let config = match &self.authority {
            Some(authority) => {
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        let config = match &self.identity {
            Some((chain, key)) => config.identity(Identity::from_pem(chain, key.reveal())),
            None => config,
        };
        match &self.domain {
            Some(domain) => config.domain_name(domain),
            None => config,
        }
    }
}

/// Explains the fault of an address with another scheme, and suggests an address.
fn suggestion(url: &str) -> String {
    let instead = |prefix: &str, scheme: &str| {
        let host = url.strip_prefix(prefix)?.trim_end_matches('/');
        Some(format!("write {scheme}{host}"))
    };
    // gRPC's own notation of a Unix socket.
    let told = instead("http://", "grpc://")
        .or_else(|| instead("https://", "grpc+tls://"))
        .or_else(|| instead("unix:/", "grpc+unix:///"));
    told.unwrap_or_else(|| match url.split_once("://") {
        Some((scheme, _)) => format!("unknown scheme {scheme:?}"),
        None if url.is_empty() => "it is empty".to_owned(),
        None if url.starts_with('/') => format!("write grpc+unix://{url}"),
        None if url.contains(':') && !url.contains('/') => format!("write grpc://{url}"),
        None => "it has no scheme".to_owned(),
    })
}

/// Address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServiceAddress {
    /// Absolute path of a Unix socket.
    Unix(PathBuf),
    /// An `http://host:port` for plain gRPC.
    Tcp(String),
    /// An `https://host:port` for gRPC over TLS.
    Tls(String),
}

impl ServiceAddress {
    pub(super) fn parse(url: &str) -> Result<Self, ClientError> {
        let wrong =
            |reason: &str| ClientError::Address { url: url.to_owned(), reason: reason.to_owned() };
        if let Some(path) = url.strip_prefix("grpc+unix://").or_else(|| url.strip_prefix("unix://"))
        {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(wrong("the path of the socket must be absolute")),
            };
        }
        let after = |schemes: &[&str]| schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
        let plain = after(&["grpc://", "grpc+tcp://"]);
        let secured = after(&["grpc+tls://", "grpcs://"]);
        let host = match plain.or(secured) {
            Some(host) => host,
            None => return Err(wrong(&suggestion(url))),
        };
        let host = host.trim_end_matches('/');
        if host.is_empty() || host.contains(['/', '?', '#', '@']) {
            return Err(wrong("only host and port may stand there"));
        }
        let port = host.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(port)) if port > 0 => {}
            _ => return Err(wrong("it needs a port from 1 to 65535")),
        }
        if format!("http://{host}").parse::<Uri>().is_err() {
            return Err(wrong("its host is not valid"));
        }
        Ok(match secured {
            Some(_) => Self::Tls(format!("https://{host}")),
            None => Self::Tcp(format!("http://{host}")),
        })
    }

    /// Folder of a Unix socket; the attach socket is there too.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => path.parent(),
            Self::Tcp(_) | Self::Tls(_) => None,
        }
    }

    /// The Flight socket in the folder of a service that was given instead of it.
    fn other_socket(&self) -> Option<String> {
        let Self::Unix(path) = self else { return None };
        let socket = path.join("flight.sock");
        socket.exists().then(|| socket.display().to_string())
    }

    /// Whether others can read the traffic: plain TCP to another node.
    fn is_overheard(&self) -> bool {
        let Self::Tcp(address) = self else { return false };
        let host = address.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
        let host = host.unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let here = address.map_or(host == "localhost", |ip| ip.to_canonical().is_loopback());
        !here
    }

    pub(super) async fn connect(
        &self,
        url: &str,
        options: &ClientOptions,
    ) -> Result<FlightClient, ClientError> {
        if options.token.is_some() && self.is_overheard() && !options.insecure {
            let reason = "it would travel in the clear: use grpc+tls://, or allow that (insecure)";
            return Err(ClientError::Token { reason });
        }
        let bearer = Bearer::new(options.token.as_ref())?;
        let failed = |error: tonic::transport::Error| {
            let mut reason = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                reason = error.to_string();
                cause = error.source();
            }
            if let Some(meant) = self.other_socket() {
                reason = format!("{reason}; the socket of Flight is grpc+unix://{meant}");
            }
            ClientError::Connect { url: url.to_owned(), reason }
        };
        let channel = match self {
            Self::Tcp(address) | Self::Tls(address) => {
                let endpoint = Endpoint::from_shared(address.clone()).map_err(failed)?;
                let endpoint = endpoint.tcp_nodelay(true).connect_timeout(CONNECT_LIMIT);
                let mut endpoint = with_pings(endpoint);
                if let Self::Tls(_) = self {
                    endpoint = endpoint.tls_config(options.tls.config()).map_err(failed)?;
                }
                endpoint.connect().await
            }
            Self::Unix(path) => {
                let path = path.clone();
                let endpoint = with_pings(Endpoint::from_static("http://localhost"));
                endpoint
                    .connect_timeout(CONNECT_LIMIT)
                    .connect_with_connector(service_fn(move |_: Uri| {
                        let path = path.clone();
                        async move { UnixStream::connect(path).await.map(TokioIo::new) }
                    }))
                    .await
            }
        };
        Ok(FlightServiceClient::with_interceptor(channel.map_err(failed)?, bearer)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

/// Enables pings while an answer is awaited.
fn with_pings(endpoint: Endpoint) -> Endpoint {
    endpoint.http2_keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_lose_what_files_and_editors_put_around_them() {
        for given in ["secret", "secret\n", "secret\r\n", " secret", "\u{feff}secret"] {
            let token = token(Some(Secret::from(given))).unwrap().unwrap();
            assert_eq!(token.reveal(), "secret", "{given:?}");
        }
        for empty in ["", "\n", "\u{feff}\r\n"] {
            assert!(token(Some(Secret::from(empty))).unwrap().is_none(), "{empty:?}");
        }
        for wrong in ["secret\u{fc}", "secret\0", "two words"] {
            let error = token(Some(Secret::from(wrong))).unwrap_err();
            assert!(error.to_string().contains("token"), "{error}");
        }
    }

    #[test]
    fn an_address_of_another_kind_is_told_what_to_write() {
        for (given, instead) in [
            ("localhost:50051", "grpc://localhost:50051"),
            ("http://host:1/", "grpc://host:1"),
            ("https://host:1", "grpc+tls://host:1"),
            ("/run/iovcache/flight.sock", "grpc+unix:///run/iovcache/flight.sock"),
            ("unix:/run/flight.sock", "grpc+unix:///run/flight.sock"),
            ("flight://host:1", "unknown scheme"),
            ("grpc://127.0.0.1", "a port"),
            ("grpc://127.0.0.1:0", "a port"),
            ("grpc://127.0.0.1:99999", "a port"),
            ("grpc://127.0.0.1:x", "a port"),
            ("grpc://[::1]", "a port"),
            (" grpc://host:1", "scheme"),
        ] {
            let error = ServiceAddress::parse(given).unwrap_err().to_string();
            assert!(error.contains(instead) && error.contains(given.trim()), "{error}");
        }
        assert!(ServiceAddress::parse("grpc://[::1]:50051").is_ok());
    }

    #[test]
    fn addresses_are_those_that_the_service_prints() {
        let parsed = |url| ServiceAddress::parse(url).unwrap();
        assert_eq!(
            parsed("grpc://127.0.0.1:50051"),
            ServiceAddress::Tcp("http://127.0.0.1:50051".into())
        );
        assert_eq!(parsed("grpc+tcp://host:1/"), ServiceAddress::Tcp("http://host:1".into()));
        assert_eq!(parsed("grpc+tls://host:1"), ServiceAddress::Tls("https://host:1".into()));
        let unix = parsed("grpc+unix:///run/iovcache/flight.sock");
        assert_eq!(unix, ServiceAddress::Unix("/run/iovcache/flight.sock".into()));
        assert_eq!(unix.folder(), Some(Path::new("/run/iovcache")));
        for wrong in ["", "grpc://", "ftp://host", "grpc+unix://flight.sock", "grpc://host:1/x"] {
            assert!(ServiceAddress::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_is_not_sent_in_the_clear_beyond_this_node() {
        let overheard = |url| ServiceAddress::parse(url).unwrap().is_overheard();
        for safe in ["grpc://127.0.0.1:1", "grpc://localhost:1", "grpc://[::1]:1"] {
            assert!(!overheard(safe), "{safe}");
        }
        assert!(!overheard("grpc+tls://example.org:1") && !overheard("grpc+unix:///a"));
        assert!(overheard("grpc://example.org:1") && overheard("grpc://192.0.2.1:1"));
        assert!(overheard("grpc://localhost.example.org:1"));
    }
}
