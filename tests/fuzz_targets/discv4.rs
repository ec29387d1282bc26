//! discv4 with input from strangers: single packets, and conversations with the engine.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use devp2pd::Now;
use devp2pd::discv4::packet::header::MAX_PACKET;
use devp2pd::discv4::packet::neighbors::Neighbor;
use devp2pd::discv4::packet::{
    EnrRequest, EnrResponse, Expiration, FindNode, Header, Neighbors, Packet, Ping, Pong, Type, WireEndpoint,
    seal,
};
use devp2pd::discv4::{Config, Engine, crypto::Crypto};
use devp2pd::kademlia::{Contact, QueryId};
use devp2pd::node::{NodeKey, PublicKey, Record, RecordBuilder};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rlp::RlpStream;

const TYPES: [Type; 6] =
    [Type::Ping, Type::Pong, Type::FindNode, Type::Neighbors, Type::EnrRequest, Type::EnrResponse];

/// A signature is the signer's public key. Recovery costs nothing, and the fuzzer can make any signature.
#[derive(Clone)]
struct Fake(PublicKey);

impl Crypto for Fake {
    fn sign(&self, _: &[u8; 32]) -> [u8; 65] {
        let mut signature = [0; 65];
        signature[..64].copy_from_slice(&self.0.to_uncompressed());
        signature
    }

    fn recover(&self, _: &[u8; 32], signature: &[u8; 65]) -> Option<PublicKey> {
        PublicKey::from_uncompressed(signature.first_chunk()?).ok()
    }
}

fn key(byte: u8) -> NodeKey {
    NodeKey::from_bytes(&[byte; 32]).expect("one of the valid keys")
}

/// Reads any datagram, and any body behind a correct header. An accepted packet is equal after it is written and read
/// again.
pub fn discv4_packet(data: &[u8]) {
    let crypto = Fake(key(1).public());
    if let Ok(header) = Header::read(data) {
        let _ =
            (header.hash_is_right(&crypto), header.signer(&crypto), Packet::decode(header.kind, header.body));
    }
    let Some((kind, body)) = data.split_first() else { return };
    let kind = TYPES[usize::from(*kind) % TYPES.len()];
    let Ok(packet) = Packet::decode(kind, body) else { return };
    let mut out = BytesMut::new();
    let hash = seal(&crypto, kind, &mut out, |stream| append(&packet, stream));
    if out.len() > MAX_PACKET {
        assert!(Header::read(&out).is_err());
        return;
    }
    let header = Header::read(&out).expect("a packet that we wrote");
    assert!(header.hash == hash && header.hash_is_right(&crypto));
    assert_eq!(header.signer(&crypto), Some(crypto.0));
    assert_eq!(Packet::decode(header.kind, header.body).as_ref(), Ok(&packet));
}

fn append(packet: &Packet<'_>, stream: &mut RlpStream) {
    match packet {
        Packet::Ping(ping) => ping.append(stream),
        Packet::Pong(pong) => pong.append(stream),
        Packet::FindNode(findnode) => findnode.append(stream),
        Packet::Neighbors(neighbors) => neighbors.append(stream),
        Packet::EnrRequest(request) => request.append(stream),
        Packet::EnrResponse(response) => response.append(stream),
    }
}

/// Runs a conversation of three nodes with the engine; the input chooses the steps. Packets keep their size limit,
/// timers make progress, and the engine's indices agree. A node without endpoint proof receives at most 2.5 times the
/// bytes of its packet.
pub fn discv4_engine(data: &[u8]) {
    let mut scene = Scene::new();
    let mut rest = data;
    while let [step, who, length, tail @ ..] = rest {
        let (body, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        scene.step(*step, usize::from(*who), body);
        scene.drain(None);
        assert!(scene.engine.is_consistent());
        rest = tail;
    }
    scene.pass(Duration::from_secs(40));
}

struct Scene {
    engine: Engine<Fake>,
    now: Now,
    actors: Vec<Actor>,
    us: Record,
}

struct Actor {
    crypto: Fake,
    addr: SocketAddr,
    record: Record,
    /// The hashes of the engine's newest PING and ENRRequest to this node.
    pinged: [u8; 32],
    asked_for_record: [u8; 32],
    /// Whether it has ever sent a PONG. Without one it has no endpoint proof.
    has_ponged: bool,
}

fn record(key: &NodeKey, addr: &str, seq: u64) -> Record {
    let addr: SocketAddr = addr.parse().expect("an address");
    let mut builder = RecordBuilder::new(seq);
    builder.ip(addr.ip()).port("udp", addr.port()).port("tcp", addr.port());
    builder.sign(key).expect("a small record")
}

impl Scene {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
        let us = record(&key(1), "9.8.7.6:30303", 1);
        let crypto = Fake(key(1).public());
        let engine = Engine::new(now, Config::default(), crypto, us.clone(), StdRng::seed_from_u64(1));
        let actors =
            [(2, "127.0.0.1:2000"), (3, "8.8.8.8:2001"), (4, "10.0.0.1:2002")].map(|(byte, addr)| Actor {
                crypto: Fake(key(byte).public()),
                addr: addr.parse().expect("an address"),
                record: record(&key(byte), addr, 1),
                pinged: [0; 32],
                asked_for_record: [0; 32],
                has_ponged: false,
            });
        let mut scene = Self { engine, now, actors: actors.into(), us };
        scene.pass(Duration::from_millis(300));
        scene
    }

    fn step(&mut self, step: u8, who: usize, body: &[u8]) {
        let now = self.now;
        let index = who % self.actors.len();
        let number = body.first().copied().unwrap_or(0);
        let query = QueryId(u64::from(number));
        let actor = &mut self.actors[index];
        let contact = Contact::from_record(actor.record.clone()).expect("an endpoint");
        let wire =
            |addr: SocketAddr| WireEndpoint { ip: Some(addr.ip()), udp: addr.port(), tcp: addr.port() };
        let us = self.us.udp_addr().expect("an endpoint");
        let expiration = if number == 1 { Expiration(1) } else { Expiration::from_now(now.unix) };
        match step % 18 {
            0 => self.pass(Duration::from_millis(50 * u64::from(number))),
            1 => {
                let (from, to) = (wire(actor.addr), wire(us));
                let ping = Ping { from, to, expiration, enr_seq: Some(number.into()) };
                self.send(index, Type::Ping, |stream| ping.append(stream));
            }
            2 => {
                actor.has_ponged = true;
                let pong =
                    Pong { to: wire(us), ping_hash: actor.pinged, expiration, enr_seq: Some(number.into()) };
                self.send(index, Type::Pong, |stream| pong.append(stream));
            }
            3 => {
                let findnode = FindNode { target: [number; 64], expiration };
                self.send(index, Type::FindNode, |stream| findnode.append(stream));
            }
            4 => {
                let nodes = self.actors.iter().map(|actor| Neighbor {
                    ip: Some(actor.addr.ip()),
                    udp: actor.addr.port(),
                    tcp: actor.addr.port(),
                    key: actor.crypto.0.to_uncompressed(),
                });
                let neighbors = Neighbors { nodes: nodes.collect(), expiration };
                self.send(index, Type::Neighbors, |stream| neighbors.append(stream));
            }
            5 => self.send(index, Type::EnrRequest, |stream| EnrRequest { expiration }.append(stream)),
            6 => {
                let (request_hash, record) = (actor.asked_for_record, actor.record.clone());
                let response = EnrResponse { request_hash, record: record.encoded() };
                self.send(index, Type::EnrResponse, |stream| response.append(stream));
            }
            7 => {
                let kind = TYPES[usize::from(number) % TYPES.len()];
                actor.has_ponged |= kind == Type::Pong;
                self.send(index, kind, |stream| {
                    stream.append_raw(body, 1);
                });
            }
            8 => drop(self.engine.handle_datagram(now, actor.addr, body)),
            9 => drop(self.engine.ping(now, query, &contact)),
            10 => drop(self.engine.resolve(now, query, contact.id, Some(contact))),
            11 => drop(self.engine.lookup(now, query, [number; 64])),
            12 => drop(self.engine.resolve(now, query, contact.public_key, Some(contact))),
            13 => self.engine.add_bootnode(now, contact),
            14 => self.engine.add_seed(now, contact),
            16 => self.engine.set_demand(now, number.into()),
            _ => self.engine.set_local_record(record(&key(1), "9.8.7.6:30303", number.into())),
        }
    }

    /// Sends a packet of an actor, with a correct signature and hash.
    fn send(&mut self, index: usize, kind: Type, append: impl FnOnce(&mut RlpStream)) {
        let mut out = BytesMut::new();
        let actor = &self.actors[index];
        seal(&actor.crypto, kind, &mut out, append);
        self.engine.handle_datagram(self.now, actor.addr, &out);
        let (addr, unproven) = (actor.addr, !actor.has_ponged);
        self.drain(unproven.then_some((addr, out.len())));
    }

    /// Takes the engine's actions and packets. `caused` is the address of a node without endpoint proof that has just
    /// sent a packet, and the size of that packet in bytes.
    fn drain(&mut self, caused: Option<(SocketAddr, usize)>) {
        while self.engine.poll_action().is_some() {}
        let (mut out, mut sent) = (BytesMut::new(), 0);
        while let Some(to) = self.engine.poll_transmit(self.now, &mut out) {
            assert!(out.len() <= MAX_PACKET);
            let header = Header::read(&out).expect("a packet of ours");
            assert!(header.hash_is_right(&Fake(key(1).public())));
            Packet::decode(header.kind, header.body).expect("a packet of ours");
            if caused.is_some_and(|(addr, _)| addr == to) {
                sent += out.len();
            }
            let Some(actor) = self.actors.iter_mut().find(|actor| actor.addr == to) else { continue };
            match header.kind {
                Type::Ping => actor.pinged = header.hash,
                Type::EnrRequest => actor.asked_for_record = header.hash,
                _ => {}
            }
        }
        if let Some((addr, received)) = caused {
            assert!(
                sent * 2 <= received * 5,
                "{sent} bytes to {addr}, which sent {received} and proved nothing"
            );
        }
    }

    fn pass(&mut self, by: Duration) {
        let end = self.now.mono + by;
        while let Some(next) = self.engine.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.after(next.saturating_duration_since(self.now.mono));
            self.engine.handle_timeout(self.now);
            let again = self.engine.poll_timeout();
            assert!(again.is_none_or(|next| next > self.now.mono), "a timer without progress");
            self.drain(None);
        }
        self.now = self.now.after(end - self.now.mono);
    }
}
