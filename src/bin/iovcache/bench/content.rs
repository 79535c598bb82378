//! The bytes of versions, derived from path and number, and a repository filled with them.

use std::io::{self, Read};
use std::path::Path;

use iovcache::source::repository::{NewVersion, RepositoryWriter};
use iovcache::{ObjectPath, Timestamp, ValidityInterval};

use super::profile::{PathPlan, Profile};
use super::random::Random;
use crate::common::progress;
use crate::failure::Failure;

/// Length of the repeated page: a prime, so that no block, page or batch begins at the same offset
/// of it twice.
const PAGE_BYTES: usize = 65_521;
/// Number of objects written at the same time.
const WRITERS: usize = 8;

/// The CRC-32C that consumers compare.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The bytes of one version.
struct Content {
    page: Vec<u8>,
    at: usize,
    left: u64,
}

impl Content {
    fn new(path: &str, version: usize, bytes: u64) -> Self {
        let seed = path.bytes().fold(version as u64 + 1, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut random = Random::new(seed);
        let length = usize::try_from(bytes).unwrap_or(PAGE_BYTES).min(PAGE_BYTES);
        let words = std::iter::repeat_with(|| random.next().to_le_bytes());
        let page = words.flatten().take(length).collect();
        Self { page, at: 0, left: bytes }
    }
}

impl Read for Content {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let count = into.len().min(left).min(self.page.len() - self.at);
        into[..count].copy_from_slice(&self.page[self.at..self.at + count]);
        self.at = (self.at + count) % self.page.len().max(1);
        self.left -= count as u64;
        Ok(count)
    }
}

/// A reader that computes the checksum of the bytes that pass through.
struct Summed<'a, R> {
    reader: R,
    digest: &'a mut crc_fast::Digest,
}

impl<R: Read> Read for Summed<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(into)?;
        self.digest.update(&into[..count]);
        Ok(count)
    }
}

/// Writes every version of a profile into the repository `folder`, and sets their checksums.
pub(super) fn fill(folder: &Path, profile: &mut Profile) -> Result<(), Failure> {
    let writer = RepositoryWriter::new(folder)?;
    let bar = progress("objects", profile.versions() as u64);
    let each = profile.paths.len().div_ceil(WRITERS).max(1);
    let filled: Result<(), Failure> = std::thread::scope(|scope| {
        let paths = profile.paths.chunks_mut(each);
        let (writer, bar) = (&writer, &bar);
        let threads: Vec<_> = paths
            .map(|paths| {
                scope.spawn(move || {
                    paths.iter_mut().try_for_each(|path| {
                        put_all(writer, path)?;
                        bar.inc(path.versions.len() as u64);
                        Ok(())
                    })
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::failed("a thread that writes objects panicked")))
        })
    });
    bar.finish_and_clear();
    filled
}

fn put_all(writer: &RepositoryWriter, path: &mut PathPlan) -> Result<(), Failure> {
    for (number, version) in path.versions.iter_mut().enumerate() {
        let [from, until, created] =
            [version.from, version.until, version.created].map(Timestamp::from_millis);
        let new = NewVersion {
            path: ObjectPath::new(&path.path)?,
            validity: ValidityInterval::new(from, until)?,
            created,
            id: None,
            file_name: "object".to_owned(),
            metadata: Default::default(),
        };
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let reader = Content::new(&path.path, number, version.bytes);
        writer.put(&new, &mut Summed { reader, digest: &mut digest })?;
        version.checksum = u32::try_from(digest.finalize()).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(path: &str, version: usize, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        Content::new(path, version, count).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn versions_differ_and_are_the_same_each_time() {
        let one = bytes("A/B", 0, 200_000);
        assert_eq!(one.len(), 200_000);
        assert_eq!(one, bytes("A/B", 0, 200_000));
        assert_ne!(one, bytes("A/B", 1, 200_000));
        assert_ne!(one, bytes("A/C", 0, 200_000));
        assert_ne!(one[..4096], one[65_536..65_536 + 4096]);
        assert!(bytes("A/B", 0, 0).is_empty());
    }

    #[test]
    fn the_checksum_is_that_of_the_bytes() {
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let reader = Content::new("A/B", 3, 70_000);
        let mut all = Vec::new();
        Summed { reader, digest: &mut digest }.read_to_end(&mut all).unwrap();
        assert_eq!(u64::from(checksum(&all)), digest.finalize());
    }
}
