//! What can be set for a CCDB source, and within which bounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::AllowedPlaces;

/// Limits and habits of a [`CcdbSource`](super::CcdbSource); what is left out has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct CcdbOptions {
    /// How long a connection may take to be made, in ms. Default 2,000.
    pub connect_millis: u64,
    /// How long the head of an answer may take, in ms (a replica on the Grid takes seconds).
    /// Default 20,000.
    pub first_byte_millis: u64,
    /// A body that brings fewer bytes per second than this is given up. Default 65,536; 0: never.
    pub min_throughput_bytes: u64,
    /// Over which time the throughput is measured, in ms. Default 5,000.
    pub throughput_window_millis: u64,
    /// How long a look-up may take with all of its attempts, in ms. Default 30,000.
    pub look_up_total_millis: u64,
    /// How long a body may take with all of its attempts, in ms. Default 600,000.
    pub fetch_total_millis: u64,
    /// How many redirects in a row are followed. Default 5, and no more than 5.
    pub max_redirects: u32,
    /// Bodies larger than this are refused, in bytes. Default 8 GiB.
    pub max_size_bytes: u64,
    /// How many times all hosts are asked again after transient failures. Default 3.
    pub retries: u32,
    /// The longest first pause before a retry, in ms; it doubles each time, and a pause is drawn
    /// evenly between 0 and it ("full jitter"). Default 50.
    pub backoff_base_millis: u64,
    /// What the longest pause does not grow beyond, in ms. Default 2,000.
    pub backoff_cap_millis: u64,
    /// After how many refused or timed-out connections in a row a host is left alone. Default 3.
    pub breaker_failures: u32,
    /// For how long it is left alone before it is tried once more, in ms. Default 1,000.
    pub breaker_open_millis: u64,
    /// Look-ups, and bodies, that a host is asked for at the same time, at most: it is asked for
    /// fewer while it says that it is overloaded. Default 64.
    pub max_concurrent: usize,
    /// Paths with more versions than this are never listed whole; below it, that depends on what
    /// listings and look-ups by time turn out to cost. Default 100,000; 0: never list.
    pub browse_limit: usize,
    /// Time after which a path that was not listed is listed again, and after which every version
    /// of a listed path is compared again, in ms. Default 600,000.
    pub listing_recheck_millis: u64,
    /// How long an answer may be used before it is asked again, in ms. Default 10,000.
    pub refresh_millis: u64,
    /// To which other places redirects and replicas may lead: `host`, `host:port`, `*.domain`, or
    /// a network such as `10.0.0.0/8` (for addresses, not for names). Default: only to the hosts
    /// of the source's URL.
    pub allowed_redirects: Vec<String>,
    /// How many versions' replicas are remembered. Default 20,000.
    pub remembered_locations: u64,
}

impl Default for CcdbOptions {
    fn default() -> Self {
        Self {
            connect_millis: 2_000,
            first_byte_millis: 20_000,
            min_throughput_bytes: 64 << 10,
            throughput_window_millis: 5_000,
            look_up_total_millis: 30_000,
            fetch_total_millis: 600_000,
            max_redirects: 5,
            max_size_bytes: 8 << 30,
            retries: 3,
            backoff_base_millis: 50,
            backoff_cap_millis: 2_000,
            breaker_failures: 3,
            breaker_open_millis: 1_000,
            max_concurrent: 64,
            browse_limit: 100_000,
            listing_recheck_millis: 600_000,
            refresh_millis: 10_000,
            allowed_redirects: Vec::new(),
            remembered_locations: 20_000,
        }
    }
}

impl CcdbOptions {
    /// The first setting that makes no sense, and why.
    pub(crate) fn fault(&self) -> Option<(&'static str, String)> {
        let positive = [
            ("connect_millis", self.connect_millis),
            ("first_byte_millis", self.first_byte_millis),
            ("throughput_window_millis", self.throughput_window_millis),
            ("look_up_total_millis", self.look_up_total_millis),
            ("fetch_total_millis", self.fetch_total_millis),
            ("max_concurrent", self.max_concurrent as u64),
            ("breaker_failures", u64::from(self.breaker_failures)),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Some((name, "is 0, expected at least 1".to_owned()));
        }
        if self.max_redirects > 5 {
            return Some(("max_redirects", format!("is {}, expected 0 to 5", self.max_redirects)));
        }
        if self.browse_limit > 100_000 {
            return Some((
                "browse_limit",
                format!("is {}, expected 0 to 100000", self.browse_limit),
            ));
        }
        if self.max_concurrent > 4_096 {
            return Some((
                "max_concurrent",
                format!("is {}, expected 1 to 4096", self.max_concurrent),
            ));
        }
        let places = AllowedPlaces::parse(&self.allowed_redirects);
        places.err().map(|reason| ("allowed_redirects", reason))
    }

    /// The pause before retry number `retry` (from 0), at most; the drawn one lies below.
    pub(super) fn longest_pause(&self, retry: u32) -> Duration {
        let doubled = self.backoff_base_millis.saturating_mul(1 << retry.min(20));
        Duration::from_millis(doubled.min(self.backoff_cap_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_setting_is_refused_by_name() {
        let error = serde_json::from_str::<CcdbOptions>(r#"{"retires": 3}"#).unwrap_err();
        assert!(error.to_string().contains("retires"), "{error}");
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let options = CcdbOptions::default();
        let pauses: Vec<_> = (0..8).map(|n| options.longest_pause(n).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(options.longest_pause(u32::MAX).as_millis(), 2000);
    }

    #[test]
    fn a_setting_without_sense_is_named() {
        let options = CcdbOptions { max_redirects: 6, ..CcdbOptions::default() };
        assert_eq!(options.fault().unwrap().0, "max_redirects");
        assert_eq!(CcdbOptions::default().fault(), None);
    }
}
