//! The outcome of each datagram, and the number of each kind.

use super::packet::HeaderError;

/// The outcome of a datagram, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was answered or accepted.
    Accepted,
    /// From an address outside the configured networks.
    Restricted,
    /// Shorter than a packet's header.
    TooShort,
    /// Longer than a packet may be.
    TooLong,
    /// A packet type that does not exist.
    UnknownType,
    /// The body is no RLP list that fits.
    NotAList,
    /// The sender's ration is used up.
    Limited,
    /// The hash is not that of the content: another protocol, or noise.
    WrongHash,
    /// The body lacks something that its type needs.
    Malformed,
    /// It expired before it came.
    Expired,
    /// An answer that belongs to no request of ours.
    Unsolicited,
    /// The signature is of no key.
    BadSignature,
    /// It is signed with our own key.
    Myself,
    /// A request of a node that has not proved its address.
    Unproven,
    /// A record that is not the sender's, is older than the one we have, or has an address that we may not accept from
    /// it.
    BadRecord,
}

impl From<HeaderError> for Verdict {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::TooShort => Self::TooShort,
            HeaderError::TooLong => Self::TooLong,
            HeaderError::UnknownType => Self::UnknownType,
            HeaderError::NotAList => Self::NotAList,
        }
    }
}

impl Verdict {
    /// All verdicts, in the order of the checks.
    pub const ALL: [Self; 15] = [
        Self::Accepted,
        Self::Restricted,
        Self::TooShort,
        Self::TooLong,
        Self::UnknownType,
        Self::NotAList,
        Self::Limited,
        Self::WrongHash,
        Self::Malformed,
        Self::Expired,
        Self::Unsolicited,
        Self::BadSignature,
        Self::Myself,
        Self::Unproven,
        Self::BadRecord,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Restricted => "restricted",
            Self::TooShort => "too_short",
            Self::TooLong => "too_long",
            Self::UnknownType => "unknown_type",
            Self::NotAList => "not_a_list",
            Self::Limited => "limited",
            Self::WrongHash => "wrong_hash",
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::Unsolicited => "unsolicited",
            Self::BadSignature => "bad_signature",
            Self::Myself => "myself",
            Self::Unproven => "unproven",
            Self::BadRecord => "bad_record",
        }
    }
}

/// The counters of the engine. Nothing is dropped in silence.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    verdicts: [u64; Verdict::ALL.len()],
    /// Keys recovered from signatures, the expensive operation that strangers can cause.
    pub recovered: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets not sent because too many were waiting to be.
    pub outbox_full: u64,
    /// Pings answered without asking for a proof, because both together would amplify the ping.
    pub not_pinged_back: u64,
    /// Requests of our own not made because too many were under way.
    pub too_busy: u64,
    /// Nodes in answers that were not accepted: relay rule, low port, restriction, or no key.
    pub refused_neighbors: u64,
    /// Nodes that proved themselves but had no place to wait for the table.
    pub refused_admissions: u64,
}

impl Counters {
    /// How many datagrams got this verdict.
    #[must_use]
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.verdicts.get(verdict as usize).copied().unwrap_or(0)
    }

    /// The counters beside those of [`Self::of`], with their names in metrics. A new one cannot be left out: this does
    /// not compile without it.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 7] {
        let Self {
            verdicts: _,
            recovered,
            sent,
            outbox_full,
            not_pinged_back,
            too_busy,
            refused_neighbors,
            refused_admissions,
        } = *self;
        [
            ("recovered", recovered),
            ("sent", sent),
            ("outbox_full", outbox_full),
            ("not_pinged_back", not_pinged_back),
            ("too_busy", too_busy),
            ("refused_neighbors", refused_neighbors),
            ("refused_admissions", refused_admissions),
        ]
    }

    pub(super) fn count(&mut self, verdict: Verdict) {
        if let Some(count) = self.verdicts.get_mut(verdict as usize) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_verdicts_stand_in_their_place() {
        for (index, verdict) in Verdict::ALL.into_iter().enumerate() {
            assert_eq!(verdict as usize, index, "{}", verdict.name());
        }
    }
}
