//! Selects versions by descriptions that a client supplies. Each one must agree with the source's
//! own description.
//!
//! ```text
//!  claims of one path ──▶ Source::list ──all versions──▶ found by id
//!                            │ path cannot be listed
//!                            └──▶ one look-up per claim, at its `from`, within its creation time
//!  found ──agrees──▶ the source's own description         not found or different: an error
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::try_join_all;

use super::contract::Source;
use super::error::SourceError;
use crate::error::coded;
use crate::object::{ClaimDiffers, CreationLimits, ObjectId, ObjectInfo, ObjectPath, VersionClaim};

/// Look-ups in parallel, if the source cannot list the path.
const PARALLEL: usize = 16;

/// Why a claimed version cannot be selected.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The source has no such version, or has it no longer.
    #[error("the source has no version {id} of {path} that may be seen")]
    Unknown {
        /// Path of the version.
        path: ObjectPath,
        /// Id of the version.
        id: ObjectId,
    },
    /// The source describes the version differently.
    #[error("version {id} of {path}: {difference}")]
    Differs {
        /// Path of the version.
        path: ObjectPath,
        /// Id of the version.
        id: ObjectId,
        /// The field that differs, with both values.
        difference: ClaimDiffers,
    },
    /// The source did not answer.
    #[error("cannot tell the versions of {path}")]
    Source {
        /// Path of the versions.
        path: ObjectPath,
        /// Answer of the source.
        #[source]
        error: SourceError,
    },
}

coded! { ClaimError {
    Unknown => NotFound 2013,
    Differs => InvalidArgument 2014,
    Source { error, .. } => error,
} }

/// Versions of `path` named in `claims`, by id, each as the source describes it.
///
/// `listed` holds all versions of the path if they are known. With `None` the source is asked once
/// per claimed id. The time is linear in the lengths of `claims` and `listed`.
///
/// # Errors
/// [`ClaimError`] for the first claim that disagrees with the source.
pub async fn select(
    source: &dyn Source,
    path: &ObjectPath,
    claims: &[VersionClaim],
    listed: Option<&[Arc<ObjectInfo>]>,
    limits: CreationLimits,
) -> Result<HashMap<ObjectId, Arc<ObjectInfo>>, ClaimError> {
    let mut found: HashMap<ObjectId, Option<Arc<ObjectInfo>>> =
        claims.iter().map(|claim| (claim.id, None)).collect();
    match listed {
        Some(versions) => {
            for version in versions.iter().filter(|version| limits.admit(version.created)) {
                if let Some(found) = found.get_mut(&version.id) {
                    *found = Some(Arc::clone(version));
                }
            }
        }
        None => {
            let mut asked: Vec<&VersionClaim> = claims.iter().collect();
            asked.sort_unstable_by_key(|claim| claim.id);
            asked.dedup_by_key(|claim| claim.id);
            for claims in asked.chunks(PARALLEL) {
                let asked = claims.iter().map(|claim| look_up(source, path, claim, limits));
                let told = try_join_all(asked).await.map_err(|error| {
                    let path = path.clone();
                    ClaimError::Source { path, error }
                })?;
                for version in told.into_iter().flatten() {
                    found.insert(version.id, Some(version));
                }
            }
        }
    }
    for claim in claims {
        let (path, id) = (path.clone(), claim.id);
        match found.get(&id).and_then(Option::as_ref) {
            None => return Err(ClaimError::Unknown { path, id }),
            Some(version) => claim.check(version).map_err(|difference| ClaimError::Differs {
                path,
                id,
                difference,
            })?,
        }
    }
    Ok(found.into_iter().filter_map(|(id, version)| Some((id, version?))).collect())
}

/// The version that a claim names, from a source that cannot list the path.
async fn look_up(
    source: &dyn Source,
    path: &ObjectPath,
    claim: &VersionClaim,
    limits: CreationLimits,
) -> Result<Option<Arc<ObjectInfo>>, SourceError> {
    if !limits.admit(claim.created) {
        return Ok(None);
    }
    source.describe(path, claim.validity.from(), claim.created, claim.id).await
}
