//! A cache whose objects lie in memory of the program around it.

use super::*;

/// How a program is compiled against FairMQ: the one in `FAIRMQ_ROOT`, else the stand-in over
/// Boost.Interprocess. `None`: there is neither.
pub(super) fn fairmq(standard: &str) -> Option<Vec<String>> {
    let programs = root().join("tests/capi/programs");
    let mut options = vec![standard.to_owned(), "-I".to_owned(), programs.display().to_string()];
    if let Some(fairmq) = env::var_os("FAIRMQ_ROOT").map(PathBuf::from) {
        let library = fairmq.join("lib").display().to_string();
        options.retain(|option| option.starts_with("-std"));
        options.push(format!("-isystem{}", fairmq.join("include").display()));
        options.push(format!("-I{}", copied_transport(&programs).display()));
        options.extend([format!("-L{library}"), format!("-Wl,-rpath,{library}")]);
        let libraries = ["-lfairmq", "-lFairLogger", "-lfmt", "-lboost_program_options"];
        options.extend(libraries.map(str::to_owned));
        return Some(options);
    }
    boost().then_some(options)
}

/// `transport.hpp` alone, away from the stand-in's folder.
fn copied_transport(programs: &Path) -> PathBuf {
    let folder = target().join("fairmq-tests");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(programs.join("transport.hpp"), folder.join("transport.hpp")).unwrap();
    folder
}

/// The bytes that `objects.hpp` expects of path number `path` at version number `version`.
fn object(path: u64, version: u64) -> Vec<u8> {
    let mut word = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(path * 1000 + version + 1);
    let size = 2000 + 37 * ((path * 31 + version * 17) % 900);
    let bytes = (0..size).map(|_| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        (word >> 24) as u8
    });
    bytes.collect()
}

pub(super) fn objects(folder: &Path, paths: u64, versions: u64) -> String {
    let repository = folder.join("repository");
    for path in 0..paths {
        for number in 0..versions {
            let (name, from) = (format!("Host/P{path}"), number as i64 * 1000);
            let bytes = object(path, number);
            put(&repository, &version(&name, from, from + 1000, number as i64 + 1, &bytes));
        }
    }
    format!("file://{}", repository.display())
}

#[test]
fn objects_in_the_memory_of_a_device_resolve_by_its_transport_and_evicting_frees_them() {
    let folder = tempfile::tempdir().unwrap();
    // 6 paths of 30 versions: three times what the memory of 1 MiB holds.
    let source = objects(folder.path(), 6, 30);
    let Some(more) = fairmq("-std=c++17") else { return };
    let options = [with_library(&["-Wconversion"]), more].concat();
    let program = "tests/capi/programs/host_memory.cpp";
    let program = compile(folder.path(), "c++", program, &options);
    for place in ["segment", "region"] {
        let session = uuid::Uuid::new_v4().simple().to_string();
        let told = run(&program, &[&source, &session, place, "6", "30", "54"], b"");
        let told = well("host_memory", &told);
        let numbers: Vec<u64> =
            told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [cells, wrong, allocated, released] = numbers[..] else { panic!("{told}") };
        let rounds = if place == "segment" { 54 } else { 36 };
        assert_eq!((cells, wrong), (rounds * 60, 0), "{place}: {told}");
        assert!(allocated > 2 * 180 && allocated == released, "evicted and loaded again: {told}");
    }
}

#[test]
fn a_device_in_c_gives_its_own_memory_and_gets_headers_behind_the_objects() {
    let folder = tempfile::tempdir().unwrap();
    let source = format!("file://{}", repository(folder.path()).display());
    let options = with_library(&["-std=c11", "-Wconversion"]);
    let program = compile(folder.path(), "cc", "tests/capi/programs/memory.c", &options);
    assert_eq!(well("memory", &run(&program, &[&source, DRIFT], b"")), "done\n");
}

/// The devices of `examples/fairmq`, against FairMQ or its stand-in; `None` if there is neither.
fn topology_devices(folder: &Path) -> Option<()> {
    let options = [fairmq("-std=c++17")?, vec!["-Wconversion".to_owned()]].concat();
    std::thread::scope(|scope| {
        for device in ["source", "condition_cache", "consumer", "sink"] {
            let mut options = options.clone();
            if device == "condition_cache" {
                options = [with_library(&[]), options].concat();
            }
            let source = format!("examples/fairmq/{device}.cpp");
            scope.spawn(move || compile(folder, "c++", &source, &options));
        }
    });
    Some(())
}

#[test]
fn devices_killed_and_restarted_at_random_read_no_wrong_byte_and_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = topology_devices(folder.path()) else { return };
    let kills = env::var("IOVCACHE_DEVICE_KILLS").unwrap_or_else(|_| "10".to_owned());
    for place in ["segment", "region"] {
        let told = Command::new("timeout")
            .args(["--kill-after=5", "1800", "python3"])
            .arg(root().join("examples/fairmq/topology.py"))
            .arg("--programs")
            .arg(folder.path())
            .args(["--place", place, "--kills", &kills, "--stops", "2"])
            .output()
            .unwrap();
        let told = well("topology.py", &told);
        eprintln!("{told}");
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["passed"], &told["wrong"]), (&true.into(), &0.into()), "{told}");
        assert!(told["cells"].as_u64() > Some(1000), "{told}");
    }
}
