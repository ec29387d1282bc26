//! The base protocol: its messages, and the engine of one connection under any sequence of operations.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use devp2pd::Now;
use devp2pd::node::NodeKey;
use devp2pd::p2p::connection::MAX_ACTIONS;
use devp2pd::p2p::intake::{MAX_BACKLOG, MAX_BACKLOG_MESSAGES};
use devp2pd::p2p::{
    Action, ChannelIndex, ChannelLimits, Connection, Delivery, DisconnectReason, HeldTime, Inbound, Lane,
    LocalCapability, LocalNode, Next, Offer, Outbound, Refused, RemoteHello, SEND_WINDOW, Source, hello,
};
use devp2pd::rlpx::frame::MAX_FRAME;
use devp2pd::rlpx::handshake::take_packet;
use devp2pd::rlpx::{Compressor, Initiator, Session};
use rand::{SeedableRng, rngs::StdRng};

fn key(byte: u8) -> NodeKey {
    NodeKey::from_bytes(&[byte; 32]).expect("one of the valid keys")
}

/// The fields of a decoded Hello are bounded by its size. A Hello that we write is equal after it is read.
pub fn hello(data: &[u8]) {
    if let Ok((hello, key)) = RemoteHello::decode(data) {
        assert!(hello.client.len() <= hello::MAX_CLIENT);
        assert!(hello.capabilities.len() * 2 + key.len() <= data.len());
    }
    let capabilities: Vec<LocalCapability> = data
        .chunks(5)
        .map(|piece| LocalCapability {
            name: String::from_utf8_lossy(piece).into(),
            version: u32::from(piece[0]),
            message_count: 1,
        })
        .collect();
    let client = String::from_utf8_lossy(data);
    let encoded = hello::encode(&client, &capabilities, &key(1).public());
    let (read, id) = RemoteHello::decode(&encoded).expect("our own Hello");
    hello::check_identity(id, &key(1).public()).expect("our own key");
    assert_eq!(read.capabilities.len(), capabilities.len());
    assert!(client.starts_with(&read.client));
}

/// Any payload decodes to a reason, compressed or not. A reason is equal after it is encoded and decoded.
pub fn disconnect(data: &[u8]) {
    for snappy in [false, true] {
        let reason = DisconnectReason::decode(data, snappy);
        assert_eq!(DisconnectReason::decode(&reason.encode(), snappy), reason);
        assert!(!reason.to_string().is_empty());
    }
}

/// The input as a list of small numbers and byte strings. After its end all numbers are zero.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }
}

fn capabilities(choice: u8) -> Vec<LocalCapability> {
    let all = [("eth", 68, 17), ("eth", 69, 18), ("snap", 1, 8), ("x", 0, 200)];
    let chosen = all.iter().enumerate().filter(|(at, _)| choice >> at & 1 == 1);
    chosen
        .map(|(_, &(name, version, message_count))| LocalCapability {
            name: name.into(),
            version,
            message_count,
        })
        .collect()
}

/// Queues with room for `room` messages.
struct Queues<'a> {
    room: usize,
    channels: &'a [u64],
    bytes: usize,
}

impl Delivery for Queues<'_> {
    fn offer(&mut self, now: Instant, message: Inbound, held: HeldTime) -> Offer {
        assert!(held.channel <= held.total);
        if self.room == 0 {
            let until = now + Duration::from_millis(500);
            return Offer::Hold { payload: message.payload, until, charged: message.code.is_multiple_of(2) };
        }
        self.room -= 1;
        self.offer_last(now, message);
        Offer::Taken
    }

    fn offer_last(&mut self, _: Instant, message: Inbound) {
        let Inbound { channel, code, payload, wire_bytes } = message;
        // The driver may open the session and deliver before it takes `Action::Negotiated`, which names the channels.
        assert!(self.channels.is_empty() || code < self.channels[usize::from(channel.0)]);
        assert!(wire_bytes >= 64 && payload.len() <= wire_bytes * 22);
        self.bytes += payload.len();
    }
}

/// A queue behind a cap that allows no message before `until`.
struct Capped<'a> {
    queue: &'a Outbound,
    until: Instant,
    /// Bytes of the messages that were appended.
    appended: usize,
}

impl Source for Capped<'_> {
    fn next(&mut self, now: Instant) -> Next {
        if now < self.until { Next::NotBefore(self.until) } else { self.queue.next(now) }
    }

    fn appended(&mut self, _: Instant, bytes: usize) {
        self.appended += bytes;
    }

    fn leaving(&self) -> Option<DisconnectReason> {
        self.queue.leaving()
    }
}

/// The largest payload of a message, in bytes.
const MAX_MESSAGE: usize = 200;

/// An engine, a peer that has completed the RLPx handshake with it, and the checks between the two.
struct World {
    now: Now,
    engine: Connection,
    peer: Session,
    /// The engine's receive buffer, and the bytes that it wrote.
    received: BytesMut,
    sent: BytesMut,
    /// Messages to the peer, and the time until which a cap delays them.
    queue: Arc<Outbound>,
    capped: Instant,
    /// Messages that the queue accepted and the peer has not read: the code on the wire, and the payload.
    accepted: VecDeque<(u64, Vec<u8>)>,
    /// The numbers of messages that the queue accepted, that the peer read, and that the socket took completely.
    sums: [u64; 3],
    /// Bytes in the send buffer.
    unwritten: usize,
    /// Whether writes to the socket fail.
    unwritable: bool,
    /// The number of message codes of each channel; empty before `Action::Negotiated`.
    channels: Vec<u64>,
    /// Whether `Action::Closed` was taken.
    closed: bool,
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn new() -> Self {
        let now = Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
        let local = LocalNode::new(key(1), "devp2pd/fuzz");
        let (mut received, mut sent) = (BytesMut::new(), BytesMut::new());
        let initiator =
            Initiator::start(&key(2), key(1).public(), &mut StdRng::seed_from_u64(2), &mut received);
        let mut engine = Connection::accept(Arc::new(local), now, StdRng::seed_from_u64(1));
        engine.handle_bytes(now, &mut received);
        let queue = Outbound::alone();
        engine.poll_transmit(now, &mut &*queue, &mut sent);
        let unwritten = sent.len();
        let ack = take_packet(&mut sent).expect("an ack").expect("all of it");
        let peer = initiator.finish(&key(2), &ack).expect("a good ack");
        Self {
            now,
            engine,
            peer,
            received,
            sent,
            queue,
            capped: now.mono,
            accepted: VecDeque::new(),
            sums: [0; 3],
            unwritten,
            unwritable: false,
            channels: Vec::new(),
            closed: false,
        }
    }

    fn handle_bytes(&mut self) {
        let before = self.received.clone();
        self.engine.handle_bytes(self.now, &mut self.received);
        assert!(before.ends_with(&self.received), "something else was left than the rest");
        assert!(!self.engine.is_behind() || self.engine.hold().is_none());
        assert!(self.engine.backlog() <= MAX_BACKLOG + MAX_FRAME);
    }

    /// Takes all that the engine writes. It must be complete frames that the peer can read.
    fn transmit(&mut self) {
        loop {
            let mut source = Capped { queue: &self.queue, until: self.capped, appended: 0 };
            let written = self.engine.poll_transmit(self.now, &mut source, &mut self.sent);
            let appended = source.appended;
            assert!(!(written && self.closed), "something was written after Closed was taken");
            let mut rest = self.sent.split();
            assert_eq!(written, !rest.is_empty());
            self.unwritten += rest.len();
            let mut messages = 0;
            while let Some(frame) = self.peer.reader.read(&mut rest, MAX_FRAME).expect("frames of the engine")
            {
                if frame.code < 0x10 {
                    continue;
                }
                messages += frame.wire_len;
                self.sums[1] += 1;
                let (code, payload) = self.accepted.pop_front().expect("a message that was accepted");
                let compressed = Compressor::default().compress(&payload).expect("a small message");
                assert_eq!(frame.code, code);
                assert!(frame.payload == *compressed.as_bytes() || frame.payload == *payload);
            }
            assert!(rest.is_empty(), "half a frame was written");
            assert_eq!(appended, messages, "caps are told of each message");
            self.count();
            if !written {
                return;
            }
        }
    }

    /// The socket takes `bytes` bytes of the send buffer.
    fn written(&mut self, bytes: usize) {
        self.unwritten -= bytes;
        let messages = self.engine.handle_written(self.now, bytes);
        self.queue.written(messages);
        self.sums[2] += messages as u64;
        self.count();
    }

    /// Checks that each accepted message is in exactly one place: it waits, is in the send buffer, or was written.
    fn count(&self) {
        let [accepted, read, written] = self.sums;
        assert!(written <= read && read <= accepted);
        assert_eq!(self.queue.waiting().0 as u64, accepted - read);
        let lanes = (0..5).map(|channel| self.queue.progress(ChannelIndex(channel)).call);
        let (sent, done) = lanes.fold((0, 0), |sum, lane| (sum.0 + lane.accepted, sum.1 + lane.written));
        assert_eq!((sent, done), (accepted, written), "a message was lost in silence");
    }

    fn deliver(&mut self, room: usize) {
        let mut queues = Queues { room, channels: &self.channels, bytes: 0 };
        self.engine.deliver(self.now, &mut queues);
        assert!(queues.bytes <= MAX_BACKLOG + MAX_FRAME && room - queues.room <= MAX_BACKLOG_MESSAGES);
        // A closing connection offers nothing until it is closed. Then its waiting messages are delivered for the last
        // time.
        assert!(self.engine.hold().is_none() || queues.room == 0 || !self.engine.is_open());
        assert!(self.engine.hold().is_none() || !self.engine.wants_bytes(), "a held connection is not read");
    }

    fn actions(&mut self, most: usize) {
        let mut taken = 0;
        while taken < most {
            let Some(action) = self.engine.poll_action() else { break };
            assert!(!self.closed, "{action:?} came after Closed");
            taken += 1;
            match action {
                Action::Authenticated { remote } => assert_eq!(remote, key(2).public()),
                Action::Negotiated { channels, hello } => {
                    assert!(self.channels.is_empty() && !channels.is_empty());
                    let limits = channels.iter().map(|channel| ChannelLimits {
                        offset: channel.offset,
                        message_count: channel.message_count,
                        max_message: MAX_MESSAGE,
                    });
                    self.queue.set_channels(limits, hello.has_snappy());
                    self.channels = channels.iter().map(|channel| channel.message_count).collect();
                }
                Action::RoundTrip(_) | Action::Heard => assert!(!self.channels.is_empty()),
                Action::Closed { .. } => {
                    self.count();
                    self.closed = true;
                    assert_eq!(self.engine.poll_timeout(), None);
                }
            }
        }
        assert!(taken <= MAX_ACTIONS + 8);
    }

    fn say(&mut self, code: u64, payload: &[u8]) {
        self.peer.writer.write(code, payload, &mut self.received).expect("a small message");
    }

    fn send(&mut self, channel: u8, code: u8, payload: &[u8]) {
        let message = Compressor::default().compress(payload).expect("a small message");
        let index = ChannelIndex(u16::from(channel));
        let count = self.channels.get(usize::from(channel)).copied();
        match self.queue.send(Lane::Call, index, u64::from(code), message) {
            Ok(number) => {
                let before: u64 = self.channels.iter().take(usize::from(channel)).sum();
                assert!(count.is_some_and(|count| u64::from(code) < count) && payload.len() <= MAX_MESSAGE);
                assert_eq!(number, self.queue.progress(index).call.accepted);
                self.accepted.push_back((0x10 + before + u64::from(code), payload.to_vec()));
                self.sums[0] += 1;
            }
            Err(Refused::CodeOutOfRange { message_count }) => {
                assert!(count == Some(message_count) && u64::from(code) >= message_count);
            }
            Err(Refused::TooLarge { bytes, limit }) => assert!(bytes > limit && limit == MAX_MESSAGE),
            Err(Refused::Full) => assert!(self.queue.progress(index).call.waiting_cost() >= SEND_WINDOW),
            Err(Refused::Closed) => assert!(count.is_none() || (&*self.queue).leaving().is_some()),
        }
        self.count();
    }
}

/// Runs the engine with any sequence of events from its peer, its driver and its clock.
pub fn p2p_connection(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new();
    while !script.0.is_empty() {
        match script.byte() % 16 {
            0 => {
                let capabilities = capabilities(script.byte());
                world.say(0, &hello::encode("peer", &capabilities, &key(2).public()));
            }
            1 => {
                let (code, payload) = (script.byte(), script.bytes());
                world.say(u64::from(code), payload);
            }
            2 => {
                let (code, payload) = (script.byte(), script.bytes());
                let compressed = Compressor::default().compress(payload).expect("a small message");
                world.say(u64::from(code), compressed.as_bytes());
            }
            // Bytes that an attacker injects into the stream.
            3 => world.received.extend_from_slice(script.bytes()),
            4 => {
                let cut = world.received.len() * usize::from(script.byte()) / 256;
                let rest = world.received.split_off(cut);
                world.handle_bytes();
                world.received.unsplit(rest);
            }
            5 | 6 => world.handle_bytes(),
            7 => {
                world.now = world.now.after(Duration::from_millis(u64::from(script.byte()) * 100));
                world.engine.handle_timeout(world.now);
                world.deliver(0);
                // Delivery may hold the connection. A held peer is pinged earlier, and that Ping may be due at once.
                if world.engine.poll_timeout().is_some_and(|next| next <= world.now.mono) {
                    world.engine.handle_timeout(world.now);
                    world.deliver(0);
                }
                let next = world.engine.poll_timeout();
                assert!(next.is_none_or(|next| next > world.now.mono), "a deadline that has passed stays");
            }
            8 => {
                let (channel, code) = (script.byte() % 5, script.byte());
                world.send(channel, code, script.bytes());
            }
            9 => world.transmit(),
            10 => world.actions(usize::from(script.byte())),
            11 => world.engine.greet(world.now, &capabilities(script.byte())),
            12 => world.engine.open(world.now),
            13 => match script.byte() {
                0 => world.engine.pause(world.now, world.now.mono + Duration::from_secs(5)),
                1 => world.engine.set_starved(world.now, true),
                2 => world.engine.set_starved(world.now, false),
                3 => world.engine.park(world.now),
                4 => world.engine.promote(world.now),
                5 => world.engine.probe(world.now),
                6 => world.written(world.unwritten / 2),
                7 => world.written(world.unwritten),
                8 => {
                    world.engine.handle_write_error(world.now);
                    (world.unwritten, world.unwritable) = (0, true);
                }
                room => world.deliver(usize::from(room - 9)),
            },
            14 => {
                // More Pings than the engine queues Pongs for.
                for _ in 0..20 {
                    world.say(2, &[0xc0]);
                }
            }
            _ => match script.byte() % 8 {
                reason @ 1..=3 => world.engine.disconnect(world.now, DisconnectReason::from_code(reason)),
                4 => world.queue.disconnect(DisconnectReason::Requested),
                5 => world.capped = world.now.mono + Duration::from_millis(700),
                _ => {}
            },
        }
    }
    // After any script the connection ends, and every lost message is counted.
    world.engine.disconnect(world.now, DisconnectReason::Quitting);
    world.transmit();
    while !world.closed {
        world.actions(usize::MAX);
        world.engine.handle_timeout(world.now.after(Duration::from_secs(1)));
    }
    world.transmit();
    assert_eq!(world.engine.poll_action(), None);
    world.written(world.unwritten);
    let [_, read, written] = world.sums;
    assert!(read == written || world.unwritable, "a message that the socket took is not counted");
    world.queue.close();
    let lost: u64 = (0..5).map(|channel| world.queue.progress(ChannelIndex(channel)).unwritten()).sum();
    assert_eq!(lost, world.sums[0] - world.sums[2]);
}
