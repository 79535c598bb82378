//! `table`: requests a table and prints it.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array as _, ArrayRef, RecordBatch, StringArray};
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_cast::pretty::pretty_format_batches;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, SchemaRef};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use iovcache::client::{ClientOptions, TableRequest};
use iovcache::escape::{escape, must_escape};
use iovcache::server::TimeSpan;
use iovcache::table::{
    CellKind, CellValue, ColumnPath, ColumnRequest, Encoding, View, column_runs, rows_from_batches,
};
use serde::de::DeserializeOwned;

use crate::common::{Server, out};
use crate::failure::Failure;
use crate::{hints, input, keys, time};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// A column (may be given several times). A column with more properties than its path is given
    /// as JSON: NAME={"path": "…", "key": "run", "uniform": true}.
    #[arg(long = "column", value_name = "NAME=PATH")]
    columns: Vec<String>,
    /// A key on which columns depend (may be given several times): one value for all times, values
    /// with commas between them, one for each time, or a file with one value per line (empty: null;
    /// - is stdin). Without a value: the column of this name in the Arrow file of --timestamps.
    #[arg(long = "key", value_name = "NAME[=VALUE|FILE]")]
    keys: Vec<String>,
    /// A set of columns from the service's configuration, by its name.
    #[arg(long, value_name = "NAME", conflicts_with = "columns")]
    table: Option<String>,
    /// Request these times, each in ms, ISO 8601 with a zone, a date, now or now-1h.
    #[arg(long, value_name = "TIME,TIME…", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = time::parse, group = "when")]
    at: Option<Vec<i64>>,
    /// Request the times in a file (- is stdin): text with one time per line (empty: null), or an
    /// Arrow file or stream.
    #[arg(long, value_name = "FILE", group = "when")]
    timestamps: Option<PathBuf>,
    /// Request each step of a range (times as in --at; a step in ms, or as 30s); without a step
    /// with --view intervals.
    #[arg(long, value_name = "FROM:UNTIL[:STEP]", group = "when", allow_hyphen_values = true)]
    range: Option<String>,
    /// Request each step of a run's time range, which the service looks up; without a step with
    /// --view intervals.
    #[arg(long, value_name = "RUN[:STEP]", group = "when")]
    run: Option<String>,
    /// Request the times of a timeframe in flight.
    #[arg(long, value_name = "ID", group = "when")]
    timeframe: Option<u64>,
    /// The consumer that reads a timeframe.
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Rows of the table.
    #[arg(long, default_value = "rows", value_parser = one_of::<View>(VIEWS))]
    view: View,
    /// Encoding of the columns.
    #[arg(long, value_parser = one_of::<Encoding>(ENCODINGS))]
    encoding: Option<Encoding>,
    /// Content of a cell.
    #[arg(long, value_parser = one_of::<CellKind>(CELLS))]
    cell: Option<CellKind>,
    /// Give null cells where nothing is valid, instead of an error.
    #[arg(long)]
    missing_as_null: bool,
    /// Only versions created at or before this time.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    not_after: Option<i64>,
    /// Only versions created at or after this time.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    not_before: Option<i64>,
    /// Metadata for the schema of the table, as consumers of --output arrow may expect it.
    #[arg(long = "schema-metadata", value_name = "KEY=VALUE")]
    schema_metadata: Vec<String>,
    /// Exactly the versions of an earlier table (- is stdin), as `--view objects --output json`
    /// wrote them.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Time limit of the request.
    #[arg(long, value_name = "TIME")]
    wait: Option<TimeSpan>,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Short for --output json.
    #[arg(long, conflicts_with = "output")]
    json: bool,
    /// Show times in milliseconds in tables for people; other output always does.
    #[arg(long)]
    ms: bool,
}

impl Arguments {
    fn output(&self) -> Output {
        if self.json { Output::Json } else { self.output }
    }

    fn paths(&self) -> Vec<String> {
        let columns = self.columns.iter().filter_map(|column| column.split_once('='));
        let path = |(name, path): (&str, &str)| match path.starts_with('{') {
            true => match ColumnRequest::from_json(name, path).ok()?.path {
                ColumnPath::One(path) => Some(path.to_string()),
                ColumnPath::ByRange(_) => None,
            },
            false => Some(path.to_owned()),
        };
        columns.filter_map(path).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for people.
    Table,
    Csv,
    /// An array of objects.
    Json,
    /// An Arrow IPC stream.
    Arrow,
}

const VIEWS: [&str; 5] = ["rows", "objects", "intervals", "chunks", "distinct"];
const ENCODINGS: [&str; 3] = ["dictionary", "run_end", "plain"];
const CELLS: [&str; 4] = ["binary", "struct", "o2", "payload"];

/// Parses an option of the request, whose values have these names in JSON.
fn one_of<T>(names: impl Into<PossibleValuesParser>) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    names.into().try_map(|name| serde_json::from_value::<T>(name.into()))
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Requested { request, times } = request(&arguments)?;
    // A table that is only printed needs no attached shared memory.
    let options = ClientOptions { remote: true, ..ClientOptions::default() };
    let client = arguments.server.connect_with(options).await?;
    let batches = match client.batches(&request).await {
        Ok(batches) => batches,
        Err(error) => {
            return Err(hints::explain(&client, error, &arguments.paths(), &times).await);
        }
    };
    let unwritten = |error: ArrowError| Failure::failed(format!("cannot print the table: {error}"));
    let text = match arguments.output() {
        Output::Arrow => stream(&batches).map_err(unwritten)?,
        Output::Json => json(&batches).map_err(unwritten)?,
        Output::Csv => csv(&batches).map_err(unwritten)?,
        Output::Table => {
            let readable: Vec<RecordBatch> = batches
                .iter()
                .map(|batch| readable(batch, arguments.ms))
                .collect::<Result<_, _>>()
                .map_err(unwritten)?;
            format!("{}\n", pretty_format_batches(&readable).map_err(unwritten)?).into_bytes()
        }
    };
    out(&text)
}

/// The request of the options.
struct Requested {
    request: TableRequest,
    /// The first of its times (ms), for hints.
    times: Vec<i64>,
}

/// Largest number of times of a range that hints look at.
const MAX_HINT_TIMES: usize = 10_000;

fn request(arguments: &Arguments) -> Result<Requested, Failure> {
    let request = with_columns(TableRequest::new(), arguments)?;
    let Requested { request, times } = with_times(request, arguments)?;
    Ok(Requested { request: with_options(request, arguments)?, times })
}

/// Adds the columns, or the name of a set of columns.
fn with_columns(mut request: TableRequest, arguments: &Arguments) -> Result<TableRequest, Failure> {
    for column in &arguments.columns {
        let wrong = |reason: String| Failure::usage(format!("--column {column:?}: {reason}"));
        let (name, path) =
            column.split_once('=').ok_or_else(|| wrong("expected NAME=PATH".to_owned()))?;
        request = match path.starts_with('{') {
            true => {
                ColumnRequest::from_json(name, path).map_err(|error| wrong(error.to_string()))?;
                request.column_json(name, path)
            }
            false => request.column(name, path),
        };
    }
    Ok(match &arguments.table {
        Some(table) => request.table(table),
        None => request,
    })
}

/// Adds the times, which exactly one option gives, and the keys, which need a list of times.
fn with_times(request: TableRequest, arguments: &Arguments) -> Result<Requested, Failure> {
    let keys = &arguments.keys;
    let has_list = arguments.at.is_some() || arguments.timestamps.is_some();
    if !keys.is_empty() && !has_list {
        return Err(Failure::usage(
            "--key goes with --at or --timestamps: one value for each time",
        ));
    }
    let without_hints = |request| Ok(Requested { request, times: Vec::new() });
    if let Some(at) = &arguments.at {
        let request = request.timestamps(at.iter().copied());
        let request = keys::with_keys(request, keys, at.len(), &[])?;
        Ok(Requested { request, times: at.clone() })
    } else if let Some(file) = &arguments.timestamps {
        let (rows, batches) = timestamps(file, arguments)?;
        let times = rows.iter().flatten().copied().collect();
        let count = rows.len();
        let request = keys::with_keys(request.timestamps(rows), keys, count, &batches)?;
        Ok(Requested { request, times })
    } else if let Some(range) = &arguments.range {
        with_range(request, range, arguments.view)
    } else if let Some(run) = &arguments.run {
        without_hints(with_run(request, run, arguments.view)?)
    } else if let Some(timeframe) = arguments.timeframe {
        without_hints(request.timeframe(timeframe))
    } else {
        Err(Failure::usage("no times given: use --at, --timestamps, --range, --run or --timeframe"))
    }
}

/// Adds the options that select versions and the form of the table.
fn with_options(request: TableRequest, arguments: &Arguments) -> Result<TableRequest, Failure> {
    let mut request = request.view(arguments.view);
    if let Some(consumer) = &arguments.consumer {
        request = request.consumer(consumer);
    }
    if let Some(encoding) = arguments.encoding {
        request = request.encoding(encoding);
    }
    if let Some(cell) = arguments.cell {
        request = request.cell(cell);
    }
    if arguments.missing_as_null {
        request = request.missing_as_null();
    }
    if arguments.view == View::Rows && arguments.output() != Output::Arrow {
        request = request.timestamps_column();
    }
    if !arguments.schema_metadata.is_empty() {
        request = request.schema_metadata(schema_metadata(&arguments.schema_metadata)?);
    }
    if let Some(not_after) = arguments.not_after {
        request = request.not_after(not_after);
    }
    if let Some(not_before) = arguments.not_before {
        request = request.not_before(not_before);
    }
    if let Some(file) = &arguments.lock {
        let rows = serde_json::from_str(&input::text(file)?)
            .map_err(|error| Failure::usage(format!("{}: {error}", input::name(file))))?;
        request = request.lock(rows);
    }
    if let Some(wait) = arguments.wait {
        request = request.wait(wait.duration());
    }
    Ok(request)
}

fn schema_metadata(given: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut metadata = BTreeMap::new();
    for entry in given {
        let wrong = |reason| Failure::usage(format!("--schema-metadata {entry:?}: {reason}"));
        let (key, value) = entry.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE"))?;
        if metadata.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(wrong("this key is given twice"));
        }
    }
    Ok(metadata)
}

const WITHOUT_STEP: &str = "append one, such as :30s, or use --view intervals";

/// Adds a range. Its first times are for hints.
fn with_range(request: TableRequest, range: &str, view: View) -> Result<Requested, Failure> {
    let wrong = |reason: String| Failure::usage(format!("--range: {reason}"));
    let (from, until, step) = time::parse_range(range).map_err(wrong)?;
    if step.is_none() && view != View::Intervals {
        return Err(wrong(format!("{range:?} has no step; {WITHOUT_STEP}")));
    }
    let Some(step) = step else {
        return Ok(Requested { request: request.intervals(from, until), times: vec![from] });
    };
    let apart = usize::try_from(step).unwrap_or(1).max(1);
    let times = (from..until).step_by(apart).take(MAX_HINT_TIMES).collect();
    Ok(Requested { request: request.range(from, until, step), times })
}

fn with_run(request: TableRequest, given: &str, view: View) -> Result<TableRequest, Failure> {
    let (run, step) = match given.split_once(':') {
        Some((run, step)) => (run, Some(step)),
        None => (given, None),
    };
    let wrong = |reason: String| Failure::usage(format!("--run {given:?}: {reason}"));
    let run = run.parse().map_err(|_| wrong("expected the number of a run".to_owned()))?;
    match step {
        None if view == View::Intervals => Ok(request.intervals_of_run(run)),
        None => Err(wrong(format!("it has no step; {WITHOUT_STEP}"))),
        Some(step) => Ok(request.run(run, time::parse_step(step).map_err(wrong)?)),
    }
}

/// The times in a file (ms), and the batches of an Arrow file.
type FileTimes = (Vec<Option<i64>>, Vec<RecordBatch>);

fn timestamps(path: &Path, arguments: &Arguments) -> Result<FileTimes, Failure> {
    let bytes = input::bytes(path)?;
    let wrong = |error: ArrowError| Failure::usage(format!("{}: {error}", input::name(path)));
    if let Ok(reader) = FileReader::try_new(Cursor::new(&bytes), None) {
        return rows(&reader.schema(), reader.collect::<Result<_, _>>().map_err(wrong)?, arguments);
    }
    if let Ok(reader) = StreamReader::try_new(Cursor::new(&bytes), None) {
        return rows(&reader.schema(), reader.collect::<Result<_, _>>().map_err(wrong)?, arguments);
    }
    let text = input::as_text(bytes, path)?;
    let lines = text.lines().enumerate().map(|(number, line)| match line.trim() {
        "" => Ok(None),
        at => time::parse(at).map(Some).map_err(|reason| {
            let line = number + 1;
            Failure::usage(format!("{}, line {line}: {reason}", input::name(path)))
        }),
    });
    Ok((lines.collect::<Result<_, Failure>>()?, Vec::new()))
}

fn rows(
    schema: &SchemaRef,
    mut batches: Vec<RecordBatch>,
    arguments: &Arguments,
) -> Result<FileTimes, Failure> {
    // A file without a batch has no times, as an empty text.
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(Arc::clone(schema)));
    }
    // A column that is a key is not the column of timestamps.
    let keys: Vec<Arc<str>> = arguments.keys.iter().map(|key| Arc::from(&**key)).collect();
    let found = rows_from_batches(&batches, &keys, |_| Ok::<_, Failure>(()))?;
    let at = |row| found.timestamps.value(row).map(|at| at.as_millis());
    Ok(((0..found.timestamps.len()).map(at).collect(), batches))
}

fn stream(batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut bytes = Vec::new();
    if let Some(first) = batches.first() {
        let mut writer = StreamWriter::try_new(&mut bytes, &first.schema())?;
        for batch in batches {
            writer.write(batch)?;
        }
        writer.finish()?;
    }
    Ok(bytes)
}

fn json(batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let mut writer = arrow_json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow_json::writer::JsonArray>(Vec::new());
    for batch in batches {
        writer.write(batch)?;
    }
    writer.finish()?;
    let mut bytes = writer.into_inner();
    bytes.push(b'\n');
    Ok(bytes)
}

fn csv(batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let failed = |error| ArrowError::ExternalError(Box::new(error));
    let mut writer = csv::Writer::from_writer(Vec::new());
    for (number, batch) in batches.iter().enumerate() {
        if number == 0 {
            let schema = batch.schema();
            writer
                .write_record(schema.fields().iter().map(|field| field.name()))
                .map_err(failed)?;
        }
        let columns: Vec<ArrayRef> =
            batch.columns().iter().map(text_of).collect::<Result<_, _>>()?;
        let texts: Vec<&StringArray> = columns.iter().map(|column| column.as_string()).collect();
        for row in 0..batch.num_rows() {
            // Null is an empty field.
            let fields =
                texts.iter().map(|text| if text.is_null(row) { "" } else { text.value(row) });
            writer.write_record(fields).map_err(failed)?;
        }
    }
    writer.into_inner().map_err(|error| ArrowError::CsvError(error.to_string()))
}

/// Each value as text; null stays null.
fn text_of(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
    let nulls = column.logical_nulls();
    let text = |row| {
        let null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        (!null).then(|| formatter.value(row).to_string())
    };
    let texts: StringArray = (0..column.len()).map(text).collect();
    Ok(std::sync::Arc::new(texts))
}

/// Replaces cells by their size and position, and times by ISO 8601 unless `as_millis`.
fn readable(batch: &RecordBatch, as_millis: bool) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        let is_cell = field.metadata().contains_key("url") || field.name() == "cell";
        let runs = if is_cell { column_runs(column).ok() } else { None };
        let shown: ArrayRef = match runs {
            Some(runs) => {
                let mut start = 0;
                let cells: StringArray = runs
                    .iter()
                    .flat_map(|(end, cell)| {
                        let rows = end - start;
                        start = end;
                        std::iter::repeat_n(shown_cell(cell), rows)
                    })
                    .collect();
                std::sync::Arc::new(cells)
            }
            None if TIMES.contains(&field.name().as_str()) && !as_millis => times_of(column)?,
            None => text_of(column)?,
        };
        Ok((escape(field.name()).into_owned(), escaped(&shown), true))
    });
    RecordBatch::try_from_iter_with_nullable(columns.collect::<Result<Vec<_>, ArrowError>>()?)
}

/// The names of columns of times in the views.
const TIMES: [&str; 6] = ["timestamp", "from", "until", "valid_from", "valid_until", "created"];

/// Replaces milliseconds by ISO 8601 in UTC; a column that is no Int64 stays as it is.
fn times_of(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let Some(times) = column.as_primitive_opt::<Int64Type>() else { return text_of(column) };
    let texts: StringArray = times.iter().map(|at| at.map(time::show)).collect();
    Ok(std::sync::Arc::new(texts))
}

/// Escapes control characters: the texts come from clients and sources.
fn escaped(texts: &ArrayRef) -> ArrayRef {
    let texts = texts.as_string::<i32>().iter();
    std::sync::Arc::new(texts.map(|text| text.map(escape)).collect::<StringArray>())
}

fn shown_cell(cell: CellValue<'_>) -> Option<String> {
    match cell {
        CellValue::Null => None,
        CellValue::Header(header) => {
            let (kind, id) = match header.managed {
                1 => ("segment", header.segment_id),
                _ => ("region", header.region_id),
            };
            Some(format!("{} B in {kind} {id} at {}", header.size, header.handle))
        }
        CellValue::O2 { handle, segment, size } => {
            Some(format!("{size} B in segment {segment} at {handle}"))
        }
        CellValue::Payload(bytes) => {
            let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= 40);
            let plain = text.filter(|text| !text.trim_end().chars().any(must_escape));
            Some(
                plain.map_or_else(
                    || format!("{} B", bytes.len()),
                    |text| text.trim_end().to_owned(),
                ),
            )
        }
    }
}
