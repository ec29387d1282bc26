//! The sessions that are kept when many nodes shake hands, and that nonces never repeat.

use std::{collections::HashSet, net::SocketAddr};

use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    discv5::header::CHALLENGE_DATA,
    node::{NodeId, NodeKey, RecordBuilder},
};

#[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
fn start() -> Instant {
    Instant::now()
}

fn record() -> Option<Record> {
    RecordBuilder::new(1).sign(&NodeKey::random(&mut StdRng::seed_from_u64(1))).ok()
}

fn keys(secret: u8) -> SessionKeys {
    SessionKeys::derive(&[secret; 33], &[0; CHALLENGE_DATA], &NodeId([1; 32]), &NodeId([2; 32]))
}

fn peer(id: u32, ip: [u8; 4]) -> Peer {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&id.to_be_bytes());
    Peer::new(NodeId(bytes), SocketAddr::from((ip, 30303)))
}

#[test]
fn strangers_push_out_strangers_only() {
    let now = start();
    let record = record();
    let mut sessions = Sessions::new(128);
    let (asked, answering) = (peer(1, [9, 9, 9, 9]), peer(2, [9, 9, 8, 9]));
    let session = |role| Session::new(keys(1), role, record.clone(), now);
    sessions.insert(asked, session(Role::Initiator), Role::Initiator, false);
    sessions.insert(answering, session(Role::Recipient), Role::Recipient, false);
    sessions.answered(&answering, false);
    for id in 0..10_000_u32 {
        let [_, b, c, d] = id.to_be_bytes();
        let peer = peer(id + 10, [20 + b, c, d, 1]);
        sessions.insert(peer, session(Role::Recipient), Role::Recipient, false);
    }
    assert_eq!(sessions.len(), (2, 64));
    assert!(sessions.get(&asked, now).is_some() && sessions.get(&answering, now).is_some());
    // A new handshake of a peer that we work with stays where it was.
    sessions.insert(asked, session(Role::Recipient), Role::Recipient, false);
    assert_eq!(sessions.len(), (2, 64));
}

#[test]
fn a_subnet_pushes_out_its_own_and_loopback_is_exempt() {
    let now = start();
    let record = record();
    let session = || Session::new(keys(1), Role::Recipient, record.clone(), now);
    let mut sessions = Sessions::new(1024);
    let first = peer(0, [1, 2, 3, 4]);
    let other = peer(1, [1, 2, 4, 4]);
    sessions.insert(first, session(), Role::Recipient, false);
    sessions.insert(other, session(), Role::Recipient, false);
    for id in 2..200 {
        sessions.insert(peer(id, [1, 2, 3, 5]), session(), Role::Recipient, false);
    }
    assert_eq!(sessions.len(), (0, MAX_PER_SUBNET + 1));
    assert!(sessions.get(&first, now).is_none());
    assert!(sessions.get(&other, now).is_some());
    for id in 0..200 {
        sessions.insert(peer(id, [127, 0, 0, 1]), session(), Role::Recipient, true);
    }
    assert_eq!(sessions.len(), (0, MAX_PER_SUBNET + 1 + 200));
}

#[test]
fn nonces_are_unique_and_end() {
    let now = start();
    let mut rng = StdRng::seed_from_u64(2);
    let mut session = Session::new(keys(1), Role::Initiator, record(), now);
    let mut seen = HashSet::new();
    for _ in 0..1000 {
        assert!(seen.insert(session.seal(&mut rng).unwrap().1));
    }
    session.sealed = u32::MAX - 1;
    assert!(session.seal(&mut rng).is_some());
    assert!(session.seal(&mut rng).is_none(), "a count must not come again");
    let mut sessions = Sessions::new(4);
    let peer = peer(1, [1, 2, 3, 4]);
    sessions.insert(peer, session, Role::Initiator, false);
    assert!(sessions.get(&peer, now).is_none() && sessions.len() == (0, 0));
    sessions.insert(peer, Session::new(keys(1), Role::Initiator, record(), now), Role::Initiator, false);
    assert!(sessions.get(&peer, now + MAX_AGE).is_some());
    assert!(sessions.get(&peer, now + MAX_AGE * 2).is_none(), "too old");
}

#[test]
fn after_a_double_handshake_both_sides_still_read() {
    let now = start();
    let mut rng = StdRng::seed_from_u64(3);
    let (mut a, mut b) = (Sessions::new(4), Sessions::new(4));
    let (at_a, at_b) = (peer(1, [1, 1, 1, 1]), peer(2, [2, 2, 2, 2]));
    // Each side ends with another of the two handshakes.
    for (sessions, peer, order) in [(&mut a, at_b, [1, 2]), (&mut b, at_a, [2, 1])] {
        for secret in order {
            let ours = (peer == at_b) == (secret == 1);
            let role = if ours { Role::Initiator } else { Role::Recipient };
            sessions.insert(peer, Session::new(keys(secret), role, record(), now), role, false);
        }
    }
    let mut packet = bytes::BytesMut::from(&b"ad message"[..]);
    let (key, nonce) = a.get(&at_b, now).unwrap().seal(&mut rng).unwrap();
    key.seal(&nonce, &mut packet, 3);
    let mut plaintext = Vec::new();
    assert!(b.get(&at_a, now).unwrap().open(&nonce, &packet[..3], &packet[3..], &mut plaintext));
    assert_eq!(plaintext, b"message");
    packet[5] ^= 1;
    assert!(!b.get(&at_a, now).unwrap().open(&nonce, &packet[..3], &packet[3..], &mut plaintext));
}
