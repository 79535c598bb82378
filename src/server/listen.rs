//! The sockets of a service. They are bound before anything else starts, so that an address in use
//! is reported at once.
//!
//! ```text
//!  DIR/lock         held by the service that owns this folder
//!  DIR/flight.sock  Flight over a Unix socket
//!  DIR/attach.sock  the attach socket
//! ```
//!
//! A folder made here is accessible to the service's user and group (0750), and so are the sockets
//! (0660). A world-writable folder is refused: another user could put a socket there.
//!
//! Linux only: the lock is `flock`, which the kernel releases however the process ends. Files of a
//! dead service are therefore recognised and replaced.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock};
use tokio::net::{TcpListener, UnixListener};

use super::auth::{Access, UnprotectedListener};
use crate::error::coded;

/// The addresses of a service.
#[derive(Debug, Clone)]
pub struct ListenOptions {
    /// Flight over TCP; port 0 picks a free port.
    pub flight: Option<SocketAddr>,
    /// Whether Flight over TCP uses TLS; sets the scheme of its URL.
    pub tls: bool,
    /// The HTTP port: `/metrics`, `/healthz`, `/readyz`; port 0 picks a free port.
    pub http: Option<SocketAddr>,
    /// CCDB over HTTP for CCDB clients; port 0 picks a free port.
    pub ccdb: Option<SocketAddr>,
    /// The folder of `flight.sock` and `attach.sock`; `None`: a new folder.
    pub socket_folder: Option<PathBuf>,
    /// The mode of the sockets. The credentials of the peer are checked as well. Default: 0660.
    pub socket_mode: u32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            flight: None,
            tls: false,
            http: None,
            ccdb: None,
            socket_folder: None,
            socket_mode: 0o660,
        }
    }
}

/// The sockets, bound and listening.
#[derive(Debug)]
pub struct Listeners {
    pub(super) flight: Option<TcpListener>,
    tls: bool,
    pub(super) http: Option<TcpListener>,
    pub(super) ccdb: Option<TcpListener>,
    pub(super) flight_unix: UnixListener,
    pub(super) attach: UnixListener,
    pub(super) folder: SocketFolder,
}

/// The service cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// A TCP port cannot be bound.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// The folder belongs to another running service.
    #[error("{folder} belongs to another service (pid {pid}); use another folder for the sockets")]
    Taken {
        /// The folder.
        folder: PathBuf,
        /// The process id in the lock file.
        pid: String,
    },
    /// The folder is world-writable: another user could put a socket into it.
    #[error("{folder} can be written by every user; use a folder of the service's own")]
    Open {
        /// The folder.
        folder: PathBuf,
    },
    /// A file or socket cannot be made.
    #[error("cannot make {path}")]
    Path {
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// A socket that was passed to the service cannot be used.
    #[error("the socket {name:?} that was passed to the service cannot be used")]
    Given {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// The path of a Unix socket is longer than 107 bytes.
    #[error("{path} is too long for a Unix socket: {got} bytes, at most 107 are possible")]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        got: usize,
    },
}

coded! { ListenError {
    Tcp => FailedPrecondition 8010,
    Taken => AlreadyExists 8011,
    Path => FailedPrecondition 8012,
    TooLong => InvalidArgument 8013,
    Open => PermissionDenied 8014,
    Given => FailedPrecondition 8015,
} }

impl Listeners {
    /// Binds all sockets, or none.
    ///
    /// # Errors
    /// [`ListenError`], which names the address or the folder: it is in use, belongs to another
    /// service, or may be written by other users.
    pub async fn bind(options: &ListenOptions) -> Result<Self, ListenError> {
        Self::bind_with(options, Vec::new()).await
    }

    /// Binds all sockets, or none, except for those in `given`: named sockets that already listen,
    /// as systemd's socket activation passes them. A TCP socket is named `flight`, `http` or
    /// `ccdb`. A Unix socket is recognised by its file name, `flight.sock` or `attach.sock`, and
    /// its folder is that of the service. Given sockets are not removed at the end: their owner
    /// keeps them.
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn bind_with(
        options: &ListenOptions,
        given: Vec<(String, OwnedFd)>,
    ) -> Result<Self, ListenError> {
        let mut given = PassedSockets::sort(given)?;
        let wanted = given.folder.as_deref().or(options.socket_folder.as_deref());
        let mut folder = SocketFolder::take(wanted)?;
        let flight_unix = folder.socket_of(&mut given, FLIGHT_SOCKET, options.socket_mode)?;
        let attach = folder.socket_of(&mut given, ATTACH_SOCKET, options.socket_mode)?;
        let mut tcp_of = async |name, address| match given.tcp.remove(name) {
            Some(listener) => Ok(Some(listener)),
            None => tcp(address).await,
        };
        Ok(Self {
            flight: tcp_of("flight", options.flight).await?,
            tls: options.tls,
            http: tcp_of("http", options.http).await?,
            ccdb: tcp_of("ccdb", options.ccdb).await?,
            flight_unix,
            attach,
            folder,
        })
    }

    /// The URLs of Flight for clients, TCP first.
    pub fn flight_urls(&self) -> Vec<String> {
        let tcp = self.flight.iter().filter_map(|listener| listener.local_addr().ok());
        let unix = format!("grpc+unix://{}", self.folder.path.join("flight.sock").display());
        let scheme = if self.tls { "grpc+tls" } else { "grpc" };
        tcp.map(|address| format!("{scheme}://{address}")).chain([unix]).collect()
    }

    /// The addresses that need protection, those of given sockets included.
    pub fn exposure(&self) -> Exposure {
        let address = |listener: &Option<TcpListener>| listener.as_ref()?.local_addr().ok();
        Exposure::new(address(&self.flight), self.tls, address(&self.ccdb))
    }

    /// The path of the attach socket.
    pub fn attach_path(&self) -> PathBuf {
        self.folder.path.join("attach.sock")
    }

    /// The address of `/metrics`.
    pub fn http_url(&self) -> Option<String> {
        url_of(&self.http)
    }

    /// The address of the CCDB side.
    pub fn ccdb_url(&self) -> Option<String> {
        url_of(&self.ccdb)
    }
}

/// The addresses of a running service that need protection if other nodes can reach them.
#[derive(Debug, Clone)]
pub struct Exposure {
    flight: Option<SocketAddr>,
    tls: bool,
    ccdb: Option<SocketAddr>,
}

impl Exposure {
    /// The addresses of Flight and of the CCDB side over TCP, and whether Flight uses TLS.
    pub fn new(flight: Option<SocketAddr>, tls: bool, ccdb: Option<SocketAddr>) -> Self {
        Self { flight, tls, ccdb }
    }

    /// Checks whether `access` protects the addresses: beyond loopback Flight needs TLS and keys,
    /// and the CCDB side is allowed only without keys, and only if it does not take changes.
    ///
    /// # Errors
    /// [`UnprotectedListener`].
    pub fn check(&self, access: &Access, ccdb_writable: bool) -> Result<(), UnprotectedListener> {
        self.flight.map_or(Ok(()), |at| access.check_exposed(at, self.tls))?;
        self.ccdb.map_or(Ok(()), |at| access.check_exposed_ccdb(at, ccdb_writable))
    }
}

fn url_of(listener: &Option<TcpListener>) -> Option<String> {
    let address = listener.as_ref()?.local_addr().ok()?;
    Some(format!("http://{address}"))
}

async fn tcp(address: Option<SocketAddr>) -> Result<Option<TcpListener>, ListenError> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|error| ListenError::Tcp { address, error })
}

const LOCK: &str = "lock";
const FLIGHT_SOCKET: &str = "flight.sock";
const ATTACH_SOCKET: &str = "attach.sock";

/// Sockets passed to the service that already listen.
#[derive(Debug, Default)]
struct PassedSockets {
    tcp: HashMap<String, TcpListener>,
    unix: HashMap<String, UnixListener>,
    /// The folder of the Unix sockets.
    folder: Option<PathBuf>,
}

impl PassedSockets {
    fn sort(given: Vec<(String, OwnedFd)>) -> Result<Self, ListenError> {
        let mut sorted = Self::default();
        for (name, file) in given {
            let failed = |error| ListenError::Given { name: name.clone(), error };
            let address = rustix::net::getsockname(&file).map_err(io::Error::from);
            let Ok(address) = address else {
                tracing::warn!(name, "a descriptor that was passed to the service is not used");
                continue;
            };
            if address.address_family() != rustix::net::AddressFamily::UNIX {
                let listener = std::net::TcpListener::from(file);
                listener.set_nonblocking(true).map_err(failed)?;
                let listener = TcpListener::from_std(listener).map_err(failed)?;
                sorted.tcp.insert(name, listener);
                continue;
            }
            let listener = std::os::unix::net::UnixListener::from(file);
            listener.set_nonblocking(true).map_err(failed)?;
            let listener = UnixListener::from_std(listener).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            let path = address.as_pathname().unwrap_or(Path::new(""));
            let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let FLIGHT_SOCKET | ATTACH_SOCKET = file_name {
                sorted.folder = path.parent().map(Path::to_owned);
                sorted.unix.insert(file_name.to_owned(), listener);
            } else {
                tracing::warn!(name, path = %path.display(), "this socket is not used");
            }
        }
        Ok(sorted)
    }
}

/// The folder of the sockets, owned by this service as long as this value lives.
///
/// At the end only files of this service are removed. The folder is the one that was opened, even
/// if its path has another one by then. A socket is identified by device and inode.
#[derive(Debug)]
pub(super) struct SocketFolder {
    path: PathBuf,
    folder: OwnedFd,
    /// The files in it that this service made.
    made: Vec<(&'static str, FileIdentity)>,
    /// Made by this service: removed at the end.
    own: bool,
    _lock: File,
}

/// The identity of a file, independent of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    fn of(folder: &OwnedFd, name: &str) -> io::Result<Self> {
        let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self { device: found.st_dev, inode: found.st_ino })
    }
}

impl SocketFolder {
    fn take(wanted: Option<&Path>) -> Result<Self, ListenError> {
        let (path, own) = match wanted {
            Some(path) => (std::path::absolute(path).unwrap_or_else(|_| path.into()), false),
            None => (own_folder(), true),
        };
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| ListenError::Path { path, error }
        };
        make_folder(&path).map_err(failed(&path))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty());
        let folder = folder.map_err(io::Error::from).map_err(failed(&path))?;
        let mode = rustix::fs::fstat(&folder).map_err(io::Error::from).map_err(failed(&path))?;
        if mode.st_mode & 0o002 != 0 {
            return Err(ListenError::Open { folder: path });
        }
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            return Err(ListenError::Taken { folder: path, pid: pid.trim().to_owned() });
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed(&lock_path))?;
        let mut made = Vec::new();
        if own {
            made.push((LOCK, FileIdentity::of(&folder, LOCK).map_err(failed(&lock_path))?));
        }
        Ok(Self { path, folder, made, own, _lock: lock })
    }

    /// The given socket, or a new one.
    fn socket_of(
        &mut self,
        given: &mut PassedSockets,
        name: &'static str,
        mode: u32,
    ) -> Result<UnixListener, ListenError> {
        if let Some(listener) = given.unix.remove(name) {
            return Ok(listener);
        }
        self.socket(name, mode)
    }

    fn socket(&mut self, name: &'static str, mode: u32) -> Result<UnixListener, ListenError> {
        let path = self.path.join(name);
        let got = path.as_os_str().len();
        if got > 107 {
            return Err(ListenError::TooLong { path, got });
        }
        let made = (|| {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            self.made.push((name, FileIdentity::of(&self.folder, name)?));
            Ok(listener)
        })();
        made.map_err(|error| ListenError::Path { path, error })
    }
}

/// Makes the folder if it is missing, for the user and its group, independent of the umask.
fn make_folder(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o750)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A folder for this process alone: under `$XDG_RUNTIME_DIR`, else under `/tmp`.
fn own_folder() -> PathBuf {
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let base = base.filter(|base| base.is_dir()).unwrap_or_else(|| PathBuf::from("/tmp"));
    let name = uuid::Uuid::new_v4().simple().to_string();
    base.join(format!("iovcache-{}-{}", std::process::id(), &name[..12]))
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        for (name, identity) in &self.made {
            if FileIdentity::of(&self.folder, name).is_ok_and(|found| found == *identity) {
                let _ = rustix::fs::unlinkat(&self.folder, *name, AtFlags::empty());
            }
        }
        if self.own {
            // Fails if the folder is not empty, which also protects a folder in use by others.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Coded as _, ErrorKind};

    #[tokio::test]
    async fn a_folder_belongs_to_one_service_and_what_a_dead_one_left_is_replaced() {
        let base = tempfile::tempdir().unwrap();
        let options = ListenOptions {
            socket_folder: Some(base.path().join("sockets")),
            ..ListenOptions::default()
        };
        let first = Listeners::bind(&options).await.unwrap();
        let error = Listeners::bind(&options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        // A leftover socket, as after SIGKILL.
        fs::write(base.path().join("sockets/flight.sock"), "").unwrap();
        let second = Listeners::bind(&options).await.unwrap();
        assert!(second.attach_path().exists());
        let mode = fs::metadata(second.attach_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
    }

    #[tokio::test]
    async fn files_of_a_successor_in_a_folder_made_anew_stay_when_the_first_ends() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("sockets");
        let options =
            ListenOptions { socket_folder: Some(folder.clone()), ..ListenOptions::default() };
        let names = || {
            let entries = fs::read_dir(&folder).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        // The folder was removed, or only its contents.
        for whole in [true, false] {
            let first = Listeners::bind(&options).await.unwrap();
            match whole {
                true => fs::remove_dir_all(&folder).unwrap(),
                false => names().iter().for_each(|name| {
                    fs::remove_file(folder.join(name)).unwrap();
                }),
            }
            let second = Listeners::bind(&options).await.unwrap();
            drop(first);
            assert_eq!(names(), ["attach.sock", "flight.sock", "lock"], "{whole}");
            drop(second);
            assert_eq!(names(), ["lock"]);
        }
    }

    #[test]
    fn a_ccdb_side_that_takes_changes_is_refused_beyond_loopback_however_its_socket_came() {
        let check = |address: &str, is_writable: bool| {
            let exposure = Exposure::new(None, false, address.parse().ok());
            exposure.check(&Access::default(), is_writable)
        };
        assert_eq!(check("127.0.0.1:8084", true), Ok(()));
        assert_eq!(check("192.0.2.1:8084", false), Ok(()));
        let refused = check("192.0.2.1:8084", true).unwrap_err();
        assert!(refused.to_string().contains("--ccdb-writable"), "{refused}");
    }

    #[tokio::test]
    async fn a_folder_of_its_own_goes_with_the_service() {
        let listeners = Listeners::bind(&ListenOptions::default()).await.unwrap();
        let folder = listeners.folder.path.clone();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o750);
        drop(listeners);
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn a_folder_that_every_user_can_write_is_refused() {
        let base = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o1777] {
            fs::set_permissions(base.path(), fs::Permissions::from_mode(mode)).unwrap();
            let socket_folder = Some(base.path().to_owned());
            let options = ListenOptions { socket_folder, ..ListenOptions::default() };
            let error = Listeners::bind(&options).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let options = ListenOptions { flight: Some(address), ..ListenOptions::default() };
        let error = Listeners::bind(&options).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
