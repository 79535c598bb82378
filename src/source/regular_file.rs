//! Opens regular files. Opening a FIFO would wait for a writer.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file for reading; links are followed.
///
/// # Errors
/// If it cannot be opened, or is no regular file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    open(path, OFlags::NONBLOCK)
}

/// Like [`open_regular`], but a link is refused.
///
/// # Errors
/// If it cannot be opened, or is no regular file.
pub(super) fn open_regular_unlinked(path: &Path) -> io::Result<File> {
    open(path, OFlags::NONBLOCK | OFlags::NOFOLLOW)
}

fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened_and_a_fifo_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        std::fs::write(place("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", place("link")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, place("fifo"), mode).unwrap();
        assert!(open_regular(&place("file")).is_ok() && open_regular(&place("link")).is_ok());
        assert!(open_regular_unlinked(&place("file")).is_ok());
        assert!(open_regular_unlinked(&place("link")).is_err());
        for other in [place("fifo"), folder.path().to_owned(), "/dev/null".into()] {
            let reason = open_regular(&other).unwrap_err().to_string();
            assert_eq!(reason, "it is no regular file", "{}", other.display());
        }
    }
}
