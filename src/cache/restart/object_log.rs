//! The object log: records the location of every object in an unnamed file.
//!
//! ```text
//!   0  u64   generation of the block; 0: empty record
//!   8  u64   its handle, as in a MetaHeader
//!  16  u64   bytes of the payload
//!  24  16 B  object id
//!  40  16 B  MD5 of the payload
//!  56  u32   CRC-32C of the payload
//!  60  u16   segment
//!  62  u8    1: the MD5 is known
//!  63  u8    bytes of the path
//!  64        the path, then zeros
//! 236  i64   beginning of the validity of the version (ms); 0 in records of older services
//! 244  i64   its creation time (ms); 0 in records of older services
//! 252  u32   CRC-32C of all bytes before
//! ```
//!
//! All numbers are little endian. Objects whose path does not fit are not recorded, and are loaded
//! again after a restart.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crc_fast::{CrcAlgorithm, checksum};
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::io::{pread, pwrite, retry_on_intr};

use crate::interval::Timestamp;
use crate::object::{Md5Sum, ObjectId, ObjectPath, VersionTimes};
use crate::shm::MetaHeader;
use crate::sync::{Mutex, MutexGuard};

const RECORD_BYTES: usize = 256;
const PATH_AT: usize = 64;
const TIMES_AT: usize = 236;
const CRC_AT: usize = RECORD_BYTES - 4;

/// An object and its location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogRecord {
    pub(crate) header: MetaHeader,
    pub(crate) id: ObjectId,
    pub(crate) md5: Option<Md5Sum>,
    pub(crate) crc32c: u32,
    pub(crate) path: ObjectPath,
    pub(crate) times: VersionTimes,
}

fn crc(bytes: &[u8]) -> u32 {
    // A CRC-32 has 32 bits.
    checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

impl LogRecord {
    /// `None` if the path does not fit, or the object is in no segment.
    fn to_bytes(&self) -> Option<[u8; RECORD_BYTES]> {
        let path = self.path.as_str().as_bytes();
        if path.len() > TIMES_AT - PATH_AT || self.header.managed != 1 {
            return None;
        }
        let mut bytes = [0; RECORD_BYTES];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &self.header.hint.to_le_bytes());
        put(8, &self.header.handle.to_le_bytes());
        put(16, &self.header.size.to_le_bytes());
        put(24, self.id.as_bytes());
        put(40, &self.md5.unwrap_or(Md5Sum([0; 16])).0);
        put(56, &self.crc32c.to_le_bytes());
        put(60, &self.header.segment_id.to_le_bytes());
        put(62, &[u8::from(self.md5.is_some()), path.len() as u8]);
        put(PATH_AT, path);
        put(TIMES_AT, &self.times.from.as_millis().to_le_bytes());
        put(TIMES_AT + 8, &self.times.created.as_millis().to_le_bytes());
        let crc = crc(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        Some(bytes)
    }

    /// `None` if the record is empty or incomplete.
    fn parse(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        fn part<const N: usize>(bytes: &[u8; RECORD_BYTES], at: usize) -> [u8; N] {
            let mut part = [0; N];
            part.copy_from_slice(&bytes[at..at + N]);
            part
        }
        let generation = u64::from_le_bytes(part(bytes, 0));
        if generation == 0 || crc(&bytes[..CRC_AT]) != u32::from_le_bytes(part(bytes, CRC_AT)) {
            return None;
        }
        let path = bytes.get(PATH_AT..PATH_AT + usize::from(bytes[63]))?;
        let time = |at| Timestamp::from_millis(i64::from_le_bytes(part(bytes, at)));
        Some(Self {
            header: MetaHeader::managed(
                u16::from_le_bytes(part(bytes, 60)),
                i64::from_le_bytes(part(bytes, 8)),
                u64::from_le_bytes(part(bytes, 16)),
                generation,
            ),
            id: ObjectId::from_bytes(part(bytes, 24)),
            md5: (bytes[62] == 1).then(|| Md5Sum(part(bytes, 40))),
            crc32c: u32::from_le_bytes(part(bytes, 56)),
            path: ObjectPath::new(std::str::from_utf8(path).ok()?).ok()?,
            times: VersionTimes { from: time(TIMES_AT), created: time(TIMES_AT + 8) },
        })
    }
}

/// The records of all objects in the segments of this process.
#[derive(Debug)]
pub(crate) struct ObjectLog {
    file: OwnedFd,
    places: Mutex<FreeSlots>,
    /// Frozen: no further changes.
    left: AtomicBool,
}

/// Slots of erased records, and the first slot that was never used.
#[derive(Debug, Default)]
struct FreeSlots {
    free: Vec<u64>,
    next: u64,
}

/// The record of an object. Dropping it erases the record, before the block is freed.
#[derive(Debug)]
pub(crate) struct LogEntry {
    object_log: Arc<ObjectLog>,
    place: u64,
}

impl ObjectLog {
    pub(super) fn new() -> io::Result<Self> {
        let file = memfd_create("iovcache-ledger", MemfdFlags::CLOEXEC)?;
        Ok(Self { file, places: Mutex::default(), left: AtomicBool::new(false) })
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn places(&self) -> MutexGuard<'_, FreeSlots> {
        self.places.lock()
    }

    fn write(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        let at = place * RECORD_BYTES as u64;
        match retry_on_intr(|| pwrite(&self.file, bytes, at))? {
            count if count == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Records an object. On failure the next process loads it again.
    pub(crate) fn enter(self: &Arc<Self>, record: &LogRecord) -> Option<LogEntry> {
        let bytes = record.to_bytes()?;
        let place = {
            let mut places = self.places();
            places.free.pop().unwrap_or_else(|| {
                places.next += 1;
                places.next - 1
            })
        };
        let entry = LogEntry { object_log: Arc::clone(self), place };
        if let Err(error) = self.write(place, &bytes) {
            tracing::debug!(%error, "an object is not recorded for the next process");
            return None;
        }
        Some(entry)
    }

    /// Freezes the log in its current state for the next process.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// All valid records in the log of another process.
    ///
    /// # Errors
    /// [`io::Error`] if the file cannot be read.
    pub(super) fn read(file: impl AsFd) -> io::Result<Vec<LogRecord>> {
        const PIECE: usize = 4096 * RECORD_BYTES;
        let bytes = u64::try_from(fstat(&file)?.st_size).unwrap_or(0);
        let mut records = Vec::new();
        let mut piece = vec![0; PIECE];
        let mut at = 0;
        while at < bytes {
            let count = retry_on_intr(|| pread(&file, &mut piece[..], at))?;
            if count == 0 {
                break;
            }
            // A record is written by one call, so a partial one at the end is invalid.
            let (whole, _) = piece[..count].as_chunks::<RECORD_BYTES>();
            records.extend(whole.iter().filter_map(LogRecord::parse));
            at += (whole.len().max(1) * RECORD_BYTES) as u64;
        }
        Ok(records)
    }
}

impl Drop for LogEntry {
    fn drop(&mut self) {
        if self.object_log.left.load(Ordering::Acquire) {
            return;
        }
        // If the record cannot be erased, its slot is not reused either: a reader compares it with
        // the header of the block, which is zeroed next.
        if self.object_log.write(self.place, &[0; 8]).is_ok() {
            self.object_log.places().free.push(self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u8, path: &str) -> LogRecord {
        LogRecord {
            header: MetaHeader::managed(
                3,
                4144 + i64::from(number) * 64,
                10,
                7 + u64::from(number),
            ),
            id: ObjectId::from_bytes([number; 16]),
            md5: number.is_multiple_of(2).then_some(Md5Sum([number; 16])),
            crc32c: 0x1234_5678,
            path: ObjectPath::new(path).unwrap(),
            times: VersionTimes {
                from: Timestamp::from_millis(-i64::from(number)),
                created: Timestamp::from_millis(1_700_000_000_000),
            },
        }
    }

    #[test]
    fn present_files_are_read_and_removed_ones_are_not() {
        let object_log = Arc::new(ObjectLog::new().unwrap());
        let read = |object_log: &ObjectLog| {
            let mut read = ObjectLog::read(object_log.file()).unwrap();
            read.sort_by_key(|record| record.header.hint);
            read
        };
        let mut entries: Vec<_> =
            (0..5).map(|number| object_log.enter(&record(number, "A/B")).unwrap()).collect();
        assert_eq!(read(&object_log), [0, 1, 2, 3, 4].map(|number| record(number, "A/B")));
        drop(entries.remove(2));
        drop(entries.remove(0));
        assert_eq!(read(&object_log), [1, 3, 4].map(|number| record(number, "A/B")));
        // The slots are reused, and the file does not grow.
        entries.extend([5, 6].map(|number| object_log.enter(&record(number, "C")).unwrap()));
        assert_eq!(read(&object_log).len(), 5);
        assert_eq!(fstat(object_log.file()).unwrap().st_size, 5 * RECORD_BYTES as i64);
        // Once frozen it does not change.
        object_log.leave();
        drop(entries);
        assert_eq!(read(&object_log).len(), 5);
    }

    #[test]
    fn a_path_that_does_not_fit_is_left_out_and_the_longest_that_does_is_not() {
        let object_log = Arc::new(ObjectLog::new().unwrap());
        let longest = "x".repeat(TIMES_AT - PATH_AT);
        let entry = object_log.enter(&record(1, &longest)).unwrap();
        assert_eq!(ObjectLog::read(object_log.file()).unwrap(), [record(1, &longest)]);
        assert!(object_log.enter(&record(1, &format!("{longest}x"))).is_none());
        drop(entry);
    }

    #[test]
    fn half_of_a_record_is_none_wherever_the_writing_broke_off() {
        let whole = record(2, "TPC/Calib/VDrift").to_bytes().unwrap();
        let before = record(1, "TPC/Calib/Other").to_bytes().unwrap();
        for end in 0..RECORD_BYTES {
            for rest in [[0; RECORD_BYTES], before] {
                let mut torn = rest;
                torn[..end].copy_from_slice(&whole[..end]);
                let read = LogRecord::parse(&torn);
                let old = (torn == before).then(|| record(1, "TPC/Calib/Other"));
                let new = (torn == whole).then(|| record(2, "TPC/Calib/VDrift"));
                assert_eq!(read, old.or(new), "{end}");
            }
        }
        assert_eq!(LogRecord::parse(&whole), Some(record(2, "TPC/Calib/VDrift")));
    }
}
