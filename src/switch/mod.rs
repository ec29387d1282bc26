//! The switch: what stands between peers and the applications that registered for their messages.
//!
//! The delivery contract is carried by pure values (time and randomness are arguments, nothing waits):
//!
//! | module | what it is |
//! | --- | --- |
//! | [`capability`] | a devp2p capability, the rules of its name, the message counts everybody must agree on |
//! | [`lease`] | who owns a capability, for how long, and who may act for it |
//! | [`watch`] | some state, copied to whoever watches; what slow watchers lose is history |
//! | [`reason`] | why something was refused, as a word that programs compare |
//!
//! Their promise, tested by operation sequences: nothing is delivered twice, nothing is lost unreported, nothing
//! grows above its bound.

pub mod attachment;
pub mod boards;
pub mod capability;
mod cause;
pub mod figures;
pub mod handle;
pub mod holdings;
pub mod lease;
mod links;
mod losses;
pub mod peers;
pub mod reason;
pub mod registrations;
mod rehello;
pub mod session;
mod sink;
mod state;
mod task;
mod waiting;
pub mod watch;
pub mod watched;

pub use boards::Boards;
pub use capability::Capability;
pub use handle::{Draining, Handle};
pub use holdings::Principal;
pub use peers::PeerView;
pub use reason::ErrorReason;
pub use state::Config;
pub use task::{Request, Sources, Switch};
