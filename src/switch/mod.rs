//! The switch: what stands between peers and the applications that registered for their messages.
//!
//! Four values carry the delivery contract, each pure (time and randomness are arguments, nothing waits):
//!
//! | module | what it is |
//! | --- | --- |
//! | [`capability`] | a devp2p capability, the rules of its name, the message counts everybody must agree on |
//! | [`inbox`] | peers → application: bounded queues that outlive streams, credit, fairness, every loss reported |
//! | [`lease`] | who owns a capability, for how long, and who may act for it |
//! | [`outbox`] | application → peer: windows, refusals, outcomes |
//! | [`budget`] | one bound over the queues of all registrations |
//! | [`reason`] | why something was refused, as a word that programs compare |
//!
//! Their promise, tested by operation sequences: nothing is delivered twice, nothing is lost unreported, nothing
//! grows above its bound.

pub mod budget;
pub mod capability;
pub mod inbox;
pub mod lease;
pub mod outbox;
pub mod reason;

pub use capability::Capability;
pub use reason::ErrorReason;
