//! The stream `Exchange`: everything for a program, many events a frame, both ways.
//!
//! Response headers go out at once, before anything is read: a client library that waits for them while we wait for
//! its first event would wait for ever. What the application sends is always read, into queues that refuse instead
//! of wait, because an unread stream can cost the whole HTTP/2 connection (see `server`). What it receives is pulled
//! from the inbox when HTTP/2 has room for it, as many events a frame as are ready: batching is the largest factor
//! of speed for every language, and a timer would add delay for nothing.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::{
    convert,
    events::{inbound_event, reply_event},
    proto::{self, ErrorReason, client_event, server_event},
    reader::{Found, Reader, no_attach},
    registration,
    status::{self, Refusal},
};
use crate::delivery::{AttachParams, CreditError};
use crate::{
    net::switch::{Attached, Attachment, Handle},
    rlpx::{Compressor, snappy::MAX_PAYLOAD},
    switch::{
        Principal,
        attachment::{Reply, SendError},
    },
};

/// Events of one frame: measured as the number from which larger frames gain nothing.
const FRAME_EVENTS: usize = 512;

/// Channels that one message may name. geth gossips to the square root of its peers; this is all of them.
const MAX_TARGETS: usize = 4096;

/// Frames that may still go out once the request side found something wrong: enough for all answers that may wait.
const LAST_FRAMES: usize = 16;

/// The response side of `Exchange`.
pub(super) struct ExchangeStream {
    reader: Reader,
    ending: Ending,
    request_task: tokio::task::AbortHandle,
}

/// What the request side found wrong.
type Verdict = Arc<Mutex<Option<Status>>>;

/// When the stream ends for what its client sent: after what was answered before that, and however much peers have to
/// say. Waiting for silence would leave the client without the reason, and its requests unread.
#[derive(Default)]
struct Ending {
    verdict: Verdict,
    /// The verdict, once seen, and how many frames may go out before it.
    last: Option<(Status, usize)>,
}

impl Ending {
    /// Asked before each frame: the stream ends now.
    fn due(&mut self) -> Option<Status> {
        if self.last.is_none() {
            let verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.last = verdict.map(|status| (status, LAST_FRAMES));
        }
        self.last.take_if(|(_, frames)| *frames == 0).map(|(status, _)| status)
    }

    /// A frame with so many answers goes out. One that was not full has the last of them.
    fn told(&mut self, answers: usize) {
        if let Some((_, frames)) = &mut self.last {
            *frames = if answers < FRAME_EVENTS { 0 } else { frames.saturating_sub(1) };
        }
    }

    /// There is nothing to tell.
    fn idle(&mut self) -> Option<Status> {
        if let Some((_, frames)) = &mut self.last {
            *frames = 0;
        }
        let due = self.due();
        due.or_else(|| self.last.take().map(|(status, _)| status))
    }
}

impl ExchangeStream {
    pub(super) fn open(
        handle: Handle,
        principal: Principal,
        requests: Streaming<proto::ExchangeRequest>,
    ) -> Self {
        let (attached, attaching) = oneshot::channel();
        let ending = Ending::default();
        let verdict = Arc::clone(&ending.verdict);
        let task = tokio::spawn(read_requests(handle.clone(), principal, requests, attached, verdict));
        Self { reader: Reader::new(handle, attaching), ending, request_task: task.abort_handle() }
    }
}

impl Drop for ExchangeStream {
    fn drop(&mut self) {
        self.request_task.abort();
    }
}

impl Stream for ExchangeStream {
    type Item = Result<proto::ExchangeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(status) = this.ending.due() {
            this.reader.close();
            return Poll::Ready(Some(Err(status)));
        }
        let event = |event| proto::ServerEvent { event: Some(event) };
        let events = match this.reader.poll(cx, FRAME_EVENTS) {
            Poll::Ready(Found::Attached(attached)) => {
                vec![event(server_event::Event::Attached(registration::attached(&attached)))]
            }
            Poll::Ready(Found::Batch) => {
                this.ending.told(this.reader.replies.len());
                let replies = this.reader.replies.drain(..).map(|reply| event(reply_event(reply)));
                replies
                    .chain(this.reader.events.drain(..).map(|inbound| event(inbound_event(inbound))))
                    .collect()
            }
            Poll::Ready(Found::End(status)) => return Poll::Ready(status.map(Err)),
            Poll::Pending => {
                return match this.ending.idle() {
                    Some(status) => {
                        this.reader.close();
                        Poll::Ready(Some(Err(status)))
                    }
                    None => Poll::Pending,
                };
            }
        };
        Poll::Ready(Some(Ok(proto::ExchangeResponse { events })))
    }
}

/// The request side of `Exchange`: reads for as long as the client sends, whatever becomes of it.
async fn read_requests(
    handle: Handle,
    principal: Principal,
    mut requests: Streaming<proto::ExchangeRequest>,
    attached: oneshot::Sender<Result<Attached, Status>>,
    verdict: Verdict,
) {
    let first = loop {
        match requests.message().await {
            Ok(Some(frame)) if frame.events.is_empty() => {}
            Ok(Some(frame)) => break frame,
            Ok(None) => return,
            Err(status) => {
                let _ = attached.send(Err(status::with_reason(status)));
                return;
            }
        }
    };
    let mut events = first.events.into_iter();
    let attach = match events.next().and_then(|first| first.event) {
        Some(client_event::Event::Attach(attach)) => attach,
        _ => {
            let _ = attached.send(Err(no_attach().into()));
            return;
        }
    };
    let request = match registration::attach_request(attach) {
        Ok(request) => request,
        Err(refusal) => {
            let _ = attached.send(Err(refusal.into()));
            return;
        }
    };
    let opened = match handle.attach(principal, request).await {
        Ok(opened) => opened,
        Err(error) => {
            let _ = attached.send(Err(Refusal::from(error).into()));
            return;
        }
    };
    let attachment = Arc::clone(&opened.attachment);
    if attached.send(Ok(opened)).is_err() {
        return;
    }
    // Held weakly: the stream's end must detach even while we wait for the client here.
    let weak = Arc::downgrade(&attachment);
    drop(attachment);
    let mut compressor = Compressor::default();
    loop {
        for event in events {
            let Some(attachment) = weak.upgrade() else { return };
            // Another process took over: what this one still wants must not disturb it.
            if attachment.is_fenced() {
                return;
            }
            let Some(event) = event.event else { continue };
            if let Err(refusal) = obey(&attachment, &mut compressor, event).await {
                *verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal.into());
                attachment.wake();
                return;
            }
        }
        events = match requests.message().await {
            Ok(Some(frame)) => frame.events.into_iter(),
            // Half-close: no more requests, and delivery goes on.
            Ok(None) => return,
            // The transport ended the call, or the message was malformed; the response side says which.
            Err(status) => {
                let verdict = &mut *verdict.lock().unwrap_or_else(PoisonError::into_inner);
                *verdict = Some(status::with_reason(status));
                if let Some(attachment) = weak.upgrade() {
                    attachment.wake();
                }
                return;
            }
        };
    }
}

/// Does what one event of the application asks for. An error ends the stream.
async fn obey(
    attachment: &Attachment,
    compressor: &mut Compressor,
    event: client_event::Event,
) -> Result<(), Refusal> {
    match event {
        client_event::Event::Attach(_) => Err(Refusal::new(
            ErrorReason::StreamProtocolViolation,
            "\"attach\" is the first event of a stream and comes once",
        )),
        client_event::Event::Message(message) => send(attachment, compressor, &message),
        client_event::Event::WindowUpdate(update) => {
            attachment.credit(update.channel_id, update.bytes).map_err(|error| match error {
                CreditError::NeverOpened { .. } => Refusal::field("window_update.channel_id", error),
                CreditError::TooMuch { .. } => Refusal::field("window_update.bytes", error),
            })
        }
        client_event::Event::Barrier(barrier) => {
            attachment.reply(Reply::Barrier { nonce: barrier.nonce });
            Ok(())
        }
        client_event::Event::DisconnectChannel(disconnect) => {
            // A channel that is gone already is what was asked for.
            if let Some(target) = attachment.target(disconnect.channel_id) {
                let reason = convert::wire_reason(disconnect.reason());
                let owner = attachment.registration();
                attachment.handle().disconnect_channel(owner, target, reason, disconnect.end_session).await?;
            }
            Ok(())
        }
        client_event::Event::SetGreeting(greeting) => {
            let (name, version, messages) = registration::greeting(greeting);
            attachment.handle().set_greeting(attachment.registration(), name, version, messages).await?;
            Ok(())
        }
    }
}

fn send(
    attachment: &Attachment,
    compressor: &mut Compressor,
    message: &proto::OutboundMessage,
) -> Result<(), Refusal> {
    if message.want_result && message.send_id == 0 {
        return Err(Refusal::field("message.send_id", "must not be 0 when want_result is set"));
    }
    if message.channel_ids.is_empty() || message.channel_ids.len() > MAX_TARGETS {
        let problem = format!("names {} channels; 1 to {MAX_TARGETS} are allowed", message.channel_ids.len());
        return Err(Refusal::field("message.channel_ids", problem));
    }
    match compressor.compress(&message.payload) {
        Ok(compressed) => {
            attachment.send(
                &message.channel_ids,
                message.code,
                &compressed,
                message.send_id,
                message.want_result,
            );
            Ok(())
        }
        Err(_) => {
            for &channel in &message.channel_ids {
                attachment.reply(Reply::Failure {
                    send_id: message.send_id,
                    channel,
                    reason: SendError::TooLarge { bytes: message.payload.len(), limit: MAX_PAYLOAD },
                });
            }
            Ok(())
        }
    }
}

/// What an application asks for when it attaches, in the switch's words.
pub(super) fn params(attach: &proto::Attach) -> AttachParams {
    AttachParams {
        stream_window: attach.stream_window_bytes,
        channel_window: attach.channel_window_bytes,
        max_frame_bytes: attach.max_frame_bytes as usize,
        auto_credit: attach.auto_credit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convict(ending: &Ending) {
        *ending.verdict.lock().unwrap() = Some(Status::aborted("wrong"));
    }

    /// Peers that send without a pause do not keep the stream open: the reader is never idle here.
    #[test]
    fn a_verdict_does_not_wait_for_silence() {
        let mut ending = Ending::default();
        for _ in 0..100 {
            assert!(ending.due().is_none());
            ending.told(0);
        }
        convict(&ending);
        assert!(ending.due().is_none(), "what was answered before comes first");
        ending.told(3);
        assert_eq!(ending.due().unwrap().message(), "wrong");
    }

    #[test]
    fn answers_go_before_a_verdict_but_not_for_ever() {
        let mut ending = Ending::default();
        convict(&ending);
        let mut frames = 0;
        while ending.due().is_none() {
            ending.told(if frames < 5 { FRAME_EVENTS } else { 1 });
            frames += 1;
        }
        assert_eq!(frames, 6, "five full frames and the last answers");
        convict(&ending);
        let mut frames = 0;
        while ending.due().is_none() {
            ending.told(FRAME_EVENTS);
            frames += 1;
        }
        assert_eq!(frames, LAST_FRAMES);
    }

    #[test]
    fn a_verdict_on_an_idle_stream_comes_at_once() {
        let mut ending = Ending::default();
        assert!(ending.due().is_none() && ending.idle().is_none());
        convict(&ending);
        assert!(ending.idle().is_some());
        assert!(ending.due().is_none() && ending.idle().is_none(), "it is told once");
    }
}
