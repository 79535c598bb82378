//! The program in front of a CCDB: from an upload to a cell.

use std::time::Duration;

use iovcache::client::{Client, TableRequest};

use super::common::Service;
use super::fake_ccdb::{FakeCcdb, Kind, Upload};

async fn cells(client: &Client, times: &[i64]) -> Vec<Vec<u8>> {
    let request = TableRequest::new().column("x", "A/B").timestamps(times.iter().copied());
    let table = client.table(request).await.unwrap();
    let column = table.column("x").unwrap();
    (0..table.rows()).map(|row| column.get(row).unwrap().unwrap().to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_to_any_kind_of_server_are_served_and_later_ones_win() {
    for kind in [Kind::Local, Kind::Sql, Kind::SqlLocalCopyFirst] {
        let server = FakeCcdb::start(kind).await;
        server.upload(Upload::new("A/B", 0, 100).created(1).bytes(b"first".to_vec()));
        server.upload(Upload::new("A/B", 40, 60).created(2).bytes(b"second".to_vec()));
        let service = Service::start(&["--source", &server.url(), "--refresh", "200ms"]);
        let client = Client::connect(&service.unix()).await.unwrap();
        let times = [0, 39, 40, 59, 60, 99];
        let first_second = [&b"first"[..], b"first", b"second", b"second", b"first", b"first"];
        assert_eq!(cells(&client, &times).await, first_second, "{kind:?}");
        server.upload(Upload::new("A/B", 0, 100).created(3).bytes(b"third".to_vec()));
        let mut seen = Vec::new();
        for _ in 0..600 {
            seen = cells(&client, &times).await;
            if seen[0] == b"third" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(seen, [b"third"; 6], "{kind:?}");
        let status = client.status().await.unwrap();
        assert_eq!(status.loads, 3, "{kind:?}");
        assert!(status.sources[0].requests > 0);
    }
}
