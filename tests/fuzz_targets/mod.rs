//! What the fuzzer runs: one function per codec and per engine, from any bytes to a panic or to nothing.
//!
//! They are compiled twice. `fuzz/` gives each of them to libFuzzer; `tests/fuzz_corpus.rs` replays the inputs kept
//! in `fuzz/corpus/`, so that `cargo test` on a stable toolchain walks every path that fuzzing ever found.
//!
//! To add one: write the function, add a line to [`TARGETS`] and one to `fuzz/Cargo.toml`, put an input into
//! `fuzz/corpus/<name>/`. The replay fails, and says what is missing, if any of the four is forgotten.

mod delivery;
mod node;
mod policy;

/// A target: its name, which is also its binary's and its corpus's, and its function.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All targets.
pub(crate) const TARGETS: &[Target] = &[
    ("enode_url", node::enode_url),
    ("inbox", delivery::inbox),
    ("lease", delivery::lease),
    ("record", node::record),
    ("rlp", node::rlp),
    ("watch", delivery::watch),
];
