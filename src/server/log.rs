//! The log, written by a dedicated thread: no other thread waits until its lines are read.
//!
//! ```text
//!  any thread ── line ──▶ queue (bounded in bytes) ──▶ thread "iovcache-log" ──▶ stderr
//!                           │ full: the line is dropped and counted
//! ```
//!
//! A pipe that is not read blocks its writer after 64 KiB. Here it blocks only this thread.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, MutexGuard};

/// Pause before another attempt to write to a file that is not ready (a shared terminal that is
/// non-blocking).
const RETRY: Duration = Duration::from_millis(10);

/// Writes lines to a file from a dedicated thread. Clones share queue and thread.
///
/// Each call of [`write`](Write::write) takes one whole line, its line end included. It never
/// blocks: a line that finds no room in the queue is dropped and counted.
#[derive(Debug, Clone)]
pub struct LogWriter(Arc<LogQueue>);

#[derive(Debug)]
struct LogQueue {
    capacity_bytes: usize,
    queue: Mutex<Queue>,
    /// The queue has lines.
    filled: Condvar,
    /// All lines were written.
    emptied: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    lines: u64,
    /// Bytes that the thread is writing now.
    writing_bytes: usize,
    /// Lines dropped since the start, because the queue was full or because writing failed.
    lost_lines: u64,
    /// Lost lines not yet reported by a notice in the log.
    unnamed_lines: u64,
}

impl LogWriter {
    /// Starts the thread. At most `capacity_bytes` wait to be written. Once there is room after
    /// lines were lost, the line `notice(count)` takes their place.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start(
        out: impl Write + Send + 'static,
        capacity_bytes: usize,
        notice: impl Fn(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(LogQueue {
            capacity_bytes,
            queue: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        });
        std::thread::Builder::new().name("iovcache-log".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run(out, notice)
        })?;
        Ok(Self(shared))
    }

    /// Lines that were lost since the start.
    pub(crate) fn lost_lines(&self) -> u64 {
        self.0.queue().lost_lines
    }

    /// Waits until everything is written, for at most `limit`. Returns whether it is.
    pub fn flush_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut queue = self.0.queue();
        while !queue.bytes.is_empty() || queue.writing_bytes > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            queue = self.0.emptied.wait_timeout(queue, left);
        }
        true
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.queue();
        if queue.bytes.len() + queue.writing_bytes + line.len() > self.0.capacity_bytes {
            queue.lost_lines += 1;
            queue.unnamed_lines += 1;
        } else {
            queue.bytes.extend_from_slice(line);
            queue.lines += 1;
            self.0.filled.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogQueue {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Writes queued lines. The thread ends with the process: a blocked write cannot be cancelled.
    fn run(&self, mut out: impl Write, notice: impl Fn(u64) -> String) {
        loop {
            let mut queue = self.queue();
            while queue.bytes.is_empty() {
                queue = self.filled.wait(queue);
            }
            let mut bytes = std::mem::take(&mut queue.bytes);
            let lines = std::mem::take(&mut queue.lines);
            let unnamed = std::mem::take(&mut queue.unnamed_lines);
            queue.writing_bytes = bytes.len();
            drop(queue);
            if unnamed > 0 {
                bytes.extend_from_slice(notice(unnamed).as_bytes());
            }
            let written = write_whole(&mut out, &bytes);
            let mut queue = self.queue();
            queue.writing_bytes = 0;
            if written.is_err() {
                queue.lost_lines += lines;
                queue.unnamed_lines += lines + unnamed;
            }
            if queue.bytes.is_empty() {
                self.emptied.notify_all();
            }
        }
    }
}

fn write_whole(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn line(number: usize) -> Vec<u8> {
        format!("line {number} {}\n", "x".repeat(200)).into_bytes()
    }

    #[test]
    fn a_pipe_that_is_not_read_loses_lines_counts_them_and_blocks_no_caller() {
        let (reader, writer) = io::pipe().unwrap();
        // More than a pipe takes (64 KiB), so that it cannot take all that is queued.
        let mut log = LogWriter::start(writer, 256 << 10, |lost| format!("lost {lost}\n")).unwrap();
        let began = Instant::now();
        (0..10_000).for_each(|number| log.write_all(&line(number)).unwrap());
        assert!(began.elapsed() < LIMIT);
        let lost = log.lost_lines();
        assert!((1..10_000).contains(&lost), "{lost}");
        assert!(!log.flush_within(Duration::from_millis(20)));
        // Once it is read again the log continues and reports the number of lost lines.
        let read = std::thread::spawn(move || {
            let lines = BufReader::new(reader).lines().map(Result::unwrap);
            lines.take_while(|line| line != "last").collect::<Vec<_>>()
        });
        assert!(log.flush_within(LIMIT));
        assert_eq!(log.lost_lines(), lost);
        log.write_all(b"after\n").unwrap();
        assert!(log.flush_within(LIMIT));
        log.write_all(b"last\n").unwrap();
        let (notices, lines): (Vec<String>, Vec<String>) =
            read.join().unwrap().into_iter().partition(|line| line.starts_with("lost"));
        let told: u64 = notices.iter().map(|line| line[5..].parse::<u64>().unwrap()).sum();
        assert_eq!(told, lost);
        // "after", and whole lines.
        assert_eq!(lines.len() as u64 - 1 + lost, 10_000);
        assert!(lines.iter().filter(|line| line.starts_with("line")).all(|line| line.len() > 200));
    }

    #[test]
    fn a_reader_that_is_gone_loses_the_lines_and_nothing_else() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut log = LogWriter::start(writer, 1 << 10, |_| String::new()).unwrap();
        log.write_all(b"one\n").unwrap();
        assert!(log.flush_within(LIMIT));
        assert_eq!(log.lost_lines(), 1);
    }

    #[test]
    fn a_line_longer_than_the_queue_is_lost_whole() {
        let mut log = LogWriter::start(io::sink(), 100, |_| String::new()).unwrap();
        log.write_all(&line(1)).unwrap();
        log.write_all(b"short\n").unwrap();
        assert!(log.flush_within(LIMIT));
        assert_eq!(log.lost_lines(), 1);
    }
}
