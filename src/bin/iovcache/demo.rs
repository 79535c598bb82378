//! `demo`: runs a repository, a service and three consumers, each in a process of its own, and
//! prints a report.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use iovcache::client::{Client, ClientError, ClientOptions, TableRequest};
use iovcache::error::ErrorKind;
use iovcache::source::repository::{NewVersion, RepositoryWriter};
use iovcache::table::{CellKind, ColumnRequest, Status};
use iovcache::{ObjectPath, Timestamp, ValidityInterval};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::common::{out_line, progress, show_bytes};
use crate::failure::Failure;
use crate::status::show;
use crate::text_chart::{Bar, bars, screen_columns, wrap};
use crate::time;

/// The versions of the demo: path, from, until, created (all ms), kilobytes. They overlap.
const VERSIONS: [(&str, i64, i64, i64, usize); 9] = [
    ("Demo/Calib/Drift", 0, 6_000, 1, 40),
    ("Demo/Calib/Drift", 1_500, 2_500, 5, 40),
    ("Demo/Calib/Drift", 4_000, 9_000, 3, 40),
    ("Demo/Calib/Drift", 7_000, 7_200, 8, 40),
    ("Demo/Calib/Noise", 0, 5_000, 1, 200),
    ("Demo/Calib/Noise", 3_300, 8_000, 2, 200),
    ("Demo/Calib/Noise", 8_000, 9_000, 2, 200),
    ("Demo/Config/Run", 0, 4_500, 1, 1),
    ("Demo/Config/Run", 4_500, 9_000, 1, 1),
];
/// The columns of each timeframe.
const COLUMNS: [(&str, &str); 3] =
    [("drift", "Demo/Calib/Drift"), ("noise", "Demo/Calib/Noise"), ("run", "Demo/Config/Run")];
/// Name of each consumer, and its work per timeframe in milliseconds.
const CONSUMERS: [(&str, u64); 3] = [("quick", 1), ("steady", 8), ("slow", 25)];
/// Number of timestamps of a timeframe, one per millisecond.
const ROWS: i64 = 200;
/// Time limit of a consumer for one timeframe.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Number of timeframes to register.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=45))]
    timeframes: u64,
    /// Keep the service running until Ctrl-C, for further commands.
    #[arg(long)]
    stay: bool,
    /// Run as the consumer of this name.
    #[arg(long, hide = true, requires = "flight")]
    consumer: Option<String>,
    /// The URL of the consumer's service.
    #[arg(long, hide = true)]
    flight: Option<String>,
    /// Work of the consumer per timeframe (ms).
    #[arg(long, hide = true, default_value_t = 0)]
    work_ms: u64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match (&arguments.consumer, &arguments.flight) {
        (Some(name), Some(flight)) => consume(name, flight, &arguments).await,
        _ => show_all(&arguments).await,
    }
}

/// The report of a consumer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Report {
    consumer: String,
    timeframes: u64,
    rows: u64,
    /// Rows whose bytes differ from those of the version that is valid at their timestamp.
    wrong: u64,
    bytes: u64,
    /// Waiting times for tables in microseconds, sorted.
    waits_us: Vec<u64>,
}

/// A child process; dropping this kills it.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn own_program() -> Result<Command, Failure> {
    let program = std::env::current_exe();
    program.map(Command::new).map_err(|error| Failure::io("cannot find this program", error))
}

fn timestamps_of(timeframe: u64) -> Vec<i64> {
    let first = i64::try_from(timeframe).unwrap_or(0) * ROWS;
    (first..first + ROWS).collect()
}

/// The bytes of a version: a line that identifies the version, repeated.
fn content(version: &(&str, i64, i64, i64, usize)) -> Vec<u8> {
    let (path, from, until, created, kilobytes) = version;
    let line = format!("{path} [{from}, {until}) created {created}\n");
    line.bytes().cycle().take(kilobytes * 1_000).collect()
}

/// Index of the version that is valid at a timestamp, found by a linear scan.
fn right(path: &str, at: i64) -> Option<usize> {
    let valid = VERSIONS
        .iter()
        .enumerate()
        .filter(|(_, (name, from, until, ..))| *name == path && (*from..*until).contains(&at));
    valid.max_by_key(|(_, (_, from, _, created, _))| (*created, *from)).map(|(place, _)| place)
}

async fn show_all(arguments: &Arguments) -> Result<(), Failure> {
    let folder = std::env::temp_dir().join(format!("iovcache-demo-{}", std::process::id()));
    let shown = show_in(&folder, arguments).await;
    let _ = std::fs::remove_dir_all(&folder);
    shown
}

/// Prints a paragraph, wrapped at the width of the screen, and an empty line.
fn say(text: &str) -> Result<(), Failure> {
    out_line(wrap(text, screen_columns()))
}

async fn show_in(folder: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let began = Instant::now();
    let repository = folder.join("repository");
    fill(&repository, &folder.join("object"))?;
    say(&format!(
        "1. A repository of {} versions under 3 paths. Their intervals overlap; of those valid at a \
         time, the version created last wins.",
        VERSIONS.len()
    ))?;
    let service = serve(&repository, &folder.join("sockets"))?;
    let client = Client::connect(&service.flight).await?;
    let columns = screen_columns().saturating_sub(3);
    show_timelines(&client, columns).await?;

    let timeframes = arguments.timeframes;
    say(&format!(
        "2. {timeframes} timeframes of {ROWS} rows, and three consumers of different speed, each a \
         process of its own."
    ))?;
    let Consumption { reports, took, halfway } =
        run_timeframes(&client, &service.flight, timeframes).await?;
    if let Some(status) = halfway {
        say("   Halfway. Timeframes in flight are those that a consumer still reads:")?;
        out_line(indented(&wrap(&show(&status), columns)))?;
    }

    say("3. One table as runs: which version served which rows of timeframe 7.")?;
    show_table(&client).await?;

    say("4. The result.")?;
    show_reports(&reports)?;
    let status = client.status().await?;
    drop(client);
    say("   At the end nothing is pinned:")?;
    out_line(indented(&wrap(&show(&status), columns)))?;
    say(&format!(
        "   {} rows in {} ms, {} of them wrong. All of this took {:.1} s.",
        reports.iter().map(|report| report.rows).sum::<u64>(),
        took.as_millis(),
        reports.iter().map(|report| report.wrong).sum::<u64>(),
        began.elapsed().as_secs_f64()
    ))?;
    check(&reports, &status)?;
    if arguments.stay {
        return stay(&service).await;
    }
    say(NEXT)?;
    Ok(())
}

/// The result of step 2.
struct Consumption {
    reports: Vec<Report>,
    took: Duration,
    /// The status of the service after half of the timeframes.
    halfway: Option<Status>,
}

/// Registers the timeframes, and waits for the reports of all consumers.
async fn run_timeframes(
    client: &Client,
    flight: &str,
    timeframes: u64,
) -> Result<Consumption, Failure> {
    let started = Instant::now();
    let consumers = start_consumers(flight, timeframes)?;
    let halfway = register(client, timeframes).await?;
    let mut reports = Vec::new();
    for mut consumer in consumers {
        let read = tokio::task::spawn_blocking(move || report_of(&mut consumer));
        reports.push(read.await.map_err(Failure::failed)??);
    }
    Ok(Consumption { reports, took: started.elapsed(), halfway })
}

/// The timeline of each path, as a chart.
async fn show_timelines(client: &Client, columns: usize) -> Result<(), Failure> {
    for (_, path) in COLUMNS {
        out_line(format_args!("   {path}"))?;
        let spans = spans(client, path).await?;
        out_line(indented(&bars(&spans, |at| time::show_as(at, true), columns)))?;
    }
    Ok(())
}

/// # Errors
/// [`Failure`] if a row is wrong, or if pins or timeframes are left.
fn check(reports: &[Report], status: &Status) -> Result<(), Failure> {
    let wrong: u64 = reports.iter().map(|report| report.wrong).sum();
    if wrong > 0 {
        return Err(Failure::failed(format!("{wrong} rows were wrong")));
    }
    if status.memory.pinned_bytes > 0 || !status.timeframes.is_empty() {
        return Err(Failure::failed("pins or timeframes are left"));
    }
    Ok(())
}

/// Suggestions after the demo.
const NEXT: &str = "\
5. What to try next.

   iovcache demo --stay        keeps this service running: its page, and a snippet for Python
   iovcache serve --source file:///a/folder        serves a repository of your own
   iovcache serve --source http://a-ccdb:8080      keeps the objects of a CCDB in memory
   README.md has walks of five minutes: a folder, Python, pyarrow, Rust, C and C++.";

/// Keeps the service running until Ctrl-C or SIGTERM.
async fn stay(service: &Running) -> Result<(), Failure> {
    let Running { flight, http, .. } = service;
    say("5. The service keeps running until Ctrl-C.")?;
    out_line(format_args!("   status page   {http}/\n   service       {flight}\n"))?;
    out_line("# Paste into another shell:\n")?;
    out_line(format_args!("export IOVCACHE_SERVER={flight}"))?;
    out_line("iovcache timeline Demo/Calib/Drift\niovcache status --watch\n")?;
    out_line("# Paste into Python, after pip install ./python:\n")?;
    out_line(format_args!(
        "import iovcache\n\
         with iovcache.connect(\"{flight}\") as client:\n    \
             columns = {{\"drift\": \"Demo/Calib/Drift\"}}\n    \
             with client.table(columns, timestamps=range(0, 9000, 500)) as table:\n        \
                 for start, end, view in table[\"drift\"].runs():\n            \
                     print(start, end, bytes(view[:40]))\n"
    ))?;
    let failed = |error| Failure::io("cannot wait for signals", error);
    let mut terminated = signal(SignalKind::terminate()).map_err(failed)?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(failed),
        _ = terminated.recv() => Ok(()),
    }
}

/// Starts each consumer in a process of its own.
fn start_consumers(flight: &str, timeframes: u64) -> Result<Vec<Process>, Failure> {
    let mut consumers = Vec::new();
    for (name, work_ms) in CONSUMERS {
        let child = own_program()?
            .args(["demo", "--consumer", name, "--flight", flight])
            .args(["--timeframes", &timeframes.to_string()])
            .args(["--work-ms", &work_ms.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::io("cannot start a consumer", error))?;
        consumers.push(Process(child));
    }
    Ok(consumers)
}

/// Registers the timeframes. Gives the status of the service after half of them.
async fn register(client: &Client, timeframes: u64) -> Result<Option<Status>, Failure> {
    let column =
        |(name, path): &(&str, &str)| Ok(ColumnRequest::new(*name, ObjectPath::new(path)?));
    let columns = COLUMNS.iter().map(column);
    let columns: Vec<_> = columns.collect::<Result<_, iovcache::object::InvalidPath>>()?;
    let names = CONSUMERS.map(|(name, _)| name.to_owned());
    let bar = progress("timeframes", timeframes);
    let mut halfway = None;
    for timeframe in 0..timeframes {
        let rows = timestamps_of(timeframe).into_iter().map(Some).collect();
        client.put_timeframe(timeframe, rows, &columns, &names).await?;
        if timeframe == timeframes / 2 {
            halfway = Some(client.status().await?);
        }
        bar.set_position(timeframe + 1);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bar.finish_and_clear();
    Ok(halfway)
}

fn show_reports(reports: &[Report]) -> Result<(), Failure> {
    out_line("            timeframes     rows  wrong  bytes read  wait: median, 99 %")?;
    for report in reports {
        let at = |share: f64| {
            let last = report.waits_us.len().saturating_sub(1);
            report.waits_us.get((last as f64 * share) as usize).copied().unwrap_or(0)
        };
        out_line(format_args!(
            "   {:<8} {:>10} {:>8} {:>6} {:>11}  {} µs, {} µs",
            report.consumer,
            report.timeframes,
            report.rows,
            report.wrong,
            show_bytes(report.bytes),
            at(0.5),
            at(0.99)
        ))?;
    }
    out_line("")
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}

fn fill(repository: &Path, file: &Path) -> Result<(), Failure> {
    let writer = RepositoryWriter::new(repository)?;
    for version in &VERSIONS {
        let (path, from, until, created, _) = *version;
        std::fs::write(file, content(version))
            .map_err(|error| Failure::io(file.display(), error))?;
        let [from, until, created] = [from, until, created].map(Timestamp::from_millis);
        let version = NewVersion {
            path: ObjectPath::new(path)?,
            validity: ValidityInterval::new(from, until)?,
            created,
            id: None,
            file_name: "object".to_owned(),
            metadata: Default::default(),
        };
        writer.put_file(&version, file)?;
    }
    Ok(())
}

/// The service of the demo; dropping this ends it.
struct Running {
    _process: Process,
    flight: String,
    http: String,
}

fn serve(repository: &Path, sockets: &Path) -> Result<Running, Failure> {
    let mut child = own_program()?
        .arg("serve")
        .arg("--source")
        .arg(format!("file://{}", repository.display()))
        .arg("--socket")
        .arg(sockets)
        .args(["--listen", "127.0.0.1:0", "--memory", "16MiB", "--segment", "4MiB"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::io("cannot start the service", error))?;
    let stdout = child.stdout.take();
    let process = Process(child);
    let mut line = String::new();
    if let Some(stdout) = stdout {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|error| Failure::io("the service does not start", error))?;
    }
    let ready: serde_json::Value =
        serde_json::from_str(&line).map_err(|_| Failure::failed("the service does not start"))?;
    let urls = ready["flight"].as_array().into_iter().flatten();
    let unix = urls.filter_map(|url| url.as_str()).find(|url| url.starts_with("grpc+unix"));
    let unix = unix.ok_or_else(|| Failure::failed("the service has no Unix socket"))?;
    let http = ready["http"].as_str().unwrap_or_default().to_owned();
    Ok(Running { _process: process, flight: unix.to_owned(), http })
}

async fn spans(client: &Client, path: &str) -> Result<Vec<Bar>, Failure> {
    let request = TableRequest::new().column("object", path).intervals(-1_000, 10_000);
    let mut spans = Vec::new();
    for batch in client.batches(&request.cell(CellKind::Payload)).await? {
        use arrow_array::cast::AsArray as _;
        use arrow_array::types::Int64Type;
        let from = batch.column(2).as_primitive::<Int64Type>();
        let until = batch.column(3).as_primitive::<Int64Type>();
        let cells = batch.column(5).as_binary::<i64>();
        for row in 0..batch.num_rows() {
            let first = cells.value(row).split(|&byte| byte == b'\n').next().unwrap_or_default();
            let label = String::from_utf8_lossy(first);
            let label = label.split_once(' ').map_or("", |(_, label)| label).to_owned();
            spans.push(Bar { from: from.value(row), until: until.value(row), label });
        }
    }
    Ok(spans)
}

async fn show_table(client: &Client) -> Result<(), Failure> {
    let mut request = TableRequest::new().timestamps(timestamps_of(7));
    for (name, path) in COLUMNS {
        request = request.column(name, path);
    }
    let table = client.table(request).await?;
    for name in table.columns() {
        for run in table.column(name)?.runs() {
            let (rows, bytes) = run?;
            let first = bytes.and_then(|bytes| bytes.split(|&byte| byte == b'\n').next());
            let first = String::from_utf8_lossy(first.unwrap_or_default()).into_owned();
            let last = rows.end - 1;
            out_line(format_args!("   {name:<6} rows {:>3} to {last:>3}  {first}", rows.start))?;
        }
    }
    out_line("")?;
    client.release(table).await?;
    Ok(())
}

fn report_of(consumer: &mut Process) -> Result<Report, Failure> {
    let mut line = String::new();
    if let Some(stdout) = consumer.0.stdout.take() {
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|error| Failure::io("a consumer sends no report", error))?;
    }
    serde_json::from_str(&line).map_err(|_| Failure::failed("a consumer failed"))
}

/// The process of a consumer: reads every timeframe, checks each run and reports it as consumed.
async fn consume(name: &str, flight: &str, arguments: &Arguments) -> Result<(), Failure> {
    let options = ClientOptions { consumer: Some(name.to_owned()), ..ClientOptions::default() };
    let client = Client::connect_with(flight, options).await?;
    let mut report = Report { consumer: name.to_owned(), ..Report::default() };
    let contents: Vec<Vec<u8>> = VERSIONS.iter().map(content).collect();
    let deadline = Instant::now() + PATIENCE;
    for timeframe in 0..arguments.timeframes {
        let request = TableRequest::new().timeframe(timeframe).consumer(name);
        let (table, wait) = loop {
            let asked = Instant::now();
            match client.table(request.clone()).await {
                Ok(table) => break (table, asked.elapsed()),
                // The timeframe is not registered yet.
                Err(ClientError::Service { kind: ErrorKind::NotFound, .. })
                    if Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        report.timeframes += 1;
        report.waits_us.push(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX));
        let at = timestamps_of(timeframe);
        for (column, path) in COLUMNS {
            for run in table.column(column)?.runs() {
                let (rows, bytes) = run?;
                report.rows += rows.len() as u64;
                report.bytes += bytes.map_or(0, <[u8]>::len) as u64;
                // The version of these bytes; it must be the right one for every row of the run.
                let got = bytes.and_then(|bytes| contents.iter().position(|one| one == bytes));
                let wrong = rows.filter(|&row| got.is_none() || right(path, at[row]) != got);
                report.wrong += wrong.count() as u64;
            }
        }
        tokio::time::sleep(Duration::from_millis(arguments.work_ms)).await;
        client.consumed(timeframe, name).await?;
        drop(table);
    }
    report.waits_us.sort_unstable();
    out_line(serde_json::json!(report))?;
    Ok(())
}
