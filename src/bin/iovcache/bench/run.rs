//! A complete run.

use std::fs;
use std::path::Path;
use std::time::Instant;

use iovcache::ObjectPath;
use iovcache::client::{Client, ClientOptions};
use iovcache::server::ByteSize;
use iovcache::table::ColumnRequest;

use super::consumer::{Setup, now_us};
use super::consumers::Consumers;
use super::content::fill;
use super::curves::{self, Effort};
use super::gateway::Gateway;
use super::load::{LoadRun, PhasePlan};
use super::options::{Arguments, Role};
use super::process::{Folder, Service};
use super::profile::Profile;
use super::random::Random;
use super::result::{BenchResult, FORMAT, Machine, Options, Phase, ProfileResult};
use super::text::write_file;
use super::{compare, consumer, report, synthetic, text};
use crate::common::out;
use crate::failure::Failure;

/// Divisor of the number of consumers with `--quick`.
const QUICK_CONSUMERS: usize = 4;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.role {
        Some(Role::Consumer) => return consumer::run(&arguments.access).await,
        Some(Role::Service) => {
            return synthetic::run(arguments.memory.map(ByteSize::bytes)).await;
        }
        None => {}
    }
    if let [before, after] = &arguments.compare[..] {
        let (before, after) = (BenchResult::read(before)?, BenchResult::read(after)?);
        return compare::run(&arguments, &before, &after);
    }
    if let Some(folder) = &arguments.prepare {
        return prepare(&arguments, folder);
    }
    for file in [&arguments.output, &arguments.html].into_iter().flatten() {
        text::check_writable(file)?;
    }
    let result = measure(&arguments).await?;
    // A file that cannot be written must not discard the measurements.
    let json = serde_json::to_string(&result).map_err(Failure::failed)?;
    match arguments.json {
        true => out(format!("{json}\n").as_bytes())?,
        false => out(text::show(&result).as_bytes())?,
    }
    if let Some(file) = &arguments.output {
        write_file(file, &json)?;
    }
    if let Some(file) = &arguments.html {
        text::write_file(file, &report::page(&result, None))?;
    }
    match &result.faults()[..] {
        [] => Ok(()),
        faults => Err(Failure::failed(faults.join("; "))),
    }
}

/// Writes the objects of the profiles into a repository.
fn prepare(arguments: &Arguments, folder: &Path) -> Result<(), Failure> {
    for part in arguments.parts() {
        if let Some(mut profile) = Profile::of(part, arguments.memory_bytes()?) {
            fill(folder, &mut profile)?;
        }
    }
    let serve = format!(
        "iovcache serve --source file://{} --memory {}\n",
        fs::canonicalize(folder).map_err(|error| Failure::io(folder.display(), error))?.display(),
        arguments.memory_bytes()?
    );
    out(serve.as_bytes())
}

async fn measure(arguments: &Arguments) -> Result<BenchResult, Failure> {
    let (began, began_ms) = (Instant::now(), now_us() / 1_000);
    let (mut profiles, mut measured) = (Vec::new(), Vec::new());
    for part in arguments.parts() {
        match (Profile::of(part, arguments.memory_bytes()?), &arguments.server) {
            (Some(profile), _) => profiles.push(of_profile(arguments, profile).await?),
            (None, None) => measured = curves::measure(effort(arguments)).await?,
            (None, Some(_)) => {
                eprintln!("curves: they need a service of their own, and are left out");
            }
        }
    }
    Ok(BenchResult {
        iovcache_bench: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        began_ms,
        took_seconds: began.elapsed().as_secs_f64(),
        machine: Machine::this(),
        options: Options {
            duration_seconds: arguments.duration().as_secs_f64(),
            memory_bytes: arguments.memory_bytes()?,
            quick: arguments.quick,
            server: arguments.server.clone(),
        },
        profiles,
        curves: measured,
    })
}

/// The effort of the curves: some 40 points together take as long as a profile.
fn effort(arguments: &Arguments) -> Effort {
    let largest = if arguments.quick { 10_000 } else { 1_000_000 };
    Effort { point: arguments.duration() / 40, largest }
}

/// The number of consumers, as the options want it.
fn consumers(arguments: &Arguments, profile: &Profile) -> usize {
    match arguments.consumers {
        Some(wanted) => usize::from(wanted),
        None if arguments.quick => profile.consumers.div_ceil(QUICK_CONSUMERS),
        None => profile.consumers,
    }
}

async fn of_profile(arguments: &Arguments, mut profile: Profile) -> Result<ProfileResult, Failure> {
    profile.consumers = consumers(arguments, &profile);
    eprintln!("{}: {}", profile.name, profile.about);
    let folder = Folder::new()?;
    let repository = folder.path().join("repository");
    let mut made = profile.clone();
    let filled = tokio::task::spawn_blocking(move || fill(&repository, &mut made).map(|()| made));
    let profile = filled.await.map_err(Failure::failed)??;

    let stage = Stage::set(arguments, &profile, folder).await?;
    let phases = phases(arguments, &profile, &stage).await?;
    let left = stage.client.status().await?;
    // A service that this run did not start may hold timeframes and pins of other clients.
    let ours = arguments.server.is_none();
    Ok(ProfileResult {
        name: profile.name.clone(),
        about: profile.about.clone(),
        rows: profile.rows,
        columns: profile.paths.len(),
        consumers: profile.consumers,
        in_flight: profile.in_flight,
        versions: profile.versions(),
        object_bytes: profile.object_bytes(),
        memory_bytes: left.memory.total_bytes,
        phases,
        source_faults: stage.gateway.as_ref().map(Gateway::counts).unwrap_or_default(),
        left_pinned_bytes: if ours { left.memory.pinned_bytes } else { 0 },
        left_in_flight: if ours { left.timeframes.len() as u64 } else { 0 },
    })
}

/// Runs a cold phase, then a warm one at each rate.
async fn phases(
    arguments: &Arguments,
    profile: &Profile,
    stage: &Stage,
) -> Result<Vec<Phase>, Failure> {
    let mut load = LoadRun {
        client: stage.client.clone(),
        columns: columns(profile)?,
        consumers: Consumers::start(
            profile.consumers,
            Setup {
                flight: stage.service.url.clone(),
                name: String::new(),
                profile: profile.clone(),
            },
            &arguments.access,
        )
        .await?,
        profile,
        pid: stage.service.pid,
        // Another run may have left timeframes at a service that this run did not start.
        next: now_us(),
        random: Random::new(arguments.seed),
    };
    let rates = if arguments.rate.is_empty() { vec![profile.rate] } else { arguments.rate.clone() };
    let every = usize::try_from(profile.cold_every).unwrap_or(usize::MAX);
    // The last timeframe has objects that only it needs.
    let (last, mut cold) = (profile.timeframes - 1, Vec::new());
    cold.extend((0..last).step_by(every).chain([last]));
    let plan = PhasePlan { name: "cold", rate: profile.rate.min(rates[0]), numbers: cold };
    let mut phases = vec![load.run(plan).await?];
    for rate in rates {
        let count = (arguments.duration().as_secs_f64() * rate).ceil().max(1.0) as u64;
        phases
            .push(load.run(PhasePlan { name: "warm", rate, numbers: (0..count).collect() }).await?);
    }
    Ok(phases)
}

fn columns(profile: &Profile) -> Result<Vec<ColumnRequest>, Failure> {
    let column = |path: &super::profile::PathPlan| {
        let (name, path) = (path.column.clone(), ObjectPath::new(&path.path)?);
        Ok(ColumnRequest::new(name, path))
    };
    profile.paths.iter().map(column).collect()
}

/// The measured service and the resources it needs. Fields are dropped in their order.
struct Stage {
    client: Client,
    service: Service,
    gateway: Option<Gateway>,
    /// The CCDB behind a failing source.
    _ccdb: Option<Service>,
    _folder: Folder,
}

impl Stage {
    async fn set(
        arguments: &Arguments,
        profile: &Profile,
        folder: Folder,
    ) -> Result<Self, Failure> {
        let options =
            ClientOptions { consumer: Some("bench".to_owned()), ..ClientOptions::default() };
        let repository = format!("file://{}", folder.path().join("repository").display());
        if let Some(url) = &arguments.server {
            let client = arguments.access.connect(url, options).await?;
            check_paths(&client, profile, arguments).await?;
            let status = client.status().await?;
            // A Unix socket means that the process is on this node.
            let pid = url.contains("unix://").then_some(status.pid);
            let service = Service::running(url, pid);
            return Ok(Self { client, service, gateway: None, _ccdb: None, _folder: folder });
        }
        let (mut source, mut gateway, mut ccdb) = (repository.clone(), None, None);
        if profile.hostile {
            let behind = serve(&folder.path().join("ccdb"), &repository, 64 << 20, true)?;
            let url = behind
                .ccdb
                .clone()
                .ok_or_else(|| Failure::failed("the service has no CCDB address"))?;
            let failing = Gateway::open(&url, arguments.seed).await?;
            source = failing.url().to_owned();
            (gateway, ccdb) = (Some(failing), Some(behind));
        }
        let sockets = folder.path().join("service");
        let service = serve(&sockets, &source, profile.memory_bytes, false)?;
        let client = Client::connect_with(&service.url, options).await?;
        Ok(Self { client, service, gateway, _ccdb: ccdb, _folder: folder })
    }
}

fn serve(sockets: &Path, source: &str, memory: u64, ccdb: bool) -> Result<Service, Failure> {
    let segment = (memory / 2).min(512 << 20);
    Service::start(|command| {
        command.args(["--log", "error", "serve", "--listen", "127.0.0.1:0"]);
        command.args(["--source", source, "--memory", &memory.to_string()]);
        command.args(["--segment", &segment.to_string()]);
        command.arg("--socket").arg(sockets);
        if ccdb {
            command.args(["--ccdb", "127.0.0.1:0"]);
        }
    })
}

/// Checks that a service that this run did not start has the objects.
async fn check_paths(
    client: &Client,
    profile: &Profile,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let known = client.paths("Bench").await?;
    for path in &profile.paths {
        let found = known.iter().find(|entry| entry.path == path.path);
        let found = found.map_or(0, |entry| entry.objects);
        if found != path.versions.len() as u64 {
            return Err(Failure::not_found(format!(
                "the service has {found} versions of {}, expected {}: let it serve what `iovcache \
                 bench --prepare FOLDER --memory {}` writes",
                path.path,
                path.versions.len(),
                arguments.memory_bytes()?
            )));
        }
    }
    Ok(())
}
