//! Varnish, nginx and Squid from Debian, with the configurations of `deploy/`.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than a proxy takes to start and to stop on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Varnish,
    Nginx,
    /// With the configuration for an S3-compatible store.
    NginxS3,
    Squid,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Varnish => "varnishd",
            Self::Nginx | Self::NginxS3 => "nginx",
            Self::Squid => "squid",
        }
    }

    /// Path of the program, if it is installed.
    fn installed(self) -> Option<PathBuf> {
        let folders = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
        let found = folders.split(':').map(|folder| Path::new(folder).join(self.program()));
        found.into_iter().find(|path| path.exists())
    }

    /// Whether its stored bodies survive a restart.
    pub(crate) fn stores_on_disk(self) -> bool {
        self != Self::Varnish
    }
}

/// A running proxy; it ends when dropped.
pub(crate) struct Proxy {
    kind: Kind,
    program: PathBuf,
    folder: tempfile::TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    fs::read_to_string(path).unwrap()
}

/// Replaces every occurrence; panics if the configuration does not contain `old`.
fn replaced(text: String, old: &str, new: &str) -> String {
    assert!(text.contains(old), "the configuration has no {old:?}");
    text.replace(old, new)
}

impl Proxy {
    /// Starts it in front of `upstream` (`http://host:port`); `None`, with a message, if it is not
    /// installed.
    pub(crate) fn start(kind: Kind, upstream: &str) -> Option<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST, kind, upstream)
    }

    /// Like [`start`](Self::start), at another address of this machine.
    pub(crate) fn start_at(host: Ipv4Addr, kind: Kind, upstream: &str) -> Option<Self> {
        let Some(program) = kind.installed() else {
            println!("{} is not installed: not tested", kind.program());
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
        let mut proxy = Self { kind, program, folder, address, child: None };
        proxy.configure(upstream.trim_start_matches("http://"));
        proxy.run();
        Some(proxy)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The deployed file with the test's addresses, folders and sizes, and no other change.
    fn configure(&self, upstream: &str) {
        let (host, port) = upstream.split_once(':').unwrap();
        // Proxies started as root continue as another user.
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        match self.kind {
            Kind::Varnish => {
                let text = replaced(deployed("varnish/default.vcl"), "ccdb.example.org", host);
                let text = replaced(text, "\"8080\"", &format!("\"{port}\""));
                fs::write(self.path("default.vcl"), text).unwrap();
            }
            Kind::Nginx | Kind::NginxS3 => {
                let (name, port) = match self.kind {
                    Kind::NginxS3 => ("s3", 9000),
                    _ => ("ccdb", 8080),
                };
                let text = deployed(&format!("nginx/{name}.conf"));
                let text = replaced(text, &format!("{name}.example.org:{port}"), upstream);
                let listen = format!("listen {};", self.address);
                let text = replaced(text, &format!("listen {port};"), &listen);
                let store = format!("/var/cache/nginx/{name}");
                let text = replaced(text, &store, &self.path("store"));
                fs::write(self.path("site.conf"), text).unwrap();
                let user = if is_root() { "user root;\n" } else { "" };
                let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {};\n", self.path(name)))
                    .concat();
                let main = format!(
                    "{user}daemon off;\nworker_processes 1;\npid {};\nerror_log stderr;\n\
                     events {{ worker_connections 4096; }}\n\
                     http {{\naccess_log off;\n{temporary}include {};\n}}\n",
                    self.path("pid"),
                    self.path("site.conf"),
                );
                fs::write(self.path("nginx.conf"), main).unwrap();
            }
            Kind::Squid => {
                let text = deployed("squid/squid.conf");
                let peer = format!("cache_peer {host} parent {port} ");
                let text = replaced(text, "cache_peer ccdb.example.org parent 8080 ", &peer);
                let port = format!("http_port {} ", self.address);
                let text = replaced(text, "http_port 8080 ", &port);
                let text =
                    replaced(text, "/var/spool/squid 200000 ", &(self.path("store") + " 2000 "));
                let text = replaced(text, "cache_mem 4 GB", "cache_mem 512 MB");
                let text =
                    replaced(text, "shutdown_lifetime 2 seconds", "shutdown_lifetime 0 seconds");
                let more = format!(
                    "pid_filename {}\ncache_log {}\naccess_log none\ncoredump_dir {}\n\
                     pinger_enable off\nvisible_hostname squid.test\n",
                    self.path("pid"),
                    self.path("cache.log"),
                    self.path(""),
                );
                fs::write(self.path("squid.conf"), text + &more).unwrap();
                let made = self.command(&["-z", "-N", "-f", &self.path("squid.conf")]).output();
                let made = made.unwrap();
                assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            }
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&mut self) {
        let address = self.address.to_string();
        let log = fs::File::create(self.path("log")).unwrap();
        let arguments = match self.kind {
            Kind::Varnish => vec![
                "-F".to_owned(),
                "-j".to_owned(),
                "none".to_owned(),
                "-a".to_owned(),
                address,
                "-f".to_owned(),
                self.path("default.vcl"),
                "-n".to_owned(),
                self.path("work"),
                "-s".to_owned(),
                "malloc,1G".to_owned(),
            ],
            Kind::Nginx | Kind::NginxS3 => {
                vec!["-p".to_owned(), self.path(""), "-c".to_owned(), self.path("nginx.conf")]
            }
            Kind::Squid => vec!["-N".to_owned(), "-f".to_owned(), self.path("squid.conf")],
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let errors = log.try_clone().unwrap();
        let child = self.command(&arguments).stdout(log).stderr(errors).spawn().unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                panic!("{:?} did not start ({ended:?}): {}", self.kind, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        ["log", "cache.log"]
            .map(|name| fs::read_to_string(self.path(name)).unwrap_or_default())
            .concat()
    }

    /// Stops it with SIGTERM, and after a while by force.
    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Restarts it with its stored bodies on disk.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.run();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{:?}: {}", self.kind, self.log());
        }
        self.stop();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}
