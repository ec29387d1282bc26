//! The fuzz targets: one function per codec and per engine. Each takes any bytes, and panics if it finds a fault.
//!
//! The functions are compiled twice. `fuzz/` runs each of them with libFuzzer. `tests/fuzz_corpus.rs` replays the
//! inputs in `fuzz/corpus/`, so that `cargo test` on a stable toolchain runs every path that those inputs reach.
//!
//! To add a target: write the function, add a line to [`TARGETS`] and one to `fuzz/Cargo.toml`, and put an input into
//! `fuzz/corpus/<name>/`. The replay fails if one of the four is missing, and names it.

mod delivery;
mod discv4;
mod discv5;
mod dnsdisc;
mod kademlia;
mod node;
mod p2p;
mod policy;
mod rlpx;

/// A target: its name, which its binary and its corpus have as well, and its function.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All targets, room by room.
pub(crate) const TARGETS: &[Target] = &[
    ("enode_url", node::enode_url),
    ("record", node::record),
    ("rlp", node::rlp),
    ("kademlia_table", kademlia::kademlia_table),
    ("discv4_engine", discv4::discv4_engine),
    ("discv4_packet", discv4::discv4_packet),
    ("discv5_engine", discv5::discv5_engine),
    ("discv5_message", discv5::discv5_message),
    ("discv5_packet", discv5::discv5_packet),
    ("dns_entry", dnsdisc::dns_entry),
    ("dns_tree", dnsdisc::dns_tree),
    ("rlpx_ecies", rlpx::rlpx_ecies),
    ("rlpx_frame", rlpx::rlpx_frame),
    ("rlpx_handshake", rlpx::rlpx_handshake),
    ("snappy", rlpx::snappy),
    ("disconnect", p2p::disconnect),
    ("hello", p2p::hello),
    ("p2p_connection", p2p::p2p_connection),
    ("admission", policy::admission),
    ("dial_scheduler", policy::dial_scheduler),
    ("inbox", delivery::inbox),
    ("lease", delivery::lease),
    ("watch", delivery::watch),
];
