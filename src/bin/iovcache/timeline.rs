//! `timeline`: which version of a path is valid when, as a picture too.

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use clap::Args;
use iovcache::client::TableRequest;
use serde_json::json;

use crate::common::{Failure, Server, out};
use crate::picture::{Bar, bars};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// The path of the objects.
    path: String,
    /// From when (ms); by default from the beginning of time.
    #[arg(long, value_name = "MS", allow_negative_numbers = true, default_value_t = i64::MIN)]
    from: i64,
    /// Until when (ms); by default to its end.
    #[arg(long, value_name = "MS", allow_negative_numbers = true, default_value_t = i64::MAX)]
    until: i64,
    /// Only versions created at or before this are seen (ms).
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    not_after: Option<i64>,
    /// One JSON object per effective span.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.server.connect().await?;
    let mut request = TableRequest::new()
        .column("object", &arguments.path)
        .intervals(arguments.from, arguments.until);
    if let Some(not_after) = arguments.not_after {
        request = request.not_after(not_after);
    }
    let mut spans = Vec::new();
    for batch in client.batches(&request).await? {
        let column = |name: &str| {
            let column = batch.column_by_name(name);
            column.ok_or_else(|| Failure::failed(format!("the answer has no column {name}")))
        };
        let (from, until) = (column("from")?, column("until")?);
        let (from, until) = (from.as_primitive::<Int64Type>(), until.as_primitive::<Int64Type>());
        let ids = column("object_id")?.as_string::<i32>();
        for row in 0..batch.num_rows() {
            let id = ids.value(row).to_owned();
            spans.push(Bar { from: from.value(row), until: until.value(row), label: id });
        }
    }
    if spans.is_empty() {
        return Err(Failure::not_found(format!("nothing is valid under {}", arguments.path)));
    }
    let text = if arguments.json {
        let line = |span: &Bar| {
            let json = json!({"from": span.from, "until": span.until, "object_id": span.label});
            format!("{json}\n")
        };
        spans.iter().map(line).collect()
    } else {
        bars(&spans)
    };
    out(text.as_bytes())
}
