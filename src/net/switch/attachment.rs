//! One attached stream, for its tasks: the pure half, the waker of the task that reads it, and the report to the switch
//! when it ends.
//!
//! Left out: reading and sending (`switch::attachment`).

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use super::handle::Handle;
use crate::{
    Wake,
    switch::{
        self,
        attachment::{Batch, Read},
        registration,
    },
};

/// The answer to a stream that has attached.
pub type Attached = registration::Attached<Arc<Attachment>>;

/// Wakes the task that reads a stream.
#[derive(Debug, Default)]
pub(super) struct StreamWaker(Mutex<Option<Waker>>);

impl StreamWaker {
    fn register(&self, waker: &Waker) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|have| !have.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
}

impl Wake for StreamWaker {
    fn wake(&self) {
        let waker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The attachment of a stream to its registration. Dropping it begins the registration's linger.
pub struct Attachment {
    stream: switch::attachment::Attachment,
    waker: Arc<StreamWaker>,
    handle: Handle,
}

impl Attachment {
    pub(super) fn new(
        stream: switch::attachment::Attachment,
        waker: Arc<StreamWaker>,
        handle: Handle,
    ) -> Arc<Self> {
        Arc::new(Self { stream, waker, handle })
    }

    /// Fills `batch` with the events and replies that are ready. If there are none, returns `Pending` in place of
    /// [`Read::Nothing`], and wakes the task when there are some.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        max_bytes: usize,
        max_events: usize,
        batch: &mut Batch,
    ) -> Poll<Read> {
        // The waker is registered before the read, so that an event between the two wakes the task.
        self.waker.register(cx.waker());
        match self.stream.read(max_bytes, max_events, batch) {
            Read::Nothing => Poll::Pending,
            read => Poll::Ready(read),
        }
    }

    /// Returns the handle to the switch, for requests of the stream other than messages.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Deref for Attachment {
    type Target = switch::attachment::Attachment;

    fn deref(&self) -> &Self::Target {
        &self.stream
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let last_send_id = self.stream.end();
        self.handle.detach(self.stream.registration(), self.stream.stream(), last_send_id);
    }
}
