//! Inbound connections in handshake: whose turn it is to go when there are too many.
//!
//! Silent sockets must not lock other nodes out. This matters most for a trusted peer, because it is known as such only
//! after the handshake. So a connection from a network that has few always gets in, and another one is closed for it:
//!
//! - A network (IPv4 /24, IPv6 /64) has a share of the slots. An IPv6 /48, which is the usual size of one site, has
//!   twice that share. Beyond its share it gets no more.
//! - When all slots are taken, the newest connection of the network that has most is closed. The content of its
//!   messages plays no part, because an auth message can be recorded and sent again. If the newcomer's own network has
//!   most, the newcomer is refused, so no network gains a slot by knocking faster.
//! - Where no network has more than two, the oldest that has sent no auth message goes, and if all have, the oldest.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use super::super::refusal::Refusal;
use crate::{node::endpoint::Subnet, p2p::session::ConnectionId};

/// How many times the share of an IPv6 /64 a /48 has.
const SITE_SHARE: usize = 2;

/// So many connections of one site are nothing unusual: it does not have to make room before others do.
const USUAL: usize = 2;

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// When it came, in order of arrival.
    arrival: u64,
    authenticated: bool,
    /// Its network and its site, unless it is exempt. For IPv4 they are the same.
    networks: Option<(Subnet, Subnet)>,
}

/// The slots of connections in handshake.
#[derive(Debug, Default)]
pub(super) struct Pending {
    slots: BTreeMap<ConnectionId, Slot>,
    /// Who goes first: those that have not authenticated, oldest first.
    order: BTreeSet<(bool, u64, ConnectionId)>,
    /// Connections of each /24 and /64.
    subnets: HashMap<Subnet, usize>,
    /// Connections of each site (IPv4 /24, IPv6 /48), by arrival.
    sites: HashMap<Subnet, BTreeSet<(u64, ConnectionId)>>,
    /// The same sites by how many they have.
    sizes: BTreeSet<(usize, Subnet)>,
    arrivals: u64,
}

impl Pending {
    /// Gives a slot to a connection. Returns the connection that must be closed for it.
    pub(super) fn open(
        &mut self,
        conn: ConnectionId,
        ip: IpAddr,
        exempt: bool,
        slots: usize,
        per_subnet: usize,
    ) -> Result<Option<ConnectionId>, Refusal> {
        let networks = (!exempt).then(|| (Subnet::narrow(ip), Subnet::wide(ip)));
        // No limit per network is no limit per site either.
        if per_subnet > 0
            && let Some((subnet, site)) = &networks
        {
            let full = self.subnets.get(subnet).is_some_and(|count| *count >= per_subnet);
            let site_full = site != subnet && self.site(site) >= per_subnet.saturating_mul(SITE_SHARE);
            if full || site_full {
                return Err(Refusal::PendingPerSubnet);
            }
        }
        let mut pushed_out = None;
        if self.slots.len() >= slots.max(1) {
            let conn = self.first_to_go(networks.as_ref().map(|(_, site)| site))?;
            self.close(conn);
            pushed_out = Some(conn);
        }
        self.arrivals += 1;
        let slot = Slot { arrival: self.arrivals, authenticated: false, networks };
        self.order.insert((slot.authenticated, slot.arrival, conn));
        self.slots.insert(conn, slot);
        if let Some((subnet, site)) = networks {
            *self.subnets.entry(subnet).or_default() += 1;
            self.change_site(site, |conns| {
                conns.insert((slot.arrival, conn));
            });
        }
        Ok(pushed_out)
    }

    /// The connection whose slot a newcomer from `site` gets.
    fn first_to_go(&self, site: Option<&Subnet>) -> Result<ConnectionId, Refusal> {
        let newcomers = site.map_or(1, |site| self.site(site) + 1);
        let (most, largest) = match self.sizes.last() {
            Some((count, site)) => (*count, self.sites.get(site)),
            None => (0, None),
        };
        if newcomers > USUAL && newcomers > most {
            return Err(Refusal::PendingPerSubnet);
        }
        if most > USUAL
            && let Some((_, newest)) = largest.and_then(BTreeSet::last)
        {
            return Ok(*newest);
        }
        self.order.first().map(|(_, _, conn)| *conn).ok_or(Refusal::PushedOut)
    }

    /// Connections of a site.
    fn site(&self, site: &Subnet) -> usize {
        self.sites.get(site).map_or(0, BTreeSet::len)
    }

    /// Moves a site to its new place in the order, because its connections changed.
    fn change_site(&mut self, site: Subnet, change: impl FnOnce(&mut BTreeSet<(u64, ConnectionId)>)) {
        let conns = self.sites.entry(site).or_default();
        self.sizes.remove(&(conns.len(), site));
        change(conns);
        if conns.is_empty() {
            self.sites.remove(&site);
        } else {
            self.sizes.insert((conns.len(), site));
        }
    }

    /// The connection has sent an auth message: where no network has many, it is no longer among the first to go.
    pub(super) fn authenticated(&mut self, conn: ConnectionId) {
        if let Some(slot) = self.slots.get_mut(&conn) {
            self.order.remove(&(slot.authenticated, slot.arrival, conn));
            slot.authenticated = true;
            self.order.insert((slot.authenticated, slot.arrival, conn));
        }
    }

    /// The handshake is over, one way or the other.
    pub(super) fn close(&mut self, conn: ConnectionId) {
        let Some(slot) = self.slots.remove(&conn) else { return };
        self.order.remove(&(slot.authenticated, slot.arrival, conn));
        let Some((subnet, site)) = slot.networks else { return };
        if let Some(count) = self.subnets.get_mut(&subnet) {
            *count -= 1;
            if *count == 0 {
                self.subnets.remove(&subnet);
            }
        }
        self.change_site(site, |conns| {
            conns.remove(&(slot.arrival, conn));
        });
    }

    #[cfg(test)]
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
            assert_eq!(pending.open(ConnectionId(n.into()), ip(n), false, 50, 4), Ok(None));
        }
        (0..10).for_each(|n| pending.authenticated(ConnectionId(n)));
        // The oldest silent one goes, then the next; those that authenticated stay.
        assert_eq!(pending.open(ConnectionId(50), ip(50), false, 50, 4), Ok(Some(ConnectionId(10))));
        assert_eq!(pending.open(ConnectionId(51), ip(51), false, 50, 4), Ok(Some(ConnectionId(11))));
        (0..52).for_each(|n| pending.authenticated(ConnectionId(n)));
        assert_eq!(pending.open(ConnectionId(52), ip(52), false, 50, 4), Ok(Some(ConnectionId(0))));
        assert_eq!(pending.len(), 50);
        (0..60).for_each(|n| pending.close(ConnectionId(n)));
        assert!(pending.order.is_empty() && pending.subnets.is_empty());
        assert!(pending.sites.is_empty() && pending.sizes.is_empty());
    }

    #[test]
    fn one_network_pushes_nobody_out() {
        let mut pending = Pending::default();
        let from = |n: u64| IpAddr::from([8, 8, 8, n as u8]);
        let results: Vec<_> =
            (0..1000).map(|n| pending.open(ConnectionId(n), from(n), false, 50, 4)).collect();
        assert!(results[..4].iter().all(|result| *result == Ok(None)));
        assert!(results[4..].iter().all(|result| *result == Err(Refusal::PendingPerSubnet)));
        pending.close(ConnectionId(2));
        assert_eq!(pending.open(ConnectionId(2000), from(77), false, 50, 4), Ok(None));
        assert_eq!(pending.open(ConnectionId(2001), from(77), true, 50, 4), Ok(None));
        assert_eq!(pending.open(ConnectionId(2002), from(77), false, 50, 0), Ok(None), "0 is no limit");
    }

    fn v6(site: u16, net: u16) -> IpAddr {
        [0x2600, 0, site, net, 0, 0, 0, 1].into()
    }

    #[test]
    fn one_site_has_twice_the_share_of_one_line_however_many_lines_it_has() {
        let mut pending = Pending::default();
        let results: Vec<_> =
            (0..1000).map(|n| pending.open(ConnectionId(n.into()), v6(1, n), false, 50, 4)).collect();
        assert!(results[..8].iter().all(|result| *result == Ok(None)));
        assert!(results[8..].iter().all(|result| *result == Err(Refusal::PendingPerSubnet)));
        assert_eq!(pending.open(ConnectionId(2000), v6(2, 1), false, 50, 4), Ok(None));
    }

    /// Sites that hold all slots with recorded auth messages make room for all other networks, and gain nothing by
    /// knocking again.
    #[test]
    fn who_holds_most_makes_room_whatever_it_has_said() {
        let mut pending = Pending::default();
        for n in 0..48_u16 {
            let conn = ConnectionId(n.into());
            assert_eq!(pending.open(conn, v6(n % 6, n), false, 50, 4), Ok(None));
            pending.authenticated(conn);
        }
        assert_eq!(pending.open(ConnectionId(100), ip(1), false, 50, 4), Ok(None));
        assert_eq!(pending.open(ConnectionId(101), ip(2), false, 50, 4), Ok(None));
        // All slots are taken. Eight honest peers, which have sent nothing yet, take those of the sites.
        for n in 0..8_u64 {
            let pushed_out = pending.open(ConnectionId(200 + n), ip(10 + n as u8), false, 50, 4);
            assert!(pushed_out.unwrap().unwrap().0 < 48, "{n}");
        }
        // Each knock of the sites costs one of themselves a slot, or is refused.
        for n in 0..1000_u16 {
            let conn = ConnectionId(1000 + u64::from(n));
            if let Ok(pushed_out) = pending.open(conn, v6(n % 6, 100 + n), false, 50, 4) {
                let ConnectionId(gone) = pushed_out.unwrap();
                assert!(!(48..1000).contains(&gone), "{gone} was honest");
                pending.authenticated(conn);
            }
        }
        for honest in [100, 101].into_iter().chain(200..208) {
            assert!(pending.slots.contains_key(&ConnectionId(honest)), "{honest}");
        }
    }
}
