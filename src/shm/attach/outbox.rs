//! Lines of a client to the service, in order: each is sent at once, or waits a moment for others.
//!
//! ```text
//!  send ─────────▶ waiting lines + this one ─▶ socket
//!  send_later ───▶ waiting lines ── the next line, flush, or the timer (2 ms) ─▶ socket
//! ```
//!
//! A line that is sent wakes the service, which costs the caller several microseconds. A line that can
//! wait costs one system call (the timer is set), or none if others wait already. The thread that
//! reads the socket sends them when the timer expires.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::SendFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::Serialize;

use super::wire::ClientMessage;
use crate::sync::{Mutex, MutexGuard};

/// Longest time for which a line waits for others.
const DELAY: Duration = Duration::from_millis(2);
/// Bytes of lines that wait while the service does not read its socket. Beyond, lines are refused.
const MAX_WAITING_BYTES: usize = 256 << 10;

/// The lines of one session.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: Mutex<LineQueue>,
    /// Wakes the thread that reads the socket.
    timer: OnceLock<OwnedFd>,
}

/// Lines that wait to be sent.
#[derive(Debug, Default)]
struct LineQueue {
    bytes: Vec<u8>,
    /// Number of all lines so far, modulo 2^32, with those that wait.
    lines: u32,
    is_timer_set: bool,
}

impl LineQueue {
    /// Adds a line; its number, and the place where it begins.
    fn add(&mut self, message: &impl Serialize) -> io::Result<(u32, usize)> {
        let start = self.bytes.len();
        if let Err(error) = serde_json::to_writer(&mut self.bytes, message) {
            self.bytes.truncate(start);
            return Err(error.into());
        }
        self.bytes.push(b'\n');
        self.lines = self.lines.wrapping_add(1);
        Ok((self.lines, start))
    }

    /// Removes the last line, which begins at `start`.
    fn remove(&mut self, start: usize) {
        self.bytes.truncate(start);
        self.lines = self.lines.wrapping_sub(1);
    }

    /// Sends as much as the socket takes without waiting, an error if that is nothing. The rest waits
    /// for the timer; without one it is sent by waiting.
    fn try_flush(&mut self, stream: &UnixStream, timer: Option<&OwnedFd>) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::net::send(stream, &self.bytes, flags)?;
        self.bytes.drain(..sent);
        if self.bytes.is_empty() || timer.is_some_and(|timer| self.set_timer(timer).is_ok()) {
            return Ok(());
        }
        let rest = std::mem::take(&mut self.bytes);
        (&mut &*stream).write_all(&rest)
    }

    /// Sets the timer to expire once, if it is not set.
    fn set_timer(&mut self, timer: &OwnedFd) -> io::Result<()> {
        if self.is_timer_set {
            return Ok(());
        }
        let delay = Timespec { tv_sec: 0, tv_nsec: DELAY.subsec_nanos().into() };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: never, it_value: delay };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        self.is_timer_set = true;
        Ok(())
    }
}

impl Outbox {
    /// Lines may wait from now on: their thread waits by [`until_input`](Self::until_input).
    pub(super) fn allow_waiting(&self) -> io::Result<()> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let _ = self.timer.set(timer);
        Ok(())
    }

    fn queue(&self) -> MutexGuard<'_, LineQueue> {
        self.queue.lock()
    }

    /// Sends a line, after those that wait. Blocks while the service does not read.
    pub(super) fn send(&self, stream: &UnixStream, message: &ClientMessage) -> io::Result<()> {
        let mut queue = self.queue();
        queue.add(message)?;
        let bytes = std::mem::take(&mut queue.bytes);
        (&mut &*stream).write_all(&bytes)
    }

    /// Sends a line, after those that wait, if that is possible without waiting. Its number.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(super) fn try_send(&self, stream: &UnixStream, message: &ClientMessage) -> Option<u32> {
        let mut queue = self.queue();
        let (number, start) = queue.add(message).ok()?;
        if queue.try_flush(stream, self.timer.get()).is_err() {
            queue.remove(start);
            return None;
        }
        Some(number)
    }

    /// Sends a line within [`DELAY`], or with the next one. Its number.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(super) fn send_later(&self, stream: &UnixStream, message: &ClientMessage) -> Option<u32> {
        let Some(timer) = self.timer.get() else { return self.try_send(stream, message) };
        let mut queue = self.queue();
        let (number, start) = queue.add(message).ok()?;
        let is_full = queue.bytes.len() > MAX_WAITING_BYTES;
        if queue.set_timer(timer).is_err()
            || is_full && queue.try_flush(stream, Some(timer)).is_err()
        {
            queue.remove(start);
            return None;
        }
        Some(number)
    }

    /// Sends the lines that wait, if that is possible without waiting.
    pub(super) fn flush(&self, stream: &UnixStream) {
        // Lines that could not be sent wait for the next one or the timer.
        let _ = self.queue().try_flush(stream, self.timer.get());
    }

    /// Waits until the socket has input, and sends the lines whose time has come meanwhile.
    pub(super) fn until_input(&self, stream: &UnixStream) -> io::Result<()> {
        let Some(timer) = self.timer.get() else { return Ok(()) };
        let mut wanted = PollFlags::IN;
        loop {
            let mut ready = [
                PollFd::new(stream, wanted),
                PollFd::from_borrowed_fd(timer.as_fd(), PollFlags::IN),
            ];
            poll(&mut ready, None)?;
            let [socket, expired] = ready.map(|one| one.revents());
            if socket.contains(PollFlags::OUT) || !expired.is_empty() {
                // While the service reads nothing, the socket tells when it takes more.
                let is_sent = self.send_waiting(stream, timer);
                wanted.set(PollFlags::OUT, !is_sent);
            }
            if !(socket - PollFlags::OUT).is_empty() {
                return Ok(());
            }
        }
    }

    /// Sends the lines that wait; whether that was possible.
    fn send_waiting(&self, stream: &UnixStream, timer: &OwnedFd) -> bool {
        let mut queue = self.queue();
        let _ = rustix::io::read(timer, &mut [0; 8]);
        queue.is_timer_set = false;
        queue.try_flush(stream, Some(timer)).is_ok()
    }
}

#[cfg(all(test, feature = "client"))]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::time::Instant;

    use super::*;

    fn line(lease: &str) -> ClientMessage {
        ClientMessage::Release { lease: lease.to_owned() }
    }

    fn outbox() -> (Outbox, UnixStream, BufReader<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let outbox = Outbox::default();
        outbox.allow_waiting().unwrap();
        (outbox, ours, BufReader::new(theirs))
    }

    fn next(service: &mut BufReader<UnixStream>) -> String {
        let mut line = String::new();
        service.read_line(&mut line).unwrap();
        line
    }

    #[test]
    fn a_line_that_waits_is_sent_before_the_next_one() {
        let (outbox, stream, mut service) = outbox();
        assert_eq!(outbox.send_later(&stream, &line("a")), Some(1));
        assert_eq!(outbox.send_later(&stream, &line("b")), Some(2));
        service.get_ref().set_nonblocking(true).unwrap();
        let nothing = service.read(&mut [0]).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        service.get_ref().set_nonblocking(false).unwrap();
        assert_eq!(outbox.try_send(&stream, &line("c")), Some(3));
        let lines = [next(&mut service), next(&mut service), next(&mut service)];
        let expected = ["a", "b", "c"].map(|name| format!("{{\"release\":\"{name}\"}}\n"));
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_line_that_waits_is_sent_when_the_timer_expires_each_time() {
        let (outbox, stream, mut service) = outbox();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| outbox.until_input(&stream));
            for round in 0..20 {
                let name = round.to_string();
                outbox.send_later(&stream, &line(&name)).unwrap();
                assert_eq!(next(&mut service), format!("{{\"release\":\"{name}\"}}\n"));
            }
            service.get_ref().write_all(b"x").unwrap();
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn lines_wait_for_a_service_that_does_not_read_and_are_refused_beyond_a_limit() {
        let (outbox, stream, mut service) = outbox();
        let long = line(&"x".repeat(10_000));
        let accepted = (0..10_000).take_while(|_| outbox.send_later(&stream, &long).is_some());
        let accepted = accepted.count();
        assert!(accepted >= MAX_WAITING_BYTES / 10_050, "{accepted}");
        assert_eq!(outbox.try_send(&stream, &line("no")), None);
        assert!(outbox.queue().bytes.len() <= MAX_WAITING_BYTES + 20_000);
        // All accepted lines arrive, whole and in order.
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| outbox.until_input(&stream));
            for _ in 0..accepted {
                assert_eq!(next(&mut service).len(), 10_000 + "{\"release\":\"\"}\n".len());
            }
            assert_eq!(outbox.try_send(&stream, &line("yes")), Some(accepted as u32 + 1));
            assert_eq!(next(&mut service), "{\"release\":\"yes\"}\n");
            service.get_ref().write_all(b"x").unwrap();
            waiting.join().unwrap().unwrap();
        });
    }

    #[test]
    fn the_wait_for_input_takes_no_time_of_the_processor_while_nothing_waits() {
        let (outbox, stream, service) = outbox();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let before = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                outbox.until_input(&stream).unwrap();
                let after = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                (after.tv_sec - before.tv_sec) * 1_000_000_000 + after.tv_nsec - before.tv_nsec
            });
            let began = Instant::now();
            std::thread::sleep(Duration::from_millis(300));
            service.get_ref().write_all(b"x").unwrap();
            let nanoseconds = waiting.join().unwrap();
            // Far below what a loop would take.
            assert!(nanoseconds < 30_000_000, "{nanoseconds} ns in {:?}", began.elapsed());
        });
    }
}
