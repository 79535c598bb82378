//! Files of a disk tier: a header with checksums, JSON, and a body.
//!
//! ```text
//!   0  8 B   "IOVDISK1"
//!   8  u32   bytes of JSON
//!  12  u32   CRC-32C of the JSON
//!  16  u64   bytes of the body (0: no body)
//!  24  u32   CRC-32C of the body
//!  28  u32   0
//!  32        JSON, then the body
//! ```
//!
//! All numbers are little endian.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crc_fast::{CrcAlgorithm, Digest};
use md5::{Digest as _, Md5};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{Md5Sum, ObjectId, ObjectInfo, ObjectPath, VersionMetadata};

pub(super) const HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 8] = b"IOVDISK1";
/// Maximum size of the JSON.
const MAX_JSON_BYTES: u32 = 64 << 20;
/// Suffix of files that are not complete. Readers ignore them.
pub(super) const PART: &str = ".part";

/// Description of a version as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VersionRecord {
    path: ObjectPath,
    id: ObjectId,
    from: Timestamp,
    until: Timestamp,
    created: Timestamp,
    size: Option<u64>,
    md5: Option<String>,
    metadata: VersionMetadata,
}

impl From<&ObjectInfo> for VersionRecord {
    fn from(info: &ObjectInfo) -> Self {
        Self {
            path: info.path.clone(),
            id: info.id,
            from: info.validity.from(),
            until: info.validity.until(),
            created: info.created,
            size: info.size_bytes,
            md5: info.md5.map(|md5| md5.to_string()),
            metadata: info.metadata.clone(),
        }
    }
}

impl VersionRecord {
    /// The version; `None` if the stored description is not valid.
    pub(crate) fn version(self) -> Option<ObjectInfo> {
        let md5 = match self.md5 {
            Some(text) => Some(Md5Sum::parse(&text)?),
            None => None,
        };
        Some(ObjectInfo {
            path: self.path,
            id: self.id,
            validity: ValidityInterval::new(self.from, self.until).ok()?,
            created: self.created,
            size_bytes: self.size,
            md5,
            metadata: self.metadata,
        })
    }
}

/// First bytes of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) json_bytes: u32,
    pub(super) json_crc: u32,
    pub(super) body_bytes: u64,
    pub(super) body_crc: u32,
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.json_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.json_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes
    }

    fn parse(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes);
        let body_bytes = bytes[16..24].try_into().map(u64::from_le_bytes);
        let header = Self {
            json_bytes: u32_at(8).ok()?,
            json_crc: u32_at(12).ok()?,
            body_bytes: body_bytes.ok()?,
            body_crc: u32_at(24).ok()?,
        };
        (bytes[..8] == *MAGIC && bytes[28..] == [0; 4] && header.json_bytes <= MAX_JSON_BYTES)
            .then_some(header)
    }

    pub(super) fn body_at(self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.json_bytes)
    }
}

/// CRC-32C of data that arrives in pieces.
pub(super) struct Crc(Digest);

impl Crc {
    pub(super) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(&self) -> u32 {
        // A CRC-32 has 32 bits.
        self.0.finalize() as u32
    }

    pub(super) fn of(bytes: &[u8]) -> u32 {
        let mut crc = Self::new();
        crc.update(bytes);
        crc.finish()
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Reads header and JSON. Afterwards the file is positioned at the body.
///
/// # Errors
/// `InvalidData` if they are damaged, or the file's length does not fit the header.
pub(super) fn read_head(file: &mut File) -> io::Result<(Header, Vec<u8>)> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact(&mut bytes).map_err(|_| damaged("it is too short"))?;
    let header = Header::parse(bytes)
        .ok_or_else(|| damaged("its header is not that of a disk tier file"))?;
    let length = file.metadata()?.len();
    if header.body_at().checked_add(header.body_bytes) != Some(length) {
        return Err(damaged("it has another length than its header says"));
    }
    let mut json = vec![0; header.json_bytes as usize];
    file.read_exact(&mut json).map_err(|_| damaged("it is too short"))?;
    if Crc::of(&json) != header.json_crc {
        return Err(damaged("the checksum of what it says of itself is wrong"));
    }
    Ok((header, json))
}

/// Reads the whole body and verifies its checksum. Returns its MD5.
///
/// # Errors
/// `InvalidData` if the body is damaged.
pub(super) fn check_body(file: &mut File, header: Header) -> io::Result<Md5Sum> {
    let mut crc = Crc::new();
    let mut md5 = Md5::new();
    let mut piece = vec![0; 1 << 20];
    let mut rest = file.take(header.body_bytes);
    loop {
        match rest.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => {
                crc.update(&piece[..count]);
                md5.update(&piece[..count]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if crc.finish() == header.body_crc {
        Ok(Md5Sum(md5.finalize().into()))
    } else {
        Err(damaged("the checksum of its bytes is wrong"))
    }
}

/// A file that is being written. It is removed on drop unless published.
#[derive(Debug)]
pub(super) struct PartialFile {
    file: File,
    name: PathBuf,
    published: bool,
}

impl PartialFile {
    /// Creates a file that will be renamed to `name`, and its folder.
    pub(super) fn new(name: &Path) -> io::Result<Self> {
        if let Some(folder) = name.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let part = format!("{}{PART}", uuid::Uuid::new_v4().simple());
        let name = name.with_file_name(part);
        let file = File::options().write(true).create_new(true).open(&name)?;
        Ok(Self { file, name, published: false })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Writes the header into the space left for it, and renames the file to `name`.
    pub(super) fn publish(mut self, header: Header, name: &Path) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header.to_bytes())?;
        std::fs::rename(&self.name, name)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_file(&self.name);
        }
    }
}

/// Writes a file with JSON only. Returns its length.
pub(super) fn write_json(name: &Path, json: &[u8]) -> io::Result<u64> {
    let length = u32::try_from(json.len()).ok().filter(|bytes| *bytes <= MAX_JSON_BYTES);
    let json_bytes = length.ok_or_else(|| damaged("it is too long"))?;
    let mut part = PartialFile::new(name)?;
    part.write(&[0; HEADER_BYTES])?;
    part.write(json)?;
    let header = Header { json_bytes, json_crc: Crc::of(json), body_bytes: 0, body_crc: 0 };
    let header = Header { body_crc: Crc::of(&[]), ..header };
    part.publish(header, name)?;
    Ok(header.body_at())
}

/// Locks a folder for this process.
pub(super) fn lock(folder: &Path) -> io::Result<File> {
    let file =
        File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}
