//! The options of `serve` that say where objects lie: in how much memory, of what, under which names.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use iovcache::server::Config;
use iovcache::shm::{Backing, PoolOptions, Region};
use sha2::{Digest as _, Sha256};

use crate::common::{Failure, parse_bytes};

#[derive(Debug, Args)]
pub(crate) struct MemoryArguments {
    /// Shared memory in all.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Shared memory of one segment.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    segment: Option<u64>,
    /// What segments are made of: memfd (sealed), or shm (files with names).
    #[arg(long, value_enum, default_value_t = BackingKind::Memfd)]
    backing: BackingKind,
    /// The folder of segments with names.
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm/iovcache")]
    shm_folder: PathBuf,
    /// Name them as managed segments of this FairMQ session, which can then be read by its devices:
    /// /dev/shm/fmq_<ID>_m_<N>. All of them are made at the start; they are to be registered with
    /// FairMQ before its devices start (examples/fairmq). Nobody must allocate in them, or send
    /// their headers over a channel: the receiver would free what is not FairMQ's.
    #[arg(long, value_name = "ID", requires = "fairmq_segment", conflicts_with = "region")]
    fairmq_shmid: Option<String>,
    /// The same, the session by its name (FairMQ's --session). Its ID is the first 8 hexadecimal
    /// digits of SHA-256 of effective user id and name; the line that says ready has it.
    #[arg(long, value_name = "NAME", requires = "fairmq_segment")]
    #[arg(conflicts_with_all = ["region", "fairmq_shmid"])]
    fairmq_session: Option<String>,
    /// The number of the first of them; those below are FairMQ's own, whose devices have theirs by
    /// --shm-segment-id.
    #[arg(long, value_name = "N")]
    fairmq_segment: Option<u16>,
    /// Place all objects into an unmanaged region that somebody else has made, by its id and file,
    /// e.g. 7=/dev/shm/fmq_<shmid>_rg_7. What it held is lost.
    #[arg(long, value_name = "ID=PATH", value_parser = region)]
    region: Option<(u16, PathBuf)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackingKind {
    Memfd,
    Shm,
}

fn region(text: &str) -> Result<(u16, PathBuf), String> {
    let (id, path) = text.split_once('=').ok_or("expected ID=PATH")?;
    let id = id.parse().map_err(|_| format!("{id:?} is no id: 0 to {}", u16::MAX))?;
    if path.is_empty() { Err("expected ID=PATH".to_owned()) } else { Ok((id, path.into())) }
}

/// FairMQ's id of a session of ours.
fn shmid(session: &str) -> String {
    let user = rustix::process::geteuid().as_raw();
    let hash = Sha256::digest(format!("{user}{session}"));
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// A number of bytes: as it was given, else as it is configured.
pub(crate) fn size(
    given: Option<u64>,
    configured: Option<&String>,
    default: u64,
) -> Result<u64, Failure> {
    match (given, configured) {
        (Some(bytes), _) => Ok(bytes),
        (None, Some(text)) => parse_bytes(text).map_err(Failure::usage),
        (None, None) => Ok(default),
    }
}

impl MemoryArguments {
    /// What the cache is to be made with.
    pub(crate) fn options(&self, config: &Config) -> Result<PoolOptions, Failure> {
        let defaults = PoolOptions::default();
        let session = self.fairmq_session.as_ref().map(|session| shmid(session));
        let backing = match (session.or_else(|| self.fairmq_shmid.clone()), self.fairmq_segment) {
            (Some(shmid), Some(first_segment)) => Backing::FairMq { shmid, first_segment },
            (None, Some(_)) => {
                let needed = "--fairmq-segment needs --fairmq-shmid or --fairmq-session";
                return Err(Failure::usage(needed));
            }
            (_, None) if self.backing == BackingKind::Memfd => Backing::Memfd,
            (_, None) => Backing::Folder(self.shm_folder.clone()),
        };
        let region = self.region.as_ref().map(|(id, path)| Region::open(path, *id)).transpose()?;
        Ok(PoolOptions {
            memory_bytes: size(self.memory, config.memory.as_ref(), defaults.memory_bytes)?,
            segment_bytes: size(self.segment, config.segment.as_ref(), defaults.segment_bytes)?,
            backing,
            region,
            first_generation: None,
        })
    }
}
