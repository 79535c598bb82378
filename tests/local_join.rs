//! Timestamps held by the client: the client makes the rows, and they equal those of the service.

mod in_process;

use std::sync::Arc;
use std::time::Duration;

use in_process::url_of;
use iovcache::client::{Client, ClientError, TableRequest};
use iovcache::error::{Coded as _, ErrorKind};
use iovcache::index::Timestamps;
use iovcache::shm::PoolOptions;
use iovcache::source::MemorySource;
use iovcache::table::{Encoding, column_runs};
use iovcache::{Cache, ObjectId, ObjectInfo, ObjectPath, Timestamp, ValidityInterval};

const ROWS: i64 = 30_000;

struct Service {
    cache: Cache,
    url: String,
    _folder: tempfile::TempDir,
}

/// Versions of path `A/B`: each (from, until), created in this order; the bytes of each are its
/// number.
async fn serve(versions: &[(i64, i64)]) -> Service {
    let at = Timestamp::from_millis;
    let source = MemorySource::new();
    for (n, (from, until)) in versions.iter().enumerate() {
        let info = ObjectInfo {
            path: ObjectPath::new("A/B").unwrap(),
            id: ObjectId::from_bytes([n as u8 + 1; 16]),
            validity: ValidityInterval::new(at(*from), at(*until)).unwrap(),
            created: at(n as i64),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        };
        source.put(info, vec![n as u8]);
    }
    let memory = PoolOptions { memory_bytes: 16 << 20, ..PoolOptions::default() };
    let cache = Cache::builder().source(Arc::new(source)).memory(memory).build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = url_of(&in_process::serve(cache.clone(), folder.path()).await);
    Service { cache, url, _folder: folder }
}

fn request(times: impl IntoIterator<Item = i64>) -> TableRequest {
    TableRequest::new().column("b", "A/B").timestamps(times)
}

/// The runs of the only column: the row after the last one, and the byte.
async fn runs(
    client: &Client,
    request: TableRequest,
) -> Result<Vec<(usize, Option<u8>)>, ClientError> {
    let table = client.table(request).await?;
    let column = table.column("b").unwrap();
    let runs = column.runs().map(|run| run.map(|(rows, bytes)| (rows.end, bytes.map(|b| b[0]))));
    let runs = runs.collect();
    // The Arrow table must agree.
    let batches = table.batches();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), table.rows());
    assert!(batches.iter().all(|batch| batch.schema() == *table.schema()));
    if let [batch] = batches {
        let ends: Vec<usize> =
            column_runs(batch.column(0)).unwrap().iter().map(|(end, _)| end).collect();
        let own: Vec<usize> = column.runs().map(|run| run.unwrap().0.end).collect();
        assert_eq!(ends, own);
    }
    assert_eq!(table.schema().field(0).metadata()["url"], "A/B");
    runs
}

async fn until_unpinned(service: &Service) {
    for _ in 0..1_000 {
        if service.cache.status().memory.pinned_bytes == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("objects are still pinned");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_are_those_that_the_service_makes() {
    let service = serve(&[(0, 40_000), (10_000, 20_000), (15_000, 15_001)]).await;
    let client = Client::connect(&service.url).await.unwrap();
    let expected = vec![
        (10_000, Some(0)),
        (15_000, Some(1)),
        (15_001, Some(2)),
        (20_000, Some(1)),
        (ROWS as usize, Some(0)),
    ];
    assert_eq!(runs(&client, request(0..ROWS)).await.unwrap(), expected);
    // One request, for spans: the rows were not transferred.
    let counted = service.cache.counters();
    assert_eq!((counted.tables.get(), counted.rows.get()), (1, 5));
    // An encoding that the client does not make, so the service sends the rows.
    let asked = request(0..ROWS).encoding(Encoding::Dictionary);
    assert_eq!(runs(&client, asked).await.unwrap(), expected);
    assert_eq!(counted.rows.get(), 5 + ROWS as u64);
    until_unpinned(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_will_do_and_nulls_stay_null() {
    let service = serve(&[(0, 10_000), (10_000, 40_000)]).await;
    let client = Client::connect(&service.url).await.unwrap();
    let backwards = request((0..ROWS).rev());
    let expected = vec![(20_000, Some(1)), (ROWS as usize, Some(0))];
    assert_eq!(runs(&client, backwards).await.unwrap(), expected);
    let nulls: Timestamps =
        (0..ROWS).map(|at| (at % 15_000 != 7).then_some(at)).chain([None]).collect();
    let nulls = TableRequest::new().column("b", "A/B").shared_timestamps(Arc::new(nulls));
    let nulls = runs(&client, nulls).await.unwrap();
    assert_eq!(nulls[..3], [(7, Some(0)), (8, None), (10_000, Some(0))]);
    assert_eq!(nulls[3..], [(15_007, Some(1)), (15_008, None), (30_000, Some(1)), (30_001, None)]);
    assert_eq!(service.cache.counters().rows.get(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_loaded_that_no_row_needs() {
    // The second is valid for 3 ms, between two timestamps that are 10 ms apart.
    let service = serve(&[(0, 400_000), (15_001, 15_004), (20_000, 20_030)]).await;
    let client = Client::connect(&service.url).await.unwrap();
    let times = || (0..ROWS).map(|row| row * 10);
    let expected = vec![(2_000, Some(0)), (2_003, Some(2)), (ROWS as usize, Some(0))];
    assert_eq!(runs(&client, request(times())).await.unwrap(), expected);
    let status = service.cache.status();
    assert_eq!((status.objects, status.loads), (2, 2));
    // Where all spans are long enough, a gap is no reason to send the timestamps.
    let service = serve(&[(0, 400_000), (20_000, 20_010)]).await;
    let client = Client::connect(&service.url).await.unwrap();
    let expected = vec![(2_000, Some(0)), (2_001, Some(1)), (ROWS as usize, Some(0))];
    assert_eq!(runs(&client, request(times())).await.unwrap(), expected);
    assert_eq!(service.cache.counters().rows.get(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_valid_the_service_says_what_that_means() {
    let service = serve(&[(0, 10_000), (20_000, 40_000)]).await;
    let client = Client::connect(&service.url).await.unwrap();
    let error = client.table(request(0..ROWS)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("10000 rows, first at 10000, last at 19999"), "{error}");
    let nulls = runs(&client, request(0..ROWS).missing_as_null()).await.unwrap();
    assert_eq!(nulls, [(10_000, Some(0)), (20_000, None), (ROWS as usize, Some(1))]);
    // The pins of the unusable spans are released.
    until_unpinned(&service).await;
}
