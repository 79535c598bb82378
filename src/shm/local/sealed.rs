//! Memfds of sealed size: a process can read its mapping without a SIGBUS.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};

use super::super::mapping::{MapAccess, Mapping};

/// Minimum size of a mapping: that of a header.
const MIN_BYTES: u64 = 64;

/// Maps a memfd after checking that it can neither shrink nor grow.
pub(super) fn map_sealed(
    file: BorrowedFd<'_>,
    size: u64,
    access: MapAccess,
) -> Result<Mapping, String> {
    let facts = fstat(file).map_err(|error| error.to_string())?;
    if u64::try_from(facts.st_size) != Ok(size) || size < MIN_BYTES {
        return Err(format!("a file of {} bytes, announced with {size}", facts.st_size));
    }
    let sealed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    if !fcntl_get_seals(file).is_ok_and(|seals| seals.contains(sealed)) {
        return Err("its size is not sealed".to_owned());
    }
    let length = usize::try_from(size).map_err(|error| error.to_string())?;
    Mapping::of_file(file.as_fd(), length, access).map_err(|error| error.to_string())
}

/// A memfd of `size` bytes, mapped for writing and then sealed with `seals`.
pub(super) fn make_sealed(
    name: &std::ffi::CStr,
    size: u64,
    seals: SealFlags,
) -> std::io::Result<(OwnedFd, Mapping)> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(size)?;
    let length = usize::try_from(size).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    let mapping = Mapping::of_file(file.as_fd(), length, MapAccess::ReadWrite)?;
    let file = OwnedFd::from(file);
    fcntl_add_seals(&file, seals)?;
    Ok((file, mapping))
}
