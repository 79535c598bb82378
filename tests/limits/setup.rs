//! A service with limits that a test can reach, and a well-behaved client.

use std::path::Path;

use arrow_flight::flight_service_client::FlightServiceClient;
use iovcache::client::{Client, ClientOptions, TableRequest};
use tonic::transport::{Channel, Endpoint};

use crate::common::{Service, Version, http_get, put};

pub(crate) const DRIFT: &str = "TPC/Calib/VDrift";

/// A service over a repository with one object, and the repository's folder.
pub(crate) struct Limited {
    pub(crate) service: Service,
    _folder: tempfile::TempDir,
}

impl Limited {
    /// `limits` is the content of `[limits]`.
    pub(crate) fn start(limits: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("repository");
        put(&repository, &Version { path: DRIFT, from: 0, until: 9, created: 1, bytes: b"drift" });
        let config = folder.path().join("config.toml");
        std::fs::write(&config, format!("[limits]\n{limits}\n")).unwrap();
        let service = Service::over(&repository, &["--config", config.to_str().unwrap()]);
        Self { service, _folder: folder }
    }

    /// The TCP address.
    pub(crate) fn address(&self) -> String {
        self.service.tcp().trim_start_matches("grpc://").to_owned()
    }

    pub(crate) async fn client(&self, url: &str) -> Client {
        let options = ClientOptions { remote: true, ..ClientOptions::default() };
        Client::connect_with(url, options).await.unwrap()
    }

    /// A connection that uses gRPC directly, without our client.
    pub(crate) async fn bare(&self) -> FlightServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address())).unwrap();
        FlightServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// Asserts that a well-behaved client is served on both transports.
    pub(crate) async fn assert_serves(&self) {
        for url in [self.service.tcp(), self.service.unix()] {
            let client = self.client(&url).await;
            let table = client.table(drift()).await.unwrap();
            assert_eq!(table.column("drift").unwrap().get(0).unwrap(), Some(&b"drift"[..]));
        }
    }

    /// The value of a counter.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let (_, metrics) = http_get(&self.service.http(), "/metrics");
        let name = format!("iovcache_{name}_total ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name}in {metrics}")).parse().unwrap()
    }

    /// Peak memory of the process, without segments.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        let status = Path::new("/proc").join(self.service.pid().to_string()).join("status");
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }
}

pub(crate) fn drift() -> TableRequest {
    TableRequest::new().column("drift", DRIFT).timestamps([5])
}
