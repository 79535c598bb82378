//! `timeline`: shows which version of a path is valid when, as a chart too.

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use clap::Args;
use iovcache::client::TableRequest;
use serde_json::json;

use crate::common::{Server, out};
use crate::failure::Failure;
use crate::text_chart::{Bar, bars, screen_columns};
use crate::{hints, time};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    /// The path of the objects.
    path: String,
    /// Begin of the timeline (ms, ISO 8601, now-1h); by default unbounded.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    from: Option<i64>,
    /// End of the timeline; by default unbounded.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    until: Option<i64>,
    /// Only versions created at or before this time.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = time::parse)]
    not_after: Option<i64>,
    /// Show times in milliseconds.
    #[arg(long)]
    ms: bool,
    /// Print one JSON object per effective span.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let client = arguments.server.connect().await?;
    let mut request = TableRequest::new()
        .column("object", &arguments.path)
        .intervals(arguments.from.unwrap_or(i64::MIN), arguments.until.unwrap_or(i64::MAX));
    if let Some(not_after) = arguments.not_after {
        request = request.not_after(not_after);
    }
    let mut spans = Vec::new();
    let batches = match client.batches(&request).await {
        Ok(batches) => batches,
        Err(error) => return Err(hints::explain(&client, error, &[&arguments.path], &[]).await),
    };
    for batch in batches {
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
        let show = |at: Option<i64>, open| at.map_or(open, time::show);
        let from = show(arguments.from, "-inf".to_owned());
        let until = show(arguments.until, "inf".to_owned());
        let path = &arguments.path;
        let failure = Failure::not_found(format!("{path} has no version in [{from}, {until})"));
        let at: Vec<i64> = arguments.from.or(arguments.until).into_iter().collect();
        return Err(failure.with_more(hints::hints(&client, &[&arguments.path], &at).await));
    }
    let text = if arguments.json {
        let line = |span: &Bar| {
            let json = json!({"from": span.from, "until": span.until, "object_id": span.label});
            format!("{json}\n")
        };
        spans.iter().map(line).collect()
    } else {
        bars(&spans, |at| time::show_as(at, arguments.ms), screen_columns())
    };
    out(text.as_bytes())
}
