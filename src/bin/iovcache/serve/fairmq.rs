//! FairMQ tasks of a service: registers its segments with FairMQ,
//! watches that their names stay, and makes lost ones anew where that is configured.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iovcache::Cache;
use iovcache::cache::{CacheError, SegmentRenewal};
use iovcache::error::coded;
use iovcache::shm::{LostSegment, SegmentLoss};

/// Time limit of the program that registers segments.
const REGISTER_LIMIT: Duration = Duration::from_secs(30);
/// Interval at which the end of that program is checked.
const EXIT_POLL: Duration = Duration::from_millis(2);
/// Interval at which the names of segments are checked.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after an attempt to make segments anew that failed: each one uses up a number.
const RENEW_RETRY: Duration = Duration::from_secs(30);

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

/// Named segments of a running service: registered, watched, and removed from FairMQ's registry at
/// the end.
#[derive(Debug)]
pub(crate) struct NamedSegments {
    registrar: Option<Arc<Registrar>>,
    /// `None` if the segments have no names of FairMQ.
    cache: Option<Cache>,
}

impl NamedSegments {
    /// Registers the segments of `cache`. If they have names, watches these, and with `renew` makes
    /// lost ones anew. Must be called within the runtime.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub(crate) async fn start(
        cache: &Cache,
        is_named: bool,
        registrar: Option<Arc<Registrar>>,
        renew: bool,
    ) -> Result<Self, RegisterError> {
        if let Some(registrar) = &registrar {
            registrar.register(cache).await?;
        }
        let cache = is_named.then(|| cache.clone());
        if let Some(cache) = cache.clone() {
            tokio::spawn(keep_names(cache, registrar.clone(), renew));
        }
        Ok(Self { registrar, cache })
    }

    /// Removes the segments from FairMQ's registry. They live until then.
    pub(crate) async fn end(self) {
        if let (Some(registrar), Some(cache)) = (self.registrar, &self.cache) {
            registrar.unregister(cache).await;
        }
    }
}

/// The program that registers segments with FairMQ, for one session.
#[derive(Debug)]
pub(crate) struct Registrar {
    program: PathBuf,
    shmid: String,
}

impl Registrar {
    pub(crate) fn new(program: &Path, shmid: &str) -> Self {
        Self { program: program.to_owned(), shmid: shmid.to_owned() }
    }

    /// Registers the segments that exist, and from now on each new one before it is used.
    ///
    /// # Errors
    /// [`RegisterError`] if the program cannot be run, fails, or takes too long.
    pub(crate) async fn register(self: &Arc<Self>, cache: &Cache) -> Result<(), RegisterError> {
        let (registrar, numbers) = (Arc::clone(self), numbers(cache));
        let run = tokio::task::spawn_blocking(move || registrar.run(false, &numbers));
        let failed = |reason| RegisterError { program: self.program.clone(), reason };
        run.await.unwrap_or_else(|error| Err(error.to_string())).map_err(failed)?;
        let registrar = Arc::clone(self);
        cache.register_segments_with(Arc::new(move |id, bytes| {
            registrar.run(false, &[format!("{id}:{bytes}")]).map_err(|reason| {
                let program = registrar.program.display();
                io::Error::other(format!("{program} did not register it with FairMQ: {reason}"))
            })
        }));
        Ok(())
    }

    /// Takes all segments out of FairMQ's registry. That it fails is logged.
    pub(crate) async fn unregister(self: &Arc<Self>, cache: &Cache) {
        self.remove(numbers(cache)).await;
    }

    async fn remove(self: &Arc<Self>, numbers: Vec<String>) {
        let registrar = Arc::clone(self);
        let run = tokio::task::spawn_blocking(move || registrar.run(true, &numbers));
        let removed = run.await.unwrap_or_else(|error| Err(error.to_string()));
        if let Err(reason) = removed {
            let program = self.program.display();
            tracing::warn!(%program, reason, "the segments stay in FairMQ's registry");
        }
    }

    /// Runs the program to its end.
    fn run(&self, is_removal: bool, numbers: &[String]) -> Result<(), String> {
        if numbers.is_empty() {
            return Ok(());
        }
        let mut command = Command::new(&self.program);
        if is_removal {
            command.arg("--remove");
        }
        command.arg(&self.shmid).args(numbers);
        // Stdout is for the ready line alone.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let stderr = child.stderr.take();
        // Read meanwhile: a full pipe would block the program.
        let said = std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut said));
            said
        });
        let status = wait(&mut child)?;
        if status.success() {
            return Ok(());
        }
        let said = said.join().unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        Err(format!("{status}: {}", said.lines().last().unwrap_or_default().trim()))
    }
}

/// Waits for the end of a program, and ends it if it takes too long.
fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if began.elapsed() < REGISTER_LIMIT => std::thread::sleep(EXIT_POLL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it took more than {} s", REGISTER_LIMIT.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// The segments that exist, as `NUMBER:BYTES`.
fn numbers(cache: &Cache) -> Vec<String> {
    let segments = cache.segments().segments;
    segments.iter().map(|one| format!("{}:{}", one.id, one.size)).collect()
}

/// Watches that the names of the segments stay; with `is_renewed`, lost segments are made anew.
async fn keep_names(cache: Cache, registrar: Option<Arc<Registrar>>, is_renewed: bool) {
    match is_renewed {
        true => renew_names(cache, registrar).await,
        false => watch_names(cache).await,
    }
}

/// Logs each segment whose name or head is lost, once.
async fn watch_names(cache: Cache) {
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

/// Makes segments anew whose name or head is lost, and logs each.
async fn renew_names(cache: Cache, registrar: Option<Arc<Registrar>>) {
    loop {
        tokio::time::sleep(WATCH_INTERVAL).await;
        let renewing = cache.clone();
        let renewed = tokio::task::spawn_blocking(move || renewing.renew_lost_segments());
        let SegmentRenewal { lost, made, error } = match renewed.await {
            Ok(renewal) => renewal,
            // The runtime ends.
            Err(_) => return,
        };
        for LostSegment { id, file, loss } in &lost {
            let what = match loss {
                SegmentLoss::Removed => "was removed",
                SegmentLoss::Overwritten => "was overwritten",
            };
            let file = file.display();
            tracing::error!(
                "segment {id}: {file} {what} by another program; it is made anew under a fresh \
                 number once no table holds its objects"
            );
        }
        if let Some(registrar) = registrar.as_ref().filter(|_| !lost.is_empty()) {
            registrar.remove(lost.iter().map(|one| format!("{}:1", one.id)).collect()).await;
        }
        if !made.is_empty() {
            tracing::info!(numbers = ?made, "segments made anew");
        }
        if let Some(error) = error {
            let error: &CacheError = &error;
            tracing::error!(%error, "lost segments cannot be made anew");
            tokio::time::sleep(RENEW_RETRY).await;
        }
    }
}
