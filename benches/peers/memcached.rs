//! memcached over a Unix socket, with its text protocol.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use crate::server::Server;
use crate::work::{Left, SMALL_BYTES, Took, Work, median, touch};

/// Number of keys in one `get`.
const KEYS_AT_ONCE: usize = 100;

/// Number of values that are sent before their answers are read.
const SETS_AT_ONCE: usize = 32;

pub(crate) fn measure(work: &Work) -> Result<Took, Left> {
    let mut server = Server::start("memcached", |command, _folder, socket| {
        command.args(["-m", "4096", "-I", "16m", "-t", "2", "-u", "root", "-s"]).arg(socket);
    })?;
    let mut memcached = Memcached { stream: server.connect()?, bytes: Vec::new() };
    for n in 0..work.keys {
        memcached.set("small", n, &[7; SMALL_BYTES])?;
        memcached.stored()?;
    }
    let large = vec![7; work.large_bytes];
    for n in 0..work.large {
        memcached.set("large", n, &large)?;
        memcached.stored()?;
    }
    let keys: Vec<usize> = (0..work.keys).collect();
    let look_up = median(work.rounds, || {
        // One after the other: memcached stops reading from a client that does not read.
        let some = |keys: &[usize]| {
            memcached.get("small", keys)?;
            memcached.values(keys.len())
        };
        keys.chunks(KEYS_AT_ONCE).map(some).sum()
    })?;
    let get = median(work.rounds, || {
        let one = |n| {
            memcached.get("large", &[n])?;
            memcached.values(1)
        };
        (0..work.large).map(one).sum()
    })?;
    let stored = vec![9; work.stored_bytes];
    let store = median(work.rounds, || {
        // As with gets: a few hundred unread answers fill the socket.
        let numbers: Vec<usize> = (0..work.stored).collect();
        let some = |numbers: &[usize]| {
            for &n in numbers {
                memcached.set("stored", n, &stored)?;
            }
            numbers.iter().map(|_| memcached.stored()).sum::<Result<u64, Left>>()
        };
        numbers.chunks(SETS_AT_ONCE).map(some).sum()
    })?;
    Ok(Took { look_up: Some(look_up), get: Some(get), store: Some(store), ..Took::default() })
}

struct Memcached {
    stream: BufReader<UnixStream>,
    /// The value read last.
    bytes: Vec<u8>,
}

impl Memcached {
    fn set(&mut self, kind: &str, n: usize, bytes: &[u8]) -> Result<(), Left> {
        let mut message = format!("set {kind}/{n} 0 0 {}\r\n", bytes.len()).into_bytes();
        message.extend_from_slice(bytes);
        message.extend_from_slice(b"\r\n");
        Ok(self.stream.get_mut().write_all(&message)?)
    }

    fn stored(&mut self) -> Result<u64, Left> {
        match self.line()?.as_str() {
            "STORED" => Ok(1),
            other => Err(Left::Failed(format!("memcached said {other}"))),
        }
    }

    fn get(&mut self, kind: &str, keys: &[usize]) -> Result<(), Left> {
        let keys = keys.iter().map(|n| format!(" {kind}/{n}"));
        let message = format!("get{}\r\n", keys.collect::<String>());
        Ok(self.stream.get_mut().write_all(message.as_bytes())?)
    }

    /// Reads the answer to one `get`, which must have `count` values, and one byte of each of their
    /// pages.
    fn values(&mut self, count: usize) -> Result<u64, Left> {
        let (mut sum, mut seen) = (0, 0);
        loop {
            let line = self.line()?;
            if line == "END" {
                break;
            }
            let length = line.strip_prefix("VALUE ").and_then(|rest| rest.rsplit(' ').next());
            let length: usize = length.ok_or(format!("memcached said {line}"))?.parse()?;
            self.bytes.resize(length + 2, 0);
            self.stream.read_exact(&mut self.bytes)?;
            sum += touch(&self.bytes[..length]);
            seen += 1;
        }
        match seen == count {
            true => Ok(sum),
            false => Err(Left::Failed(format!("memcached gave {seen} of {count} values"))),
        }
    }

    fn line(&mut self) -> Result<String, Left> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}
