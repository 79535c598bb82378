//! Names of objects and of their versions, and the description of a version without its bytes.

mod metadata;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::coded;
use crate::interval::{Timestamp, ValidityInterval};

pub use metadata::{MetadataPairs, VersionMetadata};

/// The name of one condition, under which all its versions are stored, e.g. `TPC/Calib/VDriftTgl`.
///
/// One to ten elements of `[A-Za-z0-9._-]+` separated by `/`, none of them all digits, none `.`
/// or `..` (CCDB parses the first all-digit element of a URL as a time).
///
/// ```
/// use iovcache::ObjectPath;
/// assert!("TPC/Calib/VDriftTgl".parse::<ObjectPath>().is_ok());
/// for wrong in ["", "/TPC", "TPC/", "TPC//A", "TPC/12", "TPC/..", "TPC/%2e%2e", "a b"] {
///     assert!(wrong.parse::<ObjectPath>().is_err(), "{wrong:?}");
/// }
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ObjectPath(Arc<str>);

impl ObjectPath {
    /// Maximum number of elements of a path.
    pub const MAX_ELEMENTS: usize = 10;
    /// Maximum length of an element, as of a name in a file system.
    pub const MAX_ELEMENT_BYTES: usize = 255;

    /// Checks `text` against the grammar.
    ///
    /// # Errors
    /// [`InvalidPath`] says which rule is broken.
    pub fn new(text: &str) -> Result<Self, InvalidPath> {
        match Self::broken_rule(text) {
            None => Ok(Self(text.into())),
            Some(rule) => Err(InvalidPath { path: text.chars().take(200).collect(), rule }),
        }
    }

    /// Where ALICE's objects are that tell when a run was.
    #[cfg(feature = "cache")]
    pub(crate) fn run_information() -> Self {
        Self("RCT/Info/RunInformation".into())
    }

    fn broken_rule(text: &str) -> Option<&'static str> {
        let mut elements = 0;
        for element in text.split('/') {
            elements += 1;
            if element.is_empty() {
                return Some("an element is empty");
            }
            if !element.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                return Some("an element may contain only A-Z a-z 0-9 . _ -");
            }
            if element.len() > Self::MAX_ELEMENT_BYTES {
                return Some("an element has more than 255 bytes");
            }
            if element.bytes().all(|b| b.is_ascii_digit()) {
                return Some("an element may not be all digits");
            }
            if element == "." || element == ".." {
                return Some("an element may not be . or ..");
            }
        }
        (elements > Self::MAX_ELEMENTS).then_some("it has more than 10 elements")
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path as text, shared.
    #[cfg(feature = "cache")]
    pub(crate) fn shared_text(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// Whether this path is `prefix` or lies below it, element by element.
    pub fn starts_with(&self, prefix: &str) -> bool {
        let prefix = prefix.trim_end_matches('/');
        match self.0.strip_prefix(prefix) {
            Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }
}

impl FromStr for ObjectPath {
    type Err = InvalidPath;
    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        Self::new(text)
    }
}

impl<'de> Deserialize<'de> for ObjectPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A text that is not an object path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid object path {path:?}: {rule}; expected 1 to 10 elements like TPC/Calib/VDriftTgl")]
pub struct InvalidPath {
    /// The given text (its first 200 characters).
    pub path: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

coded! { InvalidPath => InvalidArgument 2002 }

/// The name of one version of an object: a UUID, CCDB's ETag.
///
/// Two versions with equal bytes have two ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectId(Uuid);

impl Hash for ObjectId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Hashed as one number: a slice would also hash its length.
        state.write_u128(self.0.as_u128());
    }
}

impl ObjectId {
    /// The namespace of derived ids: UUID version 5 of `iovcache.object` in the DNS namespace.
    pub const NAMESPACE: Uuid = Uuid::from_u128(0x843c_7c4b_f63e_5c9e_a3ab_0916_e80e_0eac);

    /// The id with this UUID.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The id whose UUID has these 16 bytes, in RFC 9562's order.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes of the UUID, in RFC 9562's order.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Length of the text.
    pub const TEXT_BYTES: usize = 36;

    /// The text, written into `room`.
    pub fn text<'a>(&self, room: &'a mut [u8; Self::TEXT_BYTES]) -> &'a str {
        self.0.as_hyphenated().encode_lower(room)
    }

    /// Parses a UUID; `None` if the text is none.
    pub fn parse(text: &str) -> Option<Self> {
        // Only the usual form with four hyphens: the crate also accepts braces and URNs.
        (text.len() == Self::TEXT_BYTES).then(|| Uuid::try_parse(text).ok().map(Self)).flatten()
    }

    /// The id of a version whose source gives none (UUID version 5).
    ///
    /// The name that is hashed: path, from, until, created (all in ms) and the MD5 of the content
    /// in lower-case hex, with a line feed between them.
    pub fn derived(
        path: &ObjectPath,
        validity: ValidityInterval,
        created: Timestamp,
        md5: Md5Sum,
    ) -> Self {
        let name = format!("{path}\n{}\n{}\n{created}\n{md5}", validity.from(), validity.until());
        Self(Uuid::new_v5(&Self::NAMESPACE, name.as_bytes()))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hyphenated(), f)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An MD5 sum, shown as 32 lower-case hex digits (as CCDB's `Content-MD5`, which is not base64).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Md5Sum(pub [u8; 16]);

impl Md5Sum {
    /// Parses 32 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|n| Self(n.to_be_bytes()))
    }
}

impl fmt::Display for Md5Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Md5Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The description of one version of an object: everything except its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its path.
    pub path: ObjectPath,
    /// Its id.
    pub id: ObjectId,
    /// The interval in which it is valid.
    pub validity: ValidityInterval,
    /// Its creation time. Among versions valid at one time, the one created last wins.
    pub created: Timestamp,
    /// Its size in bytes, if the source gives it before the body.
    pub size_bytes: Option<u64>,
    /// The MD5 of its bytes, if the source gives it.
    pub md5: Option<Md5Sum>,
    /// Further metadata from its creator.
    pub metadata: VersionMetadata,
}

impl ObjectInfo {
    /// Its rank among versions valid at the same time: the greatest wins.
    ///
    /// Ordered by creation time, then by `from`, then by id.
    pub fn rank(&self) -> (Timestamp, Timestamp, ObjectId) {
        (self.created, self.validity.from(), self.id)
    }
}

/// A claim about a version that does not come from its source, such as a row of a lock file.
///
/// It selects a version that the source describes. It is never used as a description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionClaim {
    /// The id of the version.
    pub id: ObjectId,
    /// Its claimed validity.
    pub validity: ValidityInterval,
    /// Its claimed creation time.
    pub created: Timestamp,
    /// Its claimed size in bytes.
    pub size_bytes: Option<u64>,
}

/// A claim that differs from the source's description of the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {claimed}, but the source gives {told}")]
pub struct ClaimDiffers {
    /// The field.
    pub field: &'static str,
    /// The value in the claim.
    pub claimed: i64,
    /// The value given by the source.
    pub told: i64,
}

impl VersionClaim {
    /// Checks the claim against `version`, as described by its source.
    ///
    /// # Errors
    /// [`ClaimDiffers`] with the first field that differs.
    pub fn check(&self, version: &ObjectInfo) -> Result<(), ClaimDiffers> {
        let bytes = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
        let size = self.size_bytes.zip(version.size_bytes).map(|(a, b)| (bytes(a), bytes(b)));
        let (own, other) = (self.validity, version.validity);
        let times = [
            ("valid_from", own.from(), other.from()),
            ("valid_until", own.until(), other.until()),
            ("created", self.created, version.created),
        ];
        let times = times.map(|(field, a, b)| (field, a.as_millis(), b.as_millis()));
        let mut all = times.into_iter().chain(size.map(|(a, b)| ("size", a, b)));
        match all.find(|(_, claimed, told)| claimed != told) {
            Some((field, claimed, told)) => Err(ClaimDiffers { field, claimed, told }),
            None => Ok(()),
        }
    }
}

/// Inclusive limits on creation times, to repeat an earlier run with the versions of that time.
///
/// ```
/// use iovcache::{CreationLimits, Timestamp};
/// let at = Timestamp::from_millis;
/// let limits = CreationLimits { not_after: Some(at(100)), ..CreationLimits::default() };
/// assert!(limits.admit(at(100)) && !limits.admit(at(101)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CreationLimits {
    /// Versions created before this are ignored.
    pub not_before: Option<Timestamp>,
    /// Versions created after this are ignored.
    pub not_after: Option<Timestamp>,
}

impl CreationLimits {
    /// Whether the limits admit a version created at `created`.
    pub fn admit(self, created: Timestamp) -> bool {
        self.not_before.is_none_or(|limit| created >= limit)
            && self.not_after.is_none_or(|limit| created <= limit)
    }

    /// The intersection of both limits: `other` can narrow `self`, never widen it.
    #[must_use]
    #[doc(hidden)]
    pub fn narrowed_by(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            not_after: match (self.not_after, other.not_after) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            },
        }
    }
}

/// The requested versions of a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Query {
    /// The path.
    pub path: ObjectPath,
    /// Metadata that a version must have: each key with exactly this value.
    pub metadata: BTreeMap<String, String>,
    /// Limits on the creation time of a version.
    pub limits: CreationLimits,
}

impl Query {
    /// Every version of `path`.
    pub const fn all(path: ObjectPath) -> Self {
        Self {
            path,
            metadata: BTreeMap::new(),
            limits: CreationLimits { not_before: None, not_after: None },
        }
    }

    /// Whether the query requests `version`. Its validity is not checked.
    pub fn matches(&self, version: &ObjectInfo) -> bool {
        version.path == self.path
            && self.limits.admit(version.created)
            && self
                .metadata
                .iter()
                .all(|(key, value)| version.metadata.get(key) == Some(value.as_str()))
    }
}

/// The times that tell versions of one id apart: a file-backed CCDB has an id at several places, and
/// a new upload replaces the bytes of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VersionTimes {
    pub(crate) from: Timestamp,
    pub(crate) created: Timestamp,
}

impl From<&ObjectInfo> for VersionTimes {
    fn from(version: &ObjectInfo) -> Self {
        Self { from: version.validity.from(), created: version.created }
    }
}

impl VersionTimes {
    /// Both times in 64 bits, which every object in memory has. Equal fingerprints of different times
    /// of one id are as unlikely as two equal numbers drawn from 64 bits.
    pub(crate) fn fingerprint(self) -> u64 {
        let [from, created] =
            [self.from, self.created].map(|time| time.as_millis().cast_unsigned());
        let mixed = from.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ created;
        mixed.wrapping_mul(0xd6e8_feb8_6659_fd93)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_has_at_most_255_bytes() {
        let path = |length: usize| ObjectPath::new(&format!("A/{}", "x".repeat(length)));
        assert!(path(255).is_ok());
        assert!(path(256).unwrap_err().to_string().contains("255"));
    }
}
