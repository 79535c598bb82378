//! Selecting versions by what somebody else says of them: each has to be one that the source itself
//! describes.
//!
//! ```text
//!  claims of one path ──▶ Source::list ──all versions──▶ found by id
//!                            │ not all
//!                            └──▶ one look-up per claim, at its `from`, within its creation time
//!  found ──agrees──▶ the source's own description         not found, or other: an error
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::try_join_all;

use super::contract::Source;
use super::error::SourceError;
use crate::error::coded;
use crate::object::{ClaimDiffers, CreationLimits, ObjectId, ObjectInfo, ObjectPath, VersionClaim};

/// Look-ups at a time, where the source does not list.
const PARALLEL: usize = 16;

/// Why a claimed version cannot be selected.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// The source does not tell of such a version, or not any more.
    #[error("the source has no version {id} of {path} that may be seen")]
    Unknown {
        /// The path.
        path: ObjectPath,
        /// The version.
        id: ObjectId,
    },
    /// The source describes it otherwise.
    #[error("version {id} of {path}: {difference}")]
    Differs {
        /// The path.
        path: ObjectPath,
        /// The version.
        id: ObjectId,
        /// The field, and both values.
        difference: ClaimDiffers,
    },
    /// The source did not answer.
    #[error("cannot tell the versions of {path}")]
    Source {
        /// The path.
        path: ObjectPath,
        /// What it answered.
        #[source]
        error: SourceError,
    },
}

coded! { ClaimError {
    Unknown => NotFound 2013,
    Differs => InvalidArgument 2014,
    Source { error, .. } => error,
} }

/// The versions of `path` that `claims` name, each as the source describes it; each id once.
///
/// `listed` holds all versions of the path, where they are known; else the source is asked for each
/// claim. Takes time linear in both.
///
/// # Errors
/// [`ClaimError`] for the first claim that the source does not bear out.
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

/// The version that a claim names, from a source that does not list the path.
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
