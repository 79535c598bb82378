//! The MD5 of a body that arrives in chunks. For large bodies, receiving and hashing overlap.

use bytes::Bytes;
use md5::{Digest as _, Md5};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::object::Md5Sum;

/// From this size on, a body is hashed on another thread while it is received.
const HASH_BESIDE_FROM_BYTES: u64 = 256 << 10;
/// Number of received chunks that may wait to be hashed.
const CHUNKS_AHEAD: usize = 16;

/// An MD5 computation: between reads for small bodies, on another thread for large ones. That
/// thread shares the reference-counted chunks, and reads no shared memory.
pub(super) enum BodyDigest {
    None,
    Between(Md5),
    Beside { chunks: mpsc::Sender<Bytes>, sum: JoinHandle<Md5Sum> },
}

impl BodyDigest {
    pub(super) fn new(wanted: bool, size_bytes: Option<u64>) -> Self {
        match size_bytes {
            _ if !wanted => Self::None,
            Some(size) if size < HASH_BESIDE_FROM_BYTES => Self::Between(Md5::new()),
            _ => {
                let (chunks, mut queue) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
                let sum = tokio::task::spawn_blocking(move || {
                    let mut md5 = Md5::new();
                    while let Some(chunk) = queue.blocking_recv() {
                        md5.update(&chunk);
                    }
                    Md5Sum(md5.finalize().into())
                });
                Self::Beside { chunks, sum }
            }
        }
    }

    pub(super) async fn add(&mut self, chunk: Bytes) {
        match self {
            Self::None => {}
            Self::Between(md5) => md5.update(&chunk),
            // It fails only if the thread panicked, which `finish` detects.
            Self::Beside { chunks, .. } => drop(chunks.send(chunk).await),
        }
    }

    pub(super) async fn finish(self) -> Option<Md5Sum> {
        match self {
            Self::None => None,
            Self::Between(md5) => Some(Md5Sum(md5.finalize().into())),
            Self::Beside { chunks, sum } => {
                drop(chunks);
                sum.await.ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hash_beside_the_reads_is_the_hash_between_them() {
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let mut sums = Vec::new();
        for size in [Some(1), Some(1 << 20), None] {
            let mut hash = BodyDigest::new(true, size);
            for chunk in bytes.chunks(70_000) {
                hash.add(Bytes::copy_from_slice(chunk)).await;
            }
            sums.push(hash.finish().await.unwrap());
        }
        assert_eq!(sums[0], Md5Sum(Md5::digest(&bytes).into()));
        assert!(sums.iter().all(|sum| *sum == sums[0]));
        assert_eq!(BodyDigest::new(false, None).finish().await, None);
    }
}
