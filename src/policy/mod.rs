//! The policy: which nodes are dialed, which are let in, which stay, and why.
//!
//! Everything here decides and nothing acts. The switch reports each event to [`Policy`] and carries out its actions.
//! [`Policy`] combines two machines that share [`Rules`](rules::Rules): the dial scheduler ([`dial`]) and admission
//! ([`admission`]). Beside them are values of one idea each.
//!
//! | file | what it is |
//! | --- | --- |
//! | [`engine`] | [`Policy`]: events come in, decisions go out |
//! | [`action`] | the actions of the policy |
//! | [`settings`] | the operator's settings; how slots are shared |
//! | [`rules`] | net restriction, bans, exemptions: what holds both ways |
//! | [`cause`], [`refusal`] | why there is no connection: something failed, or we decided |
//! | [`bans`], [`lists`] | the bans; the lists as a value that survives restarts |
//! | [`dial`] | static, trusted, dynamic and one-off dials |
//! | [`dial_filter`] | which nodes registrations want |
//! | [`fork_following`] | forks that a schedule lacks, from what nodes announce |
//! | [`admission`] | checkpoints, throttle, limits, duplicate connections |
//! | [`churn`] | rotation of peers when full, off by default |
//! | `expiring` | a bounded set whose entries expire |
//! | [`token_bucket`] | bytes per second |
//! | [`one_source`] | whether most refusals are for one private address |
//! | [`recent`] | what became of candidates and connections in the last minutes |
//! | [`warnings`] | signs that no peers are found, and why |
//!
//! Left out: sockets, timers and files (`net`), peers' messages (`switch`), and how reasons are written on the wire
//! (`p2p`).

pub mod action;
pub mod admission;
pub mod bans;
pub mod cause;
pub mod churn;
pub mod dial;
pub mod dial_filter;
pub mod engine;
mod expiring;
pub mod fork_following;
pub mod lists;
pub mod one_source;
pub mod recent;
pub mod refusal;
pub mod rules;
pub mod settings;
pub mod token_bucket;
pub mod warnings;

pub use action::{Action, CloseReason};
pub use bans::{Ban, BanError, BanTarget};
pub use cause::Cause;
pub use churn::ChurnSettings;
pub use dial_filter::DialFilter;
pub use engine::Policy;
pub use refusal::Refusal;
pub use settings::{Settings, Slots};
pub use warnings::Warning;

/// An origin of virtual time.
#[cfg(test)]
fn test_now() -> crate::Now {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant has no other origin; time goes on by Now::after"
    )]
    let mono = std::time::Instant::now();
    crate::Now { mono, unix: std::time::Duration::from_secs(1_700_000_000) }
}
