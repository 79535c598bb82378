//! Unmanaged regions: memory that somebody else owns and we place blocks into.
//!
//! ```text
//!  offset 0                                                          (no head of ours)
//!  ┌────────┬───────┬──────────┬────────┬───────┬──────────┬──────
//!  │ header │ chunk │ payload  │ header │ chunk │ payload  │ free …
//!  └────────┴───────┴──────────┴────────┴───────┴──────────┴──────
//!                   ▲ MetaHeader.handle, managed 0, region_id
//! ```
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;

use super::backing::{allocate, read_only};
use super::layout::GRANULE_BYTES;
use super::mapping::{MapAccess, Mapping};
use crate::error::{Code, Coded, ErrorKind};

/// A region into which blocks are placed instead of into segments of our own.
///
/// Its first byte is no header: blocks begin at offset 0, each 64 bytes of headers and then the
/// payload, as in a segment.
#[derive(Debug)]
pub struct Region {
    pub(super) id: u16,
    pub(super) mapping: Arc<Mapping>,
    /// There if consumers can get it through the attach socket.
    pub(super) file: Option<RegionFile>,
}

#[derive(Debug)]
pub(super) struct RegionFile {
    /// Open for reading only: what consumers get.
    pub(super) shared: OwnedFd,
    /// Locked, so that no second service places blocks into it.
    _locked: File,
}

impl Region {
    /// An existing shared-memory file, e.g. `/dev/shm/fmq_<shmid>_rg_<id>`; all of it is used, and
    /// what it held is lost.
    ///
    /// That its owner does not truncate it is for the user to see to.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn open(path: &Path, id: u16) -> Result<Self, RegionError> {
        let failed = |error| RegionError::Open { path: path.to_owned(), error };
        // A FIFO in its place must not keep us waiting.
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(flags).open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        if !facts.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "no regular file")));
        }
        let length =
            usize::try_from(facts.len()).map_err(|_| failed(io::ErrorKind::FileTooLarge.into()))?;
        if (length as u64) < 2 * GRANULE_BYTES {
            return Err(RegionError::TooSmall { got_bytes: length as u64 });
        }
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RegionError::Taken { path: path.to_owned() },
            TryLockError::Error(error) => failed(error),
        })?;
        // It may have been made by ftruncate alone. Where the file system cannot, it is for the
        // owner to see to.
        match allocate(&file, length as u64) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            allocated => allocated.map_err(failed)?,
        }
        let mapping =
            Mapping::of_file(file.as_fd(), length, MapAccess::ReadWrite).map_err(failed)?;
        let shared = read_only(path, &file).map_err(failed)?;
        let file = Some(RegionFile { shared, _locked: file });
        Ok(Self { id, mapping: Arc::new(mapping), file })
    }

    /// A range of memory. Consumers find it by its id; how they map it is between them and its
    /// owner.
    ///
    /// # Safety
    /// The `length` bytes at `base` must be readable and writable as long as the pool that gets
    /// this, and any of its blocks and mappings, lives; and nobody else may write them.
    ///
    /// # Errors
    /// [`RegionError`] if it is too small, or `base` is no multiple of 64.
    pub unsafe fn from_range(
        base: NonNull<u8>,
        length: usize,
        id: u16,
    ) -> Result<Self, RegionError> {
        if (length as u64) < 2 * GRANULE_BYTES {
            return Err(RegionError::TooSmall { got_bytes: length as u64 });
        }
        if !(base.addr().get() as u64).is_multiple_of(GRANULE_BYTES) {
            return Err(RegionError::Misaligned);
        }
        // SAFETY: this function's contract is that one's.
        let mapping = unsafe { Mapping::of_range(base, length) };
        Ok(Self { id, mapping: Arc::new(mapping), file: None })
    }
}

/// Why a region cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The file cannot be opened or mapped.
    #[error("cannot use {path} as a region")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Another service places its blocks into it.
    #[error("{path} is the region of another service that runs")]
    Taken {
        /// Which.
        path: PathBuf,
    },
    /// Nothing fits.
    #[error("a region of {got_bytes} bytes is too small: at least 128 are needed")]
    TooSmall {
        /// What it has.
        got_bytes: u64,
    },
    /// Blocks begin at multiples of 64.
    #[error("the region does not begin at a multiple of 64")]
    Misaligned,
}

impl Coded for RegionError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            Self::Open { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::PermissionDenied
            }
            Self::Open { error, .. } if error.kind() == io::ErrorKind::StorageFull => {
                ErrorKind::Unavailable
            }
            Self::Open { .. } => ErrorKind::FailedPrecondition,
            Self::Taken { .. } => ErrorKind::AlreadyExists,
            Self::TooSmall { .. } | Self::Misaligned => ErrorKind::InvalidArgument,
        }
    }

    fn code(&self) -> Code {
        Code(match self {
            Self::Open { .. } => 4030,
            Self::TooSmall { .. } => 4031,
            Self::Misaligned => 4032,
            Self::Taken { .. } => 4033,
        })
    }
}
