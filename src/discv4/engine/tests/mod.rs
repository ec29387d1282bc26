//! Scripts in virtual time: one engine, and peers that follow the script.

mod answers;
mod conformance;
mod floods;
mod searches;

use std::{net::IpAddr, time::Duration};

use rand::SeedableRng;

use super::*;
use crate::{
    discv4::{
        Verdict,
        packet::{
            EnrRequest, EnrResponse, Expiration, FindNode, Header, Neighbors, Packet, Ping, Pong, Type,
            WireEndpoint, neighbors::Neighbor, seal,
        },
    },
    node::{Endpoint, NodeId, NodeKey, PublicKey, Record, RecordBuilder},
};

const OUR_ADDR: &str = "9.8.7.6:30303";

fn key(seed: u64) -> NodeKey {
    NodeKey::random(&mut StdRng::seed_from_u64(seed))
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint { ip: addr.ip(), udp: addr.port(), tcp: addr.port() }
}

fn record(key: &NodeKey, seq: u64, addr: SocketAddr) -> Record {
    let mut builder = RecordBuilder::new(seq);
    builder.ip(addr.ip()).port("udp", addr.port()).port("tcp", addr.port());
    builder.sign(key).unwrap()
}

/// A node of the script.
struct Peer {
    key: NodeKey,
    addr: SocketAddr,
}

impl Peer {
    fn new(seed: u64, at: &str) -> Self {
        Self { key: key(seed), addr: addr(at) }
    }

    fn id(&self) -> NodeId {
        self.key.id()
    }

    fn contact(&self) -> Contact {
        Contact::new(self.key.public(), endpoint(self.addr))
    }

    fn neighbor(&self) -> Neighbor {
        let key = self.key.public().to_uncompressed();
        Neighbor { ip: Some(self.addr.ip()), udp: self.addr.port(), tcp: self.addr.port(), key }
    }

    fn seal(&self, kind: Type, append: impl FnOnce(&mut ::rlp::RlpStream)) -> (BytesMut, [u8; 32]) {
        let mut out = BytesMut::new();
        let hash = seal(&self.key, kind, &mut out, append);
        (out, hash)
    }
}

/// A packet that the engine sent, as the tests compare it.
#[derive(Debug, PartialEq)]
enum Sent {
    Ping { hash: [u8; 32], ping: Ping },
    Pong(Pong),
    FindNode([u8; 64]),
    Neighbors(Vec<Neighbor>),
    EnrRequest { hash: [u8; 32] },
    EnrResponse { request_hash: [u8; 32], record: Record },
}

struct Script {
    engine: Engine<NodeKey>,
    now: Now,
}

impl Script {
    /// An engine without bootnodes whose first refresh is over.
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) };
        let key = key(0);
        let record = record(&key, 7, addr(OUR_ADDR));
        let engine = Engine::new(now, config, key, record, StdRng::seed_from_u64(99));
        let mut script = Self { engine, now };
        script.wait(300);
        script
    }

    /// Lets time pass in the steps that the engine asks for.
    fn wait(&mut self, milliseconds: u64) {
        let end = self.now.after(Duration::from_millis(milliseconds));
        for _ in 0..10_000 {
            let Some(at) = self.engine.poll_timeout().filter(|at| *at <= end.mono) else { break };
            self.now = self.now.after(at.saturating_duration_since(self.now.mono));
            self.engine.handle_timeout(self.now);
        }
        assert!(self.engine.poll_timeout().is_none_or(|at| at > end.mono), "the timer spins");
        assert!(self.engine.is_consistent());
        self.now = end;
    }

    /// Everything that the engine sent, with the recipients.
    fn sent(&mut self) -> Vec<(SocketAddr, Sent)> {
        let mut all = Vec::new();
        let mut out = BytesMut::new();
        while let Some(to) = self.engine.poll_transmit(self.now, &mut out) {
            let header = Header::read(&out).unwrap();
            assert!(header.hash_is_right(&key(0)));
            assert_eq!(header.signer(&key(0)), Some(key(0).public()));
            let packet = Packet::decode(header.kind, header.body).unwrap();
            if let Some(expiration) = packet.expiration() {
                assert!((0..=20).contains(&expiration.seconds_ahead(self.now.unix)), "{expiration:?}");
            }
            let hash = header.hash;
            all.push((
                to,
                match packet {
                    Packet::Ping(ping) => Sent::Ping { hash, ping },
                    Packet::Pong(pong) => Sent::Pong(pong),
                    Packet::FindNode(findnode) => Sent::FindNode(findnode.target),
                    Packet::Neighbors(neighbors) => Sent::Neighbors(neighbors.nodes),
                    Packet::EnrRequest(_) => Sent::EnrRequest { hash },
                    Packet::EnrResponse(response) => Sent::EnrResponse {
                        request_hash: response.request_hash,
                        record: Record::decode(response.record).unwrap(),
                    },
                },
            ));
        }
        all
    }

    /// The packets that the engine sent to `peer`, which must be the only recipient.
    fn sent_to(&mut self, peer: &Peer) -> Vec<Sent> {
        self.sent()
            .into_iter()
            .map(|(to, sent)| {
                assert_eq!(to, peer.addr, "{sent:?}");
                sent
            })
            .collect()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.engine.poll_action()).collect()
    }

    /// Asks for the peer's record, wherever the table has it. Without its key no lookup follows.
    fn ask_record(&mut self, query: u64, peer: &Peer) {
        self.engine.resolve(self.now, QueryId(query), peer.id(), Some(peer.contact())).unwrap();
    }

    fn soon(&self) -> Expiration {
        Expiration::from_now(self.now.unix)
    }

    fn deliver(&mut self, from: SocketAddr, bytes: &[u8]) -> Verdict {
        self.engine.handle_datagram(self.now, from, bytes)
    }

    fn ping(&mut self, peer: &Peer) -> (Verdict, [u8; 32]) {
        let ping = Ping {
            from: endpoint(peer.addr).into(),
            to: endpoint(addr(OUR_ADDR)).into(),
            expiration: self.soon(),
            enr_seq: Some(1),
        };
        let (bytes, hash) = peer.seal(Type::Ping, |stream| ping.append(stream));
        (self.deliver(peer.addr, &bytes), hash)
    }

    fn pong(&mut self, peer: &Peer, ping_hash: [u8; 32]) -> Verdict {
        self.pong_with(peer, ping_hash, Some(1))
    }

    fn pong_with(&mut self, peer: &Peer, ping_hash: [u8; 32], enr_seq: Option<u64>) -> Verdict {
        let pong = Pong { to: endpoint(addr(OUR_ADDR)).into(), ping_hash, expiration: self.soon(), enr_seq };
        let (bytes, _) = peer.seal(Type::Pong, |stream| pong.append(stream));
        self.deliver(peer.addr, &bytes)
    }

    fn find_node(&mut self, peer: &Peer, target: [u8; 64]) -> Verdict {
        let findnode = FindNode { target, expiration: self.soon() };
        let (bytes, _) = peer.seal(Type::FindNode, |stream| findnode.append(stream));
        self.deliver(peer.addr, &bytes)
    }

    fn neighbors(&mut self, peer: &Peer, nodes: Vec<Neighbor>) -> Verdict {
        let neighbors = Neighbors { nodes, expiration: self.soon() };
        let (bytes, _) = peer.seal(Type::Neighbors, |stream| neighbors.append(stream));
        self.deliver(peer.addr, &bytes)
    }

    fn enr_request(&mut self, peer: &Peer) -> (Verdict, [u8; 32]) {
        let request = EnrRequest { expiration: self.soon() };
        let (bytes, hash) = peer.seal(Type::EnrRequest, |stream| request.append(stream));
        (self.deliver(peer.addr, &bytes), hash)
    }

    fn enr_response(&mut self, peer: &Peer, request_hash: [u8; 32], record: &[u8]) -> Verdict {
        let response = EnrResponse { request_hash, record };
        let (bytes, _) = peer.seal(Type::EnrResponse, |stream| response.append(stream));
        self.deliver(peer.addr, &bytes)
    }

    /// The peer pings, answers our ping, and is bonded. All sent packets are taken.
    fn bond(&mut self, peer: &Peer) {
        let (verdict, ours) = self.ping(peer);
        assert_eq!(verdict, Verdict::Accepted);
        let sent = self.sent_to(peer);
        let [Sent::Pong(pong), Sent::Ping { hash, .. }] = sent.as_slice() else { panic!("{sent:?}") };
        assert_eq!(pong.ping_hash, ours);
        assert_eq!(self.pong(peer, *hash), Verdict::Accepted);
    }

    /// The peer is bonded, in the table, and has passed a check.
    fn make_live(&mut self, peer: &Peer) {
        self.bond(peer);
        self.check(peer);
    }

    /// The bonded peer waits for its check and passes it.
    fn check(&mut self, peer: &Peer) {
        for _ in 0..600 {
            self.wait(50);
            for (to, sent) in self.sent() {
                if let Sent::Ping { hash, .. } = sent
                    && to == peer.addr
                {
                    // Without a sequence number, so the record is not requested.
                    self.pong_with(peer, hash, None);
                }
            }
            if self.engine.table().get(&peer.id()).is_some_and(|entry| entry.live) {
                return;
            }
        }
        panic!("{:?} was not checked", peer.addr);
    }
}
