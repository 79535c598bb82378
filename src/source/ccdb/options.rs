//! Options of a CCDB source, and their bounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::AllowedPlaces;

/// Limits and behaviour of a [`CcdbSource`](super::CcdbSource). Missing fields have their defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "server", derive(schemars::JsonSchema))]
pub struct CcdbOptions {
    /// Time limit for connecting, in ms. Default 2,000.
    pub connect_millis: u64,
    /// Time limit for the head of an answer, in ms (a replica on the Grid takes seconds).
    /// Default 20,000.
    pub first_byte_millis: u64,
    /// Minimum throughput of a body in bytes per second; slower ones are aborted. Default 65,536;
    /// 0: no minimum.
    pub min_throughput_bytes: u64,
    /// Time over which the throughput is measured, in ms. Default 5,000.
    pub throughput_window_millis: u64,
    /// Time limit for a look-up with all of its attempts, in ms. Default 30,000.
    pub look_up_total_millis: u64,
    /// Time limit for a body with all of its attempts, in ms. Default 600,000.
    pub fetch_total_millis: u64,
    /// Maximum number of redirects in a row. Default 5, which is also the largest value.
    pub max_redirects: u32,
    /// Maximum size of a body in bytes. Default 8 GiB.
    pub max_size_bytes: u64,
    /// Number of further rounds over all hosts after transient failures. Default 3.
    pub retries: u32,
    /// Upper limit of the pause before the first retry, in ms. It doubles for each further retry;
    /// the pause is drawn evenly between 0 and it ("full jitter"). Default 50.
    pub backoff_base_millis: u64,
    /// Value at which that limit stops growing, in ms. Default 2,000.
    pub backoff_cap_millis: u64,
    /// Number of refused or timed-out connections in a row after which a host is not asked: requests
    /// fail at once, or wait on if they wait for it already. Default 3.
    pub breaker_failures: u32,
    /// Time for which it is not asked, before it is tried once more, in ms. Default 1,000.
    pub breaker_open_millis: u64,
    /// Maximum number of concurrent look-ups, and of concurrent bodies, per host. It is reduced
    /// while the host reports overload. Default 64.
    pub max_concurrent: usize,
    /// Maximum number of versions of a path that is listed whole. Below it, measured times of
    /// listings and of look-ups by time decide. Default 100,000; 0: never list.
    pub browse_limit: usize,
    /// Time after which a path that was not listed is listed again, in ms. All versions of a listed
    /// path are compared three times within it, and it is listed again after three times as long.
    /// Default 600,000.
    pub listing_recheck_millis: u64,
    /// Lifetime of an answer, in ms. Default 10,000.
    pub refresh_millis: u64,
    /// Other places that redirects and replicas may lead to: `host`, `host:port`, `*.domain`, or a
    /// network such as `10.0.0.0/8` (for addresses, not for names). Default: only the hosts of the
    /// source's URL.
    pub allowed_redirects: Vec<String>,
    /// Maximum number of versions whose replicas are remembered. Default 20,000.
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
    /// The first option with an invalid value, and the fault.
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

    /// Upper limit of the pause before retry number `retry` (from 0).
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
