//! One attached stream: the events that an application reads from its registration, and the messages that it sends.
//!
//! One gRPC stream holds an [`Attachment`]. Reading pulls from the registration's inbox; sending adds to the outbound
//! queues of the sessions. Neither passes through the engine, and neither waits for a peer. When the attachment ends
//! for any reason, the registration's linger begins.
//!
//! The replies to the sender (failures, results, credit, answers to barriers) wait in a queue of their own. The queue
//! is bounded, because a client may send without reading: beyond [`MAX_REPLIES`] the stream is ended.
//!
//! Left out: how a task waits until there is something to read (`net::switch`).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
    vec::Drain,
};

pub use super::channel::{Encoded, Encoder, PeerChannel, SendError};
use super::shared::{Ended, SharedRegistration};
use crate::{
    delivery::{CreditError, Event, Pull, StreamId},
    node::RegistrationId,
    p2p::{Lane, SEND_WINDOW},
    rlpx::snappy::MAX_PAYLOAD,
};

/// The most replies that may wait for a stream whose client does not read. At about a hundred bytes each they take
/// about 6 MiB. An application that sends without reading has used up its windows long before.
pub const MAX_REPLIES: usize = 65_536;

/// Credit is returned to the sender in steps of this size, a quarter of the window. So the sender gets credit before
/// its window is used up, and small messages do not cost a reply each.
const CREDIT_STEP: u64 = SEND_WINDOW / 4;

/// A message of a stream, for numbered channels of that stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamMessage<'a> {
    /// The channels.
    pub channels: &'a [u32],
    /// The message code inside the capability.
    pub code: u32,
    /// The payload, uncompressed.
    pub payload: &'a [u8],
    /// The sender's number for the message.
    pub send_id: u64,
    /// Whether the sender asks for a reply when a socket has taken the message.
    pub want_result: bool,
}

/// A reply to the sender of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A message was not accepted for a channel.
    Failure {
        /// The sender's number for the message.
        send_id: u64,
        /// The channel.
        channel: u32,
        /// Why it was refused.
        reason: SendError,
    },
    /// The outcome of an accepted message for which the sender asked.
    Result {
        /// The sender's number for the message.
        send_id: u64,
        /// The channel.
        channel: u32,
        /// Whether the socket took it before the session ended.
        written: bool,
    },
    /// The sender may send more on a channel.
    Credit {
        /// The channel.
        channel: u32,
        /// The credit, in bytes: payloads and the cost per message.
        bytes: u64,
    },
    /// All messages before the barrier were accepted or refused.
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

/// A numbered channel of the stream, for sending.
struct SendChannel {
    peer: PeerChannel,
    /// The cost of written messages that was returned as credit.
    credited: u64,
    /// Accepted messages for which the sender asked for a result: the message's number on the channel's lane, and its
    /// send id.
    results: VecDeque<(u64, u64)>,
    /// Whether the channel is in [`SendState::moved`].
    moved: bool,
}

#[derive(Default)]
struct SendState {
    channels: HashMap<u32, SendChannel>,
    /// The highest number that a channel of this stream has had.
    highest_channel: u32,
    /// Channels whose sockets have taken messages since the last read.
    moved: Vec<u32>,
    replies: VecDeque<Reply>,
    last_send_id: u64,
    overrun: bool,
    draining: bool,
    /// Another stream holds the registration, or it has ended: messages on this stream do not count any more.
    fenced: bool,
}

/// Ends the sending half of a stream whose registration has ended, or is taken by another stream.
///
/// The stream itself may exist for a while longer: its client may have vanished, or data may still be in a buffer. The
/// last send id of this stream must be final before the next stream gets it.
pub(super) struct Fence(Arc<Mutex<SendState>>);

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fence")
    }
}

impl Fence {
    /// Ends the sending, and returns the last send id of the stream, if it sent messages.
    pub(super) fn close(&self) -> Option<u64> {
        let mut sending = lock(&self.0);
        sending.fenced = true;
        sending.let_go();
        Some(sending.last_send_id).filter(|id| *id > 0)
    }
}

/// The state of one attached stream, which its reading and its sending half share.
pub struct Attachment {
    registration: Arc<SharedRegistration>,
    stream: StreamId,
    sending: Arc<Mutex<SendState>>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Attachment({:?}, {:?})", self.registration, self.stream)
    }
}

/// The result of one read of a stream: replies, and the events that follow them. It is reused by each read.
#[derive(Debug, Default)]
pub struct Batch {
    replies: Vec<Reply>,
    events: Vec<Event<PeerChannel>>,
    /// The send windows of the channels that `events` opens, in their order.
    windows: VecDeque<u64>,
}

impl Batch {
    /// Takes out the replies, and the events. Each event has the send window of the channel that it opens, in bytes (0
    /// for all other events).
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

/// The outcome of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// There are events or replies.
    Some,
    /// There is nothing now. The stream is woken when there are events or replies.
    Nothing,
    /// Another stream took over, or the registration has ended.
    Ended,
    /// The application sent without reading, and has more than [`MAX_REPLIES`] replies.
    Overrun,
}

fn lock(sending: &Mutex<SendState>) -> MutexGuard<'_, SendState> {
    sending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attachment {
    pub(super) fn new(registration: Arc<SharedRegistration>, stream: StreamId) -> Self {
        Self { registration, stream, sending: Arc::default() }
    }

    /// Returns the fence that ends its sending when another stream takes the registration.
    pub(super) fn fence(&self) -> Fence {
        Fence(Arc::clone(&self.sending))
    }

    /// Whether another stream holds the registration, or the registration has ended.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        lock(&self.sending).fenced
    }

    /// The registration that the stream holds.
    #[must_use]
    pub fn registration(&self) -> RegistrationId {
        self.registration.id()
    }

    /// Why reading ended.
    #[must_use]
    pub fn why_ended(&self) -> Ended {
        self.registration.why_ended()
    }

    /// The number of the stream.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Fills `batch` with what is ready: replies first, then events. Takes at most `max_events` in all, and about
    /// `max_bytes` of events.
    pub fn read(&self, max_bytes: usize, max_events: usize, batch: &mut Batch) -> Read {
        batch.clear();
        {
            let mut sending = lock(&self.sending);
            if sending.fenced {
                return Read::Ended;
            }
            if sending.overrun {
                return Read::Overrun;
            }
            sending.settle();
            let count = sending.replies.len().min(max_events);
            batch.replies.extend(sending.replies.drain(..count));
        }
        let left = max_events.saturating_sub(batch.replies.len());
        let events = &mut batch.events;
        if left > 0
            && self.registration.inbox().lock().pull(self.stream, max_bytes, left, events) == Pull::Ended
        {
            return Read::Ended;
        }
        self.note(batch);
        if batch.replies.is_empty() && batch.events.is_empty() { Read::Nothing } else { Read::Some }
    }

    /// Learns from the events the numbers of channels, and how much the application may send on each. Results of a
    /// channel that closes become replies, which come before the events.
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
                    // Messages that an earlier stream sent and that the socket has not taken yet use a part of the
                    // window. They come back as credit on this stream; so both numbers are from one snapshot. A session
                    // that has ended takes no messages: its channel is opened only for the events that it left behind.
                    let progress = outbound.progress(index).stream;
                    windows.push_back(match outbound.is_closed() {
                        true => 0,
                        false => SEND_WINDOW.saturating_sub(progress.waiting_cost()),
                    });
                    let open = SendChannel {
                        peer,
                        credited: progress.written_cost,
                        results: VecDeque::new(),
                        // The next read checks the channel again, because a write before the hook is set below wakes no
                        // task.
                        moved: true,
                    };
                    sending.highest_channel = sending.highest_channel.max(number);
                    sending.channels.insert(number, open);
                    sending.moved.push(number);
                    let (weak, stream) =
                        (Arc::downgrade(&self.sending), Arc::clone(self.registration.stream()));
                    let hook = move || {
                        let Some(sending) = weak.upgrade() else { return };
                        let mut sending = lock(&sending);
                        if let Some(open) = sending.channels.get_mut(&number)
                            && !std::mem::replace(&mut open.moved, true)
                        {
                            sending.moved.push(number);
                            drop(sending);
                            stream.wake();
                        }
                    };
                    outbound.on_progress(index, Some(Arc::new(hook)));
                }
                Event::Closed { channel, .. } => {
                    let mut sending = lock(&self.sending);
                    if let Some(mut open) = sending.channels.remove(channel) {
                        let mut results = VecDeque::new();
                        open.settle(*channel, &mut results, true);
                        replies.extend(results);
                    }
                }
                Event::Message { .. } | Event::Gap { .. } => {}
            }
        }
    }

    /// Sends a message on numbered channels. Refusals become replies. Never waits.
    pub fn send(&self, encoder: &mut Encoder, message: &StreamMessage<'_>) {
        let StreamMessage { channels, code, payload, send_id, want_result } = *message;
        // Encoded before the lock is taken, because the reading half waits for this lock.
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
                // Lock order: the outbound queue's lock is taken while this lock is held. Progress hooks take this
                // lock, and are called without the queue's lock.
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
            self.registration.stream().wake();
        }
    }

    /// Adds a reply after all earlier ones.
    pub fn reply(&self, reply: Reply) {
        lock(&self.sending).reply(reply);
        self.registration.stream().wake();
    }

    /// Adds credit: the application can take more, on one channel or on the stream (channel 0).
    ///
    /// # Errors
    ///
    /// The channel was never opened on this stream, or the amount is too large.
    pub fn credit(&self, channel: u32, bytes: u64) -> Result<(), CreditError> {
        self.registration.inbox().lock().credit(self.stream, channel, bytes)
    }

    /// Returns the session and the channel of a number.
    #[must_use]
    pub fn target(&self, channel: u32) -> Option<PeerChannel> {
        lock(&self.sending).channels.get(&channel).map(|open| open.peer.clone())
    }

    /// Wakes the reading half.
    pub fn wake(&self) {
        self.registration.stream().wake();
    }

    /// Ends the sending: nothing is sent or reported on the stream any more. Returns the last send id that was
    /// processed, which the registration keeps for the next stream.
    pub fn end(&self) -> u64 {
        let mut sending = lock(&self.sending);
        sending.let_go();
        (sending.replies, sending.moved) = (VecDeque::new(), Vec::new());
        sending.last_send_id
    }

    /// Adds the notice that the sidecar is stopping. Only the first call has an effect.
    pub fn announce_drain(&self, deadline: Duration) {
        let mut sending = lock(&self.sending);
        if !std::mem::replace(&mut sending.draining, true) {
            sending.reply(Reply::Drain { deadline });
        }
    }
}

impl SendState {
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
        let open = self.channels.get_mut(&channel).ok_or_else(missing)?;
        let number = open.peer.queue(Lane::Stream, message)?;
        if want_result {
            open.results.push_back((number, send_id));
        }
        Ok(())
    }

    /// Forgets the channels, and removes their progress hooks. The next stream sets its own.
    fn let_go(&mut self) {
        for (_, open) in self.channels.drain() {
            open.peer.session.outbound.on_progress(open.peer.channel.index, None);
        }
    }

    fn reply(&mut self, reply: Reply) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back(reply);
        } else {
            self.overrun = true;
        }
    }

    /// Adds replies for the messages that the sockets have taken: credit and results.
    fn settle(&mut self) {
        for channel in std::mem::take(&mut self.moved) {
            if let Some(open) = self.channels.get_mut(&channel) {
                open.moved = false;
                open.settle(channel, &mut self.replies, false);
            }
        }
    }
}

impl SendChannel {
    /// Adds results of written messages, and credit once it is a whole step. If the channel is `closed`, no more
    /// messages are written: the results of all others are final, and there is no credit.
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
