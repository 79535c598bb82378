//! The walk of `docs/local.md` in Rust, run as it is written but for the address.

use std::path::Path;
use std::sync::OnceLock;

use crate::common::Service;
use crate::setup::put_bytes;

static ADDRESS: OnceLock<String> = OnceLock::new();

fn address() -> String {
    ADDRESS.get().unwrap().clone()
}

include!("walk_program.rs");

#[test]
fn the_program_of_the_page_finds_the_bytes_of_the_object() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/local.md");
    let page = std::fs::read_to_string(page).unwrap();
    let block = page.split("```rust,no_run\n").nth(1).unwrap().split("```").next().unwrap();
    let literal = "\"grpc+unix:///tmp/iov/flight.sock\"";
    assert!(block.contains(literal));
    assert_eq!(block.replace(literal, "&address()"), include_str!("walk_program.rs"));
    let repository = tempfile::tempdir().unwrap();
    put_bytes(repository.path(), "TPC/Calib/VDriftTgl", (1_000, 9_000), 1, b"drift 1\n");
    put_bytes(repository.path(), "TPC/Calib/VDriftTgl", (3_000, 5_000), 2, b"drift 2\n");
    let service = Service::over(repository.path(), &[]);
    ADDRESS.set(service.unix()).unwrap();
    // From the service, and then from shared memory.
    for _ in 0..3 {
        main().unwrap();
    }
}
