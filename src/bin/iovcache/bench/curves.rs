//! Curves of one request's cost: over clients, rows, columns, distinct objects, versions.
//!
//! All objects are resident: a point measures the path from a request to resolved cells. Requests
//! follow one another (closed loop), except where the number of clients grows.

use std::hint::black_box;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use iovcache::client::{Client, ClientError, TableRequest};
use iovcache::table::ColumnRequest;
use iovcache::{ObjectPath, error::Coded as _};

use super::histogram::Durations;
use super::process::{Service, Usage};
use super::result::{Curve, Point};
use super::synthetic::path;
use crate::common::progress;
use crate::failure::Failure;

/// Columns of the table in the curve over clients.
const COLUMNS: usize = 10;
/// Versions of the paths of the other curves.
const VERSIONS: u64 = 1_000;

/// Bounds of a curve: time per point, and the largest x.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    pub(super) point: Duration,
    /// The largest number of rows, objects and versions.
    pub(super) largest: u64,
}

/// Powers of ten from 1 up to `largest`.
fn decades(largest: u64) -> Vec<u64> {
    std::iter::successors(Some(1_u64), |x| x.checked_mul(10))
        .take_while(|&x| x <= largest)
        .collect()
}

/// Measures all curves at a service of its own.
pub(super) async fn measure(effort: Effort) -> Result<Vec<Curve>, Failure> {
    let service = Service::start(|command| {
        command.args(["--log", "error", "bench", "--role", "service"]);
    })?;
    let client = Client::connect(&service.url).await?;
    let bench = Bench { service, client, effort };
    let bar = progress("curves", 6);
    let mut curves = Vec::new();
    curves.push(bench.over_clients().await?);
    bar.inc(1);
    let ranged = |rows: u64| columns(1, VERSIONS).range(0, rows as i64, 1);
    let largest = effort.largest;
    curves.push(
        bench
            .over(
                "rows",
                "one column of at most 1,000 runs, a range of timestamps",
                ranged,
                largest,
            )
            .await?,
    );
    bar.inc(1);
    curves.push(bench.over_sent_rows().await?);
    bar.inc(1);
    let wide = |count: u64| columns(count as usize, VERSIONS).timestamps([1]);
    curves.push(
        bench.over("columns", "one timestamp, an object for each column", wide, 1_000).await?,
    );
    bar.inc(1);
    let deep = |count: u64| columns(1, count).range(0, count as i64, 1);
    let objects = largest.min(100_000);
    curves.push(
        bench.over("objects", "one column, another object in each row", deep, objects).await?,
    );
    bar.inc(1);
    let among = |count: u64| columns(1, count).timestamps([count as i64 / 2]);
    curves.push(
        bench
            .over("versions", "one timestamp, one column, over its versions", among, largest)
            .await?,
    );
    bar.finish_and_clear();
    Ok(curves)
}

fn columns(count: usize, versions: u64) -> TableRequest {
    (0..count).fold(TableRequest::new(), |request, column| {
        request.column(format!("c{column}"), path(column, versions))
    })
}

/// Requests a table, and resolves each of its cells.
async fn ask(client: &Client, request: TableRequest) -> Result<(), ClientError> {
    let table = client.table(request).await?;
    for name in table.columns() {
        for run in table.column(name)?.runs() {
            black_box(run?.1.and_then(|bytes| bytes.first()));
        }
    }
    Ok(())
}

struct Bench {
    service: Service,
    client: Client,
    effort: Effort,
}

impl Bench {
    fn cpu_seconds(&self) -> Option<f64> {
        Some(Usage::of(self.service.pid?)?.cpu_seconds)
    }

    /// A curve over requests that follow one another.
    async fn over(
        &self,
        of: &str,
        about: &str,
        request: impl Fn(u64) -> TableRequest,
        largest: u64,
    ) -> Result<Curve, Failure> {
        let mut points = Vec::new();
        for x in decades(largest) {
            let request = request(x);
            // The first request loads the objects.
            ask(&self.client, request.clone()).await?;
            let point = self.point(x, || ask(&self.client, request.clone())).await?;
            points.push(point);
        }
        Ok(curve(of, about, of, points))
    }

    async fn point<F>(&self, x: u64, mut turn: impl FnMut() -> F) -> Result<Point, Failure>
    where
        F: Future<Output = Result<(), ClientError>>,
    {
        const AT_LEAST: u64 = 5;
        let mut took = Durations::default();
        let (cpu, began) = (self.cpu_seconds(), Instant::now());
        let mut count = 0;
        while count < AT_LEAST || began.elapsed() < self.effort.point {
            let asked = Instant::now();
            turn().await?;
            took.record(asked.elapsed());
            count += 1;
        }
        Ok(self.pointed(x, &took, began.elapsed(), cpu))
    }

    fn pointed(&self, x: u64, took: &Durations, all: Duration, cpu: Option<f64>) -> Point {
        let latency = took.summary();
        let count = latency.count.max(1) as f64;
        let spent = || Some((self.cpu_seconds()? - cpu?) * 1e6 / count);
        Point { x, requests_per_second: count / all.as_secs_f64(), cpu_us: spent(), latency }
    }

    /// A curve over timestamps that are sent: a timeframe is registered, read and consumed.
    async fn over_sent_rows(&self) -> Result<Curve, Failure> {
        let path = path(0, VERSIONS);
        let path = ObjectPath::new(&path)?;
        let column = ColumnRequest::new("c0", path);
        let (columns, names) = ([column], ["curve".to_owned()]);
        let next = std::cell::Cell::new(0);
        let mut points = Vec::new();
        for rows in decades(self.effort.largest) {
            let times: Vec<Option<i64>> = (0..rows as i64).map(Some).collect();
            let turn = || {
                let (client, times) = (&self.client, times.clone());
                let (columns, names) = (&columns, &names);
                let timeframe = next.replace(next.get() + 1);
                async move {
                    client.put_timeframe(timeframe, times, columns, names).await?;
                    let request = TableRequest::new().timeframe(timeframe).consumer("curve");
                    ask(client, request).await?;
                    client.consumed(timeframe, "curve").await?;
                    Ok(())
                }
            };
            turn().await.map_err(|error: ClientError| Failure::failed(error.message()))?;
            points.push(self.point(rows, turn).await?);
        }
        let about = "one column, the timestamps sent: registered, read, consumed";
        Ok(curve("rows sent", about, "rows", points))
    }

    /// A curve over concurrent clients, each with its own connection and session.
    async fn over_clients(&self) -> Result<Curve, Failure> {
        let request = columns(COLUMNS, VERSIONS).timestamps([1]);
        ask(&self.client, request.clone()).await?;
        let mut points = Vec::new();
        for count in [1, 2, 4, 8, 16, 32, 64_u64] {
            let connecting = (0..count).map(|_| Client::connect(&self.service.url));
            let clients = try_join_all(connecting).await?;
            let attached = clients.iter().map(|client| ask(client, request.clone()));
            try_join_all(attached).await?;
            let (cpu, began) = (self.cpu_seconds(), Instant::now());
            let until = began + self.effort.point.saturating_mul(2);
            let turns = clients.into_iter().map(|client| {
                let request = request.clone();
                tokio::spawn(async move {
                    let mut took = Vec::new();
                    while Instant::now() < until {
                        let asked = Instant::now();
                        ask(&client, request.clone()).await?;
                        took.push(asked.elapsed());
                    }
                    Ok::<_, ClientError>(took)
                })
            });
            let mut took = Durations::default();
            for turn in try_join_all(turns).await.map_err(Failure::failed)? {
                turn?.into_iter().for_each(|one| took.record(one));
            }
            points.push(self.pointed(count, &took, began.elapsed(), cpu));
        }
        let about = "one timestamp, 10 columns; each client asks again as soon as it is answered";
        Ok(curve("clients", about, "clients", points))
    }
}

fn curve(name: &str, about: &str, of: &str, points: Vec<Point>) -> Curve {
    Curve { name: name.to_owned(), about: about.to_owned(), of: of.to_owned(), points }
}
