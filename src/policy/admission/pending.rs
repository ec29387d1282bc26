//! Inbound connections in handshake: whose turn it is to go when there are too many.
//!
//! Silent sockets must lock nobody out, least of all a trusted peer, who is known as such only after it has
//! authenticated. So the newest always gets in: when all slots are taken, the oldest that has not authenticated is
//! closed, and if all have, the oldest of those. A network (IPv4 /24, IPv6 /64) has its share and no more; otherwise one
//! network could push everybody out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::{super::refusal::Refusal, ConnId};
use crate::node::endpoint::Subnet;

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// When it came, in order of arrival.
    arrival: u64,
    authenticated: bool,
    /// Its network, unless it is exempt.
    subnet: Option<Subnet>,
}

/// The slots of connections in handshake.
#[derive(Debug, Default)]
pub(super) struct Pending {
    slots: BTreeMap<ConnId, Slot>,
    /// Who goes first: those that have not authenticated, oldest first.
    order: BTreeSet<(bool, u64, ConnId)>,
    subnets: HashMap<Subnet, usize>,
    arrivals: u64,
}

impl Pending {
    /// Gives a slot to a connection, and says who had to go for it.
    pub(super) fn open(
        &mut self,
        conn: ConnId,
        ip: IpAddr,
        exempt: bool,
        slots: usize,
        per_subnet: usize,
    ) -> Result<Option<ConnId>, Refusal> {
        let subnet = (!exempt).then(|| Subnet::narrow(ip));
        if let Some(subnet) = &subnet
            && per_subnet != 0
            && self.subnets.get(subnet).is_some_and(|count| *count >= per_subnet)
        {
            return Err(Refusal::PendingPerSubnet);
        }
        let pushed_out = if self.slots.len() >= slots.max(1) { self.order.first().copied() } else { None };
        if let Some((_, _, conn)) = pushed_out {
            self.close(conn);
        }
        self.arrivals += 1;
        let slot = Slot { arrival: self.arrivals, authenticated: false, subnet };
        self.order.insert((slot.authenticated, slot.arrival, conn));
        self.slots.insert(conn, slot);
        if let Some(subnet) = subnet {
            *self.subnets.entry(subnet).or_default() += 1;
        }
        Ok(pushed_out.map(|(_, _, conn)| conn))
    }

    /// The connection has authenticated: it is no longer among the first to go.
    pub(super) fn authenticated(&mut self, conn: ConnId) {
        if let Some(slot) = self.slots.get_mut(&conn) {
            self.order.remove(&(slot.authenticated, slot.arrival, conn));
            slot.authenticated = true;
            self.order.insert((slot.authenticated, slot.arrival, conn));
        }
    }

    /// The handshake is over, one way or the other.
    pub(super) fn close(&mut self, conn: ConnId) {
        let Some(slot) = self.slots.remove(&conn) else { return };
        self.order.remove(&(slot.authenticated, slot.arrival, conn));
        if let Some(subnet) = slot.subnet
            && let Some(count) = self.subnets.get_mut(&subnet)
        {
            *count -= 1;
            if *count == 0 {
                self.subnets.remove(&subnet);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        [8, n, 0, 1].into()
    }

    #[test]
    fn silent_sockets_lock_nobody_out() {
        let mut pending = Pending::default();
        for n in 0..50 {
            assert_eq!(pending.open(ConnId(n.into()), ip(n), false, 50, 4), Ok(None));
        }
        (0..10).for_each(|n| pending.authenticated(ConnId(n)));
        // The oldest silent one goes, then the next; those that authenticated stay.
        assert_eq!(pending.open(ConnId(50), ip(50), false, 50, 4), Ok(Some(ConnId(10))));
        assert_eq!(pending.open(ConnId(51), ip(51), false, 50, 4), Ok(Some(ConnId(11))));
        (0..52).for_each(|n| pending.authenticated(ConnId(n)));
        assert_eq!(pending.open(ConnId(52), ip(52), false, 50, 4), Ok(Some(ConnId(0))));
        assert_eq!(pending.len(), 50);
        (0..60).for_each(|n| pending.close(ConnId(n)));
        assert!(pending.order.is_empty() && pending.subnets.is_empty());
    }

    #[test]
    fn one_network_pushes_nobody_out() {
        let mut pending = Pending::default();
        let from = |n: u64| IpAddr::from([8, 8, 8, n as u8]);
        let results: Vec<_> = (0..1000).map(|n| pending.open(ConnId(n), from(n), false, 50, 4)).collect();
        assert!(results[..4].iter().all(|result| *result == Ok(None)));
        assert!(results[4..].iter().all(|result| *result == Err(Refusal::PendingPerSubnet)));
        pending.close(ConnId(2));
        assert_eq!(pending.open(ConnId(2000), from(77), false, 50, 4), Ok(None));
        assert_eq!(pending.open(ConnId(2001), from(77), true, 50, 4), Ok(None));
        assert_eq!(pending.open(ConnId(2002), from(77), false, 50, 0), Ok(None), "0 is no limit");
    }
}
