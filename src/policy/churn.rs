//! Rotation: when all slots of one direction are taken, one peer at a time makes room for a stranger. Off by default.
//!
//! A full peer set freezes: no new node gets in, and a network's topology hardens. geth drops a random peer every few
//! minutes and has no setting for it; here it is a setting. Static and trusted peers are never chosen, nor are peers
//! that have had no time to prove useful.

use std::time::{Duration, Instant};

use rand::{Rng, rngs::StdRng};

use crate::node::NodeId;

/// When to rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChurnSettings {
    /// The mean time between two rotations; each pause is between half and one and a half of it. geth: 5 min.
    pub every: Duration,
    /// Only peers connected at least so long are chosen. geth: 10 min.
    pub min_age: Duration,
}

impl Default for ChurnSettings {
    fn default() -> Self {
        Self { every: Duration::from_secs(300), min_age: Duration::from_secs(600) }
    }
}

/// A peer that might be chosen: neither static nor trusted, of a direction whose slots are all taken.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// Who.
    pub id: NodeId,
    /// Connected since.
    pub since: Instant,
}

/// The rotation's timer.
#[derive(Debug, Default)]
pub struct Churn {
    settings: Option<ChurnSettings>,
    next: Option<Instant>,
    /// Peers chosen so far.
    pub rotated: u64,
}

impl Churn {
    /// Switches rotation on with these settings, or off. The next pause begins now.
    pub fn set(&mut self, now: Instant, settings: Option<ChurnSettings>, rng: &mut StdRng) {
        self.settings = settings;
        self.next = settings.map(|settings| now + pause(&settings, rng));
    }

    /// When [`rotate`](Self::rotate) is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    /// Whether a rotation is due.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now)
    }

    /// Chooses one of `choices`, if it is time and one is old enough.
    pub fn rotate(&mut self, now: Instant, choices: &[Choice], rng: &mut StdRng) -> Option<NodeId> {
        let settings = self.settings.filter(|_| self.is_due(now))?;
        self.next = Some(now + pause(&settings, rng));
        let old = |choice: &&Choice| now.saturating_duration_since(choice.since) >= settings.min_age;
        let count = choices.iter().filter(old).count();
        if count == 0 {
            return None;
        }
        let chosen = choices.iter().filter(old).nth(rng.random_range(0..count))?;
        self.rotated += 1;
        Some(chosen.id)
    }
}

fn pause(settings: &ChurnSettings, rng: &mut StdRng) -> Duration {
    settings.every.mul_f64(rng.random_range(0.5..1.5)).max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::{super::test_now, *};

    #[test]
    fn one_old_peer_at_a_time_and_only_when_on() {
        let (start, mut rng) = (test_now().mono, StdRng::seed_from_u64(3));
        let day = 86_400;
        let run = |settings, ages: &[u64], rng: &mut StdRng| {
            let mut churn = Churn::default();
            churn.set(start, settings, rng);
            let mut gone = Vec::new();
            for secs in 1..day {
                let now = start + Duration::from_secs(secs);
                let since = |age: u64| now - Duration::from_secs(age).min(now - start);
                let choices: Vec<_> = (0..)
                    .zip(ages)
                    .map(|(n, age)| Choice { id: NodeId([n; 32]), since: since(*age) })
                    .collect();
                gone.extend(churn.rotate(now, &choices, rng));
            }
            gone
        };
        assert!(run(None, &[9999], &mut rng).is_empty());
        let on = Some(ChurnSettings::default());
        assert!(run(on, &[], &mut rng).is_empty());
        assert!(run(on, &[599, 10], &mut rng).is_empty());
        let gone = run(on, &[700, 10, 800], &mut rng);
        // Every five minutes on average makes 288 in a day.
        assert!((250..320).contains(&gone.len()), "{}", gone.len());
        assert!(
            gone.iter().all(|id| id.0[0] != 1) && gone.iter().any(|id| id.0[0] == 2),
            "both old ones have turns"
        );
    }
}
