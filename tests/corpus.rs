//! Every body of a fuzz target over the corpus that is kept, so that what was once found stays found.

use std::fs;
use std::path::Path;

#[allow(unreachable_pub, reason = "a library of its own there")]
#[path = "../fuzz/src/lib.rs"]
mod bodies;

#[test]
fn the_kept_corpus_is_read_without_a_fault() {
    type Body = fn(&[u8]);
    let targets: [(&str, Body); 6] = [
        ("flight", bodies::flight),
        ("commands", bodies::commands),
        ("attach", bodies::attach),
        ("properties", bodies::properties),
        ("resolver", bodies::resolver),
        ("keys", bodies::keys),
    ];
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let sources = fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count();
    assert_eq!(sources, targets.len(), "each target has its body here");
    for (name, body) in targets {
        let mut inputs = 0;
        for entry in fs::read_dir(fuzz.join("corpus").join(name)).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            let whole = fs::read(&path).unwrap();
            body(&whole);
            // And what is left where it breaks off.
            for length in (0..whole.len()).step_by(whole.len() / 32 + 1) {
                body(&whole[..length]);
            }
            inputs += 1;
        }
        assert!(inputs > 2, "{name} has {inputs} inputs");
    }
}
