//! A devp2p capability as applications register it, and the message counts that are known without its specification.
//!
//! All capabilities of a session share one space of message codes: each takes `message_count` codes, in the order of
//! their names. So a wrong count in one registration shifts the codes of every capability after it, those of other
//! applications included. This file has the right counts of the capabilities in common use.

use std::fmt;
use std::sync::Arc;

/// A capability: its name, one version, and the number of message codes that it takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Capability {
    /// The name: 1 to 8 printable ASCII characters ([`check_name`]).
    pub name: Arc<str>,
    /// The version.
    pub version: u32,
    /// The number of message codes, which run from 0 to `message_count - 1` inside the capability.
    pub message_count: u64,
}

impl Capability {
    /// Returns a capability. The values are not checked.
    #[must_use]
    pub fn new(name: &str, version: u32, message_count: u64) -> Self {
        Self { name: name.into(), version, message_count }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

/// The longest name of a capability, in characters (devp2p, "RLPx": capability names are at most eight ASCII
/// characters).
const MAX_NAME_LEN: usize = 8;

/// The most message codes that a capability may take. No capability in use takes more than 33. The bound keeps the
/// offsets of 16 capabilities far inside 32 bits.
pub const MAX_MESSAGE_COUNT: u64 = 4_096;

/// Whether `name` is valid in a Hello: 1 to 8 printable ASCII characters, no space, and no `/`, which separates name
/// and version in text.
#[must_use]
pub fn check_name(name: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

/// Returns the message count of a known capability, or `None`. Its sources: the specifications in `devp2p/caps`, EIPs
/// 7642, 7975, 8159 and 8070 for eth/69 to eth/72, EIP-8189 for snap/2, BNB Smart Chain for `bsc`, and Polygon's Bor
/// for `wit`.
#[must_use]
pub fn known_message_count(name: &str, version: u32) -> Option<u64> {
    match (name, version) {
        ("eth", 68) => Some(17),
        ("eth", 69 | 70) => Some(18),
        ("eth", 71) => Some(20),
        ("eth", 72) => Some(22),
        ("snap", 1) => Some(8),
        ("snap", 2) => Some(10),
        ("bsc", 1) => Some(2),
        ("bsc", 2 | 3) => Some(4),
        ("wit", 1) => Some(4),
        ("wit", 2) => Some(6),
        ("wit", 3) => Some(7),
        _ => None,
    }
}

/// Returns the network that defines a capability, where the name alone may be taken for another one.
#[must_use]
pub(super) fn network_of(name: &str) -> Option<&'static str> {
    match name {
        "bsc" => Some("BNB Smart Chain"),
        "wit" => Some("Polygon's Bor"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_stand_in_a_hello() {
        for name in ["eth", "snap", "a", "mychain1", "x-y_z.1"] {
            assert!(check_name(name), "{name}");
        }
        for name in ["", "ninechars", "eth/68", "a b", "\u{e9}th", "tab\t"] {
            assert!(!check_name(name), "{name:?}");
        }
    }

    #[test]
    fn counts_of_the_capabilities_everybody_speaks() {
        let table = [
            ("eth", 68, Some(17)),
            ("eth", 69, Some(18)),
            ("eth", 70, Some(18)),
            ("eth", 71, Some(20)),
            ("eth", 72, Some(22)),
            ("snap", 1, Some(8)),
            ("snap", 2, Some(10)),
            ("bsc", 1, Some(2)),
            ("bsc", 2, Some(4)),
            ("bsc", 3, Some(4)),
            ("wit", 1, Some(4)),
            ("wit", 2, Some(6)),
            ("wit", 3, Some(7)),
            ("wit", 0, None),
            ("eth", 67, None),
            ("les", 4, None),
        ];
        for (name, version, count) in table {
            assert_eq!(known_message_count(name, version), count, "{name}/{version}");
        }
    }
}
