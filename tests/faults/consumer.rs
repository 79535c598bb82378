//! A consumer in its own process, which executes commands line by line.
//!
//! ```text
//!  Consumer (here) ──stdin: a line of JSON──▶ child::run (there) ──▶ service
//!                  ◀──stdout: one line each──
//! ```
//!
//! Every byte that it reads is compared with the right byte for the object's name; a wrong one
//! aborts the process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::common::{PATIENCE, signal};

const VARIABLE: &str = "IOVCACHE_TEST_CONSUMER";

/// A running consumer; dropping it kills the process.
pub(crate) struct Consumer {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<Value>,
}

impl Consumer {
    /// Starts a consumer under a name, attached to the service at `url`.
    pub(crate) fn start(url: &str, name: &str) -> Self {
        let about = json!({"url": url, "name": name});
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["the_process_of_a_consumer", "--exact", "--nocapture"])
            .env(VARIABLE, about.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test harness around it prints other lines too.
                if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line)
                    && sender.send(value).is_err()
                {
                    return;
                }
            }
        });
        Self { child, stdin, lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command without waiting.
    pub(crate) fn tell(&mut self, command: &Value) {
        writeln!(self.stdin, "{command}").unwrap();
    }

    /// Waits for its next answer.
    pub(crate) fn said(&mut self) -> Value {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(value) => value,
            Err(error) => panic!("it says nothing more ({error}): {:?}", self.child.try_wait()),
        }
    }

    /// Its last answer, if there was one since the previous call.
    pub(crate) fn last_said(&mut self) -> Option<Value> {
        self.lines.try_iter().last()
    }

    /// Sends a command, and returns the answer.
    pub(crate) fn ask(&mut self, command: &Value) -> Value {
        self.tell(command);
        self.said()
    }

    /// Requests a table and keeps it: the column of each path at `at`.
    pub(crate) fn take(&mut self, paths: &[u64], at: i64) {
        let said = self.ask(&json!({"take": paths, "at": at}));
        assert!(said["taken"].is_u64(), "{said}");
    }

    /// Reads all kept tables again. Every cell must be right, or no longer resolve.
    pub(crate) fn verify(&mut self) -> Value {
        self.ask(&json!({"verify": true}))
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Kills with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Checks that the process lives: a wrong byte would have aborted it.
    pub(crate) fn check_alive(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "it ended by itself: see above");
    }

    /// Makes it end by itself, after a last check of all kept tables.
    pub(crate) fn end(mut self) -> ExitStatus {
        self.tell(&json!({"end": true}));
        self.child.wait().unwrap()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The consumer's own process.
pub(crate) mod child {
    use std::path::Path;
    use std::time::Duration;

    use iovcache::client::{Attachment, Client, ClientError, ClientOptions, Table, TableRequest};
    use iovcache::error::{Coded as _, ErrorKind};
    use serde_json::{Value, json};

    use super::VARIABLE;
    use crate::data::{Chance, PATHS, VERSIONS, bytes_at, path};

    /// Executes the commands on stdin; does nothing in a process that is not a consumer.
    pub(crate) fn run() {
        let Ok(about) = std::env::var(VARIABLE) else { return };
        let about: Value = serde_json::from_str(&about).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (url, name) = (about["url"].as_str().unwrap(), about["name"].as_str().unwrap());
            let options =
                ClientOptions { consumer: Some(name.to_owned()), ..ClientOptions::default() };
            let client = Client::connect_with(url, options).await.unwrap();
            let mut consumer =
                Own { client, url: url.to_owned(), name: name.to_owned(), kept: Vec::new() };
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let command: Value = serde_json::from_str(&line).unwrap();
                if command.get("end").is_some() {
                    consumer.verify();
                    return;
                }
                consumer.obey(&command).await;
            }
        });
    }

    fn say(value: &Value) {
        println!("{value}");
    }

    struct Own {
        client: Client,
        url: String,
        name: String,
        kept: Vec<(Vec<u64>, i64, Table)>,
    }

    impl Own {
        async fn obey(&mut self, command: &Value) {
            if let Some(paths) = command.get("take") {
                let paths: Vec<u64> = serde_json::from_value(paths.clone()).unwrap();
                let at = command["at"].as_i64().unwrap();
                match self.take(&paths, at).await {
                    Ok(bytes) => say(&json!({"taken": bytes})),
                    Err(error) => say(&json!({"error": error.message()})),
                }
            } else if command.get("verify").is_some() {
                let (right, stale) = self.verify();
                say(&json!({"right": right, "stale": stale}));
            } else if command.get("drop").is_some() {
                for (.., table) in self.kept.drain(..) {
                    let _ = self.client.release(table).await;
                }
                say(&json!({"dropped": true}));
            } else if command.get("old").is_some() {
                say(&json!({"old": self.old_headers()}));
            } else if command.get("send").is_some() {
                self.send_and_read_nothing(command).await;
            } else if let Some(seed) = command.get("work") {
                self.work(seed.as_u64().unwrap()).await;
            } else {
                panic!("{command} is no command");
            }
        }

        async fn take(&mut self, paths: &[u64], at: i64) -> Result<u64, ClientError> {
            let request = paths.iter().fold(TableRequest::new(), |request, number| {
                request.column(format!("c{number}"), path(*number))
            });
            let table = self.client.table(request.timestamps([at])).await?;
            let bytes = check(paths, at, &table)?;
            self.kept.push((paths.to_vec(), at, table));
            Ok(bytes)
        }

        /// Number of kept tables that are right, and of those that no longer resolve.
        fn verify(&self) -> (u64, u64) {
            let (mut right, mut stale) = (0, 0);
            for (paths, at, table) in &self.kept {
                match check(paths, *at, table) {
                    Ok(_) => right += 1,
                    Err(error) if error.kind() == ErrorKind::FailedPrecondition => stale += 1,
                    Err(error) => panic!("{}", error.message()),
                }
            }
            (right, stale)
        }

        /// The results of resolving the kept tables' cells in a new attachment.
        fn old_headers(&self) -> Vec<String> {
            let folder = Path::new(self.url.strip_prefix("grpc+unix://").unwrap()).parent();
            let attach = folder.unwrap().join("attach.sock");
            let attachment = Attachment::open(&attach, &self.name, None).unwrap();
            let tables = self.kept.iter().flat_map(|(paths, at, table)| {
                paths.iter().map(move |number| (*number, *at, table))
            });
            let resolved = tables.map(|(number, at, table)| {
                let column = table.column(&format!("c{number}")).unwrap();
                let header = column.header(0).unwrap();
                let mappings = attachment.mappings_for(&header);
                match mappings.read(&header) {
                    Ok(bytes) => {
                        assert!(bytes == bytes_at(number, at), "other bytes");
                        "right".to_owned()
                    }
                    Err(error) => error.code().to_string(),
                }
            });
            resolved.collect()
        }

        /// Sends a request and never reads the answer.
        async fn send_and_read_nothing(&self, command: &Value) {
            use arrow_flight::flight_service_client::FlightServiceClient;
            let folder = Path::new(self.url.strip_prefix("grpc+unix://").unwrap()).parent();
            let attach = folder.unwrap().join("attach.sock");
            let attachment = Attachment::open(&attach, &self.name, None).unwrap();
            let mut request = command["send"].clone();
            request["session"] = attachment.session().into();
            let socket = self.url.strip_prefix("grpc+unix://").unwrap().to_owned();
            let channel = tonic::transport::Endpoint::from_static("http://localhost")
                .connect_with_connector(tower::service_fn(move |_| {
                    let socket = socket.clone();
                    async move {
                        let stream = tokio::net::UnixStream::connect(socket).await;
                        stream.map(hyper_util::rt::TokioIo::new)
                    }
                }))
                .await
                .unwrap();
            let ticket = arrow_flight::Ticket::new(request.to_string());
            let stream = FlightServiceClient::new(channel).do_get(ticket).await.unwrap();
            say(&json!({"sent": true}));
            std::future::pending::<()>().await;
            drop((stream, attachment));
        }

        /// Requests random tables, keeps some for a while, and reads all of them repeatedly.
        async fn work(&mut self, seed: u64) {
            let mut chance = Chance::new(seed);
            for tables in 1_u64.. {
                let count = 1 + chance.below(3);
                let mut paths: Vec<u64> = (0..count).map(|_| chance.below(PATHS)).collect();
                paths.sort_unstable();
                paths.dedup();
                let at = chance.below(VERSIONS * 10) as i64;
                if let Err(error) = self.take(&paths, at).await {
                    expected(&error);
                }
                if chance.one_in(4) {
                    self.read_timeframes().await;
                }
                self.verify();
                while self.kept.len() > 3 {
                    let place = chance.below(self.kept.len() as u64) as usize;
                    drop(self.kept.swap_remove(place));
                }
                if chance.one_in(3) {
                    tokio::time::sleep(Duration::from_millis(chance.below(20))).await;
                }
                say(&json!({"tables": tables}));
            }
        }

        /// Reads and reports each timeframe that waits for this consumer.
        async fn read_timeframes(&mut self) {
            let Ok(status) = self.client.status().await else { return };
            let waits = status.timeframes.iter().filter(|timeframe| {
                let state = timeframe.consumers.get(&self.name);
                state.is_some_and(|state| state.name() != "consumed")
            });
            for timeframe in waits {
                let (id, name) = (timeframe.timeframe, self.name.as_str());
                let request = TableRequest::new().timeframe(id).consumer(name);
                match self.client.table(request).await {
                    Ok(table) => {
                        // A timeframe has the column of path id % PATHS, at one time.
                        let at = (id % (VERSIONS * 10)) as i64;
                        if let Err(error) = check(&[id % PATHS], at, &table) {
                            expected(&error);
                        }
                        if let Err(error) = self.client.consumed(id, name).await {
                            expected(&error);
                        }
                    }
                    Err(error) => expected(&error),
                }
            }
        }
    }

    /// Checks that an error is one that kills can cause; any other error is a bug.
    fn expected(error: &ClientError) {
        let may = [
            ErrorKind::Unavailable,
            ErrorKind::DeadlineExceeded,
            ErrorKind::FailedPrecondition,
            // A timeframe that was dropped, or that belongs to another service.
            ErrorKind::NotFound,
        ];
        assert!(may.contains(&error.kind()), "{}", error.message());
    }

    /// Compares every cell, and returns the number of bytes read.
    fn check(paths: &[u64], at: i64, table: &Table) -> Result<u64, ClientError> {
        let mut bytes = 0;
        for number in paths {
            let cell = table.column(&format!("c{number}"))?.get(0)?.unwrap();
            if cell != bytes_at(*number, at) {
                // If it was overwritten during the read, it no longer resolves.
                table.column(&format!("c{number}"))?.get(0)?;
                eprintln!("wrong bytes of path {number} at {at}");
                std::process::abort();
            }
            bytes += cell.len() as u64;
        }
        Ok(bytes)
    }
}
