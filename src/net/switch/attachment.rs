//! One attached stream as its tasks see it: the pure half, the waker of the task that reads it, and the way back to the
//! switch when it ends.
//!
//! Left out: what is read and sent (`switch::attachment`).

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

/// The answer to a stream.
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

/// A stream's hold on its registration. The registration lingers once it is dropped.
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

    /// Fills `batch` with what is ready, and has the task woken when there is more. `Pending` instead of [`Read::Nothing`].
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        max_bytes: usize,
        max_events: usize,
        batch: &mut Batch,
    ) -> Poll<Read> {
        // Registered before looking, so that what comes in between wakes.
        self.waker.register(cx.waker());
        match self.stream.read(max_bytes, max_events, batch) {
            Read::Nothing => Poll::Pending,
            read => Poll::Ready(read),
        }
    }

    /// The switch, for what the stream asks beyond messages.
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
