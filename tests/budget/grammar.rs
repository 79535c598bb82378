//! Requests of every call, generated from a grammar: all fields, all sizes, valid and invalid.

use std::fmt;
use std::sync::Arc;

use arrow_array::types::Int8Type;
use arrow_array::{ArrayRef, DictionaryArray, Int8Array, Int64Array, RecordBatch};
use arrow_flight::{Action, Criteria, FlightData, FlightDescriptor, Ticket};
use iovcache::table::{Message, MessageWriter};
use prost::Message as _;
use serde_json::{Map, Value, json};

pub(crate) const PATHS: [&str; 3] = ["TPC/Calib/VDrift", "TPC/Calib/Noise", "ITS/Large"];

/// The bytes of all objects of a path.
pub(crate) fn payload(path: usize) -> Vec<u8> {
    let length = [5, 3_000, 4 << 20][path];
    (0..length).map(|n| (n * 7 + path) as u8).collect()
}

/// How a client reads the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    All,
    First,
    Nothing,
}

/// A request as sent.
pub(crate) struct Sent {
    pub(crate) call: String,
    pub(crate) messages: Vec<Vec<u8>>,
    /// The last message ends after this many bytes, its head included, and the stream stays open.
    pub(crate) cut: Option<usize>,
    /// The stream of requests is left open.
    pub(crate) stays: bool,
    pub(crate) reading: Reading,
    /// A description for people.
    about: String,
}

impl fmt::Debug for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, cut, stays, reading, about, .. } = self;
        let bytes: usize = self.messages.iter().map(Vec::len).sum();
        write!(f, "{call} ({bytes} bytes, cut {cut:?}, stays {stays}, {reading:?}): {about:.600}")
    }
}

/// Generates requests; equal seeds give equal requests.
pub(crate) struct Grammar(u64);

const FLIGHT: &str = "/arrow.flight.protocol.FlightService/";
const OTHERS: [&str; 3] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];
const ACTIONS: [&str; 11] = [
    "consumed",
    "prefetch",
    "invalidate",
    "drop_timeframe",
    "release",
    "segments",
    "status",
    "check",
    "CancelFlightInfo",
    "RenewFlightEndpoint",
    "none",
];

impl Grammar {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize]
    }

    /// True once in this many times.
    fn once_in(&mut self, times: u64) -> bool {
        self.next().is_multiple_of(times)
    }

    pub(crate) fn request(&mut self) -> Sent {
        let (call, messages, about, stays) = match self.next() % 16 {
            0..5 => self.do_get(),
            5 => self.described("GetSchema"),
            6 => self.described("GetFlightInfo"),
            7 => self.described("PollFlightInfo"),
            8..10 => self.action(),
            10..12 => self.do_put(),
            12..14 => self.do_exchange(),
            14 => self.list(),
            _ => self.half(),
        };
        let last = messages.last().map_or(0, Vec::len);
        let cut = (last > 0 && self.once_in(6)).then(|| (self.next() % last as u64) as usize + 1);
        let reading = self.pick(&[Reading::All, Reading::All, Reading::First, Reading::Nothing]);
        Sent { call, messages, cut, stays, reading, about }
    }

    fn length(&mut self) -> usize {
        self.pick(&[0, 1, 9, 200, 256, 257, 5_000, 70_000, 1 << 20])
    }

    fn name(&mut self, what: &str) -> String {
        match self.once_in(4) {
            true => format!("{what}{}", "x".repeat(self.length())),
            false => format!("{what}{}", self.next() % 50),
        }
    }

    fn path(&mut self) -> String {
        match self.next() % 8 {
            0 => format!("B/{}", self.name("p")),
            1 => "../etc".to_owned(),
            2 => "1/2".to_owned(),
            _ => self.pick(&PATHS).to_owned(),
        }
    }

    fn column(&mut self) -> Value {
        let path = self.path();
        if !self.once_in(4) {
            return json!(path);
        }
        let keys = self.pick(&[0, 1, 3, 100]);
        let metadata = (0..keys).map(|n| (format!("k{n}"), json!("v".repeat(self.length() / 8))));
        let metadata: Map<String, Value> = metadata.collect();
        json!({"path": path, "metadata": metadata})
    }

    fn columns(&mut self) -> Value {
        let count = self.pick(&[0, 1, 1, 1, 2, 3, 40, 2_000, 10_001]);
        let mut columns = Map::new();
        for number in 0..count {
            let name = if count > 3 { format!("c{number}") } else { self.name("c") };
            let column = if count > 3 { json!(self.pick(&PATHS)) } else { self.column() };
            columns.insert(name, column);
        }
        Value::Object(columns)
    }

    fn times(&mut self) -> Vec<Option<i64>> {
        let count = self.pick(&[0, 1, 2, 100, 10_000, 300_000]);
        let kind = self.next() % 5;
        (0..count)
            .map(|n: i64| match kind {
                0 => Some(n % 2_000),
                1 => Some(n % 2 * 1_000),
                2 => Some((self.next() % 2_000) as i64),
                3 => (!self.once_in(5)).then_some(n % 1_900),
                _ => Some(self.next() as i64),
            })
            .collect()
    }

    fn range(&mut self) -> Value {
        let from = self.pick(&[0_i64, -5, i64::MIN, 999]);
        let until = self.pick(&[2_000_i64, 1_000, 1 << 31, i64::MAX, -9]);
        match self.pick(&[None, Some(1_i64), Some(7), Some(0), Some(i64::MAX)]) {
            Some(step) => json!({"from": from, "until": until, "step": step}),
            None => json!({"from": from, "until": until}),
        }
    }

    fn lock(&mut self) -> Value {
        let count = self.pick(&[0, 1, 30, 5_000]);
        let entry = |n: u64| {
            json!({
                "path": PATHS[(n % 3) as usize],
                "object_id": format!("00000000-0000-4000-8000-{n:012x}"),
                "valid_from": 0, "valid_until": 1_000, "created": 1,
            })
        };
        (0..count).map(entry).collect()
    }

    /// A request for a table; without a time it is one for an exchange.
    fn table(&mut self, has_time: bool) -> Map<String, Value> {
        let mut request = Map::new();
        match self.once_in(12) {
            true => request.insert("table".to_owned(), json!(self.name("t"))),
            false => request.insert("columns".to_owned(), self.columns()),
        };
        if has_time {
            match self.next() % 6 {
                0..3 => request.insert("timestamps".to_owned(), json!(self.times())),
                3..5 => request.insert("range".to_owned(), self.range()),
                _ => request.insert("timeframe".to_owned(), json!(self.next() % 9)),
            };
        }
        let encoding = self.pick(&["dictionary", "run_end", "plain"]);
        let cell = self.pick(&["binary", "struct", "o2", "payload", "payload"]);
        let view = self.pick(&["rows", "rows", "rows", "objects", "intervals", "chunks"]);
        request.insert("encoding".to_owned(), json!(encoding));
        request.insert("cell".to_owned(), json!(cell));
        request.insert("view".to_owned(), json!(view));
        request.insert("wait_ms".to_owned(), json!(self.pick(&[0, 100, 1_500])));
        for (field, value) in [
            ("missing", json!("null")),
            ("missing", json!("null")),
            ("timestamps_column", json!(true)),
            ("consumer", json!(self.name("consumer"))),
            ("session", json!(self.name("session"))),
            ("not_after", json!(self.pick(&[0, 1, i64::MAX]))),
            ("not_before", json!(self.pick(&[0, 2, i64::MIN]))),
            ("lock", self.lock()),
            ("unknown", json!(1)),
        ] {
            if self.once_in(if field == "missing" { 2 } else { 9 }) {
                request.insert(field.to_owned(), value);
            }
        }
        request
    }

    fn request_bytes(&mut self) -> (Vec<u8>, String) {
        let mut text = Value::Object(self.table(true)).to_string();
        let about = text.clone();
        if self.once_in(8) {
            text.push_str(&" ".repeat(self.length() * 4));
        }
        (text.into_bytes(), about)
    }

    fn do_get(&mut self) -> (String, Vec<Vec<u8>>, String, bool) {
        let (ticket, about) = self.request_bytes();
        let message = Ticket { ticket: ticket.into() }.encode_to_vec();
        (format!("{FLIGHT}DoGet"), vec![message], about, false)
    }

    fn described(&mut self, call: &str) -> (String, Vec<Vec<u8>>, String, bool) {
        let (command, about) = self.request_bytes();
        let message = FlightDescriptor::new_cmd(command).encode_to_vec();
        (format!("{FLIGHT}{call}"), vec![message], about, false)
    }

    fn action(&mut self) -> (String, Vec<Vec<u8>>, String, bool) {
        let name = self.pick(&ACTIONS);
        let body = match name {
            "consumed" => match self.once_in(2) {
                true => json!({"consumer": self.name("c"), "oldest_possible": self.next() % 9}),
                false => json!({"consumer": self.name("c"), "timeframe": self.next() % 9}),
            },
            "prefetch" => json!({"columns": self.columns(), "range": self.range()}),
            "invalidate" => json!({"path": self.path()}),
            "drop_timeframe" => json!({"timeframe": self.next() % 9}),
            "release" => json!({"lease": self.name("l")}),
            _ => json!({}),
        };
        let about = format!("{name} {body}");
        let body = match name {
            "CancelFlightInfo" | "RenewFlightEndpoint" => {
                (0..self.length()).map(|_| self.next() as u8).collect()
            }
            _ => body.to_string().into_bytes(),
        };
        let message = Action { r#type: name.to_owned(), body: body.into() }.encode_to_vec();
        (format!("{FLIGHT}DoAction"), vec![message], about, false)
    }

    /// Batches of timestamps, the schema first; sometimes a dictionary without a batch.
    fn batches(&mut self, count: usize) -> (Vec<FlightData>, String) {
        let mut messages: Vec<Message> = Vec::new();
        let mut writer: Option<MessageWriter> = None;
        let is_dictionary = self.once_in(3);
        for _ in 0..count {
            let times = Int64Array::from(self.times());
            let column: ArrayRef = match is_dictionary {
                true => {
                    let rows = self.pick(&[0, 10, 2_000_000]);
                    let keys = Int8Array::from_iter_values((0..rows).map(|_| 0));
                    let values: ArrayRef = Arc::new(Int64Array::from(vec![5_i64; 100]));
                    Arc::new(DictionaryArray::<Int8Type>::try_new(keys, values).unwrap())
                }
                false => Arc::new(times),
            };
            let batch = RecordBatch::try_from_iter_with_nullable([("timestamp", column, true)]);
            let batch = batch.unwrap();
            let writer = writer.get_or_insert_with(|| {
                let (writer, schema) = MessageWriter::begin(&batch.schema());
                messages.push(schema);
                writer
            });
            messages.extend(writer.write(&batch).unwrap().into_messages());
        }
        if is_dictionary && self.once_in(2) {
            messages.pop();
            let again = messages.last().cloned();
            messages.extend((0..self.pick(&[0, 3, 200])).filter_map(|_| again.clone()));
        }
        let data = messages.into_iter().map(|message| {
            let Message { header, body, .. } = message;
            FlightData { data_header: header, data_body: body, ..FlightData::default() }
        });
        (data.collect(), format!("dictionary {is_dictionary}, {count} batches"))
    }

    fn do_put(&mut self) -> (String, Vec<Vec<u8>>, String, bool) {
        let count = self.pick(&[1, 1, 3]);
        let (mut data, about) = self.batches(count);
        let consumers: Vec<String> =
            (0..self.pick(&[0, 1, 1_001])).map(|n| format!("c{n}")).collect();
        let register = json!({"columns": self.columns(), "consumers": consumers}).to_string();
        // By design a complete registration stays in flight and charged. Here its stream is never
        // ended, so that it never completes.
        let path = vec!["timeframe".to_owned(), (self.next() % 9).to_string()];
        if let Some(first) = data.first_mut() {
            first.flight_descriptor = Some(FlightDescriptor::new_path(path));
            first.app_metadata = register.clone().into_bytes().into();
        }
        let messages = data.iter().map(FlightData::encode_to_vec).collect();
        (format!("{FLIGHT}DoPut"), messages, format!("{about} {register}"), true)
    }

    fn do_exchange(&mut self) -> (String, Vec<Vec<u8>>, String, bool) {
        let count = self.pick(&[1, 2, 5]);
        let (mut data, about) = self.batches(count);
        let template = Value::Object(self.table(false)).to_string();
        for (number, message) in data.iter_mut().enumerate() {
            message.app_metadata = json!({"timeframe": number}).to_string().into_bytes().into();
        }
        if let Some(first) = data.first_mut() {
            first.flight_descriptor = Some(FlightDescriptor::new_cmd(template.clone()));
            first.app_metadata = Default::default();
        }
        let messages = data.iter().map(FlightData::encode_to_vec).collect();
        let stays = self.once_in(2);
        (format!("{FLIGHT}DoExchange"), messages, format!("{about} {template}"), stays)
    }

    fn list(&mut self) -> (String, Vec<Vec<u8>>, String, bool) {
        let expression = match self.once_in(3) {
            true => self.name("TPC").into_bytes(),
            false => Vec::new(),
        };
        let message = Criteria { expression: expression.into() }.encode_to_vec();
        (format!("{FLIGHT}ListFlights"), vec![message], "list".to_owned(), false)
    }

    /// An endless message to any service.
    fn half(&mut self) -> (String, Vec<Vec<u8>>, String, bool) {
        let call = match self.once_in(3) {
            true => format!("{FLIGHT}Handshake"),
            false => self.pick(&OTHERS).to_owned(),
        };
        let length = self.pick(&[0, 1 << 10, 1 << 20, 4_000_000, 20 << 20]);
        (call, vec![vec![0; length]], "half a message".to_owned(), true)
    }
}
