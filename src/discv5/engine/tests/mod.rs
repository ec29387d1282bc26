//! The engine, driven by scripts in virtual time: a [`Rig`] around one engine, and a [`Tester`] that exchanges packets
//! of the protocol and lies on request.

mod attacks;
mod conformance;
mod faults;
mod network;
mod requests;
mod talking;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    discv5::{
        crypto::{MessageKey, SessionKeys, proof_digest},
        header::{Auth, ChallengeData, HeaderBuf, Nonce, Unmasker, WriteAuth},
        message::{Message, Ping, RequestId},
        packet,
    },
    node::{NodeId, NodeKey, RecordBuilder},
};

/// Virtual time starts anywhere.
#[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

fn key(seed: u64) -> NodeKey {
    NodeKey::random(&mut StdRng::seed_from_u64(seed))
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The record of `key` at `at`, or without an address.
fn record(key: &NodeKey, seq: u64, at: Option<SocketAddr>) -> Record {
    let mut builder = RecordBuilder::new(seq);
    if let Some(at) = at {
        builder.ip(at.ip()).port(if at.is_ipv4() { "udp" } else { "udp6" }, at.port());
    }
    builder.sign(key).unwrap()
}

/// All IPv4 networks but that of one address.
fn all_but(ip: &str) -> Vec<ipnet::IpNet> {
    let without: ipnet::Ipv4Net = format!("{ip}/32").parse().unwrap();
    let siblings = (1..=32).map(|length| {
        let own = ipnet::Ipv4Net::new(without.addr(), length).unwrap();
        let flipped = u32::from(own.network()) ^ (1 << (32 - u32::from(length)));
        ipnet::Ipv4Net::new(flipped.into(), length).unwrap().into()
    });
    siblings.collect()
}

fn contact(key: &NodeKey, at: &str) -> Contact {
    Contact::from_record(record(key, 1, Some(addr(at)))).unwrap()
}

/// One engine, its time, and its output.
struct Rig {
    engine: Engine<NodeKey>,
    now: Now,
    actions: Vec<Action>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
}

impl Rig {
    fn new(at: &str) -> Self {
        Self::with(at, Config::default())
    }

    /// An engine at `at` whose first refresh is over.
    fn with(at: &str, config: Config) -> Self {
        let (now, key) = (start(), key(0));
        let record = record(&key, 7, Some(addr(at)));
        let engine = Engine::new(now, config, key, record, StdRng::seed_from_u64(99));
        let mut rig = Self { engine, now, actions: Vec::new(), sent: Vec::new() };
        rig.advance(Duration::from_millis(200));
        rig
    }

    fn contact(&self) -> Contact {
        Contact::from_record(self.engine.wire.record().clone()).unwrap()
    }

    fn restrict(&mut self, to: Vec<ipnet::IpNet>) {
        let record = self.engine.wire.record().clone();
        self.engine.overlay.restrict(to, &record);
    }

    fn counters(&self) -> Counters {
        *self.engine.counters()
    }

    fn drain(&mut self) {
        let mut out = BytesMut::new();
        while let Some(to) = self.engine.poll_transmit(self.now, &mut out) {
            assert!(out.len() <= 1280, "a packet of {} bytes", out.len());
            self.sent.push((to, out.split().to_vec()));
        }
        while let Some(action) = self.engine.poll_action() {
            self.actions.push(action);
        }
    }

    /// Hands a datagram in and returns the packets that are sent at once.
    fn deliver(&mut self, from: SocketAddr, bytes: &[u8]) -> Vec<(SocketAddr, Vec<u8>)> {
        self.drain();
        self.sent.clear();
        self.engine.handle_datagram(self.now, from, bytes);
        self.drain();
        std::mem::take(&mut self.sent)
    }

    /// Lets time pass, timer by timer, and returns the packets that are sent meanwhile.
    fn advance(&mut self, by: Duration) -> Vec<(SocketAddr, Vec<u8>)> {
        self.drain();
        let end = self.now.mono + by;
        while let Some(next) = self.engine.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.after(next.saturating_duration_since(self.now.mono));
            self.engine.handle_timeout(self.now);
            assert!(
                self.engine.poll_timeout().is_none_or(|next| next > self.now.mono),
                "a timer without progress"
            );
            self.drain();
        }
        self.now = self.now.after(end - self.now.mono);
        std::mem::take(&mut self.sent)
    }

    /// Calls a command and returns the packets that are sent at once.
    fn command<T>(
        &mut self,
        call: impl FnOnce(&mut Engine<NodeKey>, Now) -> T,
    ) -> (T, Vec<(SocketAddr, Vec<u8>)>) {
        self.drain();
        self.sent.clear();
        let result = call(&mut self.engine, self.now);
        self.drain();
        (result, std::mem::take(&mut self.sent))
    }

    fn take_actions(&mut self) -> Vec<Action> {
        self.drain();
        std::mem::take(&mut self.actions)
    }
}

/// The decoded form of a packet of the engine.
#[derive(Debug, PartialEq)]
enum Got {
    Challenge { nonce: Nonce, seq: u64, data: ChallengeData },
    Message(Vec<u8>),
    Unreadable { nonce: Nonce, handshake: bool },
}

/// A node that is written by hand.
struct Tester {
    key: NodeKey,
    record: Record,
    addr: SocketAddr,
    to: NodeKey,
    rng: StdRng,
    /// The keys with which it reads and writes.
    session: Option<(MessageKey, MessageKey)>,
    last_nonce: Nonce,
    requests: u32,
}

impl Tester {
    /// A node at `at` whose record has no address.
    fn new(seed: u64, at: &str) -> Self {
        let key = key(seed);
        Self {
            record: record(&key, 1, None),
            key,
            addr: addr(at),
            to: self::key(0),
            rng: StdRng::seed_from_u64(seed),
            session: None,
            last_nonce: [0; 12],
            requests: 0,
        }
    }

    /// The same, with its address in its record.
    fn reachable(seed: u64, at: &str) -> Self {
        let mut tester = Self::new(seed, at);
        tester.record = record(&tester.key, 1, Some(tester.addr));
        tester
    }

    fn id(&self) -> NodeId {
        self.key.id()
    }

    fn contact(&self) -> Contact {
        Contact::from_record(self.record.clone()).unwrap()
    }

    fn request_id(&mut self) -> RequestId {
        self.requests += 1;
        RequestId::new(&self.requests.to_be_bytes()).unwrap()
    }

    fn ping(&mut self) -> (RequestId, Vec<u8>) {
        let id = self.request_id();
        (id, encoded(|out| Ping { id, enr_seq: self.record.seq() }.encode(out)))
    }

    /// A packet with `plaintext`, or one that asks for a challenge if there is no session.
    fn write(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let (mut out, src, dest) = (BytesMut::new(), self.id(), self.to.id());
        self.rng.fill_bytes(&mut self.last_nonce);
        match &self.session {
            Some((_, key)) => {
                let auth = WriteAuth::Message { src };
                packet::sealed(&mut out, &mut self.rng, &dest, &auth, (key, &self.last_nonce), plaintext);
            }
            None => packet::random(&mut out, &mut self.rng, &dest, src, &self.last_nonce),
        }
        out.to_vec()
    }

    /// The handshake that answers a challenge, with the record if the challenge asks for one.
    fn handshake(&mut self, data: &ChallengeData, seq: u64, plaintext: &[u8]) -> Vec<u8> {
        let record = if seq < self.record.seq() { self.record.encoded().to_vec() } else { Vec::new() };
        self.handshake_with(data, &record, plaintext)
    }

    fn handshake_with(&mut self, data: &ChallengeData, record: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let (ephemeral, secret) = self.key.agree_ephemeral(&mut self.rng, &self.to.public());
        let signature = self.key.sign_proof(&proof_digest(data, &ephemeral, &self.to.id()));
        let keys = SessionKeys::derive(&secret, data, &self.id(), &self.to.id());
        let auth =
            WriteAuth::Handshake { src: self.id(), signature: &signature, ephemeral: &ephemeral, record };
        let mut out = BytesMut::new();
        self.rng.fill_bytes(&mut self.last_nonce);
        let seal = (&keys.initiator, &self.last_nonce);
        packet::sealed(&mut out, &mut self.rng, &self.to.id(), &auth, seal, plaintext);
        self.session = Some((keys.recipient, keys.initiator));
        out.to_vec()
    }

    fn read(&mut self, bytes: &[u8]) -> Got {
        let mut buf = HeaderBuf::default();
        let packet = Unmasker::new(&self.id()).open(bytes, &mut buf).expect("a packet for us");
        if let Auth::WhoAreYou { enr_seq, data } = packet.auth {
            return Got::Challenge { nonce: packet.nonce, seq: enr_seq, data: *data };
        }
        let mut plaintext = Vec::new();
        let opened = self
            .session
            .as_ref()
            .is_some_and(|(key, _)| key.open(&packet.nonce, packet.ad, packet.message, &mut plaintext));
        let handshake = matches!(packet.auth, Auth::Handshake { .. });
        if opened { Got::Message(plaintext) } else { Got::Unreadable { nonce: packet.nonce, handshake } }
    }

    /// The one packet of `sent`, which must have gone to this tester.
    fn read_one(&mut self, sent: &[(SocketAddr, Vec<u8>)]) -> Got {
        let [(to, bytes)] = sent else { panic!("one packet expected, got {}", sent.len()) };
        assert_eq!(*to, self.addr);
        self.read(bytes)
    }

    /// Sends a request, shakes hands if it must, and returns the plaintexts that come back.
    fn ask(&mut self, rig: &mut Rig, plaintext: &[u8]) -> Vec<Vec<u8>> {
        let packet = self.write(plaintext);
        let mut sent = rig.deliver(self.addr, &packet);
        if let [(_, bytes)] = &sent[..]
            && let Got::Challenge { nonce, seq, data } = self.read(bytes)
        {
            assert_eq!(nonce, self.last_nonce);
            let packet = self.handshake(&data, seq, plaintext);
            sent = rig.deliver(self.addr, &packet);
        }
        sent.iter()
            .map(|(to, bytes)| match self.read(bytes) {
                Got::Message(plaintext) if *to == self.addr => plaintext,
                got => panic!("expected a message, got {got:?} to {to}"),
            })
            .collect()
    }

    /// Makes a session by a PING.
    fn meet(&mut self, rig: &mut Rig) {
        let (id, ping) = self.ping();
        let answers = self.ask(rig, &ping);
        assert!(matches!(Message::decode(&answers[0]), Ok(Message::Pong(pong)) if pong.id == id));
    }

    /// Answers a request of the engine that has no session yet: challenges it, and returns the request.
    fn challenge_engine(&mut self, rig: &mut Rig, request: &[u8]) -> Vec<u8> {
        let Got::Unreadable { nonce, handshake: false } = self.read(request) else { panic!("readable") };
        let mut out = BytesMut::new();
        let data = packet::challenge(&mut out, &mut self.rng, &self.to.id(), &nonce, 0);
        let sent = rig.deliver(self.addr, &out);
        let [(to, bytes)] = &sent[..] else { panic!("no handshake came") };
        assert_eq!(*to, self.addr);
        let mut buf = HeaderBuf::default();
        let packet = Unmasker::new(&self.id()).open(bytes, &mut buf).unwrap();
        let Auth::Handshake { src, ephemeral, signature, record } = packet.auth else {
            panic!("no handshake")
        };
        let record = Record::decode(record).unwrap();
        let digest = proof_digest(&data, ephemeral, &self.id());
        assert!(self.key.verify_proof(&record.public_key(), &digest, signature));
        let keys = SessionKeys::derive(&self.key.agree_static(ephemeral).unwrap(), &data, &src, &self.id());
        let mut plaintext = Vec::new();
        assert!(keys.initiator.open(&packet.nonce, packet.ad, packet.message, &mut plaintext));
        self.session = Some((keys.initiator, keys.recipient));
        plaintext
    }
}

fn encoded(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}
