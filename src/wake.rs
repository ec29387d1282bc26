//! How a pure room wakes a task without depending on a kind of task.
//!
//! Queues that several tasks share (messages to a peer, messages to an application) are in pure rooms. Their drivers
//! implement [`Wake`] for their tasks. A queue is often made before its task runs, so it holds a [`WakeSlot`], which
//! the driver fills later.
//!
//! Left out: how a task waits (`net::wake`).

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

/// Wakes a task. A call must not block; it may come from any thread, and more often than needed.
pub trait Wake: Send + Sync {
    /// Wakes the task, or makes its next wait return at once.
    fn wake(&self);
}

/// A place for the [`Wake`] of a task that may not run yet.
#[derive(Default)]
pub struct WakeSlot(OnceLock<Arc<dyn Wake>>);

impl WakeSlot {
    /// Stores `wake` and calls it once, because calls may have come before. If the slot is filled already, the first
    /// one stays.
    pub fn fill(&self, wake: Arc<dyn Wake>) {
        let _ = self.0.set(wake);
        self.wake();
    }
}

impl Wake for WakeSlot {
    fn wake(&self) {
        if let Some(wake) = self.0.get() {
            wake.wake();
        }
    }
}

impl fmt::Debug for WakeSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() { "WakeSlot(filled)" } else { "WakeSlot(empty)" })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_that_starts_late_is_woken_for_what_came_before() {
        let (slot, first, second) = (WakeSlot::default(), Arc::<Count>::default(), Arc::<Count>::default());
        slot.wake();
        slot.fill(Arc::clone(&first) as _);
        assert_eq!(first.0.load(Ordering::Relaxed), 1);
        slot.fill(Arc::clone(&second) as _);
        slot.wake();
        assert_eq!(first.0.load(Ordering::Relaxed), 3, "the first one stays");
        assert_eq!(second.0.load(Ordering::Relaxed), 0);
    }
}
