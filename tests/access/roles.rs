//! Tokens and roles.

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use iovcache::client::{Client, ClientOptions, TableRequest};
use iovcache::error::ErrorKind;
use iovcache::server::Role;
use serde_json::{Value, json};

use crate::common::{http_get, iovcache, run, run_well};
use crate::files::{ALL_ROLES, Files, client, drift, drift_column, until_told, why};

const NO_TOKEN: Option<(ErrorKind, u16)> = Some((ErrorKind::Unauthenticated, 6001));
const UNKNOWN: Option<(ErrorKind, u16)> = Some((ErrorKind::Unauthenticated, 6002));
const EXPIRED: Option<(ErrorKind, u16)> = Some((ErrorKind::Unauthenticated, 6003));
const ROLE: Option<(ErrorKind, u16)> = Some((ErrorKind::PermissionDenied, 6007));

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_token_is_refused_on_every_transport() {
    let files = Files::new();
    let service = files.serve(&["--tokens", &files.keys(&ALL_ROLES)]);
    for url in [service.tcp(), service.unix()] {
        for (token, right) in [("", NO_TOKEN), ("readeR", UNKNOWN), ("reader", None)] {
            let client = client(&url, token).await;
            assert_eq!(why(client.status().await), right, "{url} {token:?}");
            assert_eq!(why(client.table(drift()).await), right, "{url} {token:?}");
            assert_eq!(why(client.paths("").await), right, "{url} {token:?}");
            let put = client.put_timeframe(1, vec![Some(5)], &drift_column(), &[]).await;
            assert_eq!(why(put), if right.is_none() { ROLE } else { right }, "{url} {token:?}");
        }
    }
    let attach = |token: Option<&str>| {
        let opened = iovcache::shm::attach::Attachment::open(&service.attach(), "x", token);
        opened.map(drop).map_err(|error| {
            use iovcache::error::Coded as _;
            (error.kind(), error.code().0)
        })
    };
    assert_eq!(attach(None).err(), NO_TOKEN);
    assert_eq!(attach(Some("readeR")).err(), UNKNOWN);
    assert_eq!(attach(Some("reader")), Ok(()));
    let (_, metrics) = http_get(&service.http(), "/metrics");
    for name in ["attach_refused", "unauthenticated", "permission_denied"] {
        assert!(metrics.contains(&format!("iovcache_{name}_total ")), "{metrics}");
        assert!(!metrics.contains(&format!("iovcache_{name}_total 0\n")), "{metrics}");
    }
    // Liveness is public.
    assert_eq!(http_get(&service.http(), "/readyz").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_may_what_it_says_and_no_more() {
    let files = Files::new();
    let service = files.serve(&["--tokens", &files.keys(&ALL_ROLES)]);
    for (timeframe, (name, role, _)) in (1..).zip(ALL_ROLES) {
        let client = client(&service.tcp(), name).await;
        assert_eq!(why(client.table(drift()).await), None, "{name}");
        let consumers = ["c".to_owned()];
        let times = vec![Some(5)];
        let put = client.put_timeframe(timeframe, times, &drift_column(), &consumers).await;
        assert_eq!(why(put), if role >= Role::Register { None } else { ROLE }, "{name}");
        let columns = json!({"drift": "TPC/Calib/VDrift"});
        let range = json!({"from": 0, "until": 9});
        for (action, body) in [
            ("prefetch", json!({"columns": columns, "range": range})),
            ("invalidate", json!({"path": "TPC/Calib/VDrift"})),
            ("drop_timeframe", json!({"timeframe": timeframe})),
        ] {
            let done = client.act::<Value>(action, &body).await;
            assert_eq!(why(done), if role == Role::Administer { None } else { ROLE }, "{action}");
        }
        if role == Role::Register {
            let table = TableRequest::new().timeframe(timeframe).consumer("c");
            assert_eq!(why(client.table(table).await), None);
            client.consumed(timeframe, "c").await.unwrap();
        }
        // An unknown action gets the same error in every role.
        let nothing = client.act::<Value>("nothing", &json!({})).await;
        assert_eq!(why(nothing).unwrap().0, ErrorKind::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_lets_in_and_out_and_what_cannot_be_read_changes_nothing() {
    let files = Files::new();
    let keys = files.keys(&[("old", Role::Read, None)]);
    let service = files.serve(&["--tokens", &keys]);
    let (old, new) = (client(&service.tcp(), "old").await, client(&service.tcp(), "new").await);
    assert_eq!((why(old.status().await), why(new.status().await)), (None, UNKNOWN));

    files.keys(&[("new", Role::Read, None), ("past", Role::Read, Some(1_000))]);
    service.signal("HUP");
    until_told((UNKNOWN, None), async || (why(old.status().await), why(new.status().await))).await;
    let past = client(&service.tcp(), "past").await;
    assert_eq!(why(past.status().await), EXPIRED);

    for broken in ["", "[[token]]\nname = \"x\"", "{"] {
        files.write("keys", broken);
        service.signal("HUP");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!((why(old.status().await), why(new.status().await)), (UNKNOWN, None));
    }
    files.keys(&[("old", Role::Read, None)]);
    service.signal("HUP");
    until_told((None, UNKNOWN), async || (why(old.status().await), why(new.status().await))).await;
    let (status, told) = service.stop();
    assert_eq!(status, Some(0));
    assert_eq!(told.matches("SIGHUP changes nothing").count(), 3, "{told}");
}

#[test]
fn the_commands_make_tokens_and_send_them() {
    let files = Files::new();
    let keys = files.path("made");
    let keys = keys.to_str().unwrap();
    let make = |name: &str, more: &[&str]| {
        let token = run_well(&[&["token", name, "--tokens", keys], more].concat());
        token.trim().to_owned()
    };
    let (reader, operator) = (make("a", &[]), make("b", &["--role", "administer", "--for", "1d"]));
    assert_eq!((reader.len(), reader == operator), (64, false));
    let again = run(&["token", "a", "--tokens", keys]);
    assert_eq!(again.status.code(), Some(2));
    let mode = std::fs::metadata(keys).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);

    let service = files.serve(&["--tokens", keys]);
    let status = |set: &dyn Fn(&mut std::process::Command)| {
        let mut command = iovcache();
        command.args(["status", "--json", "--server", &service.unix()]);
        set(&mut command);
        command.output().unwrap().status.code()
    };
    let of_file = files.write("token", &format!("{operator}\n"));
    assert_eq!(status(&|_| {}), Some(5));
    assert_eq!(status(&|command| _ = command.args(["--token", "wrong"])), Some(5));
    assert_eq!(status(&|command| _ = command.args(["--token", &reader])), Some(0));
    assert_eq!(status(&|command| _ = command.args(["--token-file", &of_file])), Some(0));
    assert_eq!(status(&|command| _ = command.env("IOVCACHE_TOKEN", &operator)), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_can_stand_in_the_environment() {
    let files = Files::new();
    let keys = std::fs::read_to_string(files.keys(&ALL_ROLES)).unwrap();
    let service = crate::common::Service::start_with(
        &["--source", &format!("file://{}", files.repository().display())],
        &[("IOVCACHE_KEYS", &keys)],
    );
    assert_eq!(why(client(&service.tcp(), "").await.status().await), NO_TOKEN);
    assert_eq!(why(client(&service.tcp(), "reader").await.status().await), None);
}

#[test]
fn keys_in_the_environment_that_have_no_entry_or_are_no_text_do_not_open_the_service() {
    let files = Files::new();
    let mut latin1 = std::fs::read(files.keys(&ALL_ROLES)).unwrap();
    latin1.extend(b"\n# caf\xe9");
    let cases: [(&[u8], &str); 5] = [
        (&latin1, "IOVCACHE_KEYS is not UTF-8"),
        (b" ", "IOVCACHE_KEYS: it contains no key"),
        (b"\n", "IOVCACHE_KEYS: it contains no key"),
        (b"# nothing here", "IOVCACHE_KEYS: it contains no key"),
        (b"token = []", "IOVCACHE_KEYS: it contains no key"),
    ];
    for (keys, expected) in cases {
        // Without a source: it ends whether the keys are refused or not.
        let output = iovcache()
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("IOVCACHE_KEYS", std::ffi::OsStr::from_bytes(keys))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_has_only_so_many_requests_answered_at_a_time() {
    // A source that accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let source = format!("http://{}", silent.local_addr().unwrap());
    let service = crate::common::Service::start(&["--source", &source, "--quota-requests", "2"]);
    let options = ClientOptions { remote: true, ..ClientOptions::default() };
    let client = Client::connect_with(&service.tcp(), options).await.unwrap();
    let ask = |consumer: &str| {
        let (client, request) =
            (client.clone(), drift().consumer(consumer).wait(Duration::from_millis(4_000)));
        async move { why(client.table(request).await) }
    };
    let asked = ["a", "b", "a", "a"].map(|consumer| tokio::spawn(ask(consumer)));
    let mut refused = 0;
    for (place, asked) in asked.into_iter().enumerate() {
        match asked.await.unwrap().unwrap() {
            (ErrorKind::ResourceExhausted, 5015) => {
                refused += 1;
                assert_ne!(place, 1, "the other consumer's");
            }
            (kind, _) => {
                assert!(matches!(kind, ErrorKind::DeadlineExceeded | ErrorKind::Unavailable));
            }
        }
    }
    assert_eq!(refused, 1);
    // Their places are free again.
    let (kind, _) = ask("a").await.unwrap();
    assert_ne!(kind, ErrorKind::ResourceExhausted);
}
