//! devp2pd: the whole devp2p stack as one process, served over gRPC.
//!
//! The program is `devp2pd`. A program or a test that runs a sidecar itself needs [`Config`] and [`App`]: a sidecar handles
//! no signals, writes no log and changes no limits of the process, so any number of them run side by side.
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
//! # Rooms
//!
//! A folder is one idea. The upper block is pure: values and state machines, no async, no sockets, no files, no
//! clocks ([`Now`] is an argument), no ambient randomness (an RNG is an argument). The lower block does I/O and
//! decides as little as it can. `tests/layering.rs` holds both rules.
//!
//! | room | what it is |
//! | --- | --- |
//! | [`node`] | who a node is: key, id, endpoint, enode URL, record, fork id; where we may write, and how much we do for strangers |
//! | [`kademlia`] | the table and the searches of both discovery protocols |
//! | [`discv4`] | node discovery v4: signed packets, endpoint proof, records on request |
//! | [`discv5`] | node discovery v5.1: encrypted sessions, challenges, requests and answers, applications talking |
//! | [`dnsdisc`] | node lists in the DNS: signed trees and the client that walks them |
//! | [`rlpx`] | the encrypted transport: handshake, frames, snappy |
//! | [`p2p`] | the base protocol: Hello, Disconnect, capabilities, one connection's engine |
//! | [`delivery`] | from peers to applications: bounded queues that outlive streams, credit, overflow, every loss reported |
//! | [`lease`] | who owns a capability, for how long, and who may act for it |
//! | [`watch`] | state copied to watchers: snapshot, changes, marks to resume from |
//! | [`policy`] | who is dialed, who is let in, who stays, and why |
//! | [`switch`] | the one owner of peers and registrations: an engine made of the parts above |
//! | [`net`] | drivers, one socket or file each, and the loop around the switch |
//! | [`rpc`] | the gRPC contract: services, errors, reflection |
//! | [`http`] | the probes: read only |
//! | [`app`] | builds, starts and stops all components |
//! | [`config`] | flags, environment and file become one checked configuration |
//! | [`telemetry`] | log events: how they are written, and which |
//! | `rlp`, `now`, `wake` | open to all rooms: strict decoding of RLP, the time as an argument, and how a pure room wakes a task |
//! | [`process`] | what the process asks of the system: signals, file limit |
//! | `program` | the program: arguments, configuration, log, a sidecar until a signal, exit code |
//!
//! # The engine contract
//!
//! Every pure state machine has the same shape. It is a shape, not a trait: nobody is generic over engines.
//!
//! ```text
//! fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]);   // or handle_bytes, handle_command …
//! fn handle_timeout(&mut self, now: Now);
//! fn poll_timeout(&self) -> Option<Instant>;
//! fn poll_action(&mut self) -> Option<Action>;          // what happened or is wanted; never I/O itself
//! fn poll_transmit(&mut self, now: Now, out: &mut BytesMut) -> Option<…>;    // hot output, into the caller's buffer
//! ```
//!
//! One mutation, drain the actions, re-arm the timer. A peer's fault is an action that says whose fault it was, not
//! a `Result`. That is what lets whole networks run in virtual time, engines be fuzzed by operation sequences, and
//! any bug be replayed from a seed.

pub mod app;
pub mod config;
pub mod delivery;
pub mod discv4;
pub mod discv5;
pub mod dnsdisc;
pub mod http;
pub mod kademlia;
pub mod lease;
pub mod net;
pub mod node;
mod now;
pub mod p2p;
pub mod policy;
pub mod process;
mod program;
pub mod rlp;
pub mod rlpx;
pub mod rpc;
pub mod switch;
pub mod telemetry;
mod wake;
pub mod watch;

pub use app::{App, StartError, Started};
pub use config::Config;
pub use node::{Enode, NodeId, NodeRef, PublicKey, Record};
pub use now::Now;
#[doc(hidden)] // what the binary calls; it is promised to no other program
pub use program::run_program;
pub use wake::{Wake, WakeSlot};
