//! The C ABI from outside: the header is the one that the code makes, and programs in C and C++
//! use the library under AddressSanitizer and UndefinedBehaviorSanitizer.

mod common;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::{env, fs};

use common::{Service, Version, put};
use iovcache::client::{Client, TableRequest};

const DRIFT: &str = "TPC/Calib/VDrift";
const TIMES: [i64; 7] = [1000, 2999, 3000, 4999, 5000, 8999, 1000];
const SANITIZE: [&str; 3] =
    ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_header_is_what_the_code_says() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["mod", "status", "attach", "resolve", "host", "table"] {
        builder = builder.with_src(root().join("src/ffi").join(file).with_extension("rs"));
    }
    let bindings = builder.with_src(root().join("src/shm/layout.rs")).generate().unwrap();
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let file = root().join("schemas/iovcache.h");
    if env::var_os("IOVCACHE_BLESS").is_some() {
        fs::write(&file, &made).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == made, "IOVCACHE_BLESS=1 cargo test --test capi makes it anew:\n{made}");
}

/// The static library, built as the README says.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let test = env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let arguments = "rustc --locked --quiet --lib --crate-type staticlib --no-default-features \
                     --features capi";
    let built = Command::new(env!("CARGO"))
        .args(arguments.split_whitespace())
        .current_dir(root())
        .env("CARGO_TARGET_DIR", profile.parent().unwrap())
        .status();
    assert!(built.unwrap().success(), "cargo {arguments}");
    profile.join("libiovcache.a")
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

fn with_library(more: &[&str]) -> Vec<String> {
    let mut options: Vec<String> = more.iter().map(|&option| option.to_owned()).collect();
    options.push(LIBRARY.display().to_string());
    options
}

/// Runs a program to its end, with `input` on stdin.
fn run(program: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", "600"])
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

/// Two versions of one path, the second created later and inside of the first.
fn repository(folder: &Path) -> PathBuf {
    let repository = folder.join("repository");
    let version =
        |from, until, created, bytes| Version { path: DRIFT, from, until, created, bytes };
    put(&repository, &version(1000, 9000, 1, b"drift 1"));
    put(&repository, &version(3000, 5000, 2, b"drift, the second"));
    repository
}

fn lines() -> String {
    let line = |at: &i64| match (3000..5000).contains(at) {
        true => format!("{at} 17 drift, the second\n"),
        false => format!("{at} 7 drift 1\n"),
    };
    TIMES.iter().map(line).collect()
}

/// Headers of what the service holds, and the table that keeps it.
async fn cells(url: &str) -> (Vec<u8>, iovcache::client::Table, Client) {
    let client = Client::connect(url).await.unwrap();
    let request = TableRequest::new().column("drift", DRIFT).timestamps(TIMES);
    let table = client.table(request).await.unwrap();
    let column = table.column("drift").unwrap();
    let rows = 0..table.rows();
    let cells = rows.flat_map(|row| column.header(row).unwrap().to_bytes()).collect();
    (cells, table, client)
}

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
    // Once by the device, once by the process that has attached.
    assert_eq!(told, lines().repeat(2));
    assert!(!socket.exists(), "a cache that is closed takes its socket along");
}

#[test]
fn misuse_is_a_status_and_no_crash() {
    let folder = tempfile::tempdir().unwrap();
    let options = with_library(&["-std=c11"]);
    let program = compile(folder.path(), "cc", "tests/capi_programs/misuse.c", &options);
    assert_eq!(well("misuse", &run(&program, &[], b"")), "done\n");
}

#[test]
fn the_header_for_cpp_needs_no_exceptions_and_no_more_than_cpp17() {
    let folder = tempfile::tempdir().unwrap();
    for standard in ["-std=c++17", "-std=c++20"] {
        let options = with_library(&[standard, "-fno-exceptions", "-fno-rtti"]);
        compile(folder.path(), "c++", "tests/capi_programs/forged.cpp", &options);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_headers_reach_no_byte_outside_of_a_live_block() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::over(&repository(folder.path()), &[]);
    let (cells, _table, _client) = cells(&service.unix()).await;
    let options = with_library(&["-std=c++17"]);
    let program = compile(folder.path(), "c++", "tests/capi_programs/forged.cpp", &options);
    let socket = service.attach();
    let seed = uuid::Uuid::new_v4().as_u64_pair().0.to_string();
    // 100,000,000 and more by IOVCACHE_FORGED, which takes some minutes.
    let count = env::var("IOVCACHE_FORGED").unwrap_or_else(|_| "1000000".to_owned());
    let arguments = [socket.to_str().unwrap(), count.as_str(), seed.as_str()];
    let told = well(&format!("seed {seed}"), &run(&program, &arguments, &cells));
    eprintln!("{count} headers from seed {seed}: {told}");
    let refused = told.split(", ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(refused.parse::<u64>().unwrap() > count.parse::<u64>().unwrap() / 2, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn boost_opens_a_segment_with_a_name_of_fairmq_as_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let shmid = format!("{:08x}", uuid::Uuid::new_v4().as_fields().0);
    let named = ["--fairmq-shmid", shmid.as_str(), "--fairmq-segment", "3"];
    let service = Service::over(&repository(folder.path()), &named);
    let (cells, _table, _client) = cells(&service.unix()).await;
    let program =
        compile(folder.path(), "c++", "tests/capi_programs/boost.cpp", &["-std=c++17".to_owned()]);
    let name = format!("fmq_{shmid}_m_3");
    let told = well("boost", &run(&program, &[&name], &cells));
    let (size, told) = told.split_once('\n').unwrap();
    assert_eq!(size, (16 << 20).to_string(), "the size of the segment, as Boost sees it");
    let wanted: String =
        lines().lines().map(|line| line.split_once(' ').unwrap().1.to_owned() + "\n").collect();
    assert_eq!(told, wanted);

    // Our bytes are those of the same fields in C++.
    let header = iovcache::shm::MetaHeader::managed(
        0x3132,
        0x2122_2324_2526_2730,
        0x0102_0304_0506_0708,
        0x1112_1314_1516_1718,
    );
    let output = run(&program, &["header"], b"");
    assert!(output.status.success());
    assert_eq!(output.stdout, header.to_bytes());
}

/// The Arrow libraries for C++ that come with pyarrow, which `./test` installs.
fn pyarrow() -> Option<PathBuf> {
    let test = env::current_exe().unwrap();
    let python = test.ancestors().nth(3)?.join("python/bin/python");
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
    // What is asked for in vain is said in the service's words.
    let output = run(&program, &[&url, "No/Such/Path", "1000"], b"");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("[IOV-") && told.contains("No/Such/Path"), "{told}");
}
