//! Checks beyond the text of a configuration: files, folders and ports.

use std::fmt;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use iovcache::server::{Config, ConfigError, ListenError, SegmentBacking, Settings, ValueOrigin};
use iovcache::shm::Region;
use rustix::fs::{FlockOperation, flock};

use super::access::AccessFiles;
use super::assemble;
use crate::common::show_bytes;
use crate::failure::Failure;
use crate::log::LogFilter;
use crate::settings::CommandLine;

/// The result of a check.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Key and reason of each fault that keeps a service from starting.
    pub(crate) faults: Vec<(String, Failure)>,
    /// Observations that may be intended.
    pub(crate) notes: Vec<String>,
}

impl Findings {
    fn fault(&mut self, key: impl Into<String>, reason: impl Into<Failure>) {
        self.faults.push((key.into(), reason.into()));
    }

    /// A fault with the exit status of an invalid argument.
    fn wrong(&mut self, key: impl Into<String>, reason: impl fmt::Display) {
        self.fault(key, Failure::usage(reason));
    }

    /// A fault of a file, with the exit status that the error stands for.
    fn file(&mut self, key: impl Into<String>, file: &Path, error: io::Error) {
        self.fault(key, Failure::io(file.display(), error));
    }
}

/// When a configuration is checked.
#[derive(Debug)]
pub(crate) enum Occasion {
    /// On request: a service may run with it, and sources may come from the command line.
    Check,
    /// At the start of the service, with the names of the sockets that are passed to it.
    Start(Vec<String>),
}

/// The settings with which the service starts.
///
/// # Errors
/// All faults together: of the text, and of the files, folders and ports that it names. A single one
/// has the exit status that it has anywhere.
pub(super) fn settings_to_start(
    given: &CommandLine,
    passed_sockets: Vec<String>,
) -> Result<Settings, Failure> {
    let mut checked = given.with_faults()?;
    let found = match checked.is_unreadable() {
        true => Findings::default(),
        false => check(&checked.settings, &Occasion::Start(passed_sockets)),
    };
    let mut faults = found.faults;
    if checked.faults.is_empty() && faults.len() <= 1 {
        let Some((key, failure)) = faults.pop() else { return Ok(checked.settings) };
        let fault = checked.settings.fault(checked.document.as_ref(), &key, String::new());
        return Err(match (given.file(), fault.line) {
            (Some(file), Some(line)) => {
                failure.at(format_args!("{}:{line}: {key}", crate::input::name(file)))
            }
            _ => failure,
        });
    }
    for (key, failure) in faults {
        // Sources with a fault of their own are no missing sources.
        if key != "source" || !checked.faults.iter().any(|fault| fault.key.starts_with("source")) {
            let document = checked.document.as_ref();
            let fault = checked.settings.fault(document, &key, failure.to_string());
            checked.faults.push(fault);
        }
    }
    let file = given.file().map(|file| PathBuf::from(crate::input::name(file)));
    Err(crate::settings::wrong(ConfigError { file, faults: checked.into_faults() }))
}

/// Checks everything that a configuration names on this node.
pub(crate) fn check(settings: &Settings, occasion: &Occasion) -> Findings {
    let config = &settings.config;
    let mut found = Findings::default();
    // The service starts with what there is, and says so in its log.
    if let Occasion::Check = occasion {
        let is_default = *settings.origin("segment") == ValueOrigin::Default;
        if !is_default && config.segment > config.memory {
            let (segment, memory) = (config.segment, config.memory);
            found.wrong(
                "segment",
                format_args!("a segment of {segment} is larger than memory, {memory}"),
            );
        }
        memory(config, &mut found);
    }
    if let Err(failure) = LogFilter::parse(&config.log) {
        found.fault("log", failure);
    }
    access(config, &mut found);
    sources(config, occasion, &mut found);
    folders(config, occasion, &mut found);
    ports(config, occasion, &mut found);
    found
}

/// More memory than the node has may be intended: segments are made when they are needed.
fn memory(config: &Config, found: &mut Findings) {
    let limits = [
        ("this node has", crate::common::node_memory_bytes()),
        ("the control group allows", iovcache::shm::memory_allowed()),
    ];
    for (what, limit_bytes) in limits {
        let Some(limit_bytes) = limit_bytes.filter(|limit| *limit < config.memory.bytes()) else {
            continue;
        };
        let limit = show_bytes(limit_bytes);
        found.notes.push(format!("memory: {} is more than {what}, {limit}", config.memory));
    }
}

fn access(config: &Config, found: &mut Findings) {
    let files = AccessFiles(config);
    let access = match files.access() {
        Ok(access) => Some(access),
        Err(failure) => {
            found.fault("tokens", failure);
            None
        }
    };
    if let Err(failure) = files.tls() {
        let key = if config.tls.client_ca.is_some() { "tls" } else { "tls.certificate" };
        found.fault(key, failure);
    }
    let Some(access) = access.filter(|_| !config.insecure) else { return };
    if let Err(exposed) = access.check_exposed(config.listen, config.tls.certificate.is_some()) {
        found.fault("listen", exposed);
    }
    if let Some(at) = config.ccdb_server.listen
        && let Err(exposed) = access.check_exposed_ccdb(at, config.ccdb_server.writable)
    {
        found.fault("ccdb_server.listen", exposed);
    }
}

fn sources(config: &Config, occasion: &Occasion, found: &mut Findings) {
    match occasion {
        Occasion::Check if config.sources.is_empty() => {
            let note = "no [[source]]: `serve` needs one on its command line (--source)";
            found.notes.push(note.to_owned());
        }
        Occasion::Check => {}
        Occasion::Start(_) => {
            if let Err(failure) = assemble::check_sources(config) {
                found.fault("source", failure);
            }
        }
    }
    let named = config.sources.iter().map(|source| Some(&source.url)).enumerate();
    let named = named.map(|(index, url)| (format!("source[{index}].url"), url));
    let remapped = config.remaps.iter().map(|remap| remap.source.as_ref()).enumerate();
    let remapped = remapped.map(|(index, url)| (format!("remap[{index}].source"), url));
    for (key, url) in named.chain(remapped) {
        let Some(folder) = url.and_then(|url| url.strip_prefix("file://")) else { continue };
        match std::fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => found.wrong(key, format_args!("{folder}: it is not a folder")),
            Err(error) => found.file(key, Path::new(folder), error),
        }
    }
}

fn folders(config: &Config, occasion: &Occasion, found: &mut Findings) {
    if let Some(disk) = &config.disk
        && let Err(error) = usable(disk)
    {
        found.file("disk", disk, error);
    }
    if let Some(socket) = &config.socket {
        socket_folder(socket, occasion, found);
    }
    // A name without a slash is looked up in PATH.
    let program = config.fairmq_register.as_ref();
    if let Some(program) = program.filter(|program| program.components().count() > 1)
        && let Err(error) = rustix::fs::access(program, rustix::fs::Access::EXEC_OK)
    {
        found.file("fairmq_register", program, error.into());
    }
    if let Some(region) = &config.region
        && let Err(error) = Region::check(&region.path)
    {
        found.fault("region", error);
    }
    let has_named = config.backing == SegmentBacking::Shm && config.fairmq_segment.is_none();
    if has_named && let Err(error) = usable(&config.shm_folder) {
        found.file("shm_folder", &config.shm_folder, error);
    }
}

fn socket_folder(folder: &Path, occasion: &Occasion, found: &mut Findings) {
    match usable(folder) {
        Err(error) => found.file("socket", folder, error),
        Ok(Some(mode)) if mode & 0o002 != 0 => {
            found.fault("socket", ListenError::Open { folder: folder.to_owned() });
        }
        Ok(_) => {}
    }
    let path = folder.join("flight.sock");
    let got = path.as_os_str().len();
    if got > 107 {
        found.fault("socket", ListenError::TooLong { path, got });
    }
    let Some(pid) = owner(folder) else { return };
    match occasion {
        Occasion::Start(_) => {
            found.fault("socket", ListenError::Taken { folder: folder.to_owned(), pid });
        }
        Occasion::Check => {
            let folder = folder.display();
            found.notes.push(format!("socket: process {pid} has {folder}; the service runs"));
        }
    }
}

/// The mode of a folder; `None` if it does not exist and can be made.
fn usable(folder: &Path) -> io::Result<Option<u32>> {
    match std::fs::metadata(folder) {
        Ok(metadata) if !metadata.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
        Ok(metadata) => {
            let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            rustix::fs::access(folder, access)?;
            Ok(Some(metadata.permissions().mode()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The folder can be made if the nearest existing parent permits it.
            let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
            let above = above.unwrap_or(Path::new("."));
            if usable(above)?.is_some() {
                try_to_make_a_folder(above)?;
            }
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Makes a folder in `above` and removes it: the rights alone do not tell it, as in `/proc`.
fn try_to_make_a_folder(above: &Path) -> io::Result<()> {
    let probe = above.join(format!(".iovcache-check-{}", std::process::id()));
    let made = std::fs::create_dir(&probe).and_then(|()| std::fs::remove_dir(&probe));
    made.map_err(|error| {
        io::Error::other(format!("no folder can be made in {}: {error}", above.display()))
    })
}

fn ports(config: &Config, occasion: &Occasion, found: &mut Findings) {
    let all = [
        ("listen", Some(config.listen)),
        ("http", Some(config.http())),
        ("ccdb_server.listen", config.ccdb_server.listen),
    ];
    let all: Vec<(&str, SocketAddr)> = all
        .into_iter()
        .filter_map(|(key, address)| Some((key, address.filter(|address| address.port() != 0)?)))
        .collect();
    let (runs, passed) = match occasion {
        Occasion::Check => (config.socket.as_deref().and_then(owner).is_some(), &[][..]),
        Occasion::Start(passed) => (false, &passed[..]),
    };
    for (index, (key, address)) in all.iter().enumerate() {
        let name = socket_name(key);
        if passed.iter().any(|passed| passed == name) {
            continue;
        }
        if let Some((other, _)) = all[..index].iter().find(|(_, earlier)| overlap(earlier, address))
        {
            found.wrong(*key, format_args!("{address} is the address of {other} too"));
            continue;
        }
        let Err(error) = TcpListener::bind(address) else { continue };
        match error.kind() {
            io::ErrorKind::AddrInUse if runs => {
                found.notes.push(format!("{key}: {address} is in use; the service runs"));
            }
            _ => found.fault(*key, ListenError::Tcp { address: *address, error }),
        }
    }
}

/// The name of a passed socket in place of this address.
fn socket_name(key: &str) -> &str {
    match key {
        "listen" => "flight",
        "ccdb_server.listen" => "ccdb",
        key => key,
    }
}

/// Whether two addresses cannot be listened on at the same time: one port, and one IP address or
/// all of them.
fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let same_ip =
        one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && same_ip
}

/// The process id of a running service that has its sockets in this folder.
fn owner(folder: &Path) -> Option<String> {
    let mut lock = std::fs::File::open(folder.join("lock")).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockShared).err()?;
    let mut pid = String::new();
    // A lock without a readable process id is taken all the same.
    let _ = lock.read_to_string(&mut pid);
    Some(pid.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_overlap_if_one_is_all_of_a_node() {
        let overlap = |one: &str, other: &str| {
            overlap(&one.parse::<SocketAddr>().unwrap(), &other.parse().unwrap())
        };
        assert!(overlap("127.0.0.1:5", "127.0.0.1:5") && overlap("0.0.0.0:5", "127.0.0.1:5"));
        assert!(overlap("127.0.0.1:5", "[::]:5"));
        assert!(!overlap("127.0.0.1:5", "127.0.0.2:5") && !overlap("0.0.0.0:5", "127.0.0.1:6"));
    }
}
