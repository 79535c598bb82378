//! Reads the bytes of one version of a local folder into a body, and checks their size and MD5.
//!
//! ```text
//!  small   open and read in one step ──▶ MD5 by the body, together with other bodies
//!  large   read ──▶ piece ──▶ piece ──▶ …     straight into the body's memory
//!                     └──▶ MD5 ──▶ MD5 ──▶ …  on another thread, from the same memory
//! ```

use std::fs::File;
use std::io;
use std::sync::mpsc;
use std::thread;

use md5::{Digest as _, Md5};

use super::beneath::{Root, Stamp};
use super::entry::names;
use crate::object::{Md5Sum, ObjectInfo};
use crate::source::{Body, BodyError, in_place};

/// Files up to this size are opened and read in one step.
const SMALL_BYTES: u64 = 256 << 10;
/// Size of the pieces that are read and hashed at the same time. A piece stays in the processor's
/// cache between both.
const PIECE_BYTES: usize = 256 << 10;
/// Bytes after which other tasks of the thread run, and after which a load can be cancelled.
const STEP_BYTES: usize = 32 << 20;

/// Why the bytes of a version were not read.
#[derive(Debug)]
pub(super) enum BlobError {
    /// The file cannot be opened or read.
    Io(io::Error),
    /// The file differs from its properties.
    Unusable(String),
    Body(BodyError),
}

impl From<BodyError> for BlobError {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

/// Reads the bytes of the version `own` into `body`.
///
/// # Errors
/// [`BlobError`]. The bytes in `body` are then meaningless.
pub(super) async fn read_blob(
    root: &Root,
    own: &ObjectInfo,
    body: &mut dyn Body,
) -> Result<(), BlobError> {
    let expected = own.size_bytes.unwrap_or(0);
    let md5 = match (1..=SMALL_BYTES).contains(&expected) {
        true => read_small(root, own, expected, body).await?,
        false => read_large(root, own, expected, body).await?,
    };
    match own.md5 {
        Some(expected) if expected != md5 => {
            Err(BlobError::Unusable(format!("its MD5 is {md5}, expected {expected}")))
        }
        _ => {
            body.set_md5(md5);
            Ok(())
        }
    }
}

async fn read_small(
    root: &Root,
    own: &ObjectInfo,
    expected: u64,
    body: &mut dyn Body,
) -> Result<Md5Sum, BlobError> {
    body.reserve(expected).await?;
    let md5 = match body.reads_together() {
        true => {
            let (root, names) = (root.clone(), file_names(own));
            let read = move |room: &mut [u8]| read_whole(&root, names, room, expected);
            let read = body.read_hashed(Box::new(read)).await;
            let ended = || Err(io::Error::other("the runtime ends"));
            read.unwrap_or_else(ended).map_err(BlobError::Io)?
        }
        false => {
            let room = body.spare();
            let read = in_place(|| {
                let count = read_whole(root, file_names(own), room, expected)?;
                Ok((count, Md5Sum(Md5::digest(&room[..count]).into())))
            });
            let (count, md5) = read.map_err(BlobError::Io)?;
            body.advance(count);
            md5
        }
    };
    check_read(body.written_bytes(), expected)?;
    Ok(md5)
}

/// Reads a file of `expected` bytes into `room`. Returns the number of bytes read.
fn read_whole(
    root: &Root,
    names: impl Iterator<Item = String>,
    room: &mut [u8],
    expected: u64,
) -> io::Result<usize> {
    let (mut file, stamp) = open(root, names)?;
    check_size(stamp.size_bytes, expected)?;
    read_full(&mut file, room)
}

async fn read_large(
    root: &Root,
    own: &ObjectInfo,
    expected: u64,
    body: &mut dyn Body,
) -> Result<Md5Sum, BlobError> {
    let (mut file, stamp) = in_place(|| open(root, file_names(own))).map_err(BlobError::Io)?;
    check_size(stamp.size_bytes, expected).map_err(BlobError::Io)?;
    body.reserve(expected).await?;
    let mut digest = Md5::new();
    loop {
        let room = body.spare();
        let length = room.len().min(STEP_BYTES);
        if length == 0 {
            break;
        }
        let read = in_place(|| read_hashed(&mut file, &mut room[..length], &mut digest));
        let count = read.map_err(BlobError::Io)?;
        body.advance(count);
        if count < length {
            break;
        }
        tokio::task::yield_now().await;
    }
    check_read(body.written_bytes(), expected)?;
    Ok(Md5Sum(digest.finalize().into()))
}

fn check_size(found: u64, expected: u64) -> io::Result<()> {
    if found == expected {
        return Ok(());
    }
    let reason = format!("it has {found} bytes, expected {expected}");
    Err(io::Error::new(io::ErrorKind::InvalidData, reason))
}

/// The file can have been truncated while it was read.
fn check_read(read: u64, expected: u64) -> Result<(), BlobError> {
    if read == expected {
        return Ok(());
    }
    Err(BlobError::Unusable(format!("{read} bytes came of {expected}")))
}

/// The names that the file of a version can have, relative to the root.
fn file_names(own: &ObjectInfo) -> impl Iterator<Item = String> + Send + 'static {
    let folder = format!("{}/{}", own.path, own.validity.from());
    names(own.id, &own.metadata).map(move |name| format!("{folder}/{name}"))
}

/// Opens the first file of these names that exists.
fn open(root: &Root, names: impl Iterator<Item = String>) -> io::Result<(File, Stamp)> {
    let mut opened = Err(io::Error::from(io::ErrorKind::NotFound));
    for name in names {
        opened = root.file(&name);
        if !matches!(&opened, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    opened
}

/// Reads until `room` is full or the file ends. Returns the number of bytes read.
fn read_full(file: &mut impl io::Read, room: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < room.len() {
        match file.read(&mut room[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Like [`read_full`], and adds the bytes to `md5`: on another thread while the next ones are read,
/// if a thread can be started.
fn read_hashed(
    file: &mut (impl io::Read + Send),
    room: &mut [u8],
    md5: &mut Md5,
) -> io::Result<usize> {
    if room.len() > PIECE_BYTES
        && let Some(read) = read_hashed_beside(file, room, md5)
    {
        return read;
    }
    let count = read_full(file, room)?;
    md5.update(&room[..count]);
    Ok(count)
}

/// `None`: no thread can be started, and nothing was read.
fn read_hashed_beside(
    file: &mut (impl io::Read + Send),
    room: &mut [u8],
    md5: &mut Md5,
) -> Option<io::Result<usize>> {
    thread::scope(|scope| {
        let (pieces, queue) = mpsc::channel::<&[u8]>();
        let hasher = thread::Builder::new().name("iovcache-md5".to_owned());
        let hash = move || queue.into_iter().for_each(|piece| md5.update(piece));
        hasher.spawn_scoped(scope, hash).ok()?;
        let mut read = 0;
        for piece in room.chunks_mut(PIECE_BYTES) {
            let count = match read_full(file, piece) {
                Ok(count) => count,
                Err(error) => return Some(Err(error)),
            };
            read += count;
            let is_full = count == piece.len();
            // The thread ends only after this end of the channel.
            let _ = pieces.send(&piece[..count]);
            if !is_full {
                break;
            }
        }
        Some(Ok(read))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in parts of other sizes than are asked for, interrupted.
    struct Slow<'a> {
        rest: &'a [u8],
        turn: usize,
    }

    impl io::Read for Slow<'_> {
        fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
            self.turn += 1;
            if self.turn.is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = room.len().min(100_003);
            self.rest.read(&mut room[..count])
        }
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n * 31 + n / 251) as u8).collect()
    }

    #[test]
    fn bytes_that_are_hashed_beside_the_read_have_the_digest_of_all() {
        for size in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES - 7] {
            let all = bytes(size);
            // In two steps, and into room for more than the file has.
            let mut room = vec![0; size + 10];
            let (mut file, mut md5) = (Slow { rest: &all, turn: 0 }, Md5::new());
            let (first, second) = room.split_at_mut(size / 2);
            let read = read_hashed(&mut file, first, &mut md5).unwrap();
            let read = read + read_hashed(&mut file, second, &mut md5).unwrap();
            assert_eq!((read, &room[..size]), (size, &all[..]));
            assert_eq!(md5.finalize(), Md5::digest(&all), "{size}");
        }
    }

    #[test]
    fn an_error_in_the_midst_of_a_file_ends_the_thread_that_hashes() {
        struct Broken(usize);
        impl io::Read for Broken {
            fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                if self.0 > 3 { Err(io::Error::other("broken")) } else { Ok(room.len()) }
            }
        }
        let mut room = vec![0; 8 * PIECE_BYTES];
        let error = read_hashed(&mut Broken(0), &mut room, &mut Md5::new()).unwrap_err();
        assert_eq!(error.to_string(), "broken");
    }
}
