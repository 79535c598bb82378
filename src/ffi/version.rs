//! The version of the C interface.

/// Grows by one with each change that breaks programs which were compiled before it.
const ABI_VERSION: u32 = 2;

/// The version of this interface; compare it with `IOVC_ABI_VERSION`.
#[unsafe(no_mangle)]
pub extern "C" fn iovc_abi_version() -> u32 {
    ABI_VERSION
}
