//! The heap of the process: returns free memory to the system.
#![allow(unsafe_code)]

/// Returns the free memory of the heap to the system. glibc keeps the memory of large buffers for
/// later ones: after requests of some hundred MiB as much stays with the process, however long it
/// is idle.
///
/// It takes some milliseconds, during which other threads may wait to allocate.
pub fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: malloc_trim has no preconditions; it locks each arena itself.
        unsafe {
            malloc_trim(0);
        }
    }
}
