//! Round trips of tables: decoding returns the encoded cells, for every layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_ipc::reader::StreamReader;
use arrow_schema::{DataType, SchemaRef};
use proptest::prelude::*;

use super::layout::TimeframeMark;
use super::*;
use crate::index::Timestamps;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath};
use crate::shm::MetaHeader;

const ENCODINGS: [Encoding; 3] = [Encoding::Dictionary, Encoding::RunEnd, Encoding::Plain];
const CELLS: [CellKind; 4] = [CellKind::Binary, CellKind::Struct, CellKind::O2, CellKind::Payload];

fn interval(from: i64, until: i64) -> ValidityInterval {
    let [from, until] = [from, until].map(Timestamp::from_millis);
    ValidityInterval::new(from, until).unwrap()
}

fn cell(n: u8, bytes: usize) -> Cell {
    let at = 4096 + i64::from(n) * 1024 + 48;
    Cell {
        header: MetaHeader::managed(u16::from(n % 3), at, bytes as u64, 1000 + u64::from(n)),
        object: u32::from(n),
        cache: if n.is_multiple_of(2) { CacheState::Hit } else { CacheState::Loaded },
    }
}

/// Test objects; each byte of an object is its number.
#[derive(Debug)]
struct Numbered(BTreeMap<u32, (ObjectInfo, Vec<u8>)>);

impl Numbered {
    fn of(columns: &[Column]) -> Self {
        let cells = columns.iter().flat_map(|column| &column.cells);
        Self(cells.map(|cell| (cell.object, Self::object(cell))).collect())
    }

    fn object(cell: &Cell) -> (ObjectInfo, Vec<u8>) {
        let n = cell.object as u8;
        let version = ObjectInfo {
            path: ObjectPath::new("A/B").unwrap(),
            id: ObjectId::from_bytes([n; 16]),
            validity: interval(i64::from(n), 1000),
            created: Timestamp::from_millis(i64::from(n) + 5),
            size_bytes: Some(cell.header.size),
            md5: None,
            metadata: [("n", n.to_string())].into(),
        };
        (version, vec![n; cell.header.size as usize])
    }
}

impl Objects for Numbered {
    fn id(&self, number: u32) -> ObjectId {
        self.version(number).id
    }

    fn version(&self, number: u32) -> &ObjectInfo {
        &self.0[&number].0
    }

    fn bytes(&self, number: u32) -> &[u8] {
        &self.0[&number].1
    }
}

/// A column whose rows are served by these cells.
fn column(name: &str, rows: &[Option<u32>], cells: u8) -> Column {
    let mut runs: Vec<CellRun> = Vec::new();
    for (row, &cell) in rows.iter().enumerate() {
        let end = row as i32 + 1;
        match runs.last_mut() {
            Some(last) if last.cell == cell => last.end = end,
            _ => runs.push(CellRun { end, cell }),
        }
    }
    let cells = (0..cells).map(|n| cell(n, usize::from(n) * 7)).collect();
    let path = ColumnPath::One(ObjectPath::new("A/B").unwrap());
    Column { name: name.into(), path, rows: runs.into(), cells, key: None }
}

fn layout(
    encoding: Encoding,
    cell: CellKind,
    view: View,
    nullable: bool,
    names: &[&str],
) -> TableLayout {
    TableLayout {
        view,
        encoding,
        cell,
        timestamps_column: false,
        null_timestamps: nullable,
        nullable,
        optional: Vec::new(),
        columns: names
            .iter()
            .map(|name| ((*name).into(), ColumnPath::One(ObjectPath::new("A/B").unwrap())))
            .collect(),
        keyed: false,
        meta: TableMetadata {
            epoch: "0123456789abcdef".to_owned(),
            attach: Some("/run/iovcache/attach.sock".to_owned()),
            timeframe: Some(TimeframeMark { timeframe: 42, registration: 7 }),
            lease: Some("lease".to_owned()),
            versions: None,
            requested: SchemaMetadata::default(),
        },
    }
}

fn content(columns: Vec<Column>, rows: usize) -> Content {
    let timestamps = Timestamps::new((0..rows as i64).collect::<Vec<_>>(), None);
    let objects = Arc::new(Numbered::of(&columns));
    let body = TableBody::Rows { columns: Arc::new(columns), timestamps: Arc::new(timestamps) };
    Content { body, objects }
}

/// An IPC stream with its messages framed as in a file: marker, length, padding.
fn stream(content: &Content, layout: &TableLayout) -> (Vec<u8>, Vec<Message>) {
    let batches = content.batches(layout);
    let (mut writer, first) = MessageWriter::begin(&batches.schema());
    let mut messages = vec![first];
    for batch in batches {
        messages.extend(writer.write(&batch.unwrap()).unwrap().into_messages());
    }
    (written(&messages), messages)
}

/// The messages framed as an Arrow IPC stream.
fn written(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        let length = (message.header.len() + 8).next_multiple_of(8) - 8;
        bytes.extend_from_slice(&[0xFF; 4]);
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.extend_from_slice(&message.header);
        bytes.resize(bytes.len() + length - message.header.len(), 0);
        bytes.extend_from_slice(&message.whole_body().unwrap());
    }
    bytes.extend_from_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
    bytes
}

fn read(bytes: &[u8]) -> (SchemaRef, Vec<RecordBatch>) {
    let reader = StreamReader::try_new(bytes, None).unwrap();
    (reader.schema(), reader.map(Result::unwrap).collect())
}

/// Content of a cell that is not null.
#[derive(Debug, Clone, PartialEq)]
enum Stands {
    Header(MetaHeader),
    /// Handle, segment, size.
    Place(i64, i64, i64),
    Payload(Vec<u8>),
}

/// Content of each row, for any encoding and any division into batches.
fn rows_of(batches: &[RecordBatch], place: usize) -> Vec<Option<Stands>> {
    let mut runs = ColumnRuns::default();
    batches.iter().for_each(|batch| runs.extend(batch.column(place)).unwrap());
    let mut rows = Vec::new();
    for (end, cell) in runs.iter() {
        let shown = match cell {
            CellValue::Null => None,
            CellValue::Header(header) => Some(Stands::Header(header)),
            CellValue::O2 { handle, segment, size } => Some(Stands::Place(handle, segment, size)),
            CellValue::Payload(bytes) => Some(Stands::Payload(bytes.to_vec())),
        };
        rows.resize(end, shown);
    }
    assert_eq!(rows.len(), runs.rows());
    let cells: Vec<CellValue<'_>> = runs.iter().map(|(_, cell)| cell).collect();
    assert!(cells.windows(2).all(|pair| pair[0] != pair[1]), "neighbours are the same");
    rows
}

fn expected(column: &Column, rows: &[Option<u32>], kind: CellKind) -> Vec<Option<Stands>> {
    let value = |place: &Option<u32>| {
        let cell = &column.cells[place.as_ref().copied()? as usize];
        Some(match kind {
            CellKind::Payload => Stands::Payload(Numbered::object(cell).1),
            CellKind::O2 => {
                let MetaHeader { handle, segment_id, size, .. } = cell.header;
                Stands::Place(handle, segment_id.into(), size.cast_signed())
            }
            CellKind::Binary | CellKind::Struct => Stands::Header(cell.header),
        })
    };
    rows.iter().map(value).collect()
}

/// Only columns that can be null are declared nullable.
fn check_nullability(schema: &SchemaRef, nullable: bool) {
    fn children(data_type: &DataType) {
        match data_type {
            DataType::Struct(fields) => assert!(fields.iter().all(|field| !field.is_nullable())),
            DataType::FixedSizeList(item, _) => assert!(!item.is_nullable()),
            DataType::Dictionary(_, values) => children(values),
            DataType::RunEndEncoded(ends, values) => {
                assert!(!ends.is_nullable());
                children(values.data_type());
            }
            _ => {}
        }
    }
    for field in schema.fields() {
        assert_eq!(field.is_nullable(), nullable);
        if let DataType::RunEndEncoded(_, values) = field.data_type() {
            assert_eq!(values.is_nullable(), nullable);
        }
        children(field.data_type());
    }
}

fn any_rows() -> impl Strategy<Value = Vec<Option<u32>>> {
    let run = (proptest::option::weighted(0.8, 0..6_u32), 1..40_usize);
    proptest::collection::vec(run, 0..20).prop_map(|runs| {
        runs.into_iter().flat_map(|(cell, rows)| std::iter::repeat_n(cell, rows)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn encoded_tables_are_decoded_to_equal_ones_in_every_form(
        one in any_rows(),
        seed in any_rows(),
    ) {
        // Both columns have the same number of rows.
        let two: Vec<_> = (0..one.len())
            .map(|row| seed.get(row % seed.len().max(1)).copied().flatten())
            .collect();
        let columns = vec![column("one", &one, 6), column("two", &two, 6)];
        let nullable = one.iter().chain(&two).any(Option::is_none);
        let content = content(columns.clone(), one.len());
        for encoding in ENCODINGS {
            for kind in CELLS {
                let layout = layout(encoding, kind, View::Rows, nullable, &["one", "two"]);
                let (bytes, messages) = stream(&content, &layout);
                let (schema, batches) = read(&bytes);
                prop_assert_eq!(&schema, &layout.schema());
                // Messages written without intermediate arrays have the same bytes.
                let direct = content.batches(&layout).into_messages(Arc::default());
                let direct = direct.flat_map(|batch| batch.unwrap().into_messages());
                prop_assert_eq!(direct.collect::<Vec<_>>(), &messages[1..]);
                check_nullability(&schema, nullable);
                prop_assert!(!batches.is_empty());
                let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
                prop_assert_eq!(rows, one.len());
                for (place, rows) in [&one, &two].into_iter().enumerate() {
                    let expected = expected(&columns[place], rows, kind);
                    prop_assert_eq!(rows_of(&batches, place), expected);
                }
            }
        }
    }
}

#[test]
fn a_dictionary_that_stays_from_one_table_to_the_next_is_the_same_message() {
    let layout = layout(Encoding::Dictionary, CellKind::Binary, View::Rows, false, &["one", "two"]);
    let known = Arc::new(Dictionaries::default());
    let table = |two: u8| {
        let columns = vec![column("one", &[Some(0); 3], 2), column("two", &[Some(1); 3], two)];
        let content = content(columns, 3);
        let write = |known| content.batches(&layout).into_messages(known).next().unwrap().unwrap();
        // Known dictionaries do not change the bytes.
        let (made, alone) = (write(Arc::clone(&known)), write(Arc::default()));
        assert_eq!(made.dictionaries, alone.dictionaries);
        made.dictionaries
    };
    let first = table(2);
    assert!(Arc::ptr_eq(&first, &table(2)));
    let other = table(3);
    let is_shared = |one: &Message, other: &Message| one.body.as_ptr() == other.body.as_ptr();
    assert!(
        is_shared(&other[0], &first[0]) && !is_shared(&other[1], &first[1]) && other[1] != first[1]
    );
    let again = table(2);
    assert!(
        is_shared(&again[0], &first[0]) && !is_shared(&again[1], &first[1]) && again[1] == first[1]
    );
}

#[test]
fn the_cell_of_o2_is_handle_segment_and_size() {
    let rows = [Some(1), None, Some(4)];
    let columns = vec![column("one", &rows, 6)];
    let layout = layout(Encoding::Plain, CellKind::O2, View::Rows, true, &["one"]);
    let (_, batches) = read(&stream(&content(columns.clone(), 3), &layout).0);
    let cells = batches[0].column(0).as_fixed_size_list();
    for (row, place) in rows.iter().enumerate() {
        let Some(place) = place else {
            assert!(arrow_array::Array::is_null(cells, row));
            continue;
        };
        let header = columns[0].cells[*place as usize].header;
        let values = cells.value(row);
        let values = values.as_primitive::<Int64Type>().values();
        assert_eq!(values[..], [header.handle, header.segment_id.into(), header.size as i64]);
    }
}

#[test]
fn metadata_say_what_a_column_is_and_where_to_attach() {
    for (kind, extension) in CELLS.into_iter().zip([true, true, false, false]) {
        let layout = layout(Encoding::RunEnd, kind, View::Rows, false, &["one"]);
        let schema = layout.schema();
        assert_eq!(schema.field(0).metadata()["url"], "A/B");
        let name = schema.field(0).metadata().get("ARROW:extension:name");
        assert_eq!(name.map(String::as_str), extension.then_some("iovcache.metaheader"));
        for (key, value) in [
            ("iovcache.epoch", "0123456789abcdef"),
            ("iovcache.attach", "/run/iovcache/attach.sock"),
            ("iovcache.timeframe", "42"),
            ("iovcache.registration", "7"),
            ("iovcache.lease", "lease"),
        ] {
            assert_eq!(schema.metadata()[key], value);
        }
    }
}

#[test]
fn a_million_rows_stay_below_two_mebibytes_a_message_and_runs_are_not_expanded() {
    const ROWS: usize = 1_000_000;
    let rows: Vec<_> = (0..ROWS).map(|row| Some((row / 200_000) as u32)).collect();
    let columns: Vec<_> = ["a", "b", "c"].iter().map(|name| column(name, &rows, 5)).collect();
    let content = content(columns, ROWS);
    for encoding in ENCODINGS {
        let layout = layout(encoding, CellKind::Binary, View::Rows, false, &["a", "b", "c"]);
        let (bytes, messages) = stream(&content, &layout);
        for message in &messages {
            assert!(message.header.len() + message.body.len() < 2 << 20, "{encoding:?}");
        }
        let total: usize = messages.iter().map(|one| one.header.len() + one.body.len()).sum();
        match encoding {
            Encoding::RunEnd => assert!(messages.len() == 2 && total < 10_000, "{total}"),
            // Four bytes per row and column, and each dictionary once.
            Encoding::Dictionary => assert!(total < ROWS * 3 * 4 + 100_000, "{total}"),
            Encoding::Plain => assert!(total >= ROWS * 3 * 40),
        }
        let (_, batches) = read(&bytes);
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), ROWS);
        assert_eq!(rows_of(&batches, 2)[ROWS - 1], rows_of(&batches, 2)[ROWS - 200_000]);
    }
}

#[test]
fn many_runs_are_split_between_them() {
    let rows: Vec<_> = (0..200_000).map(|row| Some(row % 2)).collect();
    let content = content(vec![column("a", &rows, 2)], rows.len());
    let layout = layout(Encoding::RunEnd, CellKind::Binary, View::Rows, false, &["a"]);
    let (bytes, messages) = stream(&content, &layout);
    assert!(messages.len() > 3);
    assert!(messages.iter().all(|one| one.header.len() + one.body.len() < 2 << 20));
    let (_, batches) = read(&bytes);
    let headers = rows_of(&batches, 0);
    assert!(headers.iter().step_by(2).all(|one| *one == headers[0]));
    assert!(headers.iter().skip(1).step_by(2).all(|one| *one == headers[1]));
}

#[test]
fn a_payload_crosses_once_per_object_or_once_per_run() {
    let mut large = column("a", &[], 0);
    large.cells = vec![cell(1, 1 << 20), cell(2, 1 << 20)];
    let runs = (0..10).map(|n| CellRun { end: (n + 1) * 100, cell: Some(n as u32 % 2) });
    large.rows = runs.collect();
    let content = content(vec![large], 1000);
    let body = |encoding| {
        let layout = layout(encoding, CellKind::Payload, View::Rows, false, &["a"]);
        let (_, messages) = stream(&content, &layout);
        messages.iter().map(|one| one.body.len()).sum::<usize>() >> 20
    };
    assert_eq!(body(Encoding::Dictionary), 2);
    assert_eq!(body(Encoding::RunEnd), 10);
}

/// The messages that are written without intermediate arrays, the schema first.
fn direct(content: &Content, layout: &TableLayout) -> Vec<Message> {
    let batches = content.batches(layout);
    let first = MessageWriter::begin(&batches.schema()).1;
    let messages = batches.into_messages(Arc::default());
    let rest = messages.flat_map(|batch| batch.unwrap().into_messages());
    [first].into_iter().chain(rest).collect()
}

#[test]
fn large_payloads_and_timestamps_read_the_same_when_they_are_sent_from_where_they_lie() {
    let rows: Vec<_> = (0..300_u32).map(|row| (row % 7 != 0).then_some(row / 100)).collect();
    let mut large = column("a", &rows, 3);
    large.cells = vec![cell(1, 9), cell(2, 200_000), cell(3, 70_000)];
    let content = content(vec![large], rows.len());
    for encoding in ENCODINGS {
        for kind in [CellKind::Binary, CellKind::Payload] {
            let mut layout = layout(encoding, kind, View::Rows, true, &["a"]);
            layout.timestamps_column = true;
            let messages = direct(&content, &layout);
            let (schema, batches) = read(&written(&messages));
            assert_eq!(schema, layout.schema());
            assert_eq!(batches, content.batches(&layout).map(Result::unwrap).collect::<Vec<_>>());
            let parts = messages.iter().flat_map(|message| &message.rest);
            let shared = parts.filter(|part| matches!(part, Part::Object(_)));
            let shared: usize = shared.map(Part::len).sum();
            assert_eq!(shared > 200_000, kind == CellKind::Payload, "{encoding:?}: {shared}");
        }
    }
}

#[test]
fn payloads_of_intervals_read_the_same_when_they_are_sent_from_where_they_lie() {
    let cells = vec![cell(1, 9), cell(2, 200_000), cell(3, 6_000_000)];
    let rows = (0..9_u32).map(|row| {
        let from = i64::from(row) * 10;
        IntervalRow { interval: interval(from, from + 10), cell: row % 3 }
    });
    let objects = cells.iter().map(|cell| (cell.object, Numbered::object(cell))).collect();
    let column = |name: &str| IntervalColumn {
        name: name.into(),
        path: ObjectPath::new("A/B").unwrap(),
        rows: rows.clone().collect(),
        cells: cells.clone(),
    };
    let body = TableBody::Intervals(Arc::new(vec![column("a"), column("b")]));
    let content = Content { body, objects: Arc::new(Numbered(objects)) };
    for encoding in ENCODINGS {
        let layout = layout(encoding, CellKind::Payload, View::Intervals, false, &["a", "b"]);
        let messages = direct(&content, &layout);
        let (_, batches) = read(&written(&messages));
        assert_eq!(batches, content.batches(&layout).map(Result::unwrap).collect::<Vec<_>>());
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 18);
        assert!(batches.len() > 3);
    }
}

#[test]
fn a_payload_that_is_too_large_for_a_cell_is_refused_with_the_way_out() {
    let mut large = column("a", &[Some(0)], 0);
    large.cells = vec![cell(1, (64 << 20) + 1)];
    let content = content(vec![large], 1);
    for encoding in ENCODINGS {
        let layout = layout(encoding, CellKind::Payload, View::Rows, false, &["a"]);
        let error = content.batches(&layout).next().unwrap().unwrap_err();
        assert!(error.to_string().contains("chunks"), "{error}");
    }
}

#[test]
fn the_objects_view_has_a_row_for_each_run_that_is_not_null() {
    let rows = [Some(3), Some(3), None, Some(2)];
    let content = content(vec![column("one", &rows, 4)], 4);
    let layout = layout(Encoding::Dictionary, CellKind::Binary, View::Objects, true, &["one"]);
    let (schema, batches) = read(&stream(&content, &layout).0);
    assert!(schema.fields().iter().all(|field| !field.is_nullable()));
    let batch = &batches[0];
    let number = |name: &str, row| {
        batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().value(row)
    };
    assert_eq!(batch.num_rows(), 2);
    assert_eq!([number("row_start", 0), number("row_end", 0)], [0, 2]);
    assert_eq!([number("row_start", 1), number("row_end", 1)], [3, 4]);
    assert_eq!([number("valid_from", 0), number("created", 0)], [3, 8]);
    let text = |name: &str, row: usize| {
        batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned()
    };
    assert_eq!([text("cache", 0), text("cache", 1)], ["loaded", "hit"]);
    assert_eq!(text("object_id", 0), "03030303-0303-0303-0303-030303030303");
    let metadata = batch.column_by_name("metadata").unwrap().as_map().value(0);
    assert_eq!(metadata.column(1).as_string::<i32>().value(0), "3");
}

#[test]
fn chunks_are_of_a_mebibyte_and_nothing_has_none() {
    let chunks = |size: usize| {
        let mut one = column("a", &[Some(0)], 0);
        one.cells = vec![cell(1, size)];
        let layout = layout(Encoding::Plain, CellKind::Binary, View::Chunks, false, &["a"]);
        let (_, batches) = read(&stream(&content(vec![one], 1), &layout).0);
        let mut pieces = Vec::new();
        for batch in batches {
            let offsets = batch.column(0).as_primitive::<Int64Type>();
            for (offset, bytes) in offsets.values().iter().zip(batch.column(1).as_binary::<i32>()) {
                pieces.push((*offset, bytes.unwrap().len()));
            }
        }
        pieces
    };
    assert_eq!(chunks(0), []);
    assert_eq!(chunks(1), [(0, 1)]);
    assert_eq!(chunks(1 << 20), [(0, 1 << 20)]);
    assert_eq!(chunks((1 << 20) + 3), [(0, 1 << 20), (1 << 20, 3)]);
}

/// One small table in every layout, as a released version wrote it.
fn golden() -> (Content, PathBuf) {
    let rows = [Some(0), Some(0), None, Some(2), Some(1)];
    let columns = vec![column("one", &rows, 3), column("two", &[Some(1); 5], 3)];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/golden");
    (content(columns, 5), folder)
}

#[test]
fn golden_tables_are_read_and_written_as_they_were() {
    let (content, folder) = golden();
    for encoding in ENCODINGS {
        for kind in CELLS {
            let name = |value: serde_json::Value| value.as_str().unwrap().to_owned();
            let [encoding_name, kind_name] =
                [serde_json::json!(encoding), serde_json::json!(kind)].map(name);
            let file = folder.join(format!("{encoding_name}-{kind_name}.arrows"));
            let layout = layout(encoding, kind, View::Rows, true, &["one", "two"]);
            let (bytes, _) = stream(&content, &layout);
            if std::env::var_os("IOVCACHE_BLESS").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&file, &bytes).unwrap();
            }
            let (old_schema, old) = read(&std::fs::read(&file).unwrap());
            let (schema, new) = read(&bytes);
            // The order of metadata in the bytes is random, and the version of the program may
            // change.
            assert_eq!(old_schema.fields(), schema.fields(), "{}", file.display());
            assert_eq!(old.len(), new.len());
            for (old, new) in old.iter().zip(&new) {
                assert_eq!(old.columns(), new.columns(), "{}", file.display());
            }
        }
    }
}
