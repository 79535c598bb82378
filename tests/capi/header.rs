//! The headers are current, and compile with every supported compiler.

use super::*;

#[test]
fn the_header_is_what_the_code_says() {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    // With all modules below.
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = builder.with_src(root().join("src/ffi/mod.rs"));
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

#[test]
fn every_function_of_the_header_is_in_the_libraries_and_no_other_symbol_of_that_name() {
    let header = fs::read_to_string(root().join("schemas/iovcache.h")).unwrap();
    let words = header.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let is_type = |word: &str| word.ends_with("_t") || word.ends_with("_BYTES");
    let mut named: Vec<&str> =
        words.filter(|word| word.starts_with("iovc_") && !is_type(word)).collect();
    named.sort_unstable();
    named.dedup();
    for function in [
        "iovc_attach",
        "iovc_resolve",
        "iovc_resolve_many",
        "iovc_strerror",
        "iovc_detach",
        "iovc_abi_version",
        "iovc_local_open",
        "iovc_local_path",
        "iovc_local_get",
        "iovc_local_get_many",
        "iovc_local_notice",
        "iovc_local_wait",
        "iovc_view_release",
        "iovc_timeframe_get",
        "iovc_timeframe_object",
        "iovc_timeframe_consumed",
        "iovc_timeframe_release",
        "iovc_timeframe_event",
        "iovc_local_event",
    ] {
        assert!(named.contains(&function), "{function}");
    }
    let output = Command::new("nm")
        .args(["--dynamic", "--defined-only", "--format=just-symbols"])
        .arg(LIBRARIES.join("libiovcache.so"))
        .output()
        .unwrap();
    let told = well("nm", &output);
    let mut exported: Vec<&str> = told.lines().filter(|name| name.starts_with("iovc_")).collect();
    exported.sort_unstable();
    assert_eq!(exported, named);
}

#[test]
fn the_header_for_cpp_needs_no_exceptions_and_no_more_than_cpp17() {
    let folder = tempfile::tempdir().unwrap();
    for standard in ["-std=c++17", "-std=c++20"] {
        let options = with_library(&[standard, "-fno-exceptions", "-fno-rtti"]);
        compile(folder.path(), "c++", "tests/capi/programs/walk.cpp", &options);
    }
}

#[test]
fn the_headers_are_clean_for_every_compiler_with_warnings_as_errors() {
    let folder = tempfile::tempdir().unwrap();
    let fairmq = host_memory::fairmq("").unwrap_or_default();
    let programs = [
        ("c", "-std=c11", "#include <iovcache.h>"),
        ("cpp", "-std=c++17", "#include <iovcache.hpp>\n#include <iovcache/cells.hpp>"),
        ("cpp", "-std=c++20", "#include <iovcache.hpp>\n#include <iovcache/cells.hpp>"),
        ("cpp", "-std=c++17", "#include <iovcache/fairmq.hpp>"),
        ("cpp", "-std=c++20", "#include <iovcache/fairmq.hpp>"),
    ];
    for (number, (kind, standard, includes)) in programs.into_iter().enumerate() {
        let source = folder.path().join(format!("{number}.{kind}"));
        fs::write(&source, format!("{includes}\nint main(void) {{ return 0; }}\n")).unwrap();
        let compilers = if kind == "c" { ["gcc", "clang"] } else { ["g++", "clang++"] };
        for compiler in compilers {
            if Command::new(compiler).arg("--version").output().is_err() {
                eprintln!("skipped: no {compiler}");
                continue;
            }
            if includes.contains("fairmq") && fairmq.is_empty() {
                continue;
            }
            let mut command = Command::new(compiler);
            command.args([
                standard,
                "-Wall",
                "-Wextra",
                "-Wconversion",
                "-Werror",
                "-fsyntax-only",
            ]);
            command.arg("-I").arg(root().join("schemas")).arg(&source);
            if includes.contains("fairmq") {
                // The stand-in's own warnings are not the point.
                let compiles = |option: &&String| {
                    !option.is_empty()
                        && !option.starts_with("-l")
                        && !option.starts_with("-L")
                        && !option.starts_with("-W")
                };
                let more = fairmq.iter().filter(compiles);
                command.args(more.map(|option| if option == "-I" { "-isystem" } else { option }));
            }
            let output = command.output().unwrap();
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}:\n{told}");
        }
    }
}
