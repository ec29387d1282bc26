//! Who may call what, decided before every call.
//!
//! Reading order: `authentication` (the access file, and who a caller is by it), `methods` (what each call needs), `gate` (what
//! stands before the services and asks both), `credentials` (the files, read again when they change).

mod authentication;
pub mod credentials;
pub mod gate;
pub mod methods;

pub use authentication::{Access, AccessError, Caller, MAX_CREDENTIALS, Role, authenticate};
