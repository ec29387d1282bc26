//! An inbox that connection tasks and a stream share: the one lock of this room, and whom it wakes.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::slab::ChannelKey;
use super::{Inbox, Wake};

/// Whom to wake. Called without the lock held; must not block.
pub struct Hooks {
    /// The stream that pulled until it found nothing can pull again, or has ended.
    pub on_readable: Box<dyn Fn() + Send + Sync>,
    /// The connection that was told to stall on this channel can push again.
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

    /// Locks the inbox for a few calls in a row. Whoever these calls allow to go on is woken after the lock is
    /// released.
    pub fn with<R>(&self, calls: impl FnOnce(&mut Inbox<P>) -> R) -> R {
        // No call leaves an inbox half changed where it could panic, so a poisoned one is as good as any.
        let mut inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let result = calls(&mut inbox);
        let Wake { readable, space } = std::mem::take(&mut inbox.wake);
        drop(inbox);
        if readable {
            (self.0.hooks.on_readable)();
        }
        for channel in space {
            (self.0.hooks.on_space)(channel);
        }
        result
    }

    /// Whether both handles name the same inbox.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::tests::{PushExt, about, inbox};
    use super::super::{AttachParams, Pull};
    use super::*;

    #[test]
    fn a_reader_is_woken_once_and_never_under_the_lock() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let hooks = Hooks {
            on_readable: Box::new(move || {
                counter.fetch_add(1, Ordering::Relaxed);
            }),
            on_space: Box::new(|_| {}),
        };
        let shared = SharedInbox::new(inbox(), hooks);
        let woken = || woken.swap(0, Ordering::Relaxed);
        let stream = shared.with(|inbox| inbox.attach(AttachParams::default()));
        assert_eq!(woken(), 1, "whoever pulled before has ended");
        let pull = || shared.with(|inbox| inbox.pull(stream, 1 << 20, 100, &mut Vec::new()));
        assert_eq!(pull(), Pull::Idle);
        let key = shared.with(|inbox| inbox.open(about(1, "eth")).unwrap());
        assert_eq!(woken(), 1, "an announcement");
        for _ in 0..10 {
            shared.with(|inbox| inbox.queue(key, 3));
        }
        assert_eq!(woken(), 0, "it has not looked since");
        assert_eq!(pull(), Pull::Idle);
        for _ in 0..10 {
            shared.with(|inbox| inbox.queue(key, 3));
        }
        assert_eq!(woken(), 1);
        assert!(shared.same(&shared.clone()));
    }
}
