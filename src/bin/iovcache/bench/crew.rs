//! The driver's view of the consumers: it sends them timeframes, reads their reports, kills and
//! replaces them.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout};
use std::sync::mpsc as blocking;
use std::time::Duration;

use tokio::sync::mpsc;

use super::consumer::{Event, Setup, Told};
use super::process::spawn;
use crate::common::Access;
use crate::demo::Process;
use crate::failure::Failure;

/// How long consumers may take to start, all of them.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What is heard of a consumer.
#[derive(Debug)]
pub(super) struct Heard {
    /// Which of the crew.
    pub(super) place: usize,
    /// Which of those that had this place, from 0.
    pub(super) life: u32,
    /// What it says; nothing: it is gone.
    pub(super) event: Option<Event>,
}

/// A consumer's process.
struct Member {
    process: Process,
    /// What it is told goes through a thread: a consumer that does not listen holds up nobody.
    lines: blocking::Sender<String>,
    life: u32,
    /// What it was told of and has not said to be done: whether its table came.
    open: HashMap<u64, bool>,
}

/// All consumers.
pub(super) struct Crew {
    members: Vec<Member>,
    setup: Setup,
    access: Access,
    heard: mpsc::UnboundedReceiver<Heard>,
    sender: mpsc::UnboundedSender<Heard>,
}

impl Crew {
    /// Starts so many, and waits until each of them is connected.
    pub(super) async fn start(
        count: usize,
        setup: Setup,
        access: &Access,
    ) -> Result<Self, Failure> {
        let (sender, heard) = mpsc::unbounded_channel();
        let access = access.clone();
        let mut crew = Self { members: Vec::new(), setup, access, heard, sender };
        for place in 0..count {
            let member = crew.member(place, 0)?;
            crew.members.push(member);
        }
        let ready = async {
            let mut ready = 0;
            while ready < count {
                match crew.hear().await.event {
                    Some(Event::Ready) => ready += 1,
                    Some(_) => {}
                    None => return Err(Failure::failed("a consumer ended before it began")),
                }
            }
            Ok(())
        };
        let late = || Failure::failed("the consumers do not start");
        tokio::time::timeout(START_LIMIT, ready).await.map_err(|_| late())??;
        Ok(crew)
    }

    /// What the consumer of a place is called.
    pub(super) fn name(place: usize) -> String {
        format!("bench-{place:02}")
    }

    /// What all of them are called.
    pub(super) fn names(&self) -> Vec<String> {
        (0..self.members.len()).map(Self::name).collect()
    }

    fn member(&mut self, place: usize, life: u32) -> Result<Member, Failure> {
        let mut process = spawn(|command| {
            // One thread per consumer, as many machines have fewer cores than consumers.
            command.args(["bench", "--role", "consumer"]).env("TOKIO_WORKER_THREADS", "1");
            self.access.hand_on(command);
        })?;
        self.setup.name = Self::name(place);
        let setup = serde_json::to_string(&self.setup).map_err(Failure::failed)?;
        let (lines, receiver) = blocking::channel();
        // The receiver is right here.
        let _ = lines.send(setup);
        let silent = || Failure::failed("a consumer cannot be spoken to");
        let stdin = process.0.stdin.take().ok_or_else(silent)?;
        let stdout = process.0.stdout.take().ok_or_else(silent)?;
        std::thread::spawn(move || write_lines(stdin, &receiver));
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            read_events(stdout, |event| {
                // There is no receiver once the run is over.
                let _ = sender.send(Heard { place, life, event });
            });
        });
        Ok(Member { process, lines, life, open: HashMap::new() })
    }

    /// Tells all of them of a timeframe.
    pub(super) fn tell(&mut self, told: Told) {
        let line = serde_json::json!(told).to_string();
        for member in &mut self.members {
            member.open.insert(told.timeframe, false);
            // One that is gone is heard to be.
            let _ = member.lines.send(line.clone());
        }
    }

    /// What is said next. What a predecessor said before it died counts too.
    pub(super) async fn hear(&mut self) -> Heard {
        // There is a sender for as long as there is a crew.
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

    /// Whether what was heard comes from one who still has its place.
    pub(super) fn lives(&self, heard: &Heard) -> bool {
        self.members.get(heard.place).is_some_and(|member| member.life == heard.life)
    }

    /// Of how many tables nothing is known yet, and of how many timeframes not that they are done.
    pub(super) fn open(&self) -> (usize, usize) {
        let all = self.members.iter().flat_map(|member| member.open.values());
        all.fold((0, 0), |(tables, open), came| (tables + usize::from(!came), open + 1))
    }

    /// Kills one (SIGKILL) and starts another in its place. Gives the timeframes that the dead one
    /// held or was to get, and whether their tables had come.
    pub(super) fn replace(&mut self, place: usize) -> Result<Vec<(u64, bool)>, Failure> {
        let Some(member) = self.members.get_mut(place) else { return Ok(Vec::new()) };
        // It may have died by itself.
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
            Err(error) => tracing::warn!(%error, "a consumer said something else"),
        }
    }
    tell(None);
}
