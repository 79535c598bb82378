//! Digests of objects that are loaded at the same time, computed together.
//!
//! ```text
//!  loads ──LoadBuffer──▶ queue ──up to 32──▶ blocking thread: MD5 of eight at a time
//!    ◀──LoadBuffer, MD5───────────────────────────┘ until the queue is empty
//! ```
//!
//! A load that comes alone is hashed at once. While a thread is busy, further loads queue up and
//! are hashed together: up to three times as many bytes per second as one by one.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::publish::md5_of;
use super::reservations::LoadBuffer;
use crate::object::Md5Sum;
use crate::shm::md5_of_each;
use crate::sync::Mutex;

/// Maximum number of threads that hash.
const MAX_WORKERS: usize = 2;
/// Maximum number of objects that a thread takes at once, so that the other has work, too.
const TAKEN_JOBS: usize = 32;
/// With fewer inputs most lanes would stay empty.
const LEAST_TOGETHER: usize = 3;

/// Loads whose digests are to be computed.
#[derive(Debug, Default)]
pub(crate) struct DigestQueue {
    state: Mutex<QueueState>,
}

/// Bodies that wait for their digest, and the number of running workers.
#[derive(Debug, Default)]
struct QueueState {
    jobs: Vec<DigestJob>,
    workers: usize,
}

/// A loaded body, returned with its MD5.
#[derive(Debug)]
struct DigestJob {
    buffer: LoadBuffer,
    done: oneshot::Sender<(LoadBuffer, Md5Sum)>,
}

/// One worker. It is counted down also if it panics, or never runs.
struct Worker {
    queue: Arc<DigestQueue>,
    ended: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.ended {
            self.queue.state.lock().workers -= 1;
        }
    }
}

impl DigestQueue {
    /// The MD5 of the settled bytes of a buffer. `None` if the runtime is shutting down; the buffer
    /// is then released.
    pub(crate) async fn md5(self: &Arc<Self>, buffer: LoadBuffer) -> Option<(LoadBuffer, Md5Sum)> {
        let (done, result) = oneshot::channel();
        let starts = {
            let mut state = self.state.lock();
            state.jobs.push(DigestJob { buffer, done });
            let starts = state.workers < MAX_WORKERS;
            state.workers += usize::from(starts);
            starts
        };
        if starts {
            let worker = Worker { queue: Arc::clone(self), ended: false };
            tokio::task::spawn_blocking(move || worker.run());
        }
        result.await.ok()
    }
}

impl Worker {
    fn run(mut self) {
        loop {
            let jobs = {
                let mut state = self.queue.state.lock();
                if state.jobs.is_empty() {
                    // Under the same lock: a job that is added now starts a new worker.
                    state.workers -= 1;
                    self.ended = true;
                    return;
                }
                let count = state.jobs.len().min(TAKEN_JOBS);
                state.jobs.drain(..count).collect::<Vec<_>>()
            };
            // A load that was cancelled needs no digest.
            let jobs: Vec<DigestJob> =
                jobs.into_iter().filter(|job| !job.done.is_closed()).collect();
            let inputs: Vec<&[u8]> = jobs.iter().map(|job| job.buffer.settled()).collect();
            let sums: Vec<Md5Sum> = match inputs.len() < LEAST_TOGETHER {
                true => inputs.into_iter().map(md5_of).collect(),
                false => md5_of_each(&inputs).into_iter().map(Md5Sum).collect(),
            };
            for (DigestJob { buffer, done }, md5) in jobs.into_iter().zip(sums) {
                // If the load was cancelled, the buffer is released here.
                drop(done.send((buffer, md5)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::memory::reservations::Reservations;
    use crate::cache::memory::samples::home;

    fn buffer(places: &Arc<Reservations>, bytes: &[u8]) -> LoadBuffer {
        let mut buffer = places.freed(None, bytes.len() as u64).unwrap();
        buffer.append(bytes);
        buffer
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn loads_at_once_get_their_own_buffers_back_with_their_digests() {
        let places = Reservations::new(home(200));
        let queue: Arc<DigestQueue> = Arc::default();
        let loads = (0..100_usize).map(|n| {
            let bytes = vec![n as u8; n * 17];
            let (queue, buffer) = (Arc::clone(&queue), buffer(&places, &bytes));
            async move {
                let (buffer, md5) = queue.md5(buffer).await.unwrap();
                assert_eq!(buffer.settled(), bytes);
                assert_eq!(md5, md5_of(&bytes));
            }
        });
        futures::future::join_all(loads).await;
        let state = queue.state.lock();
        assert!(state.jobs.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_load_that_is_cancelled_releases_its_memory() {
        let home = home(100);
        let places = Reservations::new(Arc::clone(&home));
        let queue: Arc<DigestQueue> = Arc::default();
        for _ in 0..20 {
            let load = queue.md5(buffer(&places, &[7; 5000]));
            let mut load = Box::pin(load);
            drop(futures::poll!(&mut load));
            drop(load);
        }
        let began = std::time::Instant::now();
        while home.pool().used_bytes() > 0 {
            assert!(began.elapsed() < std::time::Duration::from_secs(10));
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}
