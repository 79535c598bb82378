//! Tickets: the request, and the lease that was opened for it. They are opaque to clients. As a
//! shorthand, a request is also accepted as a ticket.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::budget::{Charge, ClientBudget, OverBudget};
use crate::cache::LeaseId;
use crate::table::{CellKind, Columns, Request, RequestError};

/// A ticket as JSON: the request, and the lease of the table if it is pinned already.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ticket<'a> {
    /// The version of the format: 1. The first field; it distinguishes a ticket from a request.
    iovcache_ticket: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    #[serde(borrow)]
    request: &'a RawValue,
}

const BEGIN: &[u8] = br#"{"iovcache_ticket":"#;

fn malformed(error: &serde_json::Error) -> RequestError {
    RequestError::Malformed { what: "ticket", reason: error.to_string() }
}

fn parse(ticket: &[u8]) -> Result<Option<Ticket<'_>>, RequestError> {
    if !ticket.starts_with(BEGIN) {
        return Ok(None);
    }
    serde_json::from_slice(ticket).map(Some).map_err(|error| malformed(&error))
}

/// The ticket for a request, which must be JSON.
///
/// # Errors
/// [`RequestError::Malformed`] if it is not.
pub(super) fn issue(request: &[u8], lease: Option<&LeaseId>) -> Result<Vec<u8>, RequestError> {
    let request = serde_json::from_slice(request).map_err(|error| malformed(&error))?;
    let ticket =
        Ticket { iovcache_ticket: 1, lease: lease.map(|lease| lease.as_str().to_owned()), request };
    serde_json::to_vec(&ticket).map_err(|error| malformed(&error))
}

/// Charges the memory of a ticket or a request while it is processed: its bytes, and the result of
/// parsing.
///
/// # Errors
/// [`OverBudget`].
pub(super) fn charge(json: &[u8], budget: &ClientBudget) -> Result<Charge, OverBudget> {
    budget.charge(json.len() as u64 + parsed_bytes(json), "a request")
}

/// Charges the schema of the requested table, in addition to `charge`: in memory it takes many
/// times the bytes of the request. Columns that the configuration or a timeframe defines are not
/// charged to the client again.
///
/// # Errors
/// [`OverBudget`].
pub(super) fn charge_schema(charge: &mut Charge, request: &Request) -> Result<(), OverBudget> {
    // Field, metadata, and the encoded schema; a struct has seven fields more.
    const COLUMN_BYTES: u64 = 1_536;
    const STRUCT_COLUMN_BYTES: u64 = 4_096;
    let Columns::Own(columns) = &request.columns else { return Ok(()) };
    let bytes = match request.cell {
        CellKind::Struct => STRUCT_COLUMN_BYTES,
        CellKind::Binary | CellKind::O2 | CellKind::Payload => COLUMN_BYTES,
    };
    charge.grow(columns.len() as u64 * bytes)
}

/// Upper bound of the memory of parsed JSON, from its punctuation: one comma per timestamp, one
/// colon per field of a column or a lock entry.
fn parsed_bytes(json: &[u8]) -> u64 {
    // A list grows by doubling.
    const TIMESTAMP_BYTES: u64 = 16;
    const FIELD_BYTES: u64 = 40;
    // A text of a key has two quotes; a distinct one costs the most.
    const QUOTE_BYTES: u64 = 72;
    let (mut commas, mut colons, mut quotes) = (0_u64, 0_u64, 0_u64);
    for byte in json {
        commas += u64::from(*byte == b',');
        colons += u64::from(*byte == b':');
        quotes += u64::from(*byte == b'"');
    }
    // Only keys have more texts than fields and commas can account for.
    let texts = quotes.saturating_sub(8 * colons);
    commas * TIMESTAMP_BYTES + colons * FIELD_BYTES + texts * QUOTE_BYTES
}

/// The key of a ticket in the service's tables, of fixed size.
pub(super) fn key(ticket: &[u8]) -> Arc<[u8]> {
    Arc::from(&Sha256::digest(ticket)[..])
}

/// The request of a ticket, and its lease if it has one.
///
/// # Errors
/// [`RequestError`].
pub(super) fn read(ticket: &[u8]) -> Result<(Request, Option<LeaseId>), RequestError> {
    match parse(ticket)? {
        Some(Ticket { lease, request, .. }) => {
            Ok((Request::parse(request.get().as_bytes())?, lease.as_deref().map(LeaseId::from)))
        }
        None => Ok((Request::parse(ticket)?, None)),
    }
}

/// The lease of a ticket, if it has one.
pub(super) fn lease(ticket: &[u8]) -> Option<LeaseId> {
    parse(ticket).ok()??.lease.as_deref().map(LeaseId::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_ticket_has_a_fixed_size() {
        let ticket = br#"{"columns": {"a": "A/B"}, "timestamps": [1]}"#;
        let padded = [&ticket[..], &[b' '; 100_000]].concat();
        assert_eq!((key(ticket).len(), key(&padded).len()), (32, 32));
        assert_ne!(key(ticket), key(&padded));
        assert_eq!(key(ticket), key(ticket));
    }

    #[test]
    fn a_request_is_charged_with_what_it_can_be_parsed_into() {
        let budget = crate::budget::Budget::new(4_000_000);
        let client = budget.client("one");
        let list = format!("[{}1]", "1,".repeat(10_000));
        let charge = charge(list.as_bytes(), &client).unwrap();
        assert!(charge.bytes() >= 10_000 * (2 + 8), "{}", charge.bytes());
        let list = format!("[{}1]", "1,".repeat(100_000));
        assert!(super::charge(list.as_bytes(), &client).is_err());
        drop(charge);
        let texts: Vec<String> = (0..3_000).map(|n| format!("\"{n}\"")).collect();
        let keys = format!(r#"{{"keys": {{"k": [{}]}}}}"#, texts.join(","));
        let charge = super::charge(keys.as_bytes(), &client).unwrap();
        assert!(charge.bytes() >= 3_000 * 144, "{}", charge.bytes());
    }

    #[test]
    fn the_schema_of_many_columns_is_charged_and_that_of_a_configured_table_is_not() {
        let budget = crate::budget::Budget::new(64 << 20);
        let client = budget.client("one");
        let columns: Vec<String> = (0..10_000).map(|n| format!(r#""c{n}": "A/B""#)).collect();
        let charged = |cell: &str| {
            let columns = columns.join(", ");
            let json =
                format!(r#"{{"columns": {{{columns}}}, "cell": "{cell}", "timestamps": [1]}}"#);
            let request = Request::parse(json.as_bytes()).unwrap();
            let mut charge = client.charge(0, "test").unwrap();
            charge_schema(&mut charge, &request).map(|()| charge.bytes())
        };
        assert_eq!(charged("binary"), Ok(15_360_000));
        assert!(charged("struct").is_err(), "more than a quarter of the budget");
        let request = Request::parse(br#"{"table": "t", "timestamps": [1]}"#).unwrap();
        let mut charge = client.charge(1, "test").unwrap();
        charge_schema(&mut charge, &request).unwrap();
        assert_eq!(charge.bytes(), 1);
    }

    #[test]
    fn a_ticket_carries_its_request_and_its_lease() {
        let request = br#"{"columns": {"a": "A/B"}, "timestamps": [1]}"#;
        let id = LeaseId::from("abc");
        let ticket = issue(request, Some(&id)).unwrap();
        assert!(ticket.starts_with(BEGIN));
        let (read_back, read_lease) = read(&ticket).unwrap();
        assert_eq!(read_back.columns, Request::parse(request).unwrap().columns);
        assert_eq!((read_lease, lease(&ticket)), (Some(id.clone()), Some(id)));
        assert_eq!(read(request).unwrap().1, None);
        assert!(issue(b"no json", None).is_err());
        assert!(read(br#"{"iovcache_ticket":1,"x":2}"#).is_err());
    }
}
