//! Compiles `proto/` into Rust and into the descriptor set that reflection serves.
//!
//! It uses protox and not protoc, so that a build needs only a Rust toolchain. The descriptor set keeps the comments
//! (source info), so that `grpcurl describe` prints the documentation.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

/// The files to compile. They import all others.
const FILES: [&str; 7] = [
    "devp2p/v1/discovery.proto",
    "devp2p/v1/node.proto",
    "devp2p/v1/peer.proto",
    "devp2p/v1/protocol.proto",
    "devp2p/v1/message.proto",
    "google/rpc/status.proto",
    "google/rpc/error_details.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;
    let descriptors = compiler.file_descriptor_set();

    let out = env::var("OUT_DIR")?;
    fs::write(Path::new(&out).join("descriptors.binpb"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
