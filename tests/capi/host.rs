//! A cache hosted by a device in C or C++, in segments or in a region.

use super::*;

#[test]
fn a_device_in_c_hosts_a_cache_and_another_process_attaches_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let source = format!("file://{}", repository(folder.path()).display());
    let program = compile(folder.path(), "cc", "examples/c/device.c", &with_library(&["-std=c11"]));
    let socket = folder.path().join("attach.sock");
    let times = TIMES.map(|at| at.to_string());
    let mut arguments = vec![source.as_str(), socket.to_str().unwrap(), DRIFT];
    arguments.extend(times.iter().map(String::as_str));
    let told = well("device", &run(&program, &arguments, b""));
    // Printed once by the device, once by the attached process.
    assert_eq!(told, lines().repeat(2));
    assert!(!socket.exists(), "a cache that is closed takes its socket along");
}

#[test]
fn a_device_in_cpp_hosts_a_cache_in_segments_in_a_region_and_under_names_of_fairmq() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path());
    // Each takes nearly all of the memory, so only one at a time fits, alone.
    for number in 0..2 {
        let big = vec![number; 1_000_000];
        put(&repository, &version(&format!("Walk/Big{number}"), 0, 9000, 1, &big));
    }
    let source = format!("file://{}", repository.display());
    let options = with_library(&["-std=c++17", "-fno-exceptions"]);
    let program = compile(folder.path(), "c++", "tests/capi/programs/walk.cpp", &options);
    let socket = folder.path().join("attach.sock");
    let region = folder.path().join("region");
    fs::write(&region, vec![0xAB; 1 << 20]).unwrap();
    let shmid = format!("{:08x}", uuid::Uuid::new_v4().as_fields().0);
    let host = ["host", &source, DRIFT, socket.to_str().unwrap()];
    for more in [&[][..], &["region", region.to_str().unwrap()], &["fairmq", &shmid]] {
        let told = well("walk", &run(&program, &[&host[..], more].concat(), b""));
        assert_eq!(told, "drift 1\ndrift, the second\ndrift 1\n");
    }
    assert!(!Path::new(&format!("/dev/shm/fmq_{shmid}_m_5")).exists());
    let held = fs::read(&region).unwrap();
    let marks = |bytes: &[u8]| held.windows(bytes.len()).any(|window| window == bytes);
    assert!(marks(&[1; 1000]), "the region is where it was placed");
}
