//! The two streams of messages: `Exchange` for applications, `ReceiveMessages` for shells.
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
    time::Duration,
};

use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::{
    convert,
    proto::{self, ErrorReason, client_event, server_event},
    registration,
    status::Refusal,
};
use crate::{
    rlpx::{Compressor, snappy::MAX_PAYLOAD},
    switch::{
        Draining, Handle, Principal,
        attachment::{Attachment, PeerChannel, Read, Reply, SendError},
        inbox::{AttachParams, ClosedBy, Event, Opened},
        registrations::{Attached, Ended},
    },
};

/// Payload bytes of one frame: measured as the point from which larger frames gain nothing.
const FRAME_BYTES: usize = 256 * 1024;

/// Events of one frame, likewise.
const FRAME_EVENTS: usize = 512;

/// Channels that one message may name. geth gossips to the square root of its peers; this is all of them.
const MAX_TARGETS: usize = 4096;

/// The part of both streams that is alike: an attachment that is awaited, then read.
struct Reader {
    state: State,
    max_bytes: usize,
    handle: Handle,
    replies: Vec<Reply>,
    events: Vec<Event<PeerChannel>>,
}

enum State {
    /// The attachment is on its way (from the first event, or from the switch).
    Attaching(oneshot::Receiver<Result<Attached, Status>>),
    Attached(Arc<Attachment>),
    Ended,
}

/// What reading found.
enum Found {
    Attached(Box<Attached>),
    Batch,
    End(Option<Status>),
}

impl Reader {
    fn new(handle: Handle, attaching: oneshot::Receiver<Result<Attached, Status>>) -> Self {
        Self {
            state: State::Attaching(attaching),
            max_bytes: FRAME_BYTES,
            handle,
            replies: Vec::new(),
            events: Vec::new(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, max_events: usize) -> Poll<Found> {
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
                    // The client closed its side before it said what it wants.
                    Err(_) => self.end(Some(no_attach().into())),
                }
            }
            State::Attached(attachment) => {
                match self.handle.draining() {
                    Draining::No => {}
                    Draining::Until(deadline) => attachment.announce_drain(deadline),
                    Draining::Over => {
                        let status = registration::ended(Ended::Drained);
                        return self.end(Some(status));
                    }
                }
                self.replies.clear();
                self.events.clear();
                let read =
                    attachment.poll_read(cx, self.max_bytes, max_events, &mut self.replies, &mut self.events);
                match read {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Read::Some) => Poll::Ready(Found::Batch),
                    Poll::Ready(Read::Overrun) => {
                        let refusal = Refusal::new(
                            ErrorReason::LimitReached,
                            "the client sends without reading what it is answered; read the stream",
                        );
                        self.end(Some(refusal.into()))
                    }
                    Poll::Ready(Read::Ended) => {
                        let status = registration::ended(attachment.why_ended());
                        self.end(Some(status))
                    }
                }
            }
            State::Ended => Poll::Ready(Found::End(None)),
        }
    }

    fn end(&mut self, status: Option<Status>) -> Poll<Found> {
        self.state = State::Ended;
        Poll::Ready(Found::End(status))
    }
}

fn no_attach() -> Refusal {
    Refusal::new(
        ErrorReason::StreamProtocolViolation,
        "the first event of the stream must be \"attach\", with a spec, a resume_token or a client_id",
    )
}

/// The response side of `Exchange`.
pub(super) struct ExchangeStream {
    reader: Reader,
    /// What the request side found wrong, told after what was answered before it.
    verdict: Arc<Mutex<Option<Status>>>,
    request_task: tokio::task::AbortHandle,
}

impl ExchangeStream {
    pub(super) fn open(
        handle: Handle,
        principal: Principal,
        requests: Streaming<proto::ExchangeRequest>,
    ) -> Self {
        let (attached, attaching) = oneshot::channel();
        let verdict = Arc::default();
        let task =
            tokio::spawn(read_requests(handle.clone(), principal, requests, attached, Arc::clone(&verdict)));
        Self { reader: Reader::new(handle, attaching), verdict, request_task: task.abort_handle() }
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
        let event = |event| proto::ServerEvent { event: Some(event) };
        let events = match this.reader.poll(cx, FRAME_EVENTS) {
            Poll::Ready(Found::Attached(attached)) => {
                vec![event(server_event::Event::Attached(registration::attached(&attached)))]
            }
            Poll::Ready(Found::Batch) => {
                let replies = this.reader.replies.drain(..).map(|reply| event(reply_event(reply)));
                replies
                    .chain(this.reader.events.drain(..).map(|inbound| event(inbound_event(inbound))))
                    .collect()
            }
            Poll::Ready(Found::End(status)) => return Poll::Ready(status.map(Err)),
            Poll::Pending => {
                let verdict = this.verdict.lock().unwrap_or_else(PoisonError::into_inner).take();
                return match verdict {
                    Some(status) => {
                        this.reader.state = State::Ended;
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
    verdict: Arc<Mutex<Option<Status>>>,
) {
    let first = loop {
        match requests.message().await {
            Ok(Some(frame)) if frame.events.is_empty() => {}
            Ok(Some(frame)) => break frame,
            Ok(None) | Err(_) => return,
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
                *verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
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
            attachment.credit(update.channel_id, update.bytes);
            Ok(())
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

/// Why a message was refused: the reason for programs, and a sentence.
pub(super) fn send_error(error: SendError) -> (ErrorReason, String) {
    match error {
        SendError::WindowExceeded => (
            ErrorReason::SendWindowExceeded,
            "the channel's send window is used up; wait for credit".to_owned(),
        ),
        SendError::NotConnected => (ErrorReason::PeerNotConnected, "the channel is closed".to_owned()),
        SendError::CodeOutOfRange { message_count } => (
            ErrorReason::MessageCodeOutOfRange,
            format!("the protocol has message codes 0 to {}", message_count.saturating_sub(1)),
        ),
        SendError::TooLarge { bytes, limit } => (
            ErrorReason::MessageTooLarge,
            format!(
                "{bytes} bytes; a message has at most {limit} bytes, and its compressed frame must fit 24 bits \
                 (16776442 bytes of data that does not compress)"
            ),
        ),
    }
}

fn reply_event(reply: Reply) -> server_event::Event {
    match reply {
        Reply::Failure { send_id, channel, reason } => {
            let (reason, detail) = send_error(reason);
            server_event::Event::SendFailure(proto::SendFailure {
                send_id,
                channel_id: channel,
                reason: reason.into(),
                detail,
            })
        }
        Reply::Result { send_id, channel, written } => server_event::Event::SendResult(proto::SendResult {
            send_id,
            channel_id: channel,
            written,
            reason: if written { ErrorReason::Unspecified } else { ErrorReason::PeerNotConnected }.into(),
        }),
        Reply::Credit { channel, bytes } => {
            server_event::Event::WindowUpdate(proto::WindowUpdate { channel_id: channel, bytes })
        }
        Reply::Barrier { nonce } => server_event::Event::BarrierReply(proto::Barrier { nonce }),
        Reply::Drain { deadline } => server_event::Event::Drain(drain(deadline)),
    }
}

fn drain(deadline: Duration) -> proto::DrainNotice {
    proto::DrainNotice { deadline: Some(convert::timestamp(deadline)) }
}

fn fragment(part: crate::switch::inbox::Part) -> proto::Fragment {
    // A message has at most 24 bits of length.
    let int = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    proto::Fragment { total_bytes: int(part.total), offset: int(part.offset) }
}

fn opened(opened: Opened<PeerChannel>) -> proto::ChannelOpened {
    // What an earlier stream sent and the socket has not taken yet comes back as credit on this one.
    let peer = &opened.about.peer;
    let sent = peer.session.outbound.progress(peer.channel.index).stream;
    let waiting = sent.accepted_cost.saturating_sub(sent.written_cost);
    // And a session that has ended meanwhile, and is only told of for what it left behind, takes nothing.
    let ended = peer.session.outbound.is_closed();
    let window = if ended { 0 } else { opened.about.send_window.saturating_sub(waiting) };
    proto::ChannelOpened {
        channel_id: opened.channel,
        capability: Some(convert::capability(&opened.about.capability)),
        peer: Some(convert::session(&opened.about.peer.session)),
        existing: opened.existing,
        send_window_bytes: window,
        session_id: opened.about.session_id,
        position: opened.position,
        uncredited_messages: opened.uncredited_messages,
        greeting_sent: opened.about.greeting_sent,
        first_messages: opened
            .first_messages
            .into_iter()
            .map(|message| proto::Payload { code: message.code, payload: message.payload })
            .collect(),
    }
}

fn closed(channel: u32, close: &crate::switch::inbox::Close) -> proto::ChannelClosed {
    proto::ChannelClosed {
        channel_id: channel,
        reason: convert::disconnect_reason(close.reason).into(),
        by: match &close.by {
            ClosedBy::Remote => "remote".to_owned(),
            ClosedBy::Sidecar => "sidecar".to_owned(),
            ClosedBy::Operator => "operator".to_owned(),
            ClosedBy::Client(client) => client.to_string(),
        },
        detail: convert::text(&close.detail),
        unsent_messages: close.unsent_messages,
    }
}

fn inbound_event(event: Event<PeerChannel>) -> server_event::Event {
    match event {
        Event::Opened(open) => server_event::Event::ChannelOpened(opened(*open)),
        Event::Message { channel, code, payload, part } => {
            server_event::Event::Message(proto::InboundMessage {
                channel_id: channel,
                code,
                payload,
                fragment: part.map(fragment),
            })
        }
        Event::Gap { channel, sessions, messages, bytes } => {
            server_event::Event::Gap(proto::Gap { channel_id: channel, messages, bytes, sessions })
        }
        Event::Closed { channel, close, .. } => server_event::Event::ChannelClosed(closed(channel, &close)),
    }
}

/// The stream of `ReceiveMessages`: one event a message, each message with its peer's name.
pub(super) struct ReceiveStream {
    reader: Reader,
    /// Names of the channels that were announced.
    names: std::collections::HashMap<u32, (String, proto::Capability)>,
}

impl ReceiveStream {
    pub(super) fn open(handle: Handle, opened: Attached) -> Self {
        let (attached, attaching) = oneshot::channel();
        let _ = attached.send(Ok(opened));
        Self { reader: Reader::new(handle, attaching), names: std::collections::HashMap::new() }
    }

    fn event(&mut self, event: Event<PeerChannel>) -> proto::receive_messages_response::Event {
        use proto::receive_messages_response::Event as Out;
        match event {
            Event::Opened(open) => {
                let about = &open.about;
                let name = (about.peer.session.node_id.to_string(), convert::capability(&about.capability));
                self.names.insert(open.channel, name);
                Out::ChannelOpened(opened(*open))
            }
            Event::Message { channel, code, payload, part } => {
                let (node_id, capability) = self.names.get(&channel).cloned().unwrap_or_default();
                Out::Message(proto::PeerMessage {
                    node_id,
                    capability: Some(capability),
                    channel_id: channel,
                    code,
                    payload,
                    fragment: part.map(fragment),
                })
            }
            Event::Gap { channel, sessions, messages, bytes } => {
                Out::Gap(proto::Gap { channel_id: channel, messages, bytes, sessions })
            }
            Event::Closed { channel, close, .. } => {
                self.names.remove(&channel);
                Out::ChannelClosed(closed(channel, &close))
            }
        }
    }
}

impl Stream for ReceiveStream {
    type Item = Result<proto::ReceiveMessagesResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use proto::receive_messages_response::Event as Out;
        let this = &mut *self;
        let event = loop {
            match this.reader.poll(cx, 1) {
                Poll::Ready(Found::Attached(attached)) => {
                    break Out::Attached(registration::attached(&attached));
                }
                Poll::Ready(Found::Batch) => {
                    // Credit and results concern senders on the stream, which this one has none of.
                    if let Some(Reply::Drain { deadline }) = this.reader.replies.pop() {
                        break Out::Drain(drain(deadline));
                    }
                    if let Some(event) = this.reader.events.pop() {
                        break this.event(event);
                    }
                }
                Poll::Ready(Found::End(status)) => return Poll::Ready(status.map(Err)),
                Poll::Pending => return Poll::Pending,
            }
        };
        Poll::Ready(Some(Ok(proto::ReceiveMessagesResponse { event: Some(event) })))
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
