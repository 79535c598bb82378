//! Rebuilds the index of a repository in an object store, or compares it with the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::append::key_of;
use super::rebuild::IndexReport;
use super::row::IndexRow;
use super::store_reader::StoreIndex;
use super::store_writer::StoreIndexWriter;
use crate::source::SourceError;
use crate::source::repository::bucket::Bucket;
use crate::source::repository::store::StoreRepository;

/// Reads all properties of the repository in `bucket` and compares them with its index. Unless
/// `check` is set, the index is rebuilt. `progress` is called with the numbers of finished paths and
/// versions.
///
/// # Errors
/// [`SourceError`] if the store cannot be read or written.
pub async fn index_bucket(
    bucket: &Bucket,
    check: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<IndexReport, SourceError> {
    let store = StoreRepository::without_index(bucket.clone());
    let failed = |error| store.error("its index", &error);
    let writer = StoreIndexWriter::new(&*bucket.store, &bucket.prefix);
    // Files added from here on are kept: they may have versions that this walk missed.
    let replaced = writer.names().await.map_err(failed)?;
    let (known, unusable) = StoreIndex::new(Arc::clone(&bucket.store), &bucket.prefix).all().await;
    let mut known: BTreeMap<_, IndexRow> =
        known.into_iter().map(|row| (key_of(&row), row)).collect();
    let mut report = IndexReport { unusable, ..IndexReport::default() };
    let mut rows = Vec::new();
    for path in store.paths("").await? {
        let (found, problems) = store.rows(&path.path).await?;
        report.problems.extend(problems);
        report.compare(&mut known, &found, |known, _| known);
        if !check {
            rows.extend(found);
        }
        progress(report.paths, report.versions);
    }
    report.surplus = known.len() as u64;
    if !check {
        writer.replace(rows, &replaced).await.map_err(failed)?;
    }
    Ok(report)
}
