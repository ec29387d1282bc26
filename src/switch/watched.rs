//! Some state that one task changes and watchers read: a short lock, and a signal.
//!
//! Whoever owns the state changes it under the lock; a watcher pulls under the same lock as much as its client takes,
//! and then waits for the signal. The lock is never held across a wait, and a pull looks at a bounded number of
//! changes, so the owner is held up for microseconds however many watch and however slow they are. The signal is a
//! number that moves: there is no queue between the two, so there is nothing that could fill.
//!
//! Left out: what the state is (`boards`), and how a watcher's place is kept (`watch`).

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default)]
struct Signal {
    changes: u64,
    closed: bool,
}

#[derive(Debug)]
struct Inner<S> {
    state: Mutex<S>,
    signal: watch::Sender<Signal>,
}

/// A handle to watched state; clones name the same one.
#[derive(Debug)]
pub struct Watched<S>(Arc<Inner<S>>);

impl<S> Clone for Watched<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Watched<S> {
    /// Shares `state`.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self(Arc::new(Inner { state: Mutex::new(state), signal: watch::Sender::default() }))
    }

    /// Changes the state and tells those who watch.
    pub fn update<R>(&self, change: impl FnOnce(&mut S) -> R) -> R {
        let result = change(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.signal.send_modify(|signal| signal.changes = signal.changes.wrapping_add(1));
        result
    }

    /// Reads the state.
    pub fn read<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(&self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells those who watch that nothing more comes.
    pub fn close(&self) {
        self.0.signal.send_modify(|signal| signal.closed = true);
    }

    /// What tells of changes that come from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.0.signal.subscribe())
    }
}

/// Tells one watcher of changes.
#[derive(Debug)]
pub struct Changes(watch::Receiver<Signal>);

impl Changes {
    /// Waits for a change since the last call. `false`: nothing more comes.
    pub async fn changed(&mut self) -> bool {
        if self.0.borrow().closed {
            return false;
        }
        self.0.changed().await.is_ok() && !self.0.borrow_and_update().closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_told_and_an_end_too() {
        let watched = Watched::new(0);
        let mut changes = watched.changes();
        watched.update(|state| *state += 1);
        watched.update(|state| *state += 1);
        assert!(changes.changed().await, "two changes are one signal");
        assert_eq!(watched.read(|state| *state), 2);
        watched.close();
        assert!(!changes.changed().await);
        assert!(!watched.changes().changed().await, "whoever comes later hears of the end too");
    }
}
