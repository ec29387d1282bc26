//! Access: which caller may make which call. It is decided before every call.
//!
//! Reading order: `authentication` (the access file, and the identity of a caller), `methods` (the role and the size
//! that each call needs), `gate` (the check before the services, which uses both), `credentials` (the files, which are
//! read again when they change).

mod authentication;
pub mod credentials;
pub mod gate;
pub mod methods;

pub use authentication::{Access, AccessError, Caller, Role, authenticate};
