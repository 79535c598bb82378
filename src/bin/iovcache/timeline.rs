//! `timeline`: shows which version of a path is valid when, as a chart too.

use clap::Args;
use iovcache::ObjectPath;
use iovcache::client::Client;
use iovcache::interval::Timestamp;
use iovcache::table::{TIMELINE_PAGE_SPANS, TimelineRequest, TimelineSpan};
use serde_json::json;

use crate::common::{Server, out};
use crate::failure::Failure;
use crate::stderr::say;
use crate::text_chart::{Bar, bars, screen_columns};
use crate::{hints, time};

/// Maximum number of spans in a chart, unless `--limit` says otherwise.
const CHART_SPANS: u64 = 1_000;

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
    /// Maximum number of spans; 0: all. Default: 1,000 in the chart, all with --json.
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Show times in milliseconds.
    #[arg(long)]
    ms: bool,
    /// Print one JSON object per effective span, as they arrive.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Maximum number of spans to print; `None`: all.
    fn most(&self) -> Option<u64> {
        let default = if self.json { 0 } else { CHART_SPANS };
        Some(self.limit.unwrap_or(default)).filter(|limit| *limit > 0)
    }

    fn print(&self, spans: &[TimelineSpan]) -> Result<(), Failure> {
        let text: String = if self.json {
            let line = |span: &TimelineSpan| format!("{}\n", json!(span));
            spans.iter().map(line).collect()
        } else {
            let bar = |span: &TimelineSpan| {
                let label = span.object_id.to_string();
                Bar { from: span.from, until: span.until, label }
            };
            let spans: Vec<Bar> = spans.iter().map(bar).collect();
            bars(&spans, |at| time::show_as(at, self.ms), screen_columns())
        };
        out(text.as_bytes())
    }
}

/// Spans that are not printed yet. Parts of one span are joined.
#[derive(Debug, Default)]
struct Unprinted {
    spans: Vec<TimelineSpan>,
    printed: u64,
}

impl Unprinted {
    fn add(&mut self, page: Vec<TimelineSpan>) {
        for span in page {
            match self.spans.last_mut() {
                Some(last) if last.until == span.from && last.object_id == span.object_id => {
                    last.until = span.until;
                }
                _ => self.spans.push(span),
            }
        }
    }

    /// Prints spans that no later page continues, at most `most` in all; in parts, so that a chart
    /// has one scale per part. Returns the begin of the first one that is not printed, if there is.
    fn print(
        &mut self,
        arguments: &Arguments,
        is_last: bool,
        most: Option<u64>,
    ) -> Result<Option<i64>, Failure> {
        let room = most.map_or(u64::MAX, |most| most - self.printed);
        let is_full = self.spans.len() as u64 > room;
        // The last span may be continued by the next page.
        let complete =
            if is_last || is_full { self.spans.len() } else { self.spans.len().max(1) - 1 };
        let count = complete.min(usize::try_from(room).unwrap_or(usize::MAX));
        let is_part = arguments.json || is_last || is_full || count >= TIMELINE_PAGE_SPANS;
        if !is_part {
            return Ok(None);
        }
        let parts: Vec<TimelineSpan> = self.spans.drain(..count).collect();
        self.printed += count as u64;
        parts.chunks(TIMELINE_PAGE_SPANS).try_for_each(|part| arguments.print(part))?;
        Ok(self.spans.first().filter(|_| is_full).map(|span| span.from))
    }
}

async fn nothing(client: &Client, arguments: &Arguments) -> Failure {
    let show = |at: Option<i64>, open| at.map_or(open, time::show);
    let from = show(arguments.from, "-inf".to_owned());
    let until = show(arguments.until, "inf".to_owned());
    let path = &arguments.path;
    let failure = Failure::not_found(format!("{path} has no version in [{from}, {until})"));
    // The last time before the end, where nothing is valid either.
    let before_end = arguments.until.and_then(|until| until.checked_sub(1));
    let at: Vec<i64> = arguments.from.or(before_end).into_iter().collect();
    let mut lines = hints::hints(client, &[&arguments.path], &at).await;
    lines.extend(later_version(client, arguments).await);
    failure.with_more(lines)
}

/// The hint at versions that `--not-after` excludes.
async fn later_version(client: &Client, arguments: &Arguments) -> Option<String> {
    let not_after = time::show(arguments.not_after?);
    let Arguments { path, from, until, .. } = arguments;
    let request = TimelineRequest {
        from: *from,
        until: *until,
        limit: Some(1),
        ..TimelineRequest::new(ObjectPath::new(path).ok()?)
    };
    let span = hints::first_span(client, request).await.ok()??;
    let span = hints::show(span);
    Some(format!("versions created after {not_after} are valid there, the first in {span}"))
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let path = ObjectPath::new(&arguments.path).map_err(|error| {
        let corrected = hints::corrected(&arguments.path);
        Failure::from(error).with_more(corrected.into_iter().collect())
    })?;
    let client = arguments.server.connect().await?;
    let most = arguments.most();
    let mut request = TimelineRequest {
        from: arguments.from,
        until: arguments.until,
        not_after: arguments.not_after.map(Timestamp::from_millis),
        // One more tells whether there are more.
        limit: most.and_then(|most| u32::try_from(most.saturating_add(1)).ok()),
        ..TimelineRequest::new(path)
    };
    let (mut unprinted, mut stale) = (Unprinted::default(), false);
    loop {
        let page = match client.timeline(&request).await {
            Ok(page) => page,
            Err(error) => {
                return Err(hints::explain(&client, error, &[&arguments.path], &[]).await);
            }
        };
        let next = request.after(&page);
        stale |= page.stale;
        unprinted.add(page.spans);
        if let Some(more) = unprinted.print(&arguments, next.is_none(), most)? {
            let printed = unprinted.printed;
            say(&format!("the first {printed} spans; more with --from={more} or --limit=0"));
            return Ok(());
        }
        match next {
            Some(next) => request = next,
            None => break,
        }
    }
    if stale {
        say("the source did not confirm this in time: it may have changed");
    }
    match unprinted.printed {
        0 => Err(nothing(&client, &arguments).await),
        _ => Ok(()),
    }
}
