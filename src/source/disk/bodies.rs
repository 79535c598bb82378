//! Bytes of versions on the disk, by id.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use uuid::Uuid;

use super::file::{Crc, HEADER_BYTES, Header, PartialFile, VersionRecord, check_body, read_head};
use super::lru_folder::LruFolder;
use crate::object::{Md5Sum, ObjectInfo};
use crate::source::{Body, BodyError, SourceError, in_place};

const PIECE_BYTES: usize = 1 << 20;

/// Copies of bodies, one file each, limited in bytes.
#[derive(Debug)]
pub(super) struct Bodies {
    folder: LruFolder,
    failures: AtomicU64,
}

fn name(version: &ObjectInfo) -> Uuid {
    Uuid::from_bytes(*version.id.as_bytes())
}

/// Name of the body whose file has this JSON.
pub(super) fn id_in(json: &[u8]) -> Option<Uuid> {
    let record: VersionRecord = serde_json::from_slice(json).ok()?;
    record.version().map(|version| name(&version))
}

impl Bodies {
    pub(super) fn open(folder: &Path, limit_bytes: u64) -> io::Result<Self> {
        let folder = LruFolder::open(folder.join("bodies"), limit_bytes)?;
        Ok(Self { folder, failures: AtomicU64::new(0) })
    }

    pub(super) fn usage(&self) -> (usize, u64) {
        self.folder.usage()
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Opens the body of `version` and verifies its checksums. A damaged body is removed.
    pub(super) async fn find(&self, version: &ObjectInfo) -> Option<Opened> {
        let file = self.folder.open_file(name(version))?;
        match in_place(|| Opened::check(file, version)) {
            Ok(Some(opened)) => Some(opened),
            // Undamaged, but not the version asked for: the source decides.
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(id = %version.id, %error, "thrown out from the disk");
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.folder.remove(name(version));
                None
            }
        }
    }

    /// A body that writes into `body` and to the disk.
    pub(super) fn write_through<'a>(
        &'a self,
        version: &'a ObjectInfo,
        body: &'a mut dyn Body,
    ) -> WriteThrough<'a> {
        WriteThrough { bodies: self, version, body, part: None, given_up: false, crc: Crc::new() }
    }

    fn give_up(&self, version: &ObjectInfo, error: &io::Error) {
        tracing::warn!(id = %version.id, %error, "not kept on the disk");
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// A verified body on the disk.
#[derive(Debug)]
pub(super) struct Opened {
    file: File,
    header: Header,
    /// MD5 of the body.
    md5: Md5Sum,
    what: String,
}

impl Opened {
    /// `None` if the file holds the bytes of another version.
    fn check(mut file: File, version: &ObjectInfo) -> io::Result<Option<Self>> {
        let (header, json) = read_head(&mut file)?;
        let record: Result<VersionRecord, _> = serde_json::from_slice(&json);
        let kept = record.ok().and_then(VersionRecord::version);
        let kept = kept.ok_or_else(|| io::Error::other("what it says of itself makes no sense"))?;
        let same = kept.id == version.id
            && version.size_bytes.is_none_or(|bytes| bytes == header.body_bytes);
        if !same {
            return Ok(None);
        }
        let md5 = check_body(&mut file, header)?;
        // The description in the file is no proof: its bytes must have the MD5 that the source
        // gives. If the source gives none, path, `from` and creation time must agree with the
        // description.
        let right = match version.md5 {
            Some(expected) => expected == md5,
            None => {
                (&kept.path, kept.validity.from(), kept.created)
                    == (&version.path, version.validity.from(), version.created)
            }
        };
        if !right {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(header.body_at()))?;
        Ok(Some(Self { file, header, md5, what: format!("{} {}", version.path, version.id) }))
    }

    /// Copies the body into `body`, and verifies the checksum of the copied bytes.
    pub(super) async fn read_into(mut self, body: &mut dyn Body) -> Result<(), SourceError> {
        let size_bytes = self.header.body_bytes;
        let reserved = body.reserve(size_bytes).await;
        reserved.map_err(|error| SourceError::Body { what: self.what.clone(), error })?;
        let mut crc = Crc::new();
        let mut copied = 0;
        while copied < size_bytes {
            let read = in_place(|| {
                let spare = body.spare();
                let most = spare.len().min(PIECE_BYTES);
                let count = self.file.read(&mut spare[..most])?;
                crc.update(&spare[..count]);
                Ok::<_, io::Error>(count)
            });
            match read {
                Ok(0) => break,
                Ok(count) => {
                    body.advance(count);
                    copied += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unusable(error.to_string())),
            }
        }
        if copied == size_bytes && crc.finish() == self.header.body_crc {
            body.set_md5(self.md5);
            return Ok(());
        }
        Err(self.unusable("it changed while it was read".to_owned()))
    }

    fn unusable(&self, reason: String) -> SourceError {
        SourceError::Unusable { url: "the disk".to_owned(), what: self.what.clone(), reason }
    }
}

/// Writes bytes into a body and to the disk. Errors of the disk are logged and do not affect the
/// caller.
pub(super) struct WriteThrough<'a> {
    bodies: &'a Bodies,
    version: &'a ObjectInfo,
    body: &'a mut dyn Body,
    part: Option<(PartialFile, Vec<u8>)>,
    given_up: bool,
    crc: Crc,
}

impl WriteThrough<'_> {
    fn begin(&mut self, size_bytes: u64) {
        if self.part.is_some() || self.given_up {
            return;
        }
        if !self.bodies.folder.can_hold(size_bytes) {
            self.given_up = true;
            return;
        }
        let began = || {
            let json = serde_json::to_vec(&VersionRecord::from(self.version))?;
            let mut part = PartialFile::new(&self.bodies.folder.place(name(self.version)))?;
            part.write(&[0; HEADER_BYTES])?;
            part.write(&json)?;
            Ok((part, json))
        };
        match in_place(began) {
            Ok(part) => self.part = Some(part),
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        self.bodies.give_up(self.version, error);
        self.part = None;
        self.given_up = true;
    }

    /// Publishes the file. Call it only when the body is complete and verified.
    pub(super) async fn keep(mut self) {
        let size_bytes = self.body.written_bytes();
        if size_bytes == 0 {
            self.begin(0);
        }
        let Some((part, json)) = self.part.take() else { return };
        let name = name(self.version);
        let folder = &self.bodies.folder;
        let header = Header {
            json_bytes: json.len() as u32,
            json_crc: Crc::of(&json),
            body_bytes: size_bytes,
            body_crc: self.crc.finish(),
        };
        let length = header.body_at() + size_bytes;
        let published = in_place(|| {
            folder.shrink(length);
            part.publish(header, &folder.place(name))
        });
        match published {
            Ok(()) => folder.note(name, length),
            Err(error) => self.bodies.give_up(self.version, &error),
        }
    }
}

#[async_trait]
impl Body for WriteThrough<'_> {
    async fn reserve(&mut self, size_bytes: u64) -> Result<(), BodyError> {
        self.body.reserve(size_bytes).await?;
        self.begin(size_bytes);
        Ok(())
    }

    fn spare(&mut self) -> &mut [u8] {
        self.body.spare()
    }

    fn advance(&mut self, count: usize) {
        if let Some((part, _)) = &mut self.part {
            let fresh = &self.body.spare()[..count];
            self.crc.update(fresh);
            if let Err(error) = in_place(|| part.write(fresh)) {
                self.fail(&error);
            }
        }
        self.body.advance(count);
    }

    fn written_bytes(&self) -> u64 {
        self.body.written_bytes()
    }

    fn set_md5(&mut self, md5: Md5Sum) {
        self.body.set_md5(md5);
    }
}
