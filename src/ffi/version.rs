//! Version of the C interface.

/// Incremented by each change that breaks programs compiled before it.
const ABI_VERSION: u32 = 2;

/// Version of the interface in the library; compare it with `IOVC_ABI_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn iovc_abi_version() -> u32 {
    ABI_VERSION
}
