//! From an address to a channel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow_flight::flight_service_client::FlightServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::error::ClientError;

/// The largest message that is taken: batches are small, but one object may be one cell.
const MAX_MESSAGE_BYTES: usize = 1 << 30;
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A Unix socket, absolute.
    Unix(PathBuf),
    /// An `http://host:port` that stands for plain gRPC.
    Tcp(String),
}

impl Address {
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
        let schemes = ["grpc://", "grpc+tcp://", "http://"];
        let host = schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
        let host = host.ok_or_else(|| wrong("unknown scheme"))?.trim_end_matches('/');
        if host.is_empty() || host.contains('/') {
            return Err(wrong("only host and port may stand there"));
        }
        Ok(Self::Tcp(format!("http://{host}")))
    }

    /// The folder of a Unix socket, where the attach socket stands too.
    pub(super) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => path.parent(),
            Self::Tcp(_) => None,
        }
    }

    pub(super) async fn connect(
        &self,
        url: &str,
    ) -> Result<FlightServiceClient<Channel>, ClientError> {
        let failed = |error: tonic::transport::Error| {
            let mut reason = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                reason = error.to_string();
                cause = error.source();
            }
            ClientError::Connect { url: url.to_owned(), reason }
        };
        let channel = match self {
            Self::Tcp(address) => {
                let endpoint = Endpoint::from_shared(address.clone()).map_err(failed)?;
                let endpoint = endpoint.tcp_nodelay(true).connect_timeout(CONNECT_LIMIT);
                endpoint.connect().await
            }
            Self::Unix(path) => {
                let path = path.clone();
                let endpoint = Endpoint::from_static("http://localhost");
                endpoint
                    .connect_timeout(CONNECT_LIMIT)
                    .connect_with_connector(service_fn(move |_: Uri| {
                        let path = path.clone();
                        async move { UnixStream::connect(path).await.map(TokioIo::new) }
                    }))
                    .await
            }
        };
        Ok(FlightServiceClient::new(channel.map_err(failed)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_that_the_service_prints() {
        let parsed = |url| Address::parse(url).unwrap();
        assert_eq!(parsed("grpc://127.0.0.1:50051"), Address::Tcp("http://127.0.0.1:50051".into()));
        assert_eq!(parsed("grpc+tcp://host:1/"), Address::Tcp("http://host:1".into()));
        let unix = parsed("grpc+unix:///run/iovcache/flight.sock");
        assert_eq!(unix, Address::Unix("/run/iovcache/flight.sock".into()));
        assert_eq!(unix.folder(), Some(Path::new("/run/iovcache")));
        for wrong in ["", "grpc://", "ftp://host", "grpc+unix://flight.sock", "grpc://host:1/x"] {
            assert!(Address::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
