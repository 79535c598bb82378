//! Makes the parts of a service from its configuration.

use std::sync::Arc;

use iovcache::budget::Budget;
use iovcache::cache::{ConsumerLimits, Inheritance};
use iovcache::server::{
    Config, ListenOptions, LogWriter, MissingConfig, PathConfig, RemapConfig, SegmentBacking,
    ServeOptions, SourceConfig, TimeSpan,
};
use iovcache::shm::{Backing, PoolOptions, Region, shmid_of_session, shmid_of_text};
use iovcache::source::{
    ChainSource, DiskSource, Link, PathPolicy, Policies, PolicySource, Remap, Source,
    SourceOptions, WhenMissing,
};
use iovcache::{Cache, CreationLimits};
use serde_json::{Value, json};

use super::access::AccessFiles;
use super::fairmq::Registrar;
use super::systemd::SystemdStore;
use crate::failure::Failure;

/// The cache, and the segments to register with FairMQ, if there are any.
pub(super) fn cache(
    config: &Config,
    inheritance: Inheritance,
    descriptor_store: Option<SystemdStore>,
) -> Result<(Cache, Option<Value>), Failure> {
    let policies = policies(config)?;
    let mut source = source(config)?;
    if let Some(folder) = &config.disk {
        source = Arc::new(DiskSource::open(folder, config.disk_size.bytes(), source)?);
    }
    if !config.paths.is_empty() {
        source = Arc::new(PolicySource::new(source, policies.clone()));
    }
    let memory = memory(config)?;
    let shmid = memory.backing.fairmq_shmid().map(str::to_owned);
    let mut builder = Cache::builder().inheritance(inheritance);
    if let Some(descriptor_store) = descriptor_store {
        builder = builder.descriptor_store(Arc::new(descriptor_store));
    }
    let cache = builder
        .source(source)
        .memory(memory)
        .creation_limits(CreationLimits {
            not_before: config.not_before,
            not_after: config.not_after,
        })
        .tables(config.columns())
        .max_key_values(config.limits.key_values)
        .max_queries(config.limits.queries)
        .run_information(config.runs())
        .policies(policies)
        .local_plane(!config.no_local)
        .max_timeframes(config.max_timeframes)
        .budget(Budget::new(config.limits.request_memory.bytes()))
        .consumer_limits(ConsumerLimits {
            quota_bytes: config.quota_bytes.map(|size| size.bytes()),
            quota_timeframes: config.quota_timeframes,
            quota_requests: config.quota_requests,
            slow_after: config.slow_after.map(TimeSpan::duration),
            slow_consumer: config.slow_consumer,
        })
        .build()?;
    let fairmq = shmid.map(|id| json!({"shmid": id, "segments": cache.segments().segments}));
    Ok((cache, fairmq))
}

pub(super) fn listen_options(config: &Config) -> ListenOptions {
    ListenOptions {
        flight: Some(config.listen),
        tls: config.tls.certificate.is_some(),
        http: Some(config.http()),
        ccdb: config.ccdb_server.listen,
        socket_mode: config.socket_mode.bits(),
        socket_folder: config.socket.clone(),
    }
}

pub(super) fn serve_options(config: &Config, log: LogWriter) -> Result<ServeOptions, Failure> {
    let files = AccessFiles(config);
    let (access, tls) = (files.access()?, files.tls()?);
    if !config.insecure {
        access.check_exposed(config.listen, tls.is_some())?;
        let ccdb = &config.ccdb_server;
        ccdb.listen.map_or(Ok(()), |at| access.check_exposed_ccdb(at, ccdb.writable))?;
    }
    Ok(ServeOptions {
        access,
        tls,
        limits: config.limits.clone(),
        ccdb_answer: config.ccdb_server.answer,
        log: Some(log),
        ccdb_writable: config.ccdb_server.writable,
        ..ServeOptions::default()
    })
}

/// The program that registers the segments with FairMQ, if one is configured.
pub(super) fn registrar(config: &Config) -> Option<Arc<Registrar>> {
    let program = config.fairmq_register.as_deref()?;
    Some(Arc::new(Registrar::new(program, &shmid(config)?)))
}

/// FairMQ's id of the session, if there is one.
fn shmid(config: &Config) -> Option<String> {
    let session = config.fairmq_session.as_deref().map(shmid_of_session);
    // The configuration's check has refused invalid ids.
    let given = || config.fairmq_shmid.as_deref().and_then(|text| shmid_of_text(text).ok());
    session.or_else(given)
}

fn memory(config: &Config) -> Result<PoolOptions, Failure> {
    let region = config.region.as_ref().map(|region| Region::open(&region.path, region.id));
    let region = region.transpose()?;
    let backing = match (shmid(config), config.fairmq_segment, config.backing) {
        (Some(shmid), Some(first_segment), _) => {
            Backing::FairMq { shmid, first_segment, creation: config.fairmq_create }
        }
        (_, _, SegmentBacking::Memfd) => Backing::Memfd,
        (_, _, SegmentBacking::Shm) => Backing::Folder(config.shm_folder.clone()),
    };
    Ok(PoolOptions {
        memory_bytes: config.memory.bytes(),
        segment_bytes: config.segment.bytes(),
        backing,
        region,
        first_generation: None,
    })
}

/// Checks that there is a source.
pub(super) fn check_sources(config: &Config) -> Result<(), Failure> {
    match config.sources.is_empty() {
        true => {
            Err(Failure::usage("no source: give --source file:///folder, or name one in --config"))
        }
        false => Ok(()),
    }
}

/// The sources in order, each limited to its paths; a single source needs no chain.
fn source(config: &Config) -> Result<Arc<dyn Source>, Failure> {
    let refresh = config.refresh.map(TimeSpan::duration);
    let options = SourceOptions { refresh, ccdb: config.ccdb.clone() };
    let open = |url: &str| iovcache::source::open(url, &options);
    let mut links = Vec::new();
    for SourceConfig { url, paths } in &config.sources {
        links.push(Link { source: open(url)?, prefixes: paths.clone() });
    }
    let mut remaps = Vec::new();
    for remap in &config.remaps {
        let RemapConfig { path, to, source } = remap.clone();
        let source = source.map(|url| open(&url)).transpose()?;
        let to = to.unwrap_or_else(|| path.clone());
        remaps.push(Remap { path, to, source });
    }
    check_sources(config)?;
    match &links[..] {
        [only] if only.prefixes.is_empty() && remaps.is_empty() => Ok(Arc::clone(&only.source)),
        _ => Ok(Arc::new(ChainSource::new(links, remaps))),
    }
}

/// The settings of single paths.
fn policies(config: &Config) -> Result<Policies, Failure> {
    let policy = |path: &PathConfig| {
        let policy = PathPolicy {
            prefix: path.path.clone(),
            missing: path.missing.map(|missing| match missing {
                MissingConfig::Required => WhenMissing::Required,
                MissingConfig::Optional => WhenMissing::Optional,
            }),
            default: None,
            timeout: path.timeout.map(TimeSpan::duration),
            refresh: path.refresh.map(TimeSpan::duration),
        };
        match &path.default {
            None => Ok(policy),
            Some(file) => policy
                .with_default_file(file)
                .map_err(|error| Failure::io(format!("the default of {}", path.path), error)),
        }
    };
    config.paths.iter().map(policy).collect()
}
