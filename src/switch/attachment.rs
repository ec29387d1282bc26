//! The stream of the moment: what one attached application sees of its registration, and what it sends.
//!
//! An [`Attachment`] is held by one gRPC stream. Reading pulls from the registration's inbox; sending goes straight to
//! the outbound queues of the sessions. Neither passes the switch's task, and neither waits for a peer. When it is
//! dropped, however the stream ended, the registration's linger begins.
//!
//! What the sender must hear (failures, results, credit, answers to barriers) waits in a queue of its own, which is
//! bounded because its reader may be asleep while it writes: beyond [`MAX_REPLIES`] the stream is ended.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
    vec::Drain,
};

use super::{
    handle::Handle,
    registrations::{Ended, Holding, RegistrationId},
    session::{Session, SessionChannel},
};
use crate::delivery::{CreditError, Event, Pull, SharedInbox, StreamId};
use crate::{
    p2p::{Lane, Refused, SEND_WINDOW},
    rlpx::{Compressed, Compressor, MessageTooLarge, snappy::MAX_PAYLOAD},
};

/// Replies that may wait for a stream whose reader is asleep. At about a hundred bytes each this is some MiB; an
/// application that sends without reading has used up its windows long before.
pub const MAX_REPLIES: usize = 65_536;

/// Credit is returned to the sender in steps of this size: a quarter of the window, so that a window cannot run dry
/// unnoticed and small messages do not cost a reply each.
const CREDIT_STEP: u64 = SEND_WINDOW / 4;

/// A message that is ready to be queued for any number of peers: its payload was compressed once, and all queues share
/// the bytes.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// The message code inside the capability.
    code: u32,
    payload: Compressed,
}

/// Encodes messages for peers. It keeps its tables and its buffer from one message to the next, so each stream has its own.
#[derive(Debug, Default)]
pub struct Encoder(Compressor);

impl Encoder {
    /// Encodes a message.
    ///
    /// # Errors
    ///
    /// No frame of any peer has room for the payload.
    pub fn encode(&mut self, code: u32, payload: &[u8]) -> Result<Encoded, MessageTooLarge> {
        Ok(Encoded { code, payload: self.0.compress(payload)? })
    }
}

/// A message of a stream, for numbered channels of that stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamMessage<'a> {
    /// The channels.
    pub channels: &'a [u32],
    /// The message code inside the capability.
    pub code: u32,
    /// What is sent, uncompressed.
    pub payload: &'a [u8],
    /// The sender's number for the message.
    pub send_id: u64,
    /// Whether the sender wants to hear when a socket took it.
    pub want_result: bool,
}

/// One channel of one session, as an inbox knows it.
#[derive(Clone, Debug)]
pub struct PeerChannel {
    /// The session.
    pub session: Arc<Session>,
    /// Which of its channels.
    pub channel: SessionChannel,
}

impl PeerChannel {
    /// Queues a message of a call for this peer, or refuses it; never waits. Returns the message's number, for
    /// `net::wake`.
    ///
    /// # Errors
    ///
    /// The peer cannot get the message, or its queue has no room for it.
    pub fn send(&self, message: &Encoded) -> Result<u64, SendError> {
        self.queue(Lane::Call, message)
    }

    /// The same for a message that goes to this peer alone.
    ///
    /// # Errors
    ///
    /// As for [`Self::send`].
    pub fn send_payload(&self, code: u32, payload: &[u8]) -> Result<u64, SendError> {
        let too_large = |_| SendError::TooLarge { bytes: payload.len(), limit: self.channel.max_message };
        self.send(&Encoder::default().encode(code, payload).map_err(too_large)?)
    }

    /// The one way into the queue of a peer, for streams and calls.
    fn queue(&self, lane: Lane, message: &Encoded) -> Result<u64, SendError> {
        let (index, code) = (self.channel.index, u64::from(message.code));
        Ok(self.session.outbound.send(lane, index, code, message.payload.clone())?)
    }
}

/// The inbox of a registration of this process.
pub type Inbox = SharedInbox<PeerChannel>;

/// Something that the sender of messages must hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A message was not accepted for a channel.
    Failure {
        /// The sender's number for the message.
        send_id: u64,
        /// The channel.
        channel: u32,
        /// Why.
        reason: SendError,
    },
    /// What became of an accepted message whose sender asked.
    Result {
        /// The sender's number for the message.
        send_id: u64,
        /// The channel.
        channel: u32,
        /// Whether the socket took it before the session ended.
        written: bool,
    },
    /// Room came back on a channel.
    Credit {
        /// The channel.
        channel: u32,
        /// How much, in bytes and the cost per message.
        bytes: u64,
    },
    /// Everything before the barrier was accepted or refused.
    Barrier {
        /// The sender's number for the barrier.
        nonce: u64,
    },
    /// The sidecar is stopping.
    Drain {
        /// Wall time at which streams end.
        deadline: Duration,
    },
}

/// Why a message was not accepted for a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The channel's window is used up.
    #[error("the channel's send window is used up; wait for credit")]
    WindowExceeded,
    /// The channel has ended.
    #[error("the channel is closed")]
    NotConnected,
    /// No channel has had this number on this stream.
    #[error("no channel {channel} was opened on this stream; channel_opened tells the numbers")]
    NeverOpened {
        /// The number.
        channel: u32,
    },
    /// The capability has fewer codes.
    #[error("the protocol has message codes 0 to {}", message_count.saturating_sub(1))]
    CodeOutOfRange {
        /// How many it has.
        message_count: u64,
    },
    /// It is larger than the protocol's owner allows, or than a frame carries.
    #[error(
        "{bytes} bytes; a message has at most {limit} bytes, and its compressed frame must fit 24 bits (16776442 bytes of \
         data that does not compress)"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit: the owner's for its protocol, or RLPx's.
        limit: usize,
    },
}

impl From<Refused> for SendError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::WindowExceeded,
            Refused::Closed => Self::NotConnected,
            Refused::CodeOutOfRange { message_count } => Self::CodeOutOfRange { message_count },
            Refused::TooLarge { bytes, limit } => Self::TooLarge { bytes, limit },
        }
    }
}

/// Wakes the task that reads a registration's stream.
#[derive(Debug, Default)]
pub struct StreamWaker(Mutex<Option<Waker>>);

impl StreamWaker {
    /// Wakes the reader, if there is one asleep.
    pub fn wake(&self) {
        let waker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn register(&self, waker: &Waker) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|have| !have.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }
}

/// What a numbered channel of the stream leads to.
struct Target {
    peer: PeerChannel,
    /// Cost of written messages that was returned as credit.
    credited: u64,
    /// Accepted messages whose sender wants to hear: the message's number on the channel's lane, and its send id.
    results: VecDeque<(u64, u64)>,
    /// Whether the channel stands in `moved`.
    moved: bool,
}

#[derive(Default)]
struct Sending {
    targets: HashMap<u32, Target>,
    /// The highest number that a channel of this stream has had.
    highest_channel: u32,
    /// Channels whose sockets took something since the reader looked.
    moved: Vec<u32>,
    replies: VecDeque<Reply>,
    last_send_id: u64,
    overrun: bool,
    draining: bool,
    /// Another stream holds the registration, or it is gone: nothing that comes on this one counts any more.
    fenced: bool,
}

/// Ends the sending half of a stream whose registration another one takes, or is gone.
///
/// The stream itself may live on for a while: a client that is gone without a word, data that is still in a buffer. What
/// was accepted from it must be final before the next one is told of it.
pub(super) struct Fence(Arc<Mutex<Sending>>);

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fence")
    }
}

impl Fence {
    /// The last send of the stream that counted, if it sent any.
    pub(super) fn close(&self) -> Option<u64> {
        let mut sending = lock(&self.0);
        sending.fenced = true;
        sending.let_go();
        Some(sending.last_send_id).filter(|id| *id > 0)
    }
}

/// State of one attached stream, shared by its reading and its sending half.
pub struct Attachment {
    holding: Arc<Holding>,
    stream: StreamId,
    sending: Arc<Mutex<Sending>>,
    handle: Handle,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Attachment({:?}, {:?})", self.holding, self.stream)
    }
}

/// What one read of a stream found: replies, and the events that stand behind them. Kept and filled again by each read.
#[derive(Debug, Default)]
pub struct Batch {
    replies: Vec<Reply>,
    events: Vec<Event<PeerChannel>>,
    /// The send windows of the channels that `events` opens, in their order.
    windows: VecDeque<u64>,
}

impl Batch {
    /// Takes everything out: the replies; and the events, each with the send window of the channel that it opens, in bytes
    /// (0 for all other events).
    pub fn drain(&mut self) -> (Drain<'_, Reply>, impl Iterator<Item = (Event<PeerChannel>, u64)>) {
        let Self { replies, events, windows } = self;
        let events = events.drain(..).map(|event| {
            let opens = matches!(event, Event::Opened(_));
            let window = if opens { windows.pop_front().unwrap_or_default() } else { 0 };
            (event, window)
        });
        (replies.drain(..), events)
    }

    fn clear(&mut self) {
        self.replies.clear();
        self.events.clear();
        self.windows.clear();
    }
}

/// How reading went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// There are events or replies.
    Some,
    /// Another stream took over, or the registration has ended.
    Ended,
    /// The application sent without reading its replies.
    Overrun,
}

fn lock(sending: &Mutex<Sending>) -> MutexGuard<'_, Sending> {
    sending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attachment {
    pub(super) fn new(holding: Arc<Holding>, stream: StreamId, handle: Handle) -> Self {
        Self { holding, stream, sending: Arc::default(), handle }
    }

    /// What ends its sending when another stream takes the registration.
    pub(super) fn fence(&self) -> Fence {
        Fence(Arc::clone(&self.sending))
    }

    /// Whether another stream holds the registration, or it is gone.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        lock(&self.sending).fenced
    }

    /// The registration the stream holds.
    #[must_use]
    pub fn registration(&self) -> RegistrationId {
        self.holding.id
    }

    /// Why reading ended.
    #[must_use]
    pub fn why_ended(&self) -> Ended {
        self.holding.why_ended()
    }

    /// Fills `batch` with what is ready: replies first, then events, at most `max_events` and about `max_bytes`.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        max_bytes: usize,
        max_events: usize,
        batch: &mut Batch,
    ) -> Poll<Read> {
        batch.clear();
        {
            let mut sending = lock(&self.sending);
            // The registration has one waker, which is the next stream's by now.
            if sending.fenced {
                return Poll::Ready(Read::Ended);
            }
            // Registered before looking, so that what comes in between wakes.
            self.holding.waker.register(cx.waker());
            if sending.overrun {
                return Poll::Ready(Read::Overrun);
            }
            sending.settle();
            let count = sending.replies.len().min(max_events);
            batch.replies.extend(sending.replies.drain(..count));
        }
        let left = max_events.saturating_sub(batch.replies.len());
        let events = &mut batch.events;
        if left > 0 && self.holding.inbox.lock().pull(self.stream, max_bytes, left, events) == Pull::Ended {
            return Poll::Ready(Read::Ended);
        }
        self.note(batch);
        if batch.replies.is_empty() && batch.events.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(Read::Some)
        }
    }

    /// Learns the numbers of channels from the events on their way to the application, and how much it may send on each.
    /// Results of a channel that ends become replies, which stand before the events.
    fn note(&self, batch: &mut Batch) {
        let Batch { replies, events, windows } = batch;
        for event in events.iter() {
            match event {
                Event::Opened(opened) => {
                    let peer = opened.about.peer.clone();
                    let (number, index) = (opened.channel, peer.channel.index);
                    let outbound = Arc::clone(&peer.session.outbound);
                    let mut sending = lock(&self.sending);
                    if sending.fenced {
                        return;
                    }
                    // What an earlier stream sent and the socket has not taken yet comes back as credit on this one: both
                    // numbers are of one moment. A session that has ended, and is only told of for what it left behind,
                    // takes nothing.
                    let progress = outbound.progress(index).stream;
                    windows.push_back(match outbound.is_closed() {
                        true => 0,
                        false => SEND_WINDOW.saturating_sub(progress.waiting_cost()),
                    });
                    let target = Target {
                        peer,
                        credited: progress.written_cost,
                        results: VecDeque::new(),
                        // Looked at once more with the next read: what is written before the hook is set below tells
                        // nobody.
                        moved: true,
                    };
                    sending.highest_channel = sending.highest_channel.max(number);
                    sending.targets.insert(number, target);
                    sending.moved.push(number);
                    let (weak, waker) = (Arc::downgrade(&self.sending), Arc::clone(&self.holding.waker));
                    let hook = move || {
                        let Some(sending) = weak.upgrade() else { return };
                        let mut sending = lock(&sending);
                        if let Some(target) = sending.targets.get_mut(&number)
                            && !std::mem::replace(&mut target.moved, true)
                        {
                            sending.moved.push(number);
                            drop(sending);
                            waker.wake();
                        }
                    };
                    outbound.on_progress(index, Some(Arc::new(hook)));
                }
                Event::Closed { channel, .. } => {
                    let mut sending = lock(&self.sending);
                    if let Some(mut target) = sending.targets.remove(channel) {
                        let mut results = VecDeque::new();
                        target.settle(*channel, &mut results, true);
                        replies.extend(results);
                    }
                }
                Event::Message { .. } | Event::Gap { .. } => {}
            }
        }
    }

    /// Sends a message on numbered channels. Refusals become replies; nothing waits.
    pub fn send(&self, encoder: &mut Encoder, message: &StreamMessage<'_>) {
        let StreamMessage { channels, code, payload, send_id, want_result } = *message;
        // Encoded before the lock is taken: the reading half waits for it.
        let too_large = |_| SendError::TooLarge { bytes: payload.len(), limit: MAX_PAYLOAD };
        let encoded = encoder.encode(code, payload).map_err(too_large);
        let mut wake = false;
        {
            let mut sending = lock(&self.sending);
            if sending.fenced {
                return;
            }
            sending.last_send_id = send_id;
            for &channel in channels {
                // The outbound queue's lock is taken inside this one; progress hooks, which take this one, are called
                // without it.
                let sent = match &encoded {
                    Ok(message) => sending.send(channel, message, send_id, want_result),
                    Err(error) => Err(*error),
                };
                if let Err(reason) = sent {
                    sending.reply(Reply::Failure { send_id, channel, reason });
                    wake = true;
                }
            }
        }
        if wake {
            self.holding.waker.wake();
        }
    }

    /// Puts a reply behind all that came before.
    pub fn reply(&self, reply: Reply) {
        lock(&self.sending).reply(reply);
        self.holding.waker.wake();
    }

    /// The application can take more: on one channel, or on the stream (channel 0).
    ///
    /// # Errors
    ///
    /// Credit that cannot be right.
    pub fn credit(&self, channel: u32, bytes: u64) -> Result<(), CreditError> {
        self.holding.inbox.lock().credit(self.stream, channel, bytes)
    }

    /// The session and channel behind a number.
    #[must_use]
    pub fn target(&self, channel: u32) -> Option<PeerChannel> {
        lock(&self.sending).targets.get(&channel).map(|target| target.peer.clone())
    }

    /// Wakes the reading half.
    pub fn wake(&self) {
        self.holding.waker.wake();
    }

    /// The switch, for what the stream asks beyond messages.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Tells the application once that the sidecar is stopping.
    pub fn announce_drain(&self, deadline: Duration) {
        let mut sending = lock(&self.sending);
        if !std::mem::replace(&mut sending.draining, true) {
            sending.reply(Reply::Drain { deadline });
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut sending = lock(&self.sending);
        sending.let_go();
        (sending.replies, sending.moved) = (VecDeque::new(), Vec::new());
        let last_send_id = sending.last_send_id;
        drop(sending);
        self.handle.detach(self.holding.id, self.stream, last_send_id);
    }
}

impl Sending {
    fn send(
        &mut self,
        channel: u32,
        message: &Encoded,
        send_id: u64,
        want_result: bool,
    ) -> Result<(), SendError> {
        let highest = self.highest_channel;
        let missing =
            || if channel > highest { SendError::NeverOpened { channel } } else { SendError::NotConnected };
        let target = self.targets.get_mut(&channel).ok_or_else(missing)?;
        let number = target.peer.queue(Lane::Stream, message)?;
        if want_result {
            target.results.push_back((number, send_id));
        }
        Ok(())
    }

    /// Asks no channel to tell of its progress any more. The stream that comes next asks them anew.
    fn let_go(&mut self) {
        for (_, target) in self.targets.drain() {
            target.peer.session.outbound.on_progress(target.peer.channel.index, None);
        }
    }

    fn reply(&mut self, reply: Reply) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(reply);
        } else {
            self.overrun = true;
        }
    }

    /// Turns what the sockets took into credit and results.
    fn settle(&mut self) {
        for channel in std::mem::take(&mut self.moved) {
            if let Some(target) = self.targets.get_mut(&channel) {
                target.moved = false;
                target.settle(channel, &mut self.replies, false);
            }
        }
    }
}

impl Target {
    fn settle(&mut self, channel: u32, replies: &mut VecDeque<Reply>, closed: bool) {
        let progress = self.peer.session.outbound.progress(self.peer.channel.index).stream;
        while let Some((number, send_id)) = self.results.front().copied()
            && (closed || number <= progress.written)
        {
            self.results.pop_front();
            replies.push_back(Reply::Result { send_id, channel, written: number <= progress.written });
        }
        let back = progress.written_cost.saturating_sub(self.credited);
        if back >= CREDIT_STEP && !closed {
            self.credited = progress.written_cost;
            replies.push_back(Reply::Credit { channel, bytes: back });
        }
    }
}
