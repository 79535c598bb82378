//! Verifies the files of a disk tier while no process uses it.

use std::fs;
use std::io;
use std::path::Path;

use uuid::Uuid;

use super::bodies::id_in;
use super::file::{check_body, lock, read_head};
use super::lookup_log::name_in;
use super::lru_folder::{FolderEntry, entries};
use crate::source::regular_file::open_regular_unlinked;
use crate::source::verify::{RepairOutcome, VerifyReport};

/// Reads every file of the disk tier in `folder` and verifies its checksums. With `repair`, damaged
/// and partial files are removed; they are fetched again on demand.
///
/// # Errors
/// If the folder cannot be read, or a process uses it.
pub fn verify(folder: &Path, repair: bool) -> io::Result<VerifyReport> {
    let _lock = lock(folder)?;
    let mut verified = VerifyReport::default();
    for name in ["bodies", "answers"] {
        let subfolder = folder.join(name);
        if !subfolder.is_dir() {
            continue;
        }
        for entry in entries(&subfolder)? {
            let (file, reason) = match entry {
                FolderEntry::Named(name, file) => {
                    match check(&file, name, subfolder.ends_with("bodies")) {
                        Ok(bytes) => {
                            verified.files += 1;
                            verified.bytes += bytes;
                            continue;
                        }
                        Err(error) => (file, error.to_string()),
                    }
                }
                FolderEntry::PartialFile(file) => (file, "it was left half-written".to_owned()),
                FolderEntry::Foreign(file) => {
                    verified.wrong(
                        file,
                        "it is not a file of a disk tier",
                        RepairOutcome::LeftAlone,
                    );
                    continue;
                }
            };
            let removed = repair && fs::remove_file(&file).is_ok();
            verified.wrong(
                file,
                reason,
                if removed { RepairOutcome::Removed } else { RepairOutcome::LeftAlone },
            );
        }
    }
    Ok(verified)
}

fn check(file: &Path, name: Uuid, is_body: bool) -> io::Result<u64> {
    let mut opened = open_regular_unlinked(file)?;
    let (header, json) = read_head(&mut opened)?;
    check_body(&mut opened, header)?;
    let named = if is_body { id_in(&json) } else { name_in(&json) };
    if named == Some(name) {
        return opened.metadata().map(|facts| facts.len());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another version than its name says"))
}
