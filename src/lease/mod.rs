//! Leases: which application owns a capability, for how long, and which callers may act for it.
//!
//! A registration is a lease on capability names. A stream holds it. When the stream breaks, the lease lingers, so that
//! an application can restart while its peers stay connected. An application that comes back proves that it owns the
//! registration: each attachment yields a new resume token and retires the one before. So if two processes act for one
//! registration, only the one with the newest token succeeds. The next call of the other one is refused.
//!
//! # Tokens
//!
//! | the caller has | and the registration is | then |
//! | --- | --- | --- |
//! | the current token | in any state | it attaches; a stream that held it ends (ABORTED) |
//! | the preceding token and the `request_id` that retired it | in any state | the lost answer is sent again |
//! | an older token | in any state | RESUME_TOKEN_STALE |
//! | its client id, same principal | DETACHED or LINGERING | it attaches; all earlier tokens are retired |
//! | its client id, same principal | ATTACHED | REGISTRATION_ATTACHED; with `takeover` it attaches, all earlier tokens are retired |
//! | its client id and the `request_id` of the last attempt | in any state | the last answer is sent again |
//!
//! A token is sufficient: its holder may act for the registration, whatever its principal.
//!
//! # Use
//!
//! [`Registry::register`] and [`Registry::attach`] return the result at once. Leases that run out or are deleted leave
//! through [`Registry::poll_action`]; [`Registry::handle_timeout`] ends those that ran out. The leases are not stored:
//! a restart of the sidecar ends them all.
//!
//! # Files
//!
//! | module | what it is |
//! | --- | --- |
//! | `registry` | all registrations: their leases begin, change and end there |
//! | `claim` | a request to hold a registration, and the answer to it |
//! | `registration`, `state`, `token` | one lease, whether a stream holds it, and its secret |
//! | `spec`, `capability`, `wanted` | the contents of a registration, and its limits |
//! | `error`, [`reason`] | why a request is refused, and the word for it that programs compare |
//!
//! Left out: the channels of a registration ([`delivery`](crate::delivery)), the effect of its names on live sessions,
//! and the authentication of the caller.

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
