//! Maps a row to its run.

/// The runs of a column: the end of each, and a starting run for each bucket of rows.
///
/// ```text
///  rows     0 … 7 │ 8 … 15 │ 16 … 23        buckets of 2^shift rows, about two per run
///  first    run 0 │ run 2  │ run 2          the run of the bucket's first row
/// ```
/// Runs of similar length are found in one or two steps, others by bisection.
pub(crate) struct RunIndex {
    /// The row after the last one of each run, ascending.
    ends: Vec<usize>,
    first: Vec<u32>,
    shift: u32,
}

impl RunIndex {
    pub(crate) fn new(ends: &[usize]) -> Self {
        let rows = ends.last().copied().unwrap_or(0);
        let per_bucket = rows / (2 * ends.len()).max(1);
        let shift = per_bucket.max(1).ilog2();
        let mut first = Vec::with_capacity((rows >> shift) + 2);
        let mut run = 0;
        for bucket in 0..=(rows >> shift) {
            while ends.get(run).is_some_and(|end| *end <= bucket << shift) {
                run += 1;
            }
            // Run ends are Int32, so the number of runs fits too.
            first.push(run as u32);
        }
        Self { ends: ends.to_vec(), first, shift }
    }

    /// Number of runs.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// First row of a run, and the row after its last one; `None`: there is no such run.
    pub(crate) fn bounds(&self, run: usize) -> Option<(usize, usize)> {
        let end = *self.ends.get(run)?;
        Some((run.checked_sub(1).map_or(0, |before| self.ends[before]), end))
    }

    /// The run of a row, which must be less than [`rows`](Self::rows).
    #[inline]
    pub(crate) fn run_of(&self, row: usize) -> usize {
        let bucket = row >> self.shift;
        let from = self.first[bucket] as usize;
        // The first few steps are cheaper than a bisection.
        for run in from..(from + 4).min(self.ends.len()) {
            if row < self.ends[run] {
                return run;
            }
        }
        let until = self.first.get(bucket + 1).map_or(self.ends.len(), |run| *run as usize + 1);
        let until = until.min(self.ends.len());
        from + self.ends[from..until].partition_point(|end| *end <= row)
    }
}
