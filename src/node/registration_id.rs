//! The id of a registration: an application's claim to protocols.
//!
//! It stands in the lowest room because all rooms name registrations by it: the entries of our record have owners, the
//! policy divides dials among registrations, and leases, queues and sessions belong to them.
//!
//! Left out: the registration itself (`lease`), and the secret of its resume token (`lease/token.rs`).

use std::fmt;

use data_encoding::HEXLOWER;
use rand::{Rng, rngs::StdRng};

/// The id of a registration; public. It is random, so that an id of an earlier run of the sidecar names no other
/// registration. Written as 16 lowercase hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistrationId(pub u64);

impl RegistrationId {
    /// Returns a random id.
    #[must_use]
    pub fn random(rng: &mut StdRng) -> Self {
        Self(rng.random())
    }

    /// Reads the 16 hex digits of [`Display`](fmt::Display).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 8] = HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()?;
        Some(Self(u64::from_be_bytes(bytes)))
    }
}

impl fmt::Display for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
