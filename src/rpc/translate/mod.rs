//! Values of the other rooms as messages of the contract, and back.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`status`] | a refusal, and how it travels: code, `ErrorInfo`, cuts |
//! | `errors` | errors of the other rooms as refusals, one table each |
//! | `value` | texts, times, reasons, nodes |
//! | `peer`, `lists` | peers; static and trusted peers, bans |
//! | `registration`, `dial_filter` | registrations |
//! | `event` | what a stream tells its application |
//! | `node`, `discovery` | this sidecar; nodes that discovery knows |
//! | `settings` | settings of peers |
//!
//! Left out: which call takes or returns what (`services`), and the rules of what a value means (the rooms that own it).

mod dial_filter;
pub(super) mod discovery;
pub(super) mod errors;
pub(super) mod event;
pub(super) mod lists;
pub(super) mod node;
pub(super) mod peer;
pub(super) mod registration;
pub(super) mod settings;
pub mod status;
pub(super) mod value;
