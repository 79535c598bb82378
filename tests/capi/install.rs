//! The libraries as installed by users: built by cargo, or installed by cargo-c.

use super::*;

/// Builds a program as a user does, and runs it from an unrelated folder.
fn built_and_run(folder: &Path, options: &[&str], libraries: &Path) -> String {
    let program = folder.join("abi");
    let source = folder.join("abi.c");
    let text = "#include <iovcache.h>\n#include <stdio.h>\n\
                int main(void) { printf(\"%u %s\\n\", iovc_abi_version(), iovc_strerror(2)); }\n";
    fs::write(&source, text).unwrap();
    let mut command = Command::new("cc");
    command.arg(&source).arg("-o").arg(&program).args(options);
    let said = String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
    assert!(program.exists(), "{command:?}:\n{said}");
    let output = Command::new(&program).env("LD_LIBRARY_PATH", libraries).output().unwrap();
    well("abi", &output)
}

#[test]
fn a_program_links_the_shared_library_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (headers, libraries) = (root().join("schemas"), &*LIBRARIES);
    let [headers, found] = [&headers, libraries].map(|folder| folder.display().to_string());
    let options = ["-I", &headers, "-L", &found, "-liovcache"];
    assert_eq!(built_and_run(folder.path(), &options, libraries), "2 not found\n");
}

#[test]
fn cargo_c_installs_headers_libraries_and_a_file_for_pkg_config() {
    let there = Command::new("cargo-cinstall").arg("--version").output();
    if !there.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no cargo-c; ./test --nightly installs it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let installed = Command::new("cargo-cinstall")
        .args(["cinstall", "--locked", "--debug", "--prefix=/usr", "--libdir=/usr/lib"])
        .args(["--no-default-features", "--features", "capi", "--destdir"])
        .arg(folder.path())
        .current_dir(root())
        .env("CARGO_TARGET_DIR", target().join("cargo-c"))
        .output()
        .unwrap();
    well("cargo cinstall", &installed);
    let usr = folder.path().join("usr");
    for file in [
        "include/iovcache.h",
        "include/iovcache.hpp",
        "lib/libiovcache.a",
        "lib/libiovcache.so",
        "lib/pkgconfig/iovcache.pc",
    ] {
        assert!(usr.join(file).exists(), "{file}");
    }
    let told = |arguments: &[&str]| {
        let output = Command::new("pkg-config")
            .args(arguments)
            .arg("iovcache")
            .env("PKG_CONFIG_PATH", usr.join("lib/pkgconfig"))
            .env("PKG_CONFIG_SYSROOT_DIR", folder.path())
            .env("PKG_CONFIG_ALLOW_SYSTEM_CFLAGS", "1")
            .env("PKG_CONFIG_ALLOW_SYSTEM_LIBS", "1")
            .output();
        well("pkg-config", &output.unwrap())
    };
    assert_eq!(told(&["--modversion"]).trim(), env!("CARGO_PKG_VERSION"));
    let libraries = usr.join("lib");
    let flags = told(&["--cflags", "--libs"]);
    let flags: Vec<&str> = flags.split_whitespace().collect();
    assert_eq!(built_and_run(folder.path(), &flags, &libraries), "2 not found\n");
    // The soname is one that a loader finds.
    let output = Command::new("readelf").arg("-d").arg(libraries.join("libiovcache.so")).output();
    let told = well("readelf", &output.unwrap());
    let soname = told.lines().find(|line| line.contains("SONAME")).unwrap();
    let soname = soname.split(['[', ']']).nth(1).unwrap();
    assert!(libraries.join(soname).exists(), "{soname}");
}

#[test]
fn a_project_of_a_user_finds_the_cmake_package_and_the_files_for_pkg_config() {
    for tool in ["cmake", "pkg-config"] {
        if Command::new(tool).arg("--version").output().is_err() {
            eprintln!("skipped: no {tool}");
            return;
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let [build, prefix, consumer] =
        ["build", "prefix", "consumer"].map(|name| folder.path().join(name));
    let cmake = |arguments: &[String]| {
        let output = Command::new("cmake").args(arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {told}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let text = |path: &Path| path.display().to_string();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let install = text(&root().join("deploy/cmake"));
    let libraries = format!("-DIOVCACHE_LIBRARY_DIR={}", text(&LIBRARIES));
    let into = format!("-DCMAKE_INSTALL_PREFIX={}", text(&prefix));
    cmake(&words(&["-S", &install, "-B", &text(&build), &libraries, &into]));
    cmake(&words(&["--install", &text(&build)]));
    for file in ["iovcache.h", "iovcache.hpp", "iovcache/fairmq.hpp", "iovcache/cells.hpp"] {
        assert!(prefix.join("include").join(file).exists(), "{file}");
    }

    // FairMQ itself, or a package that leads to the stand-in.
    let mut prefixes = text(&prefix);
    match env::var_os("FAIRMQ_ROOT") {
        Some(fairmq) => prefixes = format!("{prefixes};{}", text(Path::new(&fairmq))),
        None if boost() => {
            let package = folder.path().join("fairmq/lib/cmake/FairMQ");
            fs::create_dir_all(&package).unwrap();
            let headers = text(&root().join("tests/capi/programs"));
            let config = format!(
                "add_library(FairMQ::FairMQ INTERFACE IMPORTED)\n\
                 set_target_properties(FairMQ::FairMQ PROPERTIES INTERFACE_INCLUDE_DIRECTORIES \
                 {headers} INTERFACE_LINK_LIBRARIES rt)\n"
            );
            fs::write(package.join("FairMQConfig.cmake"), config).unwrap();
            prefixes = format!("{prefixes};{}", text(&folder.path().join("fairmq")));
        }
        None => return,
    }
    let project = text(&root().join("tests/capi/programs/consumer"));
    let prefixes = format!("-DCMAKE_PREFIX_PATH={prefixes}");
    cmake(&words(&["-S", &project, "-B", &text(&consumer), &prefixes]));
    cmake(&words(&["--build", &text(&consumer)]));
    for (program, expected) in
        [("shared", "2 not found\n"), ("static", "2 not found\n"), ("device", "2 7\n")]
    {
        let output = Command::new(consumer.join(program)).output().unwrap();
        assert_eq!(well(program, &output), expected);
    }

    let output = Command::new("pkg-config")
        .args(["--cflags", "--libs", "iovcache"])
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
        .output()
        .unwrap();
    let flags = well("pkg-config", &output);
    let flags: Vec<&str> = flags.split_whitespace().collect();
    assert_eq!(built_and_run(folder.path(), &flags, &prefix.join("lib")), "2 not found\n");
    let output = Command::new("pkg-config")
        .args(["--modversion", "iovcache-fairmq"])
        .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
        .output()
        .unwrap();
    assert_eq!(well("pkg-config", &output).trim(), env!("CARGO_PKG_VERSION"));
}
