//! Object stores in clouds: S3 and compatible stores, Google Cloud Storage, Azure Blob Storage.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use crate::source::install_crypto_provider;

/// Time limit for connecting.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Maximum time between two pieces of an answer.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// Maximum time for retries of a request.
const RETRY_TIME: Duration = Duration::from_secs(20);
const RETRIES: usize = 3;
/// Opens the store for a scheme and a bucket, with credentials from the environment.
pub(super) fn open_store(scheme: &str, bucket: &str) -> Result<Arc<dyn ObjectStore>, String> {
    install_crypto_provider();
    // The whole body has no time limit, only the time between its pieces.
    let client = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIME)
        .with_read_timeout(READ_LIMIT)
        .with_timeout_disabled();
    let retry =
        RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIME, ..RetryConfig::default() };
    let store: Result<Arc<dyn ObjectStore>, object_store::Error> = match scheme {
        // `from_env` first: the builder's own options for plain HTTP are part of the client
        // options.
        "s3" => {
            let allowed = std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| truthy(&value));
            AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .with_client_options(client.with_allow_http(allowed))
                .with_retry(retry)
                .build()
                .map(|store| Arc::new(store) as _)
        }
        "gs" => GoogleCloudStorageBuilder::from_env()
            .with_bucket_name(bucket)
            .with_client_options(client)
            .with_retry(retry)
            .build()
            .map(|store| Arc::new(store) as _),
        "az" => MicrosoftAzureBuilder::from_env()
            .with_container_name(bucket)
            .with_client_options(client)
            .with_retry(retry)
            .build()
            .map(|store| Arc::new(store) as _),
        _ => return Err(format!("no object store is called {scheme}:")),
    };
    store.map_err(|error| error.to_string())
}

fn truthy(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "on" | "yes" | "y")
}
