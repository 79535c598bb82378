//! Checks of the pointers, counts and texts that a C program passes.

use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::status::{CallFailure, StatusCode, remember};
use crate::error::ErrorKind;

/// Runs `work`. An error or a panic becomes a status and is kept for `iovc_last_error`.
#[inline]
pub(super) fn guarded(work: impl FnOnce() -> Result<(), CallFailure>) -> StatusCode {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => StatusCode::IOVC_OK,
        Ok(Err(failure)) => remember(failure),
        Err(_) => remember(CallFailure::new(ErrorKind::Internal, "[IOV-9003] a bug of iovcache")),
    }
}

pub(super) fn null(name: &str) -> CallFailure {
    CallFailure::new(ErrorKind::InvalidArgument, format!("[IOV-7101] {name} is null"))
}

/// # Safety
/// `pointer` is null or points to a `T` that is not modified during `'a`.
#[inline]
pub(super) unsafe fn borrowed<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, CallFailure> {
    // SAFETY: as the caller says.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// # Safety
/// `pointer` is null or points to memory for a `T` that is accessed through the result alone during
/// `'a`.
#[inline]
pub(super) unsafe fn place<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, CallFailure> {
    // SAFETY: as the caller says.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(name))
}

/// # Safety
/// `count` is 0, `pointer` is null, or it points to `count` values of `T` that are not modified
/// during `'a`.
#[inline]
pub(super) unsafe fn many<'a, T>(
    pointer: *const T,
    count: usize,
    name: &str,
) -> Result<&'a [T], CallFailure> {
    if count == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    check_extent::<T>(count, name)?;
    // SAFETY: as the caller says; not null, and no longer than memory can be.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// # Safety
/// As [`many`]; the memory is accessed through the result alone during `'a`.
#[inline]
pub(super) unsafe fn places<'a, T>(
    pointer: *mut T,
    count: usize,
    name: &str,
) -> Result<&'a mut [T], CallFailure> {
    if count == 0 {
        return Ok(&mut []);
    }
    if pointer.is_null() {
        return Err(null(name));
    }
    check_extent::<T>(count, name)?;
    // SAFETY: as the caller says; not null, and no longer than memory can be.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, count) })
}

/// # Errors
/// If `count` values of `T` are larger than memory can be.
fn check_extent<T>(count: usize, name: &str) -> Result<(), CallFailure> {
    match count.checked_mul(size_of::<T>()) {
        Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
        _ => {
            let reason = format!("[IOV-7102] {count} {name} exceed the address space");
            Err(CallFailure::new(ErrorKind::InvalidArgument, reason))
        }
    }
}

/// # Safety
/// `text` is null or points to bytes that end with a 0 and are not modified during `'a`.
pub(super) unsafe fn optional_text<'a>(
    text: *const c_char,
    name: &str,
) -> Result<Option<&'a str>, CallFailure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says, and not null.
    let text = unsafe { CStr::from_ptr(text) };
    let text = text.to_str().map_err(|error| {
        CallFailure::new(ErrorKind::InvalidArgument, format!("[IOV-7103] {name}: {error}"))
    })?;
    Ok(Some(text))
}

/// # Safety
/// As [`optional_text`].
pub(super) unsafe fn text<'a>(text: *const c_char, name: &str) -> Result<&'a str, CallFailure> {
    // SAFETY: as the caller says.
    unsafe { optional_text(text, name) }?.ok_or_else(|| null(name))
}
