//! Real faults: processes that are killed and stopped, a full file system, a slow server.
//!
//! ```text
//!  this process ──starts, kills, stops──▶ services, consumers (this very program), a CCDB
//!       │                                      │
//!       └── after each: pins, places and bytes add up, no file is left, every byte that a
//!           survivor reads is right
//! ```
//!
//! Random tests print their seed, and `IOVCACHE_FAULTS_SEED` repeats it. `IOVCACHE_CONSUMER_KILLS`
//! and `IOVCACHE_SERVICE_KILLS` set the number of kills.
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;
mod consumer;
mod consumers;
mod data;
#[path = "../fake_ccdb/mod.rs"]
mod fake_ccdb;
mod loading;
mod memory;
mod random;
mod restart;
mod stopping;

/// Not a test of its own: the process of a consumer.
#[test]
fn the_process_of_a_consumer() {
    consumer::child::run();
}

/// Every row of the page of faults names a test that exists.
#[test]
fn the_page_of_faults_names_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/faults.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert_eq!(rows.len(), 37);
    for (number, row) in rows.iter().enumerate() {
        assert!(row.starts_with(&format!("| {} |", number + 1)), "{row}");
        let named: Vec<(&str, &str)> =
            row.split('`').filter_map(|word| word.split_once("::")).collect();
        assert!(!named.is_empty(), "{row}");
        for (file, name) in named {
            let beside = ["src/", "python/"].iter().any(|folder| file.starts_with(folder));
            let path = if beside { root.join(file) } else { root.join("tests").join(file) };
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let there =
                text.contains(&format!("fn {name}(")) || text.contains(&format!("def {name}("));
            assert!(there, "row {}: {file} has no test {name}", number + 1);
        }
    }
}
