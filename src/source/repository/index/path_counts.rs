//! Numbers of versions of each path in an index, in the order of the paths.
//!
//! ```text
//!  file 1  A A B …   ┐
//!  file 2  A C …     ├─ merged by (path, from, id) ─▶ A: 3 versions, B: 1, C: 1, …
//!  file 3  B …       ┘                                  one batch of each file in memory
//! ```

use super::file::{IndexFile, RowKeys};
use super::set::IndexSet;

/// Contents of an index for one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source::repository) struct VersionCount {
    pub(in crate::source::repository) versions: u64,
    /// Number of folders of versions.
    pub(in crate::source::repository) folders: u64,
    /// Whether a `from` is negative: its folder can contain paths as well.
    pub(in crate::source::repository) has_negative: bool,
    /// Change time (ns) of the path's folder when its latest row was written.
    pub(in crate::source::repository) listed: i64,
}

/// The rows of one file in their order.
#[derive(Debug)]
struct FileRows {
    file: IndexFile,
    /// Number of the next batch.
    next: usize,
    keys: Option<RowKeys>,
    row: usize,
}

impl FileRows {
    fn new(file: IndexFile, first_path: &str) -> Self {
        let next = file.batch_from(first_path);
        let mut rows = Self { file, next, keys: None, row: 0 };
        rows.settle();
        while rows.path().is_some_and(|path| path < first_path) {
            rows.advance();
        }
        rows
    }

    /// Reads the next batch at the end of one. A file that cannot be read ends.
    fn settle(&mut self) {
        while self.keys.as_ref().is_none_or(|keys| self.row >= keys.len()) {
            (self.keys, self.row) = (None, 0);
            match self.file.keys(self.next) {
                Ok(Some(keys)) => self.keys = Some(keys),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the rest of an index file is passed over");
                    self.next = usize::MAX;
                    return;
                }
            }
            self.next += 1;
        }
    }

    fn advance(&mut self) {
        self.row += 1;
        self.settle();
    }

    fn path(&self) -> Option<&str> {
        self.keys.as_ref().map(|keys| self.file.path(keys.path(self.row)))
    }

    /// `from` and id of the row, if it is of `path`.
    fn key(&self, path: &str) -> Option<(i64, [u8; 16])> {
        let keys = self.keys.as_ref()?;
        (self.path() == Some(path)).then(|| keys.key(self.row))
    }
}

/// The counts of all paths of an index.
#[derive(Debug)]
pub(in crate::source::repository) struct PathCounts {
    files: Vec<FileRows>,
    current: Option<(String, VersionCount)>,
}

impl PathCounts {
    /// The counts from `first_path` on.
    pub(in crate::source::repository) fn new(index: IndexSet, first_path: &str) -> Self {
        let files = index.into_files().map(|file| FileRows::new(file, first_path)).collect();
        let mut counts = Self { files, current: None };
        counts.current = counts.next_path();
        counts
    }

    /// Whether there are no further counts.
    pub(in crate::source::repository) fn is_over(&self) -> bool {
        self.current.is_none()
    }

    /// The count of `path`. To be called for paths in ascending order.
    pub(in crate::source::repository) fn of(&mut self, path: &str) -> Option<VersionCount> {
        while self.current.as_ref().is_some_and(|(current, _)| current.as_str() < path) {
            self.current = self.next_path();
        }
        let (current, count) = self.current.as_ref()?;
        (current == path).then_some(*count)
    }

    /// Counts the rows of the next path. A version can have rows in several files.
    fn next_path(&mut self) -> Option<(String, VersionCount)> {
        let path = self.files.iter().filter_map(FileRows::path).min()?.to_owned();
        let mut count = VersionCount { versions: 0, folders: 0, has_negative: false, listed: 0 };
        let mut last_from = None;
        while let Some(least) = self.files.iter().filter_map(|file| file.key(&path)).min() {
            count.versions += 1;
            count.has_negative |= least.0 < 0;
            count.folders += u64::from(last_from.replace(least.0) != Some(least.0));
            for file in &mut self.files {
                while file.key(&path) == Some(least) {
                    let listed = file.keys.as_ref().map_or(0, |keys| keys.listed(file.row));
                    count.listed = count.listed.max(listed);
                    file.advance();
                }
            }
        }
        Some((path, count))
    }
}
