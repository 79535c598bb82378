//! Values of a configuration that are invalid, or that contradict each other.

use std::path::Path;

use super::service::{Config, TlsConfig};
use crate::cache::SlowConsumer;
use crate::server::units::ByteSize;
use crate::shm::{SegmentCreation, shmid_of_text};

/// Reason for a key that has an effect only together with a FairMQ session.
const SESSION_NEEDED: &str = "fairmq_session or fairmq_shmid is needed with it";

/// The faults found so far: key and reason of each.
#[derive(Debug, Default)]
struct KeyFaults(Vec<(String, String)>);

impl KeyFaults {
    fn add(&mut self, key: &str, reason: impl Into<String>) {
        self.0.push((key.to_owned(), reason.into()));
    }

    fn add_if(&mut self, is_wrong: bool, key: &str, reason: &str) {
        if is_wrong {
            self.add(key, reason);
        }
    }
}

/// The keys that name a FairMQ session, of those that are given.
fn fairmq_keys(config: &Config) -> Vec<&'static str> {
    let keys = [
        ("fairmq_shmid", config.fairmq_shmid.is_some()),
        ("fairmq_session", config.fairmq_session.is_some()),
    ];
    keys.into_iter().filter_map(|(key, is_given)| is_given.then_some(key)).collect()
}

/// Checks the pairs of metadata keys for the times of runs.
fn check_run_metadata(config: &Config, faults: &mut KeyFaults) {
    let is_pair = |pair: &String| {
        let names = pair.split_once(':');
        names.is_some_and(|(from, until)| !from.is_empty() && !until.is_empty())
    };
    if let Some(wrong) = config.run_metadata.iter().find(|pair| !is_pair(pair)) {
        faults.add("run_metadata", format!("{wrong:?} is no pair of names, as \"SOR:EOR\""));
    }
}

/// Checks the keys of segments in a FairMQ session, and that a region is not used beside one.
fn check_fairmq(config: &Config, faults: &mut KeyFaults) {
    let given = fairmq_keys(config);
    match (&given[..], config.fairmq_segment) {
        ([], Some(_)) => faults.add("fairmq_segment", SESSION_NEEDED),
        ([one], None) => faults.add(one, "fairmq_segment is needed with it"),
        ([one, other], _) => faults.add(other, format!("either this or {one}")),
        _ => {}
    }
    let is_on_demand = config.fairmq_create == SegmentCreation::WhenNeeded;
    let dependent = [
        ("fairmq_register", config.fairmq_register.is_some()),
        ("fairmq_create", is_on_demand),
        ("fairmq_renew", config.fairmq_renew),
    ];
    for (key, is_given) in dependent {
        faults.add_if(is_given && given.is_empty(), key, SESSION_NEEDED);
    }
    faults.add_if(
        is_on_demand && !given.is_empty() && config.fairmq_register.is_none(),
        "fairmq_create",
        "fairmq_register is needed with it: devices find no segment that is not registered",
    );
    if let Some(Err(error)) = config.fairmq_shmid.as_deref().map(shmid_of_text) {
        faults.add("fairmq_shmid", error);
    }
    if let (Some(one), true) = (given.first(), config.region.is_some()) {
        faults.add("region", format!("either this or {one}: objects are in one place"));
    }
}

/// Checks that a certificate and its key are given together.
fn check_tls(tls: &TlsConfig, faults: &mut KeyFaults) {
    let (has_certificate, has_key) = (tls.certificate.is_some(), tls.key.is_some());
    let (needs_key, needs_certificate) =
        ("tls.key is needed with it", "tls.certificate is needed with it");
    faults.add_if(has_certificate && !has_key, "tls.certificate", needs_key);
    faults.add_if(has_key && !has_certificate, "tls.key", needs_certificate);
    faults.add_if(tls.client_ca.is_some() && !has_certificate, "tls.client_ca", needs_certificate);
}

/// Checks the URLs of sources, those of replaced paths included.
fn check_sources(config: &Config, faults: &mut KeyFaults) {
    let sources = config.sources.iter().enumerate();
    let sources = sources.map(|(index, source)| (format!("source[{index}].url"), &source.url));
    let remaps = config.remaps.iter().enumerate();
    let remaps = remaps.filter_map(|(index, remap)| {
        Some((format!("remap[{index}].source"), remap.source.as_ref()?))
    });
    for (key, url) in sources.chain(remaps) {
        if let Err(error) = crate::source::check_url(url) {
            faults.add(&key, error.to_string());
        }
    }
}

/// Least memory of a service, and least size of a segment.
const LEAST_SIZE: ByteSize = ByteSize::new(64 << 10);

/// Checks the sizes of memory and segments. A region brings its own size.
fn check_sizes(config: &Config, faults: &mut KeyFaults) {
    if config.region.is_some() {
        return;
    }
    for (key, size) in [("memory", config.memory), ("segment", config.segment)] {
        if size < LEAST_SIZE {
            faults.add(key, format!("{size} is too little, expected at least {LEAST_SIZE}"));
        }
    }
}

/// Why a file cannot be the default object of a path.
fn default_object_fault(file: &Path) -> Option<String> {
    match std::fs::File::open(file).and_then(|file| file.metadata()) {
        Ok(metadata) if metadata.is_file() => None,
        Ok(_) => Some("not a regular file".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

/// Checks that the default objects of paths can be read.
fn check_paths(config: &Config, faults: &mut KeyFaults) {
    for (index, path) in config.paths.iter().enumerate() {
        let Some(file) = &path.default else { continue };
        if let Some(reason) = default_object_fault(file) {
            faults.add(&format!("path[{index}].default"), format!("{}: {reason}", file.display()));
        }
    }
}

impl Config {
    /// Key and reason of each value that is invalid or contradicts another key.
    pub(super) fn faults(&self) -> Vec<(String, String)> {
        let mut faults = KeyFaults::default();
        check_sizes(self, &mut faults);
        check_run_metadata(self, &mut faults);
        check_fairmq(self, &mut faults);
        check_tls(&self.tls, &mut faults);
        faults.add_if(
            self.slow_consumer != SlowConsumer::default() && self.slow_after.is_none(),
            "slow_consumer",
            "slow_after is needed with it",
        );
        if let Some((name, reason)) = self.ccdb.fault() {
            faults.add(&format!("ccdb.{name}"), reason);
        }
        check_sources(self, &mut faults);
        check_paths(self, &mut faults);
        faults.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_at_fault(config: &Config) -> Vec<String> {
        config.faults().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn keys_of_a_fairmq_session_are_refused_without_one() {
        let config = Config {
            fairmq_create: SegmentCreation::WhenNeeded,
            fairmq_renew: true,
            ..Config::default()
        };
        assert_eq!(keys_at_fault(&config), ["fairmq_create", "fairmq_renew"]);
        let config = Config {
            fairmq_session: Some("name".to_owned()),
            fairmq_shmid: Some("0000000a".to_owned()),
            ..Config::default()
        };
        assert_eq!(keys_at_fault(&config), ["fairmq_session"], "two names of a session");
    }

    #[test]
    fn memory_and_segments_have_a_least_size() {
        let faults = |memory: u64, segment: u64| {
            let (memory, segment) = (ByteSize::new(memory), ByteSize::new(segment));
            keys_at_fault(&Config { memory, segment, ..Config::default() })
        };
        assert_eq!(faults(64 << 10, 64 << 10), Vec::<String>::new());
        assert_eq!(faults(65_535, 65_535), ["memory", "segment"]);
        assert_eq!(faults(0, 0), ["memory", "segment"]);
        let region = "7=/dev/shm/r".parse().ok();
        let memory = ByteSize::new(0);
        assert_eq!(keys_at_fault(&Config { memory, region, ..Config::default() }), [""; 0]);
    }

    #[test]
    fn a_certificate_and_its_key_need_each_other() {
        let faults = |certificate: bool, key: bool, client_ca: bool| {
            let file = |is_given: bool| is_given.then(|| "/file.pem".into());
            let tls = TlsConfig {
                certificate: file(certificate),
                key: file(key),
                client_ca: file(client_ca),
            };
            keys_at_fault(&Config { tls, ..Config::default() })
        };
        assert_eq!(faults(true, true, true), Vec::<String>::new());
        assert_eq!(faults(true, false, false), ["tls.certificate"]);
        assert_eq!(faults(false, true, true), ["tls.key", "tls.client_ca"]);
    }
}
