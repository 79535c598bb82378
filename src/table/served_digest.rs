//! Digest of which versions serve which rows of a table.
//!
//! Cells of bytes, and those of O2, do not name the versions that they come from. The schema of such a
//! table has this digest, by which a client recognises the objects view that describes it, and
//! that of a version which was put later.

use std::mem;
use std::ops::Range;

use uuid::Uuid;

use crate::object::ObjectId;

/// Version 5 (SHA-1) of the texts and numbers, in this namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x0a5d_3f1c_6f0e_4a52_9b1e_2f57_c1d0_77ab);

/// Digest of the rows that were added so far.
#[derive(Debug, Default)]
pub(crate) struct ServedDigest {
    /// Name and digest of each column that has ended.
    columns: Vec<u8>,
    name: String,
    /// Rows and id of each run of the column, but the last one.
    runs: Vec<u8>,
    last: Option<(Range<usize>, ObjectId)>,
}

impl ServedDigest {
    /// Adds rows that one version serves, after all that were added for this column.
    pub(crate) fn add(&mut self, column: &str, rows: Range<usize>, id: ObjectId) {
        if self.name != column {
            self.end_column();
            column.clone_into(&mut self.name);
        }
        match &mut self.last {
            // A run can be in pieces.
            Some((last, same)) if *same == id && last.end == rows.start => last.end = rows.end,
            _ => {
                self.end_run();
                self.last = Some((rows, id));
            }
        }
    }

    fn end_run(&mut self) {
        let Some((rows, id)) = self.last.take() else { return };
        self.runs.extend((rows.start as u64).to_le_bytes());
        self.runs.extend((rows.end as u64).to_le_bytes());
        self.runs.extend(id.as_bytes());
    }

    fn end_column(&mut self) {
        self.end_run();
        let (name, runs) = (mem::take(&mut self.name), mem::take(&mut self.runs));
        if !runs.is_empty() {
            self.columns.extend((name.len() as u64).to_le_bytes());
            self.columns.extend(name.as_bytes());
            self.columns.extend(Uuid::new_v5(&NAMESPACE, &runs).as_bytes());
        }
    }

    /// The digest in 32 hexadecimal digits. Rows without an object have no part in it.
    pub(crate) fn finish(mut self) -> String {
        self.end_column();
        Uuid::new_v5(&NAMESPACE, &self.columns).simple().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(rows: &[(&str, Range<usize>, u8)]) -> String {
        let mut digest = ServedDigest::default();
        for (column, rows, id) in rows {
            digest.add(column, rows.clone(), ObjectId::from_bytes([*id; 16]));
        }
        digest.finish()
    }

    #[test]
    fn any_other_version_row_or_column_changes_it_and_pieces_of_a_run_do_not() {
        let one = digest(&[("a", 0..5, 1), ("a", 7..9, 2), ("b", 0..9, 1)]);
        assert_eq!(one, digest(&[("a", 0..2, 1), ("a", 2..5, 1), ("a", 7..9, 2), ("b", 0..9, 1)]));
        for other in [
            &[][..],
            &[("a", 0..5, 1), ("a", 7..9, 3), ("b", 0..9, 1)],
            &[("a", 0..6, 1), ("a", 7..9, 2), ("b", 0..9, 1)],
            &[("a", 0..5, 1), ("a", 7..9, 2), ("c", 0..9, 1)],
            &[("a", 0..5, 1), ("a", 7..9, 2)],
            &[("a", 0..5, 1), ("b", 7..9, 2), ("b", 0..9, 1)],
        ] {
            assert_ne!(one, digest(other), "{other:?}");
        }
    }
}
