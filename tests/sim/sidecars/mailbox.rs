//! What one task has sent to another one: in order, each not before its time. And the flags by which tasks are woken.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use devp2pd::Wake;

/// A queue between two tasks.
pub(super) struct Mailbox<T>(VecDeque<(Instant, T)>);

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Mailbox<T> {
    /// Sends, to be received at `at`, or with what was sent before if that comes later.
    pub(super) fn send(&mut self, at: Instant, item: T) {
        let at = self.0.back().map_or(at, |(last, _)| at.max(*last));
        self.0.push_back((at, item));
    }

    /// When the next is there.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.front().map(|(at, _)| *at)
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next().is_some_and(|at| at <= now)
    }

    /// Receives the next if it is there.
    pub(super) fn receive(&mut self, now: Instant) -> Option<T> {
        self.is_due(now).then(|| self.0.pop_front())?.map(|(_, item)| item)
    }

    /// All that is under way.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, item)| item)
    }

    /// Takes all that is under way.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.0.drain(..).map(|(_, item)| item)
    }
}

/// Whether a task was woken.
#[derive(Default)]
pub(super) struct Flag(AtomicBool);

impl Flag {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Flag {
    fn wake(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
