//! A repository by its size: import beside `cp -r`, start beside `find`, idle time, memory.
//!
//! `cargo bench --bench repository`; the results are in `benches/README.md`. The program itself
//! does all of the work, in real processes, over a folder beneath `/dev/shm`.
//!
//! `-- --quick` runs two small sizes and fails if the cost per version grows with their number; `--
//! --sizes 1000,100000` selects sizes; `-- --output FOLDER` writes `repository.csv` and
//! `repository.svg`. `IOVCACHE_BIN` names another build of the program.

mod plot;
mod process;
#[path = "../../tests/s3_server/mod.rs"]
mod s3_server;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use iovcache::client::TableRequest;
use process::{Service, program, timed};
use s3_server::S3Server;

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const QUICK_SIZES: [usize; 2] = [500, 4_000];
/// Bytes per object.
const OBJECT_BYTES: usize = 256;
/// Of more versions than this, all objects but the last ones are empty: a copy beside the repository
/// would not fit into 24 GB of memory otherwise.
const MAX_WITH_BYTES: usize = 100_000;
/// How long an idle service is observed.
const IDLE_TIME: Duration = Duration::from_secs(10);
const QUICK_IDLE_TIME: Duration = Duration::from_secs(2);
/// Maximum ratio of the cost per version at the largest and the smallest size of a quick run.
const QUICK_GROWTH: f64 = 3.0;

/// Maximum number of versions that are copied into an object store, which is in memory.
const MAX_STORED: usize = 10_000;

/// Maximum memory for listings in a quick run.
const MOST_LISTING_MIB: f64 = 64.0;

/// How versions are distributed over paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    OnePath,
    /// Ten versions per path.
    TenEach,
}

impl Layout {
    fn path(self, n: usize) -> String {
        match self {
            Self::OnePath => "Bench/One".to_owned(),
            Self::TenEach => format!("Bench/T{}/P{}", n / 10_000, n / 10),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::OnePath => "one path",
            Self::TenEach => "10 in each path",
        }
    }
}

/// One row of the table: times in seconds.
#[derive(Debug)]
pub(crate) struct Row {
    layout: Layout,
    pub(crate) versions: usize,
    pub(crate) import: f64,
    pub(crate) copy: f64,
    pub(crate) find: f64,
    pub(crate) start: f64,
    pub(crate) start_without: f64,
    idle_percent: f64,
    pub(crate) seen: f64,
    /// Requests to an object store with the same versions, from the start to the first answer.
    store_requests: Option<usize>,
    memory_bytes: f64,
    /// `iovcache ls`, with all paths.
    pub(crate) list: f64,
    /// `iovcache timeline` of one path, with all of its spans.
    timeline: f64,
    /// Memory beyond that before the two listings, at most.
    listing_bytes: f64,
}

/// Objects and their manifest. All objects are links to a few files, since their bytes are not
/// measured.
fn manifest(folder: &Path, layout: Layout, versions: usize) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    for n in 0..16_u8 {
        fs::write(folder.join(n.to_string()), [n; OBJECT_BYTES]).unwrap();
    }
    fs::write(folder.join("empty"), []).unwrap();
    let mut text =
        "path,valid_from_ms,valid_until_ms,created_ms,id,file,size,md5,note\n".to_owned();
    for n in 0..versions {
        let (path, from) = (layout.path(n), 1_000 * n);
        let (file, bytes) = match versions <= MAX_WITH_BYTES || n + 16 >= versions {
            true => ((n % 16).to_string(), OBJECT_BYTES),
            false => ("empty".to_owned(), 0),
        };
        writeln!(text, "{path},{from},{},{n},,{file},{bytes},,", from + 1_000).unwrap();
    }
    let file = folder.join("manifest.csv");
    fs::write(&file, text).unwrap();
    file
}

/// Seconds from the start of a service to its first answer, and the service.
async fn first_answer(repository: &Path, layout: Layout, versions: usize) -> (f64, Service) {
    let began = Instant::now();
    let service = Service::start(repository);
    first_table(&service, layout, versions).await;
    (began.elapsed().as_secs_f64(), service)
}

/// Requests to an object store from the start of a service to its first answer.
async fn store_requests(repository: &Path, layout: Layout, versions: usize) -> usize {
    let store = S3Server::start();
    let environment = store.environment();
    let url = "s3://bucket/repository";
    let mut copy = program();
    copy.args(["copy", &format!("file://{}", repository.display()), url]);
    timed(copy.envs(environment.iter().map(|(name, value)| (name, value))));
    store.requests();
    let service = Service::start_over(url, &environment);
    first_table(&service, layout, versions).await;
    store.requests().len()
}

/// The first table of a service.
async fn first_table(service: &Service, layout: Layout, versions: usize) {
    let client = service.connect().await;
    let last = versions - 1;
    let request = TableRequest::new()
        .column("object", layout.path(last))
        .timestamps(vec![1_000 * last as i64 + 5]);
    let table = client.table(request).await.unwrap();
    assert!(!table.column("object").unwrap().get(0).unwrap().unwrap().is_empty());
}

/// Seconds until the service serves a version that another program puts.
async fn seen_after(service: &Service, repository: &Path, layout: Layout, versions: usize) -> f64 {
    let client = service.connect().await;
    let path = layout.path(versions - 1);
    let at = 1_000 * (versions as i64 - 1) + 5;
    let request = || TableRequest::new().column("object", &path).timestamps(vec![at]);
    // The service watches the paths that are requested often.
    drop(client.table(request()).await.unwrap());
    let file = repository.with_extension("new");
    fs::write(&file, [255; 100]).unwrap();
    let (from, until) = (format!("--from={}", at - 5), format!("--until={}", at + 995));
    let file = file.to_str().unwrap();
    let repository = repository.to_str().unwrap();
    timed(program().args(["put", "--repository", repository, &path, file, &from, &until]));
    let began = Instant::now();
    loop {
        let table = client.table(request()).await.unwrap();
        if table.column("object").unwrap().get(0).unwrap().unwrap().len() == 100 {
            return began.elapsed().as_secs_f64();
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the new version is not seen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn measure(folder: &Path, layout: Layout, versions: usize, idle: Duration) -> Row {
    let manifest = manifest(&folder.join("objects"), layout, versions);
    let repository = folder.join("repository");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let repository_text = text(&repository);
    let import =
        timed(program().args(["import", "--repository", &repository_text, &text(&manifest)]));
    let copied = folder.join("copied");
    let copy = timed(std::process::Command::new("cp").arg("-r").args([&repository, &copied]));
    fs::remove_dir_all(&copied).unwrap();
    let mut find = std::process::Command::new("sh");
    let find = timed(find.arg("-c").arg(format!("find '{repository_text}' -type f | wc -l")));
    let (start, service) = first_answer(&repository, layout, versions).await;
    // Background work right after the start is not idle time.
    service.settle().await;
    let busy = service.cpu_seconds();
    tokio::time::sleep(idle).await;
    let idle_percent = (service.cpu_seconds() - busy) / idle.as_secs_f64() * 100.0;
    let memory_bytes = service.memory_bytes();
    let (list, timeline, listing_bytes) = listings(&service, layout, versions);
    let seen = seen_after(&service, &repository, layout, versions).await;
    drop(service);
    fs::rename(repository.join(".iovcache~"), folder.join("index")).unwrap();
    let (start_without, service) = first_answer(&repository, layout, versions).await;
    drop(service);
    let store_requests = match versions {
        ..=MAX_STORED => Some(store_requests(&repository, layout, versions).await),
        _ => None,
    };
    fs::remove_dir_all(folder).unwrap();
    Row {
        layout,
        versions,
        import,
        copy,
        find,
        start,
        start_without,
        idle_percent,
        seen,
        store_requests,
        memory_bytes,
        list,
        timeline,
        listing_bytes,
    }
}

/// Seconds for all paths and for all spans of one path, and the memory of the service for them.
fn listings(service: &Service, layout: Layout, versions: usize) -> (f64, f64, f64) {
    let before = service.begin_peak_bytes();
    let list = timed(program().args(["ls", "--json", "--server", service.url()]));
    let path = layout.path(versions - 1);
    let arguments = ["timeline", "--json", "--server", service.url(), &path];
    let timeline = timed(program().args(arguments));
    (list, timeline, service.peak_bytes() - before)
}

fn print(row: &Row, empty: f64, out: &mut String) {
    let per_version = (row.memory_bytes - empty).max(0.0) / row.versions as f64;
    writeln!(
        out,
        "{},{},{:.3},{:.3},{:.3},{:.3},{:.3},{:.2},{:.3},{},{:.0},{:.3},{:.3},{:.1}",
        row.layout.name(),
        row.versions,
        row.import,
        row.copy,
        row.find,
        row.start,
        row.start_without,
        row.idle_percent,
        row.seen,
        row.store_requests.map_or_else(String::new, |requests| requests.to_string()),
        per_version,
        row.list,
        row.timeline,
        row.listing_bytes / (1 << 20) as f64
    )
    .unwrap();
    eprint!("{}", out.lines().last().unwrap_or_default());
    eprintln!();
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).cloned()
    };
    let asks = |name: &str| arguments.iter().any(|argument| argument == name);
    // `--test` requests one short run of each bench.
    let quick = asks("--quick") || asks("--test");
    // `cargo test --benches` without arguments only checks that it runs.
    if !quick && !asks("--bench") {
        return;
    }
    let sizes: Vec<usize> = match value("--sizes") {
        Some(sizes) => sizes.split(',').map(|size| size.parse().unwrap()).collect(),
        None if quick => QUICK_SIZES.to_vec(),
        None => SIZES.to_vec(),
    };
    let idle = if quick { QUICK_IDLE_TIME } else { IDLE_TIME };
    let place = if Path::new("/dev/shm").is_dir() {
        PathBuf::from("/dev/shm")
    } else {
        std::env::temp_dir()
    };
    let folder = tempfile::tempdir_in(place).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut text =
        "layout,versions,import_s,cp_s,find_s,start_s,start_without_index_s,idle_percent,\
                    seen_after_s,s3_requests,bytes_per_version,ls_s,timeline_s,listing_mib\n"
            .to_owned();
    eprint!("{text}");
    let rows = runtime.block_on(async {
        let empty = folder.path().join("empty");
        fs::create_dir_all(&empty).unwrap();
        let service = Service::start(&empty);
        tokio::time::sleep(idle / 2).await;
        let empty = service.memory_bytes();
        drop(service);
        let mut rows = Vec::new();
        for layout in [Layout::OnePath, Layout::TenEach] {
            for &versions in &sizes {
                let folder = folder.path().join("size");
                let row = measure(&folder, layout, versions, idle).await;
                print(&row, empty, &mut text);
                rows.push(row);
            }
        }
        rows
    });
    if let Some(output) = value("--output") {
        let output = PathBuf::from(output);
        fs::create_dir_all(&output).unwrap();
        fs::write(output.join("repository.csv"), &text).unwrap();
        let one_path: Vec<&Row> = rows.iter().filter(|row| row.layout == Layout::OnePath).collect();
        fs::write(output.join("repository.svg"), plot::svg(&one_path)).unwrap();
    }
    std::io::stdout().write_all(text.as_bytes()).unwrap();
    if quick {
        check_growth(&rows);
    }
}

/// The cost per version must not grow with the number of versions.
fn check_growth(rows: &[Row]) {
    for rows in rows.chunk_by(|a, b| a.layout == b.layout) {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { continue };
        let each = |row: &Row| row.import / row.versions as f64;
        let growth = each(last) / each(first);
        assert!(growth < QUICK_GROWTH, "{}: import grows by {growth:.1}", first.layout.name());
        for row in [first, last] {
            let mib = row.listing_bytes / f64::from(1 << 20);
            assert!(mib < MOST_LISTING_MIB, "{}: listings take {mib:.0} MiB", row.layout.name());
        }
    }
}
