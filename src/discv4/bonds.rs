//! Endpoint proofs: the nodes that answered a ping of ours, each with its address (discv4.md, "Endpoint Proof").
//!
//! FINDNODE and ENRRequest are answered only to a (node, address) that proved itself within a day, because the answer
//! is larger than the request and the address could be forged. The port is no part of the proof, as in geth: routers
//! change it.
//!
//! An entry is made only by a proof, never by an unproven packet. Ids cost nothing, so an address has at most
//! [`MAX_PER_ADDRESS`] entries and a network at most [`MAX_PER_SUBNET`]; more push out the oldest of their own address
//! or network. So pushing out the proofs of others takes hundreds of networks that answer.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    net::IpAddr,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::node::{AddressClass, NodeId, endpoint::Subnet};

/// The validity of a proof, as in geth. discv4.md says 12 h; a node whose proof ends in between must prove itself
/// again, which costs a round trip, so the longer time is better for it.
pub const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many proofs are remembered, about 5 MB. Nodes of the table are checked often and so never the oldest.
const MAX_BONDS: NonZeroUsize = NonZeroUsize::new(32_768).unwrap();

/// The most proofs of one IP address. Behind an address translation there may be several nodes.
const MAX_PER_ADDRESS: usize = 16;
/// The most proofs of one network (IPv4 /24, IPv6 /64).
const MAX_PER_SUBNET: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Bond {
    /// When it last answered a ping of ours: its proof.
    proved: Instant,
    /// When it last pinged us and so got our answer: our proof to it.
    pinged: Option<Instant>,
}

/// A node id at an IP address.
type Key = (NodeId, IpAddr);

/// The proofs in both directions.
#[derive(Debug)]
pub struct Bonds {
    all: LruCache<Key, Bond>,
    /// The entries of each address, and of each network, in the order of their last proofs. Loopback is in neither.
    per_address: HashMap<IpAddr, VecDeque<Key>>,
    per_subnet: HashMap<Subnet, VecDeque<Key>>,
}

impl Default for Bonds {
    fn default() -> Self {
        let all = LruCache::sparse(MAX_BONDS);
        Self { all, per_address: HashMap::new(), per_subnet: HashMap::new() }
    }
}

/// Removes a key from the queue of `of`, and the queue if it is empty.
fn unlink<K: Eq + Hash>(queues: &mut HashMap<K, VecDeque<Key>>, of: &K, key: &Key) {
    let Some(queue) = queues.get_mut(of) else { return };
    queue.retain(|other| other != key);
    if queue.is_empty() {
        queues.remove(of);
    }
}

/// Appends a key to the queue of `of`. Returns the oldest one if there are more than `max`.
fn link<K: Eq + Hash>(queues: &mut HashMap<K, VecDeque<Key>>, of: K, key: Key, max: usize) -> Option<Key> {
    let queue = queues.entry(of).or_default();
    queue.push_back(key);
    if queue.len() > max { queue.front().copied() } else { None }
}

impl Bonds {
    /// The node answered a ping of ours. `pinged`: its own ping came just before.
    pub fn proved(&mut self, now: Instant, id: NodeId, ip: IpAddr, pinged: bool) {
        let key = (id, ip);
        let before = self.all.get(&key).and_then(|bond| bond.pinged);
        let bond = Bond { proved: now, pinged: if pinged { Some(now) } else { before } };
        // `push` returns the replaced bond of the same key, too.
        if let Some((forgotten, _)) = self.all.push(key, bond) {
            self.unlink(&forgotten);
        }
        if AddressClass::of(ip) == AddressClass::Loopback {
            return;
        }
        let of_address = link(&mut self.per_address, ip, key, MAX_PER_ADDRESS);
        if let Some(oldest) = of_address {
            self.forget(&oldest);
        }
        let of_subnet = link(&mut self.per_subnet, Subnet::narrow(ip), key, MAX_PER_SUBNET);
        if let Some(oldest) = of_subnet {
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, key: &Key) {
        self.all.pop(key);
        self.unlink(key);
    }

    fn unlink(&mut self, key: &Key) {
        unlink(&mut self.per_address, &key.1, key);
        unlink(&mut self.per_subnet, &Subnet::narrow(key.1), key);
    }

    /// The node pinged us.
    pub fn pinged(&mut self, now: Instant, id: NodeId, ip: IpAddr) {
        if let Some(bond) = self.all.get_mut(&(id, ip)) {
            bond.pinged = Some(now);
        }
    }

    /// Whether the node has proved that it receives at `ip`.
    #[must_use]
    pub fn is_proven(&self, now: Instant, id: NodeId, ip: IpAddr) -> bool {
        self.all.peek(&(id, ip)).is_some_and(|bond| now.saturating_duration_since(bond.proved) < VALIDITY)
    }

    /// Whether the node can be expected to answer us: it pinged us within the validity, so it has our proof.
    #[must_use]
    pub fn knows_us(&self, now: Instant, id: NodeId, ip: IpAddr) -> bool {
        let pinged = self.all.peek(&(id, ip)).and_then(|bond| bond.pinged);
        pinged.is_some_and(|at| now.saturating_duration_since(at) < VALIDITY)
    }

    /// The node did not answer although it should have our proof. It may have restarted without it.
    pub fn forgot_us(&mut self, id: NodeId, ip: IpAddr) {
        if let Some(bond) = self.all.peek_mut(&(id, ip)) {
            bond.pinged = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_are_per_id_and_address_and_end_after_a_day() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let (id, other) = (NodeId([1; 32]), NodeId([2; 32]));
        let (ip, elsewhere) = (IpAddr::from([1, 2, 3, 4]), IpAddr::from([1, 2, 3, 5]));
        let mut bonds = Bonds::default();
        bonds.pinged(now, id, ip);
        assert!(!bonds.knows_us(now, id, ip), "a stranger's ping leaves no trace");
        bonds.proved(now, id, ip, false);
        assert!(bonds.is_proven(now, id, ip));
        assert!(!bonds.is_proven(now, id, elsewhere));
        assert!(!bonds.is_proven(now, other, ip));
        assert!(!bonds.knows_us(now, id, ip));
        bonds.pinged(now, id, ip);
        assert!(bonds.knows_us(now, id, ip));
        bonds.forgot_us(id, ip);
        assert!(!bonds.knows_us(now, id, ip));
        let day = now + VALIDITY;
        assert!(!bonds.is_proven(day, id, ip));
        bonds.proved(day, id, ip, true);
        assert!(bonds.is_proven(day, id, ip) && bonds.knows_us(day, id, ip));
    }

    #[test]
    fn an_address_and_a_network_push_out_only_their_own() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let id = |n: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            NodeId(id)
        };
        let mut bonds = Bonds::default();
        let (neighbour, other) = (IpAddr::from([1, 2, 3, 9]), IpAddr::from([1, 2, 4, 1]));
        bonds.proved(now, id(0), neighbour, true);
        bonds.proved(now, id(0), other, true);
        // One address with ever new ids.
        let ip = IpAddr::from([1, 2, 3, 4]);
        for n in 1..1000 {
            bonds.proved(now, id(n), ip, false);
        }
        let proven = |bonds: &Bonds, ip| (0..1000).filter(|n| bonds.is_proven(now, id(*n), ip)).count();
        assert_eq!((proven(&bonds, ip), proven(&bonds, neighbour)), (MAX_PER_ADDRESS, 1));
        assert!(bonds.is_proven(now, id(999), ip), "the newest stay");
        // A node that proves itself again is not the oldest any more.
        bonds.proved(now, id(999 - 15), ip, false);
        bonds.proved(now, id(1000), ip, false);
        assert!(bonds.is_proven(now, id(999 - 15), ip) && !bonds.is_proven(now, id(999 - 14), ip));
        // The whole network.
        for host in 0..=255 {
            for n in 0..16 {
                bonds.proved(now, id(n), IpAddr::from([1, 2, 3, host]), false);
            }
        }
        assert_eq!(bonds.all.len(), MAX_PER_SUBNET + 1);
        assert!(bonds.is_proven(now, id(0), other) && bonds.knows_us(now, id(0), other), "another network");
        assert_eq!(bonds.per_subnet.len(), 2);
        assert_eq!(bonds.per_address.values().map(VecDeque::len).sum::<usize>(), bonds.all.len());
    }

    #[test]
    fn memory_is_bounded() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut bonds = Bonds::default();
        for n in 0..40_000_u32 {
            bonds.proved(now, NodeId([0; 32]), IpAddr::from((n << 8).to_be_bytes()), true);
        }
        assert_eq!(bonds.all.len(), MAX_BONDS.get());
        assert_eq!(bonds.per_address.len(), MAX_BONDS.get());
    }
}
