//! The object stores of the clouds: S3 and what speaks it, Google's, Azure's.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

/// How long a connection may take to be made.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long a store may be silent within an answer.
const SILENCE: Duration = Duration::from_secs(20);
/// For how long a request is tried again.
const RETRY_TIME: Duration = Duration::from_secs(20);
const RETRIES: usize = 3;
/// The store that a scheme and a bucket name, with credentials of the environment.
pub(super) fn open_store(scheme: &str, bucket: &str) -> Result<Arc<dyn ObjectStore>, String> {
    // A body may take long, but not be silent for long.
    let client = ClientOptions::new()
        .with_connect_timeout(CONNECT_TIME)
        .with_read_timeout(SILENCE)
        .with_timeout_disabled();
    let retry =
        RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIME, ..RetryConfig::default() };
    let store: Result<Arc<dyn ObjectStore>, object_store::Error> = match scheme {
        // `from_env` first: the builder's own options for plain HTTP live in the client's.
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
