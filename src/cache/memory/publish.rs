//! Publication of objects: bytes become a block that resolves only after their size and MD5 were
//! checked against the description of the source.
//!
//! ```text
//!  source, disk, previous process ──bytes──▶ Reservation ──check──▶ Verified ──admit──▶ Resident
//!                                                 │ other size, other MD5
//!                                                 └──▶ NotAsDescribed, nothing is published
//! ```
//!
//! [`Residency::admit`](crate::cache::memory::residency::Residency::admit) accepts only a
//! [`Verified`], which is made only here.

use md5::{Digest as _, Md5};

use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, VersionTimes};
use crate::shm::{Block, Reservation};

/// The source's description of the bytes of a version.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    pub(crate) id: ObjectId,
    pub(crate) path: ObjectPath,
    pub(crate) times: VersionTimes,
    pub(crate) size_bytes: Option<u64>,
    pub(crate) md5: Option<Md5Sum>,
}

impl From<&ObjectInfo> for Description {
    fn from(version: &ObjectInfo) -> Self {
        let ObjectInfo { id, path, size_bytes, md5, .. } = version;
        let (path, times) = (path.clone(), VersionTimes::from(version));
        Self { id: *id, path, times, size_bytes: *size_bytes, md5: *md5 }
    }
}

/// Bytes that differ from their description.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAsDescribed {
    #[error("it has {found} bytes, expected {expected}")]
    Size { expected: u64, found: u64 },
    #[error("its MD5 is {found}, expected {expected}")]
    Md5 { expected: Md5Sum, found: Md5Sum },
}

/// Checked bytes in shared memory, not published yet.
#[derive(Debug)]
pub(crate) struct Verified {
    reservation: Reservation,
    description: Description,
}

impl Verified {
    /// Checks the whole payload of `reservation`. `md5` is the digest of the payload, if its source
    /// computed it while writing; else it is computed here, over [`hashes`](Self::hashes) bytes.
    ///
    /// # Errors
    /// [`NotAsDescribed`]; the reservation is released.
    pub(crate) fn check(
        mut description: Description,
        mut reservation: Reservation,
        md5: Option<Md5Sum>,
    ) -> Result<Self, NotAsDescribed> {
        let found = reservation.size_bytes();
        if let Some(expected) = description.size_bytes.filter(|expected| *expected != found) {
            return Err(NotAsDescribed::Size { expected, found });
        }
        if let Some(expected) = description.md5 {
            let found = md5.unwrap_or_else(|| {
                reservation.settle(reservation.size_bytes() as usize);
                md5_of(reservation.settled())
            });
            if found != expected {
                return Err(NotAsDescribed::Md5 { expected, found });
            }
        }
        description.md5 = description.md5.or(md5);
        description.size_bytes = Some(found);
        Ok(Self { reservation, description })
    }

    /// Number of bytes that [`check`](Self::check) has to hash.
    pub(crate) fn hashes(
        description: &Description,
        reservation: &Reservation,
        md5: Option<Md5Sum>,
    ) -> u64 {
        match (description.md5, md5) {
            (Some(_), None) => reservation.size_bytes(),
            _ => 0,
        }
    }

    /// The description, with the size and, if it is known, the digest of the bytes.
    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// Publishes it as a block that resolves.
    pub(crate) fn publish(self) -> (Block, Description) {
        let Self { reservation, description } = self;
        (reservation.publish(description.id), description)
    }
}

pub(crate) fn md5_of(bytes: &[u8]) -> Md5Sum {
    Md5Sum(Md5::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::memory::samples::home;
    use crate::interval::Timestamp;

    fn description(size_bytes: Option<u64>, md5: Option<Md5Sum>) -> Description {
        let path = ObjectPath::new("A/B").unwrap();
        let times = VersionTimes { from: Timestamp::default(), created: Timestamp::default() };
        Description { id: ObjectId::from_bytes([1; 16]), path, times, size_bytes, md5 }
    }

    #[test]
    fn only_bytes_of_the_described_size_and_digest_can_be_published() {
        let home = home(4);
        let freed = || {
            let mut freed = home.reserve(5).unwrap();
            freed.fill(b"right");
            freed
        };
        let (right, wrong) = (md5_of(b"right"), md5_of(b"wrong"));
        let check = |size, md5, known| Verified::check(description(size, md5), freed(), known);
        assert!(check(None, None, None).is_ok());
        assert!(check(Some(5), Some(right), None).is_ok());
        assert!(check(Some(5), Some(right), Some(right)).is_ok());
        let refused = check(Some(4), Some(right), None).unwrap_err();
        assert_eq!(refused, NotAsDescribed::Size { expected: 4, found: 5 });
        for known in [None, Some(right)] {
            let refused = check(Some(5), Some(wrong), known).unwrap_err();
            assert_eq!(refused, NotAsDescribed::Md5 { expected: wrong, found: right });
        }
        assert!(check(None, Some(right), Some(wrong)).is_err(), "the digest of the source differs");
        assert_eq!(home.pool().used_bytes(), 0, "a refused object leaves no memory in use");
        let (block, told) = check(None, None, Some(right)).unwrap().publish();
        assert_eq!((block.payload(), told.md5), (&b"right"[..], Some(right)));
    }
}
