//! The dial scheduler: which nodes are dialed, and when.
//!
//! Four kinds of dials share one pool of [`Settings::max_pending_dials`](super::Settings):
//!
//! * **static** peers, for as long as they are listed, whatever else is connected: they come on top of the slots;
//! * **trusted** peers whose address is known, the same way;
//! * **dynamic** candidates from discovery, DNS and the node database, into the slots that are free;
//! * **one-off** dials: a caller requests one and waits for its result.
//!
//! Nothing is dialed while no protocol is registered: a peer without a use costs both sides a handshake.
//!
//! [`Scheduler`] is an engine (see `lib.rs`): report each event to it, drain [`Scheduler::poll_action`], re-arm the
//! timer. Report exactly one result for each [`Action::Dial`](super::Action::Dial) and
//! [`Action::LookupHost`](super::Action::LookupHost), however it ends.
//!
//! | file | what it is |
//! | --- | --- |
//! | [`scheduler`] | [`Scheduler`]: the meaning of each event, and the order of dials |
//! | [`entry`] | a listed node as it is shown, and why one is not added or removed |
//! | `listed` | the static and trusted lists: their nodes, addresses, and times of the next dials |
//! | [`candidates`] | nodes that sources offered, waiting for a slot |
//! | `share` | how the slots are shared between sources, and how many candidates are wanted |
//! | `one_off` | dials that a caller asked for and waits for |
//! | [`task`] | a dial, and those in progress |
//! | `peers` | the peers that take slots |
//! | `address` | which addresses may be dialed |
//! | `history` | the dials of the last half minute |
//! | `backoff` | how long to wait before a node is dialed again, and after a fault of ours |

mod address;
mod backoff;
pub mod candidates;
pub mod entry;
mod history;
mod listed;
mod one_off;
mod peers;
pub mod scheduler;
mod share;
pub mod task;
#[cfg(test)]
mod tests;

pub use candidates::{Candidate, Source};
pub use entry::{AddError, EntryState, LastError, ListEntry, ListSource, RemoveError};
pub use listed::{List, Listed, MAX_LISTED};
pub use one_off::{ConnectId, ConnectOutcome};
pub use scheduler::Scheduler;
pub use task::{Dial, Kind, TaskId};
