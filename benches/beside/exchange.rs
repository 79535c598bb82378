//! An open exchange: the client sends timestamps, the service returns tables.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{FlightData, FlightDescriptor};
use iovcache::table::{Message, MessageWriter};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

pub(crate) struct Open {
    out: mpsc::Sender<FlightData>,
    back: Streaming<FlightData>,
}

impl Open {
    /// Opens it with the first message, which carries the schema of the timestamps and the request.
    pub(crate) async fn new(
        mut client: FlightServiceClient<Channel>,
        schema: FlightData,
        request: &str,
    ) -> Self {
        let (out, sent) = mpsc::channel(64);
        let descriptor = FlightDescriptor::new_cmd(request.to_owned());
        let first = FlightData { flight_descriptor: Some(descriptor), ..schema };
        out.send(first).await.unwrap();
        let back = client.do_exchange(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Self { out, back }
    }

    /// Sends the timestamps of a timeframe and reads its table, up to the message that has
    /// metadata.
    pub(crate) async fn turn(&mut self, timeframe: u64, batch: &FlightData) -> Vec<FlightData> {
        let app_metadata = format!(r#"{{"timeframe": {timeframe}}}"#).into();
        self.out.send(FlightData { app_metadata, ..batch.clone() }).await.unwrap();
        let mut answer = Vec::new();
        loop {
            let message = self.back.message().await.unwrap().unwrap();
            let last = !message.app_metadata.is_empty();
            answer.push(message);
            if last {
                return answer;
            }
        }
    }

    /// Reports a timeframe as consumed.
    pub(crate) async fn consumed(&mut self, timeframe: u64) {
        let app_metadata = format!(r#"{{"consumed": [{timeframe}]}}"#).into();
        self.out.send(FlightData { app_metadata, ..FlightData::default() }).await.unwrap();
    }
}

pub(crate) fn flight_data(message: Message) -> FlightData {
    FlightData { data_header: message.header, data_body: message.body, ..FlightData::default() }
}

/// Timestamps as two messages: schema and batch.
pub(crate) fn messages_of(timestamps: Vec<i64>) -> (FlightData, FlightData) {
    let at: ArrayRef = Arc::new(Int64Array::from(timestamps));
    let batch = RecordBatch::try_from_iter([("timestamp", at)]).unwrap();
    let (mut writer, schema) = MessageWriter::begin(&batch.schema());
    let batch = writer.write(&batch).unwrap().batch;
    (flight_data(schema), flight_data(batch))
}

pub(crate) fn bytes_of(messages: &[FlightData]) -> usize {
    messages.iter().map(|one| one.data_header.len() + one.data_body.len()).sum()
}
