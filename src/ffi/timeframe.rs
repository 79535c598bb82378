//! Tables of timeframes from shared memory, without a request to the service.

use std::ffi::{CStr, CString, c_char};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::arguments::{borrowed, guarded, optional_text, place, text};
use super::local::{LocalHandle, LocalView};
use super::status::{CallFailure, StatusCode};
use super::taken_timeframe::{TakenTimeframe, WantedTimeframe, take};
use crate::error::ErrorKind;
use crate::shm::MetaHeader;

/// The table of a timeframe in shared memory. Threads may share a handle.
pub struct TimeframeHandle {
    table: Arc<TakenTimeframe>,
}

/// The arrays of a column, in shared memory. They are valid until the table is released.
#[repr(C)]
pub struct TimeframeColumn {
    /// Name of the column; ends with a 0.
    pub name: *const c_char,
    /// Number of runs of rows with the same object.
    pub runs: usize,
    /// For each run, the row after its last one, ascending.
    pub run_ends: *const i32,
    /// For each run, the MetaHeader of its object.
    pub cells: *const MetaHeader,
    /// For each run a bit, least significant first: 1 if its cell is not null. Null if no cell is
    /// null.
    pub validity: *const u8,
    /// For each run, start (inclusive) and end (exclusive) of the version's validity interval in
    /// milliseconds since the Unix epoch. Null if an older service has not told them.
    pub intervals: *const i64,
}

impl TimeframeColumn {
    const NONE: Self = Self {
        name: std::ptr::null(),
        runs: 0,
        run_ends: std::ptr::null(),
        cells: std::ptr::null(),
        validity: std::ptr::null(),
        intervals: std::ptr::null(),
    };
}

/// The array at the start of `bytes`; `None` if it is not aligned.
fn array<T>(bytes: &[u8]) -> Option<*const T> {
    let start = bytes.as_ptr().cast::<T>();
    start.is_aligned().then_some(start)
}

/// Takes the table of a timeframe that is registered for a consumer. If its objects are still being
/// loaded, it blocks the thread until the table is ready, without using CPU time. The service learns
/// that the table was delivered.
///
/// @param local           handle of iovc_local_open
/// @param timeframe       id of the timeframe
/// @param consumer        name of the consumer; null: the name given to iovc_attach
/// @param timeout_millis  time limit of the wait; 0: do not wait; less than 0: none
/// @param table           receives the table, or null on failure
/// @return IOVC_UNAVAILABLE if the service must be asked by Flight (with iovc_session in the field
///         "session"): the timeframe is unknown, or its table is not in shared memory;
///         IOVC_DEADLINE_EXCEEDED if it is still being loaded; IOVC_NOT_FOUND if the timeframe is not
///         registered for the consumer; IOVC_FAILED_PRECONDITION if the consumer has consumed it, or
///         if the session has ended, also during the wait; IOVC_PERMISSION_DENIED if another client
///         uses the name; IOVC_RESOURCE_EXHAUSTED if the session can pin no more
///
/// The caller owns the table and releases it by iovc_timeframe_release. One slot of the session pins
/// the table and all of its objects. The table keeps the session alive, also after iovc_local_close and
/// iovc_detach.
///
/// For a name other than that given to iovc_attach, the call waits until the service has accepted the
/// name, for at most 1 s. Any number of threads may call it at a time.
///
/// # Safety
/// `local` is null or a handle, `consumer` is null or ends with a 0, `table` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_timeframe_get(
    local: *const LocalHandle,
    timeframe: u64,
    consumer: *const c_char,
    timeout_millis: i64,
    table: *mut *mut TimeframeHandle,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(table, "table") }?;
        *place = std::ptr::null_mut();
        // SAFETY: as the caller says.
        let local = unsafe { borrowed(local, "local") }?;
        // SAFETY: as the caller says.
        let consumer = unsafe { optional_text(consumer, "consumer") }?;
        let (plane, names) = (local.plane(), local.names());
        let consumer = consumer.unwrap_or_else(|| plane.attachment().consumer());
        let timeout = u64::try_from(timeout_millis).ok().map(Duration::from_millis);
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let taken = take(plane, names, WantedTimeframe { timeframe, consumer }, deadline)?;
        *place = Box::into_raw(Box::new(TimeframeHandle { table: Arc::new(taken) }));
        Ok(())
    })
}

/// Gets the size of a table.
///
/// @param rows     receives the number of rows; may be null
/// @param columns  receives the number of columns; may be null
///
/// # Safety
/// `table` is null or a handle, `rows` and `columns` are null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_timeframe_shape(
    table: *const TimeframeHandle,
    rows: *mut usize,
    columns: *mut usize,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let table = &unsafe { borrowed(table, "table") }?.table;
        // SAFETY: as the caller says.
        if let Some(place) = unsafe { rows.as_mut() } {
            *place = table.rows();
        }
        // SAFETY: as the caller says.
        if let Some(place) = unsafe { columns.as_mut() } {
            *place = table.columns().len();
        }
        Ok(())
    })
}

/// Finds a column by its name.
///
/// @param name    name of the column
/// @param column  receives its number
/// @return IOVC_NOT_FOUND if there is no such column
///
/// # Safety
/// `table` is null or a handle, `name` is null or ends with a 0, `column` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_timeframe_find(
    table: *const TimeframeHandle,
    name: *const c_char,
    column: *mut usize,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(column, "column") }?;
        // SAFETY: as the caller says.
        let table = &unsafe { borrowed(table, "table") }?.table;
        // SAFETY: as the caller says.
        let name = unsafe { text(name, "name") }?;
        let is_it = |known: &CString| known.to_bytes() == name.as_bytes();
        let Some(found) = table.columns().iter().position(is_it) else {
            let known: Vec<_> = table.columns().iter().map(|one| one.to_string_lossy()).collect();
            let known = known.join(", ");
            let reason = format!("[IOV-7168] the table has no column {name:?}; it has {known}");
            return Err(CallFailure::new(ErrorKind::NotFound, reason));
        };
        *place = found;
        Ok(())
    })
}

/// Gets the arrays of a column, without a copy.
///
/// @param number  number of the column, from 0
/// @param column  receives the arrays, which are valid until iovc_timeframe_release
/// @return IOVC_INVALID_ARGUMENT if there is no such column; IOVC_FAILED_PRECONDITION in a forked
///         child of the process that took the table
///
/// The cells resolve by iovc_resolve_runs of the handle of iovc_attach.
///
/// # Safety
/// `table` is null or a handle, `column` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_timeframe_column(
    table: *const TimeframeHandle,
    number: usize,
    column: *mut TimeframeColumn,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(column, "column") }?;
        *place = TimeframeColumn::NONE;
        // SAFETY: as the caller says.
        let table = &unsafe { borrowed(table, "table") }?.table;
        let arrays = table.column(number)?;
        let name: &CStr = &table.columns()[number];
        let aligned = (array(arrays.ends), array(arrays.cells), arrays.intervals.map(array));
        let (Some(run_ends), Some(cells), None | Some(Some(_))) = aligned else {
            let reason = "[IOV-7165] the table in shared memory is malformed";
            return Err(CallFailure::new(ErrorKind::Internal, reason));
        };
        *place = TimeframeColumn {
            name: name.as_ptr(),
            runs: arrays.runs,
            run_ends,
            cells,
            validity: arrays.validity.map_or(std::ptr::null(), <[u8]>::as_ptr),
            intervals: aligned.2.flatten().unwrap_or(std::ptr::null()),
        };
        Ok(())
    })
}

/// Gets the object of a cell.
///
/// @param column  number of the column, from 0
/// @param row     number of the row, from 0
/// @param view    receives the object with its id and validity interval (0 to 0 if an older service
///                has not told it); pins nothing on failure (any status but IOVC_OK)
/// @return IOVC_NOT_FOUND if the cell is null; IOVC_INVALID_ARGUMENT if there is no such column or
///         row; IOVC_FAILED_PRECONDITION in a forked child
///
/// The view keeps the table pinned with all of its objects until iovc_view_release, also after
/// iovc_timeframe_release, after the timeframe was dropped, and after the end of the service. Any number
/// of threads may call it at a time.
///
/// # Safety
/// `table` is null or a handle, `view` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_timeframe_object(
    table: *const TimeframeHandle,
    column: usize,
    row: usize,
    view: *mut LocalView,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let place = unsafe { place(view, "view") }?;
        *place = LocalView::NONE;
        // SAFETY: as the caller says.
        let table = &unsafe { borrowed(table, "table") }?.table;
        let Some(object) = table.object(column, row)? else {
            let reason = format!("[IOV-7169] the cell of column {column} and row {row} is null");
            return Err(CallFailure::new(ErrorKind::NotFound, reason));
        };
        *place = LocalView::of_table(Arc::clone(table), &object);
        Ok(())
    })
}

/// Reports a timeframe as consumed by the consumer that took its table, and waits until the service
/// has taken the report, at most 1 s. The table stays valid until it is released; memory is free for
/// other objects after both.
///
/// @return IOVC_OK also if it was reported before by this handle; IOVC_NOT_FOUND if the timeframe was
///         dropped since; IOVC_UNAVAILABLE if the service does not take the report: try again;
///         IOVC_FAILED_PRECONDITION if the session has ended; IOVC_PERMISSION_DENIED if another client
///         uses the name now
///
/// # Safety
/// `table` is null or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_timeframe_consumed(table: *const TimeframeHandle) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        unsafe { borrowed(table, "table") }?.table.report_consumed()
    })
}

/// Releases a table. Null is allowed. Its views stay valid; the pin ends with the last of them. The
/// timeframe is not reported as consumed. Any thread may call it, also after the end of the session.
///
/// # Safety
/// `table` is null or a handle that was not released yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_timeframe_release(table: *mut TimeframeHandle) {
    guarded(|| {
        if !table.is_null() {
            // SAFETY: as the caller says, it came from `Box::into_raw` and is not used any more.
            drop(unsafe { Box::from_raw(table) });
        }
        Ok(())
    });
}
