//! Golden files: the bytes of released versions, as consumers in every language read them.

use std::path::{Path, PathBuf};

use super::layout::{BLOCK_OVERHEAD_BYTES, SEGMENT_HEADER_BYTES};
use super::{MetaHeader, Pool, PoolOptions};
use crate::object::ObjectId;

const GENERATION: u64 = 0x0102_0304_0506_0708;
const PAYLOAD: &[u8] = b"123456789";

fn schemas() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

/// The head of a segment and its first block, as this version writes them.
fn written() -> (Vec<u8>, MetaHeader, u64) {
    let pool = Pool::new(PoolOptions {
        memory_bytes: 64 << 10,
        first_generation: Some(GENERATION),
        ..PoolOptions::default()
    })
    .unwrap();
    let mut reservation = pool.reserve(PAYLOAD.len() as u64).unwrap();
    reservation.fill(PAYLOAD);
    let block = reservation.publish(ObjectId::from_bytes(*b"0123456789abcdef"));
    let segments = pool.segments();
    let mut bytes = vec![0; SEGMENT_HEADER_BYTES as usize + 128];
    let file = segments[0].file().unwrap();
    assert_eq!(rustix::io::pread(file, &mut bytes, 0), Ok(SEGMENT_HEADER_BYTES as usize + 128));
    (bytes, block.meta_header(), pool.epoch().0)
}

#[test]
fn a_block_is_byte_for_byte_as_drawn() {
    let (bytes, header, _) = written();
    let golden = std::fs::read(schemas().join("golden/block.bin")).unwrap();
    let block = &bytes[SEGMENT_HEADER_BYTES as usize..][..BLOCK_OVERHEAD_BYTES as usize + 9];
    assert_eq!(block, golden);
    assert_eq!(header, MetaHeader::managed(0, 4096 + 48, 9, GENERATION));
    // And by hand, following the drawing: CRC-32C of "123456789" is E3069283.
    let mut drawn = Vec::new();
    drawn.extend([8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0]);
    drawn.extend(b"0123456789abcdef");
    drawn.extend([0x83, 0x92, 0x06, 0xE3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    drawn.extend([2, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    drawn.extend(PAYLOAD);
    assert_eq!(block, drawn);
}

#[test]
fn the_head_of_a_segment_is_as_drawn() {
    let (bytes, _, epoch) = written();
    let mut drawn = vec![0; SEGMENT_HEADER_BYTES as usize];
    // The first 256 bytes are those of Boost 1.74 after one allocation of everything in a segment
    // of 64 KiB, as read from such a segment.
    drawn[0] = 2;
    drawn[32] = 0x80;
    drawn[64] = 1;
    drawn[72..80].copy_from_slice(&0xffff_ffff_ffff_fff8_u64.to_le_bytes());
    drawn[80..88].copy_from_slice(&0xffff_ffff_ffff_fff0_u64.to_le_bytes());
    drawn[88] = 0x30;
    drawn[96..104].copy_from_slice(&0xff50_u64.to_le_bytes());
    drawn[104..112].copy_from_slice(&0xfff0_u64.to_le_bytes());
    drawn[128] = 0x81;
    drawn[160..168].copy_from_slice(&0xff5_u64.to_le_bytes());
    drawn[168..176].copy_from_slice(&0xc000_0000_0000_0ff5_u64.to_le_bytes());
    drawn[256..264].copy_from_slice(b"IOVCACHE");
    drawn[264] = 2;
    drawn[272..280].copy_from_slice(&epoch.to_le_bytes());
    drawn[288..296].copy_from_slice(&(64_u64 << 10).to_le_bytes());
    assert_eq!(&bytes[..SEGMENT_HEADER_BYTES as usize], drawn);
}

#[test]
fn headers_are_those_of_the_shared_vectors() {
    #[derive(serde::Deserialize)]
    struct Vector {
        size: u64,
        hint: u64,
        handle: i64,
        shared: i64,
        region_id: u16,
        segment_id: u16,
        managed: u8,
        bytes: String,
    }
    let shared = std::env::var_os("IOVCACHE_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let text = match std::fs::read_to_string(shared.join("data/vectors/metaheader.json")) {
        Ok(text) => text,
        // Two of them are included here, for builds without the data.
        Err(_) => r#"[
            {"size": 1099511627776, "hint": 18446744073709551615, "handle": 70368744177664,
             "shared": -1, "region_id": 0, "segment_id": 65535, "managed": 1,
             "bytes": "0000000000010000ffffffffffffffff0000000000400000ffffffffffffffff0000ffff01000000"},
            {"size": 64, "hint": 42, "handle": 0, "shared": -1, "region_id": 2000, "segment_id": 0,
             "managed": 0,
             "bytes": "40000000000000002a000000000000000000000000000000ffffffffffffffffd007000000000000"}
        ]"#
        .to_owned(),
    };
    let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap();
    assert!(vectors.len() >= 2);
    for vector in vectors {
        let header = MetaHeader {
            size: vector.size,
            hint: vector.hint,
            handle: vector.handle,
            shared: vector.shared,
            region_id: vector.region_id,
            segment_id: vector.segment_id,
            managed: vector.managed,
            pad: [0; 3],
        };
        let bytes = header.to_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, vector.bytes);
        assert_eq!(MetaHeader::from_bytes(&bytes), Ok(header));
    }
}
