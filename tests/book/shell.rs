//! The shell blocks of the README and of the book run as they are written.
//!
//! A block marked `sh` can be pasted; one with placeholders (`http://ccdb.example`) is marked `text`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{docs, root};

/// The blocks of shell of a page, with the heading above each.
fn blocks(page: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(page).unwrap();
    let (mut heading, mut block, mut found) = (String::new(), None::<String>, Vec::new());
    for line in text.lines() {
        match &mut block {
            Some(_) if line == "```" => {
                found.push((heading.clone(), block.take().unwrap_or_default()));
            }
            Some(block) => *block += &format!("{line}\n"),
            None if line == "```sh" => block = Some(String::new()),
            None => {
                if let Some(name) = line.strip_prefix("## ") {
                    heading = name.to_owned();
                }
            }
        }
    }
    found
}

/// Stands in for cargo, whose result is there already: `run` runs the program of this build.
const CARGO: &str = r#"#!/bin/sh
set -e
case "$*" in
  "run --release -- "*) shift 3; exec "$IOVCACHE_BUILT/iovcache" "$@" ;;
  "build --release") mkdir -p target; ln -sfn "$IOVCACHE_BUILT" target/release ;;
  *) echo "the test does not know: cargo $*" >&2; exit 1 ;;
esac
"#;

/// Runs a script in a folder that looks like a checkout; gives what it printed.
fn run(folder: &Path, script: &str) -> String {
    let tools = folder.join("tools");
    fs::create_dir_all(&tools).unwrap();
    fs::write(tools.join("cargo"), CARGO).unwrap();
    fs::set_permissions(tools.join("cargo"), fs::Permissions::from_mode(0o755)).unwrap();
    let built = Path::new(env!("CARGO_BIN_EXE_iovcache")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{}:{path}", tools.display(), built.display());
    let sockets = folder.join("iov");
    let script = script.replace("/tmp/iov", &sockets.display().to_string());
    // Services that the script leaves running are ended with it.
    let script = format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2> /dev/null' EXIT\n{script}");
    let output = Command::new("timeout")
        .args(["--kill-after=5", "120", "bash", "-c", &script])
        .current_dir(folder)
        .env("PATH", path)
        .env("IOVCACHE_BUILT", built)
        // Another service may have the usual ports.
        .env("IOVCACHE_LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{printed}\n{error}", output.status);
    printed
}

#[test]
fn the_walk_with_a_folder_works_as_it_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (_, script) = blocks(&docs().join("walks.md")).into_iter().next().unwrap();
    let printed = run(folder.path(), &script);
    assert!(printed.contains("drift 2"), "{printed}");
}

#[test]
fn the_shell_blocks_of_the_readme_run_one_after_the_other_as_they_are_written() {
    let folder = tempfile::tempdir().unwrap();
    // `./test` runs this very test.
    symlink("/bin/true", folder.path().join("test")).unwrap();
    let mut script = String::new();
    for (heading, block) in blocks(&root().join("README.md")) {
        match heading.as_str() {
            // It compiles the native part (`./test` does that by itself), and libraries
            // (`tests/capi` has that block).
            "Five minutes: from Python" => assert!(block.contains("pip install ./python")),
            "Five minutes: from C and C++" => {}
            _ => script += &format!("echo '== {heading}'\n{block}"),
        }
    }
    let printed = run(folder.path(), &script);
    let part = |heading: &str| {
        let (_, rest) = printed.split_once(&format!("== {heading}\n")).expect(heading);
        rest.split("\n== ").next().unwrap().to_owned()
    };
    assert!(part("Quick start").contains("0 of them wrong"), "{printed}");
    let walk = part("Five minutes: serve a folder");
    assert!(walk.contains("\ndrift 2\n"), "{walk}");
    assert!(walk.matches("TPC/Calib/VDriftTgl").count() >= 3, "{walk}");
    assert!(part("Access control").contains("memory"), "{printed}");
}
