//! Writes the index of a repository in an object store.
//!
//! ```text
//!  rows ──▶ a new file ──▶ list with its name, replaced with a precondition
//!                              │ another writer was faster
//!                              └──▶ read the list again, and repeat
//! ```
//!
//! Two writers cannot lose each other's files: each replaces only the list that it has read. A
//! writer that is killed leaves at most a file that no list names, and versions missing from the
//! index. Readers find these by listing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use super::append::{MERGED_FILES, key_of, level};
use super::encode::encode;
use super::file_name::FileName;
use super::row::IndexRow;
use super::store_list::{self, ListRead, NO_INODE, ReadList};
use super::store_reader::{OpenError, open_stored};
use crate::source::repository::crash_point::crash_point;

/// Maximum number of attempts to replace the list while other writers do so, too.
const ATTEMPTS: u32 = 40;
/// Longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Minimum age at which a file that no list names is removed.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// Writer of the index of a repository in an object store.
#[derive(Debug)]
pub(in crate::source::repository) struct StoreIndexWriter<'a> {
    store: &'a dyn ObjectStore,
    folder: Path,
}

impl<'a> StoreIndexWriter<'a> {
    pub(in crate::source::repository) fn new(store: &'a dyn ObjectStore, prefix: &Path) -> Self {
        Self { store, folder: store_list::folder(prefix) }
    }

    /// Adds a file with `rows`, and merges files if there are many. An index that does not exist is
    /// begun.
    ///
    /// # Errors
    /// Those of the store. The versions are then missing from the index.
    pub(in crate::source::repository) async fn append(
        &self,
        rows: Vec<IndexRow>,
    ) -> Result<(), object_store::Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let sequence = self.list(false).await?.next_sequence();
        let (name, bytes) = self.write(rows, sequence).await?;
        let added = self.change(false, |files| {
            files.insert(name.clone(), bytes);
            true
        });
        let list = added.await?;
        self.merge(&list).await
    }

    /// Names all files of the index.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn names(&self) -> Result<Vec<FileName>, object_store::Error> {
        Ok(self.list(true).await?.files.into_keys().collect())
    }

    /// Puts a file with all `rows` in place of the files `replaced`, and removes files that are left over.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn replace(
        &self,
        rows: Vec<IndexRow>,
        replaced: &[FileName],
    ) -> Result<(), object_store::Error> {
        let sequence = replaced.iter().map(|name| name.sequence).max().unwrap_or(0);
        let new = match rows.is_empty() {
            true => None,
            false => Some(self.write(rows, sequence.saturating_add(1)).await?),
        };
        let changed = self.change(true, |files| {
            files.retain(|name, _| !replaced.contains(name));
            files.extend(new.clone());
            true
        });
        let list = changed.await?;
        self.clean(&list).await
    }

    /// The list. An unusable one can be of a later version: only `iovcache index` replaces it.
    async fn list(&self, replaces_unusable: bool) -> Result<ReadList, object_store::Error> {
        match store_list::read(self.store, &self.folder, None).await? {
            ListRead::Read(list) => Ok(list),
            ListRead::Absent | ListRead::Unchanged => Ok(ReadList::default()),
            ListRead::Unusable { empty, .. } if replaces_unusable => Ok(empty),
            ListRead::Unusable { reason, .. } => {
                Err(object_store::Error::Generic { store: "index", source: reason.into() })
            }
        }
    }

    /// Applies `change` to the list, repeatedly if other writers change it at the same time. If
    /// `change` returns `false`, the list stays as it is. Returns the files after the change.
    async fn change(
        &self,
        replaces_unusable: bool,
        change: impl Fn(&mut BTreeMap<FileName, u64>) -> bool,
    ) -> Result<BTreeMap<FileName, u64>, object_store::Error> {
        for attempt in 0..ATTEMPTS {
            let before = self.list(replaces_unusable).await?;
            let mut files = before.files.clone();
            // After a lost answer the change may be there already.
            if !change(&mut files) || (files == before.files && !replaces_unusable) {
                return Ok(files);
            }
            if store_list::replace(self.store, &self.folder, &before, &files).await? {
                crash_point("store-list-replaced");
                return Ok(files);
            }
            // Writers that collided do not collide again.
            let random = u64::from(uuid::Uuid::new_v4().as_bytes()[0]) + 1;
            let pause = Duration::from_millis(random << attempt.min(3)).min(MAX_PAUSE);
            tokio::time::sleep(pause).await;
        }
        let reason = format!("the list was changed by others in each of {ATTEMPTS} attempts");
        Err(object_store::Error::Generic { store: "index", source: reason.into() })
    }

    async fn write(
        &self,
        rows: Vec<IndexRow>,
        sequence: u64,
    ) -> Result<(FileName, u64), object_store::Error> {
        let generic =
            |error| object_store::Error::Generic { store: "index", source: Box::new(error) };
        let (bytes, crc32c) = encode(rows, NO_INODE).map_err(generic)?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let name = FileName { sequence, unique, crc32c };
        let size = bytes.len() as u64;
        self.store.put(&self.folder.clone().join(name.to_string()), bytes.into()).await?;
        crash_point("store-index-written");
        Ok((name, size))
    }

    /// Merges the files of a level with all smaller ones, once the level has enough of them.
    async fn merge(&self, files: &BTreeMap<FileName, u64>) -> Result<(), object_store::Error> {
        let full =
            |of: &u32| files.values().filter(|bytes| level(**bytes) == *of).count() >= MERGED_FILES;
        let Some(full) = files.values().map(|bytes| level(*bytes)).filter(full).max() else {
            return Ok(());
        };
        let mut merged: BTreeMap<_, IndexRow> = BTreeMap::new();
        let mut replaced = Vec::new();
        for (name, _) in files.iter().filter(|(_, bytes)| level(**bytes) <= full) {
            match open_stored(self.store, &self.folder, name).await {
                Ok(mut file) => match file.all() {
                    Ok(rows) => {
                        merged.extend(rows.into_iter().map(|row| (key_of(&row), row)));
                        replaced.push(name.clone());
                    }
                    Err(error) => tracing::debug!(%name, %error, "not merged"),
                },
                // Another writer has merged it.
                Err(OpenError::Store(object_store::Error::NotFound { .. })) => return Ok(()),
                Err(OpenError::Store(error)) => return Err(error),
                // The file may be of a later version: only `iovcache index` removes it.
                Err(OpenError::File(error)) => tracing::debug!(%name, %error, "not merged"),
            }
        }
        if replaced.len() < 2 {
            return Ok(());
        }
        let sequence = replaced.iter().map(|name| name.sequence).max().unwrap_or(1);
        let (name, bytes) = self.write(merged.into_values().collect(), sequence).await?;
        let changed = self.change(false, |files| {
            // If another writer has merged one of them, this merge is void.
            if files.contains_key(&name) || !replaced.iter().all(|old| files.contains_key(old)) {
                return false;
            }
            files.retain(|old, _| !replaced.contains(old));
            files.insert(name.clone(), bytes);
            true
        });
        let unnamed = match changed.await?.contains_key(&name) {
            true => replaced,
            false => vec![name],
        };
        for name in unnamed {
            self.remove(&self.folder.clone().join(name.to_string())).await;
        }
        Ok(())
    }

    /// Removes old files that no list names.
    async fn clean(&self, named: &BTreeMap<FileName, u64>) -> Result<(), object_store::Error> {
        let mut files = self.store.list(Some(&self.folder));
        while let Some(file) = files.next().await {
            let file = file?;
            let name = file.location.filename().and_then(FileName::parse);
            let Some(name) = name.filter(|name| !named.contains_key(name)) else { continue };
            let age = std::time::SystemTime::now().duration_since(file.last_modified.into());
            if age.is_ok_and(|age| age > LEFTOVER_AGE) {
                tracing::debug!(%name, "left over by a writer");
                self.remove(&file.location).await;
            }
        }
        Ok(())
    }

    /// Removes a file that no list names. If that fails, `iovcache index` removes it later.
    async fn remove(&self, location: &Path) {
        match self.store.delete(location).await {
            Err(object_store::Error::NotFound { .. }) | Ok(()) => {}
            Err(error) => tracing::debug!(%location, %error, "not removed"),
        }
    }
}
