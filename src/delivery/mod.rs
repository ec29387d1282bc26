//! The inbox of a registration: the messages that its peers sent and that the application has not taken yet.
//!
//! A registration has one inbox, which outlives the application's streams. Connection tasks push into it, and the
//! current stream pulls from it. The inbox decides what fits, which channel is next, and what was lost and where. Every
//! message is handed over, or a gap takes its place. Both count in the channel's `position`, so an application that
//! counts its messages can tell after a broken stream exactly which ones the break took.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! | --- | --- | --- |
//! | one channel | [`Config::channel_bytes`] and the message that crosses it | [`overflow`]: the peer is held while there are proofs of progress, then the policy acts |
//! | all channels while no stream is attached | [`Config::away_bytes`] and one message | closed sessions fold into one gap, then live channels drop |
//! | closed channels while a stream is attached | the same | the same |
//! | messages that one connection had read when it ended | its own bound (`p2p::intake`) | the same as for closed channels |
//! | all inboxes of the process, and the messages that connections hold | [`Resource::Delivery`](crate::budget::Resource) | the largest channels count as full |
//!
//! # Use
//!
//! ```text
//! connection task:  open → push, push, push … → push_last … → close
//! stream:           attach → pull until Idle, wait for `on_readable`, pull … → detach (or another attaches)
//!                   credit(…) whenever the application returned some
//! ```
//!
//! [`SharedInbox`] has the only lock: it wakes the tasks that can go on, after the lock is released.
//!
//! | module | what it is |
//! | --- | --- |
//! | `inbox` | pushing, pulling, attaching: what connections and streams may do |
//! | `backlog` | everything that waits, the sums over it, and what gives way first |
//! | `channel`, `queue` | one channel, and the messages that wait in it |
//! | `stream`, `schedule`, `frame` | one stream, the order of turns on it, and one frame of its events |
//! | `event` | the events of a stream |
//! | `credit` | windows, and the messages that a stream leaves uncredited |
//! | [`overflow`] | a full queue |
//! | `slab` | channels by key |
//! | `shared` | the lock and the wakers |
//!
//! Left out: the meaning of messages, the messages to peers, and the right to attach.

mod backlog;
mod channel;
pub mod credit;
mod event;
mod frame;
mod inbox;
pub mod overflow;
mod queue;
mod schedule;
mod shared;
mod slab;
mod stream;

#[cfg(test)]
mod tests;

pub use channel::MAX_KEEP_FIRST;
pub use event::{About, Close, ClosedBy, Event, Opened, Part};
pub use frame::Pull;
pub use inbox::{Arrival, Config, Inbox, Push};
pub use overflow::{Action, Held, OverflowPolicy, Sharing};
pub use queue::Lost;
pub use shared::{Hooks, SharedInbox};
pub use slab::ChannelKey;
pub use stream::{AttachParams, CreditError, DEFAULT_MAX_FRAME, MIN_MAX_FRAME, StreamId};
