//! A peer of discv5 is an id at an endpoint, and the memory for peers is bounded in all and per subnet.
//!
//! Sessions and challenges belong to the pair of node id and UDP endpoint: an id at another address has to prove itself
//! there. Strangers choose both, so every store of peers has a capacity, removes the least recently used first, and
//! counts its peers by subnet (IPv4 /24, IPv6 /64).

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
};

use lru::LruCache;

use crate::node::{
    NodeId,
    endpoint::{Subnet, canonical},
};

/// A node id at a UDP endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The id that it claims.
    pub id: NodeId,
    /// The UDP endpoint from which its packets come and to which ours go.
    pub addr: SocketAddr,
}

impl Peer {
    /// The peer `id` at `addr`, with an IPv4-mapped address as the IPv4 address that it is.
    #[must_use]
    pub fn new(id: NodeId, addr: SocketAddr) -> Self {
        Self { id, addr: canonical_addr(addr) }
    }
}

/// IPv4-mapped IPv6 addresses as IPv4; all others unchanged (an IPv6 scope is kept: link-local needs it).
#[must_use]
pub fn canonical_addr(addr: SocketAddr) -> SocketAddr {
    let ip = canonical(addr.ip());
    if ip == addr.ip() { addr } else { SocketAddr::new(ip, addr.port()) }
}

/// A bounded store of one value per peer.
#[derive(Debug)]
pub struct PeerStore<V> {
    entries: LruCache<Peer, V>,
    /// The peers of each subnet that has any, oldest first. Their owner keeps these lists short.
    subnets: HashMap<Subnet, VecDeque<Peer>>,
}

impl<V> PeerStore<V> {
    /// A store for up to `capacity` peers.
    #[must_use]
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self { entries: LruCache::sparse(capacity), subnets: HashMap::new() }
    }

    /// How many peers are stored.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The value of `peer`, which counts as used now.
    pub fn get_mut(&mut self, peer: &Peer) -> Option<&mut V> {
        self.entries.get_mut(peer)
    }

    /// The value of `peer`, without using it.
    #[must_use]
    pub fn peek(&self, peer: &Peer) -> Option<&V> {
        self.entries.peek(peer)
    }

    /// The least recently used peer.
    #[must_use]
    pub fn oldest(&self) -> Option<(&Peer, &V)> {
        self.entries.peek_lru()
    }

    /// How many counted peers share the subnet of `ip`.
    #[must_use]
    pub fn in_subnet(&self, ip: IpAddr) -> usize {
        self.subnets.get(&Subnet::narrow(ip)).map_or(0, VecDeque::len)
    }

    /// The counted peer that was inserted first of those in the subnet of `ip`.
    #[must_use]
    pub fn oldest_in_subnet(&self, ip: IpAddr) -> Option<Peer> {
        self.subnets.get(&Subnet::narrow(ip))?.front().copied()
    }

    /// Stores the value of `peer`; an earlier one is replaced. Returns the peer that was removed to make room.
    /// A peer that is not `counted` does not count towards its subnet.
    pub fn insert(&mut self, peer: Peer, value: V, counted: bool) -> Option<Peer> {
        self.discount(&peer);
        if counted {
            self.subnets.entry(Subnet::narrow(peer.addr.ip())).or_default().push_back(peer);
        }
        // `push` returns the replaced entry of the same peer, too.
        let (forgotten, _) = self.entries.push(peer, value)?;
        if forgotten == peer {
            return None;
        }
        self.discount(&forgotten);
        Some(forgotten)
    }

    /// Removes `peer` and returns its value.
    pub fn remove(&mut self, peer: &Peer) -> Option<V> {
        let value = self.entries.pop(peer)?;
        self.discount(peer);
        Some(value)
    }

    fn discount(&mut self, peer: &Peer) {
        let subnet = Subnet::narrow(peer.addr.ip());
        let Some(peers) = self.subnets.get_mut(&subnet) else { return };
        peers.retain(|counted| counted != peer);
        if peers.is_empty() {
            self.subnets.remove(&subnet);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u8, addr: &str) -> Peer {
        Peer::new(NodeId([id; 32]), addr.parse().unwrap())
    }

    #[test]
    fn the_least_recently_used_peer_is_removed_and_subnets_are_counted() {
        let mut store = PeerStore::new(NonZeroUsize::new(3).unwrap());
        let [a, b, c, d] = [
            peer(1, "1.2.3.4:1"),
            peer(2, "1.2.3.9:1"),
            peer(3, "[::ffff:1.2.3.4]:1"),
            peer(4, "[2a00::1]:1"),
        ];
        for (peer, in_subnet) in [(a, 1), (b, 2), (c, 3)] {
            assert_eq!(store.insert(peer, (), true), None);
            assert_eq!(store.in_subnet(peer.addr.ip()), in_subnet);
        }
        assert_eq!(store.insert(b, (), true), None, "replaced");
        assert_eq!(store.in_subnet(b.addr.ip()), 3);
        store.get_mut(&a);
        assert_eq!(store.oldest_in_subnet(a.addr.ip()), Some(a));
        assert_eq!(store.insert(d, (), true), Some(c), "least recently used");
        assert_eq!((store.in_subnet(a.addr.ip()), store.in_subnet(d.addr.ip())), (2, 1));
        for peer in [a, b, d] {
            assert!(store.remove(&peer).is_some());
            assert!(store.remove(&peer).is_none());
        }
        assert!(store.len() == 0 && store.subnets.is_empty(), "nothing is left behind");
    }

    #[test]
    fn uncounted_peers_do_not_fill_their_subnet() {
        let mut store = PeerStore::new(NonZeroUsize::new(9).unwrap());
        let a = peer(1, "127.0.0.1:1");
        store.insert(a, (), false);
        assert_eq!(store.in_subnet(a.addr.ip()), 0);
        store.insert(a, (), true);
        store.insert(a, (), false);
        assert_eq!((store.in_subnet(a.addr.ip()), store.len()), (0, 1));
    }
}
