//! Compares the answers of two versions: what differs from start to start (epoch, places in memory,
//! counters) is left out.

use arrow_array::RecordBatch;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::{FlightData, FlightInfo};
use futures::{StreamExt as _, TryStreamExt as _};
use prost::Message as _;
use serde_json::Value;

use crate::wire::{Answer, block_on};

/// Whether `new` has each field of `old`, with a value of the same kind.
pub(crate) fn has_all_of(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(name, old)| new.get(name).is_some_and(|new| has_all_of(new, old)))
        }
        (Value::Array(new), Value::Array(old)) => match (new.first(), old.first()) {
            (Some(new), Some(old)) => has_all_of(new, old),
            _ => true,
        },
        (new, old) => std::mem::discriminant(new) == std::mem::discriminant(old),
    }
}

/// Panics if the answer of this version does not have what that of the version before has.
pub(crate) fn compare(path: &str, old: &Answer, new: &Answer) {
    match path.rsplit('/').next().unwrap() {
        "DoGet" => {
            let [old, new] = [old, new].map(tables);
            assert_eq!(new, old, "{path}");
        }
        "DoAction" => {
            let bodies = |answer: &Answer| -> Vec<Value> {
                let decode = |bytes| arrow_flight::Result::decode(bytes).unwrap().body;
                let messages = answer.messages().into_iter().map(decode);
                messages.map(|body| serde_json::from_slice(&body).unwrap()).collect()
            };
            let (old, new) = (bodies(old), bodies(new));
            assert_eq!(old.len(), new.len());
            for (old, new) in old.iter().zip(&new) {
                assert!(has_all_of(new, old), "{path}: {new} lacks some of {old}");
            }
        }
        "ListFlights" => {
            let infos = |answer: &Answer| -> Vec<_> {
                let decode = |bytes| FlightInfo::decode(bytes).unwrap();
                let infos = answer.messages().into_iter().map(decode);
                infos.map(|info| (info.flight_descriptor, info.total_records)).collect()
            };
            assert_eq!(infos(new), infos(old), "{path}");
        }
        other => panic!("{other} is not compared"),
    }
}

/// A column: its name and type, and its values as texts. Cells that name places in memory have only
/// whether they are null.
type Column = (String, String, Vec<Option<String>>);

/// The lease of a table.
pub(crate) fn lease(answer: &Answer) -> Option<String> {
    let mut stream = stream(answer)?;
    // The schema comes before the first batch.
    let _ = block_on(stream.next());
    stream.schema()?.metadata().get("iovcache.lease").cloned()
}

fn stream(answer: &Answer) -> Option<FlightRecordBatchStream> {
    let data = answer.messages().into_iter().map(|bytes| Ok(FlightData::decode(bytes).unwrap()));
    let data: Vec<_> = data.collect();
    if data.is_empty() {
        return None;
    }
    Some(FlightRecordBatchStream::new_from_flight_data(futures::stream::iter(data).boxed()))
}

fn tables(answer: &Answer) -> Vec<Column> {
    let Some(stream) = stream(answer) else { return Vec::new() };
    let batches: Vec<RecordBatch> = block_on(stream.try_collect()).unwrap();
    batches.iter().flat_map(columns).collect()
}

fn columns(batch: &RecordBatch) -> Vec<Column> {
    let schema = batch.schema();
    let of = |(field, column): (&arrow_schema::FieldRef, &arrow_array::ArrayRef)| {
        let formatter = ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap();
        let kind = field.data_type().to_string();
        // The objects view has generations, and whether an object was in memory.
        let is_of_one_start = ["generation", "cache"].contains(&field.name().as_str());
        let is_place =
            is_of_one_start || kind.contains("FixedSizeBinary") || kind.contains("Binary(40)");
        let nulls = column.logical_nulls();
        let value = |row| {
            let is_null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
            let text = if is_place { String::new() } else { formatter.value(row).to_string() };
            (!is_null).then_some(text)
        };
        (field.name().clone(), kind, (0..batch.num_rows()).map(value).collect())
    };
    schema.fields().iter().zip(batch.columns()).map(of).collect()
}
