//! One attached stream: what an application sees of its registration, and what it sends.
//!
//! An [`Attachment`] is held by one gRPC stream. Reading pulls from the registration's inbox; sending goes straight to
//! the outbound queues of the sessions. Neither passes the switch, and neither waits for a peer. When it ends, however
//! that came about, the registration's linger begins.
//!
//! What the sender must hear (failures, results, credit, answers to barriers) waits in a queue of its own, which is
//! bounded because its reader may be asleep while it writes: beyond [`MAX_REPLIES`] the stream is ended.
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

/// Replies that may wait for a stream whose reader is asleep. At about a hundred bytes each this is some MiB; an
/// application that sends without reading has used up its windows long before.
pub const MAX_REPLIES: usize = 65_536;

/// Credit is returned to the sender in steps of this size: a quarter of the window, so that a window cannot run dry
/// unnoticed and small messages do not cost a reply each.
const CREDIT_STEP: u64 = SEND_WINDOW / 4;

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

/// What a numbered channel of the stream leads to.
struct SendChannel {
    peer: PeerChannel,
    /// Cost of written messages that was returned as credit.
    credited: u64,
    /// Accepted messages whose sender wants to hear: the message's number on the channel's lane, and its send id.
    results: VecDeque<(u64, u64)>,
    /// Whether the channel stands in `moved`.
    moved: bool,
}

#[derive(Default)]
struct SendState {
    channels: HashMap<u32, SendChannel>,
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
pub(super) struct Fence(Arc<Mutex<SendState>>);

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
    registration: Arc<SharedRegistration>,
    stream: StreamId,
    sending: Arc<Mutex<SendState>>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Attachment({:?}, {:?})", self.registration, self.stream)
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
    /// There is nothing now. The stream is woken when there is.
    Nothing,
    /// Another stream took over, or the registration has ended.
    Ended,
    /// The application sent without reading its replies.
    Overrun,
}

fn lock(sending: &Mutex<SendState>) -> MutexGuard<'_, SendState> {
    sending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attachment {
    pub(super) fn new(registration: Arc<SharedRegistration>, stream: StreamId) -> Self {
        Self { registration, stream, sending: Arc::default() }
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
        self.registration.id()
    }

    /// Why reading ended.
    #[must_use]
    pub fn why_ended(&self) -> Ended {
        self.registration.why_ended()
    }

    /// Which of the registration's streams it is.
    #[must_use]
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// Fills `batch` with what is ready: replies first, then events, at most `max_events` and about `max_bytes`.
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
                    let open = SendChannel {
                        peer,
                        credited: progress.written_cost,
                        results: VecDeque::new(),
                        // Looked at once more with the next read: what is written before the hook is set below tells
                        // nobody.
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
            self.registration.stream().wake();
        }
    }

    /// Puts a reply behind all that came before.
    pub fn reply(&self, reply: Reply) {
        lock(&self.sending).reply(reply);
        self.registration.stream().wake();
    }

    /// The application can take more: on one channel, or on the stream (channel 0).
    ///
    /// # Errors
    ///
    /// Credit that cannot be right.
    pub fn credit(&self, channel: u32, bytes: u64) -> Result<(), CreditError> {
        self.registration.inbox().lock().credit(self.stream, channel, bytes)
    }

    /// The session and channel behind a number.
    #[must_use]
    pub fn target(&self, channel: u32) -> Option<PeerChannel> {
        lock(&self.sending).channels.get(&channel).map(|open| open.peer.clone())
    }

    /// Wakes the reading half.
    pub fn wake(&self) {
        self.registration.stream().wake();
    }

    /// The stream has ended: nothing is sent or told on it any more. Returns the last send that was processed, which the
    /// registration keeps for the next stream.
    pub fn end(&self) -> u64 {
        let mut sending = lock(&self.sending);
        sending.let_go();
        (sending.replies, sending.moved) = (VecDeque::new(), Vec::new());
        sending.last_send_id
    }

    /// Tells the application once that the sidecar is stopping.
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

    /// Asks no channel to tell of its progress any more. The stream that comes next asks them anew.
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

    /// Turns what the sockets took into credit and results.
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
