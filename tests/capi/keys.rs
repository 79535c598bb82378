//! Key columns beside the timestamps, handed over by the Arrow C Data Interface.

use super::*;

const COLUMNS: &str = r#"{
    "information": {"path": "Run/Information", "key": "run", "as": "timestamp"},
    "vertex": {"path": [{"from": 1, "until": 1, "path": "Vertex/Old"}, {"path": "Vertex/New"}],
               "key": "run"},
    "once": {"path": "Vertex/New", "key": "run", "uniform": true}}"#;
/// Strings choose no path by ranges and are no timestamps.
const COLUMNS_OF_STRINGS: &str =
    r#"{"once": {"path": "Vertex/New", "key": "run", "uniform": true}}"#;

/// The program, and a repository whose objects it asks for.
struct Device {
    folder: tempfile::TempDir,
    program: PathBuf,
    source: String,
}

impl Device {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("repository");
        for (path, from, until, bytes) in [
            ("Run/Information", 1, 2, "information 1"),
            ("Run/Information", 2, 3, "information 2"),
            ("Vertex/Old", 0, 1000, "old"),
            ("Vertex/New", 0, 500, "early"),
            ("Vertex/New", 500, 1000, "late"),
        ] {
            put(&repository, &version(path, from, until, 1, bytes.as_bytes()));
        }
        let options = with_library(&["-std=c11"]);
        let program = compile(folder.path(), "cc", "tests/capi/programs/keys.c", &options);
        let source = format!("file://{}", repository.display());
        Self { folder, program, source }
    }

    fn run(&self, layout: &str, columns: &str, names: &[&str]) -> Output {
        assert!(self.folder.path().exists());
        run(&self.program, &[&[&self.source, layout, columns], names].concat(), b"")
    }
}

/// Output of the program for a column.
fn cells(name: &str, rows: [&str; 5]) -> String {
    rows.iter().map(|row| format!("{name} {row}\n")).collect()
}

#[test]
fn a_key_in_every_layout_of_arrow_chooses_the_objects_of_its_rows() {
    let device = Device::new();
    let names = ["information", "vertex", "once"];
    let [one, two] = ["information 1", "information 2"];
    // The timestamps are 10, 600, 20, 700 and 800; the runs 1, 2, 1, 2 and none.
    let once = cells("once", ["early", "late", "early", "late", "null"]);
    let table = cells("information", [one, two, one, two, "null"])
        + &cells("vertex", ["old", "late", "old", "late", "null"])
        + &once;
    for layout in ["int8", "uint16", "int32", "uint64", "dictionary", "run-end"] {
        let printed = well(layout, &device.run(layout, COLUMNS, &names));
        // The table of the timeframe, and that of a request with the same rows.
        assert_eq!(printed, table.repeat(2), "{layout}");
    }
    let printed = well("string", &device.run("string", COLUMNS_OF_STRINGS, &["once"]));
    assert_eq!(printed, once.repeat(2));
}

#[test]
fn a_wrong_key_is_an_error_in_c_with_its_code_and_the_rows_are_taken_over() {
    let device = Device::new();
    for (layout, columns, said) in [
        ("missing", COLUMNS, ["[IOV-1040]", "\"information\" depends on the key \"run\""]),
        ("double", COLUMNS, ["[IOV-1043]", "\"run\" is Float64"]),
        ("string", COLUMNS, ["[IOV-1045]", "column \"information\" needs integers of the key"]),
        ("overflow", COLUMNS, ["[IOV-1046]", "9223372036854775808 in row 3"]),
        ("short", COLUMNS, ["[IOV-7131]", "Arrow C data"]),
    ] {
        let output = device.run(layout, columns, &["once"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        // Status 3 is a failed call; a leak or a bad access would be the sanitizers' own.
        assert_eq!(output.status.code(), Some(3), "{layout}: {told}");
        assert!(said.iter().all(|part| told.contains(part)), "{layout}: {told}");
    }
}
