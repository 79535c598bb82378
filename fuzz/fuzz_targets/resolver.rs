#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iovcache_fuzz::resolver(data));
