//! devp2pd: the whole devp2p stack as one process, served over gRPC.
//!
//! The program is `devp2pd`. A program or a test that runs a sidecar itself needs [`Config`] and [`App`]: a sidecar
//! handles no signals, writes no log and changes no limits of the process, so any number of them run side by side. The
//! types that they need stand at the root of this crate. Everything else is private (see [Visibility](#visibility)).
//!
//! ```
//! use devp2pd::{App, Config, StartError};
//!
//! # fn main() -> Result<(), StartError> {
//! # let runtime = tokio::runtime::Runtime::new().expect("a runtime");
//! # runtime.block_on(async {
//! // A node by itself on loopback, with ports that the system chooses and a temporary data directory.
//! let config = Config { identity: Some("example".to_owned()), ..Config::default() };
//! let sidecar = App::start(config).await?;
//! let started = sidecar.started();
//! let enode = started.enode.as_ref().expect("it accepts peers").to_string();
//! assert!(enode.starts_with("enode://") && enode.contains("@127.0.0.1:"));
//! println!("{enode}, gRPC on {}", started.grpc_addr);
//! sidecar.stop().await;
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! Each setting is a field, and each type of a field has its name here:
//!
//! ```
//! use std::num::NonZeroU64;
//!
//! use devp2pd::{Capability, Config, Discovery, Grpc, NatMethod, Peers, Rates, Rehello};
//!
//! let config = Config {
//!     peers: Peers {
//!         max_peers: 10,
//!         nat: NatMethod::ExtIp(vec!["192.0.2.1".parse()?]),
//!         bandwidth: Rates { peer_in: NonZeroU64::new(1 << 20), ..Rates::default() },
//!         rehello: Rehello::None,
//!         ..Peers::default()
//!     },
//!     discovery: Discovery { v4: false, ..Discovery::default() },
//!     grpc: Grpc { message_counts: vec![Capability::new("demo", 1, 4)], ..Grpc::default() },
//!     http_addr: None,
//!     ..Config::default()
//! };
//! assert!(config.discovery.v5 && config.peers.dial);
//! # Ok::<(), std::net::AddrParseError>(())
//! ```
//!
//! # Visibility
//!
//! The modules below are private. The feature `internals` makes them public for the tests, benches, examples and fuzz
//! targets of this package, which switches it on for itself; it promises nothing to other users (`docs/decisions/`). A
//! build without the feature, as that of the program, shows code that is not reached: the gate denies such dead code.
//!
//! # Rooms
//!
//! A folder is one idea. The upper block is pure: values and state machines, no async, no sockets, no files, no
//! clocks ([`Now`] is an argument), no ambient randomness (an RNG is an argument). The lower block does I/O and
//! decides as little as it can. `tests/layering.rs` holds both rules.
//!
//! | room | what it is |
//! | --- | --- |
//! | [`node`] | the identity of a node: key, id, endpoint, enode URL, record, fork id; the addresses that we may write to, and rations for strangers |
//! | [`kademlia`] | the table and the searches of both discovery protocols |
//! | [`discv4`] | node discovery v4: signed packets, endpoint proof, records on request |
//! | [`discv5`] | node discovery v5.1: encrypted sessions, challenges, requests and answers, TALKREQ for applications |
//! | [`dnsdisc`] | node lists in the DNS: signed trees and the client that walks them |
//! | [`rlpx`] | the encrypted transport: handshake, frames, snappy |
//! | [`p2p`] | the base protocol: Hello, Disconnect, capabilities, one connection's engine |
//! | [`delivery`] | from peers to applications: bounded queues that outlive streams, credit, overflow, every loss reported |
//! | [`lease`] | the owner of each capability, the duration of ownership, and the right to act for an owner |
//! | [`watch`] | state copied to watchers: snapshot, changes, marks to resume from |
//! | [`policy`] | which nodes are dialed, which are let in, which stay, and why |
//! | [`switch`] | the one owner of peers and registrations: an engine made of the parts above |
//! | [`net`] | drivers, one socket or file each, and the loop around the switch |
//! | [`rpc`] | the gRPC contract: services, errors, reflection |
//! | [`http`] | the probes: read only |
//! | [`app`] | builds, starts and stops all components |
//! | [`config`] | flags, environment and file become one checked configuration |
//! | [`telemetry`] | log events: how they are written, and which |
//! | [`budget`] | open to all rooms: the bounds on the memory that others can make the process hold |
//! | `rlp`, `now`, `wake` | open to all rooms: strict decoding of RLP, the time as an argument, and how a pure room wakes a task |
//! | [`process`] | the process and the system: signals, file limit |
//! | `program` | the program: arguments, configuration, log, a sidecar until a signal, exit code |
//!
//! # The engine contract
//!
//! Every pure state machine has the same shape. It is a shape, not a trait: no code is generic over engines.
//!
//! ```text
//! fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]);   // or handle_bytes, handle_command …
//! fn handle_timeout(&mut self, now: Now);
//! fn poll_timeout(&self) -> Option<Instant>;
//! fn poll_action(&mut self) -> Option<Action>;          // what happened or is wanted; never I/O itself
//! fn poll_transmit(&mut self, now: Now, out: &mut BytesMut) -> Option<…>;    // hot output, into the caller's buffer
//! ```
//!
//! One mutation, drain the actions, re-arm the timer. A peer's fault is an action that names the side at fault, not a
//! `Result`. So whole networks run in virtual time, engines are fuzzed by operation sequences, and any bug is replayed
//! from a seed.

#![cfg_attr(not(feature = "internals"), allow(unreachable_pub))]

#[cfg(not(feature = "internals"))]
mod app;
#[cfg(feature = "internals")]
pub mod app;
#[cfg(not(feature = "internals"))]
mod budget;
#[cfg(feature = "internals")]
pub mod budget;
#[cfg(not(feature = "internals"))]
mod config;
#[cfg(feature = "internals")]
pub mod config;
#[cfg(not(feature = "internals"))]
mod delivery;
#[cfg(feature = "internals")]
pub mod delivery;
#[cfg(not(feature = "internals"))]
mod discv4;
#[cfg(feature = "internals")]
pub mod discv4;
#[cfg(not(feature = "internals"))]
mod discv5;
#[cfg(feature = "internals")]
pub mod discv5;
#[cfg(not(feature = "internals"))]
mod dnsdisc;
#[cfg(feature = "internals")]
pub mod dnsdisc;
#[cfg(not(feature = "internals"))]
mod http;
#[cfg(feature = "internals")]
pub mod http;
#[cfg(not(feature = "internals"))]
mod kademlia;
#[cfg(feature = "internals")]
pub mod kademlia;
#[cfg(not(feature = "internals"))]
mod lease;
#[cfg(feature = "internals")]
pub mod lease;
#[cfg(not(feature = "internals"))]
mod net;
#[cfg(feature = "internals")]
pub mod net;
#[cfg(not(feature = "internals"))]
mod node;
#[cfg(feature = "internals")]
pub mod node;
mod now;
#[cfg(not(feature = "internals"))]
mod p2p;
#[cfg(feature = "internals")]
pub mod p2p;
#[cfg(not(feature = "internals"))]
mod policy;
#[cfg(feature = "internals")]
pub mod policy;
#[cfg(not(feature = "internals"))]
mod process;
#[cfg(feature = "internals")]
pub mod process;
mod program;
#[cfg(not(feature = "internals"))]
mod rlp;
#[cfg(feature = "internals")]
pub mod rlp;
#[cfg(not(feature = "internals"))]
mod rlpx;
#[cfg(feature = "internals")]
pub mod rlpx;
#[cfg(not(feature = "internals"))]
mod rpc;
#[cfg(feature = "internals")]
pub mod rpc;
#[cfg(not(feature = "internals"))]
mod switch;
#[cfg(feature = "internals")]
pub mod switch;
#[cfg(not(feature = "internals"))]
mod telemetry;
#[cfg(feature = "internals")]
pub mod telemetry;
mod wake;
#[cfg(not(feature = "internals"))]
mod watch;
#[cfg(feature = "internals")]
pub mod watch;

#[cfg(not(feature = "internals"))]
use {
    now::Now,
    wake::{Wake, WakeSlot},
};
#[cfg(feature = "internals")]
pub use {
    now::Now,
    wake::{Wake, WakeSlot},
};

pub use app::{App, StartError, Started};
pub use config::{Config, Discovery, Grpc, Log, LogFormat, Network, Peers, Rehello, Tls};
pub use lease::Capability;
pub use net::{
    bandwidth::Rates,
    nat::{NatMethod, NatMethodError},
};
pub use node::{
    Enode, Host, NodeId, NodeRef, PublicKey, Record, enode::EnodeError, id::NodeIdError, key::KeyError,
    node_ref::NodeRefError, record::RecordError,
};
#[doc(hidden)] // what the binary calls; it is promised to no other program
pub use program::run_program;
