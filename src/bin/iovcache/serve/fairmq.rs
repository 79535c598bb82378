//! FairMQ tasks of a service: registers its segments with FairMQ, and watches that their names
//! stay.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use iovcache::Cache;
use iovcache::error::coded;
use iovcache::shm::LostSegment;
use iovcache::table::SegmentsAnswer;
use tokio::process::Command;

/// Time limit for the program that registers segments.
const REGISTER_LIMIT: Duration = Duration::from_secs(30);
/// Interval between checks of the segments' names.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The segments could not be registered with FairMQ.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} did not register the segments with FairMQ: {reason}; run it by hand to see why, or leave out \
     fairmq_register",
    program.display()
)]
pub(crate) struct RegisterError {
    program: PathBuf,
    reason: String,
}

coded! { RegisterError => Unavailable 8030 }

/// The program that registers segments with FairMQ, with its arguments.
#[derive(Debug)]
pub(crate) struct Registrar {
    program: PathBuf,
    shmid: String,
    segments: Vec<String>,
}

impl Registrar {
    pub(crate) fn new(program: &Path, shmid: &str, segments: &SegmentsAnswer) -> Self {
        let numbers = segments.segments.iter().map(|one| format!("{}:{}", one.id, one.size));
        let (program, shmid) = (program.to_owned(), shmid.to_owned());
        Self { program, shmid, segments: numbers.collect() }
    }

    /// Registers all segments.
    ///
    /// # Errors
    /// [`RegisterError`] if the program cannot be run, fails, or takes too long.
    pub(crate) async fn register(&self) -> Result<(), RegisterError> {
        let failed = |reason| RegisterError { program: self.program.clone(), reason };
        self.run(false).await.map_err(failed)
    }

    /// Removes all segments from FairMQ's registry. A failure is logged.
    pub(crate) async fn unregister(&self) {
        if let Err(reason) = self.run(true).await {
            let program = self.program.display();
            tracing::warn!(%program, reason, "the segments stay in FairMQ's registry");
        }
    }

    async fn run(&self, is_removal: bool) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        if is_removal {
            command.arg("--remove");
        }
        command.arg(&self.shmid).args(&self.segments);
        // Stdout is reserved for the ready line.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let output = command.kill_on_drop(true).output();
        match tokio::time::timeout(REGISTER_LIMIT, output).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said.lines().last().unwrap_or_default().trim();
                Err(format!("{}: {last}", output.status))
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it took more than {} s", REGISTER_LIMIT.as_secs())),
        }
    }
}

/// Logs each segment whose name or header is lost, once.
pub(crate) async fn watch_names(cache: Cache) {
    let mut known: Vec<LostSegment> = Vec::new();
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let lost = cache.lost_segments();
        for one in lost.iter().filter(|one| !known.contains(one)) {
            tracing::error!("{one}");
        }
        known = lost;
    }
}
