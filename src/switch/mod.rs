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
//!
//! What owns peers and registrations, and runs:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`handle`] | the way in: every call that others may make |
//! | `state` | everything the switch knows; its methods are in `links` (connections), `holdings` (calls about registrations), [`peers`] (calls about peers), `rehello` and `waiting` |
//! | `task`, `work` | the loop that owns the state, and the tasks it starts |
//! | [`session`], [`registrations`] | one peer, one registration, as others see them |
//! | [`attachment`], `sink` | where a stream sends and receives, and where a connection delivers |
//! | [`boards`], [`watched`] | what can be watched, and how watchers are woken |
//! | [`figures`], `losses`, `cause` | numbers for metrics, the log lines about lost messages, and why a connection ended in the policy's words |

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
#[cfg(test)]
mod tests;
mod waiting;
pub mod watch;
pub mod watched;
mod work;

pub use boards::Boards;
pub use capability::Capability;
pub use handle::{Draining, Handle};
pub use holdings::Principal;
pub use peers::PeerView;
pub use reason::ErrorReason;
pub use state::Config;
pub use task::{Sources, Switch};
