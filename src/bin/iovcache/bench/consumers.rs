//! The consumers as the driver sees them: it sends them timeframes, reads their messages, kills and
//! replaces them.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc as blocking;
use std::time::Duration;

use tokio::sync::mpsc;

use super::consumer::{Event, RegisteredTimeframe, Setup};
use super::process::spawn;
use crate::common::Access;
use crate::demo::Process;
use crate::failure::Failure;

/// Time limit for the start of all consumers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A message of a consumer.
#[derive(Debug)]
pub(super) struct ConsumerMessage {
    /// Index of the consumer.
    pub(super) place: usize,
    /// Number of predecessors of this process under the same index.
    pub(super) life: u32,
    /// The event; `None`: the process ended.
    pub(super) event: Option<Event>,
}

/// A consumer's process.
struct ConsumerProcess {
    process: Process,
    /// Messages to the process. A thread writes them: a consumer that does not read must not block
    /// the others.
    lines: blocking::Sender<String>,
    life: u32,
    /// Timeframes sent and not yet done, each with whether its table came.
    open: HashMap<u64, bool>,
}

/// All consumers.
pub(super) struct Consumers {
    members: Vec<ConsumerProcess>,
    setup: Setup,
    access: Access,
    heard: mpsc::UnboundedReceiver<ConsumerMessage>,
    sender: mpsc::UnboundedSender<ConsumerMessage>,
}

impl Consumers {
    /// Starts the consumers and waits until each of them is connected.
    pub(super) async fn start(
        count: usize,
        setup: Setup,
        access: &Access,
    ) -> Result<Self, Failure> {
        let (sender, heard) = mpsc::unbounded_channel();
        let access = access.clone();
        let mut consumers = Self { members: Vec::new(), setup, access, heard, sender };
        for place in 0..count {
            let member = consumers.member(place, 0)?;
            consumers.members.push(member);
        }
        let ready = async {
            let mut ready = 0;
            while ready < count {
                match consumers.hear().await.event {
                    Some(Event::Ready) => ready += 1,
                    Some(_) => {}
                    None => {
                        return Err(Failure::failed("a consumer ended before it was connected"));
                    }
                }
            }
            Ok(())
        };
        let late = || Failure::failed("the consumers do not start");
        tokio::time::timeout(START_LIMIT, ready).await.map_err(|_| late())??;
        Ok(consumers)
    }

    /// Name of the consumer with index `place`.
    pub(super) fn name(place: usize) -> String {
        format!("bench-{place:02}")
    }

    /// Names of all consumers.
    pub(super) fn names(&self) -> Vec<String> {
        (0..self.members.len()).map(Self::name).collect()
    }

    fn member(&mut self, place: usize, life: u32) -> Result<ConsumerProcess, Failure> {
        let mut process = spawn(|command| {
            // One thread per consumer: many machines have fewer cores than consumers.
            command.args(["bench", "--role", "consumer"]).env("TOKIO_WORKER_THREADS", "1");
            self.access.hand_on(command);
        })?;
        self.setup.name = Self::name(place);
        let setup = serde_json::to_string(&self.setup).map_err(Failure::failed)?;
        let (lines, receiver) = blocking::channel();
        // Cannot fail: the receiver is still alive.
        let _ = lines.send(setup);
        let silent = || Failure::failed("a consumer does not read its input");
        let stdin = process.0.stdin.take().ok_or_else(silent)?;
        let stdout = process.0.stdout.take().ok_or_else(silent)?;
        std::thread::spawn(move || write_lines(stdin, &receiver));
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            read_events(stdout, |event| {
                // The receiver is gone when the run is over.
                let _ = sender.send(ConsumerMessage { place, life, event });
            });
        });
        Ok(ConsumerProcess { process, lines, life, open: HashMap::new() })
    }

    /// Sends a timeframe to all consumers.
    pub(super) fn tell(&mut self, told: RegisteredTimeframe) {
        let line = serde_json::json!(told).to_string();
        for member in &mut self.members {
            member.open.insert(told.timeframe, false);
            // The end of a process is received as a message.
            let _ = member.lines.send(line.clone());
        }
    }

    /// The next message, including those that a killed consumer sent before its end.
    pub(super) async fn hear(&mut self) -> ConsumerMessage {
        // `self` holds a sender, so the channel stays open.
        let Some(heard) = self.heard.recv().await else { std::future::pending().await };
        if let Some(member) = self.members.get_mut(heard.place)
            && member.life == heard.life
        {
            match &heard.event {
                Some(Event::Table { timeframe, .. } | Event::Failed { timeframe, .. }) => {
                    member.open.insert(*timeframe, true);
                }
                Some(Event::Done { timeframe, .. }) => {
                    member.open.remove(timeframe);
                }
                Some(Event::Ready) | None => {}
            }
        }
        heard
    }

    /// Whether the message comes from the current process of its index.
    pub(super) fn lives(&self, heard: &ConsumerMessage) -> bool {
        self.members.get(heard.place).is_some_and(|member| member.life == heard.life)
    }

    /// Number of tables that have not come, and of timeframes that are not done.
    pub(super) fn open(&self) -> (usize, usize) {
        let all = self.members.iter().flat_map(|member| member.open.values());
        all.fold((0, 0), |(tables, open), came| (tables + usize::from(!came), open + 1))
    }

    /// Kills a consumer (SIGKILL) and starts another under its index. Gives the timeframes that the
    /// killed one held or was still to get, each with whether its table had come.
    pub(super) fn replace(&mut self, place: usize) -> Result<Vec<(u64, bool)>, Failure> {
        let Some(member) = self.members.get_mut(place) else { return Ok(Vec::new()) };
        // The process may have ended by itself.
        let _ = member.process.0.kill();
        let _ = member.process.0.wait();
        let open = std::mem::take(&mut member.open);
        let life = member.life + 1;
        let successor = self.member(place, life)?;
        if let Some(member) = self.members.get_mut(place) {
            *member = successor;
        }
        Ok(open.into_iter().collect())
    }
}

fn write_lines(mut stdin: ChildStdin, lines: &blocking::Receiver<String>) {
    while let Ok(line) = lines.recv() {
        if stdin.write_all(format!("{line}\n").as_bytes()).is_err() {
            break;
        }
    }
}

fn read_events(stdout: ChildStdout, mut tell: impl FnMut(Option<Event>)) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(event) => tell(Some(event)),
            Err(error) => tracing::warn!(%error, "a line of a consumer cannot be parsed"),
        }
    }
    tell(None);
}
