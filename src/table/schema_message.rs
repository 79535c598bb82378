//! Schema message of tables: encoded once for all tables of one layout.
//!
//! ```text
//!  TableLayout ──encode once──▶ … "iovcache.lease" ················ "url" "TPC/Calib/VDriftTgl" …
//!                                                 └ value of each table, written into its place
//! ```
//!
//! Encoding the schema of 50 columns takes longer than encoding the table itself, and only
//! [`TableMarks`] differ from one table to the next.

use std::ops::Range;

use arrow_ipc::root_as_message;
use bytes::Bytes;

use super::ipc::{Message, MessageWriter};
use super::layout::{
    LEASE, REGISTRATION, TIMEFRAME, TableLayout, TableMarks, TableMetadata, TimeframeMark, VERSIONS,
};

/// Length of the name of a lease, and of a digest.
const TEXT_ROOM: usize = 32;
/// Maximum number of digits of a u64.
const NUMBER_ROOM: usize = 20;
/// Bytes of the length that precedes a text in a flatbuffer.
const LENGTH_BYTES: usize = size_of::<u32>();

/// Encoded schema of all tables of one layout.
#[derive(Debug)]
pub(crate) struct SchemaMessage {
    bytes: Vec<u8>,
    lease: Option<Range<usize>>,
    timeframe: Option<Range<usize>>,
    registration: Option<Range<usize>>,
    versions: Option<Range<usize>>,
}

impl SchemaMessage {
    /// For tables with the layout `layout`: with a timeframe if `layout` has one, and so for lease and
    /// digest. Their values are ignored.
    pub(crate) fn new(layout: &TableLayout) -> Self {
        let longest = TimeframeMark { timeframe: u64::MAX, registration: u64::MAX };
        let meta = TableMetadata {
            lease: layout.meta.lease.as_ref().map(|_| "-".repeat(TEXT_ROOM)),
            versions: layout.meta.versions.as_ref().map(|_| "-".repeat(TEXT_ROOM)),
            timeframe: layout.meta.timeframe.map(|_| longest),
            ..layout.meta.clone()
        };
        let layout = TableLayout { meta, ..layout.clone() };
        let (_, message) = MessageWriter::begin(&layout.schema());
        let bytes = message.header.to_vec();
        let [lease, timeframe, registration, versions] =
            [LEASE, TIMEFRAME, REGISTRATION, VERSIONS].map(|key| place(&bytes, key));
        Self { bytes, lease, timeframe, registration, versions }
    }

    /// Schema message of a table with these marks; `None` if they do not fit into their places.
    pub(crate) fn message(&self, marks: TableMarks<'_>) -> Option<Message> {
        let mut bytes = self.bytes.clone();
        let timeframe = marks.timeframe.map(|mark| mark.timeframe.to_string());
        write(&mut bytes, self.timeframe.as_ref(), timeframe.as_deref(), NUMBER_ROOM)?;
        let registration = marks.timeframe.map(|mark| mark.registration.to_string());
        write(&mut bytes, self.registration.as_ref(), registration.as_deref(), NUMBER_ROOM)?;
        write(&mut bytes, self.lease.as_ref(), marks.lease, TEXT_ROOM)?;
        write(&mut bytes, self.versions.as_ref(), marks.versions, TEXT_ROOM)?;
        Some(Message::new(bytes.into(), Bytes::new()))
    }

    /// Memory of the encoded schema, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Position of a value in the schema's metadata.
fn place(bytes: &[u8], key: &str) -> Option<Range<usize>> {
    let schema = root_as_message(bytes).ok()?.header_as_schema()?;
    let metadata = schema.custom_metadata()?;
    let value = metadata.iter().find(|entry| entry.key() == Some(key))?.value()?;
    let start = value.as_ptr().addr() - bytes.as_ptr().addr();
    Some(start..start + value.len())
}

/// Writes a text and its length over a longer one. The remaining bytes belong to no text
/// afterwards.
fn write(
    bytes: &mut [u8],
    place: Option<&Range<usize>>,
    text: Option<&str>,
    room: usize,
) -> Option<()> {
    let (place, text) = match (place, text) {
        (None, None) => return Some(()),
        (Some(place), Some(text)) if text.len() <= room => (place.clone(), text),
        _ => return None,
    };
    let length = u32::try_from(text.len()).ok()?;
    bytes[place.start - LENGTH_BYTES..place.start].copy_from_slice(&length.to_le_bytes());
    let (written, rest) = bytes[place].split_at_mut(text.len());
    written.copy_from_slice(text.as_bytes());
    rest.fill(0);
    Some(())
}

#[cfg(test)]
mod tests {
    use arrow_ipc::convert::try_fb_to_schema;

    use super::*;
    use crate::object::ObjectPath;
    use crate::table::{CellKind, ColumnPath, Encoding, View};

    fn mark((timeframe, registration): (u64, u64)) -> TimeframeMark {
        TimeframeMark { timeframe, registration }
    }

    fn layout(TableMarks { timeframe, lease, versions }: TableMarks<'_>) -> TableLayout {
        let path = ColumnPath::One(ObjectPath::new("TPC/Calib/VDriftTgl").unwrap());
        TableLayout {
            view: View::Rows,
            encoding: Encoding::RunEnd,
            cell: CellKind::Binary,
            timestamps_column: true,
            null_timestamps: false,
            nullable: true,
            optional: Vec::new(),
            columns: vec![("vdrift".into(), path.clone()), ("other".into(), path)],
            keyed: false,
            meta: TableMetadata {
                epoch: "0123456789abcdef".to_owned(),
                attach: Some("/run/attach.sock".to_owned()),
                timeframe,
                lease: lease.map(str::to_owned),
                versions: versions.map(str::to_owned),
                requested: serde_json::from_str(r#"{"a": "b", "z": ""}"#).unwrap(),
            },
        }
    }

    #[test]
    fn values_written_into_a_message_read_as_if_it_had_been_encoded() {
        let texts = [None, Some("0123456789abcdef0123456789abcdef"), Some("short"), Some("")];
        let numbers = [None, Some((0, 1)), Some((42, u64::MAX)), Some((u64::MAX, 7))];
        for timeframe in numbers.map(|one| one.map(mark)) {
            for (lease, versions) in texts.iter().flat_map(|one| texts.map(|other| (*one, other))) {
                let marks = TableMarks { timeframe, lease, versions };
                let layout = layout(marks);
                let made = SchemaMessage::new(&layout);
                let message = made.message(marks).unwrap();
                let read = root_as_message(&message.header).unwrap();
                let schema = try_fb_to_schema(read.header_as_schema().unwrap()).unwrap();
                assert_eq!(schema, *layout.schema());
                // The next message has only its own values.
                let marks = TableMarks {
                    timeframe: timeframe.map(|_| mark((7, 12345))),
                    lease: lease.map(|_| "next"),
                    versions: versions.map(|_| "digest"),
                };
                let next = made.message(marks).unwrap();
                let next = root_as_message(&next.header).unwrap();
                let next = try_fb_to_schema(next.header_as_schema().unwrap()).unwrap();
                let expected = self::layout(marks);
                assert_eq!(next, *expected.schema());
            }
        }
    }

    #[test]
    fn values_too_long_for_the_message_give_none() {
        let long = "x".repeat(TEXT_ROOM + 1);
        let marks = TableMarks { lease: Some("lease"), ..TableMarks::default() };
        let made = SchemaMessage::new(&layout(marks));
        assert_eq!(made.message(TableMarks { timeframe: Some(mark((1, 2))), ..marks }), None);
        assert_eq!(made.message(TableMarks { versions: Some("digest"), ..marks }), None);
        assert_eq!(made.message(TableMarks::default()), None);
        assert_eq!(made.message(TableMarks { lease: Some(&long), ..marks }), None);
        assert!(made.message(TableMarks { lease: Some(&long[1..]), ..marks }).is_some());
    }
}
