//! Instructions for one message, in the three places that every message passes: codec, connection engine, delivery.
//!
//! Instructions are counted, not seconds, so that two runs give one figure whatever else the machine does.
//! `.ci/instructions` runs each workload under valgrind for two lengths, and divides the difference by the messages
//! between them: setting up costs nothing that way. It compares the figures with `benches/instructions.txt`.
//!
//! `instructions WORKLOAD SIZE MESSAGES` runs one workload; without arguments it lists them all, one a line.

#![allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "not part of the product"
)]

use std::{
    collections::VecDeque,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use devp2pd::{
    Now,
    budget::{Budget, Resource},
    delivery::{About, Arrival, AttachParams, Config, Held, Inbox, Pull, Sharing, StreamId},
    node::NodeKey,
    p2p::{
        Action, Connection, Delivery, DisconnectReason, HeldTime, Inbound, LocalCapability, LocalNode, Next,
        Offer, Outgoing, Source,
    },
    rlpx::{
        Compressor,
        frame::{FrameReader, FrameWriter, MAX_FRAME},
        mac::Mac,
    },
};
use rand::{SeedableRng as _, rngs::StdRng};
use sha3::{Digest as _, Keccak256};

type Workload = fn(usize, usize);

const WORKLOADS: [(&str, Workload); 3] =
    [("codec", codec), ("connection", connection), ("delivery", delivery)];
const SIZES: [usize; 3] = [100, 1024, 16 * 1024];
const KEY: [u8; 32] = [7; 32];

/// Messages that are written before they are read: as many as one write and one read of a busy socket carry.
const BATCH: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [workload, size, messages] = arguments.as_slice() else {
        for (name, _) in WORKLOADS {
            SIZES.iter().for_each(|size| println!("{name} {size}"));
        }
        return;
    };
    let (_, run) = WORKLOADS.iter().find(|(name, _)| name == workload).expect("a workload of the list");
    run(size.parse().expect("a size in bytes"), messages.parse().expect("a number of messages"));
}

fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31) as u8).collect()
}

fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

/// Writes and reads frames.
fn codec(size: usize, messages: usize) {
    let mut writer = FrameWriter::new(&KEY, Mac::new(&KEY, Keccak256::new()));
    let mut reader = FrameReader::new(&KEY, Mac::new(&KEY, Keccak256::new()));
    let (payload, mut wire) = (payload(size), BytesMut::with_capacity(1 << 20));
    for _ in 0..messages / BATCH {
        for _ in 0..BATCH {
            writer.write(0x10, &payload, &mut wire).unwrap();
        }
        while let Some(frame) = reader.read(&mut wire, MAX_FRAME).unwrap() {
            black_box(frame.payload);
        }
    }
}

/// Messages in the order in which they go.
#[derive(Default)]
struct Queue(VecDeque<Outgoing>);

impl Source for Queue {
    fn next(&mut self, _: Instant) -> Next {
        self.0.pop_front().map_or(Next::Nothing, Next::Message)
    }

    fn appended(&mut self, _: Instant, _: usize) {}

    fn leaving(&self) -> Option<DisconnectReason> {
        None
    }
}

/// Lets an engine read and write the next part of the handshake. Returns the channel's first code once there is one.
fn shake_hands(
    now: Now,
    engine: &mut Connection,
    received: &mut BytesMut,
    out: &mut BytesMut,
) -> Option<u64> {
    let mut channel = None;
    engine.handle_bytes(now, received);
    while let Some(action) = engine.poll_action() {
        match action {
            Action::Authenticated { .. } => {
                let name = "bench".into();
                engine.greet(now, &[LocalCapability { name, version: 1, message_count: 4 }]);
            }
            Action::Negotiated { channels, .. } => {
                channel = Some(channels[0].offset);
                engine.open(now);
            }
            _ => {}
        }
    }
    while engine.poll_transmit(now, &mut Queue::default(), out) {}
    channel
}

/// A queue that takes everything.
struct Taken;

impl Delivery for Taken {
    fn offer(&mut self, _: Instant, message: Inbound, _: HeldTime) -> Offer {
        black_box(message);
        Offer::Taken
    }

    fn offer_last(&mut self, _: Instant, message: Inbound) {
        black_box(message);
    }
}

/// Sends messages from one engine to another, both after the handshake.
fn connection(size: usize, messages: usize) {
    let now = start();
    let key = |seed| NodeKey::random(&mut StdRng::seed_from_u64(seed));
    let local = |seed| Arc::new(LocalNode::new(key(seed), "bench"));
    let mut ours = Connection::dial(local(1), key(2).public(), now, StdRng::seed_from_u64(3));
    let mut theirs = Connection::accept(local(2), now, StdRng::seed_from_u64(4));
    let (mut to_them, mut to_us) = (BytesMut::with_capacity(1 << 20), BytesMut::new());
    let mut channel = None;
    for _ in 0..8 {
        shake_hands(now, &mut ours, &mut to_us, &mut to_them);
        channel = channel.or(shake_hands(now, &mut theirs, &mut to_them, &mut to_us));
    }
    let (code, mut compressor, payload) = (channel.unwrap(), Compressor::default(), payload(size));
    let mut queue = Queue::default();
    for _ in 0..messages / BATCH {
        for _ in 0..BATCH {
            let message = compressor.compress(&payload).unwrap();
            queue.0.push_back(Outgoing { code, message });
        }
        while ours.poll_transmit(now, &mut queue, &mut to_them) {}
        black_box(ours.handle_written(now, to_them.len()));
        theirs.handle_bytes(now, &mut to_them);
        theirs.deliver(now, &mut Taken);
        while theirs.is_behind() {
            theirs.handle_bytes(now, &mut to_them);
            theirs.deliver(now, &mut Taken);
        }
    }
}

/// Puts messages into the queue of a registration and takes them out as its stream does.
fn delivery(size: usize, messages: usize) {
    let now = start();
    let mut inbox = Inbox::new(Config::default(), Budget::whole(Resource::Delivery));
    let stream = StreamId(1);
    inbox.attach(stream, AttachParams { auto_credit: true, ..AttachParams::default() });
    let about = About { session_id: 1, peer: (), keep_first: 0, greeting_sent: false };
    let key = inbox.open(about).unwrap();
    let payload = Bytes::from(payload(size));
    let mut events = Vec::new();
    for _ in 0..messages / BATCH {
        for _ in 0..BATCH {
            let arrival = Arrival { code: 0, payload: payload.clone(), wire_bytes: size };
            black_box(inbox.push(now.mono, key, Sharing::Alone, Held::default(), arrival));
        }
        while inbox.pull(stream, 256 << 10, 512, &mut events) == Pull::Full {}
        events.clear();
    }
}
