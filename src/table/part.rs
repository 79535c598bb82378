//! Parts of a message's body: bytes of its own, and payloads that stay in shared memory.
//!
//! ```text
//!  Part::Object ─▶ PayloadPins ─▶ the table's objects        copy() while the lease lasts
//!                       └ withdrawn at the end of the lease: copy() is EncodeError::LeaseEnded
//! ```
//!
//! A payload is copied when the transport can send it, a frame at a time. A message that is not
//! read therefore holds no copy of its payloads, and its pins end with the lease.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::content::Objects;
use super::encode_error::EncodeError;
use crate::sync::Mutex;

/// The pins of the payloads that the messages of one table name.
pub(crate) struct PayloadPins(Mutex<Option<Arc<dyn Objects>>>);

impl PayloadPins {
    pub(super) fn new(objects: Arc<dyn Objects>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(objects))))
    }

    /// Drops the pins. Parts that were not copied before cannot be read any more.
    pub(crate) fn withdraw(&self) {
        let objects = self.0.lock().take();
        // Outside the lock, because this can free objects.
        drop(objects);
    }

    fn objects(&self) -> Result<Arc<dyn Objects>, EncodeError> {
        self.0.lock().clone().ok_or(EncodeError::LeaseEnded)
    }
}

impl fmt::Debug for PayloadPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_withdrawn = self.0.lock().is_none();
        f.debug_struct("PayloadPins").field("is_withdrawn", &is_withdrawn).finish()
    }
}

/// The payload of one object, or a range of it, in shared memory.
#[derive(Debug, Clone)]
pub struct ObjectPart {
    pins: Arc<PayloadPins>,
    number: u32,
    range: Range<usize>,
}

impl ObjectPart {
    /// The whole payload, of `bytes` bytes, of the object with this number.
    pub(super) fn new(pins: &Arc<PayloadPins>, number: u32, bytes: usize) -> Self {
        Self { pins: Arc::clone(pins), number, range: 0..bytes }
    }

    fn copy(&self) -> Result<Bytes, EncodeError> {
        let objects = self.pins.objects()?;
        objects.note_reading();
        let payload = objects.bytes(self.number);
        Ok(Bytes::copy_from_slice(payload.get(self.range.clone()).unwrap_or_default()))
    }
}

/// A part of a message's body.
#[derive(Debug, Clone)]
pub enum Part {
    /// Bytes of the message itself.
    Own(Bytes),
    /// A payload in shared memory.
    Object(ObjectPart),
}

impl Part {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Own(bytes) => bytes.len(),
            Self::Object(part) => part.range.len(),
        }
    }

    /// Whether the part has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Removes at most `most` bytes from the front. Bytes of an object are copied.
    ///
    /// # Errors
    /// [`EncodeError::LeaseEnded`] if the object's pin was withdrawn.
    pub fn take_front(&mut self, most: usize) -> Result<Bytes, EncodeError> {
        match self {
            Self::Own(bytes) => Ok(bytes.split_to(most.min(bytes.len()))),
            Self::Object(part) => {
                let end = part.range.start + most.min(part.range.len());
                let first = ObjectPart { range: part.range.start..end, ..part.clone() }.copy()?;
                part.range.start = end;
                Ok(first)
            }
        }
    }
}
