//! Endpoint proofs: the nodes that answered a ping of ours, each with its address (discv4.md, "Endpoint Proof").
//!
//! FINDNODE and ENRRequest are answered only to a (node, address) that proved itself within a day, because the answer
//! is larger than the request and the address could be forged. The port is no part of the proof, as in geth: routers
//! change it.
//!
//! An entry is made only by a proof, never by an unproven packet. So pushing proofs out takes as many addresses that
//! answer.

use std::{
    net::IpAddr,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::node::NodeId;

/// The validity of a proof, as in geth. discv4.md says 12 h; a node whose proof ends in between must prove itself
/// again, which costs a round trip, so the longer time is better for it.
pub const VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many proofs are remembered, about 5 MB. Nodes of the table are checked often and so never the oldest.
const MAX_BONDS: NonZeroUsize = NonZeroUsize::new(32_768).unwrap();

#[derive(Clone, Copy, Debug)]
struct Bond {
    /// When it last answered a ping of ours: its proof.
    proved: Instant,
    /// When it last pinged us and so got our answer: our proof to it.
    pinged: Option<Instant>,
}

/// The proofs in both directions.
#[derive(Debug)]
pub struct Bonds(LruCache<(NodeId, IpAddr), Bond>);

impl Default for Bonds {
    fn default() -> Self {
        Self(LruCache::sparse(MAX_BONDS))
    }
}

impl Bonds {
    /// The node answered a ping of ours. `pinged`: its own ping came just before.
    pub fn proved(&mut self, now: Instant, id: NodeId, ip: IpAddr, pinged: bool) {
        let bond = self.0.get_or_insert_mut((id, ip), || Bond { proved: now, pinged: None });
        bond.proved = now;
        if pinged {
            bond.pinged = Some(now);
        }
    }

    /// The node pinged us.
    pub fn pinged(&mut self, now: Instant, id: NodeId, ip: IpAddr) {
        if let Some(bond) = self.0.get_mut(&(id, ip)) {
            bond.pinged = Some(now);
        }
    }

    /// Whether the node has proved that it receives at `ip`.
    #[must_use]
    pub fn is_proven(&self, now: Instant, id: NodeId, ip: IpAddr) -> bool {
        self.0.peek(&(id, ip)).is_some_and(|bond| now.saturating_duration_since(bond.proved) < VALIDITY)
    }

    /// Whether the node can be expected to answer us: it pinged us within the validity, so it has our proof.
    #[must_use]
    pub fn knows_us(&self, now: Instant, id: NodeId, ip: IpAddr) -> bool {
        let pinged = self.0.peek(&(id, ip)).and_then(|bond| bond.pinged);
        pinged.is_some_and(|at| now.saturating_duration_since(at) < VALIDITY)
    }

    /// The node did not answer although it should have our proof. It may have restarted without it.
    pub fn forgot_us(&mut self, id: NodeId, ip: IpAddr) {
        if let Some(bond) = self.0.peek_mut(&(id, ip)) {
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
    fn memory_is_bounded() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
        let now = Instant::now();
        let mut bonds = Bonds::default();
        for n in 0..40_000_u32 {
            bonds.proved(now, NodeId([0; 32]), IpAddr::from(n.to_be_bytes()), true);
        }
        assert_eq!(bonds.0.len(), MAX_BONDS.get());
    }
}
