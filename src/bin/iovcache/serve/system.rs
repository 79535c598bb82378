//! System limits at the start: open files, and the memory of the control group.

use iovcache::server::{Config, Descriptors, Limits, ServeOptions};

/// Fewer connections than this are logged as a warning.
const FEW_CONNECTIONS: usize = 1_024;

/// Raises the limit of open files to the system's maximum: each connection and segment takes a
/// descriptor. The usual limit of 1,024 exists for programs that use select(2).
pub(super) fn open_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// Lowers the limits of connections to the number that the limit of open files allows.
pub(super) fn share_descriptors(config: &Config, options: &mut ServeOptions) {
    let segments = config.memory.bytes().div_ceil(config.segment.bytes());
    let descriptors = match Descriptors::of_this_process(segments) {
        Ok(descriptors) => descriptors,
        Err(error) => return tracing::warn!(%error, "connections are limited as configured"),
    };
    let shares = descriptors.share(&options.limits, config.ccdb_server.listen.is_some());
    let (configured, connections) = (options.limits.connections, shares.limits.connections);
    let was_asked_for = configured != Limits::default().connections;
    if connections < configured && (was_asked_for || connections < FEW_CONNECTIONS) {
        tracing::warn!(
            open_files = descriptors.limit,
            configured,
            connections,
            "the limit of open files (ulimit -n, LimitNOFILE=) allows fewer connections than \
             `limits.connections`"
        );
    }
    options.limits = shares.limits;
    options.http_connections = shares.http_connections;
    options.ccdb_connections = shares.ccdb_connections;
}

/// Warns at the start if the control group allows less memory than configured, or if a segment of
/// the configured size does not fit into the memory.
pub(super) fn compare_memory(config: &Config) {
    let (memory_bytes, segment_bytes) = (config.memory.bytes(), config.segment.bytes());
    if segment_bytes > memory_bytes && config.segment != Config::default().segment {
        tracing::warn!(
            memory_bytes,
            segment_bytes,
            "a segment is larger than `memory`: segments are made as large as the memory allows"
        );
    }
    if let Some(allowed_bytes) = iovcache::shm::memory_allowed()
        && allowed_bytes < memory_bytes
    {
        tracing::warn!(
            memory_bytes,
            allowed_bytes,
            "the control group (MemoryMax, a container's limit) allows less memory than `memory`: \
             segments beyond that are not made"
        );
    }
}
