//! Reads key columns from Arrow: integers of any width and strings; plain, dictionary or run-end
//! encoded.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    ArrowPrimitiveType, Int8Type, Int16Type, Int32Type, Int64Type, RunEndIndexType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{AnyDictionaryArray, Array, ArrayRef, RecordBatch, RunArray, UInt64Array};
use arrow_buffer::{ArrowNativeType as _, NullBuffer};
use arrow_schema::DataType;

use super::key_rows::{KeyColumns, KeyError};
use crate::index::{KeyBuilder, KeyColumn, KeyType, KeyValue, Timestamps};

/// Number of rows after which the memory of a key that is being read is charged again.
const CHARGED_ROWS: usize = 4_096;

/// The key columns `names` of a batch whose first row is row `first_row` of the table; errors name
/// rows of the table. `charge` gets the bytes that they take before they are allocated, and may
/// refuse.
///
/// # Errors
/// [`KeyError`] for a column that cannot be a key, or the error of `charge`. A name without a
/// column in the batch is left out: [`KeyColumns::check_columns`], which knows the columns, returns
/// [`KeyError::Missing`] for it.
pub(super) fn keys_from_batch<E: From<KeyError>>(
    names: &[Arc<str>],
    batch: &RecordBatch,
    first_row: usize,
    charge: &mut dyn FnMut(u64) -> Result<(), E>,
) -> Result<KeyColumns, E> {
    let named = names.iter().filter_map(|name| Some((name, batch.column_by_name(name)?)));
    let keys = named.map(|(name, array)| {
        Ok((Arc::clone(name), KeyReader { name, first_row, charge, charged: 0 }.column(array)?))
    });
    keys.collect()
}

/// The key column `name` of a table, its batches concatenated.
///
/// # Errors
/// [`KeyError`] if no column has this name, or the column cannot be a key.
pub fn key_from_batches(name: &str, batches: &[RecordBatch]) -> Result<KeyColumn, KeyError> {
    let names = [Arc::from(name)];
    let parts = with_first_rows(batches)
        .map(|(first_row, batch)| keys_from_batch(&names, batch, first_row, &mut |_| Ok(())));
    let parts = parts.collect::<Result<Vec<KeyColumns>, KeyError>>()?;
    KeyColumns::concat(&parts)?.get(name).cloned().ok_or_else(|| KeyError::NoColumn {
        key: name.to_owned(),
        columns: batches.first().map_or_else(Vec::new, |batch| {
            batch.schema().fields().iter().map(|field| field.name().clone()).collect()
        }),
    })
}

/// Each batch with the number of the rows before it.
pub(super) fn with_first_rows(
    batches: &[RecordBatch],
) -> impl Iterator<Item = (usize, &RecordBatch)> {
    batches.iter().scan(0, |rows, batch| {
        let first_row = *rows;
        *rows += batch.num_rows();
        Some((first_row, batch))
    })
}

/// A key column that is being read.
struct KeyReader<'a, E> {
    name: &'a Arc<str>,
    /// The rows of the table before the first one of the array.
    first_row: usize,
    charge: &'a mut dyn FnMut(u64) -> Result<(), E>,
    /// Bytes charged for it so far.
    charged: u64,
}

impl<E: From<KeyError>> KeyReader<'_, E> {
    fn wrong_type(&self, array: &dyn Array) -> E {
        let (key, got) = (self.name.to_string(), array.data_type().to_string());
        KeyError::Type { key, got }.into()
    }

    fn pay(&mut self, builder: &KeyBuilder) -> Result<(), E> {
        let more = (builder.memory_bytes() as u64).saturating_sub(self.charged);
        (self.charge)(more)?;
        self.charged += more;
        Ok(())
    }

    fn column(mut self, array: &ArrayRef) -> Result<KeyColumn, E> {
        let key_type = key_type(array.data_type()).ok_or_else(|| self.wrong_type(array))?;
        let mut builder = KeyBuilder::new(key_type);
        let ends = run_ends(array);
        let values = ends.as_ref().map_or(array, |(_, values)| values);
        let ends = ends.as_ref().map(|(ends, _)| &ends[..]);
        match ends {
            Some(ends) if ends.last().is_some_and(|&end| end > Timestamps::MAX_ROWS) => {
                return Err(self.wrong_type(array));
            }
            _ => {}
        }
        self.values(values, ends, &mut builder)?;
        self.pay(&builder)?;
        Ok(builder.finish())
    }

    /// Appends the values of an array: each for the rows up to its end in `ends`, or for one row.
    fn values(
        &mut self,
        array: &ArrayRef,
        ends: Option<&[usize]>,
        builder: &mut KeyBuilder,
    ) -> Result<(), E> {
        match array.data_type() {
            DataType::Int8 => self.integers::<Int8Type>(array, ends, builder),
            DataType::Int16 => self.integers::<Int16Type>(array, ends, builder),
            DataType::Int32 => self.integers::<Int32Type>(array, ends, builder),
            DataType::Int64 => self.integers::<Int64Type>(array, ends, builder),
            DataType::UInt8 => self.integers::<UInt8Type>(array, ends, builder),
            DataType::UInt16 => self.integers::<UInt16Type>(array, ends, builder),
            DataType::UInt32 => self.integers::<UInt32Type>(array, ends, builder),
            DataType::UInt64 => self.integers::<UInt64Type>(array, ends, builder),
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                self.rows(array, ends, builder, |row| Ok(KeyValue::Text(array.value(row))))
            }
            DataType::LargeUtf8 => {
                let array = array.as_string::<i64>();
                self.rows(array, ends, builder, |row| Ok(KeyValue::Text(array.value(row))))
            }
            DataType::Utf8View => {
                let array = array.as_string_view();
                self.rows(array, ends, builder, |row| Ok(KeyValue::Text(array.value(row))))
            }
            DataType::Dictionary(..) => self.dictionary(array, ends, builder),
            _ => Err(self.wrong_type(array)),
        }
    }

    fn integers<T: ArrowPrimitiveType>(
        &mut self,
        array: &ArrayRef,
        ends: Option<&[usize]>,
        builder: &mut KeyBuilder,
    ) -> Result<(), E>
    where
        T::Native: TryInto<i64> + Copy,
    {
        let array = array.as_primitive::<T>();
        let (name, first_row) = (Arc::clone(self.name), self.first_row);
        self.rows(array, ends, builder, |row| {
            let value = array.value(row);
            value.try_into().map(KeyValue::Integer).map_err(|_| {
                let row = first_row + first_row_of(row, ends);
                KeyError::Overflow { key: name.to_string(), row, value: format!("{value:?}") }
            })
        })
    }

    /// The values of a dictionary, without those that are no i64. Only a row that has such a value is
    /// an error, as with plain values; a dictionary may hold values that no row has.
    fn dictionary_values(
        &self,
        dictionary: &dyn AnyDictionaryArray,
        indices: &[usize],
        ends: Option<&[usize]>,
    ) -> Result<ArrayRef, E> {
        let Some(values) = dictionary.values().as_primitive_opt::<UInt64Type>() else {
            return Ok(Arc::clone(dictionary.values()));
        };
        let fits = |value: u64| i64::try_from(value).is_ok();
        if values.values().iter().all(|value| fits(*value)) {
            return Ok(Arc::clone(dictionary.values()));
        }
        for (place, &index) in indices.iter().enumerate() {
            let is_used = dictionary.keys().is_valid(place) && values.is_valid(index);
            if is_used && !fits(values.value(index)) {
                let row = self.first_row + first_row_of(place, ends);
                let (key, value) = (self.name.to_string(), values.value(index).to_string());
                return Err(KeyError::Overflow { key, row, value }.into());
            }
        }
        let fitting = values.values().iter().map(|value| fits(*value)).collect();
        let nulls = NullBuffer::union(values.nulls(), Some(&fitting));
        Ok(Arc::new(UInt64Array::new(values.values().clone(), nulls)))
    }

    /// Appends a dictionary array: each value is converted once and repeated by key.
    fn dictionary(
        &mut self,
        array: &ArrayRef,
        ends: Option<&[usize]>,
        builder: &mut KeyBuilder,
    ) -> Result<(), E> {
        let dictionary = array.as_any_dictionary_opt().ok_or_else(|| self.wrong_type(array))?;
        let keys = dictionary.keys();
        let key_type = key_type(dictionary.values().data_type());
        let key_type = key_type.ok_or_else(|| self.wrong_type(array))?;
        let mut values = Vec::new();
        (self.charge)(dictionary.values().len() as u64 * 24)?;
        let mut texts = KeyBuilder::new(key_type);
        let indices = match dictionary.values().is_empty() {
            true => vec![0; keys.len()],
            false => {
                (self.charge)(keys.len() as u64 * 8)?;
                dictionary.normalized_keys()
            }
        };
        // `texts` has a row per dictionary value, but equal neighbours share a run: map runs back
        // to rows.
        let distinct = self.dictionary_values(dictionary, &indices, ends)?;
        self.values(&distinct, None, &mut texts)?;
        let column = texts.finish();
        let mut start = 0;
        for (end, value) in column.runs() {
            values.extend(std::iter::repeat_n(value, end - start));
            start = end;
        }
        for (row, key) in indices.into_iter().enumerate() {
            let value = keys.is_valid(row).then(|| values.get(key).copied().flatten()).flatten();
            let rows = rows_of(row, ends);
            builder.push(rows, value);
            if row % CHARGED_ROWS == 0 {
                self.pay(builder)?;
            }
        }
        Ok(())
    }

    fn rows<'v>(
        &mut self,
        array: &dyn Array,
        ends: Option<&[usize]>,
        builder: &mut KeyBuilder,
        value: impl Fn(usize) -> Result<KeyValue<'v>, KeyError>,
    ) -> Result<(), E> {
        for row in 0..array.len() {
            // The value under a null has no meaning.
            let value = if array.is_null(row) { None } else { Some(value(row)?) };
            builder.push(rows_of(row, ends), value);
            if row % CHARGED_ROWS == 0 {
                self.pay(builder)?;
            }
        }
        Ok(())
    }
}

/// Number of rows of the value at `place`.
fn rows_of(place: usize, ends: Option<&[usize]>) -> usize {
    ends.map_or(1, |ends| ends[place] - place.checked_sub(1).map_or(0, |before| ends[before]))
}

/// The first row that the value in `place` has.
fn first_row_of(place: usize, ends: Option<&[usize]>) -> usize {
    ends.map_or(place, |ends| place.checked_sub(1).map_or(0, |before| ends[before]))
}

fn key_type(data_type: &DataType) -> Option<KeyType> {
    match data_type {
        integer if integer.is_integer() => Some(KeyType::Integers),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(KeyType::Texts),
        DataType::Dictionary(_, values) => key_type(values),
        DataType::RunEndEncoded(_, values) => key_type(values.data_type()),
        _ => None,
    }
}

/// Ends of the runs that a run-end encoded array touches, and their values.
fn run_ends(array: &ArrayRef) -> Option<(Vec<usize>, ArrayRef)> {
    fn of<R: RunEndIndexType>(array: &ArrayRef) -> Option<(Vec<usize>, ArrayRef)> {
        let array = array.as_any().downcast_ref::<RunArray<R>>()?;
        if array.is_empty() {
            return Some((Vec::new(), array.values().slice(0, 0)));
        }
        // A slice keeps all runs of its array; only the runs inside the slice count.
        let ends = array.run_ends();
        let (first, last) = (ends.get_start_physical_index(), ends.get_end_physical_index());
        let offset = ends.offset();
        let rows = ends.values()[first..=last].iter();
        let rows = rows.map(|end| (end.as_usize() - offset).min(array.len())).collect();
        Some((rows, array.values().slice(first, last - first + 1)))
    }
    match array.data_type() {
        DataType::RunEndEncoded(ends, _) => match ends.data_type() {
            DataType::Int16 => of::<Int16Type>(array),
            DataType::Int32 => of::<Int32Type>(array),
            _ => of::<Int64Type>(array),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{
        DictionaryArray, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array,
        LargeStringArray, StringArray, StringViewArray, UInt8Array, UInt16Array, UInt32Array,
    };

    use super::*;

    fn key(array: ArrayRef) -> Result<KeyColumn, KeyError> {
        let batch = RecordBatch::try_from_iter_with_nullable([("run", array, true)]).unwrap();
        let keys = keys_from_batch(&["run".into()], &batch, 0, &mut |_| Ok::<_, KeyError>(()))?;
        Ok(keys.get("run").unwrap().clone())
    }

    fn integers(array: impl Array + 'static) -> Vec<Option<i64>> {
        let key = key(Arc::new(array)).unwrap();
        let value = |row| match key.value(row) {
            Some(KeyValue::Integer(value)) => Some(value),
            None => None,
            Some(KeyValue::Text(text)) => panic!("{text}"),
        };
        (0..key.len()).map(value).collect()
    }

    fn texts(array: impl Array + 'static) -> Vec<Option<String>> {
        let key = key(Arc::new(array)).unwrap();
        (0..key.len()).map(|row| key.value(row).map(|value| value.to_string())).collect()
    }

    #[test]
    fn integers_of_every_width_are_taken() {
        assert_eq!(integers(Int8Array::from(vec![Some(-1), None])), [Some(-1), None]);
        assert_eq!(integers(Int16Array::from(vec![i16::MIN])), [Some(-32_768)]);
        assert_eq!(integers(Int32Array::from(vec![i32::MAX])), [Some(i64::from(i32::MAX))]);
        assert_eq!(integers(UInt8Array::from(vec![255])), [Some(255)]);
        assert_eq!(integers(UInt16Array::from(vec![65_535])), [Some(65_535)]);
        assert_eq!(integers(UInt32Array::from(vec![u32::MAX])), [Some(i64::from(u32::MAX))]);
        assert_eq!(integers(Int64Array::from(vec![i64::MIN])), [Some(i64::MIN)]);
        assert_eq!(integers(UInt64Array::from(vec![i64::MAX as u64])), [Some(i64::MAX)]);
    }

    #[test]
    fn a_value_that_is_no_i64_is_named_with_its_row_unless_it_is_null() {
        let error = key(Arc::new(UInt64Array::from(vec![1, u64::MAX]))).unwrap_err();
        let value = u64::MAX.to_string();
        assert_eq!(error, KeyError::Overflow { key: "run".to_owned(), row: 1, value });
        let nulls = Some(arrow_buffer::NullBuffer::from(vec![false]));
        assert_eq!(integers(UInt64Array::new(vec![u64::MAX].into(), nulls)), [None]);
        let ends = Int32Array::from(vec![70, 80]);
        let runs = RunArray::try_new(&ends, &UInt64Array::from(vec![1, u64::MAX])).unwrap();
        match key(Arc::new(runs)).unwrap_err() {
            KeyError::Overflow { row, .. } => assert_eq!(row, 70),
            other => panic!("{other}"),
        }
        let floats = key(Arc::new(Float64Array::from(vec![1.0]))).unwrap_err();
        assert!(floats.to_string().contains("Float64"));
    }

    #[test]
    fn a_dictionary_with_a_value_that_is_no_i64_is_refused_by_the_row_that_has_it() {
        let values: ArrayRef = Arc::new(UInt64Array::from(vec![u64::MAX, 5]));
        let keys = Int32Array::from(vec![Some(1), None, Some(1)]);
        let unused = DictionaryArray::new(keys, Arc::clone(&values));
        assert_eq!(integers(unused), [Some(5), None, Some(5)]);
        let used = DictionaryArray::new(Int32Array::from(vec![1, 1, 0]), Arc::clone(&values));
        let value = u64::MAX.to_string();
        let expected = KeyError::Overflow { key: "run".to_owned(), row: 2, value };
        assert_eq!(key(Arc::new(used)).unwrap_err(), expected);
        let ends = Int32Array::from(vec![2, 9]);
        let values = DictionaryArray::new(Int32Array::from(vec![1, 0]), values);
        let runs = RunArray::try_new(&ends, &values).unwrap();
        assert_eq!(key(Arc::new(runs)).unwrap_err(), expected);
    }

    #[test]
    fn a_row_of_a_later_batch_is_named_by_its_number_in_the_table() {
        let batch = |runs: Vec<u64>| {
            let runs: ArrayRef = Arc::new(UInt64Array::from(runs));
            RecordBatch::try_from_iter([("run", runs)]).unwrap()
        };
        let batches = [batch(vec![1, 2, 3]), batch(vec![4, u64::MAX])];
        let error = key_from_batches("run", &batches).unwrap_err();
        let value = u64::MAX.to_string();
        assert_eq!(error, KeyError::Overflow { key: "run".to_owned(), row: 4, value });
    }

    #[test]
    fn strings_dictionaries_and_runs_are_taken() {
        let rows = vec![Some("a"), None, Some("b")];
        let expected = rows.iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>();
        assert_eq!(texts(StringArray::from(rows.clone())), expected);
        assert_eq!(texts(LargeStringArray::from(rows.clone())), expected);
        assert_eq!(texts(StringViewArray::from(rows.clone())), expected);
        let dictionary: DictionaryArray<Int8Type> = rows.into_iter().collect();
        assert_eq!(texts(dictionary), expected);
        let values: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), Some(7), None]));
        let keys = Int32Array::from(vec![Some(1), Some(2), None, Some(0)]);
        let dictionary = DictionaryArray::new(keys, values);
        assert_eq!(integers(dictionary.clone()), [Some(7), None, None, Some(7)]);
        assert_eq!(integers(dictionary.slice(3, 1)), [Some(7)]);
        let none: ArrayRef = Arc::new(Int64Array::from(Vec::<i64>::new()));
        let empty = DictionaryArray::new(Int32Array::from(vec![None, None]), none);
        assert_eq!(integers(empty), [None, None]);
        let ends = Int32Array::from(vec![2, 3, 1_000_000]);
        let runs =
            RunArray::try_new(&ends, &Int8Array::from(vec![Some(1), None, Some(3)])).unwrap();
        let column = key(Arc::new(runs.clone())).unwrap();
        assert_eq!((column.len(), column.run_count()), (1_000_000, 3));
        assert_eq!(integers(runs.slice(1, 3)), [Some(1), None, Some(3)]);
        assert_eq!(integers(runs.slice(5, 0)), []);
    }

    #[test]
    fn memory_is_charged_before_it_is_taken() {
        let array: ArrayRef =
            Arc::new(StringArray::from_iter_values((0..100_000).map(|n| n.to_string())));
        let batch = RecordBatch::try_from_iter([("run", array)]).unwrap();
        let mut left = 1_000_000_u64;
        let refused = KeyError::Unused { key: "over budget".to_owned() };
        let mut charge = |bytes: u64| {
            left = left.checked_sub(bytes).ok_or_else(|| refused.clone())?;
            Ok::<_, KeyError>(())
        };
        let read = keys_from_batch(&["run".into()], &batch, 0, &mut charge);
        assert_eq!(read.unwrap_err(), refused);
    }
}
