//! Caches of a bounded size, shared by threads: when one is full, moka's policy decides what goes.
//!
//! ```text
//!  BoundedCache<ObjectId, Details> ──▶ key: an id, an id with a number, or a text ──▶ one moka cache
//!  BoundedCache<ObjectPath, …>         value: Arc<dyn Any>, its weight              type for all
//! ```
//!
//! moka's cache is compiled again for each pair of types; fourteen of them took a tenth of the time
//! that the library needs to compile.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::interval::Timestamp;
use crate::object::{ObjectId, ObjectPath};

/// A key in the form that all caches share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum CacheKey {
    Id([u8; 16]),
    IdAt([u8; 16], i64),
    Text(Arc<str>),
}

/// Types of keys. Different keys of one type have different [`CacheKey`]s.
pub(crate) trait Cached {
    fn cache_key(&self) -> CacheKey;
}

impl Cached for ObjectId {
    fn cache_key(&self) -> CacheKey {
        CacheKey::Id(*self.as_bytes())
    }
}

impl Cached for Uuid {
    fn cache_key(&self) -> CacheKey {
        CacheKey::Id(*self.as_bytes())
    }
}

impl Cached for (ObjectId, Timestamp) {
    fn cache_key(&self) -> CacheKey {
        CacheKey::IdAt(*self.0.as_bytes(), self.1.as_millis())
    }
}

impl Cached for str {
    fn cache_key(&self) -> CacheKey {
        CacheKey::Text(self.into())
    }
}

impl Cached for ObjectPath {
    fn cache_key(&self) -> CacheKey {
        CacheKey::Text(self.shared_text())
    }
}

/// A value of any type, with its weight.
#[derive(Clone)]
struct Weighed {
    value: Arc<dyn Any + Send + Sync>,
    weight: u32,
}

impl fmt::Debug for Weighed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weighed").field("weight", &self.weight).finish_non_exhaustive()
    }
}

/// A cache of values of one type. Clones share it.
pub(crate) struct BoundedCache<K: ?Sized, V> {
    values: moka::sync::Cache<CacheKey, Weighed>,
    weigh: fn(&V) -> u32,
    keys: PhantomData<fn(&K)>,
}

impl<K: ?Sized, V> Clone for BoundedCache<K, V> {
    fn clone(&self) -> Self {
        Self { values: self.values.clone(), weigh: self.weigh, keys: PhantomData }
    }
}

impl<K: ?Sized, V> fmt::Debug for BoundedCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundedCache").field("values", &self.values).finish_non_exhaustive()
    }
}

impl<K: Cached + ?Sized, V: Send + Sync + 'static> BoundedCache<K, V> {
    /// For this many values.
    pub(crate) fn new(values: u64) -> Self {
        Self::weighing(values, |_| 1)
    }

    /// For values of this weight together. A value is weighed when it is inserted.
    pub(crate) fn weighing(total: u64, weigh: fn(&V) -> u32) -> Self {
        Self::made(total, None, weigh)
    }

    /// Like [`weighing`](Self::weighing); a value is given up after `kept_for`.
    pub(crate) fn forgetting(total: u64, kept_for: Duration, weigh: fn(&V) -> u32) -> Self {
        Self::made(total, Some(kept_for), weigh)
    }

    fn made(total: u64, kept_for: Option<Duration>, weigh: fn(&V) -> u32) -> Self {
        let weight = |_: &CacheKey, weighed: &Weighed| weighed.weight;
        let mut builder = moka::sync::Cache::builder().max_capacity(total).weigher(weight);
        if let Some(kept_for) = kept_for {
            builder = builder.time_to_live(kept_for);
        }
        Self { values: builder.build(), weigh, keys: PhantomData }
    }

    fn weighed(&self, value: Arc<V>) -> Weighed {
        let weight = (self.weigh)(&value);
        Weighed { value, weight }
    }

    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        typed(self.values.get(&key.cache_key())?)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.values.contains_key(&key.cache_key())
    }

    pub(crate) fn insert(&self, key: &K, value: Arc<V>) {
        self.values.insert(key.cache_key(), self.weighed(value));
    }

    /// The value of `key`, or else a new one. Threads that make one at the same time get the same.
    pub(crate) fn get_with(&self, key: &K, make: impl FnOnce() -> Arc<V>) -> Arc<V> {
        if let Some(known) = self.get(key) {
            return known;
        }
        let made = make();
        let held = self.values.entry(key.cache_key()).or_insert(self.weighed(Arc::clone(&made)));
        typed(held.into_value()).unwrap_or(made)
    }

    /// The values, in no order.
    pub(crate) fn values(&self) -> impl Iterator<Item = Arc<V>> {
        self.values.iter().filter_map(|(_, weighed)| typed(weighed))
    }

    pub(crate) fn invalidate(&self, key: &K) {
        self.values.invalidate(&key.cache_key());
    }

    pub(crate) fn invalidate_all(&self) {
        self.values.invalidate_all();
    }
}

fn typed<V: Send + Sync + 'static>(weighed: Weighed) -> Option<Arc<V>> {
    weighed.value.downcast().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_type_differ_and_values_are_shared() {
        let [one, other] = [1, 2].map(|n| ObjectId::from_bytes([n; 16]));
        let by_id: BoundedCache<ObjectId, String> = BoundedCache::new(10);
        by_id.insert(&one, Arc::new("one".into()));
        assert_eq!((by_id.get(&one).unwrap().as_str(), by_id.get(&other)), ("one", None));
        let by_place: BoundedCache<(ObjectId, Timestamp), u64> = BoundedCache::new(10);
        let [early, late] = [-5, 5].map(Timestamp::from_millis);
        by_place.insert(&(one, early), Arc::new(7));
        assert_eq!(
            (by_place.get(&(one, early)), by_place.get(&(one, late))),
            (Some(7.into()), None)
        );
        let by_path: BoundedCache<ObjectPath, u64> = BoundedCache::new(10);
        let [a, b] = ["A/B", "A"].map(|path| ObjectPath::new(path).unwrap());
        let made = by_path.get_with(&a, || Arc::new(1));
        assert!(Arc::ptr_eq(&made, &by_path.clone().get_with(&a, || Arc::new(2))));
        assert_eq!((by_path.get(&b), by_path.values().count()), (None, 1));
        by_path.invalidate(&a);
        assert_eq!(by_path.get(&a), None);
        by_id.invalidate_all();
        assert_eq!(by_id.get(&one), None);
    }

    #[test]
    fn values_have_a_bounded_weight_together_and_a_limited_time() {
        let texts: BoundedCache<str, String> = BoundedCache::weighing(100, |text: &String| {
            u32::try_from(text.len()).unwrap_or(u32::MAX)
        });
        for n in 0..1000 {
            texts.insert(&n.to_string(), Arc::new("0123456789".into()));
        }
        texts.values.run_pending_tasks();
        let weight: usize = texts.values().map(|text| text.len()).sum();
        assert!((1..=100).contains(&weight), "{weight}");
        let short = BoundedCache::<str, u64>::forgetting(9, Duration::from_millis(20), |_| 1);
        short.insert("a", Arc::new(1));
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(short.get("a"), None);
    }
}
