//! A body that lies in the heap: for copies and for tests.

use async_trait::async_trait;

use super::{Body, BodyError};

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
