//! Directory and pins page of a session, as its consumer maps them.

use std::os::fd::BorrowedFd;

use super::super::layout::Epoch;
use super::directory::DirectoryView;
use super::pins_page::ConsumerPage;

/// What a session got beside its segments.
#[derive(Debug)]
pub(in crate::shm) struct LocalFiles {
    pub(super) directory: DirectoryView,
    pub(super) page: ConsumerPage,
}

impl LocalFiles {
    /// Maps both.
    ///
    /// # Errors
    /// Why one of them cannot be used, in a phrase.
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
