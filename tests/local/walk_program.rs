use iovcache::{Timestamp, client::Client};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(&address()).await?;
    tokio::task::spawn_blocking(move || -> Result<(), iovcache::client::ClientError> {
        let drift = client.local()?.path("TPC/Calib/VDriftTgl")?;
        let view = drift.at(Timestamp::from_millis(4000))?.expect("an object is valid");
        assert_eq!(&view[..], b"drift 2\n");
        println!("{} bytes of version {}", view.len(), view.id());
        Ok(())
    }).await??;
    Ok(())
}
