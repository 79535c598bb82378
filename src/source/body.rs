//! Where the bytes of an object go: the trait, and a body in the heap for copies and tests.

use async_trait::async_trait;

use super::error::BodyError;
use crate::object::Md5Sum;

/// Where the bytes of an object go: a block in shared memory, or a buffer in a test.
#[async_trait]
pub trait Body: Send {
    /// Makes room for `size_bytes` in all; keeps what was written before.
    ///
    /// Called before the first byte with the size as announced; again, with a larger size, only
    /// where the source did not know it.
    ///
    /// # Errors
    /// [`BodyError`] if so much cannot be had.
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError>;

    /// The room that is reserved and not yet written.
    fn spare(&mut self) -> &mut [u8];

    /// Says that the first `count` bytes of [`spare`](Self::spare) are now written.
    ///
    /// # Panics
    /// If `count` is more than the spare room.
    fn advance(&mut self, count: usize);

    /// How many bytes were written so far.
    fn written_bytes(&self) -> u64;

    /// Gives the MD5 of all bytes written so far, where the source has computed it from these very
    /// bytes. A body that checks what it holds then need not compute it again.
    fn set_md5(&mut self, md5: Md5Sum) {
        let _ = md5;
    }
}

/// Writes all of `bytes`; where `body` has no more room, it is asked for.
///
/// # Errors
/// [`BodyError`] if there is none.
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

/// Bytes in the heap.
#[derive(Debug, Clone, Default)]
pub struct VecBody {
    bytes: Vec<u8>,
    written: usize,
}

impl VecBody {
    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.written]
    }

    /// What was written.
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
