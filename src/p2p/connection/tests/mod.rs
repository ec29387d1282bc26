//! The engine against a scripted peer that may break the rules, in virtual time.

mod faults;
mod flow;
mod handshake;

use rand::SeedableRng;

use super::*;
use crate::{
    node::NodeKey,
    p2p::{ChannelIndex, ChannelLimits, HeldTime, Inbound, Lane, MAX_BASE_MESSAGE, Offer, Outbound, Refused},
    rlpx::{
        Compressed, Compressor, Decompressor, Initiator, Session, frame::MAX_FRAME, handshake::take_packet,
        snappy::MAX_PAYLOAD,
    },
};

pub(super) fn key(seed: u64) -> NodeKey {
    NodeKey::random(&mut StdRng::seed_from_u64(seed))
}

pub(super) fn local(seed: u64) -> Arc<LocalNode> {
    Arc::new(LocalNode::new(key(seed), "devp2pd/test"))
}

#[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
pub(super) fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

pub(super) fn capabilities(list: &[(&str, u32, u64)]) -> Vec<LocalCapability> {
    let one = |&(name, version, message_count): &(&str, u32, u64)| LocalCapability {
        name: name.into(),
        version,
        message_count,
    };
    list.iter().map(one).collect()
}

pub(super) fn compressed(payload: &[u8]) -> Compressed {
    Compressor::default().compress(payload).unwrap()
}

pub(super) fn closed(by: Side, reason: DisconnectReason, fault: Option<Fault>) -> Action {
    Action::Closed { by, reason: Some(reason), fault }
}

/// Appends everything that an engine writes now, with no messages to send.
pub(super) fn transmit(engine: &mut Connection, now: Now, out: &mut BytesMut) -> bool {
    engine.poll_transmit(now, &mut &*Outbound::alone(), out)
}

/// Opens a queue for the negotiated channels.
pub(super) fn open_queue(queue: &Outbound, channels: &[crate::p2p::Channel], compressed: bool) {
    let limits = channels.iter().map(|channel| ChannelLimits {
        offset: channel.offset,
        message_count: channel.message_count,
        max_message: MAX_PAYLOAD,
    });
    queue.set_channels(limits, compressed);
}

/// An application's queue that has room or has none.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) room: bool,
    pub(super) taken: Vec<Inbound>,
}

impl Delivery for Queue {
    fn offer(&mut self, now: Instant, message: Inbound, _: HeldTime) -> Offer {
        if !self.room {
            let until = now + Duration::from_secs(1);
            return Offer::Hold { payload: message.payload, until, charged: true };
        }
        self.taken.push(message);
        Offer::Taken
    }

    fn offer_last(&mut self, _: Instant, message: Inbound) {
        self.taken.push(message);
    }
}

/// An accepting engine (key 1), and a peer (key 2) that may write anything.
pub(super) struct Lab {
    pub(super) now: Now,
    pub(super) engine: Connection,
    pub(super) peer: Session,
    /// Messages to the peer.
    pub(super) queue: Arc<Outbound>,
    /// From the engine to the peer.
    pub(super) heard: BytesMut,
    /// The engine's receive buffer.
    pub(super) received: BytesMut,
    /// Whether the peer compresses, and expects compressed payloads.
    pub(super) snappy: bool,
}

impl Lab {
    /// A connection at the first checkpoint.
    pub(super) fn authenticated() -> Self {
        let (local, now) = (local(1), start());
        let mut rng = StdRng::seed_from_u64(2);
        let (mut received, mut heard) = (BytesMut::new(), BytesMut::new());
        let initiator = Initiator::start(&key(2), local.key.public(), &mut rng, &mut received);
        let mut engine = Connection::accept(local, now, StdRng::seed_from_u64(1));
        assert!(engine.wants_bytes());
        engine.handle_bytes(now, &mut received);
        assert_eq!(engine.poll_action(), Some(Action::Authenticated { remote: key(2).public() }));
        assert_eq!(engine.poll_action(), None);
        assert!(!engine.wants_bytes());
        transmit(&mut engine, now, &mut heard);
        assert_eq!(engine.handle_written(now, heard.len()), 0);
        let ack = take_packet(&mut heard).unwrap().unwrap();
        let peer = initiator.finish(&key(2), &ack).unwrap();
        let queue = Outbound::alone();
        Self { now, engine, peer, queue, heard, received, snappy: false }
    }

    /// Our Hello was written, the peer's was not.
    pub(super) fn greeted(ours: &[(&str, u32, u64)]) -> Self {
        let mut lab = Self::authenticated();
        lab.greet(ours);
        lab
    }

    pub(super) fn greet(&mut self, ours: &[(&str, u32, u64)]) {
        self.engine.greet(self.now, &capabilities(ours));
        let (code, hello) = self.hear().unwrap();
        assert_eq!(code, code::HELLO);
        let (hello, key) = RemoteHello::decode(&hello).unwrap();
        hello::check_identity(key, &super::tests::key(1).public()).unwrap();
        assert_eq!((hello.version, hello.capabilities.len()), (5, ours.len()));
    }

    /// An open connection with the channels in `ours`.
    pub(super) fn open(ours: &[(&str, u32, u64)]) -> Self {
        let mut lab = Self::greeted(ours);
        lab.say_hello(ours);
        lab.snappy = true;
        lab.open_now();
        lab
    }

    /// Answers the second checkpoint.
    pub(super) fn open_now(&mut self) {
        let Some(Action::Negotiated { hello, channels }) = self.engine.poll_action() else {
            panic!("nothing was negotiated")
        };
        open_queue(&self.queue, &channels, hello.has_snappy());
        self.engine.open(self.now);
    }

    /// An application sends a message.
    pub(super) fn send(&self, channel: u16, code: u64, payload: &[u8]) -> Result<u64, Refused> {
        self.queue.send(Lane::Stream, ChannelIndex(channel), code, compressed(payload))
    }

    /// Lets the engine write once, to a socket that takes nothing.
    pub(super) fn transmit(&mut self) -> bool {
        self.engine.poll_transmit(self.now, &mut &*self.queue, &mut self.heard)
    }

    /// The socket takes this many bytes. Returns how many messages are complete with them.
    pub(super) fn written(&mut self, bytes: usize) -> usize {
        let messages = self.engine.handle_written(self.now, bytes);
        self.queue.written(messages);
        messages
    }

    /// Messages of the first channel's stream that were written, and messages that never will be.
    pub(super) fn sums(&self) -> (u64, u64) {
        let progress = self.queue.progress(ChannelIndex(0));
        (progress.stream.written, progress.unwritten())
    }

    pub(super) fn say_hello(&mut self, theirs: &[(&str, u32, u64)]) {
        let hello = hello::encode("peer/v1", &capabilities(theirs), &key(2).public());
        self.say_raw(code::HELLO, &hello);
    }

    /// The peer writes a message by the rules: compressed if the connection is.
    pub(super) fn say(&mut self, code: u64, payload: &[u8]) {
        if self.snappy {
            self.say_raw(code, compressed(payload).as_bytes());
        } else {
            self.say_raw(code, payload);
        }
    }

    /// The peer writes a frame with exactly this payload.
    pub(super) fn say_raw(&mut self, code: u64, payload: &[u8]) {
        self.peer.writer.write(code, payload, &mut self.received).unwrap();
        self.engine.handle_bytes(self.now, &mut self.received);
    }

    /// The next message that the engine writes, decompressed.
    pub(super) fn hear(&mut self) -> Option<(u64, Vec<u8>)> {
        let before = self.heard.len();
        self.transmit();
        self.written(self.heard.len() - before);
        let frame = self.peer.reader.read(&mut self.heard, MAX_FRAME).unwrap()?;
        let payload = if self.snappy {
            Decompressor::default().decompress(&frame.payload, MAX_PAYLOAD).unwrap().to_vec()
        } else {
            frame.payload.to_vec()
        };
        Some((frame.code, payload))
    }

    /// Expects that the engine writes the reason of this fault and nothing more, and is closed for it.
    pub(super) fn expect_fault(&mut self, fault: Fault) {
        let (code, payload) = self.hear().expect("a Disconnect");
        assert_eq!(code, code::DISCONNECT);
        assert_eq!(DisconnectReason::decode(&payload, false), fault.reason());
        assert_eq!(self.hear(), None);
        let last = closed(Side::Local, fault.reason(), Some(fault));
        assert_eq!(self.actions().last(), Some(&last));
        assert_eq!(self.engine.poll_timeout(), None);
        assert!(!self.engine.wants_bytes());
    }

    pub(super) fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.engine.poll_action()).collect()
    }

    /// Takes all messages that were read.
    pub(super) fn messages(&mut self) -> Vec<Inbound> {
        let mut all = Queue { room: true, ..Queue::default() };
        self.engine.deliver(self.now, &mut all);
        all.taken
    }

    pub(super) fn wait(&mut self, by: Duration) {
        self.now = self.now.after(by);
    }

    /// Lets virtual time run to the engine's next deadline, and returns how long that took.
    pub(super) fn run_to_deadline(&mut self) -> Duration {
        let deadline = self.engine.poll_timeout().expect("a deadline");
        let by = deadline.saturating_duration_since(self.now.mono);
        self.wait(by);
        self.engine.handle_timeout(self.now);
        by
    }
}
