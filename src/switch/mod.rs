//! The switch: what stands between peers and the applications that registered for their messages.
//!
//! Names are leased in [`lease`](crate::lease), messages wait in [`delivery`](crate::delivery), and what watchers see is
//! kept in [`watch`](crate::watch).
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
mod cause;
pub mod figures;
pub mod handle;
pub mod holdings;
mod links;
mod losses;
pub mod peers;
pub mod registrations;
mod rehello;
pub mod session;
mod sink;
mod state;
mod task;
#[cfg(test)]
mod tests;
mod waiting;
pub mod watched;
mod work;

pub use boards::Boards;
pub use handle::{Draining, Handle};
pub use holdings::Principal;
pub use peers::PeerView;
pub use state::Config;
pub use task::{Sources, Switch};
