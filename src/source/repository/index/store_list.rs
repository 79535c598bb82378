//! The list of index files in an object store: the one object that is replaced, and only with a
//! precondition. All other objects of an index are immutable.

use std::collections::BTreeMap;

use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, PutMode, PutOptions, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::file_name::{FOLDER, FileName};

/// Name of the list.
const LIST: &str = "current";
/// Version of the list. That of the files is in each of them.
const LIST_VERSION: &str = "1";
/// Maximum size of the list.
const MAX_LIST_BYTES: u64 = 1 << 20;
/// Value of `iovcache.root` in the files of an object store, which has no inodes.
pub(super) const NO_INODE: u64 = 0;

/// The folder of the index in a store with a repository at `prefix`.
pub(super) fn folder(prefix: &Path) -> Path {
    // `~` must not be escaped as `Path::join` would do.
    let text = match prefix.as_ref() {
        "" => FOLDER.to_owned(),
        prefix => format!("{prefix}/{FOLDER}"),
    };
    Path::parse(text).unwrap_or_else(|_| prefix.clone().join(FOLDER))
}

/// Contents of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileList {
    /// Version of the layout.
    #[serde(rename = "iovcache.index")]
    version: String,
    files: Vec<ListedFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ListedFile {
    name: String,
    bytes: u64,
}

/// A list that was read, and its version for the precondition of an update.
#[derive(Debug, Clone, Default)]
pub(super) struct ReadList {
    /// Sizes of the files in bytes.
    pub(super) files: BTreeMap<FileName, u64>,
    /// `None`: there is no list.
    version: Option<UpdateVersion>,
}

/// Result of reading the list.
#[derive(Debug)]
pub(super) enum ListRead {
    Unchanged,
    Absent,
    Read(ReadList),
    /// It cannot be used, for the given reason.
    Unusable {
        reason: String,
        /// An empty list in its place, for an update.
        empty: ReadList,
    },
}

impl ReadList {
    pub(super) fn e_tag(&self) -> Option<&str> {
        self.version.as_ref()?.e_tag.as_deref()
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.files.keys().map(|name| name.sequence).max().unwrap_or(0).saturating_add(1)
    }
}

/// Reads the list, unless its ETag still is `known`.
///
/// # Errors
/// Those of the store. A missing list is no error.
pub(super) async fn read(
    store: &dyn ObjectStore,
    folder: &Path,
    known: Option<&str>,
) -> Result<ListRead, object_store::Error> {
    let options = GetOptions { if_none_match: known.map(str::to_owned), ..GetOptions::default() };
    let got = match store.get_opts(&folder.clone().join(LIST), options).await {
        Err(object_store::Error::NotModified { .. }) => return Ok(ListRead::Unchanged),
        Err(object_store::Error::NotFound { .. }) => return Ok(ListRead::Absent),
        got => got?,
    };
    let ObjectMeta { size, e_tag, version, .. } = got.meta.clone();
    let version = Some(UpdateVersion { e_tag, version });
    let unusable = |reason, version| {
        let empty = ReadList { files: BTreeMap::new(), version };
        ListRead::Unusable { reason, empty }
    };
    if size > MAX_LIST_BYTES {
        let reason = format!("it has {size} bytes, at most {MAX_LIST_BYTES}");
        return Ok(unusable(reason, version));
    }
    let bytes = got.bytes().await?;
    Ok(match parse(&bytes) {
        Ok(files) => ListRead::Read(ReadList { files, version }),
        Err(reason) => unusable(reason, version),
    })
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<FileName, u64>, String> {
    let list: FileList = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if list.version != LIST_VERSION {
        return Err(format!("its version is {:?}, expected {LIST_VERSION:?}", list.version));
    }
    let named = list.files.into_iter().map(|ListedFile { name, bytes }| {
        FileName::parse(&name).map(|file| (file, bytes)).ok_or(format!("{name:?} is no index file"))
    });
    named.collect()
}

/// Replaces the list that was read as `before`. Returns `false` if another writer was faster.
///
/// # Errors
/// Those of the store, `NotImplemented` and `NotSupported` if it has no conditional requests.
pub(super) async fn replace(
    store: &dyn ObjectStore,
    folder: &Path,
    before: &ReadList,
    files: &BTreeMap<FileName, u64>,
) -> Result<bool, object_store::Error> {
    let files =
        files.iter().map(|(name, bytes)| ListedFile { name: name.to_string(), bytes: *bytes });
    let list = FileList { version: LIST_VERSION.to_owned(), files: files.collect() };
    let generic = |error: serde_json::Error| object_store::Error::Generic {
        store: "index",
        source: Box::new(error),
    };
    let bytes = serde_json::to_vec(&list).map_err(generic)?;
    let mode = match &before.version {
        Some(version) => PutMode::Update(version.clone()),
        None => PutMode::Create,
    };
    let options = PutOptions { mode, ..PutOptions::default() };
    match store.put_opts(&folder.clone().join(LIST), bytes.into(), options).await {
        Ok(_) => Ok(true),
        Err(
            object_store::Error::Precondition { .. }
            | object_store::Error::AlreadyExists { .. }
            // The list was removed.
            | object_store::Error::NotFound { .. },
        ) => Ok(false),
        Err(error) => Err(error),
    }
}

/// State of the two objects of a version: FNV-1a (64 bits) over ETag and size of its bytes, then
/// of its properties; 0 if the store gives no ETags.
pub(in crate::source::repository) fn store_stamp(
    bytes: (Option<&str>, u64),
    properties: (Option<&str>, u64),
) -> u64 {
    let (Some(_), Some(_)) = (bytes.0, properties.0) else { return 0 };
    let part = |(e_tag, size): (Option<&str>, u64)| {
        // Some stores write quotes, some do not, and some do only in listings.
        let e_tag = e_tag.unwrap_or_default().trim_start_matches("W/").trim_matches('"').to_owned();
        let mut part = e_tag.into_bytes();
        part.push(0);
        part.extend_from_slice(&size.to_le_bytes());
        part
    };
    let all = part(bytes).into_iter().chain(part(properties));
    let hash = all.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.max(1)
}
