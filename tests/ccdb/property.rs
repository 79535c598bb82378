//! For random uploads and requests the answer equals that of a linear scan.

use proptest::prelude::*;

use super::fake_ccdb::Upload;
use super::*;

/// A change of the server or a request to the source, one after another.
#[derive(Debug, Clone)]
enum Step {
    Upload { from: i64, length: i64, created: i64, run: u8 },
    Ask { at: i64, not_after: Option<i64>, not_before: Option<i64>, run: Option<u8>, hold: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let upload = (-20..100i64, 1..60i64, 1..40i64, 0..3u8)
        .prop_map(|(from, length, created, run)| Step::Upload { from, length, created, run });
    let limit = || proptest::option::weighted(0.3, -2..45i64);
    let run = proptest::option::weighted(0.3, 0..4u8);
    let ask = (-25..170i64, limit(), limit(), run, any::<bool>()).prop_map(
        |(at, not_after, not_before, run, hold)| Step::Ask { at, not_after, not_before, run, hold },
    );
    let mixed = proptest::collection::vec(prop_oneof![2 => upload.clone(), 3 => ask], 1..40);
    // Also forwards and backwards through time, at the end of a random history.
    (mixed, proptest::collection::vec(upload, 0..10), any::<bool>()).prop_map(
        |(mut all, more, backwards)| {
            all.extend(more);
            let mut times: Vec<i64> = (-25..170).step_by(9).collect();
            if backwards {
                times.reverse();
            }
            all.extend(times.into_iter().map(|at| Step::Ask {
                at,
                not_after: None,
                not_before: None,
                run: None,
                hold: true,
            }));
            all
        },
    )
}

/// Servers have no rule for two versions with the same creation time. So by time only the creation
/// time of the winner is compared; by listing, its id.
async fn run(kind: Kind, browse_limit: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let server = FakeCcdb::start(kind).await;
    // Every answer is requested and compared in full: creation times are in no order here.
    let options =
        CcdbOptions { browse_limit, refresh_millis: 0, listing_recheck_millis: 0, ..short() };
    let source = source(&server, options);
    let mut truth: Vec<ObjectInfo> = Vec::new();
    let mut held: Option<Arc<ObjectInfo>> = None;
    for step in steps {
        match step {
            Step::Upload { from, length, created, run } => {
                let bytes = format!("{from} {length} {created} {run} {}", truth.len());
                let upload = Upload::new("A/One", from, from + length)
                    .created(created)
                    .metadata("runNumber", &run.to_string())
                    .bytes(bytes.clone());
                truth.push(ObjectInfo {
                    path: ObjectPath::new("A/One").unwrap(),
                    id: id(server.upload(upload)),
                    validity: iovcache::ValidityInterval::new(at(from), at(from + length)).unwrap(),
                    created: at(created),
                    size_bytes: Some(bytes.len() as u64),
                    md5: None,
                    metadata: [("runNumber", run.to_string())].into(),
                });
            }
            Step::Ask { at: millis, not_after, not_before, run, hold } => {
                let mut query = query("A/One");
                query.limits.not_after = not_after.map(at);
                query.limits.not_before = not_before.map(at);
                query.metadata.extend(run.map(|run| ("runNumber".to_owned(), run.to_string())));
                let held_now = held.as_ref().filter(|_| hold);
                let known = source.look_up(&query, at(millis), held_now).await.unwrap();
                prop_assert!(known.span.contains(at(millis)));
                // A span that is answered must be right everywhere.
                let (from, until) = (known.span.from(), known.span.until());
                for moment in (-30..180).filter(|m| from <= at(*m) && at(*m) < until) {
                    let expected = truth
                        .iter()
                        .filter(|v| v.validity.contains(at(moment)) && query.matches(v))
                        .max_by_key(|v| v.rank());
                    let got = winner(&known, moment);
                    prop_assert_eq!(
                        got.as_ref().map(|v| v.created),
                        expected.map(|v| v.created),
                        "at {} of {}",
                        moment,
                        known.span
                    );
                    if from != at(millis) {
                        prop_assert_eq!(got.as_ref().map(|v| v.id), expected.map(|v| v.id));
                    }
                    if let Some(got) = got {
                        prop_assert!(query.matches(&got));
                        prop_assert!(
                            truth.iter().any(|v| v.id == got.id && v.validity == got.validity)
                        );
                    }
                }
                held = winner(&known, millis).or(held);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_that_of_a_linear_scan(
        steps in steps(),
        kind in proptest::sample::select(EVERY_KIND.to_vec()),
        // Never listed, listed until it has grown too large, always listed.
        browse_limit in proptest::sample::select(vec![0usize, 6, 256]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(kind, browse_limit, steps))?;
    }
}
