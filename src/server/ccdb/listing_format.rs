//! The formats of a listing.

use hyper::body::Bytes;

use super::listing::FolderListing;
use crate::object::ObjectInfo;
use crate::source::Details;

/// The format of a listing.
pub(super) trait ListingFormat: Send + Sync + 'static {
    fn content_type(&self) -> &'static str;
    /// The text before the first version.
    fn start(&self, found: &FolderListing) -> String;
    /// Adds one version to `text`, with the separator before it if it is not the first.
    fn version(&self, text: &mut String, number: usize, version: &ObjectInfo, details: &Details);
    /// The text after the last version.
    fn end(&self, found: &FolderListing) -> String;
    /// The bytes of a text in this format.
    fn encode(&self, text: String) -> Bytes {
        text.into()
    }
    /// Whether the upload details of versions are shown.
    fn needs_details(&self) -> bool {
        true
    }
    /// Maximum versions shown; `None`: all.
    fn longest(&self) -> Option<usize> {
        None
    }

    /// Whether the end of a long listing names the paths that it leaves out.
    fn names_left_out(&self) -> bool {
        false
    }
}
