//! The files in `deploy/` fit the program: units, configurations, the dashboard's queries.
#![cfg(feature = "cli")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::{PATIENCE, Service, http_get, iovcache, run_well};
use iovcache::server::Config;
use serde_json::Value;

fn deployed(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap()
}

/// Every metric that a service exposes.
fn metrics() -> BTreeSet<String> {
    let repository = tempfile::tempdir().unwrap();
    let service = Service::over(repository.path(), &[]);
    let text = http_get(&service.http(), "/metrics").1;
    let named = |line: &str| !line.starts_with('#') && line.starts_with("iovcache_");
    text.lines()
        .filter(|line| named(line))
        .map(|line| line.split([' ', '{']).next().unwrap().to_owned())
        .collect()
}

/// Every metric named in a query.
fn named_in(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("iovcache_"))
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&deployed("grafana/iovcache.json")).unwrap();
    let known = metrics();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut asked = BTreeSet::new();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap();
            let mut names = named_in(query).peekable();
            assert!(names.peek().is_some(), "{query} names no metric");
            for name in names {
                assert!(known.contains(name), "{query}: there is no {name} in {known:#?}");
                asked.insert(name.to_owned());
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["query"]["query"].as_str().unwrap_or_default();
        for name in named_in(query) {
            assert!(known.contains(name), "{query}");
        }
    }
    assert!(asked.len() > 20, "{asked:?}");
    let ids: BTreeSet<i64> = panels.iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn the_unit_starts_the_program_as_it_can_be_started() {
    let unit = deployed("systemd/iovcache.service");
    let value = |key: &str| {
        unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
    };
    let (command, help) = (value("ExecStart"), run_well(&["serve", "--help"]));
    let mut words = command.split(' ');
    assert!(words.next().unwrap().ends_with("/iovcache"));
    assert_eq!(words.next(), Some("serve"));
    for option in words.filter(|word| word.starts_with("--")) {
        assert!(help.contains(option), "{option}");
    }
    assert_eq!(value("Type"), "notify");
    assert!(!value("WatchdogSec").is_empty());
    assert!(value("FileDescriptorStoreMax").parse::<u32>().unwrap() > 100);
    let socket = deployed("systemd/iovcache.socket");
    let listened: Vec<&str> =
        socket.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    let folder = command.split(" --socket ").nth(1).unwrap().split(' ').next().unwrap();
    let sockets = ["flight.sock", "attach.sock"].map(|name| format!("{folder}/{name}"));
    assert_eq!(listened, sockets);
    // The sandbox must permit Unix sockets, which the service needs.
    assert!(value("RestrictAddressFamilies").contains("AF_UNIX"));
}

#[test]
fn the_configuration_of_the_daemon_set_is_one() {
    let manifest = deployed("kubernetes/daemonset.yaml");
    let (_, rest) = manifest.split_once("iovcache.toml: |\n").unwrap();
    let toml: Vec<&str> = rest
        .lines()
        .take_while(|line| line.starts_with("    ") || line.is_empty())
        .map(|line| line.strip_prefix("    ").unwrap_or(line))
        .collect();
    let config = Config::parse(&toml.join("\n")).unwrap();
    assert!(config.ccdb_server.listen.is_some() && config.sources.len() == 1);
}

#[test]
fn systemd_is_told_of_the_start_the_life_and_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut child = iovcache()
        .args(["serve", "--source", "memory:", "--listen", "127.0.0.1:0", "--memory", "16MiB"])
        .arg("--socket")
        .arg(folder.path().join("s"))
        .args(["--segment", "16MiB"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    let until = |wanted: &str| {
        assert!((0..1000).any(|_| told() == wanted), "no {wanted}");
    };
    until("READY=1");
    let began = std::time::Instant::now();
    for _ in 0..5 {
        until("WATCHDOG=1");
    }
    assert!(began.elapsed() < Duration::from_secs(10));
    let pid = child.id().to_string();
    let killed = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(killed.success());
    until("STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_sockets_have_the_mode_that_the_unit_asks_for() {
    use std::os::unix::fs::PermissionsExt as _;
    let mode =
        |service: &Service| fs::metadata(service.attach()).unwrap().permissions().mode() & 0o777;
    let source = ["--source", "memory:"];
    assert_eq!(mode(&Service::start(&source)), 0o660);
    let given = [&source[..], &["--socket-mode", "0600"]].concat();
    assert_eq!(mode(&Service::start(&given)), 0o600);
    let wrong = [&["serve"], &source[..], &["--socket-mode", "0999"]].concat();
    assert_eq!(common::run(&wrong).status.code(), Some(2));
}

#[test]
fn the_package_packs_what_is_there_and_what_its_script_writes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&manifest).unwrap();
    let package = &manifest["package"]["metadata"]["deb"];
    let script = deployed("debian/build");
    let mut packed = BTreeSet::new();
    for asset in package["assets"].as_array().unwrap() {
        let source = asset[0].as_str().unwrap();
        packed.insert(asset[1].as_str().unwrap());
        match source.strip_prefix("target/papers/iovcache") {
            Some("") => {}
            Some(".bash" | ".zsh" | ".fish") => {
                assert!(script.contains("for shell in bash zsh fish"))
            }
            Some(extension) => assert!(script.contains(&format!("$papers/iovcache{extension}"))),
            None => assert!(root.join(source).exists(), "{source}"),
        }
    }
    for conffile in package["conf-files"].as_array().unwrap() {
        let folder = conffile.as_str().unwrap().trim_start_matches('/');
        assert!(packed.iter().any(|place| folder.starts_with(place)), "{conffile}");
    }
    // The unit's user is created before the unit can start.
    assert!(deployed("debian/postinst").contains("adduser --system --group"));
    for name in ["postinst", "postrm"] {
        assert!(deployed(&format!("debian/{name}")).contains("#DEBHELPER#"));
    }
    // The generated files of the package can be produced.
    assert_eq!(Config::parse(&run_well(&["config", "new"])).unwrap(), Config::default());
    assert!(run_well(&["man"]).contains(".TH iovcache"));
    assert!(run_well(&["completions", "bash"]).contains("--max-timeframes"));
}
