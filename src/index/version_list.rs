//! Versions of a timeline, by number. Later timelines keep the numbers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::object::{ObjectId, ObjectInfo};
use crate::sync::Mutex;

/// Versions per page; adding a version copies one page.
const PAGE: usize = 1024;
/// Up to this many versions are searched linearly; more are found by their ids.
const LINEAR_SEARCH_VERSIONS: usize = 32;

/// A version of a timeline. Loops over many versions read only their ids, which are contiguous in
/// memory.
#[derive(Debug, Clone)]
struct Version {
    id: ObjectId,
    info: Arc<ObjectInfo>,
}

/// List of versions to which versions are only added. A copy shares all full pages.
#[derive(Debug, Clone, Default)]
pub(super) struct VersionList {
    pages: Vec<Arc<Vec<Version>>>,
    len: u32,
    /// Numbers by id. All lists derived from one share the map, so it can hold numbers of other
    /// lists; results are compared with the list.
    numbers: Arc<Mutex<HashMap<ObjectId, Vec<u32>>>>,
}

impl VersionList {
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    /// The version with a number.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn info(&self, number: u32) -> &Arc<ObjectInfo> {
        &self.version(number).info
    }

    /// The id of the version with a number.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn id(&self, number: u32) -> ObjectId {
        self.version(number).id
    }

    fn version(&self, number: u32) -> &Version {
        &self.pages[number as usize / PAGE][number as usize % PAGE]
    }

    /// Whether the numbers of `other` mean the same versions here.
    pub(super) fn extends(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.numbers, &other.numbers) && self.len >= other.len
    }

    /// The numbers of the versions with this id.
    pub(super) fn with_id(&self, id: ObjectId) -> Vec<u32> {
        if self.len() <= LINEAR_SEARCH_VERSIONS {
            return (0..self.len).filter(|number| self.id(*number) == id).collect();
        }
        let numbers = self.numbers.lock();
        let known = numbers.get(&id).into_iter().flatten().copied();
        known.filter(|number| *number < self.len && self.id(*number) == id).collect()
    }

    /// The number of a version, which is added if it is missing.
    pub(super) fn number(&mut self, info: &Arc<ObjectInfo>) -> u32 {
        let known = self.with_id(info.id);
        let same = |number: &u32| {
            let known = self.info(*number);
            Arc::ptr_eq(known, info) || known == info
        };
        known.into_iter().find(same).unwrap_or_else(|| self.push(info))
    }

    /// Frees memory that was allocated for further versions of the last page.
    pub(super) fn shrink_to_fit(&mut self) {
        self.pages.shrink_to_fit();
        if let Some(page) = self.pages.last_mut().and_then(Arc::get_mut) {
            page.shrink_to_fit();
        }
    }

    fn push(&mut self, info: &Arc<ObjectInfo>) -> u32 {
        let number = self.len;
        if self.len().is_multiple_of(PAGE) {
            self.pages.push(Arc::default());
        }
        if let Some(page) = self.pages.last_mut() {
            Arc::make_mut(page).push(Version { id: info.id, info: Arc::clone(info) });
        }
        self.len += 1;
        let mut numbers = self.numbers.lock();
        if self.len() == LINEAR_SEARCH_VERSIONS + 1 {
            // Earlier versions were found by linear search and are not in the map yet.
            for earlier in 0..number {
                numbers.entry(self.pages[0][earlier as usize].id).or_default().push(earlier);
            }
        }
        if self.len() > LINEAR_SEARCH_VERSIONS {
            let known = numbers.entry(info.id).or_default();
            if !known.contains(&number) {
                known.push(number);
            }
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interval::{Timestamp, ValidityInterval};
    use crate::object::ObjectPath;

    fn version(id: u16, created: i64) -> Arc<ObjectInfo> {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        Arc::new(ObjectInfo {
            path: ObjectPath::new("A/B").unwrap(),
            id: ObjectId::from_bytes(bytes),
            validity: ValidityInterval::ALL,
            created: Timestamp::from_millis(created),
            size_bytes: None,
            md5: None,
            metadata: Default::default(),
        })
    }

    #[test]
    fn numbers_stay_and_lists_that_grew_apart_do_not_mix() {
        let mut first = VersionList::default();
        let numbers: Vec<u32> = (0..3000).map(|n| first.number(&version(n, 0))).collect();
        assert_eq!(numbers, (0..3000).collect::<Vec<u32>>());
        let (mut one, mut other) = (first.clone(), first.clone());
        assert_eq!(one.number(&version(5000, 0)), 3000);
        assert_eq!(other.number(&version(6000, 0)), 3000);
        assert_eq!(other.number(&version(5000, 0)), 3001);
        assert_eq!((one.id(3000), other.id(3001)), (version(5000, 0).id, version(5000, 0).id));
        assert_eq!(one.number(&version(7, 0)), 7);
        // Another creation time makes another version.
        assert_eq!(one.number(&version(7, 1)), 3001);
        assert!(one.extends(&first) && !first.extends(&one));
        assert_eq!(first.len(), 3000);
    }
}
