//! Traces of a service built with `otel`, received by a collector of our own: a real OTLP exchange
//! over gRPC.
#![cfg(feature = "otel")]

mod common;

use std::convert::Infallible;
use std::future::ready;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use common::{Service, Version, put};
use iovcache::ObjectPath;
use iovcache::client::{Client, TableRequest};
use iovcache::table::ColumnRequest;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// The fields of an export that are checked (opentelemetry/proto/trace/v1/trace.proto).
mod sent {
    use prost::{Message, Oneof};

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Export {
        #[prost(message, repeated, tag = "1")]
        pub(crate) of: Vec<OfResource>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct OfResource {
        #[prost(message, optional, tag = "1")]
        pub(crate) resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub(crate) of: Vec<OfScope>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub(crate) attributes: Vec<Attribute>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct OfScope {
        #[prost(message, repeated, tag = "2")]
        pub(crate) spans: Vec<Span>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Span {
        #[prost(bytes, tag = "1")]
        pub(crate) trace_id: Vec<u8>,
        #[prost(bytes, tag = "2")]
        pub(crate) span_id: Vec<u8>,
        #[prost(bytes, tag = "4")]
        pub(crate) parent_span_id: Vec<u8>,
        #[prost(string, tag = "5")]
        pub(crate) name: String,
        #[prost(fixed64, tag = "7")]
        pub(crate) start: u64,
        #[prost(fixed64, tag = "8")]
        pub(crate) end: u64,
        #[prost(message, repeated, tag = "9")]
        pub(crate) attributes: Vec<Attribute>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Attribute {
        #[prost(string, tag = "1")]
        pub(crate) key: String,
        #[prost(message, optional, tag = "2")]
        pub(crate) value: Option<Any>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Any {
        #[prost(oneof = "Value", tags = "1, 2, 3")]
        pub(crate) value: Option<Value>,
    }

    #[derive(Clone, PartialEq, Oneof)]
    pub(crate) enum Value {
        #[prost(string, tag = "1")]
        Text(String),
        #[prost(bool, tag = "2")]
        Bool(bool),
        #[prost(int64, tag = "3")]
        Int(i64),
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Thanks {}
}

use sent::{Attribute, Export, Span, Thanks, Value};

/// The value of an attribute, as text.
fn attribute(all: &[Attribute], key: &str) -> Option<String> {
    let attribute = all.iter().find(|attribute| attribute.key == key)?;
    Some(match attribute.value.as_ref()?.value.as_ref()? {
        Value::Text(text) => text.clone(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
    })
}

/// A collector of traces, which keeps every export.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Export>>>);

impl UnaryService<Export> for Collector {
    type Response = Thanks;
    type Future = std::future::Ready<Result<Response<Thanks>, Status>>;

    fn call(&mut self, request: Request<Export>) -> Self::Future {
        self.0.lock().unwrap().push(request.into_inner());
        ready(Ok(Response::new(Thanks {})))
    }
}

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl tower::Service<http::Request<Body>> for Collector {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let collector = self.clone();
        Box::pin(async move {
            assert!(request.uri().path().ends_with("/Export"), "{}", request.uri());
            let codec = ProstCodec::<Thanks, Export>::default();
            Ok(Grpc::new(codec).unary(collector, request).await)
        })
    }
}

impl Collector {
    /// Starts it and returns its URL.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(self.clone());
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        url
    }

    /// All spans received, each of which must belong to our service.
    fn spans(&self) -> Vec<Span> {
        let exports = self.0.lock().unwrap();
        let mut spans = Vec::new();
        for of in exports.iter().flat_map(|export| &export.of) {
            let resource = of.resource.as_ref().unwrap();
            assert_eq!(attribute(&resource.attributes, "service.name").unwrap(), "iovcache");
            spans.extend(of.of.iter().flat_map(|of| &of.spans).cloned());
        }
        spans
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spans_of_a_timeframes_table_arrive_at_the_collector() {
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), &Version { path: "A/B", from: 0, until: 9, created: 1, bytes: b"bytes" });
    let collector = Collector::default();
    let url = collector.start().await;
    let source = format!("file://{}", folder.path().display());
    let service =
        Service::start_with(&["--source", &source], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
    let client = Client::connect(&service.unix()).await.unwrap();
    let path = ObjectPath::new("A/B").unwrap();
    let column = ColumnRequest::new("b", path);
    client.put_timeframe(4711, vec![Some(5)], &[column], &["tracker".to_owned()]).await.unwrap();
    let table =
        client.table(TableRequest::new().timeframe(4711).consumer("tracker")).await.unwrap();
    assert_eq!(table.column("b").unwrap().get(0).unwrap(), Some(&b"bytes"[..]));
    drop((table, client));
    // At its end the service sends the remaining spans.
    let (status, log) = tokio::task::spawn_blocking(|| service.stop()).await.unwrap();
    assert_eq!(status, Some(0), "{log}");
    let spans = collector.spans();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let of_timeframe =
        |span: &Span| attribute(&span.attributes, "timeframe").as_deref() == Some("4711");
    let registered = named("register");
    assert!(registered.len() == 1 && of_timeframe(registered[0]), "{spans:#?}");
    let answered = named("answer");
    assert!(answered.len() == 1 && of_timeframe(answered[0]), "{spans:#?}");
    assert_eq!(attribute(&answered[0].attributes, "consumer").as_deref(), Some("tracker"));
    // The spans of looking up and loading the object, with its path.
    for name in ["look_up", "load"] {
        let found = named(name);
        assert!(!found.is_empty(), "no {name} in {spans:#?}");
        assert_eq!(attribute(&found[0].attributes, "path").as_deref(), Some("A/B"), "{found:#?}");
    }
    for span in &spans {
        assert!(span.trace_id.len() == 16 && span.span_id.len() == 8, "{span:?}");
        assert!(0 < span.start && span.start <= span.end, "{span:?}");
    }
}
