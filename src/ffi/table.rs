//! Timestamps in, tables out, over the Arrow C Data Interface.
//!
//! <https://arrow.apache.org/docs/format/CDataInterface.html>

use std::ffi::c_char;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi};
use arrow_array::{Array as _, RecordBatch, StructArray, make_array};
use arrow_schema::{ArrowError, DataType};

use super::arguments::{borrowed, guarded, optional_text, place, places, text};
use super::host::EmbeddedCache;
use super::status::{CallFailure, StatusCode};
use crate::cache::{Answer, CacheError, Caller, LeaseId};
use crate::error::ErrorKind;
use crate::table::{Register, Request, TableRows, rows_from_batches, timestamps_from_array};

/// Maximum length of a lease in bytes, its 0 included.
const LEASE_BYTES: usize = 64;

fn arrow(error: &ArrowError) -> CallFailure {
    CallFailure::new(ErrorKind::InvalidArgument, format!("[IOV-7131] Arrow C data: {error}"))
}

/// Takes over rows: an array of timestamps, or a struct array (a record batch) with a column of
/// timestamps and the columns of `keys`.
///
/// # Safety
/// Both are null or valid structures of the Arrow C Data Interface.
unsafe fn rows(
    array: *mut FFI_ArrowArray,
    schema: *mut FFI_ArrowSchema,
) -> Result<ForeignRows, CallFailure> {
    // SAFETY: as the caller says; the source structure is marked as released.
    let array = unsafe { place(array, "timestamps") }?;
    // SAFETY: as above.
    let schema = unsafe { place(schema, "timestamps_schema") }?;
    // SAFETY: as above.
    let array = unsafe { FFI_ArrowArray::from_raw(array) };
    // SAFETY: as above.
    let schema = unsafe { FFI_ArrowSchema::from_raw(schema) };
    if array.is_released() || schema.release().is_none() {
        let reason = "[IOV-7132] the timestamps were released already";
        return Err(CallFailure::new(ErrorKind::InvalidArgument, reason));
    }
    // SAFETY: as the caller says, these are valid structures.
    let data = unsafe { from_ffi(array, &schema) }.map_err(|error| arrow(&error))?;
    data.validate_full().map_err(|error| arrow(&error))?;
    if matches!(data.data_type(), DataType::Struct(_)) {
        let table = StructArray::from(data);
        if table.null_count() > 0 {
            let reason = "[IOV-7122] whole rows of the timestamps are null";
            return Err(CallFailure::new(ErrorKind::InvalidArgument, reason));
        }
        return Ok(ForeignRows::Batch(RecordBatch::from(table)));
    }
    let timestamps = timestamps_from_array("timestamp", &make_array(data))?;
    Ok(ForeignRows::Timestamps(timestamps.into()))
}

/// Rows that were taken over.
enum ForeignRows {
    Timestamps(TableRows),
    Batch(RecordBatch),
}

impl ForeignRows {
    /// The timestamps, and the key columns of these names.
    fn read(self, keys: &[Arc<str>]) -> Result<TableRows, CacheError> {
        match self {
            Self::Timestamps(rows) => Ok(rows),
            Self::Batch(batch) => rows_from_batches(&[batch], keys, |_| Ok(())),
        }
    }
}

/// Registers a timeframe and starts loading its objects. Waits while too many timeframes are in
/// flight or memory is short.
///
/// @param timeframe          id of the timeframe
/// @param timestamps         one per row (milliseconds, or an Arrow timestamp): an array, or a
///                           struct array with a column `timestamp` and one for each key on which a
///                           column depends. Taken over, also on failure
/// @param timestamps_schema  its schema; taken over, also on failure
/// @param request            JSON: `{"columns": {"name": "path"}, "consumers": ["name"]}`
/// @param wait_ms            maximum wait in milliseconds; 0: 60 s
///
/// # Safety
/// `cache` is null or a handle, the others are null or valid as stated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_register(
    cache: *const EmbeddedCache,
    timeframe: u64,
    timestamps: *mut FFI_ArrowArray,
    timestamps_schema: *mut FFI_ArrowSchema,
    request: *const c_char,
    wait_ms: u64,
) -> StatusCode {
    guarded(|| {
        // SAFETY: as the caller says.
        let rows = unsafe { rows(timestamps, timestamps_schema) }?;
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        // SAFETY: as the caller says.
        let register = Register::parse(unsafe { text(request, "request") }?.as_bytes())?;
        let rows = rows.read(&host.cache.key_names(&register.columns)?)?;
        let patience = (wait_ms > 0).then(|| Duration::from_millis(wait_ms));
        let registered = host.cache.register(timeframe, rows, &register, patience);
        host.runtime.block_on(registered)?;
        Ok(())
    })
}

/// Writes the name of a lease, which ends with a 0.
fn write_lease(lease: &LeaseId, place: &mut [u8]) {
    let name = lease.as_str().as_bytes();
    let length = name.len().min(place.len() - 1);
    place.fill(0);
    place[..length].copy_from_slice(&name[..length]);
}

/// A table as one struct array, with its schema.
fn exported(answer: &Answer) -> Result<(FFI_ArrowArray, FFI_ArrowSchema), CallFailure> {
    let batches = answer.to_batches()?;
    let whole = match &batches[..] {
        [only] => only.clone(),
        _ => arrow_select::concat::concat_batches(&answer.schema(), &batches)
            .map_err(|error| arrow(&error))?,
    };
    let schema = FFI_ArrowSchema::try_from(whole.schema().as_ref());
    let schema = schema.map_err(|error| arrow(&error))?;
    Ok((FFI_ArrowArray::new(&StructArray::from(whole).to_data()), schema))
}

/// Gets a table: waits until all of its objects are in shared memory, and pins them.
///
/// @param request  JSON, as a Flight command: `{"timeframe": 42, "consumer": "tracker"}`, or
///                 `{"columns": {"name": "path"}, "timestamps": [ms, …]}`, with the same options
/// @param table    receives the table, a struct array with one child per column and a row per
///                 timestamp; `encoding` and `cell` of the request determine the type of the cells.
///                 Release it as the Arrow C Data Interface says; this does not release the objects
/// @param schema   receives its schema
/// @param lease    null, or memory for 64 bytes: the lease, for iovc_cache_release. The table of a
///                 timeframe's consumer is also released by iovc_cache_consumed; one requested
///                 without consumer and session is released after 60 s
///
/// # Safety
/// `cache` is null or a handle; the others are null or valid as stated. Previous contents of
/// `table` and `schema` are overwritten, not released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iovc_cache_table(
    cache: *const EmbeddedCache,
    request: *const c_char,
    table: *mut FFI_ArrowArray,
    schema: *mut FFI_ArrowSchema,
    lease: *mut c_char,
) -> StatusCode {
    guarded(|| {
        if table.is_null() || schema.is_null() {
            return Err(super::arguments::null("table or schema"));
        }
        // SAFETY: as the caller says; not null.
        unsafe { table.write(FFI_ArrowArray::empty()) };
        // SAFETY: as above.
        unsafe { schema.write(FFI_ArrowSchema::empty()) };
        // SAFETY: as the caller says.
        let host = unsafe { borrowed(cache, "cache") }?;
        // SAFETY: as the caller says.
        let request = unsafe { optional_text(request, "request") }?;
        let request = request.ok_or_else(|| super::arguments::null("request"))?;
        let request = Request::parse(request.as_bytes())?;
        let place = match lease.is_null() {
            true => None,
            // SAFETY: as the caller says, there is memory for that many bytes.
            false => Some(unsafe { places(lease.cast::<u8>(), LEASE_BYTES, "lease") }?),
        };
        let answer = host.runtime.block_on(host.cache.answer(&request, &Caller::default()))?;
        if let Some(place) = place {
            write_lease(answer.lease(), place);
        }
        match exported(&answer) {
            Ok((array, described)) => {
                // SAFETY: as the caller says; the structure there is empty and needs no drop.
                unsafe { table.write(array) };
                // SAFETY: as above.
                unsafe { schema.write(described) };
                Ok(())
            }
            Err(failure) => {
                host.cache.release(answer.lease());
                Err(failure)
            }
        }
    })
}
