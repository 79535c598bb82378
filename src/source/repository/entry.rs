//! One version in a repository: its two files and the meaning of the properties.

use super::properties::Properties;
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, VersionMetadata};
use crate::source::Details;

pub(super) const PROPERTIES: &str = ".properties";

pub(super) const VALID_UNTIL: &str = "ValidUntil";
pub(super) const CREATE_TIME: &str = "CreateTime";
pub(super) const CONTENT_MD5: &str = "Content-MD5";
pub(super) const FILE_SIZE: &str = "File-Size";
pub(super) const INITIAL_VALIDITY: &str = "InitialValidityLimit";
pub(super) const FILE_NAME: &str = "OriginalFileName";
pub(super) const CONTENT_TYPE: &str = "Content-Type";
pub(super) const LAST_MODIFIED: &str = "Last-Modified";
pub(super) const UPLOADED_FROM: &str = "UploadedFrom";
/// The only property of a version that is being deleted from an object store: the time of the
/// deletion (ms).
pub(super) const DELETED: &str = "Deleted";

/// Keys that the server writes itself; all other keys are the users' metadata.
const SYSTEM_KEYS: [&str; 10] = [
    VALID_UNTIL,
    CREATE_TIME,
    CONTENT_MD5,
    FILE_SIZE,
    INITIAL_VALIDITY,
    FILE_NAME,
    CONTENT_TYPE,
    LAST_MODIFIED,
    UPLOADED_FROM,
    "UpdatedFrom",
];

/// Whether a key is written by the server itself.
pub(super) fn is_system_key(key: &str) -> bool {
    SYSTEM_KEYS.contains(&key)
}

/// Whether properties are the mark of a deleted version.
pub(super) fn is_deleted(properties: &Properties) -> bool {
    properties.get(DELETED).is_some() && properties.get(VALID_UNTIL).is_none()
}

/// The version that a blob of `size_bytes` and its properties describe.
///
/// # Errors
/// The fault in words.
pub(super) fn version(
    path: &ObjectPath,
    from: Timestamp,
    name: &str,
    size_bytes: u64,
    properties: &Properties,
) -> Result<ObjectInfo, String> {
    let number = |key: &str| -> Result<Option<i64>, String> {
        let Some(text) = properties.get(key) else { return Ok(None) };
        let number = text.trim().parse();
        number.map(Some).map_err(|_| format!("{key} is {text:?}, expected milliseconds"))
    };
    let needed = |key: &str| number(key)?.ok_or_else(|| format!("{key} is not there"));
    if is_deleted(properties) {
        return Err("it was deleted, and its bytes are still there".to_owned());
    }
    let until = Timestamp::from_millis(needed(VALID_UNTIL)?);
    let created = Timestamp::from_millis(needed(CREATE_TIME)?);
    let validity = ValidityInterval::new(from, until).map_err(|error| error.to_string())?;
    if let Some(size) = number(FILE_SIZE)?
        && u64::try_from(size) != Ok(size_bytes)
    {
        return Err(format!("{FILE_SIZE} is {size}, and the file has {size_bytes} bytes"));
    }
    let md5 = match properties.get(CONTENT_MD5) {
        None => None,
        Some(text) => {
            let md5 = Md5Sum::parse(text.trim());
            Some(md5.ok_or_else(|| format!("{CONTENT_MD5} is {text:?}, expected 32 hex digits"))?)
        }
    };
    let mut metadata = metadata(properties);
    let id = match (id_in(name), md5) {
        (Some(id), _) => id,
        (None, Some(md5)) => {
            metadata = metadata.with("source_id", name);
            ObjectId::derived(path, validity, created, md5)
        }
        (None, None) => return Err("its name is no UUID and it has no Content-MD5".to_owned()),
    };
    let (path, size_bytes) = (path.clone(), Some(size_bytes));
    Ok(ObjectInfo { path, id, validity, created, size_bytes, md5, metadata })
}

/// Facts about the upload in a properties file.
pub(super) fn details(properties: &Properties) -> Details {
    let text = |key: &str| properties.get(key).map(str::to_owned);
    let time = |key: &str| Some(Timestamp::from_millis(properties.get(key)?.trim().parse().ok()?));
    Details {
        file_name: text(FILE_NAME),
        content_type: text(CONTENT_TYPE),
        last_modified: time(LAST_MODIFIED),
        initial_until: time(INITIAL_VALIDITY),
        uploaded_from: text(UPLOADED_FROM),
    }
}

/// The users' metadata in a properties file.
pub(super) fn metadata(properties: &Properties) -> VersionMetadata {
    properties.iter().filter(|(key, _)| !is_system_key(key)).collect()
}

/// The id in the name of a file: a UUID in lower or upper case.
fn id_in(name: &str) -> Option<ObjectId> {
    ObjectId::parse(name).filter(|id| spellings(*id).iter().any(|spelling| spelling == name))
}

/// The names that stand for an id.
fn spellings(id: ObjectId) -> [String; 2] {
    let lower = id.to_string();
    let upper = lower.to_uppercase();
    [lower, upper]
}

/// File names that the bytes of a version can have: its id, or the `source_id` of a derived id.
pub(super) fn names(
    id: ObjectId,
    metadata: &VersionMetadata,
) -> impl Iterator<Item = String> + Send + use<> {
    let is_name = |name: &&str| !name.contains('/') && !name.is_empty();
    let derived = metadata.get("source_id").filter(is_name).map(str::to_owned);
    spellings(id).into_iter().chain(derived)
}

/// First field in which a description differs from the repository's own.
pub(super) fn difference(own: &ObjectInfo, wanted: &ObjectInfo) -> Option<&'static str> {
    if own.validity != wanted.validity {
        Some("interval")
    } else if own.created != wanted.created {
        Some("creation time")
    } else if wanted.size_bytes.is_some_and(|bytes| own.size_bytes != Some(bytes)) {
        Some("size")
    } else if wanted.md5.is_some_and(|md5| own.md5 != Some(md5)) {
        Some("MD5")
    } else {
        None
    }
}
