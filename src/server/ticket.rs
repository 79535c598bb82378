//! Tickets: the request, and the lease that was opened for it. Opaque to clients, but as a
//! shorthand a request is a ticket too.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::cache::LeaseId;
use crate::table::{Request, RequestError};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ticket<'a> {
    /// The form of this ticket: 1. It stands first, and tells it from a request.
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

/// The lease that a ticket names, if it names one.
pub(super) fn lease(ticket: &[u8]) -> Option<LeaseId> {
    parse(ticket).ok()??.lease.as_deref().map(LeaseId::from)
}

#[cfg(test)]
mod tests {
    use super::*;

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
