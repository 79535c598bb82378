//! Values of a configuration that are invalid, or that contradict each other.

use std::collections::HashMap;

use super::service::{Config, SegmentBacking, TlsConfig};
use crate::cache::SlowConsumer;
use crate::object::ObjectPath;
use crate::server::units::ByteSize;
use crate::shm::{SegmentCreation, shmid_of_text};
use crate::source::folder_of;
use crate::table::RequestLimits;

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

/// Checks the names of folders: an empty one would be the current folder, and a URL a folder in it.
fn check_folders(config: &Config, faults: &mut KeyFaults) {
    let shm_folder = Some(&config.shm_folder);
    let folders = [
        ("socket", config.socket.as_ref()),
        ("shm_folder", shm_folder.filter(|_| config.backing == SegmentBacking::Shm)),
        ("disk", config.disk.as_ref()),
    ];
    for (key, folder) in folders {
        let Some(text) = folder.and_then(|folder| folder.to_str()) else { continue };
        match folder_of(text) {
            Err(reason) => faults.add(key, reason),
            Ok(folder) if folder.to_str() != Some(text) => {
                faults.add(key, format!("write {} for {text:?}", folder.display()));
            }
            Ok(_) => {}
        }
    }
}

/// Why `prefix` is no path at or below which others can be. Empty, it is above all paths.
fn prefix_fault(prefix: &str) -> Option<String> {
    let path = prefix.strip_suffix('/').unwrap_or(prefix);
    let checked = if prefix.is_empty() { None } else { Some(ObjectPath::new(path)) };
    checked?.err().map(|error| error.to_string())
}

/// Checks the limits of sources to paths.
fn check_source_paths(config: &Config, faults: &mut KeyFaults) {
    for (index, source) in config.sources.iter().enumerate() {
        if let Some(reason) = source.paths.iter().find_map(|prefix| prefix_fault(prefix)) {
            faults.add(&format!("source[{index}].paths"), reason);
        }
    }
}

/// Checks that each path is given once.
fn check_unique<'a>(section: &str, paths: impl Iterator<Item = &'a str>, faults: &mut KeyFaults) {
    let mut first = HashMap::new();
    for (index, path) in paths.enumerate() {
        let earlier = *first.entry(path.trim_end_matches('/')).or_insert(index);
        if earlier != index {
            let key = format!("{section}[{index}].path");
            faults.add(&key, format!("{path:?} is the path of {section}[{earlier}] already"));
        }
    }
}

/// Checks the paths with settings, and that their default objects can be read.
fn check_paths(config: &Config, faults: &mut KeyFaults) {
    check_unique("path", config.paths.iter().map(|path| &*path.path), faults);
    check_unique("remap", config.remaps.iter().map(|remap| remap.path.as_str()), faults);
    for (index, path) in config.paths.iter().enumerate() {
        if let Some(reason) = prefix_fault(&path.path) {
            faults.add(&format!("path[{index}].path"), reason);
        }
        let Some(file) = &path.default else { continue };
        if let Err(error) = crate::source::open_regular(file) {
            faults.add(&format!("path[{index}].default"), format!("{}: {error}", file.display()));
        }
    }
}

/// Checks limits with which no request could be answered, or which are above what is possible.
fn check_limits(config: &Config, faults: &mut KeyFaults) {
    let (limits, requests) = (&config.limits, config.limits.requests());
    let bytes = |size: ByteSize| Some(size.bytes());
    let counts = [
        ("max_timeframes", Some(config.max_timeframes as u64)),
        ("quota_requests", config.quota_requests),
        ("limits.request_memory", bytes(limits.request_memory)),
        ("limits.connections", Some(limits.connections as u64)),
        ("limits.connections_per_peer", Some(limits.connections_per_peer as u64)),
        ("limits.calls", Some(limits.calls as u64)),
        ("limits.streams", Some(limits.streams.into())),
        ("limits.headers", bytes(limits.headers)),
        ("limits.message", bytes(limits.message)),
        ("limits.columns", Some(requests.columns as u64)),
        ("limits.queries", Some(requests.queries as u64)),
        ("limits.name", Some(requests.name_bytes as u64)),
    ];
    for (key, count) in counts {
        faults.add_if(count == Some(0), key, "0 allows nothing, expected at least 1");
    }
    let most = RequestLimits::MOST;
    let bounded = [
        ("limits.columns", requests.columns, most.columns),
        ("limits.consumers", requests.consumers, most.consumers),
        ("limits.path_ranges", requests.path_ranges, most.path_ranges),
        ("limits.key_values", requests.key_values, most.key_values),
        ("limits.queries", requests.queries, most.queries),
        ("limits.lock_entries", requests.lock_entries, most.lock_entries),
        ("limits.name", requests.name_bytes, most.name_bytes),
        ("limits.metadata", requests.metadata_bytes, most.metadata_bytes),
    ];
    for (key, got, most) in bounded {
        if got > most {
            faults.add(key, format!("{got} is too much, expected at most {most}"));
        }
    }
}

/// Checks that some version can pass the limits on the time of creation.
fn check_creation_times(config: &Config, faults: &mut KeyFaults) {
    if let (Some(not_before), Some(not_after)) = (config.not_before, config.not_after)
        && not_after < not_before
    {
        let reason = format!("{not_after} is before not_before, {not_before}: no version is seen");
        faults.add("not_after", reason);
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
        check_limits(self, &mut faults);
        check_creation_times(self, &mut faults);
        check_folders(self, &mut faults);
        check_sources(self, &mut faults);
        check_source_paths(self, &mut faults);
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
    fn limits_that_refuse_every_request_or_are_above_the_possible_are_refused() {
        let faults = |text: &str| match Config::parse(text) {
            Ok(_) => Vec::new(),
            Err(error) => error.faults.into_iter().map(|fault| fault.key).collect::<Vec<_>>(),
        };
        for key in ["max_timeframes", "quota_requests"] {
            assert_eq!(faults(&format!("{key} = 0")), [key]);
            assert_eq!(faults(&format!("{key} = 1")), [""; 0]);
        }
        for key in ["connections", "connections_per_peer", "calls", "streams"] {
            assert_eq!(faults(&format!("[limits]\n{key} = 0")), [format!("limits.{key}")]);
        }
        for (key, most) in [
            ("columns", "10000"),
            ("consumers", "1000"),
            ("path_ranges", "1000"),
            ("key_values", "10000"),
            ("queries", "200000"),
            ("lock_entries", "100000"),
        ] {
            assert_eq!(faults(&format!("[limits]\n{key} = {most}")), [""; 0]);
            assert_eq!(faults(&format!("[limits]\n{key} = {most}1")), [format!("limits.{key}")]);
        }
        assert_eq!(faults("[limits]\nname = \"257B\"\nmetadata = \"65KiB\"").len(), 2);
        assert_eq!(faults("not_after = 4\nnot_before = 5"), ["not_after"]);
        assert_eq!(faults("not_after = 5\nnot_before = 5"), [""; 0]);
    }

    #[test]
    fn paths_follow_their_grammar_and_are_given_once() {
        let faults = |text: &str| match Config::parse(text) {
            Ok(_) => Vec::new(),
            Err(error) => error.faults.into_iter().map(|fault| fault.key).collect::<Vec<_>>(),
        };
        let path = |path: &str| format!("[[path]]\npath = \"{path}\"\n");
        assert_eq!(faults(&[path("A"), path("A/B"), path("C/"), path("")].concat()), [""; 0]);
        for wrong in ["/A/B", "A//B", " A", "A/../B", "/"] {
            assert_eq!(faults(&path(wrong)), ["path[0].path"], "{wrong}");
            let source = format!("[[source]]\nurl = \"memory:\"\npaths = [\"X\", \"{wrong}\"]\n");
            assert_eq!(faults(&source), ["source[0].paths"], "{wrong}");
        }
        assert_eq!(faults(&[path("A"), path("B"), path("A/")].concat()), ["path[2].path"]);
        let remap = "[[remap]]\npath = \"A/B\"\nto = \"C\"\n";
        assert_eq!(faults(&[remap, remap].concat()), ["remap[1].path"]);
    }

    #[test]
    fn folders_have_a_name_that_is_no_url() {
        for folder in ["", "file:///data", "s3://bucket/x"] {
            let shm = format!("backing = \"shm\"\nshm_folder = \"{folder}\"\n");
            let text = format!("{shm}socket = \"{folder}\"\ndisk = \"{folder}\"\n");
            let error = Config::parse(&text).unwrap_err();
            let keys: Vec<_> = error.faults.iter().map(|fault| fault.key.as_str()).collect();
            assert_eq!(keys, ["socket", "shm_folder", "disk"], "{error}");
        }
        let url = Config::parse("[[source]]\nurl = \"s3://\"\n").unwrap_err();
        assert_eq!(url.faults[0].key, "source[0].url");
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
