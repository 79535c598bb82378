//! What a source knows of a version beside what decides between versions.

use crate::interval::Timestamp;

/// How a version was uploaded. None of it decides which version is served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Details {
    /// The name of the uploaded file.
    pub file_name: Option<String>,
    /// The media type that its maker gave.
    pub content_type: Option<String>,
    /// When its description last changed.
    pub last_modified: Option<Timestamp>,
    /// Until when it was valid as uploaded.
    pub initial_until: Option<Timestamp>,
    /// The address of the uploader.
    pub uploaded_from: Option<String>,
}
