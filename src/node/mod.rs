//! The identity of a node: its key, id, endpoint, URL and signed record.
//!
//! The lowest room. Everything here is a value: made from bytes or text, checked once when it is made, and valid from
//! then on. Reading order: [`key`], [`id`], [`endpoint`], [`enode`], [`record`], [`node_ref`], [`fork_id`],
//! [`network`], [`registration_id`], [`votes`], [`local`]. Then [`reach`] (the addresses to which discovery may write)
//! and [`ration`] (how much work strangers may cause).
//!
//! Left out: where keys and records are stored (`config`, `net`), and how other rooms use them.

pub mod endpoint;
pub mod enode;
pub mod fork_id;
pub mod id;
pub mod key;
pub mod local;
pub mod network;
pub mod node_ref;
pub mod ration;
pub mod reach;
pub mod record;
pub mod registration_id;
pub mod votes;

pub use endpoint::{AddressClass, Endpoint};
pub use enode::{Enode, Host};
pub use fork_id::{ForkId, ForkSchedule, Head};
pub use id::NodeId;
pub use key::{NodeKey, PublicKey};
pub use node_ref::NodeRef;
pub use reach::Reach;
pub use record::{Record, RecordBuilder};
pub use registration_id::RegistrationId;
