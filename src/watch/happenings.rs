//! Events whose subjects strangers choose: failed dials, refused connections.
//!
//! There is no state to replicate, and a stranger can invent keys at no cost. So this is a plain ring: a watcher that
//! keeps up gets every event, and one that does not gets the number that it missed, by reason.

use std::collections::VecDeque;

/// How many events are kept.
pub const MAX_HAPPENINGS: usize = 4_096;

/// How many events of one reason a watcher missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The reason, as it was recorded.
    pub reason: usize,
    /// How many.
    pub count: u64,
}

/// The last events, and the number of all events by reason.
#[derive(Debug)]
pub struct Happenings<E> {
    ring: VecDeque<(usize, E)>,
    capacity: usize,
    head: u64,
    totals: Vec<u64>,
    /// How many events of each reason have left the ring.
    left: Vec<u64>,
}

/// The position of a watcher in [`Happenings`].
#[derive(Debug)]
pub struct HappeningCursor {
    position: u64,
    /// How many events of each reason it got, was told that it missed, or did not need because they came before it.
    told: Vec<u64>,
}

impl<E> Happenings<E> {
    /// No events yet. Reasons are numbered below `reasons`; `capacity` is usually [`MAX_HAPPENINGS`].
    #[must_use]
    pub fn new(reasons: usize, capacity: usize) -> Self {
        let none = vec![0; reasons];
        Self { ring: VecDeque::new(), capacity: capacity.max(1), head: 0, totals: none.clone(), left: none }
    }

    /// Records an event. A reason that is out of range counts as the last one.
    pub fn record(&mut self, reason: usize, happening: E) {
        let reason = reason.min(self.totals.len().saturating_sub(1));
        count(&mut self.totals, reason);
        self.ring.push_back((reason, happening));
        self.head = self.head.saturating_add(1);
        if self.ring.len() > self.capacity
            && let Some((reason, _)) = self.ring.pop_front()
        {
            count(&mut self.left, reason);
        }
    }

    /// A watcher of the events from now on.
    #[must_use]
    pub fn watch(&self) -> HappeningCursor {
        HappeningCursor { position: self.head, told: self.totals.clone() }
    }

    /// Calls `tell` for up to `max` events that the watcher has not got yet, oldest first. Returns the events that it
    /// missed before them. There may be more if `tell` was called `max` times.
    pub fn pull<'a>(
        &'a self,
        cursor: &mut HappeningCursor,
        max: usize,
        mut tell: impl FnMut(&'a E),
    ) -> Vec<Missed> {
        let mut missed = Vec::new();
        let oldest = self.head.saturating_sub(self.ring.len() as u64);
        if cursor.position < oldest {
            cursor.position = oldest;
            for (reason, (told, left)) in cursor.told.iter_mut().zip(&self.left).enumerate() {
                let count = left.saturating_sub(*told);
                if count > 0 {
                    missed.push(Missed { reason, count });
                    *told = *left;
                }
            }
        }
        let skip = usize::try_from(cursor.position.saturating_sub(oldest)).unwrap_or(usize::MAX);
        for (reason, happening) in self.ring.iter().skip(skip).take(max) {
            cursor.position = cursor.position.saturating_add(1);
            count(&mut cursor.told, *reason);
            tell(happening);
        }
        missed
    }
}

fn count(counts: &mut [u64], reason: usize) {
    if let Some(count) = counts.get_mut(reason) {
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_and_what_was_missed_is_all_that_happened() {
        let mut happenings = Happenings::new(3, 10);
        happenings.record(0, 0);
        let mut cursor = happenings.watch();
        let (mut told, mut missed) = ([0_u64; 3], [0_u64; 3]);
        let mut last = 0;
        for round in 1..200_usize {
            for step in 0..round % 23 {
                happenings.record((round + step) % 4, round * 100 + step);
            }
            for Missed { reason, count } in happenings.pull(&mut cursor, 7, |&happening| {
                assert!(happening > last, "in order, once");
                last = happening;
                told[(happening / 100 + happening % 100).rem_euclid(4).min(2)] += 1;
            }) {
                missed[reason] += count;
            }
        }
        while told.iter().sum::<u64>() + missed.iter().sum::<u64>() + 1 < happenings.head {
            assert!(
                happenings
                    .pull(&mut cursor, 100, |h| told[(h / 100 + h % 100).rem_euclid(4).min(2)] += 1)
                    .is_empty()
            );
        }
        for reason in 0..3 {
            let before = u64::from(reason == 0);
            assert_eq!(told[reason] + missed[reason] + before, happenings.totals[reason]);
        }
        assert!(missed.iter().all(|count| *count > 0), "{missed:?}");
    }
}
