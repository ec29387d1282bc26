//! Expiration times: the only protection that discv4 has against replayed packets.

use std::time::Duration;

use crate::rlp::{Error, Reader};

/// How long after it is sent a packet of ours may be answered, as geth.
pub const LIFETIME: Duration = Duration::from_secs(20);

/// An absolute Unix time in seconds, read as a *signed* 64-bit number as geth does: a value of 2^63 or more lies in
/// the past. Its conformance tests send such values and demand silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiration(pub i64);

impl Expiration {
    /// The expiration of a packet that is sent at `unix`.
    #[must_use]
    pub fn from_now(unix: Duration) -> Self {
        Self(seconds(unix).saturating_add(LIFETIME.as_secs().cast_signed()))
    }

    /// Whether it lies before `unix`.
    #[must_use]
    pub fn is_past(self, unix: Duration) -> bool {
        self.0 < seconds(unix)
    }

    /// By how many seconds it lies ahead of `unix`; negative when it is past.
    #[must_use]
    pub fn seconds_ahead(self, unix: Duration) -> i64 {
        self.0.saturating_sub(seconds(unix))
    }

    pub(super) fn read(list: &mut Reader<'_>) -> Result<Self, Error> {
        list.u64().map(|value| Self(value.cast_signed()))
    }

    pub(super) fn to_wire(self) -> u64 {
        self.0.cast_unsigned()
    }
}

fn seconds(unix: Duration) -> i64 {
    i64::try_from(unix.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_signed() {
        let now = Duration::from_secs(1_000);
        let table =
            [(1_001, false), (1_000, false), (999, true), (0, true), (1_u64 << 63, true), (u64::MAX, true)];
        for (value, past) in table {
            assert_eq!(Expiration(value.cast_signed()).is_past(now), past, "{value}");
        }
        // The negated time of the conformance tests.
        assert!(Expiration(1_000_u64.wrapping_neg().cast_signed()).is_past(now));
        assert_eq!(Expiration::from_now(now).seconds_ahead(now), 20);
    }
}
