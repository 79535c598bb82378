//! Conformance tests: properties that hold for every backing, between a pool and its readers.
//!
//! The consumer's side is tested twice: with segments mapped like in a consumer, and with the
//! pool's own mappings, its counterpart within one process.
#![allow(unsafe_code)]

mod backings;
mod contents;
mod resolving;
mod segments;
