//! `/monitor/[group[/node[/parameter]]]`: counters and durations of the service, as real servers
//! list theirs.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::address::form_decoded;
use super::front::Front;
use super::json::quoted;
use super::page;
use super::pattern::matches_whole;
use super::reply::CcdbReply;

/// Name of the one group of parameters.
const GROUP: &str = "iovcache";

impl Front {
    pub(super) fn monitor(&self, filter: &str) -> CcdbReply {
        let filters: Option<Vec<String>> =
            filter.split('/').filter(|part| !part.is_empty()).map(form_decoded).collect();
        let Some(filters) = filters else {
            return page::status(400, "the address cannot be decoded");
        };
        let is_wanted = |place: usize, name: &str| {
            let glob = filters.get(place).map(|filter| filter.replace(".*", "*"));
            glob.is_none_or(|glob| matches_whole(glob.as_bytes(), name.as_bytes()))
        };
        let node = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let node = node.trim();
        let mut text = "{\n".to_owned();
        if is_wanted(0, GROUP) && is_wanted(1, node) {
            let _ = write!(text, "  {}: {{\n    {}: [\n", quoted(GROUP), quoted(node));
            let values = self.parameters().into_iter().filter(|(name, _)| is_wanted(2, name));
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            let lines: Vec<String> = values
                .map(|(name, value)| {
                    let name = quoted(&name);
                    format!("      {{\"param\": {name}, \"updated\": {now}, \"value\": {value}}}")
                })
                .collect();
            let _ = write!(text, "{}\n    ]\n  }}\n", lines.join(",\n"));
        }
        text.push_str("}\n");
        let mut reply = CcdbReply::new(200);
        reply.header("Cache-Control", "no-cache");
        reply.date();
        reply.text("application/json", text.into_bytes())
    }

    /// Names and values, in a fixed order.
    fn parameters(&self) -> Vec<(String, u64)> {
        let counters = self.cache.counters();
        let mut all: Vec<(String, u64)> =
            counters.all().into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect();
        let memory = self.cache.status().memory;
        for (name, value) in [
            ("memory_total_bytes", memory.total_bytes),
            ("memory_used_bytes", memory.used_bytes),
            ("memory_pinned_bytes", memory.pinned_bytes),
        ] {
            all.push((name.to_owned(), value));
        }
        all
    }
}
