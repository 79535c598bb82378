//! A cache inside a device that makes segments of a FairMQ session: RESET and INIT in one process, and
//! names that are lost while it runs.

use super::fairmq::{Session, register_program};
use super::host_memory::{fairmq, objects};
use super::*;

/// Runs `renewal.cpp` in a session of its own; `None` if there is neither FairMQ nor its stand-in.
fn renewal(folder: &Path, arguments: &[[&str; 2]]) -> Option<Vec<String>> {
    let source = objects(folder, 6, 30);
    let options = [with_library(&["-Wconversion"]), fairmq("-std=c++17")?].concat();
    let program = compile(folder, "c++", "tests/capi/programs/renewal.cpp", &options);
    let register = register_program(folder).display().to_string();
    let outputs = arguments.iter().map(|[what, last]| {
        let session = Session::new();
        // FairMQ derives the id of a session from its name; the stand-in takes it as it is.
        let name = match env::var_os("FAIRMQ_ROOT") {
            Some(_) => &session.name,
            None => &session.shmid,
        };
        let told = run(&program, &[what, &source, name, &session.shmid, &register, last], b"");
        well(what, &told)
    });
    Some(outputs.collect())
}

#[test]
fn a_cache_reset_in_its_process_uses_no_number_twice_and_earlier_cells_give_no_other_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let rounds = env::var("IOVCACHE_RESETS").unwrap_or_else(|_| "6".to_owned());
    let Some(told) = renewal(folder.path(), &[["reset", &rounds]]) else { return };
    eprintln!("{}", told[0]);
    let count = |word: usize| told[0].split_whitespace().nth(word).unwrap().parse::<u64>().unwrap();
    assert!(count(0) > 0 && count(2) > 0, "{told:?}");
}

#[test]
fn an_embedded_cache_makes_lost_names_anew_and_issues_timeframes_in_flight_anew() {
    let folder = tempfile::tempdir().unwrap();
    renewal(folder.path(), &[["renew", "removed"], ["renew", "overwritten"]]);
}
