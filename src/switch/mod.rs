//! The switch: what stands between peers and the applications that registered for their messages.
//!
//! Four values carry the delivery contract, each pure (time and randomness are arguments, nothing waits):
//!
//! | module | what it is |
//! | --- | --- |
//! | [`capability`] | a devp2p capability, the rules of its name, the message counts everybody must agree on |
//! | [`inbox`] | peers → application: bounded queues that outlive streams, credit, fairness, every loss reported |
//!
//! Their promise, tested by operation sequences: nothing is delivered twice, nothing is lost unreported, nothing
//! grows above its bound.

pub mod capability;
pub mod inbox;

pub use capability::Capability;
