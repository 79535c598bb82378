//! A client that exposes every byte.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use super::common::PATIENCE;

/// An answer as received.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In order and with their spelling.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The value of the header with exactly this spelling.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A persistent connection.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    pub(crate) fn open(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    /// The next answer; an answer to HEAD has no body, whatever its length field.
    pub(crate) fn receive(&mut self, is_head: bool) -> Answer {
        let mut line = || {
            let mut line = Vec::new();
            self.0.read_until(b'\n', &mut line).unwrap();
            // Heads are Latin-1.
            let text: String = line.iter().copied().map(char::from).collect();
            text.strip_suffix("\r\n").map(str::to_owned).unwrap_or_else(|| panic!("{text:?}"))
        };
        let status = line();
        assert!(status.starts_with("HTTP/1."), "{status:?}");
        let status = status[9..12].parse().unwrap();
        let mut headers = Vec::new();
        loop {
            match line() {
                end if end.is_empty() => break,
                header => {
                    let (name, value) = header.split_once(':').unwrap();
                    headers.push((name.to_owned(), value.trim().to_owned()));
                }
            }
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        if is_head || matches!(status, 204 | 304) {
            return answer;
        }
        let length = answer.get("Content-Length").map(|length| length.parse().unwrap());
        match length {
            Some(length) => {
                answer.body.resize(length, 0);
                self.0.read_exact(&mut answer.body).unwrap();
            }
            None if answer.get("Transfer-Encoding") == Some("chunked") => {
                while let Some(chunk) = self.chunk() {
                    answer.body.extend(chunk);
                }
            }
            None => drop(self.0.read_to_end(&mut answer.body).unwrap()),
        }
        answer
    }

    /// The next chunk; proxies send bodies of unknown length in chunks.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let length = usize::from_str_radix(line.trim(), 16).unwrap();
        let mut chunk = vec![0; length + 2];
        self.0.read_exact(&mut chunk).unwrap();
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    pub(crate) fn ask(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: here\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
        self.receive(method == "HEAD")
    }

    /// Whether the other side has closed it.
    pub(crate) fn has_ended(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}

pub(crate) fn get(address: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    Connection::open(address).ask("GET", target, headers)
}
