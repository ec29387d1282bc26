//! discv5 with input from strangers: packets, messages, and conversations with the engine.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use devp2pd::Now;
use devp2pd::discv5::crypto::{Crypto, MessageKey, SessionKeys, proof_digest};
use devp2pd::discv5::header::{self, Auth, ChallengeData, HeaderBuf, Nonce, Unmasker, WriteAuth};
use devp2pd::discv5::message::{
    Message, Ping, Pong, RequestId, TalkRequest, TalkResponse, encode_findnode, encode_nodes,
};
use devp2pd::discv5::packet;
use devp2pd::discv5::{Config, Engine, TalkAction, action::Action};
use devp2pd::kademlia::{Contact, QueryId};
use devp2pd::node::record::RecordError;
use devp2pd::node::{NodeId, NodeKey, PublicKey, Record, RecordBuilder};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use zeroize::Zeroizing;

const US: NodeId = NodeId([0x42; 32]);

/// The input is the packet before masking, because mutation would not find the mask. The opened packet equals the
/// input. A challenge that is written again gives the same packet.
pub fn discv5_packet(data: &[u8]) {
    let unmasker = Unmasker::new(&US);
    let mut buf = HeaderBuf::default();
    assert!(unmasker.open(data, &mut buf).is_err() || data.len() >= header::MIN_PACKET);

    let mut masked = data.to_vec();
    // A receiver unmasks the static header, which follows the IV, and the auth data, whose size is the last field of
    // that header.
    let size = data.get(37..39).map_or(0, |size| usize::from(u16::from_be_bytes([size[0], size[1]])));
    header::mask(&mut masked, (39 + size).min(data.len()), &US);
    let Ok(packet) = unmasker.open(&masked, &mut buf) else { return };
    assert!(unmasker.looks_like_discv5(&masked));
    assert_eq!([packet.ad, packet.message].concat(), data);
    if let Auth::WhoAreYou { data: challenge, .. } = packet.auth {
        let mut again = BytesMut::new();
        packet::repeat_challenge(&mut again, &US, challenge);
        assert_eq!(again, masked);
    }
}

/// An accepted message gives the same bytes when it is written again, unless its content can be encoded in two ways.
pub fn discv5_message(data: &[u8]) {
    let Ok(message) = Message::decode(data) else { return };
    assert!(message.id().as_bytes().len() <= 8);
    let mut out = BytesMut::new();
    match message {
        Message::Ping(ping) => ping.encode(&mut out),
        Message::Pong(pong) => {
            pong.encode(&mut out);
            // An IPv4 address may have been written as a mapped IPv6 address.
            assert!(matches!(Message::decode(&out), Ok(Message::Pong(again)) if again == pong));
            return;
        }
        Message::TalkRequest(talk) => talk.encode(&mut out),
        Message::TalkResponse(talk) => talk.encode(&mut out),
        Message::FindNode(find) => {
            let distances: Vec<u16> =
                find.distances().filter_map(|distance| distance.try_into().ok()).collect();
            if distances.len() != find.distances().count() {
                return;
            }
            encode_findnode(&mut out, find.id, &distances);
        }
        Message::Nodes(nodes) => {
            let records: Vec<Record> = nodes.records().filter_map(|raw| Record::decode(raw).ok()).collect();
            if records.len() != nodes.records().count() {
                return;
            }
            encode_nodes(&mut out, nodes.id, nodes.total, &records);
        }
    }
    assert_eq!(out, data);
}

/// Handshakes without elliptic curves, so that the fuzzer spends its time on the engine.
struct Fake(NodeId);

impl Fake {
    fn secret(ephemeral: &[u8; 33], recipient: &NodeId) -> Zeroizing<[u8; 33]> {
        let mut secret = *ephemeral;
        secret.iter_mut().zip(&recipient.0).for_each(|(secret, id)| *secret ^= id);
        Zeroizing::new(secret)
    }

    fn proof(id: &NodeId, digest: &[u8; 32]) -> [u8; 64] {
        let mut proof = [0; 64];
        proof[..32].copy_from_slice(digest);
        proof[32..].copy_from_slice(&id.0);
        proof
    }
}

impl Crypto for Fake {
    fn agree_ephemeral(&self, rng: &mut dyn RngCore, dest: &PublicKey) -> ([u8; 33], Zeroizing<[u8; 33]>) {
        let mut ephemeral = [0; 33];
        rng.fill_bytes(&mut ephemeral);
        (ephemeral, Self::secret(&ephemeral, &dest.id()))
    }

    fn agree_static(&self, ephemeral: &[u8; 33]) -> Option<Zeroizing<[u8; 33]>> {
        Some(Self::secret(ephemeral, &self.0))
    }

    fn sign_proof(&self, digest: &[u8; 32]) -> [u8; 64] {
        Self::proof(&self.0, digest)
    }

    fn verify_proof(&self, key: &PublicKey, digest: &[u8; 32], signature: &[u8; 64]) -> bool {
        Self::proof(&key.id(), digest) == *signature
    }

    fn decode_record(&self, bytes: &[u8]) -> Result<Record, RecordError> {
        Record::decode(bytes)
    }
}

/// A node that talks to the engine. The fuzzer decides how far it keeps to the protocol.
struct Actor {
    record: Record,
    addr: SocketAddr,
    session: Option<(MessageKey, MessageKey)>,
    challenge: Option<ChallengeData>,
    /// The nonce of the engine's newest packet except challenges, and the id of its newest message that could be read.
    unread: Nonce,
    request: RequestId,
}

struct Scene {
    engine: Engine<Fake>,
    now: Now,
    actors: Vec<Actor>,
    rng: StdRng,
    us: Contact,
    talks: Vec<devp2pd::discv5::talk::TalkToken>,
}

/// Runs a conversation of three nodes with the engine; the input chooses the steps. Packets keep their size limits,
/// timers make progress, and the engine's state is bounded.
pub fn discv5_engine(data: &[u8]) {
    let mut scene = Scene::new();
    let mut rest = data;
    while let [step, who, length, tail @ ..] = rest {
        let (body, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        scene.step(*step, usize::from(*who), body);
        scene.drain();
        rest = tail;
    }
    scene.pass(Duration::from_secs(20));
}

impl Scene {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let mut node = |ip: &str, port: u16| {
            let mut builder = RecordBuilder::new(1);
            builder.ip(ip.parse().expect("an address")).port("udp", port);
            builder.sign(&NodeKey::random(&mut rng)).expect("a small record")
        };
        let us = node("127.0.0.1", 30303);
        let actor = |record: Record| Actor {
            addr: record.udp_addr().expect("an endpoint"),
            record,
            session: None,
            challenge: None,
            unread: [0; 12],
            request: RequestId::default(),
        };
        let actors =
            vec![actor(node("127.0.0.1", 2000)), actor(node("8.8.8.8", 2001)), actor(node("10.0.0.1", 2002))];
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
        let rng = StdRng::seed_from_u64(2);
        let mut engine = Engine::new(now, Config::default(), Fake(us.id()), us.clone(), rng.clone());
        engine.set_talk_protocols([b"p".to_vec()]);
        engine.handle_timeout(now);
        let us = Contact::from_record(us).expect("an endpoint");
        Self { engine, now, actors, rng, us, talks: Vec::new() }
    }

    fn step(&mut self, step: u8, who: usize, body: &[u8]) {
        let now = self.now;
        let index = who % self.actors.len();
        let Some(actor) = self.actors.get(index) else { return };
        let contact = Contact::from_record(actor.record.clone()).expect("an endpoint");
        let (id, target) = (actor.request, actor.record.id());
        let number = u16::from(body.first().copied().unwrap_or(0));
        let query = QueryId(u64::from(number));
        match step % 20 {
            0 => self.pass(Duration::from_millis(50 * u64::from(number))),
            1 => self.write(index, body),
            2 => self.shake(index, body),
            3 => self.challenge(index),
            4 => self.write(index, &plain(|out| Ping { id: RequestId::from_u64(1), enr_seq: 1 }.encode(out))),
            5 => self.write(index, &plain(|out| encode_findnode(out, id, &[number + 200, number]))),
            6 => {
                let talk = TalkRequest { id, protocol: b"p", request: body };
                self.write(index, &plain(|out| talk.encode(out)));
            }
            7 => {
                let pong =
                    Pong { id, enr_seq: number.into(), recipient: self.us.udp_addr().expect("an endpoint") };
                self.write(index, &plain(|out| pong.encode(out)));
            }
            8 => {
                let records: Vec<Record> = self.actors.iter().map(|actor| actor.record.clone()).collect();
                self.write(index, &plain(|out| encode_nodes(out, id, number.into(), &records)));
            }
            9 => self.write(index, &plain(|out| TalkResponse { id, response: body }.encode(out))),
            10 => drop(self.engine.ping(now, query, &contact)),
            11 => drop(self.engine.talk(now, query, &contact, b"p", &body.repeat(usize::from(number) % 8))),
            12 => drop(self.engine.lookup(now, query, target)),
            13 => drop(self.engine.resolve(now, query, target, None)),
            14 => self.engine.set_demand(now, number.into()),
            15 => self.engine.add_bootnode(now, contact),
            16 => self.engine.add_seed(now, contact),
            17 => {
                if let Some(token) = self.talks.pop() {
                    let _ = self.engine.answer_talk(now, token, body);
                }
            }
            _ => {
                let from = actor.addr;
                let mut packet = body.to_vec();
                header::mask(&mut packet, body.len(), &self.us.id);
                self.engine.handle_datagram(now, from, &packet);
            }
        }
    }

    fn pass(&mut self, by: Duration) {
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
    }

    /// Sends a message of the actor: encrypted in its session, or random bytes if there is no session.
    fn write(&mut self, index: usize, plaintext: &[u8]) {
        let Some(actor) = self.actors.get(index) else { return };
        let (mut out, src) = (BytesMut::new(), actor.record.id());
        let mut nonce = [0; 12];
        self.rng.fill_bytes(&mut nonce);
        match &actor.session {
            Some((_, key)) if plaintext.len() <= header::MAX_MESSAGE => {
                let auth = WriteAuth::Message { src };
                packet::sealed(&mut out, &mut self.rng, &self.us.id, &auth, (key, &nonce), plaintext);
            }
            _ => packet::random(&mut out, &mut self.rng, &self.us.id, src, &nonce),
        }
        self.engine.handle_datagram(self.now, actor.addr, &out);
    }

    /// The actor answers the engine's challenge with a handshake that carries `body`.
    fn shake(&mut self, index: usize, body: &[u8]) {
        let Some(actor) = self.actors.get_mut(index) else { return };
        let Some(challenge) = actor.challenge else { return };
        let crypto = Fake(actor.record.id());
        let (ephemeral, secret) = crypto.agree_ephemeral(&mut self.rng, &self.us.public_key);
        let signature = crypto.sign_proof(&proof_digest(&challenge, &ephemeral, &self.us.id));
        let keys = SessionKeys::derive(&secret, &challenge, &actor.record.id(), &self.us.id);
        let record = actor.record.encoded();
        let auth = WriteAuth::Handshake {
            src: actor.record.id(),
            signature: &signature,
            ephemeral: &ephemeral,
            record,
        };
        let mut out = BytesMut::new();
        packet::sealed(&mut out, &mut self.rng, &self.us.id, &auth, (&keys.initiator, &[1; 12]), body);
        actor.session = Some((keys.recipient, keys.initiator));
        self.engine.handle_datagram(self.now, actor.addr, &out);
    }

    /// The actor challenges the engine's newest packet.
    fn challenge(&mut self, index: usize) {
        let Some(actor) = self.actors.get_mut(index) else { return };
        let mut out = BytesMut::new();
        actor.challenge = Some(packet::challenge(&mut out, &mut self.rng, &self.us.id, &actor.unread, 0));
        self.engine.handle_datagram(self.now, actor.addr, &out);
    }

    fn drain(&mut self) {
        let mut out = BytesMut::new();
        while let Some(to) = self.engine.poll_transmit(self.now, &mut out) {
            let packet = out.split();
            assert!((header::MIN_PACKET..=header::MAX_PACKET).contains(&packet.len()));
            if let Some(actor) = self.actors.iter_mut().find(|actor| actor.addr == to) {
                actor.read(&packet);
            }
        }
        while let Some(action) = self.engine.poll_action() {
            if let Action::Own(TalkAction::Requested { token, .. }) = action {
                self.talks.push(token);
            }
        }
        assert!(self.engine.is_consistent());
        assert!(self.engine.table().len() <= self.actors.len());
    }
}

impl Actor {
    fn read(&mut self, bytes: &[u8]) {
        let id = self.record.id();
        let mut buf = HeaderBuf::default();
        let packet = Unmasker::new(&id).open(bytes, &mut buf).expect("the engine writes packets");
        if let Auth::Handshake { src, ephemeral, .. } = packet.auth
            && let Some(challenge) = self.challenge
        {
            let keys = SessionKeys::derive(&Fake::secret(ephemeral, &id), &challenge, &src, &id);
            self.session = Some((keys.initiator, keys.recipient));
        }
        if let Auth::WhoAreYou { data, .. } = packet.auth {
            self.challenge = Some(*data);
            return;
        }
        self.unread = packet.nonce;
        let mut plaintext = Vec::new();
        let opens =
            |(key, _): &(MessageKey, _)| key.open(&packet.nonce, packet.ad, packet.message, &mut plaintext);
        if self.session.as_ref().is_some_and(opens) {
            self.request = Message::decode(&plaintext).expect("the engine writes messages").id();
        }
    }
}

fn plain(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}
