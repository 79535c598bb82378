//! Secrets never appear in logs, status or errors.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use iovcache::client::TableRequest;
use iovcache::error::Coded as _;
use iovcache::server::Role;
use serde_json::Value;

use crate::common::{http_get, iovcache, run};
use crate::files::{Files, client, drift};

const RIGHT: &str = "right-token-5f2c";
const WRONG: &str = "wrong-token-81ab";

/// Kills the process when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_never_shown() {
    let files = Files::new();
    let keys = files.keys(&[(RIGHT, Role::Read, None)]);
    // The name is logged and the token is not, so they must differ here.
    let text = std::fs::read_to_string(&keys).unwrap();
    let text = text.replace(&format!("name = \"{RIGHT}\""), "name = \"shift\"");
    std::fs::write(&keys, &text).unwrap();
    let hash = text.split('"').find(|word| word.len() == 64).unwrap().to_owned();
    let log = files.path("log");
    let child = iovcache()
        .args(["--log", "trace", "serve", "--listen", "127.0.0.1:0", "--tokens", &keys])
        .arg("--source")
        .arg(format!("file://{}", files.repository().display()))
        .arg("--socket")
        .arg(files.path("sockets"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let url = |place: usize| ready["flight"][place].as_str().unwrap().to_owned();

    let mut seen = vec![line];
    for place in [0, 1] {
        let bad = client(&url(place), WRONG).await;
        seen.push(bad.status().await.unwrap_err().message());
        seen.push(bad.table(drift()).await.unwrap_err().message());
        seen.push(format!("{bad:?}"));
        let good = client(&url(place), RIGHT).await;
        good.table(drift()).await.unwrap();
        seen.push(serde_json::to_string(&good.status().await.unwrap()).unwrap());
        seen.push(good.table(TableRequest::new()).await.unwrap_err().message());
        let columns = crate::files::drift_column();
        let refused = good.put_timeframe(1, vec![Some(1)], &columns, &[]);
        seen.push(refused.await.unwrap_err().message());
        seen.push(format!("{good:?}"));
    }
    let http = ready["http"].as_str().unwrap().trim_start_matches("http://");
    seen.push(http_get(http, "/metrics").1);
    for token in [RIGHT, WRONG] {
        let command = ["status", "--server", &url(0), "--token", token];
        let output = iovcache().args(["--log", "trace"]).args(command).output().unwrap();
        seen.push(String::from_utf8(output.stderr).unwrap());
    }
    let config = files.write("config.toml", &format!("tokens = \"{keys}\"\n"));
    let shown = run(&["config", "show", &config]);
    assert!(shown.status.success());
    seen.push(String::from_utf8(shown.stdout).unwrap());
    // A token in the place of the entry: the error names the line but does not quote it.
    std::fs::write(&keys, format!("[[token]]\nname = \"a\"\nsecret = \"{RIGHT}\"\n")).unwrap();
    let broken = run(&["serve", "--source", "memory:", "--tokens", &keys]);
    assert_eq!(broken.status.code(), Some(2));
    let told = String::from_utf8(broken.stderr).unwrap();
    assert!(told.contains("line 3"), "{told}");
    seen.push(told);
    drop(child);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.len() > 1_000, "the log says little: {log}");
    seen.push(log);
    for text in seen {
        for secret in [RIGHT, WRONG, &hash] {
            if let Some(at) = text.find(secret) {
                let around = &text[at.saturating_sub(300)..(at + 60).min(text.len())];
                panic!("a secret is shown: …{around}…");
            }
        }
    }
}
