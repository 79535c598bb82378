//! Builds a column of texts from runs of equal texts.

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, Int32Array, RunArray, StringArray};
use arrow_data::ArrayData;
use arrow_schema::DataType;

use super::encode_error::EncodeError;
use super::layout::text_type;
use super::request_options::Encoding;

/// Texts, each with the number of its rows.
#[derive(Default)]
pub(super) struct TextRuns<'a>(Vec<(&'a str, i32)>);

impl<'a> TextRuns<'a> {
    pub(super) fn push(&mut self, text: &'a str) {
        match self.0.last_mut() {
            Some((last, rows)) if *last == text => *rows += 1,
            _ => self.0.push((text, 1)),
        }
    }

    pub(super) fn finish(self, encoding: Encoding, rows: usize) -> Result<ArrayRef, EncodeError> {
        let Self(runs) = self;
        if encoding == Encoding::RunEnd {
            let lengths = runs.iter().map(|(_, rows)| *rows);
            let ends = lengths.scan(0, |end, rows| {
                *end += rows;
                Some(*end)
            });
            let texts = StringArray::from_iter_values(runs.iter().map(|(text, _)| *text));
            let ends = Int32Array::from_iter_values(ends);
            return run_array(&text_type(encoding), ends, &texts, rows);
        }
        let texts = runs.iter().flat_map(|(text, rows)| std::iter::repeat_n(*text, *rows as usize));
        Ok(Arc::new(StringArray::from_iter_values(texts)))
    }
}

/// Run-end encoded array, its values unchecked. `RunArray::try_new` does not fit: it declares all
/// values nullable.
fn run_array(
    data_type: &DataType,
    ends: Int32Array,
    values: &dyn Array,
    rows: usize,
) -> Result<ArrayRef, EncodeError> {
    let data = ArrayData::builder(data_type.clone())
        .len(rows)
        .add_child_data(ends.into_data())
        .add_child_data(values.to_data())
        .build()?;
    Ok(Arc::new(RunArray::<Int32Type>::from(data)))
}
