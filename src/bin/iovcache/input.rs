//! Input files of commands: `-` is stdin, and a byte order mark (as Windows editors write it) is
//! removed.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;

/// Whether `-` was read: it has nothing for a second file.
static STDIN_IS_READ: AtomicBool = AtomicBool::new(false);

/// The name of a file in messages.
pub(crate) fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "stdin".to_owned() } else { path.display().to_string() }
}

/// All bytes of a file; `-` is stdin.
///
/// # Errors
/// [`Failure`] if the file cannot be read.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    if path.as_os_str() != "-" {
        return fs::read(path).map_err(|error| Failure::io(path.display(), error));
    }
    if STDIN_IS_READ.swap(true, Ordering::Relaxed) {
        return Err(Failure::usage("stdin is read already; give - for one file only"));
    }
    let mut bytes = Vec::new();
    let read = io::stdin().lock().read_to_end(&mut bytes);
    read.map_err(|error| Failure::io("stdin", error))?;
    Ok(bytes)
}

/// A text in UTF-8, without a byte order mark.
///
/// # Errors
/// [`Failure`] if the file cannot be read or is not UTF-8.
pub(crate) fn text(path: &Path) -> Result<String, Failure> {
    as_text(bytes(path)?, path)
}

/// Like [`text`], of `bytes` that were read from `path`.
pub(crate) fn as_text(bytes: Vec<u8>, path: &Path) -> Result<String, Failure> {
    let path = name(path);
    if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) {
        return Err(Failure::usage(format!("{path} is UTF-16, expected UTF-8")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Failure::usage(format!("{path} is not UTF-8: invalid byte at {at}"))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_owned(),
        None => text,
    })
}
