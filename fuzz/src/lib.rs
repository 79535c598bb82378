//! External input, parsed as the service parses it: no input may cause a panic, a hang, or an
//! allocation larger than its bytes justify.
//!
//! Each function is the body of a `cargo fuzz` target. An ordinary test (`tests/corpus.rs`) runs it
//! over the versioned corpus.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::{Once, OnceLock};

use arrow_flight::FlightData;
use iovcache::ObjectId;
use iovcache::server::{Keys, silence_decode_panics, timestamps_of_messages};
use iovcache::shm::attach::{Announcement, AttachRefusal, LineReader, parse_hello, parse_line};
use iovcache::shm::{Block, Mappings, MetaHeader, Pool, PoolOptions};
use iovcache::source::repository::Properties;
use iovcache::table::{
    Consumed, DropTimeframe, Invalidate, Prefetch, Register, Release, Request, parse_action,
};

/// A Flight stream of timestamps: messages, each as the u16 lengths of its header and body,
/// followed by both.
pub fn flight(data: &[u8]) {
    static HUSHED: Once = Once::new();
    HUSHED.call_once(silence_decode_panics);
    let mut messages = Vec::new();
    let mut rest = data;
    while let Some((lengths, more)) = rest.split_at_checked(4) {
        let length = |at: usize| usize::from(u16::from_le_bytes([lengths[at], lengths[at + 1]]));
        let (header, more) = more.split_at(length(0).min(more.len()));
        let (body, more) = more.split_at(length(2).min(more.len()));
        messages.push(FlightData {
            data_header: header.to_vec().into(),
            data_body: body.to_vec().into(),
            ..FlightData::default()
        });
        rest = more;
    }
    let _ = timestamps_of_messages(messages);
}

/// JSON commands, and the bodies of actions.
pub fn commands(data: &[u8]) {
    let _ = Request::parse(data);
    let _ = Request::parse_template(data);
    let _ = Register::parse(data);
    let _ = Consumed::parse(data);
    let _ = Prefetch::parse(data);
    let _ = parse_action::<Invalidate>("invalidate", data);
    let _ = parse_action::<DropTimeframe>("drop_timeframe", data);
    let _ = parse_action::<Release>("release", data);
}

/// Lines on the attach socket, at both ends.
pub fn attach(data: &[u8]) {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let mut reader = LineReader::default();
    for piece in data.chunks(4_096) {
        ours.write_all(piece).expect("it fits into the socket");
        // Each piece is at most as long as one read.
        if reader.read(&theirs).is_err() {
            return;
        }
        while let Some(line) = reader.line() {
            let _ = parse_hello(&line);
            let _ = parse_line(&line);
            let _ = serde_json::from_slice::<Announcement>(&line);
            let _ = serde_json::from_slice::<AttachRefusal>(&line);
        }
    }
}

/// Metadata of an object: a parsed file is written, and must parse to equal metadata again.
pub fn properties(data: &[u8]) {
    if let Ok(read) = Properties::parse(data) {
        let again = Properties::parse(&read.to_bytes()).expect("what we wrote");
        assert_eq!(again, read);
    }
}

/// MetaHeaders forged from real ones: the input selects a header and the bits to flip in it.
pub fn resolver(data: &[u8]) {
    static MEMORY: OnceLock<Memory> = OnceLock::new();
    let memory = MEMORY.get_or_init(Memory::new);
    for forged in data.chunks(1 + MetaHeader::BYTES) {
        let Some((which, changes)) = forged.split_first() else { return };
        let block = &memory.blocks[usize::from(*which) % memory.blocks.len()];
        let mut bytes = block.meta_header().to_bytes();
        for (byte, change) in bytes.iter_mut().zip(changes) {
            *byte ^= change;
        }
        let Ok(header) = MetaHeader::from_bytes(&bytes) else { continue };
        if let Ok(resolved) = memory.mappings.read(&header) {
            // A header resolves only to a live block, and to all of its bytes.
            let lives = memory.blocks.iter().find(|block| block.meta_header().hint == header.hint);
            let lives = lives.expect("a block of that generation");
            assert_eq!(resolved, lives.payload());
            assert_eq!(memory.mappings.locate(&header).map(|found| found.size), Ok(resolved.len()));
            assert!(memory.mappings.object_id(&header).is_ok());
        }
        let _ = memory.mappings.still_valid(&header);
    }
}

/// Blocks of several sizes in several segments.
struct Memory {
    blocks: Vec<Block>,
    mappings: Mappings,
    _pool: Pool,
}

impl Memory {
    fn new() -> Self {
        let segment_bytes = 64 << 10;
        let options = PoolOptions { segment_bytes, ..PoolOptions::default() };
        let pool = Pool::new(options).expect("shared memory");
        let blocks = [0, 1, 63, 64, 65, 4_096, 40_000, 50_000].iter().zip(1..);
        let blocks = blocks.map(|(&size, id)| {
            let mut reservation = pool.reserve(size).expect("room");
            reservation.fill(&vec![id; size as usize]);
            reservation.publish(ObjectId::from_bytes([id; 16]))
        });
        let blocks = blocks.collect();
        let mappings = pool.mappings();
        Self { blocks, mappings, _pool: pool }
    }
}

/// The file of keys.
pub fn keys(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Keys::parse(text);
    }
}
