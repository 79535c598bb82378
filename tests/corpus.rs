//! Runs every fuzz target's body over the kept corpus, unchanged and damaged at random: a fixed
//! fault stays fixed, also where `cargo fuzz` is not installed.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::Index;

#[allow(unreachable_pub, reason = "a library of its own there")]
#[path = "../fuzz/src/lib.rs"]
mod bodies;

type Body = fn(&[u8]);

/// A target: its name, its body, its inputs.
type Target = (&'static str, Body, Vec<Vec<u8>>);

static TARGETS: LazyLock<Vec<Target>> = LazyLock::new(|| {
    let bodies: [(&str, Body); 6] = [
        ("flight", bodies::flight),
        ("commands", bodies::commands),
        ("attach", bodies::attach),
        ("properties", bodies::properties),
        ("resolver", bodies::resolver),
        ("keys", bodies::keys),
    ];
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let sources = fs::read_dir(fuzz.join("fuzz_targets")).unwrap().count();
    assert_eq!(sources, bodies.len(), "each target has its body here");
    let inputs = |name| {
        let inputs = fs::read_dir(fuzz.join("corpus").join(name)).unwrap();
        inputs.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
    };
    bodies.into_iter().map(|(name, body)| (name, body, inputs(name))).collect()
});

#[test]
fn the_kept_corpus_is_read_without_a_fault() {
    for (name, body, inputs) in &*TARGETS {
        assert!(inputs.len() > 2, "{name} has {} inputs", inputs.len());
        for whole in inputs {
            body(whole);
            // And each input cut off at several lengths.
            for length in (0..whole.len()).step_by(whole.len() / 32 + 1) {
                body(&whole[..length]);
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Set(Index, u8),
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Number(Index, i64),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let extreme = prop::sample::select(vec![0, 1, -1, i64::MAX, i64::MIN, 1 << 40, 1 << 31]);
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        at().prop_map(Damage::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), extreme).prop_map(|(at, number)| Damage::Number(at, number)),
    ]
}

impl Damage {
    fn apply(self, input: &mut Vec<u8>) {
        let length = input.len();
        if length == 0 {
            return;
        }
        match self {
            Self::Set(at, byte) => input[at.index(length)] = byte,
            Self::Flip(at, bits) => input[at.index(length)] ^= bits,
            Self::Cut(at) => input.truncate(at.index(length)),
            Self::Insert(at, bytes) => {
                let at = at.index(length);
                input.splice(at..at, bytes);
            }
            Self::Number(at, number) => {
                let at = at.index(length);
                let end = (at + 8).min(length);
                input[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
        }
    }
}

proptest! {
    #[test]
    fn randomly_damaged_input_is_read_without_a_fault(
        which in any::<Index>(),
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        for (_, body, inputs) in &*TARGETS {
            let mut input = which.get(inputs).clone();
            damages.iter().cloned().for_each(|damage| damage.apply(&mut input));
            body(&input);
        }
    }
}
