//! Reads of objects that are loaded at the same time, with their digests.
//!
//! ```text
//!  loads ──LoadBuffer, read──▶ queue ──one by one──▶ blocking thread: reads some objects,
//!    ◀──LoadBuffer, MD5──────────────────────────────┘ MD5 of several at a time, until it is empty
//! ```
//!
//! A load that comes alone is read at once. While a thread is busy, further loads queue up: they are
//! hashed together, three to four times as many bytes per second as one by one, while their bytes are
//! still in the processor's cache. No load moves other tasks to another thread, as it does when it
//! blocks a thread of the runtime. Slow reads (disks, network file systems) start more threads.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::publish::md5_of;
use super::reservations::LoadBuffer;
use crate::object::Md5Sum;
use crate::shm::{MANY_LANES, md5_of_each};
use crate::source::ReadBytes;
use crate::sync::Mutex;

/// Number of threads that are started without slow reads.
const FAST_WORKERS: usize = 2;
/// Maximum number of threads.
const MAX_WORKERS: usize = 32;
/// A read that takes this long waits for a disk or a network, so that other reads can be done
/// meanwhile.
const SLOW_READ: Duration = Duration::from_millis(1);
/// Number of objects that are hashed together: if they are large, and at most.
const TOGETHER: std::ops::Range<usize> = MANY_LANES..32;
/// Bytes of small objects that are hashed together.
const BYTES_TOGETHER: usize = 512 << 10;
/// With fewer inputs most lanes would stay empty.
const LEAST_TOGETHER: usize = 3;
/// From this size on, the pages of a buffer are mapped before they are written: one call costs less
/// than a fault for each page.
const MAPPED_FROM_BYTES: u64 = 16 << 10;

/// Loads whose bytes are to be read.
#[derive(Debug, Default)]
pub(crate) struct ReadQueue {
    state: Mutex<QueueState>,
}

/// Loads that wait to be read, and the number of running workers.
#[derive(Debug, Default)]
struct QueueState {
    jobs: std::collections::VecDeque<ReadJob>,
    workers: usize,
}

/// A buffer, and the function that fills it.
struct ReadJob {
    buffer: LoadBuffer,
    read: ReadBytes,
    done: oneshot::Sender<ReadResult>,
}

/// A buffer with its bytes, and their MD5.
type ReadResult = (LoadBuffer, io::Result<Md5Sum>);

impl std::fmt::Debug for ReadJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadJob({:?})", self.buffer)
    }
}

/// One worker. It is counted down also if it panics, or never runs.
struct Worker {
    queue: Arc<ReadQueue>,
    ended: bool,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.ended {
            self.queue.state.lock().workers -= 1;
        }
    }
}

impl ReadQueue {
    /// Fills a buffer by `read`. Returns it with the MD5 of its bytes, or with the error of `read`.
    /// `None` if the runtime is shutting down; the buffer is then released.
    pub(crate) async fn read(
        self: &Arc<Self>,
        buffer: LoadBuffer,
        read: ReadBytes,
    ) -> Option<ReadResult> {
        let (done, result) = oneshot::channel();
        self.state.lock().jobs.push_back(ReadJob { buffer, read, done });
        self.start_worker(FAST_WORKERS);
        result.await.ok()
    }

    /// Starts a worker if jobs wait, unless `most` are running.
    fn start_worker(self: &Arc<Self>, most: usize) {
        let starts = {
            let mut state = self.state.lock();
            let starts = state.workers < most && !state.jobs.is_empty();
            state.workers += usize::from(starts);
            starts
        };
        if starts {
            let worker = Worker { queue: Arc::clone(self), ended: false };
            tokio::task::spawn_blocking(move || worker.run());
        }
    }
}

impl Worker {
    fn run(mut self) {
        while let Some(job) = self.next() {
            let mut filled = Vec::with_capacity(TOGETHER.start);
            let mut bytes = 0;
            let mut next = Some(job);
            while let Some(job) = next {
                let began = Instant::now();
                if let Some(job) = job.fill() {
                    bytes += job.0.settled().len();
                    filled.push(job);
                }
                if began.elapsed() >= SLOW_READ {
                    self.queue.start_worker(MAX_WORKERS);
                    // The loads need not wait for further reads.
                    break;
                }
                let more = filled.len() < TOGETHER.start
                    || (filled.len() < TOGETHER.end && bytes < BYTES_TOGETHER);
                next = if more { self.queue.state.lock().jobs.pop_front() } else { None };
            }
            hash(filled);
        }
    }

    /// The next job. `None`: the worker ends, and is counted down under the same lock, so that a job
    /// that is added later starts a new one.
    fn next(&mut self) -> Option<ReadJob> {
        let mut state = self.queue.state.lock();
        let job = state.jobs.pop_front();
        if job.is_none() {
            state.workers -= 1;
            self.ended = true;
        }
        job
    }
}

type FilledBuffer = (LoadBuffer, oneshot::Sender<ReadResult>);

impl ReadJob {
    /// Fills the buffer. `None`: the load was cancelled, or the read failed and the load knows it.
    fn fill(self) -> Option<FilledBuffer> {
        let Self { mut buffer, read, done } = self;
        if done.is_closed() {
            return None;
        }
        let size = buffer.size_bytes().unwrap_or(0);
        if size >= MAPPED_FROM_BYTES {
            buffer.map_pages(0, usize::try_from(size).unwrap_or(usize::MAX));
        }
        let room = buffer.rest_mut(0);
        let most = room.len();
        match read(room) {
            Ok(count) => {
                buffer.settle(count.min(most));
                Some((buffer, done))
            }
            Err(error) => {
                // If the load was cancelled, the buffer is released here.
                drop(done.send((buffer, Err(error))));
                None
            }
        }
    }
}

/// Hashes the buffers together, and returns each to its load.
fn hash(filled: Vec<FilledBuffer>) {
    let inputs: Vec<&[u8]> = filled.iter().map(|(buffer, _)| buffer.settled()).collect();
    let sums: Vec<Md5Sum> = match inputs.len() < LEAST_TOGETHER {
        true => inputs.into_iter().map(md5_of).collect(),
        false => md5_of_each(&inputs).into_iter().map(Md5Sum).collect(),
    };
    for ((buffer, done), md5) in filled.into_iter().zip(sums) {
        // If the load was cancelled, the buffer is released here.
        drop(done.send((buffer, Ok(md5))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::memory::reservations::Reservations;
    use crate::cache::memory::samples::home;

    fn room(places: &Arc<Reservations>, bytes: usize) -> LoadBuffer {
        places.freed(None, bytes as u64).unwrap()
    }

    fn copy(bytes: Vec<u8>) -> ReadBytes {
        Box::new(move |room| {
            room.copy_from_slice(&bytes);
            Ok(bytes.len())
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn loads_at_once_get_their_own_buffers_back_with_their_digests() {
        let places = Reservations::new(home(200));
        let queue: Arc<ReadQueue> = Arc::default();
        let loads = (0..100_usize).map(|n| {
            let bytes = vec![n as u8; n * 17];
            let (queue, buffer) = (Arc::clone(&queue), room(&places, bytes.len()));
            async move {
                let (buffer, md5) = queue.read(buffer, copy(bytes.clone())).await.unwrap();
                assert_eq!(buffer.settled(), bytes);
                assert_eq!(md5.unwrap(), md5_of(&bytes));
            }
        });
        futures::future::join_all(loads).await;
        let state = queue.state.lock();
        assert!(state.jobs.is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failed_read_fails_its_own_load_and_a_short_one_gives_fewer_bytes() {
        let places = Reservations::new(home(50));
        let queue: Arc<ReadQueue> = Arc::default();
        let loads = (0..30_usize).map(|n| {
            let (queue, buffer) = (Arc::clone(&queue), room(&places, 100));
            let read: ReadBytes = match n % 3 {
                0 => copy(vec![7; 100]),
                1 => Box::new(|room| {
                    room[..60].fill(7);
                    Ok(60)
                }),
                _ => Box::new(|_| Err(io::Error::other("broken"))),
            };
            async move {
                let (buffer, md5) = queue.read(buffer, read).await.unwrap();
                match n % 3 {
                    0 => assert_eq!(md5.unwrap(), md5_of(&[7; 100])),
                    1 => assert_eq!(
                        (buffer.settled(), md5.unwrap()),
                        (&[7; 60][..], md5_of(&[7; 60]))
                    ),
                    _ => assert_eq!(md5.unwrap_err().to_string(), "broken"),
                }
            }
        });
        futures::future::join_all(loads).await;
    }

    /// As on a network file system: each read waits.
    #[tokio::test(flavor = "multi_thread")]
    async fn slow_reads_are_done_at_the_same_time() {
        const READ: Duration = Duration::from_millis(50);
        let places = Reservations::new(home(100));
        let queue: Arc<ReadQueue> = Arc::default();
        let began = Instant::now();
        let loads = (0..60_usize).map(|_| {
            let (queue, buffer) = (Arc::clone(&queue), room(&places, 10));
            let read: ReadBytes = Box::new(|room| {
                std::thread::sleep(READ);
                Ok(room.len())
            });
            async move { queue.read(buffer, read).await.unwrap().1.unwrap() }
        });
        futures::future::join_all(loads).await;
        // One after the other on two threads they take 30 times as long as one.
        assert!(began.elapsed() < 20 * READ, "{:?}", began.elapsed());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_load_that_is_cancelled_releases_its_memory() {
        let home = home(100);
        let places = Reservations::new(Arc::clone(&home));
        let queue: Arc<ReadQueue> = Arc::default();
        for _ in 0..20 {
            let load = queue.read(room(&places, 5000), copy(vec![7; 5000]));
            let mut load = Box::pin(load);
            drop(futures::poll!(&mut load));
            drop(load);
        }
        let began = Instant::now();
        while home.pool().used_bytes() > 0 {
            assert!(began.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
