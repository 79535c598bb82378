//! Boost.Interprocess: a C++ program, compiled here.

use std::process::Command;

use crate::work::{Left, Took, Work};

pub(crate) fn measure(work: &Work) -> Result<Took, Left> {
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("boost");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/boost.cpp");
    let compiled = Command::new("g++")
        .args(["-O2", "-std=c++17", "-o"])
        .arg(&program)
        .args([source, "-lrt", "-pthread"])
        .output()
        .map_err(|error| Left::NotThere(format!("g++: {error}")))?;
    if !compiled.status.success() {
        let said = String::from_utf8_lossy(&compiled.stderr);
        return Err(match said.contains("boost/") {
            true => Left::NotThere("the headers of Boost are not installed".to_owned()),
            false => Left::Failed(said.into_owned()),
        });
    }
    let output = Command::new(program).args(work.arguments()).output()?;
    match output.status.success() {
        true => Took::parse(&String::from_utf8_lossy(&output.stdout)),
        false => Err(Left::Failed(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}
