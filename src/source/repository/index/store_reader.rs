//! Reads the index of a repository in an object store.
//!
//! ```text
//!  <prefix>/.iovcache~/current ──conditional GET──▶ unchanged: no further request
//!          │ changed
//!          ▼
//!  new <sequence>-<unique>-<checksum>.arrow ──GET──▶ checked ──▶ rows of a path
//! ```
//!
//! The files are kept in unnamed files of the temporary folder, not in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use tokio::sync::Mutex;

use super::file::IndexFile;
use super::file_name::{FOLDER, FileName};
use super::row::{IndexRow, RowRef};
use super::store_list::{self, ListRead, NO_INODE};
use crate::source::in_place;

/// Maximum size of an index file.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Shortest interval between two requests for an index that does not exist or cannot be read.
const ABSENT_RETRY: Duration = Duration::from_secs(10);
/// Maximum number of attempts if files are merged and removed while they are read.
const ATTEMPTS: usize = 5;

/// The index of a repository in an object store.
#[derive(Debug)]
pub(in crate::source::repository) struct StoreIndex {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    state: Mutex<StoreIndexState>,
}

#[derive(Debug, Default)]
struct StoreIndexState {
    /// ETag of the list as last read.
    e_tag: Option<String>,
    asked: Option<Instant>,
    /// Whether the store has a usable list.
    is_there: bool,
    /// Each file with the generation in which it was added.
    files: BTreeMap<FileName, (u64, IndexFile)>,
    unusable: BTreeSet<FileName>,
    /// Counts the changes of `files`.
    generation: u64,
}

impl StoreIndex {
    pub(in crate::source::repository) fn new(store: Arc<dyn ObjectStore>, prefix: &Path) -> Self {
        Self { store, folder: store_list::folder(prefix), state: Mutex::default() }
    }

    /// Reads the changes, unless that was done less than `max_age` ago. Returns the generation of
    /// the index: it differs once files were added. `None`: there is no usable index.
    pub(in crate::source::repository) async fn refresh(&self, max_age: Duration) -> Option<u64> {
        let mut state = self.state.lock().await;
        let max_age = if state.is_there { max_age } else { max_age.max(ABSENT_RETRY) };
        if state.asked.is_none_or(|asked| asked.elapsed() >= max_age) {
            let began = Instant::now();
            state.is_there = match self.read(&mut state).await {
                Ok(is_there) => is_there,
                Err(error) => {
                    // The listing that is done instead tells whether the store can be reached.
                    tracing::debug!(index = %self.folder, %error, "the index cannot be read");
                    false
                }
            };
            if !state.is_there {
                state.e_tag = None;
            }
            state.asked = Some(began);
        }
        state.is_there.then_some(state.generation)
    }

    /// Whether the store has an index.
    pub(in crate::source::repository) async fn is_there(&self) -> bool {
        matches!(store_list::read(&*self.store, &self.folder, None).await, Ok(ListRead::Read(_)))
    }

    async fn read(&self, state: &mut StoreIndexState) -> Result<bool, object_store::Error> {
        for _ in 0..ATTEMPTS {
            let known = state.e_tag.clone();
            let list = match store_list::read(&*self.store, &self.folder, known.as_deref()).await? {
                ListRead::Unchanged => return Ok(true),
                ListRead::Absent => return Ok(false),
                ListRead::Unusable { reason, .. } => {
                    tracing::warn!(index = %self.folder, reason, "the index is not used; iovcache index makes a new one");
                    return Ok(false);
                }
                ListRead::Read(list) => list,
            };
            state.files.retain(|name, _| list.files.contains_key(name));
            state.unusable.retain(|name| list.files.contains_key(name));
            if self.read_new_files(state, list.files.keys()).await? {
                state.e_tag = list.e_tag().map(str::to_owned);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns `false` if a file was removed since the list was read.
    async fn read_new_files(
        &self,
        state: &mut StoreIndexState,
        names: impl Iterator<Item = &FileName>,
    ) -> Result<bool, object_store::Error> {
        for name in names {
            if state.files.contains_key(name) || state.unusable.contains(name) {
                continue;
            }
            match open_stored(&*self.store, &self.folder, name).await {
                Ok(file) => {
                    state.generation += 1;
                    state.files.insert(name.clone(), (state.generation, file));
                }
                Err(OpenError::Store(object_store::Error::NotFound { .. })) => return Ok(false),
                Err(OpenError::Store(error)) => return Err(error),
                Err(OpenError::File(error)) => {
                    tracing::warn!(file = %format!("{FOLDER}/{name}"), %error, "an index file is not used; iovcache index makes a new one");
                    state.unusable.insert(name.clone());
                }
            }
        }
        Ok(true)
    }

    /// Calls `each` for the rows of a path in files added after the generation `after`.
    pub(in crate::source::repository) async fn for_path(
        &self,
        path: &str,
        after: u64,
        mut each: impl FnMut(RowRef<'_>),
    ) {
        let mut state = self.state.lock().await;
        let mut broken = Vec::new();
        in_place(|| {
            for (name, (_, file)) in state.files.iter_mut().filter(|(_, (added, _))| *added > after)
            {
                if let Err(error) = file.for_path(path, &mut each) {
                    tracing::warn!(file = %format!("{FOLDER}/{name}"), %error, "an index file is not used; iovcache index makes a new one");
                    broken.push(name.clone());
                }
            }
        });
        for name in broken {
            state.files.remove(&name);
            state.unusable.insert(name);
        }
    }

    /// All rows, and the names of files that cannot be used.
    pub(super) async fn all(&self) -> (Vec<IndexRow>, Vec<String>) {
        self.refresh(Duration::ZERO).await;
        let mut state = self.state.lock().await;
        let mut rows = Vec::new();
        let mut unusable: Vec<String> = state.unusable.iter().map(FileName::to_string).collect();
        in_place(|| {
            for (name, (_, file)) in &mut state.files {
                match file.all() {
                    Ok(read) => rows.extend(read),
                    Err(_) => unusable.push(name.to_string()),
                }
            }
        });
        (rows, unusable)
    }
}

/// Why an index file cannot be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    Store(object_store::Error),
    File(io::Error),
}

/// Fetches and checks an index file.
pub(super) async fn open_stored(
    store: &dyn ObjectStore,
    folder: &Path,
    name: &FileName,
) -> Result<IndexFile, OpenError> {
    let got = store.get(&folder.clone().join(name.to_string())).await.map_err(OpenError::Store)?;
    let too_large = |bytes: u64| {
        let reason = format!("it has {bytes} bytes, at most {MAX_FILE_BYTES}");
        OpenError::File(io::Error::new(io::ErrorKind::InvalidData, reason))
    };
    if got.meta.size > MAX_FILE_BYTES {
        return Err(too_large(got.meta.size));
    }
    let mut file = unnamed_file().map_err(OpenError::File)?;
    let mut pieces = got.into_stream();
    let mut bytes = 0_u64;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(OpenError::Store)?;
        bytes += piece.len() as u64;
        if bytes > MAX_FILE_BYTES {
            return Err(too_large(bytes));
        }
        in_place(|| file.write_all(&piece)).map_err(OpenError::File)?;
    }
    in_place(|| {
        io::Seek::rewind(&mut file)?;
        IndexFile::open(file, name.crc32c, NO_INODE)
    })
    .map_err(OpenError::File)
}

/// A file without a name: in the temporary folder, or in memory if that is not possible.
fn unnamed_file() -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let opened = open(std::env::temp_dir(), flags, Mode::from_raw_mode(0o600));
    let opened = opened.or_else(|_| memfd_create("iovcache-index", MemfdFlags::CLOEXEC));
    Ok(File::from(opened?))
}
