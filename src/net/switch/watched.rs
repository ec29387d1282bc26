//! Watched state: the pure half with its lock, and a signal that tasks can wait for.
//!
//! The signal is a counter that each change raises. There is no queue between the owner and its watchers, so no queue
//! can become full.
//!
//! Left out: the content of the state (`switch::views`), and the position of a watch (`watch`).

use std::sync::Arc;

use tokio::sync::watch;

use crate::{Wake, watch::Shared};

#[derive(Clone, Copy, Debug, Default)]
struct State {
    changes: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Signal(watch::Sender<State>);

impl Wake for Signal {
    fn wake(&self) {
        self.0.send_modify(|state| state.changes = state.changes.wrapping_add(1));
    }
}

/// A handle to watched state. Clones share the state.
#[derive(Debug)]
pub struct Watched<S> {
    shared: Shared<S>,
    signal: Arc<Signal>,
}

impl<S> Clone for Watched<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), signal: Arc::clone(&self.signal) }
    }
}

impl<S> Watched<S> {
    /// Returns a handle whose signal follows the changes of `shared`. Only the first call for a state has an effect.
    #[must_use]
    pub fn new(shared: Shared<S>) -> Self {
        let signal = Arc::<Signal>::default();
        shared.wake_by(Arc::clone(&signal) as _);
        Self { shared, signal }
    }

    /// Changes the state, and wakes its watchers.
    pub fn update<R>(&self, change: impl FnOnce(&mut S) -> R) -> R {
        self.shared.update(change)
    }

    /// Reads the state.
    pub fn read<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        self.shared.read(look)
    }

    /// Closes the state: watchers get no more changes.
    pub fn close(&self) {
        self.signal.0.send_modify(|state| state.closed = true);
    }

    /// Returns the signal for changes from now on.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.signal.0.subscribe())
    }
}

/// The signal for changes, for one watcher.
#[derive(Debug)]
pub struct Changes(watch::Receiver<State>);

impl Changes {
    /// Waits for a change since the last call. Returns `false` if the state is closed.
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
        let watched = Watched::new(Shared::new(0));
        let mut changes = watched.changes();
        watched.update(|state| *state += 1);
        watched.update(|state| *state += 1);
        assert!(changes.changed().await, "two changes are one signal");
        assert_eq!(watched.read(|state| *state), 2);
        watched.close();
        assert!(!changes.changed().await);
        assert!(!watched.changes().changed().await, "a watcher that comes later sees the end, too");
    }
}
