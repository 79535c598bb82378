//! Checks of a fetched body, and their errors, for repositories in folders and in object stores.

use super::entry::difference;
use crate::object::{Md5Sum, ObjectInfo};
use crate::source::{Body, BodyError, SourceError};

/// The fetch of a version from the repository at `url`.
pub(super) struct FetchCheck<'a> {
    pub(super) url: &'a str,
    /// The version as the caller describes it.
    pub(super) version: &'a ObjectInfo,
}

impl FetchCheck<'_> {
    /// Names the version in errors.
    pub(super) fn what(&self) -> String {
        format!("{} {}", self.version.path, self.version.id)
    }

    pub(super) fn unusable(&self, reason: impl Into<String>) -> SourceError {
        let (url, what) = (self.url.to_owned(), self.what());
        SourceError::Unusable { url, what, reason: reason.into() }
    }

    pub(super) fn gone(&self) -> SourceError {
        let (path, id) = (self.version.path.clone(), self.version.id);
        SourceError::NoSuchVersion { url: self.url.to_owned(), path, id }
    }

    pub(super) fn no_body(&self, error: BodyError) -> SourceError {
        SourceError::Body { what: self.what(), error }
    }

    /// Checks that the repository's own description is the caller's.
    ///
    /// # Errors
    /// [`SourceError::Unusable`] names the first field that differs.
    pub(super) fn check_same(&self, own: &ObjectInfo) -> Result<(), SourceError> {
        match difference(own, self.version) {
            None => Ok(()),
            Some(field) => Err(self.unusable(format!("the repository has another {field} for it"))),
        }
    }

    /// Checks that all `size_bytes` of the file were written.
    ///
    /// # Errors
    /// [`SourceError::Unusable`].
    pub(super) fn check_written(
        &self,
        body: &mut dyn Body,
        size_bytes: u64,
    ) -> Result<(), SourceError> {
        let written = body.written_bytes();
        match written == size_bytes {
            true => Ok(()),
            false => Err(self.unusable(format!("{written} bytes came of {size_bytes}"))),
        }
    }

    /// Checks the MD5 of the body, and gives it to the body.
    ///
    /// # Errors
    /// [`SourceError::Unusable`] if it is not that of the version, or is not known.
    pub(super) fn finish(
        &self,
        body: &mut dyn Body,
        own: &ObjectInfo,
        md5: Option<Md5Sum>,
    ) -> Result<(), SourceError> {
        let md5 = md5.ok_or_else(|| self.unusable("its digest is not known"))?;
        match own.md5 {
            Some(expected) if expected != md5 => {
                Err(self.unusable(format!("its MD5 is {md5}, expected {expected}")))
            }
            _ => {
                body.set_md5(md5);
                Ok(())
            }
        }
    }
}
