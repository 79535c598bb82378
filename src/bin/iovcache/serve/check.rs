//! Checks beyond the text of a configuration: files, folders and ports.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use iovcache::server::{Config, Settings, ValueOrigin};
use rustix::fs::{FlockOperation, flock};

use super::access::AccessFiles;
use crate::common::show_bytes;

/// The result of a check.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Key and reason of each fault that keeps a service from starting.
    pub(crate) faults: Vec<(String, String)>,
    /// Observations that may be intended.
    pub(crate) notes: Vec<String>,
}

impl Findings {
    fn fault(&mut self, key: impl Into<String>, reason: impl ToString) {
        self.faults.push((key.into(), reason.to_string()));
    }
}

/// Checks everything that a configuration names on this node.
pub(crate) fn check(settings: &Settings) -> Findings {
    let config = &settings.config;
    let mut found = Findings::default();
    let is_default = *settings.origin("segment") == ValueOrigin::Default;
    if !is_default && config.segment > config.memory {
        let (segment, memory) = (config.segment, config.memory);
        found.fault("segment", format!("a segment of {segment} is larger than memory, {memory}"));
    }
    memory(config, &mut found);
    access(config, &mut found);
    sources(config, &mut found);
    folders(config, &mut found);
    ports(config, &mut found);
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

fn sources(config: &Config, found: &mut Findings) {
    if config.sources.is_empty() {
        let note = "no [[source]]: `serve` needs one on its command line (--source)";
        found.notes.push(note.to_owned());
    }
    let named = config.sources.iter().map(|source| Some(&source.url)).enumerate();
    let named = named.map(|(index, url)| (format!("source[{index}].url"), url));
    let remapped = config.remaps.iter().map(|remap| remap.source.as_ref()).enumerate();
    let remapped = remapped.map(|(index, url)| (format!("remap[{index}].source"), url));
    for (key, url) in named.chain(remapped) {
        let Some(folder) = url.and_then(|url| url.strip_prefix("file://")) else { continue };
        let reason = match std::fs::metadata(folder) {
            Ok(metadata) if metadata.is_dir() => continue,
            Ok(_) => "it is not a folder".to_owned(),
            Err(error) => error.to_string(),
        };
        found.fault(key, format!("{folder}: {reason}"));
    }
}

fn folders(config: &Config, found: &mut Findings) {
    if let Some(disk) = &config.disk
        && let Err(error) = usable(disk)
    {
        found.fault("disk", format!("{}: {error}", disk.display()));
    }
    if let Some(socket) = &config.socket {
        match usable(socket) {
            Err(error) => found.fault("socket", format!("{}: {error}", socket.display())),
            Ok(Some(mode)) if mode & 0o002 != 0 => {
                let reason = "every user can write it; use a folder of the service's own";
                found.fault("socket", format!("{}: {reason}", socket.display()));
            }
            Ok(_) => {}
        }
        let longest = socket.join("flight.sock").as_os_str().len();
        if longest > 107 {
            let reason =
                format!("its sockets' paths have {longest} bytes, at most 107 are possible");
            found.fault("socket", format!("{}: {reason}", socket.display()));
        }
    }
    // A name without a slash is looked up in PATH.
    let program = config.fairmq_register.as_ref();
    if let Some(program) = program.filter(|program| program.components().count() > 1)
        && let Err(error) = rustix::fs::access(program, rustix::fs::Access::EXEC_OK)
    {
        found.fault("fairmq_register", format!("{}: {error}", program.display()));
    }
    if let Some(region) = &config.region
        && let Err(error) = std::fs::metadata(&region.path)
    {
        found.fault("region", format!("{}: {error}", region.path.display()));
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
            match folder.parent().filter(|above| !above.as_os_str().is_empty()) {
                Some(above) => usable(above).map(|_| None),
                None => Ok(None),
            }
        }
        Err(error) => Err(error),
    }
}

fn ports(config: &Config, found: &mut Findings) {
    let all = [
        ("listen", Some(config.listen)),
        ("http", Some(config.http())),
        ("ccdb_server.listen", config.ccdb_server.listen),
    ];
    let all: Vec<(&str, SocketAddr)> = all
        .into_iter()
        .filter_map(|(key, address)| Some((key, address.filter(|address| address.port() != 0)?)))
        .collect();
    let runs = config.socket.as_deref().is_some_and(is_served);
    for (index, (key, address)) in all.iter().enumerate() {
        if let Some((other, _)) = all[..index].iter().find(|(_, earlier)| earlier == address) {
            found.fault(*key, format!("{address} is the address of {other} too"));
            continue;
        }
        let Err(error) = TcpListener::bind(address) else { continue };
        match error.kind() {
            io::ErrorKind::AddrInUse if runs => {
                found.notes.push(format!("{key}: {address} is in use; the service runs"));
            }
            _ => found.fault(*key, format!("cannot listen on {address}: {error}")),
        }
    }
}

/// Whether a running service has its sockets in this folder.
fn is_served(folder: &Path) -> bool {
    let lock = std::fs::File::open(folder.join("lock"));
    lock.is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared).is_err())
}
