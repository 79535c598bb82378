//! Points at which tests kill the process, to see that every state between two steps is a valid one.
//!
//! Only builds with debug assertions have them: elsewhere [`crash_point`] is empty.

/// Kills this process with SIGKILL at a passage of the point `name`, if the environment variable
/// `IOVCACHE_CRASH_POINT` is `<name>` (the first passage) or `<name>:<n>` (the passage number n,
/// from 1).
#[cfg(debug_assertions)]
pub(super) fn crash_point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static SELECTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSAGES: AtomicU64 = AtomicU64::new(0);
    let wanted = SELECTED.get_or_init(|| {
        let text = std::env::var("IOVCACHE_CRASH_POINT").ok()?;
        let (name, number) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), number.parse().ok()?))
    });
    let Some((wanted, number)) = wanted else { return };
    if wanted == name && PASSAGES.fetch_add(1, Ordering::Relaxed) + 1 == *number {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal may be delivered to another thread.
        std::thread::sleep(std::time::Duration::from_secs(10));
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) const fn crash_point(_name: &str) {}
