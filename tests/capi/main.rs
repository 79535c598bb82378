//! The C ABI from outside: the header equals the one generated from the code, and programs in C and
//! C++ use the library under AddressSanitizer and UndefinedBehaviorSanitizer.
#![cfg(feature = "cli")]

mod arrow;
#[path = "../common/mod.rs"]
mod common;
mod fairmq;
#[path = "../fake_ccdb/mod.rs"]
mod fake_ccdb;
mod header;
mod host;
mod host_memory;
mod install;
mod keys;
mod local;
mod readme;
mod renewal;
mod resolve;
mod timeframes;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::{env, fs};

use common::{Version, put};
use iovcache::client::{Client, Table, TableRequest};

const DRIFT: &str = "TPC/Calib/VDrift";
const TIMES: [i64; 7] = [1000, 2999, 3000, 4999, 5000, 8999, 1000];
const SANITIZE: [&str; 3] =
    ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Cargo's target folder, above the profiles.
fn target() -> PathBuf {
    let test = env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().to_owned()
}

/// The folder of the static and shared libraries, built as the README describes but without
/// `--release`.
static LIBRARIES: LazyLock<PathBuf> = LazyLock::new(|| {
    let arguments = "rustc --locked --quiet --lib --crate-type staticlib,cdylib \
                     --no-default-features --features capi";
    let built = common::cargo()
        .args(arguments.split_whitespace())
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target())
        .status();
    assert!(built.unwrap().success(), "cargo {arguments}");
    target().join("debug")
});

fn well(what: &str, output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{told}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Compiles a program of this repository into `folder`.
fn compile(folder: &Path, compiler: &str, source: &str, options: &[String]) -> PathBuf {
    let source = root().join(source);
    let program = folder.join(source.file_stem().unwrap());
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-Werror", "-O1"]).args(SANITIZE);
    command.arg("-I").arg(root().join("schemas")).arg(&source).arg("-o").arg(&program);
    command.args(options).args(["-lpthread", "-ldl", "-lm", "-lrt"]);
    let said = String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
    assert!(program.exists(), "{command:?}:\n{said}");
    program
}

/// Options that link a program to the static library.
fn with_library(more: &[&str]) -> Vec<String> {
    let mut options: Vec<String> = more.iter().map(|&option| option.to_owned()).collect();
    options.push(LIBRARIES.join("libiovcache.a").display().to_string());
    options
}

/// Runs a program to its end, with `input` on stdin.
fn run(program: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", "1800"])
        .arg(program)
        .args(arguments)
        .env("ASAN_OPTIONS", "detect_stack_use_after_return=1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// Whether Boost.Interprocess is installed; `.ci/run` does that.
fn boost() -> bool {
    let there = Path::new("/usr/include/boost/interprocess/managed_shared_memory.hpp").exists();
    if !there {
        eprintln!("skipped: Boost.Interprocess is not installed (Debian: libboost-dev)");
    }
    there
}

fn version<'a>(path: &'a str, from: i64, until: i64, created: i64, bytes: &'a [u8]) -> Version<'a> {
    Version { path, from, until, created, bytes }
}

/// Two versions of one path; the second is created later and lies inside the first.
fn repository(folder: &Path) -> PathBuf {
    let repository = folder.join("repository");
    put(&repository, &version(DRIFT, 1000, 9000, 1, b"drift 1"));
    put(&repository, &version(DRIFT, 3000, 5000, 2, b"drift, the second"));
    repository
}

/// Output of the examples for [`TIMES`].
fn lines() -> String {
    let line = |at: &i64| match (3000..5000).contains(at) {
        true => format!("{at} 17 drift, the second\n"),
        false => format!("{at} 7 drift 1\n"),
    };
    TIMES.iter().map(line).collect()
}

/// The headers of a table's column, one per row, as they cross the wire.
fn bytes_of(table: &Table, column: &str) -> Vec<u8> {
    let column = table.column(column).unwrap();
    (0..table.rows()).flat_map(|row| column.header(row).unwrap().to_bytes()).collect()
}

/// Headers of resident objects, and the table that pins them.
async fn cells(url: &str) -> (Vec<u8>, Table, Client) {
    let client = Client::connect(url).await.unwrap();
    let request = TableRequest::new().column("drift", DRIFT).timestamps(TIMES);
    let table = client.table(request).await.unwrap();
    (bytes_of(&table, "drift"), table, client)
}
