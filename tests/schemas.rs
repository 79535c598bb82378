//! The JSON Schemas against real messages, and against invalid ones.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use common::{PATIENCE, Service, Version, put};
use iovcache::client::{Client, ClientOptions, TableRequest};
use iovcache::server::FLIGHT_DESCRIPTOR;
use iovcache::shm::attach::{parse_hello, parse_line};
use iovcache::table::{
    CheckRequest, ColumnRequest, Consumed, DropTimeframe, Invalidate, Prefetch, Register, Release,
    Request, TimelineRequest, parse_action,
};
use jsonschema::Validator;
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn read(name: &str) -> Value {
    let text = fs::read(folder().join(format!("{name}.schema.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn validator(name: &str) -> Validator {
    jsonschema::validator_for(&read(name)).unwrap()
}

fn check(name: &str, message: &Value) {
    let validator = validator(name);
    let errors: Vec<String> =
        validator.iter_errors(message).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{name}: {errors:?} in {message}");
}

#[test]
fn every_schema_holds_for_its_own_examples() {
    let mut count = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = file.strip_suffix(".schema.json") else { continue };
        let examples = read(name)["examples"].as_array().unwrap().clone();
        assert!(!examples.is_empty(), "{name}");
        examples.iter().for_each(|example| check(name, example));
        count += 1;
    }
    assert!(count >= 15, "{count} schemas");
}

/// The service accepts exactly the messages that the schema accepts.
#[test]
fn the_service_reads_commands_as_their_schemas_say() {
    type Parse = fn(&[u8]) -> bool;
    let parsers: [(&str, Parse); 10] = [
        ("request", |json| Request::parse(json).is_ok()),
        ("register-timeframe", |json| Register::parse(json).is_ok()),
        ("consumed", |json| Consumed::parse(json).is_ok()),
        ("prefetch", |json| Prefetch::parse(json).is_ok()),
        ("invalidate", |json| parse_action::<Invalidate>("x", json).is_ok()),
        ("drop-timeframe", |json| parse_action::<DropTimeframe>("x", json).is_ok()),
        ("release", |json| parse_action::<Release>("x", json).is_ok()),
        ("timeline", |json| parse_action::<TimelineRequest>("x", json).is_ok()),
        ("attach-hello", |json| parse_hello(json).is_ok()),
        ("attach-need", |json| parse_line(json).is_ok()),
    ];
    for (name, parses) in parsers {
        let validator = validator(name);
        for example in read(name)["examples"].as_array().unwrap() {
            assert!(parses(example.to_string().as_bytes()), "{name}: {example}");
            let mut extra = example.clone();
            extra["colour"] = json!("red");
            assert!(!validator.is_valid(&extra), "{name}: {extra}");
            assert!(!parses(extra.to_string().as_bytes()), "{name}: {extra}");
        }
        assert!(!validator.is_valid(&json!({})) && !parses(b"{}"), "{name}");
    }
    let parses =
        |json: &Value| parse_action::<CheckRequest>("x", json.to_string().as_bytes()).is_ok();
    let right = [json!({}), json!({"contents": true})];
    let wrong = [json!({"contents": 1}), json!({"colour": "red"})];
    assert!(right.iter().all(|one| validator("check").is_valid(one) && parses(one)));
    assert!(!wrong.iter().any(|one| validator("check").is_valid(one) || parses(one)));
    let wrong = [
        json!({"columns": {"a": "A"}, "timestamps": [1], "timeframe": 1}),
        json!({"columns": {"a": "A"}, "table": "t", "timestamps": [1]}),
        json!({"columns": {}, "timestamps": [1]}),
        json!({"columns": {"a": "A B"}, "timestamps": [1]}),
        json!({"columns": {"a": "A"}, "timestamps": [1.5]}),
        json!({"columns": {"a": "A"}, "timestamps": [1], "encoding": "zip"}),
        json!({"columns": {"a": "A"}, "range": {"from": 1, "until": 2, "step": 0}}),
        json!({"columns": {"a": {"path": "A", "as": "timestamp"}}, "timestamps": [1]}),
        json!({"columns": {"a": {"path": "A", "uniform": true}}, "timestamps": [1]}),
        json!({"columns": {"a": {"path": "A", "key": "k", "as": "noon"}}, "timestamps": [1]}),
        json!({"columns": {"a": {"path": [{"path": "A"}]}}, "timestamps": [1]}),
        json!({"columns": {"a": {"path": [], "key": "k"}}, "timestamps": [1]}),
        json!({"columns": {"a": {"path": "A", "key": "k"}}, "keys": {"k": [1.5]}, "timestamps": [1]}),
        json!({"columns": {"a": {"path": "A", "key": "k"}}, "keys": {"k": [1, "a"]}, "timestamps": [1, 2]}),
        json!({"columns": {"a": "A"}, "keys": {"k": [1]}, "timeframe": 1}),
        json!({"columns": {"a": "A"}, "timestamps": [1], "schema_metadata": {"iovcache.x": "y"}}),
        json!({"columns": {"a": "A"}, "timestamps": [1], "schema_metadata": {"ARROW:x": "y"}}),
        json!({"columns": {"a": "A"}, "timestamps": [1], "schema_metadata": {"": "y"}}),
        json!({"columns": {"a": "A"}, "timestamps": [1], "schema_metadata": {"x": 1}}),
    ];
    for request in wrong {
        assert!(!validator("request").is_valid(&request), "{request}");
        assert!(Request::parse(request.to_string().as_bytes()).is_err(), "{request}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_answers_are_as_their_schemas_say() {
    let repository = tempfile::tempdir().unwrap();
    let version = Version { path: "A/B", from: 0, until: 10, created: 1, bytes: b"bytes" };
    put(repository.path(), &version);
    let service = Service::over(repository.path(), &[]);
    check("ready", &service.ready);
    let client = Client::connect(&service.unix()).await.unwrap();
    let path = iovcache::ObjectPath::new("A/B").unwrap();
    let columns = [ColumnRequest::new("b", path)];
    let put = client.put_timeframe(1, vec![Some(1)], &columns, &["x".to_owned()]).await.unwrap();
    check("put-result", &json!(put));
    let _table = client.table(TableRequest::new().timeframe(1).consumer("x")).await.unwrap();
    let status: Value = client.act("status", &json!({})).await.unwrap();
    assert_eq!(status["timeframes"][0]["consumers"]["x"], "delivered");
    check("status", &status);
    check("check-result", &json!(client.check(true).await.unwrap()));
    let segments: Value = client.act("segments", &json!({})).await.unwrap();
    assert_eq!(segments["segments"].as_array().unwrap().len(), 1);
    check("segments", &segments);
    let consumed = client.consumed(1, "x").await.unwrap();
    check("consumed-result", &json!(consumed));
    let spans: Value = client.act("timeline", &json!({"path": "A/B", "limit": 1})).await.unwrap();
    assert_eq!(spans["spans"][0]["until"], 10);
    check("timeline-result", &spans);

    let mut stream = UnixStream::connect(service.attach()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"{\"hello\": 1, \"consumer\": \"schemas\"}\n").unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    check("attach-announcement", &serde_json::from_str(&line).unwrap());

    let server = service.unix();
    let arguments = ["table", "--server", &server, "--column", "b=A/B", "--at", "1"];
    let objects = [&arguments[..], &["--view", "objects", "--output", "json"]].concat();
    check("lock", &serde_json::from_str(&common::run_well(&objects)).unwrap());
    let remote = ClientOptions { remote: true, ..ClientOptions::default() };
    let remote = Client::connect_with(&server, remote).await.unwrap();
    assert!(remote.act::<Value>("status", &json!({"x": 1})).await.is_err());
}

#[test]
fn the_compiled_descriptor_is_that_of_the_proto_file() {
    let compiled = protox::compile(["flight.proto"], [folder()]).unwrap();
    let committed: prost_types::FileDescriptorSet =
        prost::Message::decode(FLIGHT_DESCRIPTOR).unwrap();
    let file = |set: &prost_types::FileDescriptorSet| {
        let mut file = set.file.iter().find(|file| file.name() == "flight.proto").unwrap().clone();
        file.source_code_info = None;
        file
    };
    assert_eq!(file(&compiled), file(&committed));
}
