//! Segment numbers within a FairMQ session.
//!
//! ```text
//!  /dev/shm/iovcache_<shmid>.numbers        the next number, for all caches of the session
//!  /dev/shm/iovcache_<shmid>.<first>.lock   held by the cache that counts from <first>
//! ```
//!
//! A device keeps its mapping of a number, and would read other bytes under old MetaHeaders if the
//! number were reused. So numbers are never reused in a session, by any cache: the file with the
//! next one outlives the caches, and is locked while a number is taken.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// Longest wait for another cache that takes a number.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// The file with the next number, and the range of one cache.
#[derive(Debug)]
pub(super) struct NumberLog {
    path: PathBuf,
    first: u16,
}

impl NumberLog {
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the file holds no number.
    pub(super) fn open(folder: &Path, shmid: &str, first: u16) -> io::Result<Self> {
        let log = Self { path: folder.join(format!("iovcache_{shmid}.numbers")), first };
        log.locked()?;
        Ok(log)
    }

    /// The number from which the cache counts.
    pub(super) fn first(&self) -> u16 {
        self.first
    }

    /// Takes the next number from `first` on for which `is_free` holds. It counts as used from now
    /// on, even if no segment is created.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] if the session has no number left.
    pub(super) fn take(&self, is_free: impl Fn(u16) -> bool) -> io::Result<u16> {
        let (file, next) = self.locked()?;
        let from = next.max(u32::from(self.first));
        let numbers = (from..=u32::from(u16::MAX)).filter_map(|number| u16::try_from(number).ok());
        let number = numbers
            .into_iter()
            .find(|number| is_free(*number))
            .ok_or_else(|| self.used_up(from))?;
        // Numbers ascend, so the new text covers the old one.
        file.write_all_at(format!("{}\n", u32::from(number) + 1).as_bytes(), 0)?;
        Ok(number)
    }

    /// Records that every number up to `last` is used.
    pub(super) fn used_to(&self, last: u16) -> io::Result<()> {
        let (file, next) = self.locked()?;
        if next <= u32::from(last) {
            file.write_all_at(format!("{}\n", u32::from(last) + 1).as_bytes(), 0)?;
        }
        Ok(())
    }

    /// Opens and locks the file until it is dropped; returns it with its number.
    fn locked(&self) -> io::Result<(File, u32)> {
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o640);
        let mut file = options.custom_flags(flags).open(&self.path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
        })?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_LIMIT => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(TryLockError::WouldBlock) => {
                    let message = format!(
                        "{} is locked by another process for {} s: expected another cache of the \
                         session to take its number in a moment; end the process that holds it",
                        self.path.display(),
                        LOCK_LIMIT.as_secs()
                    );
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, message));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        let mut text = String::new();
        (&mut file).take(16).read_to_string(&mut text)?;
        let next = match text.trim() {
            "" => 0,
            text => text.parse::<u32>().map_err(|_| {
                let message = format!(
                    "{} holds {text:?}, expected the next number of a segment: remove it when no \
                     device of the session runs",
                    self.path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, message)
            })?,
        };
        Ok((file, next))
    }

    fn used_up(&self, from: u32) -> io::Error {
        let message = format!(
            "every number of a segment from {from} on was used in this FairMQ session: use a new \
             session, or remove {} when no device of this one runs",
            self.path.display()
        );
        io::Error::new(io::ErrorKind::QuotaExceeded, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_once_by_however_many_caches_at_the_same_time() {
        let folder = tempfile::tempdir().unwrap();
        let taken: Vec<u16> = std::thread::scope(|scope| {
            let caches = [5, 5, 9, 0].map(|first| {
                let log = NumberLog::open(folder.path(), "abc", first).unwrap();
                scope
                    .spawn(move || (0..50).map(|_| log.take(|_| true).unwrap()).collect::<Vec<_>>())
            });
            caches.into_iter().flat_map(|cache| cache.join().unwrap()).collect()
        });
        let mut once = taken.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), taken.len());
    }

    #[test]
    fn a_number_that_is_not_free_is_left_out_and_none_below_the_range_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let log = NumberLog::open(folder.path(), "abc", 8).unwrap();
        assert_eq!(log.take(|number| number != 8).unwrap(), 9);
        log.used_to(20).unwrap();
        log.used_to(3).unwrap();
        assert_eq!(log.take(|_| true).unwrap(), 21);
        assert_eq!(NumberLog::open(folder.path(), "abc", 0).unwrap().take(|_| true).unwrap(), 22);
    }
}
