//! A real browser, driven by the WebDriver protocol.
#![allow(unreachable_pub, reason = "each test binary is a crate of its own")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::common::PATIENCE;

/// Debian's chromium, headless, with an empty profile of its own.
pub struct Browser {
    driver: Child,
    address: String,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// `None`: it is not installed.
    pub fn start() -> Option<Self> {
        let there = |name: &str| {
            let version = Command::new(name).arg("--version").stdin(Stdio::null()).output();
            version.is_ok_and(|output| output.status.success())
        };
        if !there("chromium") || !there("chromedriver") {
            eprintln!("chromium and chromedriver are not installed: skipped");
            return None;
        }
        let mut driver = Command::new("chromedriver")
            .args(["--port=0", "--allowed-ips=127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(driver.stdout.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some((_, port)) = line.split_once("successfully on port ") {
                    let _ = sender.send(port.trim_end_matches('.').to_owned());
                }
            }
        });
        let profile = tempfile::tempdir().unwrap();
        let mut browser =
            Self { address: String::new(), session: String::new(), driver, _profile: profile };
        browser.address = format!("127.0.0.1:{}", receiver.recv_timeout(PATIENCE).unwrap());
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-proxy-server",
            &profile,
        ];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let opened = browser.call("POST", "/session", &capabilities);
        browser.session = opened["sessionId"].as_str().unwrap().to_owned();
        Some(browser)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = if method == "POST" { body.to_string() } else { String::new() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        // The driver keeps the connection open after the answer.
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let begin = head.len();
            assert!(answer.read_line(&mut head).unwrap() > 0, "{method} {path}: {head}");
            let (name, value) = head[begin..].split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(head.contains(" 200 "), "{method} {path}: {head}{text}");
        serde_json::from_slice::<Value>(&body).unwrap()["value"].take()
    }

    fn on_session(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("/session/{}{path}", self.session), body)
    }

    pub fn open(&self, url: &str) {
        self.on_session("/url", &json!({"url": url}));
    }

    /// Runs a script in the page and returns its result.
    pub fn run(&self, script: &str) -> Value {
        self.on_session("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// The text of the first element that matches.
    pub fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({selector:?})?.textContent ?? ''");
        self.run(&script).as_str().unwrap().to_owned()
    }

    /// Presses keys while an element has the focus.
    pub fn keys(&self, selector: &str, keys: &str) {
        let found =
            self.on_session("/element", &json!({"using": "css selector", "value": selector}));
        let element = found.as_object().unwrap().values().next().unwrap().as_str().unwrap();
        self.on_session(&format!("/element/{element}/value"), &json!({"text": keys}));
    }

    /// Presses a key, wherever the focus is.
    pub fn press(&self, key: &str) {
        let actions = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        let source = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.on_session("/actions", &json!({"actions": [source]}));
    }

    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false,
        });
        self.develop("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Emulates a preference of the user's system.
    pub fn prefer(&self, feature: &str, value: &str) {
        let features = json!({"features": [{"name": feature, "value": value}]});
        self.develop("Emulation.setEmulatedMedia", &features);
    }

    fn develop(&self, command: &str, parameters: &Value) {
        let body = json!({"cmd": command, "params": parameters});
        self.on_session("/goog/cdp/execute", &body);
    }

    /// Errors of the page, and violations of its policy.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.on_session("/se/log", &json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        entries.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// A picture of the window, as PNG.
    pub fn snapshot(&self) -> Vec<u8> {
        let path = format!("/session/{}/screenshot", self.session);
        let text = self.call("GET", &path, &Value::Null);
        base64(text.as_str().unwrap())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ending the session ends the browser; killing the driver alone would leave it running.
        if !self.session.is_empty() && !std::thread::panicking() {
            self.call("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        // Processes that a failed test leaves behind: those with this very profile.
        let profile = self._profile.path().display().to_string();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains(&profile) {
                let _ = Command::new("kill").arg("-KILL").arg(entry.file_name()).status();
            }
        }
    }
}

fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let symbols: Vec<u32> =
        text.bytes().filter(|byte| !matches!(byte, b'=' | b'\n')).map(value).collect();
    symbols
        .chunks(4)
        .flat_map(|four| {
            let bits = four.iter().fold(0, |bits, symbol| bits << 6 | symbol);
            let bits = bits << (6 * (4 - four.len()));
            bits.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect()
}
