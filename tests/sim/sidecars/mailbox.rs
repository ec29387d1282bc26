//! The queues between tasks, whose items are received in order and not before their time, and the flags that wake
//! tasks.

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
    /// Sends an item, to be received at `at`, or together with the item before it if that is received later.
    pub(super) fn send(&mut self, at: Instant, item: T) {
        let at = self.0.back().map_or(at, |(last, _)| at.max(*last));
        self.0.push_back((at, item));
    }

    /// The time at which the next item can be received.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.front().map(|(at, _)| *at)
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next().is_some_and(|at| at <= now)
    }

    /// Receives the next item if its time has come.
    pub(super) fn receive(&mut self, now: Instant) -> Option<T> {
        self.is_due(now).then(|| self.0.pop_front())?.map(|(_, item)| item)
    }

    /// All items that are under way.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, item)| item)
    }

    /// Takes all items that are under way.
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
