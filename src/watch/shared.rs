//! Watched state that one owner changes and any number of watchers read: a short lock, and a wake-up for each change.
//!
//! The owner changes the state under the lock. A watcher pulls under the same lock as much as its client takes. The
//! lock is never held across a wait, and a pull handles a bounded number of changes. So the owner waits for
//! microseconds, however many watchers there are and however slow they are.
//!
//! Left out: how a watcher waits for the wake-up (`net::switch`), and what the state is.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{Wake, WakeSlot};

#[derive(Debug)]
struct Inner<S> {
    state: Mutex<S>,
    wake: WakeSlot,
}

/// A handle to watched state; clones name the same one.
#[derive(Debug)]
pub struct Shared<S>(Arc<Inner<S>>);

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Shared<S> {
    /// Shares `state`.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self(Arc::new(Inner { state: Mutex::new(state), wake: WakeSlot::default() }))
    }

    /// Sets the waker that is called after each change. If one is set already, it stays.
    pub fn wake_by(&self, wake: Arc<dyn Wake>) {
        self.0.wake.fill(wake);
    }

    /// Changes the state, then wakes the watchers.
    pub fn update<R>(&self, change: impl FnOnce(&mut S) -> R) -> R {
        let result = change(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.wake.wake();
        result
    }

    /// Reads the state.
    pub fn read<R>(&self, look: impl FnOnce(&S) -> R) -> R {
        look(&self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
