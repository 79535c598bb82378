//! Messages and headers: maximum lengths, and maximum durations.

use std::time::{Duration, Instant};

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor, Ticket};
use futures::{StreamExt as _, stream};
use serde_json::json;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::common::{PATIENCE, Service, Version, put, run_well, until};
use crate::setup::{DRIFT, Limited};

/// Calls by hand: sends the first `sent` bytes of a message with the announced `length`; returns
/// the gRPC status, or the HTTP status if there is none.
async fn call(
    address: &str,
    method: &str,
    length: u32,
    sent: usize,
    header: Option<String>,
) -> Result<i32, String> {
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (send, connection) = h2::client::handshake(tcp).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut send = send.ready().await.map_err(|error| error.to_string())?;
    let mut request = http::Request::post(format!("http://localhost/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(header) = header {
        request = request.header("x-filler", header);
    }
    let request = request.body(()).unwrap();
    let (answer, mut body) =
        send.send_request(request, false).map_err(|error| error.to_string())?;
    let mut bytes = vec![0];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.resize(5 + sent, b'x');
    // Bytes beyond the window may never be accepted.
    let _ = body.send_data(bytes.into(), false);
    let answered = async {
        let answer = answer.await.map_err(|error| error.to_string())?;
        let http = answer.status().as_u16();
        if http != 200 {
            return Err(http.to_string());
        }
        let status = |headers: &http::HeaderMap| {
            headers.get("grpc-status").map(|status| status.to_str().unwrap().parse().unwrap())
        };
        if let Some(status) = status(answer.headers()) {
            return Ok(status);
        }
        let mut answer = answer.into_body();
        while let Some(data) = answer.data().await {
            data.map_err(|error| error.to_string())?;
        }
        let trailers = answer.trailers().await.map_err(|error| error.to_string())?;
        trailers.as_ref().and_then(status).ok_or_else(|| "no status".to_owned())
    };
    let answered = tokio::time::timeout(PATIENCE, answered).await.expect("no answer");
    connection.abort();
    answered
}

fn flight(method: &str) -> String {
    format!("arrow.flight.protocol.FlightService/{method}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_a_gibibyte_is_refused_before_it_is_buffered() {
    let limited = Limited::start("");
    limited.assert_serves().await;
    let before = limited.peak_memory_bytes();
    let methods = ["DoGet", "DoPut", "DoExchange", "DoAction", "GetFlightInfo", "ListFlights"];
    for method in methods.map(flight).into_iter().chain(["grpc.health.v1.Health/Check".to_owned()])
    {
        for length in [(64 << 20) + 1, 1 << 30, u32::MAX] {
            let told = call(&limited.address(), &method, length, 100_000, None).await;
            // Larger than a message may be, or than the memory of one client.
            let refusals = [Code::OutOfRange, Code::ResourceExhausted].map(|code| Ok(code as i32));
            assert!(refusals.contains(&told), "{method} {length}: {told:?}");
        }
    }
    let grown = limited.peak_memory_bytes() - before;
    assert!(grown < 32 << 20, "{grown} bytes were taken");
    limited.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_beyond_the_limit_are_refused() {
    let limited = Limited::start("");
    let with = async |bytes| {
        let header = Some("h".repeat(bytes));
        // A complete message of no bytes: no action has this name.
        call(&limited.address(), &flight("GetSchema"), 0, 0, header).await
    };
    // A unary call with its stream still open is answered all the same.
    let small = tokio::time::timeout(Duration::from_secs(1), with(8 << 10)).await;
    assert!(small.is_err() || small.unwrap().is_ok());
    for bytes in [17 << 10, 60 << 10] {
        let told = with(bytes).await;
        assert!(told.is_err(), "{bytes}: {told:?}");
    }
    limited.assert_serves().await;
}

/// A timeframe of `bytes` bytes whose stream does not end.
fn unfinished(id: &str, bytes: usize) -> impl futures::Stream<Item = FlightData> + Send + 'static {
    let first = FlightData {
        flight_descriptor: Some(FlightDescriptor::new_path(vec!["timeframe".into(), id.into()])),
        data_header: vec![1; 16].into(),
        data_body: vec![0; bytes].into(),
        ..FlightData::default()
    };
    stream::iter([first]).chain(stream::pending())
}

#[tokio::test(flavor = "multi_thread")]
async fn input_of_a_client_is_bounded_in_bytes_and_in_time() {
    let limited = Limited::start("request_memory = \"10MiB\"\nmessage_pause = \"2s\"");
    let bare = limited.bare().await;
    let put = |id: &'static str, bytes| {
        let client = bare.clone();
        async move {
            let start = Instant::now();
            let put = client.max_encoding_message_size(8 << 20).do_put(unfinished(id, bytes)).await;
            let status = put.err().unwrap();
            (status.code(), status.message()[..10].to_owned(), start.elapsed())
        }
    };
    let first = tokio::spawn(put("1", 1_500_000));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (code, number, took) = put("2", 1_500_000).await;
    assert_eq!((code, &number[..]), (Code::ResourceExhausted, "[IOV-1070]"));
    assert!(took < Duration::from_secs(1), "{took:?}");
    let (code, number, _) = first.await.unwrap();
    assert_eq!((code, &number[..]), (Code::DeadlineExceeded, "[IOV-1050]"));
    // Now there is room again.
    let (code, number, _) = put("3", 1_500_000).await;
    assert_eq!((code, &number[..]), (Code::DeadlineExceeded, "[IOV-1050]"));
    limited.assert_serves().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_one_request_are_set_by_options() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    put(&repository, &Version { path: DRIFT, from: 0, until: 9, created: 1, bytes: b"drift" });
    let options = [
        "--request-memory=10MiB",
        "--limit-registrations=0",
        "--limit-columns=2",
        "--limit-consumers=1",
        "--limit-lock-entries=0",
        "--limit-name=4",
        "--limit-metadata=3",
    ];
    let service = Service::over(&repository, &options);
    let endpoint = Endpoint::from_shared(service.tcp().replace("grpc://", "http://")).unwrap();
    let client = FlightServiceClient::new(endpoint.connect().await.unwrap());
    let told = async |columns: serde_json::Value, more: serde_json::Value| {
        let mut request = serde_json::json!({"columns": columns, "timestamps": [1]});
        for (field, value) in more.as_object().unwrap() {
            request[field] = value.clone();
        }
        let ticket = Ticket { ticket: request.to_string().into_bytes().into() };
        let answer = client.clone().do_get(ticket).await;
        answer.err().map(|status| (status.code(), status.message().to_owned()))
    };
    assert_eq!(told(json!({"a": DRIFT, "b": DRIFT}), json!({})).await, None);
    let entry = json!({"path": DRIFT, "object_id": "00000000-0000-4000-8000-000000000000",
        "valid_from": 0, "valid_until": 1, "created": 0});
    for (columns, more, limit) in [
        (json!({"a": DRIFT, "b": DRIFT, "c": DRIFT}), json!({}), "at most 2"),
        (json!({"abcde": DRIFT}), json!({}), "at most 4"),
        (json!({"a": DRIFT}), json!({"consumer": "abcde"}), "at most 4"),
        (json!({"a": {"path": DRIFT, "metadata": {"k": "vvv"}}}), json!({}), "at most 3"),
        (json!({"a": DRIFT}), json!({"lock": [entry]}), "at most 0"),
    ] {
        let (code, message) = told(columns, more).await.unwrap();
        assert_eq!(code, Code::InvalidArgument, "{message}");
        assert!(message.contains(limit), "{message}");
    }
    // 1,000,000 times are parsed into 8 MB, and a client may use a quarter of 10 MiB.
    let many = told(json!({"a": DRIFT}), json!({"timestamps": vec![1; 1_000_000]})).await;
    let (code, message) = many.unwrap();
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    assert!(message.contains("request-memory"), "{message}");
    let put = async |consumers: serde_json::Value| {
        let first = FlightData {
            flight_descriptor: Some(FlightDescriptor::new_path(vec![
                "timeframe".into(),
                "1".into(),
            ])),
            app_metadata: json!({"columns": {"a": DRIFT}, "consumers": consumers})
                .to_string()
                .into_bytes()
                .into(),
            ..FlightData::default()
        };
        let times = arrow_array::RecordBatch::try_from_iter([(
            "timestamp",
            std::sync::Arc::new(arrow_array::Int64Array::from(vec![1])) as arrow_array::ArrayRef,
        )]);
        let times = times.unwrap();
        let (mut writer, schema) = iovcache::table::MessageWriter::begin(&times.schema());
        let messages = [schema].into_iter().chain(writer.write(&times).unwrap().into_messages());
        let messages = messages.map(|message| FlightData {
            data_header: message.header,
            data_body: message.body,
            ..FlightData::default()
        });
        let all: Vec<FlightData> = [first].into_iter().chain(messages).collect();
        let status = client.clone().do_put(stream::iter(all)).await.err().unwrap();
        (status.code(), status.message().to_owned())
    };
    let (code, message) = put(json!(["a", "b"])).await;
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(message.contains("at most 1"), "{message}");
    let (code, message) = put(json!(["a"])).await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    assert!(message.contains("registrations"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_not_read_lose_their_pins_when_their_lease_is_revoked() {
    const BYTES: usize = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    for version in 0..12 {
        let bytes = vec![version as u8; BYTES];
        let (from, until) = (version * 10, version * 10 + 10);
        put(&repository, &Version { path: DRIFT, from, until, created: 1, bytes: &bytes });
    }
    let source = format!("file://{}", repository.display());
    let options = ["--source", &source, "--slow-after", "300ms", "--slow-consumer", "revoke"];
    // Twelve objects do not fit, so that what is pinned for ever shows as a refusal.
    let service = Service::start_sized("8MiB", "4MiB", &options);
    let endpoint = Endpoint::from_shared(service.tcp().replace("grpc://", "http://")).unwrap();
    // By default the client's library itself reads a whole object.
    let endpoint = endpoint.initial_stream_window_size(1 << 16);
    let mut streams = Vec::new();
    for (version, encoding) in ["plain", "run_end", "dictionary"].into_iter().enumerate() {
        for number in 0..2 {
            let from = (version * 2 + number) * 10;
            let request = json!({
                "columns": {"drift": DRIFT}, "consumer": format!("unread {encoding} {number}"),
                "range": {"from": from, "until": from + 10, "step": 1},
                "encoding": encoding, "cell": "payload",
            });
            let ticket = Ticket { ticket: request.to_string().into_bytes().into() };
            let mut client = FlightServiceClient::new(endpoint.connect().await.unwrap());
            streams.push(client.do_get(ticket).await.unwrap().into_inner());
        }
    }
    let pinned = || {
        let status = run_well(&["status", "--json", "--server", &service.unix()]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["memory"]["pinned_bytes"].as_u64().unwrap()
    };
    until("the pins of what is not read end", || (pinned() == 0).then_some(()));
    // The first bytes were sent; what is missing is told as an error, not as an end.
    for mut stream in streams {
        let error = loop {
            match stream.next().await.expect("an end as if it were whole") {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        assert!(error.message().starts_with("[IOV-5003]"), "{error}");
    }
    service.adds_up();
}
