//! Blocking work on a thread of the runtime.

/// Runs `work`, which blocks for a short time. On a multi-threaded runtime the other tasks of this
/// thread move to another thread first.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
