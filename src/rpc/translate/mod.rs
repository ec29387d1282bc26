//! Values of the other rooms as messages of the contract, and back.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`status`] | a refusal, and its encoding as a gRPC status: code, details, size limits |
//! | `errors` | errors of the other rooms as refusals, one table each |
//! | `value` | texts, times, reasons, nodes |
//! | `peer`, `lists` | peers; static and trusted peers, bans |
//! | `registration`, `dial_filter` | registrations |
//! | `event` | events that a stream sends to its application |
//! | `node`, `discovery` | this sidecar; nodes that discovery knows |
//! | `settings` | settings of peers |
//!
//! Left out: which messages a call takes and returns (`services`), and what a value means (the room that owns the
//! value).

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
