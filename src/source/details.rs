//! Facts about the upload of a version.

use crate::interval::Timestamp;

/// Facts about the upload of a version. None of them decides which version is served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// Name of the uploaded file.
    pub file_name: Option<String>,
    /// Media type given by the uploader.
    pub content_type: Option<String>,
    /// Time of the last change of its properties.
    pub last_modified: Option<Timestamp>,
    /// End of its validity interval at the time of the upload.
    pub initial_until: Option<Timestamp>,
    /// Network address of the uploader.
    pub uploaded_from: Option<String>,
}
