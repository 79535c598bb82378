//! Unmanaged regions: memory owned by another process, into which the service places blocks.
//!
//! ```text
//!  offset 0                                                          (no segment head)
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
use crate::error::coded;

/// A region into which blocks are placed, instead of into segments of the service.
///
/// Its first byte is no header: blocks begin at offset 0, each 64 bytes of headers and then the
/// payload, as in a segment.
#[derive(Debug)]
pub struct Region {
    pub(super) id: u16,
    pub(super) mapping: Arc<Mapping>,
    /// Present if consumers can get the region through the attach socket.
    pub(super) file: Option<RegionFile>,
}

/// The descriptors of a region that lies in a file.
#[derive(Debug)]
pub(super) struct RegionFile {
    /// Open for reading only, for consumers.
    pub(super) shared: OwnedFd,
    /// Locked, so that no second service places blocks into it.
    _locked: File,
}

impl Region {
    /// Opens an existing shared-memory file, e.g. `/dev/shm/fmq_<shmid>_rg_<id>`. All of it is
    /// used, and its content is lost.
    ///
    /// The caller must ensure that its owner does not truncate it.
    ///
    /// # Errors
    /// [`RegionError::Open`] if it is no file that can be read and written, [`RegionError::TooSmall`],
    /// [`RegionError::Taken`] if another service uses it.
    pub fn open(path: &Path, id: u16) -> Result<Self, RegionError> {
        let failed = |error| RegionError::Open { path: path.to_owned(), error };
        let (file, length) = open_file(path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RegionError::Taken { path: path.to_owned() },
            TryLockError::Error(error) => failed(error),
        })?;
        // The file may have been sized by ftruncate alone. If the file system cannot allocate, that
        // is up to the owner.
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

    /// Checks that [`open`](Self::open) can use a file, unless another service uses it. Changes
    /// nothing.
    ///
    /// # Errors
    /// [`RegionError::Open`], [`RegionError::TooSmall`].
    #[doc(hidden)]
    pub fn check(path: &Path) -> Result<(), RegionError> {
        open_file(path).map(drop)
    }

    /// Uses a range of memory. Consumers find it by its id; mapping it is up to them and its owner.
    ///
    /// # Safety
    /// The `length` bytes at `base` must be readable and writable as long as the pool that gets
    /// this, and any of its blocks and mappings, live; and they must not be written otherwise.
    ///
    /// # Errors
    /// [`RegionError`] if it is too small, or `base` is not a multiple of 64.
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
        // SAFETY: this function has the same contract.
        let mapping = unsafe { Mapping::of_range(base, length) };
        Ok(Self { id, mapping: Arc::new(mapping), file: None })
    }
}

/// Opens the file of a region, and gives its size in bytes.
fn open_file(path: &Path) -> Result<(File, usize), RegionError> {
    let failed = |error| RegionError::Open { path: path.to_owned(), error };
    // A FIFO under that name must not block.
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
    Ok((file, length))
}

/// Why a region cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The file cannot be opened or mapped.
    #[error("cannot use {path} as a region")]
    Open {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        error: io::Error,
    },
    /// Another service uses the region.
    #[error("{path} is the region of another running service")]
    Taken {
        /// The file.
        path: PathBuf,
    },
    /// The region is too small for any block.
    #[error("a region of {got_bytes} bytes is too small: at least 128 are needed")]
    TooSmall {
        /// Size of the region.
        got_bytes: u64,
    },
    /// The region does not begin at a multiple of 64, as blocks must.
    #[error("the region does not begin at a multiple of 64")]
    Misaligned,
}

coded! { RegionError {
    Open { error, .. } => (match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::StorageFull => ErrorKind::Unavailable,
        _ => ErrorKind::FailedPrecondition,
    }) 4030,
    TooSmall => InvalidArgument 4031,
    Misaligned => InvalidArgument 4032,
    Taken => AlreadyExists 4033,
} }
