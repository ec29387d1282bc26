//! The cost of discovery where strangers push: reading a discv4 packet, recognizing noise, and the table.
//!
//! Each figure has its yardstick in the same run, and both are the best of many interleaved samples, so that what else
//! the machine does falls on both or on neither: the bare recovery of a key beside the reading of a packet, the bare
//! Keccak-256 of the same bytes beside noise that gets as far as the hash.
//!
//! `cargo bench --bench discovery`

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "not part of the product")]

use std::{
    hint::black_box,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use devp2pd::{
    Now,
    discv4::{
        self, Verdict,
        packet::{Expiration, Header, Packet, Ping, Type, WireEndpoint, seal},
    },
    discv5::Unmasker,
    kademlia::{Contact, Source, Table, table::Insert},
    node::{Endpoint, NodeId, NodeKey, PublicKey, RecordBuilder, id::keccak256},
};
use rand::{RngCore, SeedableRng, rngs::StdRng};

/// Samples of each figure; the best counts.
const SAMPLES: usize = 40;

fn main() {
    packets();
    noise();
    table();
}

/// The best time of one round for each of several functions, which take turns.
fn best<const N: usize>(mut functions: [&mut dyn FnMut(); N]) -> [Duration; N] {
    let mut times = [Duration::MAX; N];
    for _ in 0..SAMPLES {
        for (time, function) in times.iter_mut().zip(&mut functions) {
            let start = Instant::now();
            function();
            *time = start.elapsed().min(*time);
        }
    }
    times
}

fn per(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e9 / count as f64
}

fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

fn ping(key: &NodeKey, from: SocketAddr, to: SocketAddr) -> BytesMut {
    let wire = |addr: SocketAddr| WireEndpoint { ip: Some(addr.ip()), udp: addr.port(), tcp: addr.port() };
    let expiration = Expiration::from_now(start().unix);
    let ping = Ping { from: wire(from), to: wire(to), expiration, enr_seq: Some(1) };
    let mut packet = BytesMut::new();
    seal(key, Type::Ping, &mut packet, |stream| ping.append(stream));
    packet
}

/// Reading a signed packet beside the recovery of its signer, which is most of it.
fn packets() {
    let mut rng = StdRng::seed_from_u64(1);
    let key = NodeKey::random(&mut rng);
    let (from, to) = ("192.0.2.1:30303".parse().unwrap(), "192.0.2.2:30303".parse().unwrap());
    let packets: Vec<BytesMut> = (0..64).map(|_| ping(&NodeKey::random(&mut rng), from, to)).collect();
    let signed: Vec<([u8; 32], [u8; 65])> = packets
        .iter()
        .map(|packet| (keccak256(&[&packet[97..]]), packet[32..97].try_into().unwrap()))
        .collect();
    let mut bare = || {
        for (digest, signature) in &signed {
            black_box(PublicKey::recover(black_box(digest), signature).unwrap());
        }
    };
    let mut read = || {
        for packet in &packets {
            let header = Header::read(black_box(packet)).unwrap();
            assert!(header.hash_is_right(&key));
            black_box(header.signer(&key).unwrap());
            black_box(Packet::decode(header.kind, header.body).unwrap());
        }
    };
    let [bare, read] = best([&mut bare, &mut read]);
    println!(
        "discv4: reading a PING {:.1} µs, recovery alone {:.1} µs, ratio {:.3}",
        per(read, 64) / 1e3,
        per(bare, 64) / 1e3,
        read.as_secs_f64() / bare.as_secs_f64()
    );
}

/// The driver's decision for one datagram: discv5 by its mask, else discv4's engine.
fn demultiplex(
    unmasker: &Unmasker,
    engine: &mut discv4::Engine<NodeKey>,
    now: Now,
    from: SocketAddr,
    bytes: &[u8],
) -> Option<Verdict> {
    (!unmasker.looks_like_discv5(bytes)).then(|| engine.handle_datagram(now, from, bytes))
}

/// Hostile noise of 1,280 bytes that fails at each of the checks, in the order of their cost.
fn noise() {
    const COUNT: usize = 1024;
    let now = start();
    let mut rng = StdRng::seed_from_u64(2);
    let key = NodeKey::random(&mut rng);
    let unmasker = Unmasker::new(&key.id());
    let mut builder = RecordBuilder::new(1);
    builder.ip("192.0.2.9".parse().unwrap()).port("udp", 30303).port("tcp", 30303);
    let record = builder.sign(&key).unwrap();
    let config = discv4::Config::default();
    let mut engine = discv4::Engine::new(now, config, key, record, StdRng::seed_from_u64(3));

    let mut datagrams = |shape: fn(&mut [u8])| -> Vec<Vec<u8>> {
        (0..COUNT)
            .map(|_| {
                let mut bytes = vec![0; 1280];
                rng.fill_bytes(&mut bytes);
                shape(&mut bytes);
                bytes
            })
            .collect()
    };
    // After the 97 bytes of hash and signature: a type, then the header of an RLP list that fits.
    type Kind = (&'static str, &'static str, fn(&mut [u8]), Verdict);
    let kinds: [Kind; 4] = [
        ("an unknown type", "203.0.113.1:9", |bytes| bytes[97] = 0, Verdict::UnknownType),
        ("no list", "203.0.113.1:9", |bytes| (bytes[97], bytes[98]) = (1, 0x80), Verdict::NotAList),
        ("a list, from a network beyond its ration", "203.0.113.1:9", fitting, Verdict::Limited),
        // This machine has no ration, so that every packet gets to the hash.
        ("a list, hashed", "127.0.0.1:9", fitting, Verdict::WrongHash),
    ];
    for (name, from, shape, verdict) in kinds {
        let datagrams = datagrams(shape);
        let from: SocketAddr = from.parse().unwrap();
        // Uses up the ration before anything is measured.
        for bytes in &datagrams {
            demultiplex(&unmasker, &mut engine, now, from, bytes);
        }
        let mut judged = || {
            for bytes in &datagrams {
                let judged = demultiplex(&unmasker, &mut engine, now, from, black_box(bytes));
                debug_assert!(judged.is_none_or(|judged| judged == verdict), "{judged:?}");
            }
        };
        let mut hashed = || {
            for bytes in &datagrams {
                black_box(keccak256(&[black_box(&bytes[32..])]));
            }
        };
        let [judged, hashed] = best([&mut judged, &mut hashed]);
        println!(
            "noise, {name}: {:.2} M packets/s ({:.0} % of the bare Keccak rate)",
            1e3 / per(judged, COUNT),
            100.0 * hashed.as_secs_f64() / judged.as_secs_f64()
        );
    }
}

/// A PING whose body is a list as long as the datagram.
fn fitting(bytes: &mut [u8]) {
    let rest = bytes.len() - 98 - 3;
    let [high, low] = u16::try_from(rest).unwrap().to_be_bytes();
    bytes[97..101].copy_from_slice(&[1, 0xf9, high, low]);
}

/// Offering nodes to a table that strangers have filled, and finding the closest.
fn table() {
    const OFFERED: usize = 4096;
    let now = start();
    let mut rng = StdRng::seed_from_u64(4);
    let own = NodeKey::random(&mut rng).id();
    let public_key = NodeKey::random(&mut rng).public();
    let by = NodeId([7; 32]);
    let mut nodes: Vec<Contact> = Vec::with_capacity(OFFERED);
    for index in 0..OFFERED {
        let mut id = NodeId([0; 32]);
        rng.fill_bytes(&mut id.0);
        // Networks of their own, so that no limit per subnet spares the table any work.
        let [high, low] = u16::try_from(index).unwrap().to_be_bytes();
        let endpoint =
            Endpoint { ip: IpAddr::from([20 + (index >> 12) as u8, high, low, 1]), udp: 1, tcp: 1 };
        nodes.push(Contact { id, public_key, endpoint, record: None });
    }
    let fill = |nodes: &[Contact]| {
        let mut table = Table::new(own, &mut StdRng::seed_from_u64(5));
        for node in nodes {
            black_box(table.insert(now, node.clone(), Source::Relayed { by }));
            while table.poll_event().is_some() {}
        }
        table
    };
    let mut full = fill(&nodes);
    assert_eq!(full.insert(now, nodes[0].clone(), Source::Relayed { by }), Insert::Known);
    let mut insert = || drop(black_box(fill(&nodes)));
    let mut closest = || {
        for node in &nodes {
            black_box(full.closest(black_box(&node.id), 16, |_| true));
        }
    };
    let mut distances = || {
        // The yardstick of a search: the distances of 16 nodes to a target, and their order.
        for chunk in nodes.windows(16) {
            let target = chunk[0].id;
            let mut ids: Vec<&NodeId> = chunk.iter().map(|node| &node.id).collect();
            ids.sort_unstable_by(|a, b| devp2pd::kademlia::distance::closer(&target, a, b));
            black_box(ids);
        }
    };
    let [insert, closest, sorted] = best([&mut insert, &mut closest, &mut distances]);
    println!("table: offering a node {:.0} ns", per(insert, OFFERED));
    println!(
        "table: the closest 16 of {} {:.0} ns, sorting 16 alone {:.0} ns",
        fill(&nodes).in_use(),
        per(closest, OFFERED),
        per(sorted, OFFERED - 15)
    );
}
