//! The official vectors, opened and made, and packets that are none.

use std::collections::HashMap;

use data_encoding::HEXLOWER;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    discv5::{
        crypto::{Crypto, SessionKeys, proof_digest},
        header::{Auth, HeaderBuf, HeaderError, MAX_PACKET, MIN_PACKET, Packet, Unmasker},
        message::{Message, Ping, RequestId},
    },
    node::{NodeKey, PublicKey, Record},
};

struct Vector(HashMap<&'static str, &'static str>);

impl Vector {
    fn new(text: &'static str) -> Self {
        Self(
            text.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(|line| line.split_once(" = "))
                .collect(),
        )
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        HEXLOWER.decode(self.0[key].trim_start_matches("0x").as_bytes()).unwrap()
    }

    fn array<const N: usize>(&self, key: &str) -> [u8; N] {
        self.bytes(key).try_into().unwrap()
    }

    fn key(&self, key: &str) -> NodeKey {
        NodeKey::from_bytes(&self.array(key)).unwrap()
    }

    fn number(&self, key: &str) -> u64 {
        self.0[key].parse().unwrap()
    }
}

macro_rules! vector {
    ($name:literal) => {
        Vector::new(include_str!(concat!("../../../tests/vectors/discv5/", $name)))
    };
}

/// Masks a plain header again: the header that was opened must give the same bytes.
fn remask(packet: &Packet<'_>, dest: &NodeId) -> Vec<u8> {
    let mut out = packet.ad.to_vec();
    header::mask(&mut out, packet.ad.len(), dest);
    out.extend_from_slice(packet.message);
    out
}

#[test]
fn ping_message() {
    let vector = vector!("ping-message.txt");
    let bytes = vector.bytes("packet");
    let b = vector.key("node-b-key").id();
    let mut buf = HeaderBuf::default();
    let packet = Unmasker::new(&b).open(&bytes, &mut buf).unwrap();
    assert_eq!(packet.auth, Auth::Message { src: NodeId(vector.array("src-node-id")) });
    assert_eq!(packet.nonce, vector.array("nonce"));
    let mut plaintext = Vec::new();
    let key = MessageKey::new(vector.array("read-key"));
    assert!(key.open(&packet.nonce, packet.ad, packet.message, &mut plaintext));
    let Message::Ping(ping) = Message::decode(&plaintext).unwrap() else { panic!("not PING") };
    assert_eq!((ping.id.as_bytes(), ping.enr_seq), (&[0, 0, 0, 1][..], vector.number("ping.enr-seq")));
    assert_eq!(remask(&packet, &b), bytes);

    // And the other way: the same fields give the same bytes. The vector's masking IV is all zeros.
    let mut out = BytesMut::new();
    header::write(
        &mut out,
        &[0; 16],
        &packet.nonce,
        &WriteAuth::Message { src: vector.key("node-a-key").id() },
    );
    let header = out.len();
    ping.encode(&mut out);
    key.seal(&packet.nonce, &mut out, header);
    header::mask(&mut out, header, &b);
    assert_eq!(out, bytes);
}

#[test]
fn whoareyou() {
    let vector = vector!("whoareyou.txt");
    let bytes = vector.bytes("packet");
    let b = NodeId(vector.array("dest-node-id"));
    let mut buf = HeaderBuf::default();
    let packet = Unmasker::new(&b).open(&bytes, &mut buf).unwrap();
    let data: ChallengeData = vector.array("whoareyou.challenge-data");
    assert_eq!(packet.auth, Auth::WhoAreYou { enr_seq: vector.number("whoareyou.enr-seq"), data: &data });
    assert_eq!(packet.nonce, vector.array("whoareyou.request-nonce"));
    let mut out = BytesMut::new();
    repeat_challenge(&mut out, &b, &data);
    assert_eq!(out, bytes);
}

#[test]
fn handshakes() {
    for vector in [vector!("ping-handshake.txt"), vector!("ping-handshake-enr.txt")] {
        let bytes = vector.bytes("packet");
        let (a, b) = (vector.key("node-a-key"), vector.key("node-b-key"));
        let challenge: ChallengeData = vector.array("whoareyou.challenge-data");
        let mut buf = HeaderBuf::default();
        let packet = Unmasker::new(&b.id()).open(&bytes, &mut buf).unwrap();
        let Auth::Handshake { src, signature, ephemeral, record } = packet.auth else {
            panic!("no handshake")
        };
        assert_eq!((src, *ephemeral), (a.id(), vector.array("ephemeral-pubkey")));

        // The recipient's side: proof and keys.
        let crypto = &b;
        let digest = proof_digest(&challenge, ephemeral, &b.id());
        assert!(crypto.verify_proof(&a.public(), &digest, signature));
        assert!(!crypto.verify_proof(&a.public(), &proof_digest(&challenge, ephemeral, &a.id()), signature));
        let secret = crypto.agree_static(ephemeral).unwrap();
        let keys = SessionKeys::derive(&secret, &challenge, &src, &b.id());
        assert_eq!(keys.initiator, MessageKey::new(vector.array("read-key")));

        // The initiator's side comes to the same keys and the same signature.
        let theirs = vector.key("ephemeral-key").agree(&b.public()).compressed();
        assert_eq!(theirs, secret);
        assert_eq!(a.sign_proof(&digest), *signature);

        let mut plaintext = Vec::new();
        assert!(keys.initiator.open(&packet.nonce, packet.ad, packet.message, &mut plaintext));
        let Message::Ping(ping) = Message::decode(&plaintext).unwrap() else { panic!("not PING") };
        assert_eq!(ping, Ping { id: RequestId::new(&[0, 0, 0, 1]).unwrap(), enr_seq: 1 });
        match vector.number("whoareyou.enr-seq") {
            0 => assert_eq!(Record::decode(record).unwrap().id(), a.id()),
            _ => assert!(record.is_empty()),
        }
        assert_eq!(remask(&packet, &b.id()), bytes);
    }
}

#[test]
fn primitives() {
    let vector = vector!("crypto.txt");
    let dest = PublicKey::from_compressed(&vector.array("kdf.dest-pubkey")).unwrap();
    let secret = vector.key("kdf.ephemeral-key").agree(&dest).compressed();
    let [a, b] = ["kdf.node-id-a", "kdf.node-id-b"].map(|key| NodeId(vector.array(key)));
    let keys = SessionKeys::derive(&secret, &vector.array("kdf.challenge-data"), &a, &b);
    assert_eq!(keys.initiator, MessageKey::new(vector.array("kdf.initiator-key")));
    assert_eq!(keys.recipient, MessageKey::new(vector.array("kdf.recipient-key")));

    let digest = proof_digest(
        &vector.array("sign.challenge-data"),
        &vector.array("sign.ephemeral-pubkey"),
        &NodeId(vector.array("sign.node-id-b")),
    );
    let crypto = vector.key("sign.static-key");
    assert_eq!(crypto.sign_proof(&digest), vector.array("sign.id-signature"));

    let key = MessageKey::new(vector.array("gcm.key"));
    let (nonce, ad) = (vector.array("gcm.nonce"), vector.bytes("gcm.ad"));
    let mut packet = BytesMut::from(&ad[..]);
    packet.extend_from_slice(&vector.bytes("gcm.plaintext"));
    key.seal(&nonce, &mut packet, ad.len());
    assert_eq!(packet[ad.len()..], vector.bytes("gcm.ciphertext"));
    let mut plaintext = Vec::new();
    assert!(key.open(&nonce, &ad, &packet[ad.len()..], &mut plaintext));
    assert_eq!(plaintext, vector.bytes("gcm.plaintext"));
    packet[40] ^= 1;
    assert!(!key.open(&nonce, &ad, &packet[ad.len()..], &mut plaintext));
    assert!(plaintext.is_empty());
}

/// A packet for `dest` with any header fields, masked.
fn forged(dest: &NodeId, magic: &[u8], flag: u8, auth_size: u16, after: &[u8]) -> Vec<u8> {
    let mut out = vec![7; 16];
    out.extend_from_slice(magic);
    out.push(flag);
    out.extend_from_slice(&[9; 12]);
    out.extend_from_slice(&auth_size.to_be_bytes());
    out.extend_from_slice(after);
    let length = out.len();
    header::mask(&mut out, length, dest);
    out
}

#[test]
fn what_is_no_packet_is_refused_with_the_reason() {
    let us = NodeId([0x42; 32]);
    let magic = b"discv5\x00\x01";
    let mut handshake = vec![0; 131 + 16];
    handshake[32..34].copy_from_slice(&[64, 33]);
    let mut odd_scheme = handshake.clone();
    odd_scheme[32] = 65;
    let table: Vec<(Vec<u8>, HeaderError)> = vec![
        (vec![], HeaderError::Size),
        (vec![0; 62], HeaderError::Size),
        (vec![0; 1281], HeaderError::Size),
        (vec![0; 1280], HeaderError::Protocol),
        (forged(&us, b"discv4\x00\x01", 0, 32, &[0; 48]), HeaderError::Protocol),
        (forged(&us, b"discv5\x00\x00", 0, 32, &[0; 48]), HeaderError::Protocol), // version 0
        (forged(&us, b"discv5\x00\x02", 0, 32, &[0; 48]), HeaderError::Protocol),
        (forged(&NodeId([1; 32]), magic, 0, 32, &[0; 48]), HeaderError::Protocol), // for somebody else
        (forged(&us, magic, 3, 32, &[0; 48]), HeaderError::Flag(3)),
        (forged(&us, magic, 0, 31, &[0; 48]), HeaderError::AuthSize),
        (forged(&us, magic, 0, 0xffff, &[0; 48]), HeaderError::AuthSize),
        (forged(&us, magic, 0, 32, &[0; 47]), HeaderError::Message),
        (forged(&us, magic, 1, 23, &[0; 24]), HeaderError::AuthSize),
        (forged(&us, magic, 1, 24, &[0; 25]), HeaderError::Message), // WHOAREYOU has no message
        (forged(&us, magic, 2, 131, &[0; 130]), HeaderError::AuthSize),
        (forged(&us, magic, 2, 131, &handshake[..146]), HeaderError::Message),
        (forged(&us, magic, 2, 131, &odd_scheme), HeaderError::Scheme),
        (forged(&us, magic, 2, 432, &[0; 600]), HeaderError::AuthSize), // record of 301 bytes
    ];
    let unmasker = Unmasker::new(&us);
    let mut buf = HeaderBuf::default();
    for (bytes, error) in table {
        assert_eq!(unmasker.open(&bytes, &mut buf).unwrap_err(), error, "{} bytes", bytes.len());
        if matches!(error, HeaderError::Size | HeaderError::Protocol) {
            assert!(!unmasker.looks_like_discv5(&bytes));
        } else {
            assert!(unmasker.looks_like_discv5(&bytes));
        }
    }
    assert!(unmasker.open(&forged(&us, magic, 2, 131, &handshake), &mut buf).is_ok());
}

#[test]
fn a_random_packet_is_answerable_and_a_challenge_is_smaller() {
    let (us, them) = (NodeId([1; 32]), NodeId([2; 32]));
    let mut rng = StdRng::seed_from_u64(5);
    let mut out = BytesMut::new();
    random(&mut out, &mut rng, &them, us, &[3; 12]);
    let mut buf = HeaderBuf::default();
    let packet = Unmasker::new(&them).open(&out, &mut buf).unwrap();
    assert_eq!((packet.auth, packet.nonce), (Auth::Message { src: us }, [3; 12]));
    assert_eq!(out.len(), 91);
    let data = challenge(&mut out, &mut rng, &us, &[3; 12], 5);
    assert_eq!(out.len(), MIN_PACKET);
    let packet = Unmasker::new(&us).open(&out, &mut buf).unwrap();
    assert_eq!(packet.auth, Auth::WhoAreYou { enr_seq: 5, data: &data });
    let mut again = BytesMut::new();
    repeat_challenge(&mut again, &us, &data);
    assert_eq!(again, out);
}

proptest::proptest! {
    #[test]
    fn opening_is_total(after in proptest::collection::vec(proptest::num::u8::ANY, 0..MAX_PACKET), flag in 0u8..4, size in 0u16..600) {
        let us = NodeId([0x42; 32]);
        let mut buf = HeaderBuf::default();
        let _ = Unmasker::new(&us).open(&forged(&us, b"discv5\x00\x01", flag, size, &after), &mut buf);
        let _ = Unmasker::new(&us).open(&after, &mut buf);
    }
}
