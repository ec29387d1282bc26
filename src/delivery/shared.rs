//! An inbox that connection tasks and a stream share: the only lock of this room, and the tasks that it wakes.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::inbox::{Inbox, Waking};
use super::slab::ChannelKey;

/// The callbacks that wake tasks. They are called without the lock held, and must not block.
pub struct Hooks {
    /// The stream whose last pull found nothing can pull again, or has ended.
    pub on_readable: Box<dyn Fn() + Send + Sync>,
    /// The connection that is held for this channel can push again.
    pub on_space: Box<dyn Fn(ChannelKey) + Send + Sync>,
}

struct Inner<P> {
    inbox: Mutex<Inbox<P>>,
    hooks: Hooks,
}

/// A handle to an inbox; clones name the same one.
pub struct SharedInbox<P>(Arc<Inner<P>>);

impl<P> SharedInbox<P> {
    /// Shares `inbox`.
    #[must_use]
    pub fn new(inbox: Inbox<P>, hooks: Hooks) -> Self {
        Self(Arc::new(Inner { inbox: Mutex::new(inbox), hooks }))
    }

    /// Locks the inbox for a few calls in a row. When the guard is dropped, the lock is released, and then the tasks
    /// that can go on are woken.
    #[must_use]
    pub fn lock(&self) -> Guard<'_, P> {
        Guard {
            // No call can panic while the inbox is half changed, so the inbox behind a poisoned lock can be used.
            inbox: self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner),
            waker: Waker { hooks: &self.0.hooks, waking: Waking::default() },
        }
    }
}

/// A locked inbox.
pub struct Guard<'a, P> {
    // Fields are dropped in this order: first the lock is released, then the tasks are woken.
    inbox: MutexGuard<'a, Inbox<P>>,
    waker: Waker<'a>,
}

struct Waker<'a> {
    hooks: &'a Hooks,
    waking: Waking,
}

impl<P> Deref for Guard<'_, P> {
    type Target = Inbox<P>;

    fn deref(&self) -> &Inbox<P> {
        &self.inbox
    }
}

impl<P> DerefMut for Guard<'_, P> {
    fn deref_mut(&mut self) -> &mut Inbox<P> {
        &mut self.inbox
    }
}

impl<P> Drop for Guard<'_, P> {
    fn drop(&mut self) {
        self.waker.waking = self.inbox.take_waking();
    }
}

impl Drop for Waker<'_> {
    fn drop(&mut self) {
        if self.waking.readable {
            (self.hooks.on_readable)();
        }
        for channel in self.waking.space.drain(..) {
            (self.hooks.on_space)(channel);
        }
    }
}

impl<P> Clone for SharedInbox<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> fmt::Debug for SharedInbox<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedInbox")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::tests::{PushExt, about, inbox};
    use super::super::{AttachParams, Pull, StreamId};
    use super::*;

    #[test]
    fn a_reader_is_woken_once_and_never_under_the_lock() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let itself: Arc<OnceLock<SharedInbox<&str>>> = Arc::default();
        let locked = Arc::clone(&itself);
        let hooks = Hooks {
            on_readable: Box::new(move || {
                if let Some(shared) = locked.get() {
                    assert!(shared.0.inbox.try_lock().is_ok());
                }
                counter.fetch_add(1, Ordering::Relaxed);
            }),
            on_space: Box::new(|_| {}),
        };
        let shared = SharedInbox::new(inbox(), hooks);
        itself.set(shared.clone()).unwrap();
        let woken = || woken.swap(0, Ordering::Relaxed);
        let stream = StreamId(1);
        shared.lock().attach(stream, AttachParams::default());
        assert_eq!(woken(), 1, "the stream before it has ended");
        let pull = || shared.lock().pull(stream, 1 << 20, 100, &mut Vec::new());
        assert_eq!(pull(), Pull::Idle);
        let key = shared.lock().open(about(1, "eth")).unwrap();
        assert_eq!(woken(), 1, "an announcement");
        for _ in 0..10 {
            shared.lock().queue(key, 3);
        }
        assert_eq!(woken(), 0, "it has not looked since");
        assert_eq!(pull(), Pull::Idle);
        for _ in 0..10 {
            shared.lock().queue(key, 3);
        }
        assert_eq!(woken(), 1);
    }
}
