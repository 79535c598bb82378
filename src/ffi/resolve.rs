//! Resolves MetaHeaders to pointers.

use std::ffi::c_void;

use super::arguments::{borrowed, guarded, many, place, places};
use super::attach::Attach;
use super::status::{CallFailure, StatusCode};
use crate::error::ErrorKind;
use crate::shm::{Mappings, MetaHeader, ResolveError};

/// A header in a cell: 40 bytes, aligned or not.
type HeaderBytes = [u8; MetaHeader::BYTES];

/// # Safety
/// `header` is null or points to 40 readable bytes.
#[inline]
unsafe fn read(header: *const MetaHeader) -> Result<MetaHeader, CallFailure> {
    // SAFETY: as the caller says; bytes need no alignment.
    let bytes = unsafe { borrowed(header.cast::<HeaderBytes>(), "header") }?;
    Ok(MetaHeader::from_array(bytes))
}

/// Finds the bytes of a header; a segment that is not mapped yet is requested.
#[inline]
fn find(attach: &Attach, header: &MetaHeader) -> Result<(*const c_void, usize), ResolveError> {
    let resolve = |mappings: &Mappings| {
        mappings.locate(header).map(|found| (found.address.cast(), found.size))
    };
    match attach.with(resolve) {
        Err(ResolveError::UnknownSegment { .. } | ResolveError::UnknownRegion { .. }) => {
            attach.with_more(header, resolve)
        }
        found => found,
    }
}

#[inline]
fn failed(place: impl Into<Option<usize>>) -> impl FnOnce(ResolveError) -> CallFailure {
    let place = place.into();
    move |error| CallFailure::Resolve { error, place }
}

/// Resolves a header to the bytes of its object, without a copy.
///
/// The bytes do not change while the table of the header is held: until its timeframe is consumed,
/// its lease is released, or the session ends. A later read must be confirmed with iovc_still_valid
/// afterwards.
///
/// @param header  40 bytes, as in a cell of a table; they need not be aligned
/// @param data    receives the pointer, or null on failure
/// @param size    receives the size in bytes, which can be 0
/// @return IOVC_FAILED_PRECONDITION if the object is gone, IOVC_INVALID_ARGUMENT if the header is
///         malformed. No header, even a forged one, makes the call unsafe.
///
/// # Safety
/// `attach` is null or a handle; the others are null or point to memory of the stated kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_resolve(
    attach: *const Attach,
    header: *const MetaHeader,
    data: *mut *const c_void,
    size: *mut usize,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let data = unsafe { place(data, "data") }?;
        // SAFETY: as the caller says.
        let size = unsafe { place(size, "size") }?;
        (*data, *size) = (std::ptr::null(), 0);
        // SAFETY: as the caller says.
        let attach = unsafe { borrowed(attach, "attach") }?;
        // SAFETY: as the caller says.
        let header = unsafe { read(header) }?;
        (*data, *size) = find(attach, &header).map_err(failed(None))?;
        Ok(())
    })
}

/// Resolves the headers of a column of cells, contiguous in memory.
///
/// A cell of 40 zeros, as under a null, gives null and 0. All headers are tried: those that cannot
/// be resolved give null and 0, and the status is that of the first failure.
///
/// @param headers  `count` headers of 40 bytes
/// @param data     memory for `count` pointers
/// @param sizes    memory for `count` sizes in bytes
///
/// # Safety
/// `attach` is null or a handle; the others are null or point to memory of the stated kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_resolve_many(
    attach: *const Attach,
    headers: *const MetaHeader,
    count: usize,
    data: *mut *const c_void,
    sizes: *mut usize,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let attach = unsafe { borrowed(attach, "attach") }?;
        // SAFETY: as the caller says; bytes need no alignment.
        let headers = unsafe { many(headers.cast::<HeaderBytes>(), count, "headers") }?;
        // SAFETY: as the caller says.
        let data = unsafe { places(data, count, "data") }?;
        // SAFETY: as the caller says.
        let sizes = unsafe { places(sizes, count, "sizes") }?;
        resolve_cells(attach, headers, data, sizes)
    })
}

/// Resolves one cell per row. All three slices have the same length.
///
/// # Errors
/// That of the first row that cannot be resolved.
fn resolve_cells(
    attach: &Attach,
    headers: &[HeaderBytes],
    data: &mut [*const c_void],
    sizes: &mut [usize],
) -> Result<(), CallFailure> {
    let mut first = None;
    // The mappings are looked up once; headers in segments that are not mapped yet follow in a
    // second round.
    let mut later = Vec::new();
    attach.with(|mappings| {
        let rows = headers.iter().zip(data.iter_mut()).zip(sizes.iter_mut()).enumerate();
        for (row, ((header, data), size)) in rows {
            (*data, *size) = (std::ptr::null(), 0);
            if *header == [0; MetaHeader::BYTES] {
                continue;
            }
            match mappings.locate(&MetaHeader::from_array(header)) {
                Ok(found) => (*data, *size) = (found.address.cast(), found.size),
                Err(ResolveError::UnknownSegment { .. } | ResolveError::UnknownRegion { .. }) => {
                    later.push(row);
                }
                Err(error) => {
                    first.get_or_insert((row, error));
                }
            }
        }
    });
    for row in later {
        match find(attach, &MetaHeader::from_array(&headers[row])) {
            Ok(found) => (data[row], sizes[row]) = found,
            Err(error) if first.is_none_or(|(earlier, _)| row < earlier) => {
                first = Some((row, error));
            }
            Err(_) => {}
        }
    }
    match first {
        None => Ok(()),
        Some((row, error)) => Err(failed(row)(error)),
    }
}

/// Resolves a run-end encoded column row by row. Each run is resolved once.
///
/// @param headers   the values: one header of 40 bytes per run
/// @param run_ends  end of each run, in rows from the start of the column; strictly ascending
/// @param runs      number of runs
/// @param offset    first row to resolve (the offset of the Arrow array)
/// @param rows      number of rows to resolve; the last run must cover the last of them
/// @param data      memory for `rows` pointers
/// @param sizes     memory for `rows` sizes in bytes
///
/// Cells of zeros and headers that cannot be resolved are treated as in iovc_resolve_many.
///
/// # Safety
/// `attach` is null or a handle; the others are null or point to memory of the stated kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_resolve_runs(
    attach: *const Attach,
    headers: *const MetaHeader,
    run_ends: *const i32,
    runs: usize,
    offset: usize,
    rows: usize,
    data: *mut *const c_void,
    sizes: *mut usize,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let attach = unsafe { borrowed(attach, "attach") }?;
        // SAFETY: as the caller says; bytes need no alignment.
        let headers = unsafe { many(headers.cast::<HeaderBytes>(), runs, "headers") }?;
        // SAFETY: as the caller says.
        let run_ends = unsafe { many(run_ends, runs, "run_ends") }?;
        // SAFETY: as the caller says.
        let data = unsafe { places(data, rows, "data") }?;
        // SAFETY: as the caller says.
        let sizes = unsafe { places(sizes, rows, "sizes") }?;
        check_run_ends(run_ends, offset, rows)?;
        resolve_runs(attach, headers, run_ends, offset, data, sizes)
    })
}

/// # Errors
/// If the run ends do not ascend, or do not cover `rows` rows from `offset` on.
fn check_run_ends(run_ends: &[i32], offset: usize, rows: usize) -> Result<(), CallFailure> {
    let wrong = |reason: String| CallFailure::new(ErrorKind::InvalidArgument, reason);
    let end = offset.checked_add(rows);
    let reached = run_ends.last().map_or(0, |end| usize::try_from(*end).unwrap_or(0));
    if end.is_none_or(|end| end > reached) {
        let reason = format!(
            "[IOV-7105] the runs end at row {reached}, and {rows} rows from {offset} on are \
             requested"
        );
        return Err(wrong(reason));
    }
    let rising = run_ends.iter().try_fold(0, |before, &end| (end > before).then_some(end));
    match rising {
        Some(_) => Ok(()),
        None => Err(wrong("[IOV-7106] run_ends are not strictly ascending".to_owned())),
    }
}

/// Resolves the rows from `offset` on, one per place in `data` and `sizes`; `run_ends` are checked.
///
/// # Errors
/// That of the first run that cannot be resolved.
fn resolve_runs(
    attach: &Attach,
    headers: &[HeaderBytes],
    run_ends: &[i32],
    offset: usize,
    data: &mut [*const c_void],
    sizes: &mut [usize],
) -> Result<(), CallFailure> {
    let (rows, mut first) = (data.len(), None);
    let (mut row, mut run) = (0, run_ends.partition_point(|&end| end as usize <= offset));
    while row < rows {
        let until = (run_ends[run] as usize - offset).min(rows);
        let found = if headers[run] == [0; MetaHeader::BYTES] {
            Ok((std::ptr::null(), 0))
        } else {
            find(attach, &MetaHeader::from_array(&headers[run]))
        };
        let (pointer, size) = found.unwrap_or_else(|error| {
            first.get_or_insert((run, error));
            (std::ptr::null(), 0)
        });
        data[row..until].fill(pointer);
        sizes[row..until].fill(size);
        (row, run) = (until, run + 1);
    }
    match first {
        None => Ok(()),
        Some((run, error)) => Err(failed(run)(error)),
    }
}

/// Checks that bytes read through the pointer of a header were those of the object. Returns
/// IOVC_OK, or IOVC_FAILED_PRECONDITION if its block was freed meanwhile. Call it after reading
/// without holding the table.
///
/// # Safety
/// `attach` is null or a handle, `header` is null or points to 40 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_still_valid(
    attach: *const Attach,
    header: *const MetaHeader,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let attach = unsafe { borrowed(attach, "attach") }?;
        // SAFETY: as the caller says.
        let header = unsafe { read(header) }?;
        attach.with(|mappings| {
            if mappings.still_valid(&header) {
                return Ok(());
            }
            let expected = header.hint;
            let error = mappings.locate(&header).err();
            let error = error.unwrap_or(ResolveError::Stale { expected, found: 0 });
            Err(CallFailure::Resolve { error, place: None })
        })
    })
}

/// Id of the version that a header refers to: a UUID, most significant byte first.
///
/// @param id  memory for 16 bytes
///
/// # Safety
/// `attach` is null or a handle; the others are null or point to memory of the stated kind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_object_id(
    attach: *const Attach,
    header: *const MetaHeader,
    id: *mut u8,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let attach = unsafe { borrowed(attach, "attach") }?;
        // SAFETY: as the caller says.
        let header = unsafe { read(header) }?;
        // SAFETY: as the caller says.
        let id = unsafe { places(id, 16, "id") }?;
        let found = attach.with(|mappings| mappings.object_id(&header)).map_err(failed(None))?;
        id.copy_from_slice(found.as_bytes());
        Ok(())
    })
}
