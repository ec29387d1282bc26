//! Leases: who owns which capability, for how long, and who may act for it.
//!
//! A registration is a lease on capability names. A stream holds it; when the stream breaks it lingers, so that an
//! application can restart while its peers stay connected. Coming back is a matter of proof: each attachment yields a
//! new resume token and retires the one before, so of two processes that believe they own a registration exactly one
//! is right, and the other learns it from its next call instead of fighting.
//!
//! # Tokens
//!
//! | the caller has | and the registration is | then |
//! | --- | --- | --- |
//! | the current token | in any state | it attaches; a stream that held it ends (ABORTED) |
//! | the preceding token and the `request_id` that retired it | in any state | the answer got lost: the same attempt is answered again |
//! | an older token | in any state | RESUME_TOKEN_STALE |
//! | its client id, same principal | DETACHED or LINGERING | it attaches; all earlier tokens are retired |
//! | its client id, same principal | ATTACHED | REGISTRATION_ATTACHED; with `takeover` it attaches, all earlier tokens are retired |
//! | its client id and the `request_id` of the last attempt | in any state | the same attempt is answered again |
//!
//! A token is enough by itself: whoever holds it is the application, whatever its principal.
//!
//! # Use
//!
//! [`Registry::register`] and [`Registry::attach`] answer at once; leases that end on their own leave through
//! [`Registry::poll_action`] after [`Registry::handle_timeout`]. Nothing is remembered over a restart of the sidecar.
//!
//! # Files
//!
//! | module | what it is |
//! | --- | --- |
//! | `registry` | all registrations: their leases begin, change and end there |
//! | `claim` | a request to hold a registration, and the answer to it |
//! | `registration`, `state`, `token` | one lease, whether a stream holds it, and its secret |
//! | `spec`, `capability`, `wanted` | what an application asks for, and its limits |
//! | `error`, [`reason`] | why a request is refused, and the word for it that programs compare |
//!
//! Left out: the channels of a registration ([`delivery`](crate::delivery)), what its names mean for live sessions, and
//! whether the caller's principal is who it says.

mod capability;
mod claim;
mod error;
pub mod reason;
mod registration;
mod registry;
mod spec;
mod state;
mod token;
mod wanted;

#[cfg(test)]
mod tests;

pub use capability::{Capability, MAX_MESSAGE_COUNT, check_name, known_message_count};
pub use claim::{Caller, Changes, Claim, Claimed, Who};
pub use error::LeaseError;
pub use registration::Registration;
pub use registry::{Action, Config, Registry};
pub use spec::{Greeting, MAX_LINGER, MAX_MESSAGE_BYTES, ProtocolSpec, RegistrationSpec};
pub use state::StateName;
pub use token::ResumeToken;
pub use wanted::{Chain, Wanted};
