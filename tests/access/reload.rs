//! SIGHUP: what is read again, what is refused, and where both are told.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use iovcache::error::ErrorKind;
use iovcache::server::Role;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::Value;

use crate::common::{Service, http_get, iovcache, run_well, signal, until};
use crate::files::{Files, client, until_told, why};

const UNKNOWN: Option<(ErrorKind, u16)> = Some((ErrorKind::Unauthenticated, 6002));

/// A service with its configuration in a file, and a token for its operator.
struct Configured {
    files: Files,
    service: Service,
    /// The text of the configuration at the start.
    text: String,
}

impl Configured {
    fn start(more: &str) -> Self {
        let files = Files::new();
        files.keys(&[("operator", Role::Administer, None)]);
        let url = format!("file://{}", files.repository().display());
        let text = format!(
            "tokens = \"{}\"\n{more}\n[[source]]\nurl = \"{url}\"\n",
            files.path("keys").display()
        );
        let config = files.write("iovcache.toml", &text);
        let service = Service::start(&["--config", &config]);
        Self { files, service, text }
    }

    fn status(&self) -> Value {
        let token = ["--token", "operator"];
        let server = self.service.unix();
        let told = run_well(&[&["status", "--json", "--server", &server][..], &token].concat());
        serde_json::from_str(&told).unwrap()
    }

    /// Sends SIGHUP and waits for its end; gives the state of the configuration.
    fn reload(&self) -> Value {
        let count = |status: &Value| {
            let number = |name: &str| status["configuration"][name].as_u64().unwrap();
            number("applied") + number("refused")
        };
        let before = count(&self.status());
        self.service.signal("HUP");
        until("the end of SIGHUP", || {
            let status = self.status();
            (count(&status) > before).then(|| status["configuration"].clone())
        })
    }

    fn metric(&self, name: &str) -> String {
        let text = http_get(&self.service.http(), "/metrics").1;
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("iovcache_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    }

    fn readyz(&self) -> String {
        let (status, text) = http_get(&self.service.http(), "/readyz");
        assert_eq!(status, 200, "{text}");
        text
    }
}

/// Makes a named pipe: reading it would wait for a writer.
fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_configuration_with_a_fault_changes_nothing_and_log_metrics_readyz_and_status_say_so() {
    let configured = Configured::start("log = \"warn\"");
    let Configured { files, text, .. } = &configured;
    assert_eq!(configured.status()["configuration"]["applied"], 0);
    assert_eq!(configured.metric("config_last_reload_successful"), "1");
    make_pipe(&files.path("pipe"));
    let CertifiedKey { cert, .. } = generate_simple_self_signed(["a".to_owned()]).unwrap();
    let other = generate_simple_self_signed(["b".to_owned()]).unwrap();
    files.write("chain.pem", &cert.pem());
    files.write("key.pem", &other.signing_key.serialize_pem());
    let path = |name: &str| files.path(name).display().to_string();
    let (tokens, pipe) = (format!("tokens = \"{}\"\n", path("keys")), path("pipe"));
    let pair = format!(
        "{text}[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n",
        path("chain.pem"),
        path("key.pem")
    );
    let faulty = [
        // Cut off: no TOML, or one without its sources.
        (text[..text.len() - 2].to_owned(), "iovcache.toml:4: "),
        (text[..20].to_owned(), "iovcache.toml:1: "),
        (String::new(), "no source"),
        (tokens.clone(), "no source"),
        // Partly valid: nothing of it counts.
        (format!("memroy = \"1GiB\"\n{text}"), "did you mean `memory`?"),
        (format!("max_timeframes = \"x\"\n{text}"), "max_timeframes"),
        (format!("fairmq_segment = 7\n{text}"), "fairmq_segment"),
        (text.replace("log = \"warn\"", "log = \"a=b=c\""), "log filter \"a=b=c\""),
        (text.replace(&tokens, "tokens = \"/no/such/file\"\n"), "/no/such/file: No such file"),
        (text.replace(&tokens, &format!("tokens = \"{pipe}\"\n")), "not a regular file"),
        (pair, "[IOV-6032]"),
    ];
    let refused = std::cell::Cell::new(0);
    let check = |reason: &str| {
        let told = configured.reload();
        let refusal = &told["refusal"]["reason"];
        assert!(refusal.as_str().is_some_and(|text| text.contains(reason)), "{reason}: {told}");
        refused.set(refused.get() + 1);
        assert_eq!(told["refused"], refused.get());
        assert_eq!(configured.metric("config_last_reload_successful"), "0");
        let counted = configured.metric("config_reloads_total{outcome=\"refused\"}");
        assert_eq!(counted, refused.get().to_string());
        let ready = configured.readyz();
        assert!(ready.contains("was refused, see the log"), "{ready}");
        assert!(!ready.contains("keys"), "{ready}");
    };
    for (wrong, reason) in faulty {
        files.write("iovcache.toml", &wrong);
        check(reason);
    }
    fs::remove_file(files.path("iovcache.toml")).unwrap();
    check("iovcache.toml: No such file");
    // Keys with a fault in one of their lines, without any key, and binary ones.
    files.write("iovcache.toml", text);
    let keys = fs::read_to_string(files.path("keys")).unwrap();
    for (wrong, reason) in [
        (format!("{keys}[[token]]\nname = \"x\"\n"), "[IOV-6030]"),
        (format!("{keys}\n[[token"), "[IOV-6030]"),
        (String::new(), "contains no key"),
    ] {
        files.write("keys", &wrong);
        check(reason);
    }
    fs::write(files.path("keys"), b"\xff\xfe\0").unwrap();
    check("UTF-16");
    // Everything valid again, with a byte order mark and the line ends of another system.
    files.write("keys", &format!("\u{feff}{}", keys.replace('\n', "\r\n")));
    let told = configured.reload();
    assert!(told["refusal"].is_null() && told["applied"] == 1, "{told}");
    assert_eq!(configured.metric("config_last_reload_successful"), "1");
    assert_eq!(configured.readyz(), "ready\n");
    let (status, log) = configured.service.stop();
    assert_eq!(status, Some(0));
    assert_eq!(log.matches("SIGHUP changes nothing: ").count(), refused.get(), "{log}");
}

#[test]
fn keys_that_need_a_restart_are_named_and_their_old_values_stay() {
    let configured = Configured::start("log = \"warn\"\nmax_timeframes = 5");
    let Configured { files, text, .. } = &configured;
    let before = configured.status();
    let changed = text.replace("max_timeframes = 5", "max_timeframes = 6\nquota_requests = 3");
    // A service without its keys would be open: the line of `tokens` is gone, the keys are not.
    let changed = changed.split_once('\n').unwrap().1.replace("\"warn\"", "\"info\"");
    let tls = "[tls]\n[limits]\ncolumns = 7\n[ccdb_server]\nlisten = \"127.0.0.1:0\"\n";
    files.write("iovcache.toml", &format!("{changed}paths = [\"TPC\"]\n{tls}"));
    let told = configured.reload();
    let right = serde_json::json!([
        "ccdb_server.listen",
        "limits.columns",
        "max_timeframes",
        "quota_requests",
        "source[0].paths",
        "tokens"
    ]);
    assert_eq!(told["restart"], right);
    assert_eq!(configured.metric("config_restart_keys"), "6");
    let ready = configured.readyz();
    assert!(ready.contains("take effect after a restart: ccdb_server.listen, limits"), "{ready}");
    let refused = iovcache().args(["status", "--server", &configured.service.unix()]).output();
    assert_eq!(refused.unwrap().status.code(), Some(5), "the old keys are in force");
    let now = configured.status();
    assert_eq!(
        (&now["epoch"], &now["memory"]["total_bytes"]),
        (&before["epoch"], &before["memory"]["total_bytes"])
    );
    let shown =
        run_well(&["status", "--token", "operator", "--server", &configured.service.unix()]);
    assert!(shown.contains("after a restart: ccdb_server.listen"), "{shown}");
    // The old configuration again: nothing waits.
    files.write("iovcache.toml", text);
    assert!(configured.reload()["restart"].is_null());
    assert_eq!(configured.readyz(), "ready\n");
    let log = configured.service.stop().1;
    assert!(log.contains("source[0].paths, tokens"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_signals_in_a_row_the_last_files_count() {
    let configured = Configured::start("");
    let files = &configured.files;
    let (first, last) = (
        client(&configured.service.unix(), "first").await,
        client(&configured.service.unix(), "last").await,
    );
    for name in ["first", "last"] {
        files.keys(&[("operator", Role::Administer, None), (name, Role::Read, None)]);
        configured.service.signal("HUP");
    }
    until_told((UNKNOWN, None), async || (why(first.status().await), why(last.status().await)))
        .await;
    let told = configured.status()["configuration"].clone();
    // The first signal may have found the second file half written.
    assert!(told["refusal"].is_null() && told["applied"].as_u64().unwrap() >= 1, "{told}");
}

/// The mask of the signals that a process handles.
fn handles_hangup(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1)
}

#[test]
fn a_signal_while_the_service_starts_or_stops_does_not_end_it() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("config");
    make_pipe(&pipe);
    // It reads its configuration from the pipe, and waits for it.
    let mut child = iovcache()
        .args(["serve", "--listen", "127.0.0.1:0", "--memory", "16MiB", "--segment", "16MiB"])
        .arg("--socket")
        .arg(folder.path().join("s"))
        .arg("--config")
        .arg(&pipe)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("SIGHUP is handled", || handles_hangup(child.id()).then_some(()));
    signal(child.id(), "HUP");
    fs::write(&pipe, "log = \"info\"\n[[source]]\nurl = \"memory:\"\n").unwrap();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let http = ready["http"].as_str().unwrap().trim_start_matches("http://").to_owned();
    // The pipe is not read a second time, which would wait for another writer.
    until("the signal takes effect", || {
        let metrics = http_get(&http, "/metrics").1;
        metrics.contains("config_reloads_total{outcome=\"applied\"} 1\n").then_some(())
    });
    for name in ["HUP", "TERM", "HUP"] {
        signal(child.id(), name);
    }
    let ended = until("its end", || child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
    let mut log = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut log).unwrap();
    assert!(log.contains("no regular file and is not read again"), "{log}");
}

#[test]
fn listed_users_and_the_filter_of_the_log_are_read_again() {
    let configured = Configured::start("log = \"warn\"\nallow_uids = [0]");
    let Configured { files, text, .. } = &configured;
    let changed = text.replace("\"warn\"", "\"info\"").replace("[0]", "[0, 12345]");
    files.write("iovcache.toml", &changed);
    let told = configured.reload();
    assert!(told["restart"].is_null() && told["applied"] == 1, "{told}");
    std::thread::sleep(Duration::from_millis(50));
    let log = configured.service.stop().1;
    assert!(log.contains("are read again"), "the filter lets lines of this level through: {log}");
}
