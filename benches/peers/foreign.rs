//! Peers whose crates take minutes to compile: a separate package in this folder, built on demand
//! into the same target folder.

use std::path::Path;
use std::process::Command;

use crate::work::{Left, Took, Work};

pub(crate) fn lmdb(work: &Work) -> Result<Took, Left> {
    measure("lmdb", work)
}

pub(crate) fn iceoryx2(work: &Work) -> Result<Took, Left> {
    measure("iceoryx2", work)
}

fn measure(peer: &str, work: &Work) -> Result<Took, Left> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/foreign");
    // In the folder of the program under test: `target/release/iovcache`.
    let target = Path::new(env!("CARGO_BIN_EXE_iovcache")).ancestors().nth(2);
    let target = target.ok_or("the target folder has no parent")?.join("peers");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--quiet", "--features", peer, "--bin", peer])
        .arg("--manifest-path")
        .arg(package.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .map_err(|error| Left::NotThere(format!("cargo: {error}")))?;
    if !built.status.success() {
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        return Err(Left::NotThere(format!("it does not build here: {last}")));
    }
    let folder = tempfile::tempdir()?;
    let output = Command::new(target.join("release").join(peer))
        .arg(folder.path())
        .args(work.arguments())
        .output()?;
    match output.status.success() {
        true => Took::parse(&String::from_utf8_lossy(&output.stdout)),
        false => Err(Left::Failed(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}
