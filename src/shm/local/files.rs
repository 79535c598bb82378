//! Directory and pins page of a session, as mapped by its consumer.

use std::os::fd::BorrowedFd;

use super::super::layout::Epoch;
use super::directory::DirectoryView;
use super::pins_page::ConsumerPage;

/// Files of a session in addition to its segments.
#[derive(Debug)]
pub(in crate::shm) struct LocalFiles {
    pub(super) directory: DirectoryView,
    pub(super) page: ConsumerPage,
}

impl LocalFiles {
    /// Maps both files.
    ///
    /// # Errors
    /// The reason in words why one of them cannot be used.
    pub(in crate::shm) fn open(
        directory: (BorrowedFd<'_>, u64),
        page: (BorrowedFd<'_>, u64),
        epoch: Epoch,
    ) -> Result<Self, String> {
        Ok(Self {
            directory: DirectoryView::open(directory.0, directory.1, epoch)?,
            page: ConsumerPage::open(page.0, page.1)?,
        })
    }
}
