//! Redis over a Unix socket, with its protocol (RESP): a command is an array of strings.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::server::Server;
use crate::work::{Left, SMALL_BYTES, Took, Work, median, touch};

pub(crate) fn measure(work: &Work) -> Result<Took, Left> {
    let mut server = Server::start("redis-server", |command, folder, socket| {
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
        command.arg(socket).arg("--dir").arg(folder);
    })?;
    let mut redis = Redis { stream: server.connect()?, bytes: Vec::new() };
    for n in 0..work.keys {
        redis.call(&[b"SET", key("small", n).as_bytes(), &[7; SMALL_BYTES]])?;
    }
    let large = vec![7; work.large_bytes];
    for n in 0..work.large {
        redis.call(&[b"SET", key("large", n).as_bytes(), &large])?;
    }
    let keys: Vec<String> = (0..work.keys).map(|n| key("small", n)).collect();
    let mut many: Vec<&[u8]> = vec![b"MGET"];
    many.extend(keys.iter().map(String::as_bytes));
    let look_up = median(work.rounds, || redis.call(&many))?;
    let get = median(work.rounds, || {
        (0..work.large).map(|n| redis.call(&[b"GET", key("large", n).as_bytes()])).sum()
    })?;
    let stored = vec![9; work.stored_bytes];
    let store = median(work.rounds, || {
        for n in 0..work.stored {
            redis.send(&[b"SET", key("stored", n).as_bytes(), &stored])?;
        }
        (0..work.stored).map(|_| redis.answer()).sum()
    })?;
    Ok(Took { look_up: Some(look_up), get: Some(get), store: Some(store), ..Took::default() })
}

fn key(kind: &str, n: usize) -> String {
    format!("{kind}/{n}")
}

struct Redis {
    stream: BufReader<UnixStream>,
    /// The value read last.
    bytes: Vec<u8>,
}

impl Redis {
    fn call(&mut self, parts: &[&[u8]]) -> Result<u64, Left> {
        self.send(parts)?;
        self.answer()
    }

    fn send(&mut self, parts: &[&[u8]]) -> Result<(), Left> {
        let mut message = format!("*{}\r\n", parts.len()).into_bytes();
        for part in parts {
            message.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            message.extend_from_slice(part);
            message.extend_from_slice(b"\r\n");
        }
        Ok(self.stream.get_mut().write_all(&message)?)
    }

    /// Reads one answer, and one byte of each page of its values.
    fn answer(&mut self) -> Result<u64, Left> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at_checked(1).ok_or("Redis hung up")?;
        match kind {
            "+" | ":" => Ok(1),
            "$" => {
                let length: usize = rest.parse().map_err(|_| format!("no such value: {line}"))?;
                self.bytes.resize(length + 2, 0);
                self.stream.read_exact(&mut self.bytes)?;
                Ok(touch(&self.bytes[..length]))
            }
            "*" => {
                let count: usize = rest.parse()?;
                (0..count).map(|_| self.answer()).sum()
            }
            _ => Err(Left::Failed(format!("Redis said {line}"))),
        }
    }
}
