//! Warnings: signs that a node finds no peers, and the causes, reported to the operator.
//!
//! Everything here is read from counts that are kept anyway. Left out: warnings about the configuration (`config`), and
//! telling them (`switch` logs them, `rpc` and `http` show them).

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;

use super::recent::Counts;

/// Candidates that must have come before their fork ids mean anything: one lookup's worth.
const ENOUGH: u64 = 16;

/// How long candidates may be wanted and stay away. Discovery finds some within seconds, and a refresh of a table that
/// is empty is tried again every half minute.
pub const STARVED: Duration = Duration::from_secs(600);

/// How often the counts are looked at.
const REVIEW: Duration = Duration::from_secs(60);

/// A warning for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Most candidates of the last minutes announce one checksum that no fork schedule contains.
    UnknownFork {
        /// The checksum.
        hash: [u8; 4],
        /// Candidates that announce it.
        filtered: u64,
        /// All candidates.
        seen: u64,
    },
    /// Candidates are wanted, and none has come for [`STARVED`].
    NoCandidates,
}

impl Warning {
    /// The names of all, for tables of metrics.
    pub const NAMES: [&'static str; 2] = ["unknown_fork", "no_candidates"];

    /// A stable machine-readable name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::UnknownFork { .. } => "unknown_fork",
            Self::NoCandidates => "no_candidates",
        }
    }

    /// The warnings that `recent` counts call for, when candidates have stayed away for `starved`.
    #[must_use]
    pub fn of(recent: &Counts, starved: Option<Duration>) -> Vec<Self> {
        let mut all = Vec::new();
        let most = recent.unknown_forks.iter().max_by_key(|(_, count)| **count);
        if let Some((hash, filtered)) = most
            && recent.seen >= ENOUGH
            && filtered.saturating_mul(2) > recent.seen
        {
            all.push(Self::UnknownFork { hash: *hash, filtered: *filtered, seen: recent.seen });
        }
        if starved.is_some_and(|starved| starved >= STARVED) {
            all.push(Self::NoCandidates);
        }
        all
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownFork { hash, filtered, seen } => write!(
                f,
                "{filtered} of {seen} candidates announce the fork hash {}, which no fork schedule here contains, and \
                 are not dialed: the network has probably passed a fork that this version does not know. Use a newer \
                 version, or register with a dial filter that lists the fork",
                HEXLOWER.encode(hash)
            ),
            Self::NoCandidates => f.write_str(
                "peers are wanted and discovery has found no candidate for ten minutes: UDP may be blocked, or no \
                 bootnode answers (--bootnodes)",
            ),
        }
    }
}

/// The warnings that were reported to the operator and still hold.
#[derive(Debug)]
pub(super) struct Told {
    names: BTreeSet<&'static str>,
    next: Instant,
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        Self { names: BTreeSet::new(), next: now + REVIEW }
    }

    /// Whether it is time to look at the counts.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// When it is time, if there is a reason to look: warnings are about peers that are wanted and do not come.
    pub(super) fn due(&self, is_starved: bool) -> Option<Instant> {
        (is_starved || !self.names.is_empty()).then_some(self.next)
    }

    /// Takes in the warnings that hold now. Returns those that are new, and the names of those that are over.
    pub(super) fn review(
        &mut self,
        now: Instant,
        standing: Vec<Warning>,
    ) -> (Vec<Warning>, Vec<&'static str>) {
        self.next = now + REVIEW;
        let names: BTreeSet<_> = standing.iter().map(Warning::name).collect();
        let before = std::mem::replace(&mut self.names, names);
        let over = before.difference(&self.names).copied().collect();
        (standing.into_iter().filter(|warning| !before.contains(warning.name())).collect(), over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_follow_from_counts() {
        let counts = |seen, hashes: &[(u8, u64)]| Counts {
            seen,
            unknown_forks: hashes.iter().map(|(hash, count)| ([*hash; 4], *count)).collect(),
            ..Counts::default()
        };
        let names = |seen, hashes: &[(u8, u64)], starved: Option<u64>| -> Vec<&'static str> {
            let all = Warning::of(&counts(seen, hashes), starved.map(Duration::from_secs));
            all.iter().map(Warning::name).collect()
        };
        assert_eq!(names(16, &[(1, 16)], None), ["unknown_fork"]);
        assert_eq!(names(20, &[(1, 4), (2, 11)], None), ["unknown_fork"]);
        // Too few, half, spread over other chains.
        assert!(names(15, &[(1, 15)], None).is_empty());
        assert!(names(20, &[(1, 10)], None).is_empty());
        assert!(names(30, &[(1, 10), (2, 10), (3, 10)], None).is_empty());
        assert!(names(0, &[], Some(599)).is_empty());
        assert_eq!(names(0, &[], Some(600)), ["no_candidates"]);
        let text = Warning::of(&counts(16, &[(0x6c, 16)]), None)[0].to_string();
        assert!(text.starts_with("16 of 16 candidates") && text.contains("6c6c6c6c"), "{text}");
    }
}
