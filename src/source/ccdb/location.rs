//! Ids, times and names in the addresses and headers of a CCDB server.

use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectPath};

/// The UUID at the end of an address, without its query.
///
/// The last 36 characters are read rather than the last element: on the Grid, servers have been
/// seen to write `…/CCDB/<path><UUID>`, without the slash.
pub(super) fn id_in_location(location: &str) -> Option<ObjectId> {
    let path = location.split(['?', '#']).next().unwrap_or_default();
    path.len().checked_sub(36).and_then(|start| path.get(start..)).and_then(ObjectId::parse)
}

/// The `from` in an address of a file-backed server, `…/<path>/<from>/<UUID>` or `<from>/<UUID>`.
///
/// Other addresses have numbers with another meaning there (`…/03/31287/<UUID>`).
pub(super) fn from_in_location(location: &str, path: &ObjectPath) -> Option<Timestamp> {
    let address = location.split(['?', '#']).next().unwrap_or_default();
    let (rest, id) = address.rsplit_once('/')?;
    ObjectId::parse(id)?;
    let (before, from) = rest.rsplit_once('/').unwrap_or(("", rest));
    let is_ours = before.is_empty()
        || before.strip_suffix(path.as_str()).is_some_and(|r| r.is_empty() || r.ends_with('/'));
    from.parse().ok().filter(|_| is_ours).map(Timestamp::from_millis)
}

/// Path and `from` in an address in listings of file-backed servers, `/<path>/<from>/<UUID>`.
///
/// Addresses with a host belong to storage elements, whose numbers have another meaning.
pub(super) fn path_in_location(location: &str) -> Option<(&str, Timestamp)> {
    let address = location.split(['?', '#']).next().unwrap_or_default();
    let (rest, id) = address.strip_prefix('/').filter(|a| !a.starts_with('/'))?.rsplit_once('/')?;
    ObjectId::parse(id)?;
    let (path, from) = rest.rsplit_once('/')?;
    from.parse().ok().map(|from| (path, Timestamp::from_millis(from)))
}

/// The name in `inline;filename="…"`.
pub(super) fn file_name_of(disposition: &str) -> Option<&str> {
    let (_, rest) = disposition.split_once("filename=\"")?;
    rest.strip_suffix('"')
}
