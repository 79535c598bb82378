//! Registration of timeframes, and reports of their consumption.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_flight::{FlightData, FlightDescriptor};
use futures::stream;
use serde_json::json;

use super::error::ClientError;
use super::service::{Client, ClientCall, answer};
use crate::table::{ColumnRequest, ConsumedAnswer, MessageWriter, PutAnswer, Register};

impl Client {
    /// Registers a timeframe with its timestamps (milliseconds since the Unix epoch; `None`: null)
    /// for these consumers, and begins to load its objects. It stays in flight until each consumer
    /// has reported it as consumed.
    ///
    /// While too many timeframes are in flight or memory is short, the call waits, at most for
    /// [`patience`](crate::client::ClientOptions::patience). Registering the same content again
    /// gives the same answer.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn put_timeframe(
        &self,
        timeframe: u64,
        timestamps: Vec<Option<i64>>,
        columns: &[ColumnRequest],
        consumers: &[String],
    ) -> Result<PutAnswer, ClientError> {
        let about = Register::new(columns.to_vec(), consumers.to_vec()).to_json();
        self.register(timeframe, Arc::new(Int64Array::from(timestamps)), about).await
    }

    /// Registers a timeframe: timestamps of any Arrow type that the service accepts
    /// ([`timestamps_from_array`](crate::table::timestamps_from_array)), and its columns and
    /// consumers in JSON, as in `schemas/register-timeframe.schema.json` ([`Register::to_json`]).
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn register(
        &self,
        timeframe: u64,
        timestamps: ArrayRef,
        about: String,
    ) -> Result<PutAnswer, ClientError> {
        // Timestamps of every type can be null.
        let batch = RecordBatch::try_from_iter_with_nullable([("timestamp", timestamps, true)])
            .map_err(|error| answer(&error.to_string()))?;
        self.register_rows(timeframe, &batch, about).await
    }

    /// Registers a timeframe like [`register`](Self::register), with a batch of rows: a column of
    /// timestamps, and one column for each key on which its columns depend.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn register_rows(
        &self,
        timeframe: u64,
        batch: &RecordBatch,
        about: String,
    ) -> Result<PutAnswer, ClientError> {
        let (mut writer, schema) = MessageWriter::begin(&batch.schema());
        let batch = writer.write(batch).map_err(|error| answer(&error.to_string()))?;
        let path = vec!["timeframe".to_owned(), timeframe.to_string()];
        let first = FlightData {
            flight_descriptor: Some(FlightDescriptor::new_path(path)),
            data_header: schema.header,
            app_metadata: about.into(),
            ..FlightData::default()
        };
        let rest = batch.into_messages().map(|message| FlightData {
            data_header: message.header,
            data_body: message.body,
            ..FlightData::default()
        });
        let messages: Vec<FlightData> = [first].into_iter().chain(rest).collect();
        // Registering the same content again gives the same answer.
        self.until_answered(self.patience(), |_| self.put(messages.clone())).await
    }

    fn put(&self, messages: Vec<FlightData>) -> ClientCall<'_, PutAnswer> {
        Box::pin(async {
            let put = self.flight().do_put(stream::iter(messages)).await?;
            let result = put.into_inner().message().await?;
            let result = result.ok_or_else(|| answer("no result came"))?;
            serde_json::from_slice(&result.app_metadata).map_err(|error| answer(&error.to_string()))
        })
    }

    /// Reports that `consumer` has finished with a timeframe, by a call. A repeated report is no
    /// error. The answer names the timeframes that this dropped.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn consumed(
        &self,
        timeframe: u64,
        consumer: &str,
    ) -> Result<ConsumedAnswer, ClientError> {
        self.consumed_of(timeframe, consumer, None).await
    }

    /// Like [`consumed`](Self::consumed), for the table of a registration, if it is given.
    pub(super) async fn consumed_of(
        &self,
        timeframe: u64,
        consumer: &str,
        registration: Option<u64>,
    ) -> Result<ConsumedAnswer, ClientError> {
        let mut body = json!({"timeframe": timeframe, "consumer": consumer});
        if let Some(registration) = registration {
            body["registration"] = registration.into();
        }
        self.act("consumed", &body).await
    }

    /// Reports that `consumer` has finished with all timeframes below `oldest`, those that are
    /// registered later included. The service keeps the greatest `oldest` of each consumer.
    ///
    /// # Errors
    /// [`ClientError`], mostly [`Service`](ClientError::Service).
    pub async fn oldest_possible(
        &self,
        consumer: &str,
        oldest: u64,
    ) -> Result<ConsumedAnswer, ClientError> {
        let body = json!({"consumer": consumer, "oldest_possible": oldest});
        self.act("consumed", &body).await
    }
}
