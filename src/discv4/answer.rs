//! Answers: the nodes and records that we tell others, and the checks of those that others tell us.

use std::net::{IpAddr, SocketAddr};

use ::rlp::RlpStream;

use super::{
    conversation::Peer,
    packet::{
        Expiration, Neighbors, Ping, Pong,
        header::HEADER,
        neighbors::{MAX_PER_PACKET, Neighbor},
    },
};
use crate::{
    kademlia::{Contact, Table, bucket::BUCKET_SIZE},
    node::{Endpoint, NodeId, PublicKey, Reach, Record, endpoint::may_relay, id::keccak256},
};

/// The packets that answer a FINDNODE of `asker` for this key. There is always one, if only an empty one.
pub(super) fn neighbors(
    table: &Table,
    asker: &Peer,
    target: &[u8; 64],
    expiration: Expiration,
) -> Vec<Neighbors> {
    let target = NodeId(keccak256(&[target]));
    // Unproven nodes are included only while there are no better ones: a young network has to start somewhere.
    let any_live = !table.closest(&target, 1, |entry| entry.live).is_empty();
    let closest = table.closest(&target, BUCKET_SIZE, |entry| {
        (entry.live || !any_live)
            && entry.contact.id != asker.0
            && may_relay(asker.1, entry.contact.endpoint.ip)
    });
    let nodes: Vec<Neighbor> = closest
        .into_iter()
        .map(|contact| Neighbor {
            ip: Some(contact.endpoint.ip),
            udp: contact.endpoint.udp,
            tcp: contact.endpoint.tcp,
            key: contact.public_key.to_uncompressed(),
        })
        .collect();
    if nodes.is_empty() {
        return vec![Neighbors { nodes, expiration }];
    }
    nodes.chunks(MAX_PER_PACKET).map(|part| Neighbors { nodes: part.to_vec(), expiration }).collect()
}

/// Whether an unproven address may get both packets for `size` bytes of its own: 2.5 times as much at the most.
pub(super) fn within_bound(size: usize, pong: &Pong, ping: &Ping) -> bool {
    let mut bodies = RlpStream::new();
    pong.append(&mut bodies);
    let pong = bodies.len();
    bodies.clear();
    ping.append(&mut bodies);
    let both = HEADER + pong + HEADER + bodies.len();
    both.saturating_mul(2) <= size.saturating_mul(5)
}

/// A node from another node's answer, if its address may be one of the network.
pub(super) fn believe(reach: &Reach, teller: IpAddr, node: &Neighbor) -> Option<Contact> {
    let accepted = |ip: &IpAddr| reach.may_accept(teller, SocketAddr::new(*ip, node.udp));
    let ip = node.ip.filter(accepted)?;
    let key = PublicKey::from_uncompressed(&node.key).ok()?;
    Some(Contact::new(key, Endpoint { ip, udp: node.udp, tcp: node.tcp }))
}

/// A record that a node sent of itself, if it is its own, not older than the one we have, and has an address that we
/// may accept from it.
pub(super) fn believe_record(table: &Table, teller: &Peer, record: &[u8]) -> Option<Record> {
    let record = Record::decode(record).ok()?;
    let seq = table.get(&teller.0).map_or(0, |entry| entry.contact.seq());
    let may_tell = record.endpoint().is_none_or(|endpoint| may_relay(teller.1, endpoint.ip));
    (record.id() == teller.0 && record.seq() >= seq && may_tell).then_some(record)
}

/// The node with its record. Its address stays the one from which it answers; the record adds the TCP port.
pub(super) fn with_record(contact: Contact, record: &Record) -> Contact {
    let same_family = if contact.endpoint.ip.is_ipv4() { record.endpoint4() } else { record.endpoint6() };
    let tcp = same_family.map_or(0, |endpoint| endpoint.tcp);
    let endpoint = Endpoint { tcp: if tcp == 0 { contact.endpoint.tcp } else { tcp }, ..contact.endpoint };
    Contact { endpoint, record: Some(record.clone()), ..contact }
}
