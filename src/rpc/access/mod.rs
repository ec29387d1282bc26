//! Who may call what, decided before every call.
//!
//! Reading order: `judge` (the access file, and who a caller is by it), `methods` (what each call needs), `gate` (what
//! stands before the services and asks both), `credentials` (the files, read again when they change).

pub mod credentials;
pub mod gate;
mod judge;
pub mod methods;

pub use judge::{Access, AccessError, Caller, Role, judge};
