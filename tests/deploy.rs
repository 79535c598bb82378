//! The files in `deploy/` fit the program: units, configurations, the dashboard's queries.
#![cfg(feature = "cli")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{PATIENCE, Service, http_get, iovcache, run_well, signal};
use iovcache::server::Config;
use serde_json::Value;

fn deployed(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)).unwrap()
}

fn manifest() -> toml::Table {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    toml::from_str(&fs::read_to_string(manifest).unwrap()).unwrap()
}

/// Every metric that a service exposes.
fn metrics() -> BTreeSet<String> {
    let repository = tempfile::tempdir().unwrap();
    let service = Service::over(repository.path(), &[]);
    let text = http_get(&service.http(), "/metrics").1;
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
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
}

/// The place of a panel on the dashboard: columns and rows, each from and until.
fn place(panel: &Value) -> [u64; 4] {
    let [x, y, w, h] = ["x", "y", "w", "h"].map(|field| {
        panel["gridPos"][field].as_u64().unwrap_or_else(|| panic!("{field} of {panel}"))
    });
    [x, x + w, y, y + h]
}

#[test]
fn the_dashboard_has_what_grafana_needs_to_load_it() {
    let dashboard: Value = serde_json::from_str(&deployed("grafana/iovcache.json")).unwrap();
    assert!(dashboard["uid"].as_str().is_some_and(|uid| !uid.is_empty() && uid.len() <= 40));
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    // Grafana gives the imported dashboard an id of its own.
    assert!(dashboard["id"].is_null() && dashboard["timezone"] == "utc");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    for variable in variables {
        assert!(variable["name"].is_string() && variable["type"].is_string(), "{variable}");
    }
    let of_kind = |kind: &str| variables.iter().find(|variable| variable["type"] == kind);
    let datasource = of_kind("datasource").expect("the datasource is chosen by a variable");
    let by_variable = serde_json::json!({
        "type": datasource["query"],
        "uid": format!("${{{}}}", datasource["name"].as_str().unwrap()),
    });
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        assert_eq!(variable["datasource"], by_variable, "{variable}");
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for (index, panel) in panels.iter().enumerate() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id occurs twice");
        let [left, right, top, bottom] = place(panel);
        assert!(left < right && right <= 24 && top < bottom, "{title}");
        for other in &panels[..index] {
            let [from, until, above, below] = place(other);
            let is_apart = right <= from || until <= left || bottom <= above || below <= top;
            assert!(is_apart, "{title} overlaps {}", other["title"]);
        }
        assert!(panel["type"].is_string() && panel["datasource"] == by_variable, "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let ids: BTreeSet<&str> = targets.iter().map(|t| t["refId"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), targets.len(), "{title}: each target has its own refId");
        for target in targets {
            assert!(target["datasource"].is_null() || target["datasource"] == by_variable);
            let query = target["expr"].as_str().unwrap();
            // Only of the nodes that the viewer chose, and with all brackets closed.
            let chosen = query.matches("{instance=~\"$instance\"}").count();
            assert_eq!(chosen, named_in(query).count(), "{query}");
            for (open, close) in [('(', ')'), ('[', ']'), ('{', '}')] {
                assert_eq!(query.matches(open).count(), query.matches(close).count(), "{query}");
            }
        }
    }
}

/// The alerts of the rules for Prometheus: name, expression, place in the runbook.
fn alerts() -> Vec<[String; 3]> {
    let rules = deployed("prometheus/alerts.yml");
    let mut alerts = Vec::new();
    for rule in rules.split("- alert: ").skip(1) {
        let value = |key: &str| {
            let line = rule.lines().find_map(|line| line.trim().strip_prefix(key));
            line.unwrap_or_else(|| panic!("{rule} has no {key}")).trim_matches('\'').to_owned()
        };
        assert!(!value("for: ").is_empty() && !value("summary: ").is_empty());
        assert!(["warning", "critical"].iter().any(|name| value("labels: ").contains(name)));
        let name = rule.lines().next().unwrap().to_owned();
        alerts.push([name, value("expr: "), value("runbook: ")]);
    }
    assert!(alerts.len() >= 15, "{alerts:?}");
    alerts
}

#[test]
fn every_alert_asks_for_metrics_that_exist() {
    let mut known = metrics();
    // Prometheus' own.
    known.insert("up".to_owned());
    let functions =
        ["rate", "increase", "changes", "histogram_quantile", "sum", "by", "and", "le", "instance"];
    for [alert, query, _] in alerts() {
        // Text in quotes or brackets is a value.
        let outside: String = query.split('"').step_by(2).collect();
        let outside: String =
            outside.split('[').map(|part| part.split_once(']').map_or(part, |(_, b)| b)).collect();
        let words = outside.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.');
        let words = words.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()));
        let words: Vec<&str> = words.filter(|w| !functions.contains(w) && *w != "job").collect();
        assert!(!words.is_empty(), "{alert}: {query} names no metric");
        for word in words {
            assert!(known.contains(word), "{alert}: there is no {word}");
        }
    }
}

/// Runs promtool with `input`; `None` where it is not installed. It must find no fault.
fn promtool(arguments: &[&str], input: &str) -> Option<()> {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .inspect_err(|_| eprintln!("promtool is not installed: {arguments:?} is not run"))
        .ok()?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    assert!(output.status.success(), "{arguments:?}: {told}");
    // `check metrics` writes what it would have different, and succeeds.
    assert!(arguments[1] != "metrics" || told.is_empty(), "{told}");
    Some(())
}

#[test]
fn promtool_finds_no_fault_in_metrics_and_rules_and_each_alert_fires_for_its_fault() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    let file = |name: &str| root.join(name).to_str().unwrap().to_owned();
    promtool(&["check", "rules", &file("alerts.yml")], "");
    promtool(&["test", "rules", &file("tests.yml")], "");
    let tested = deployed("prometheus/tests.yml");
    for [name, ..] in alerts() {
        let (fires, is_quiet) = (
            format!("- alertname: {name}\n"),
            format!("{{alertname: {name}, eval_time: 60m, exp_alerts: []}}"),
        );
        assert!(tested.contains(&fires) && tested.contains(&is_quiet), "{name} has no test");
    }
    let repository = tempfile::tempdir().unwrap();
    let service = Service::over(repository.path(), &[]);
    promtool(&["check", "metrics"], &http_get(&service.http(), "/metrics").1);
    // promtool reads OpenMetrics only from a file whose samples have times.
    let address = service.http();
    let mut stream = std::net::TcpStream::connect(&address).unwrap();
    let accept = "Connection: close\r\nAccept: application/openmetrics-text;version=1.0.0";
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\n{accept}\r\n\r\n").unwrap();
    let mut open = String::new();
    stream.read_to_string(&mut open).unwrap();
    let timed: String = open
        .split_once("\r\n\r\n")
        .unwrap()
        .1
        .lines()
        .map(|line| match line.starts_with('#') {
            true => format!("{line}\n"),
            false => format!("{line} 1730894400\n"),
        })
        .collect();
    let samples = repository.path().join("openmetrics");
    fs::write(&samples, timed).unwrap();
    let blocks = repository.path().join("blocks");
    let [samples, blocks] = [samples, blocks].map(|path| path.to_str().unwrap().to_owned());
    promtool(&["tsdb", "create-blocks-from", "openmetrics", &samples, &blocks], "");
}

#[test]
fn every_alert_has_its_part_of_the_runbook_and_every_part_its_alert() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/runbook.md")).unwrap();
    let parts: Vec<&str> = page.split("\n## ").skip(1).collect();
    let alerts = alerts();
    let named: BTreeSet<&str> = alerts.iter().map(|[name, ..]| name.as_str()).collect();
    let described: BTreeSet<&str> = parts.iter().map(|part| part.lines().next().unwrap()).collect();
    assert_eq!(named, described);
    assert_eq!(named.len(), alerts.len(), "each name is there once");
    for [name, query, runbook] in &alerts {
        assert_eq!(*runbook, format!("docs/runbook.md#{}", name.to_lowercase()));
        let part = parts.iter().find(|part| part.starts_with(&format!("{name}\n"))).unwrap();
        let words: Vec<&str> = part.split_whitespace().collect();
        assert!(words.join(" ").contains(query), "{name}: the runbook shows {query}");
        for heading in ["**Meaning.**", "**Look at**", "**Do**"] {
            assert!(part.contains(heading), "{name}: {heading}");
        }
    }
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
    signal(child.id(), "TERM");
    until("STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_sockets_have_the_mode_that_the_unit_asks_for() {
    let mode =
        |service: &Service| fs::metadata(service.attach()).unwrap().permissions().mode() & 0o777;
    let source = ["--source", "memory:"];
    assert_eq!(mode(&Service::start(&source)), 0o660);
    let given = [&source[..], &["--socket-mode", "0600"]].concat();
    assert_eq!(mode(&Service::start(&given)), 0o600);
    let wrong = [&["serve"], &source[..], &["--socket-mode", "0999"]].concat();
    assert_eq!(common::run(&wrong).status.code(), Some(2));
}

/// Runs a script of `deploy/` from the root, with the program of this build; gives its output.
fn script(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(root.join("deploy").join(name));
    let output = command.args(arguments).envs(environment.iter().copied()).current_dir(root);
    let output = output.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_package_packs_files_of_the_repository_and_files_that_its_script_writes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = manifest();
    let package = &manifest["package"]["metadata"]["deb"];
    let generated = tempfile::tempdir().unwrap();
    script("generate", &[env!("CARGO_BIN_EXE_iovcache"), generated.path().to_str().unwrap()], &[]);
    let mut packed = BTreeSet::new();
    for asset in package["assets"].as_array().unwrap() {
        let source = asset[0].as_str().unwrap();
        packed.insert(asset[1].as_str().unwrap());
        match source.strip_prefix("target/generated/") {
            // The program itself.
            Some("iovcache") => {}
            Some(file) => {
                let file = generated.path().join(file.trim_end_matches('*'));
                assert!(file.exists(), "{source}");
            }
            None => assert!(root.join(source).exists(), "{source}"),
        }
    }
    for conffile in package["conf-files"].as_array().unwrap() {
        let folder = conffile.as_str().unwrap().trim_start_matches('/');
        assert!(packed.iter().any(|place| folder.starts_with(place)), "{conffile}");
    }
    assert!(deployed("debian/build").contains("deploy/generate "));
    // The unit's user is created before the unit can start.
    assert!(deployed("debian/postinst").contains("adduser --system --group"));
    for name in ["postinst", "postrm"] {
        assert!(deployed(&format!("debian/{name}")).contains("#DEBHELPER#"));
    }
    // Each command has its page.
    let page = |name: &str| fs::read_to_string(generated.path().join("man1").join(name)).unwrap();
    assert!(page("iovcache.1").contains(".TH iovcache"));
    assert!(page("iovcache-serve.1").contains("max\\-timeframes"), "{}", page("iovcache-serve.1"));
    let configuration = fs::read_to_string(generated.path().join("iovcache.toml")).unwrap();
    assert_eq!(Config::parse(&configuration).unwrap(), Config::default());
    let completions = fs::read_to_string(generated.path().join("iovcache.bash")).unwrap();
    assert!(completions.contains("--max-timeframes"));
}

#[test]
fn the_tarball_has_the_program_its_generated_files_and_the_rules_of_its_monitoring() {
    let folder = tempfile::tempdir().unwrap();
    // A short program that runs the one of this build.
    let program = folder.path().join("iovcache");
    let built = env!("CARGO_BIN_EXE_iovcache");
    fs::write(&program, format!("#!/bin/sh\nexec {built} \"$@\"\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let target = folder.path().join("target");
    let environment = [
        ("IOVCACHE_BIN", program.to_str().unwrap()),
        ("CARGO_TARGET_DIR", target.to_str().unwrap()),
        ("SOURCE_DATE_EPOCH", "1700000000"),
    ];
    let told = script("tarball/build", &[], &environment);
    let tarball = told.lines().last().unwrap().to_owned();
    let first = fs::read(&tarball).unwrap();
    let listed = Command::new("tar").args(["--list", "--file", &tarball]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for file in [
        "/bin/iovcache\n",
        "/share/man/man1/iovcache-serve.1\n",
        "/share/iovcache/iovcache.toml\n",
        "/share/iovcache/alerts.yml\n",
        "/LICENSE\n",
    ] {
        assert!(listed.contains(file), "{file} in {listed}");
    }
    script("tarball/build", &[], &environment);
    assert_eq!(fs::read(&tarball).unwrap(), first, "the same files give the same tarball");
}

#[test]
fn the_crate_has_no_stray_files() {
    script("crate/build", &["--list"], &[("CARGO", env!("CARGO"))]);
}

/// Copies files and folders of the repository into `folder`, as COPY in a Containerfile does.
fn copy(folder: &Path, from: &str, to: &str) {
    let target = match to.ends_with("./") {
        true => folder.join(from),
        false => folder.join(to),
    };
    fs::create_dir_all(target.parent().unwrap()).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(from);
    let copied = Command::new("cp").arg("-r").arg(source).arg(target).status().unwrap();
    assert!(copied.success(), "{from}");
}

/// The files that sources in `folder` include, as paths, without those of documentation tests.
fn included(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            included(&path, found);
            continue;
        }
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let text = text.replace("#[doc = include_str!(", "");
        for part in ["include_str!(\"", "include_bytes!(\""] {
            let names = text.split(part).skip(1).filter_map(|rest| rest.split('"').next());
            found.extend(names.map(|name| path.parent().unwrap().join(name)));
        }
    }
}

#[test]
fn the_container_file_copies_all_that_the_program_is_built_from() {
    let file = deployed("container/Containerfile");
    let folder = tempfile::tempdir().unwrap();
    let build = file.split("\nFROM ").nth(1).unwrap();
    for line in build.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let words: Vec<&str> = line.split(' ').collect();
        let (to, from) = words.split_last().unwrap();
        from.iter().for_each(|from| copy(folder.path(), from, to));
    }
    // Cargo finds each target and member; the lock file is complete. Cargo may have to download the
    // packages of the other members.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = common::cargo()
        .args(["metadata", "--locked", "--format-version", "1"])
        .args(["--filter-platform", &platform])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&metadata.stderr);
    assert!(metadata.status.success(), "{error}");
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let own = packages.iter().find(|package| package["name"] == "iovcache").unwrap();
    let targets = own["targets"].as_array().unwrap();
    let program = targets.iter().find(|target| target["kind"][0] == "bin").unwrap();
    assert!(Path::new(program["src_path"].as_str().unwrap()).exists());
    let mut files = Vec::new();
    included(&folder.path().join("src"), &mut files);
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        assert!(file.exists(), "{} is not copied", file.display());
    }
    // The second stage takes the program from where the first one leaves it.
    assert!(build.contains("--profile dist --bin iovcache"));
    assert!(file.contains("COPY --from=build /src/target/dist/iovcache /usr/bin/iovcache"));
}

/// A stripped copy of the program of this build.
fn stripped(folder: &Path) -> std::path::PathBuf {
    let program = folder.join("iovcache");
    let mut strip = Command::new("strip");
    let strip = strip.arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_iovcache"));
    assert!(strip.status().unwrap().success());
    program
}

#[test]
fn a_package_is_tried_and_refused_where_a_part_of_it_is_missing() {
    let there = Command::new("dpkg-deb").arg("--version").stdout(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("dpkg-deb is not installed: skipped");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let program = stripped(folder.path());
    let generated = folder.path().join("generated");
    script("generate", &[program.to_str().unwrap(), generated.to_str().unwrap()], &[]);
    // As cargo-deb packs it: the assets, the unit, the scripts without their marks.
    let tree = folder.path().join("tree");
    for asset in manifest()["package"]["metadata"]["deb"]["assets"].as_array().unwrap() {
        let [source, to] = [0, 1].map(|index| asset[index].as_str().unwrap());
        let from = match source.strip_prefix("target/generated/") {
            Some("iovcache") => program.clone(),
            Some(file) => generated.join(file.trim_end_matches("/*")),
            None => root.join(source),
        };
        let to = tree.join(to.trim_end_matches(if source.ends_with("/*") { "man1/" } else { "" }));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        if source.ends_with("/*") || asset[1].as_str().unwrap().ends_with('/') {
            fs::create_dir_all(&to).unwrap();
        }
        assert!(Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap().success());
    }
    let write = |name: &str, text: &str| {
        fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
        fs::write(tree.join(name), text).unwrap();
    };
    write("lib/systemd/system/iovcache.service", &deployed("systemd/iovcache.service"));
    write("usr/share/doc/iovcache/copyright", "Apache-2.0");
    write("DEBIAN/conffiles", "/etc/iovcache/iovcache.toml\n");
    write(
        "DEBIAN/control",
        "Package: iovcache\nVersion: 0\nArchitecture: all\nMaintainer: A <a@localhost>\n\
         Depends: adduser\nDescription: a test\n",
    );
    for name in ["postinst", "postrm"] {
        let text = deployed(&format!("debian/{name}")).replace("#DEBHELPER#", "");
        write(&format!("DEBIAN/{name}"), &text);
        let path = tree.join("DEBIAN").join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let package = folder.path().join("iovcache.deb");
    let tried = || {
        let build = ["--root-owner-group", "-Znone", "--build"];
        let mut command = Command::new("dpkg-deb");
        let built = command.args(build).arg(&tree).arg(&package).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let mut command = Command::new(root.join("deploy/debian/try"));
        let output = command.arg(&package).stdin(Stdio::null()).output().unwrap();
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(told).unwrap())
    };
    let (done, told) = tried();
    assert!(done && told.contains("17 commands, demo, service"), "{told}");
    fs::remove_file(tree.join("usr/share/man/man1/iovcache-ls.1")).unwrap();
    let (done, told) = tried();
    assert!(!done && told.contains("no manual page of ls"), "{told}");
    fs::remove_file(tree.join("lib/systemd/system/iovcache.service")).unwrap();
    let (done, told) = tried();
    assert!(!done && told.contains("no unit"), "{told}");
}

/// For a package with settings of its own in a profile, Cargo forgets the profile's `strip`.
#[test]
fn published_programs_are_stripped() {
    let manifest = manifest();
    let profiles = &manifest["profile"];
    assert_eq!(profiles["dist"]["strip"].as_bool(), Some(true));
    assert_eq!(profiles["wheel"]["inherits"].as_str(), Some("dist"));
    for (name, profile) in profiles.as_table().unwrap() {
        let ours = profile.get("package").and_then(|packages| packages.get("iovcache"));
        assert_eq!(ours, None, "profile {name}");
    }
}

#[test]
fn the_health_check_of_the_container_works_with_tokens_and_notices_a_service_that_is_gone() {
    let file = deployed("container/Containerfile");
    let (_, check) = file.split_once("\nHEALTHCHECK ").unwrap();
    let (_, check) = check.split_once(" CMD ").unwrap();
    let check = check.split("\nENTRYPOINT").next().unwrap().replace("\\\n", "");
    let check: Vec<String> = serde_json::from_str(&check).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let keys = keys.to_str().unwrap();
    run_well(&["token", "someone", "--tokens", keys]);
    let service = Service::start(&["--source", "memory:", "--tokens", keys]);
    let http = service.http();
    let port = http.rsplit(':').next().unwrap();
    let healthy = || {
        let mut command = Command::new(&check[0]);
        command.args(&check[1..]).env("IOVCACHE_HEALTH_PORT", port).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    assert!(healthy());
    service.stop();
    assert!(!healthy());
}
