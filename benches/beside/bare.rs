//! Bare tonic: a service with the same calls that only sends messages made in advance.

use std::convert::Infallible;
use std::future::Ready;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use arrow_flight::{FlightData, Ticket};
use futures::stream::{self, Stream, StreamExt as _};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

type Answers = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// Answers every ticket with all of its messages, and every message of an exchange that has a body
/// with all of its messages too.
#[derive(Clone)]
pub(crate) struct Bare(Arc<Vec<FlightData>>);

impl Bare {
    /// Serves on its own socket in `folder`.
    pub(crate) fn serve(folder: &Path, messages: Vec<FlightData>) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = folder.join(format!("bare-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        let listener = UnixListener::bind(&path).unwrap();
        let router = tonic::transport::Server::builder().add_service(Self(Arc::new(messages)));
        tokio::spawn(router.serve_with_incoming(UnixListenerStream::new(listener)));
        path
    }

    fn messages(&self) -> impl Iterator<Item = Result<FlightData, Status>> + use<> {
        let Self(messages) = self.clone();
        (0..messages.len()).map(move |place| Ok(messages[place].clone()))
    }
}

impl ServerStreamingService<Ticket> for Bare {
    type Response = FlightData;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, _: Request<Ticket>) -> Self::Future {
        let answers: Answers = Box::pin(stream::iter(self.messages()));
        std::future::ready(Ok(Response::new(answers)))
    }
}

impl StreamingService<FlightData> for Bare {
    type Response = FlightData;
    type ResponseStream = Answers;
    type Future = Ready<Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<FlightData>>) -> Self::Future {
        let service = self.clone();
        let asked = request.into_inner().filter(|message| {
            let is_batch = message.as_ref().is_ok_and(|message| !message.data_body.is_empty());
            std::future::ready(is_batch)
        });
        let answers: Answers = Box::pin(asked.flat_map(move |_| stream::iter(service.messages())));
        std::future::ready(Ok(Response::new(answers)))
    }
}

impl tower::Service<http::Request<Body>> for Bare {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        let limit = Some(usize::MAX);
        Box::pin(async move {
            Ok(if request.uri().path().ends_with("/DoExchange") {
                let codec = ProstCodec::<FlightData, FlightData>::default();
                let grpc = Grpc::new(codec).apply_max_message_size_config(limit, limit);
                { grpc }.streaming(service, request).await
            } else {
                let codec = ProstCodec::<FlightData, Ticket>::default();
                Grpc::new(codec).server_streaming(service, request).await
            })
        })
    }
}

impl NamedService for Bare {
    const NAME: &'static str = "arrow.flight.protocol.FlightService";
}
