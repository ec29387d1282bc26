//! Whom we dial, and when: the dial scheduler.
//!
//! Four kinds of dials share one pool of [`Settings::max_pending_dials`](super::Settings):
//!
//! * **static** peers, for as long as they are listed, whatever else is connected: their slots are reserved;
//! * **trusted** peers whose address is known, the same way;
//! * **dynamic** candidates from discovery, DNS and the node database, into the slots that are free;
//! * **one-off** dials that somebody asked for and waits for.
//!
//! Nothing is dialed while nothing is registered: a peer that nobody can use costs both sides a handshake.
//!
//! [`Scheduler`] is an engine (see `lib.rs`): tell it what happened, drain [`Scheduler::poll_action`], re-arm the
//! timer. Each [`Action::Dial`] and [`Action::LookupHost`] is owed exactly one answer, however it ends.
//!
//! Reading order: [`entry`], [`candidates`], `backoff`, `history`, [`scheduler`] (the state and the order of
//! business), `listed` (static and trusted), `dynamic`, `one_off`, `outcome` (what dials come to).

mod backoff;
pub mod candidates;
mod dynamic;
pub mod entry;
mod history;
mod listed;
mod one_off;
mod outcome;
pub mod scheduler;
#[cfg(test)]
mod tests;
mod vouching;

pub use candidates::{Candidate, Source};
pub use entry::{AddError, EntryState, LastError, ListEntry, ListSource, RemoveError};
pub use listed::MAX_LISTED;
pub use one_off::{ConnectOutcome, QueryId};
pub use scheduler::{Action, Dial, Kind, Scheduler, TaskId};
