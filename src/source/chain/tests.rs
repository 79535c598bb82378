//! Tests of the chain.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ChainSource, Link, Remap};
use crate::interval::{Timestamp, ValidityInterval};
use crate::object::{ObjectId, ObjectInfo, ObjectPath, Query};
use crate::source::switch::Switch;
use crate::source::{MemorySource, Source, SourceError, VecBody, page_key};

fn path(text: &str) -> ObjectPath {
    ObjectPath::new(text).unwrap()
}

fn put(source: &MemorySource, name: &str, id: u8, from: i64, until: i64) {
    let at = Timestamp::from_millis;
    let info = ObjectInfo {
        path: path(name),
        id: ObjectId::from_bytes([id; 16]),
        validity: ValidityInterval::new(at(from), at(until)).unwrap(),
        created: at(i64::from(id)),
        size_bytes: None,
        md5: None,
        metadata: Default::default(),
    };
    source.put(info, vec![id; 3]);
}

/// First byte of the id in effect at a time, according to the chain.
async fn id_at(chain: &ChainSource, name: &str, at: i64) -> Option<u8> {
    let at = Timestamp::from_millis(at);
    let query = Query::all(path(name));
    let knowledge = chain.look_up(&query, at, None).await.unwrap();
    assert!(knowledge.span.contains(at));
    assert!(knowledge.versions.iter().all(|version| query.matches(version)));
    let valid = knowledge.versions.iter().filter(|version| version.validity.contains(at));
    valid.max_by_key(|version| version.rank()).map(|version| version.id.as_bytes()[0])
}

fn two() -> (Arc<Switch>, Arc<MemorySource>, ChainSource) {
    let (first, second) = (Arc::new(Switch::default()), Arc::new(MemorySource::new()));
    put(&first.memory, "A/B", 1, 10, 20);
    put(&first.memory, "A/B", 2, 15, 30);
    put(&second, "A/B", 9, 0, 100);
    put(&second, "Only/Second", 8, 0, 10);
    let links = vec![
        Link { source: Arc::clone(&first) as Arc<dyn Source>, prefixes: Vec::new() },
        Link { source: Arc::clone(&second) as Arc<dyn Source>, prefixes: Vec::new() },
    ];
    (first, second, ChainSource::new(links, Vec::new()))
}

#[tokio::test]
async fn the_first_that_has_something_decides_and_the_next_fills_its_gaps() {
    let (_, _, chain) = two();
    for (at, id) in [(-1, None), (0, Some(9)), (9, Some(9)), (10, Some(1)), (15, Some(2))] {
        assert_eq!(id_at(&chain, "A/B", at).await, id, "at {at}");
    }
    for (at, id) in [(29, Some(2)), (30, Some(9)), (99, Some(9)), (100, None)] {
        assert_eq!(id_at(&chain, "A/B", at).await, id, "at {at}");
    }
    assert_eq!(id_at(&chain, "Only/Second", 5).await, Some(8));
    // The answer for one time holds in the whole span that comes with it.
    let query = Query::all(path("A/B"));
    let knowledge = chain.look_up(&query, Timestamp::from_millis(50), None).await.unwrap();
    let span = ValidityInterval::new(Timestamp::from_millis(30), Timestamp::from_millis(100));
    assert_eq!(knowledge.span, span.unwrap());
}

#[tokio::test]
async fn when_the_first_is_down_the_next_answers_and_what_it_has_not_is_not_known() {
    let (first, _, chain) = two();
    first.off.store(true, Ordering::SeqCst);
    assert_eq!(id_at(&chain, "A/B", 12).await, Some(9));
    let query = Query::all(path("Nowhere"));
    let error = chain.look_up(&query, Timestamp::from_millis(1), None).await.unwrap_err();
    assert!(matches!(error, SourceError::Down { .. }));
    first.off.store(false, Ordering::SeqCst);
    assert_eq!(id_at(&chain, "A/B", 12).await, Some(1));
}

#[tokio::test]
async fn a_body_comes_from_any_source_that_has_it() {
    let (first, second, chain) = two();
    let query = Query::all(path("A/B"));
    let at = Timestamp::from_millis(12);
    let knowledge = chain.look_up(&query, at, None).await.unwrap();
    let version = knowledge.versions.iter().find(|version| version.id.as_bytes()[0] == 1);
    let version = version.unwrap();
    let mut body = VecBody::default();
    chain.fetch(version, &mut body).await.unwrap();
    assert_eq!(body.bytes(), [1; 3]);
    // The second source gets a copy of the version.
    put(&second, "A/B", 1, 10, 20);
    first.off.store(true, Ordering::SeqCst);
    let mut body = VecBody::default();
    chain.fetch(version, &mut body).await.unwrap();
    assert_eq!(body.bytes(), [1; 3]);
    let other = ObjectInfo { id: ObjectId::from_bytes([77; 16]), ..(**version).clone() };
    let error = chain.fetch(&other, &mut VecBody::default()).await.unwrap_err();
    assert!(matches!(error, SourceError::Down { .. }), "{error}");
}

#[tokio::test]
async fn pages_of_several_sources_are_merged_without_gaps_whatever_their_length() {
    let (first, second) = (Arc::new(MemorySource::new()), Arc::new(MemorySource::new()));
    for n in 0..40_u8 {
        let source = if n % 3 == 0 { &first } else { &second };
        put(source, "A/B", n, i64::from(n / 2) * 10, 1000);
    }
    // The second source has a copy of a version with another end: the first one's counts.
    put(&second, "A/B", 3, 10, 999);
    let link = |source: &Arc<MemorySource>| Link {
        source: Arc::clone(source) as Arc<dyn Source>,
        prefixes: Vec::new(),
    };
    let remap = Remap { path: path("Old/B"), to: path("A/B"), source: None };
    let chain = ChainSource::new(vec![link(&first), link(&second)], vec![remap]);
    for name in ["A/B", "Old/B"] {
        for limit in [1, 2, 7, 39, 40, 100] {
            let query = Query::all(path(name));
            let (mut after, mut found) = (None, Vec::new());
            loop {
                let page = chain.list_page(&query, after, limit).await.unwrap();
                assert!(page.whole && page.versions.len() <= limit);
                assert!(page.versions.iter().all(|version| version.path == query.path));
                after = page.versions.last().map(|version| page_key(version)).or(after);
                found.extend(page.versions);
                if !page.more {
                    break;
                }
            }
            assert_eq!(found.len(), 40, "{name} {limit}");
            assert!(found.is_sorted_by_key(|version| page_key(version)));
            assert!(found.iter().all(|version| version.validity.until().as_millis() == 1000));
        }
        let newest = chain.newest(&Query::all(path(name)), None, 3).await.unwrap().unwrap();
        let mut ids: Vec<u8> = newest.iter().map(|version| version.id.as_bytes()[0]).collect();
        ids.sort_unstable();
        assert_eq!(ids, [37, 38, 39]);
    }
}

#[tokio::test]
async fn prefixes_and_remaps_lead_elsewhere() {
    let (one, two) = (Arc::new(MemorySource::new()), Arc::new(MemorySource::new()));
    put(&one, "TPC/X", 1, 0, 10);
    put(&two, "TPC/X", 2, 0, 10);
    put(&two, "ITS/Y", 3, 0, 10);
    let links = vec![
        Link { source: Arc::clone(&one) as Arc<dyn Source>, prefixes: vec!["ITS".into()] },
        Link { source: Arc::clone(&two) as Arc<dyn Source>, prefixes: Vec::new() },
    ];
    let remaps = vec![
        Remap { path: path("Old/Y"), to: path("ITS/Y"), source: None },
        Remap { path: path("Test/X"), to: path("TPC/X"), source: Some(one) },
    ];
    let chain = ChainSource::new(links, remaps);
    assert_eq!(id_at(&chain, "TPC/X", 5).await, Some(2));
    assert_eq!(id_at(&chain, "Old/Y", 5).await, Some(3));
    assert_eq!(id_at(&chain, "Test/X", 5).await, Some(1));
    let query = Query::all(path("Test/X"));
    let at = Timestamp::from_millis(5);
    let knowledge = chain.look_up(&query, at, None).await.unwrap();
    let mut body = VecBody::default();
    chain.fetch(&knowledge.versions[0], &mut body).await.unwrap();
    assert_eq!(body.bytes(), [1; 3]);
}
