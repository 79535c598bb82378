//! `--key`: the values of keys on which columns depend.

use std::collections::BTreeSet;
use std::path::Path;

use arrow_array::RecordBatch;
use iovcache::client::TableRequest;
use iovcache::index::{KeyBuilder, KeyColumn, KeyType, KeyValue};
use iovcache::table::key_from_batches;

use crate::failure::Failure;
use crate::input;

/// Adds the keys of `arguments` to the request: `NAME=VALUE`, `NAME=VALUE,VALUE…`, `NAME=FILE`, or
/// `NAME` for a column of `batches`. Each key has one value for each of `rows` timestamps.
///
/// # Errors
/// [`Failure`] if a file cannot be read, a column is missing, or the number of values is not
/// `rows`.
pub(crate) fn with_keys(
    mut request: TableRequest,
    arguments: &[String],
    rows: usize,
    batches: &[RecordBatch],
) -> Result<TableRequest, Failure> {
    let mut names = BTreeSet::new();
    for argument in arguments {
        let name = argument.split_once('=').map_or(&**argument, |(name, _)| name);
        if !names.insert(name) {
            return Err(Failure::usage(format!("--key {argument:?}: {name:?} is given twice")));
        }
        let (name, key) = match argument.split_once('=') {
            Some((name, value)) => (name, key_of(name, value, rows)?),
            None => (&**argument, from_batches(argument, batches)?),
        };
        if key.len() != rows {
            let got = key.len();
            return Err(Failure::usage(format!("--key {name}: {got} values for {rows} times")));
        }
        request = request.key(name, key);
    }
    Ok(request)
}

fn from_batches(name: &str, batches: &[RecordBatch]) -> Result<KeyColumn, Failure> {
    if batches.is_empty() {
        return Err(Failure::usage(format!(
            "--key {name}: without a value it is a column of the Arrow file of --timestamps"
        )));
    }
    key_from_batches(name, batches)
        .map_err(|error| Failure::usage(format!("--key {name}: {error}")))
}

/// The values of `NAME=…`: integers if all of them are integers, else texts.
fn key_of(name: &str, value: &str, rows: usize) -> Result<KeyColumn, Failure> {
    if value.is_empty() {
        return Err(Failure::usage(format!("--key {name}=: expected a value or a file")));
    }
    let is_file = value == "-" || (value.parse::<i64>().is_err() && Path::new(value).is_file());
    if is_file {
        let text = input::text(Path::new(value))?;
        return Ok(key_from_texts(text.lines().map(str::trim).map(|line| (1, line))));
    }
    if value.contains(',') {
        return Ok(key_from_texts(value.split(',').map(str::trim).map(|value| (1, value))));
    }
    Ok(key_from_texts([(rows, value)].into_iter()))
}

/// A key column of pairs of number of rows and text; an empty text is null.
fn key_from_texts<'a>(texts: impl Iterator<Item = (usize, &'a str)> + Clone) -> KeyColumn {
    let mut given = texts.clone().filter(|(_, text)| !text.is_empty());
    let is_integer = given.all(|(_, text)| text.parse::<i64>().is_ok());
    let mut key = KeyBuilder::new(if is_integer { KeyType::Integers } else { KeyType::Texts });
    for (rows, text) in texts {
        let value = match text.parse() {
            _ if text.is_empty() => None,
            Ok(number) if is_integer => Some(KeyValue::Integer(number)),
            _ => Some(KeyValue::Text(text)),
        };
        key.push(rows, value);
    }
    key.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_for_all_times_and_a_list_has_one_for_each() {
        let key = key_of("run", "544123", 3).ok().unwrap();
        assert_eq!((key.len(), key.value(2)), (3, Some(KeyValue::Integer(544_123))));
        let key = key_of("run", "1,,2", 3).ok().unwrap();
        assert_eq!((key.value(0), key.value(1)), (Some(KeyValue::Integer(1)), None));
        let key = key_of("period", "LHC24af,1", 2).ok().unwrap();
        assert_eq!(key.value(1), Some(KeyValue::Text("1")));
        assert!(key_of("run", "", 1).is_err());
    }
}
