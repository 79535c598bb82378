//! MetaHeaders to pointers, by path and by descriptor, valid and forged ones.

use super::*;
use crate::common::Service;
use iovcache::table::{Encoding, View};

/// Default number of forged headers; `IOVCACHE_FORGED` sets another.
const FORGED: &str = "2000000";

#[test]
fn misuse_is_a_status_and_no_crash() {
    let folder = tempfile::tempdir().unwrap();
    let options = with_library(&["-std=c11"]);
    let program = compile(folder.path(), "cc", "tests/capi/programs/misuse.c", &options);
    assert_eq!(well("misuse", &run(&program, &[], b"")), "done\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_in_cpp_attaches_by_path_and_by_descriptor_and_resolves_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path());
    put(&repository, &version("Walk/Empty", 0, 9000, 1, b""));
    let service = Service::over(&repository, &[]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let request = TableRequest::new().column("drift", DRIFT).column("empty", "Walk/Empty");
    let table = client.table(request.timestamps([1000, 3000])).await.unwrap();
    let cells = [bytes_of(&table, "drift"), bytes_of(&table, "empty")].concat();
    let objects = client
        .batches(&TableRequest::new().column("drift", DRIFT).timestamps([1000]).view(View::Objects))
        .await
        .unwrap();
    let id = objects[0].column_by_name("object_id").unwrap();
    let id = arrow_array::cast::AsArray::as_string::<i32>(id).value(0).replace('-', "");
    let options = with_library(&["-std=c++17", "-fno-exceptions"]);
    let program = compile(folder.path(), "c++", "tests/capi/programs/walk.cpp", &options);
    let socket = service.attach();
    let output = run(&program, &["consumer", socket.to_str().unwrap()], &cells);
    let told = well("walk", &output);
    assert_eq!(told, format!("drift 1\ndrift, the second\n\n\n{id}\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn cells_under_a_null_resolve_to_nothing_and_the_others_of_their_column_to_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path());
    let service = Service::over(&repository, &[]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let request = TableRequest::new().column("drift", DRIFT).timestamps([-7, 1000, 90_000, 3000]);
    let request = request.missing_as_null();
    // Pins the objects.
    let _table = client.table(request.clone()).await.unwrap();
    let batches = client.batches(&request.encoding(Encoding::Plain)).await.unwrap();
    let cells = batches[0].column_by_name("drift").unwrap();
    let cells = arrow_array::cast::AsArray::as_fixed_size_binary(cells).value_data().to_vec();
    assert_eq!(cells.len(), 4 * 40);
    let options = with_library(&["-std=c11"]);
    let program = compile(folder.path(), "cc", "tests/capi/programs/nulls.c", &options);
    let output = run(&program, &[service.attach().to_str().unwrap()], &cells);
    assert_eq!(well("nulls", &output), "-\ndrift 1\n-\ndrift, the second\n");
}

/// Objects of many sizes, 0 bytes included, in segments or in a region.
async fn forge(arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(folder.path());
    let big = vec![7; 300_000];
    let paths: Vec<String> = (0..12).map(|number| format!("Forged/Object{number}")).collect();
    for (path, size) in paths.iter().zip([0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 4096, 300_000]) {
        put(&repository, &version(path, 0, 9000, 1, &big[..size]));
    }
    let service = Service::over(&repository, arguments);
    let (mut cells, _table, client) = cells(&service.unix()).await;
    let mut request = TableRequest::new();
    for path in &paths {
        request = request.column(path, path);
    }
    let others = client.table(request.timestamps([5])).await.unwrap();
    cells.extend(paths.iter().flat_map(|path| bytes_of(&others, path)));
    let options = with_library(&["-std=c++17"]);
    let program = compile(folder.path(), "c++", "tests/capi/programs/forged.cpp", &options);
    let socket = service.attach();
    let seed = uuid::Uuid::new_v4().as_u64_pair().0.to_string();
    let count = env::var("IOVCACHE_FORGED").unwrap_or_else(|_| FORGED.to_owned());
    let arguments = [socket.to_str().unwrap(), count.as_str(), seed.as_str()];
    let began = std::time::Instant::now();
    let told = well(&format!("seed {seed}"), &run(&program, &arguments, &cells));
    eprintln!("{count} headers from seed {seed} in {:.0?}: {told}", began.elapsed());
    let mut numbers = told.split(|letter: char| !letter.is_ascii_digit()).flat_map(str::parse);
    let [resolved, refused]: [u64; 2] = [numbers.next().unwrap(), numbers.next().unwrap()];
    assert_eq!(resolved + refused, count.parse::<u64>().unwrap());
    assert!(resolved > 0 && refused > resolved, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_headers_reach_no_byte_outside_of_a_live_block() {
    forge(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_do_they_in_a_region() {
    let folder = tempfile::tempdir().unwrap();
    let region = folder.path().join("region");
    fs::write(&region, vec![0xAB; 4 << 20]).unwrap();
    forge(&["--region", &format!("9={}", region.display())]).await;
}
