//! One configuration for all settings: a file, the environment, the command line, and their
//! combined result.
#![cfg(feature = "cli")]

mod common;

use std::fs;
use std::process::{Output, Stdio};

use common::{iovcache, run, run_well};
use iovcache::server::{ByteSize, Config, SectionForm, sections};

fn show(environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = iovcache();
    command.args(["config", "show"]).args(arguments).stdin(Stdio::null());
    command.envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn the_settings_are_shown_with_their_origins_and_are_a_configuration_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("iovcache.toml");
    fs::write(
        &file,
        "memory = \"1GiB\"\nsegment = \"8MiB\"\n[[source]]\nurl = \"memory:\"\n\
         [tables.tpc]\nzeta = \"TPC/Z\"\nalpha = \"TPC/A\"\n",
    )
    .unwrap();
    let environment = [("IOVCACHE_SEGMENT", "16MiB"), ("IOVCACHE_CCDB_SERVER_ANSWER", "body")];
    let shown = show(&environment, &[file.to_str().unwrap(), "--max-timeframes", "7"]);
    assert!(shown.status.success(), "{shown:?}");
    let text = String::from_utf8(shown.stdout).unwrap();
    for line in [
        "memory = \"1GiB\"  # file, line 1",
        "segment = \"16MiB\"  # environment, IOVCACHE_SEGMENT",
        "answer = \"body\"  # environment, IOVCACHE_CCDB_SERVER_ANSWER",
        "max_timeframes = 7  # command line, --max-timeframes",
        "disk_size = \"16GiB\"  # default",
        "# From: file, line 3",
    ] {
        assert!(text.lines().any(|other| other == line), "no {line:?} in\n{text}");
    }
    let config = Config::parse(&text).unwrap();
    assert_eq!((config.segment, config.max_timeframes), (ByteSize::new(16 << 20), 7));
    // Columns keep the order in which they were written.
    let columns = config.columns();
    let names: Vec<_> = columns["tpc"].iter().map(|column| &*column.name).collect();
    assert_eq!(names, ["zeta", "alpha"]);
}

#[test]
fn a_configuration_to_begin_with_has_every_key_with_its_text_and_all_of_it_holds() {
    let text = run_well(&["config", "new"]);
    assert_eq!(Config::parse(&text).unwrap(), Config::default());
    let mut written = String::new();
    for line in text.lines() {
        match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with([' ', '[']) && !rest.ends_with('=') => written += rest,
            Some("[ccdb]" | "[ccdb_server]" | "[tls]" | "[limits]") => written += &line[1..],
            _ => continue,
        }
        written.push('\n');
    }
    assert!(written.contains("retries = 3"), "{written}");
    assert_eq!(Config::parse(&written).unwrap(), Config::default());
    for key in sections().iter().flat_map(|section| &section.keys) {
        assert!(text.contains(&format!("\n#{} =", key.field())) || key.name == "listen", "{key:?}");
    }
}

#[test]
fn faults_are_told_with_file_line_and_key_and_the_status_of_a_wrong_use() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("iovcache.toml");
    let file = file.to_str().unwrap();
    let told = |text: &str| {
        fs::write(file, text).unwrap();
        let output = run(&["config", "check", file]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, text) = told("memory = \"1GiB\"\n\n[ccdb]\nretires = 3\n");
    assert!(status == Some(2) && text.contains(&format!("{file}:4: ccdb.retires: ")), "{text}");
    let (status, text) = told("memory = \"4 apples\"\n");
    assert!(status == Some(2) && text.contains(&format!("{file}:1: memory: unknown")), "{text}");
    let (_, text) = told("fairmq_session = \"x\"\n[[source]]\nurl = \"gopher://x\"\n");
    for fault in [":1: fairmq_session: fairmq_segment is needed", ":3: source[0].url: "] {
        assert!(text.contains(fault), "{fault:?} in {text}");
    }
    assert_eq!(told("memory = \"1GiB\"\nlisten = \"127.0.0.1:0\"\n").0, Some(0));
    let wrong = show(&[("IOVCACHE_MEMORY", "much")], &[]);
    assert_eq!(wrong.status.code(), Some(2));
    assert_eq!(run(&["config", "check", "/no/such/file"]).status.code(), Some(3));
}

/// So every setting of the command line can also be set in the file.
#[test]
fn every_option_of_the_service_has_its_key_and_its_variable() {
    let help = run_well(&["serve", "--help"]);
    let known: Vec<String> = sections()
        .iter()
        .flat_map(|section| match section.form {
            SectionForm::List => vec![section.name.to_owned()],
            _ => section.keys.iter().map(|key| key.name.clone()).collect(),
        })
        .map(|name| format!("IOVCACHE_{}", name.replace('.', "_").to_uppercase()))
        .collect();
    let mut options = 0;
    for option in help.split("\n      --").skip(1) {
        let option = option.split_whitespace().collect::<Vec<_>>().join(" ");
        let variable = option.split("[env: ").nth(1).and_then(|rest| rest.split([']', '=']).next());
        let variable = variable.unwrap_or_else(|| panic!("--{option} has no variable"));
        let is_known = known.iter().any(|known| known == variable);
        assert!(is_known || variable == "IOVCACHE_CONFIG", "--{option}");
        options += 1;
    }
    assert!(options > 25, "{options}");
}
