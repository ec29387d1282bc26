//! The cost of discv5 packets: recognizing noise, reading one of an established session, answering it, and a handshake
//! that a stranger makes us compute.
//!
//! Each figure has its yardstick in the same run: the bare AES-GCM of the same bytes beside the reading of a packet,
//! the bare elliptic-curve operations beside the handshake.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark may fail loudly")]

use std::{
    hint::black_box,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use devp2pd::{
    Now,
    discv5::{
        action::Config,
        challenge::{Challenges, Standing},
        crypto::{Crypto, MessageKey, SessionKeys, proof_digest},
        engine::Engine,
        handshake::{self, Answer, Local},
        header::{Auth, HeaderBuf, Unmasker, WriteAuth},
        message::{Message, Ping, RequestId, TalkRequest},
        packet,
        peer::Peer,
    },
    node::{NodeKey, Record, RecordBuilder},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};

/// The keys and record of a node of the benchmark.
struct Node {
    key: NodeKey,
    record: Record,
    addr: SocketAddr,
}

impl Node {
    fn new(seed: u64, port: u16) -> Self {
        let key = NodeKey::random(&mut StdRng::seed_from_u64(seed));
        let mut builder = RecordBuilder::new(1);
        builder.ip([127, 0, 0, 1].into()).port("udp", port);
        let record = builder.sign(&key).unwrap();
        Self { key, record, addr: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

fn noise(c: &mut Criterion) {
    let us = Node::new(1, 1);
    let unmasker = Unmasker::new(&us.key.id());
    let mut rng = StdRng::seed_from_u64(9);
    let packets: Vec<Vec<u8>> = (0..1000)
        .map(|_| {
            let mut bytes = vec![0; 1280];
            rng.fill_bytes(&mut bytes);
            bytes
        })
        .collect();
    let mut group = c.benchmark_group("discv5/noise");
    group.throughput(Throughput::Elements(packets.len() as u64));
    group.bench_function("looks_like_discv5", |b| {
        b.iter(|| packets.iter().filter(|bytes| unmasker.looks_like_discv5(black_box(bytes))).count());
    });
    group.finish();
}

fn established(c: &mut Criterion) {
    let (us, them) = (Node::new(1, 1), Node::new(2, 2));
    let unmasker = Unmasker::new(&us.key.id());
    let key = MessageKey::new([7; 16]);
    let mut rng = StdRng::seed_from_u64(9);
    let id = RequestId::from_u64(1);
    let mut group = c.benchmark_group("discv5/established");
    group.throughput(Throughput::Elements(1));
    for (name, large) in [("ping", false), ("talk 1,150 B", true)] {
        let mut plaintext = BytesMut::new();
        if large {
            TalkRequest { id, protocol: b"protocol", request: &[7; 1150] }.encode(&mut plaintext);
        } else {
            Ping { id, enr_seq: 1 }.encode(&mut plaintext);
        }
        let mut bytes = BytesMut::new();
        let auth = WriteAuth::Message { src: them.key.id() };
        packet::sealed(&mut bytes, &mut rng, &us.key.id(), &auth, (&key, &[1; 12]), &plaintext);

        let (mut header, mut opened) = (HeaderBuf::default(), Vec::new());
        let packet = unmasker.open(&bytes, &mut header).unwrap();
        group.bench_function(format!("{name}: AES-GCM alone"), |b| {
            b.iter(|| assert!(key.open(&packet.nonce, packet.ad, black_box(packet.message), &mut opened)));
        });
        group.bench_function(format!("{name}: read"), |b| {
            b.iter(|| {
                let mut header = HeaderBuf::default();
                let packet = unmasker.open(black_box(&bytes), &mut header).unwrap();
                assert!(key.open(&packet.nonce, packet.ad, packet.message, &mut opened));
                black_box(Message::decode(&opened).unwrap().id())
            });
        });
    }
    group.finish();
}

/// An engine that `them` has shaken hands with; the key that it reads with.
fn engine_with_session(now: Now, us: &Node, them: &Node, rng: &mut StdRng) -> (Engine<NodeKey>, MessageKey) {
    let seed = StdRng::seed_from_u64(3);
    let mut engine = Engine::new(now, Config::default(), us.key.clone(), us.record.clone(), seed);
    let mut out = BytesMut::new();
    packet::random(&mut out, rng, &us.key.id(), them.key.id(), &[1; 12]);
    engine.handle_datagram(now, them.addr, &out);
    out.clear();
    engine.poll_transmit(now, &mut out).unwrap();
    let mut header = HeaderBuf::default();
    let challenge = Unmasker::new(&them.key.id()).open(&out, &mut header).unwrap();
    let Auth::WhoAreYou { data, .. } = challenge.auth else { panic!("no WHOAREYOU") };
    let (ephemeral, secret) = them.key.agree_ephemeral(rng, &us.key.public());
    let signature = them.key.sign_proof(&proof_digest(data, &ephemeral, &us.key.id()));
    let keys = SessionKeys::derive(&secret, data, &them.key.id(), &us.key.id());
    let auth = WriteAuth::Handshake {
        src: them.key.id(),
        signature: &signature,
        ephemeral: &ephemeral,
        record: them.record.encoded(),
    };
    let mut packet = BytesMut::new();
    packet::sealed(&mut packet, rng, &us.key.id(), &auth, (&keys.initiator, &[2; 12]), &[0xff]);
    engine.handle_datagram(now, them.addr, &packet);
    assert_eq!(engine.counters().handshakes_accepted, 1);
    (engine, keys.initiator)
}

fn engine(c: &mut Criterion) {
    let (now, us, them) = (start(), Node::new(1, 1), Node::new(2, 2));
    let mut rng = StdRng::seed_from_u64(9);
    let (mut engine, key) = engine_with_session(now, &us, &them, &mut rng);
    let mut plaintext = BytesMut::new();
    Ping { id: RequestId::from_u64(1), enr_seq: 1 }.encode(&mut plaintext);
    let mut ping = BytesMut::new();
    let auth = WriteAuth::Message { src: them.key.id() };
    packet::sealed(&mut ping, &mut rng, &us.key.id(), &auth, (&key, &[3; 12]), &plaintext);
    let mut stranger = BytesMut::new();
    packet::random(&mut stranger, &mut rng, &us.key.id(), Node::new(5, 5).key.id(), &[1; 12]);
    let mut bytes = vec![0; 1280];
    rng.fill_bytes(&mut bytes);

    let mut group = c.benchmark_group("discv5/engine");
    group.throughput(Throughput::Elements(1));
    let mut out = BytesMut::new();
    for (name, bytes) in
        [("PING to PONG", &ping[..]), ("unreadable to repeated WHOAREYOU", &stranger), ("noise", &bytes)]
    {
        group.bench_function(name, |b| {
            b.iter(|| {
                engine.handle_datagram(now, them.addr, black_box(bytes));
                out.clear();
                engine.poll_transmit(now, &mut out)
            });
        });
    }
    group.finish();
}

fn handshakes(c: &mut Criterion) {
    let (now, us, them) = (start(), Node::new(1, 1), Node::new(2, 2));
    let mut rng = StdRng::seed_from_u64(9);
    let mut out = BytesMut::new();
    let data = packet::challenge(&mut out, &mut rng, &them.key.id(), &[1; 12], 0);
    let (ephemeral, _) = them.key.agree_ephemeral(&mut rng, &us.key.public());
    let digest = proof_digest(&data, &ephemeral, &us.key.id());
    let signature = them.key.sign_proof(&digest);
    let peer = Peer::new(them.key.id(), them.addr);
    let mut challenges = Challenges::default();
    challenges.insert(peer, Standing::Stranger, ([1; 12], data), None, now.mono);
    let challenge = challenges.take(&peer, now.mono).unwrap();

    let mut group = c.benchmark_group("discv5/handshake");
    group.throughput(Throughput::Elements(1));
    group.bench_function("one ECDH and two verifications alone", |b| {
        b.iter(|| {
            let secret = us.key.agree_static(black_box(&ephemeral)).unwrap();
            let first = us.key.verify_proof(&them.key.public(), &digest, &signature);
            let second = us.key.verify_proof(&them.key.public(), black_box(&digest), &signature);
            (secret, first && second)
        });
    });
    group.bench_function("accept, with a record", |b| {
        let local = Local { crypto: &us.key, record: &us.record };
        let record = them.record.encoded();
        let answer = Answer { src: them.key.id(), signature: &signature, ephemeral: &ephemeral, record };
        b.iter(|| handshake::accept(&local, black_box(&challenge), &answer, now.mono).unwrap());
    });
    group.finish();
}

criterion_group!(benches, noise, established, engine, handshakes);
criterion_main!(benches);
