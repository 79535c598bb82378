//! Saved timelines: the effective versions whose objects are in memory, for the next process.
//!
//! ```text
//!   0  8 B   "IOVNOTE1"
//!   8  u64   sequence number; of two complete files the later one counts
//!  16  u64   bytes of JSON
//!  24  u32   CRC-32C of the JSON, then of the 24 bytes before
//!  28        JSON
//! ```
//!
//! All numbers are little endian.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crc_fast::{CrcAlgorithm, Digest};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::io::{pread, pwrite, retry_on_intr};
use serde::{Deserialize, Serialize};

use crate::interval::Timestamp;
use crate::object::ObjectPath;
use crate::source::VersionRecord;

const MAGIC: &[u8; 8] = b"IOVNOTE1";
const HEAD_BYTES: usize = 28;
/// Larger files are rejected; no saved state comes near this size.
const MAX_JSON_BYTES: usize = 1 << 30;

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedTimelines {
    /// The source of the versions.
    pub(crate) source: String,
    /// Each version once; pieces refer to them by index.
    pub(crate) versions: Vec<VersionRecord>,
    pub(crate) series: Vec<SavedSeries>,
}

/// A query and the spans of time in which versions are effective.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedSeries {
    pub(crate) path: ObjectPath,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) not_before: Option<Timestamp>,
    pub(crate) not_after: Option<Timestamp>,
    pub(crate) pieces: Vec<(Timestamp, Timestamp, usize)>,
}

fn crc(head: &[u8], json: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(json);
    digest.update(head);
    // A CRC-32 has 32 bits.
    digest.finalize() as u32
}

/// Two files, written alternately.
#[derive(Debug)]
pub(super) struct TimelineFiles {
    files: [OwnedFd; 2],
    written: u64,
    last: Vec<u8>,
}

impl TimelineFiles {
    pub(super) fn new() -> io::Result<Self> {
        let file = || memfd_create("iovcache-notes", MemfdFlags::CLOEXEC);
        Ok(Self { files: [file()?, file()?], written: 0, last: Vec::new() })
    }

    pub(super) fn files(&self) -> &[OwnedFd; 2] {
        &self.files
    }

    /// Writes the state, if it differs from the last one written.
    ///
    /// # Errors
    /// [`io::Error`] if it cannot be written.
    pub(super) fn write(&mut self, saved_timelines: &SavedTimelines) -> io::Result<()> {
        let json = serde_json::to_vec(saved_timelines)?;
        if json == self.last {
            return Ok(());
        }
        let file = &self.files[usize::from(self.written.is_multiple_of(2))];
        let mut bytes = Vec::with_capacity(HEAD_BYTES + json.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(self.written + 1).to_le_bytes());
        bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
        let crc = crc(&bytes, &json);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&json);
        ftruncate(file, bytes.len() as u64)?;
        let mut at = 0;
        while at < bytes.len() {
            at += retry_on_intr(|| pwrite(file, &bytes[at..], at as u64))?;
        }
        self.written += 1;
        self.last = json;
        Ok(())
    }

    /// The latest complete one of these files.
    pub(super) fn read(files: &[OwnedFd]) -> Option<SavedTimelines> {
        let whole = files.iter().filter_map(read_one);
        let (_, json) = whole.max_by_key(|(number, _)| *number)?;
        serde_json::from_slice(&json).ok()
    }
}

fn read_one(file: &OwnedFd) -> Option<(u64, Vec<u8>)> {
    let length = usize::try_from(fstat(file.as_fd()).ok()?.st_size).ok()?;
    if !(HEAD_BYTES..=MAX_JSON_BYTES).contains(&length) {
        return None;
    }
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        match retry_on_intr(|| pread(file, &mut bytes[at..], at as u64)).ok()? {
            0 => return None,
            count => at += count,
        }
    }
    let json = bytes.split_off(HEAD_BYTES);
    let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes);
    let sum = bytes[24..].try_into().map(u32::from_le_bytes).ok()?;
    let right = bytes[..8] == *MAGIC
        && number(16).ok()? == json.len() as u64
        && sum == crc(&bytes[..24], &json);
    right.then(|| number(8).ok().map(|number| (number, json)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved_timelines(source: &str) -> SavedTimelines {
        SavedTimelines { source: source.to_owned(), versions: Vec::new(), series: Vec::new() }
    }

    #[test]
    fn the_latest_that_is_whole_counts_wherever_the_writing_of_the_next_broke_off() {
        let mut notes = TimelineFiles::new().unwrap();
        assert_eq!(TimelineFiles::read(notes.files()), None);
        for source in ["one", "two", "two", "three"] {
            notes.write(&saved_timelines(source)).unwrap();
            assert_eq!(TimelineFiles::read(notes.files()), Some(saved_timelines(source)));
        }
        assert_eq!(notes.written, 3, "an unchanged state is not written again");
        // 'four' overwrites 'two': half written, it must count as not written.
        let whole = {
            let mut other = TimelineFiles::new().unwrap();
            other.written = 3;
            other.write(&saved_timelines("four")).unwrap();
            let mut bytes = vec![0; fstat(&other.files[0]).unwrap().st_size as usize];
            pread(&other.files[0], &mut bytes[..], 0).unwrap();
            bytes
        };
        for end in 0..whole.len() {
            ftruncate(&notes.files[0], whole.len() as u64).unwrap();
            pwrite(&notes.files[0], &whole[..end], 0).unwrap();
            let zeros = vec![0; whole.len() - end];
            pwrite(&notes.files[0], &zeros, end as u64).unwrap();
            assert_eq!(TimelineFiles::read(notes.files()), Some(saved_timelines("three")), "{end}");
        }
        pwrite(&notes.files[0], &whole, 0).unwrap();
        assert_eq!(TimelineFiles::read(notes.files()), Some(saved_timelines("four")));
    }
}
