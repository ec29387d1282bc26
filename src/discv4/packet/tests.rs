//! The packets of discv4 against the official vectors, and bytes that are no packets.

use std::net::IpAddr;

use bytes::BytesMut;
use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::{neighbors::Neighbor, *};
use crate::node::{NodeKey, PublicKey};

/// The key of all vectors.
const KEY: &str = "b71c71a67e1177ad4e901695e1b4b9ee17ae16c6668d313eac2f96dbcda3f291";

const VECTORS: &str = include_str!("../../../tests/vectors/discv4/packets.txt");

fn vector(name: &str) -> Vec<u8> {
    let mut lines = VECTORS.lines().skip_while(|line| *line != format!("[{name}]")).skip(1);
    let hex: String = lines.by_ref().take_while(|line| !line.starts_with('[') && !line.is_empty()).collect();
    HEXLOWER.decode(hex.as_bytes()).unwrap()
}

fn read(bytes: &[u8]) -> (Packet<'_>, PublicKey) {
    let header = Header::read(bytes).unwrap();
    assert!(header.hash_is_right());
    let signer = header.signer(&NodeKey::from_hex(KEY).unwrap()).unwrap();
    (Packet::decode(header.kind, header.body).unwrap(), signer)
}

fn wire(ip: &str, udp: u16, tcp: u16) -> WireEndpoint {
    WireEndpoint { ip: Some(ip.parse().unwrap()), udp, tcp }
}

fn key(hex: &str) -> [u8; 64] {
    HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
}

const THEN: Expiration = Expiration(1_136_239_445);

#[test]
fn official_vectors() {
    let neighbor =
        |ip: &str, udp, tcp, hex| Neighbor { ip: Some(ip.parse().unwrap()), udp, tcp, key: key(hex) };
    let table = [
        (
            "ping",
            Packet::Ping(Ping {
                from: wire("127.0.0.1", 3322, 5544),
                to: wire("::1", 2222, 3333),
                expiration: THEN,
                enr_seq: None,
            }),
        ),
        (
            "ping, additional elements",
            Packet::Ping(Ping {
                from: wire("127.0.0.1", 3322, 5544),
                to: wire("::1", 2222, 3333),
                expiration: THEN,
                enr_seq: Some(1),
            }),
        ),
        (
            "ping, version 555, additional elements and data",
            Packet::Ping(Ping {
                from: wire("2001:db8:3c4d:15::abcd:ef12", 3322, 5544),
                to: wire("2001:db8:85a3:8d3:1319:8a2e:370:7348", 2222, 33338),
                expiration: THEN,
                // The element in its place is a list.
                enr_seq: None,
            }),
        ),
        (
            "pong, additional elements and data",
            Packet::Pong(Pong {
                to: wire("2001:db8:85a3:8d3:1319:8a2e:370:7348", 2222, 33338),
                ping_hash: HEXLOWER
                    .decode(b"fbc914b16819237dcd8801d7e53f69e9719adecb3cc0e790c57e91ca4461c954")
                    .unwrap()
                    .try_into()
                    .unwrap(),
                expiration: THEN,
                enr_seq: None,
            }),
        ),
        (
            "findnode, additional elements and data",
            Packet::FindNode(FindNode {
                target: key(
                    "ca634cae0d49acb401d8a4c6b6fe8c55b70d115bf400769cc1400f3258cd31387574077f301b421bc84df7266c44e9e6d569fc56be00812904767bf5ccd1fc7f",
                ),
                expiration: THEN,
            }),
        ),
        (
            "neighbors, additional elements and data",
            Packet::Neighbors(Neighbors {
                nodes: vec![
                    neighbor(
                        "99.33.22.55",
                        4444,
                        4445,
                        "3155e1427f85f10a5c9a7755877748041af1bcd8d474ec065eb33df57a97babf54bfd2103575fa829115d224c523596b401065a97f74010610fce76382c0bf32",
                    ),
                    neighbor(
                        "1.2.3.4",
                        1,
                        1,
                        "312c55512422cf9b8a4097e9a6ad79402e87a15ae909a4bfefa22398f03d20951933beea1e4dfa6f968212385e829f04c2d314fc2d4e255e0d3bc08792b069db",
                    ),
                    neighbor(
                        "2001:db8:3c4d:15::abcd:ef12",
                        3333,
                        3333,
                        "38643200b172dcfef857492156971f0e6aa2c538d8b74010f8e140811d53b98c765dd2d96126051913f44582e8c199ad7c6d6819e9a56483f637feaac9448aac",
                    ),
                    neighbor(
                        "2001:db8:85a3:8d3:1319:8a2e:370:7348",
                        999,
                        1000,
                        "8dcab8618c3253b558d459da53bd8fa68935a719aff8b811197101a4b2b47dd2d47295286fc00cc081bb542d760717d1bdd6bec2c37cd72eca367d6dd3b9df73",
                    ),
                ],
                expiration: THEN,
            }),
        ),
    ];
    let public = NodeKey::from_hex(KEY).unwrap().public();
    for (name, packet) in table {
        let bytes = vector(name);
        assert_eq!(read(&bytes), (packet, public), "{name}");
    }
}

#[test]
fn we_write_what_the_vectors_have() {
    // The signature aside: the vector's was made with another nonce than RFC 6979's.
    let bytes = vector("ping");
    let (packet, signer) = read(&bytes);
    let Packet::Ping(ping) = &packet else { panic!("a ping") };
    let mut out = BytesMut::from(&b"left from the packet before"[..]);
    let hash = seal(&NodeKey::from_hex(KEY).unwrap(), Type::Ping, &mut out, |stream| ping.append(stream));
    assert_eq!(out[97..], bytes[97..]);
    assert_eq!(read(&out), (packet, signer));
    assert_eq!(hash, out[..32]);
}

#[test]
fn what_is_no_packet_is_told_before_hashing() {
    let good = vector("ping");
    let set = |index: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[index] = byte;
        bytes
    };
    let table = [
        (Vec::new(), HeaderError::TooShort),
        (good[..97].to_vec(), HeaderError::TooShort),
        (good[..98].to_vec(), HeaderError::NotAList),
        (vec![1; 1281], HeaderError::TooLong),
        (set(97, 0), HeaderError::UnknownType),
        (set(97, 7), HeaderError::UnknownType),
        (set(97, 66), HeaderError::UnknownType),
        (set(98, 0x80), HeaderError::NotAList),
        (set(98, 0xf6), HeaderError::NotAList),
        (good[..good.len() - 1].to_vec(), HeaderError::NotAList),
    ];
    for (bytes, error) in table {
        assert_eq!(Header::read(&bytes).unwrap_err(), error);
    }
    assert!(!Header::read(&set(0, 0)).unwrap().hash_is_right());
}

#[test]
fn bodies_that_lack_something_are_refused() {
    // Two-byte lists and such: each type needs more.
    for body in [&[0xc0][..], &[0xc1, 0x04], &[0xc2, 0xc0, 0xc0], &[0xc3, 0x82, 1, 0]] {
        for kind in [Type::Ping, Type::Pong, Type::FindNode, Type::Neighbors, Type::EnrResponse] {
            assert!(Packet::decode(kind, body).is_err(), "{kind:?} {body:02x?}");
        }
    }
    assert!(Packet::decode(Type::EnrRequest, &[0xc0]).is_err());
    // Nine bytes of expiration, and one with a leading zero.
    assert!(Packet::decode(Type::EnrRequest, &[0xca, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1]).is_err());
    assert!(Packet::decode(Type::EnrRequest, &[0xc3, 0x82, 0, 1]).is_err());
}

#[test]
fn twelve_neighbors_fit_and_so_does_the_largest_record() {
    let key = NodeKey::from_hex(KEY).unwrap();
    let node = Neighbor { ip: Some(IpAddr::from([0xff; 16])), udp: u16::MAX, tcp: u16::MAX, key: [0xff; 64] };
    let mut packet =
        Neighbors { nodes: vec![node.clone(); neighbors::MAX_PER_PACKET], expiration: Expiration(-1) };
    let mut out = BytesMut::new();
    seal(&key, Type::Neighbors, &mut out, |stream| packet.append(stream));
    assert!(out.len() <= MAX_PACKET, "{}", out.len());
    packet.nodes.push(node);
    seal(&key, Type::Neighbors, &mut out, |stream| packet.append(stream));
    assert!(out.len() > MAX_PACKET, "{} would do with more", out.len());
}

prop_compose! {
    fn any_ip()(four in any::<Option<[u8; 4]>>(), six in any::<[u8; 16]>()) -> Option<IpAddr> {
        Some(four.map_or_else(|| crate::node::endpoint::canonical(six.into()), IpAddr::from))
    }
}

proptest! {
    #[test]
    fn what_we_write_we_read(
        ip in any_ip(), udp: u16, tcp: u16, seconds: i64, seq: Option<u64>, hash: [u8; 32],
        target in proptest::collection::vec(any::<u8>(), 64), nodes in 0usize..12,
    ) {
        let endpoint = WireEndpoint { ip, udp, tcp };
        let expiration = Expiration(seconds);
        let target: [u8; 64] = target.try_into().unwrap();
        let nodes = vec![Neighbor { ip, udp, tcp, key: target }; nodes];
        let ping = Ping { from: endpoint, to: endpoint, expiration, enr_seq: seq };
        let pong = Pong { to: endpoint, ping_hash: hash, expiration, enr_seq: seq };
        let findnode = FindNode { target, expiration };
        let neighbors = Neighbors { nodes, expiration };
        let request = EnrRequest { expiration };
        let response = EnrResponse { request_hash: hash, record: &[0xc2, 0x01, 0x02] };
        let key = NodeKey::from_hex(KEY).unwrap();
        let mut out = BytesMut::new();
        seal(&key, Type::Ping, &mut out, |stream| ping.append(stream));
        prop_assert_eq!(read(&out).0, Packet::Ping(ping));
        seal(&key, Type::Pong, &mut out, |stream| pong.append(stream));
        prop_assert_eq!(read(&out).0, Packet::Pong(pong));
        seal(&key, Type::FindNode, &mut out, |stream| findnode.append(stream));
        prop_assert_eq!(read(&out).0, Packet::FindNode(findnode));
        seal(&key, Type::Neighbors, &mut out, |stream| neighbors.append(stream));
        prop_assert_eq!(read(&out).0, Packet::Neighbors(neighbors));
        seal(&key, Type::EnrRequest, &mut out, |stream| request.append(stream));
        prop_assert_eq!(read(&out).0, Packet::EnrRequest(request));
        seal(&key, Type::EnrResponse, &mut out, |stream| response.append(stream));
        prop_assert_eq!(read(&out).0, Packet::EnrResponse(response));
    }
}
