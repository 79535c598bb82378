//! The C ABI from outside: the header is the one that the code makes, and programs in C and C++
//! use the library under AddressSanitizer and UndefinedBehaviorSanitizer.

use std::path::Path;
use std::{env, fs};

#[test]
fn the_header_is_what_the_code_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["mod", "status", "attach", "resolve", "host", "table"] {
        builder = builder.with_src(root.join("src/ffi").join(file).with_extension("rs"));
    }
    let bindings = builder.with_src(root.join("src/shm/layout.rs")).generate().unwrap();
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let file = root.join("schemas/iovcache.h");
    if env::var_os("IOVCACHE_BLESS").is_some() {
        fs::write(&file, &made).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == made, "IOVCACHE_BLESS=1 cargo test --test capi makes it anew:\n{made}");
}
