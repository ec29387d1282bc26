//! Reads the events of a registration for its stream, for both `Exchange` and `ReceiveMessages`.
//!
//! The reader waits for the attachment. Then it takes the events that are ready whenever HTTP/2 has room. It ends when
//! the registration ends, when another stream takes over, or when the sidecar stops.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::oneshot;
use tonic::Status;

use crate::net::switch::{Attached, Attachment, Draining, Handle};
use crate::rpc::{
    proto::ErrorReason,
    translate::{errors, status::ErrorStatus},
};
use crate::switch::{
    attachment::{Batch, Read},
    registrations::Ended,
};

/// The most payload bytes of one frame. Measured: larger frames are not faster.
const FRAME_BYTES: usize = 256 * 1024;

/// Waits for an attachment, then reads it.
pub(super) struct Reader {
    state: State,
    max_bytes: usize,
    handle: Handle,
    /// The replies and events of the last read.
    pub(super) batch: Batch,
}

enum State {
    /// The attachment is not complete: the first event or the reply of the switch has not come yet.
    Attaching(oneshot::Receiver<Result<Attached, Status>>),
    Attached(Arc<Attachment>),
    Ended,
}

/// The outcome of one poll.
pub(super) enum Found {
    Attached(Box<Attached>),
    Batch,
    End(Option<Status>),
}

impl Reader {
    pub(super) fn new(handle: Handle, attaching: oneshot::Receiver<Result<Attached, Status>>) -> Self {
        Self { state: State::Attaching(attaching), max_bytes: FRAME_BYTES, handle, batch: Batch::default() }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>, max_events: usize) -> Poll<Found> {
        match &mut self.state {
            State::Attaching(receiver) => {
                let Poll::Ready(outcome) = Pin::new(receiver).poll(cx) else { return Poll::Pending };
                match outcome {
                    Ok(Ok(attached)) => {
                        self.max_bytes = FRAME_BYTES.min(attached.max_frame);
                        self.state = State::Attached(Arc::clone(&attached.attachment));
                        Poll::Ready(Found::Attached(Box::new(attached)))
                    }
                    Ok(Err(status)) => self.end(Some(status)),
                    // The client ended its side before it sent an event.
                    Err(_) => self.end(Some(no_attach().into())),
                }
            }
            State::Attached(attachment) => {
                match self.handle.draining() {
                    Draining::No => {}
                    Draining::Until(deadline) => attachment.announce_drain(deadline),
                    Draining::Over => {
                        return self.end(Some(errors::ended(Ended::Drained).into()));
                    }
                }
                match attachment.poll_read(cx, self.max_bytes, max_events, &mut self.batch) {
                    Poll::Pending | Poll::Ready(Read::Nothing) => Poll::Pending,
                    Poll::Ready(Read::Some) => Poll::Ready(Found::Batch),
                    Poll::Ready(Read::Overrun) => {
                        let refusal = ErrorStatus::new(
                            ErrorReason::LimitReached,
                            "the client sends events and does not read the replies; read the stream while sending",
                        );
                        self.end(Some(refusal.into()))
                    }
                    Poll::Ready(Read::Ended) => {
                        let refusal = errors::ended(attachment.why_ended());
                        self.end(Some(refusal.into()))
                    }
                }
            }
            State::Ended => Poll::Ready(Found::End(None)),
        }
    }

    /// Drops the attachment. The reader returns nothing more.
    pub(super) fn close(&mut self) {
        self.state = State::Ended;
    }

    fn end(&mut self, status: Option<Status>) -> Poll<Found> {
        self.close();
        Poll::Ready(Found::End(status))
    }
}

pub(super) fn no_attach() -> ErrorStatus {
    ErrorStatus::new(
        ErrorReason::StreamProtocolViolation,
        "the first event of the stream must be \"attach\", with a spec, a resume_token or a client_id",
    )
}
