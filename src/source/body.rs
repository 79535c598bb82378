//! Destination of the bytes of an object: the trait, and a body in the heap for copies and tests.

use std::io;

use async_trait::async_trait;

use super::error::BodyError;
use crate::object::Md5Sum;

/// Function that fills room from its beginning, and returns the number of bytes that it wrote.
pub type ReadBytes = Box<dyn FnOnce(&mut [u8]) -> io::Result<usize> + Send>;

/// Destination of the bytes of an object: a block in shared memory, or a buffer in a test. A source
/// writes each body once, from its first to its last byte.
#[async_trait]
pub trait Body: Send {
    /// Makes room for `size_bytes` in total; bytes already written are kept.
    ///
    /// The source calls it with the announced size before the first byte. It calls it again, with a
    /// larger size, only if it did not know the size.
    ///
    /// # Errors
    /// [`BodyError`] if the room cannot be provided.
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError>;

    /// Room that is reserved and not yet written.
    fn spare(&mut self) -> &mut [u8];

    /// Marks the first `count` bytes of [`spare`](Self::spare) as written.
    ///
    /// # Panics
    /// If `count` is more than the spare room.
    fn advance(&mut self, count: usize);

    /// Number of bytes written so far.
    fn written_bytes(&self) -> u64;

    /// Whether the body reads and hashes together with other bodies, by
    /// [`read_hashed`](Self::read_hashed).
    fn reads_together(&self) -> bool {
        false
    }

    /// Calls `read` on a blocking thread, with the reserved room of a body to which nothing was
    /// written yet, and computes the MD5 of the bytes that it returns the number of. `None`: the
    /// body cannot do that, and holds nothing.
    async fn read_hashed(&mut self, read: ReadBytes) -> Option<io::Result<Md5Sum>> {
        let _ = read;
        None
    }

    /// Sets the MD5 of all bytes written so far, computed by the source from these very bytes. A
    /// body that verifies its bytes then need not compute it again.
    fn set_md5(&mut self, md5: Md5Sum) {
        let _ = md5;
    }
}

/// Writes all of `bytes`, and reserves more room in `body` when it is full.
///
/// # Errors
/// [`BodyError`] if `body` cannot provide the room.
pub async fn write_all(body: &mut dyn Body, mut bytes: &[u8]) -> Result<(), BodyError> {
    while !bytes.is_empty() {
        if body.spare().is_empty() {
            let more = (bytes.len() as u64).max(body.written_bytes());
            body.reserve(body.written_bytes().saturating_add(more)).await?;
        }
        let spare = body.spare();
        let count = spare.len().min(bytes.len());
        spare[..count].copy_from_slice(&bytes[..count]);
        body.advance(count);
        bytes = &bytes[count..];
    }
    Ok(())
}

/// A [`Body`] in the heap.
#[derive(Debug, Clone, Default)]
pub struct VecBody {
    bytes: Vec<u8>,
    written: usize,
}

impl VecBody {
    /// The bytes written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.written]
    }

    /// The bytes written so far, without a copy.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.bytes.truncate(self.written);
        self.bytes
    }
}

#[async_trait]
impl Body for VecBody {
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError> {
        let size = usize::try_from(size_bytes)
            .map_err(|_| BodyError::TooLarge { size_bytes, limit_bytes: usize::MAX as u64 })?;
        self.bytes.resize(size.max(self.written), 0);
        Ok(())
    }

    fn spare(&mut self) -> &mut [u8] {
        &mut self.bytes[self.written..]
    }

    fn advance(&mut self, count: usize) {
        let spare = self.spare().len();
        assert!(count <= spare, "advanced by {count} bytes where {spare} were spare");
        self.written += count;
    }

    fn written_bytes(&self) -> u64 {
        self.written as u64
    }
}
