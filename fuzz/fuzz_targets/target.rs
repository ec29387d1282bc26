//! The source file of all fuzz binaries: each binary runs the target that has its name.

#![no_main]

#[path = "../../tests/fuzz_targets/mod.rs"]
mod fuzz_targets;

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = env!("CARGO_BIN_NAME");
    fuzz_targets::TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .expect("a target with this binary's name")
        .1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
