//! Arrow's C++ libraries together with ours.

use super::*;
use crate::common::Service;

/// The Arrow libraries for C++ that come with pyarrow, which `./test` installs.
fn pyarrow() -> Option<PathBuf> {
    let python = target().join("python/bin/python");
    let program = "import pyarrow, pathlib; print(pathlib.Path(pyarrow.__file__).parent)";
    let output = Command::new(python).args(["-c", program]).output().ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    folder.join("include/arrow/flight/api.h").exists().then_some(folder)
}

#[test]
fn a_consumer_in_cpp_asks_over_arrow_flight_and_reads_without_a_copy() {
    let Some(arrow) = pyarrow() else {
        eprintln!("skipped: no pyarrow beneath target/python; ./test installs it");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let service = Service::over(&repository(folder.path()), &[]);
    let mut options = with_library(&["-std=c++20", "-isystem"]);
    options.insert(2, arrow.join("include").display().to_string());
    for library in ["libarrow_flight.so", "libarrow.so"] {
        let named = fs::read_dir(&arrow).unwrap().map(|entry| entry.unwrap().path());
        let mut named = named.filter(|file| {
            file.file_name().unwrap().to_str().unwrap().starts_with(&format!("{library}."))
        });
        options.push(named.next().unwrap().display().to_string());
    }
    options.push(format!("-Wl,-rpath,{}", arrow.display()));
    let program = compile(folder.path(), "c++", "examples/cpp/reader.cpp", &options);
    let url = service.unix();
    let times = TIMES.map(|at| at.to_string());
    let mut arguments = vec![url.as_str(), DRIFT];
    arguments.extend(times.iter().map(String::as_str));
    assert_eq!(well("reader", &run(&program, &arguments, b"")), lines());
    // A failed request prints the service's message.
    let output = run(&program, &[&url, "No/Such/Path", "1000"], b"");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("[IOV-") && told.contains("No/Such/Path"), "{told}");
}
