//! Recent dials: nodes, addresses, networks.
//!
//! A signed record may name any address, so ten thousand records that name one victim must not become ten thousand
//! connections to it. One IP and port is therefore dialed once per window, for all nodes that claim it, and one network
//! (IPv4 /24, IPv6 /64) a few times.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::super::{expiring::ExpiringMap, refusal::Refusal};
use crate::node::{NodeId, endpoint::Subnet};

/// The most dials that are remembered. 50 dials at a time fill it within a window of 35 s if each ends within 430 ms;
/// further dials are refused until the window moves on.
const MAX_DIALS: usize = 4096;

/// The dials of the last window.
#[derive(Debug)]
pub(super) struct History {
    nodes: ExpiringMap<NodeId, ()>,
    addrs: ExpiringMap<SocketAddr, ()>,
    subnets: HashMap<Subnet, usize>,
    /// The networks and the times at which they leave `subnets`. Windows may change length at run time; then the order
    /// is off by so much, once.
    leaving: VecDeque<(Instant, Subnet)>,
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            nodes: ExpiringMap::new(MAX_DIALS),
            addrs: ExpiringMap::new(MAX_DIALS),
            subnets: HashMap::new(),
            leaving: VecDeque::new(),
        }
    }

    /// Records a dial. `per_subnet`: it counts for its network.
    pub(super) fn dialed(
        &mut self,
        now: Instant,
        window: Duration,
        id: NodeId,
        addr: SocketAddr,
        per_subnet: bool,
    ) {
        self.nodes.insert(now, id, now + window, ());
        self.addrs.insert(now, addr, now + window, ());
        if per_subnet {
            let subnet = Subnet::narrow(addr.ip());
            *self.subnets.entry(subnet).or_default() += 1;
            self.leaving.push_back((now + window, subnet));
        }
    }

    /// Whether a stranger's address may be dialed now. `per_subnet` is the limit, if one applies.
    pub(super) fn check(
        &mut self,
        now: Instant,
        id: &NodeId,
        addr: &SocketAddr,
        per_subnet: Option<usize>,
    ) -> Result<(), Refusal> {
        self.expire(now);
        if self.nodes.get(now, id).is_some() {
            return Err(Refusal::NodeTried);
        }
        if self.addrs.get(now, addr).is_some() {
            return Err(Refusal::AddressTried);
        }
        if let Some(limit) = per_subnet
            && self.subnets.get(&Subnet::narrow(addr.ip())).is_some_and(|count| *count >= limit)
        {
            return Err(Refusal::SubnetTried);
        }
        if self.leaving.len() >= MAX_DIALS {
            return Err(Refusal::QueueFull);
        }
        Ok(())
    }

    fn expire(&mut self, now: Instant) {
        while let Some((_, subnet)) = self.leaving.front().copied().filter(|(end, _)| *end <= now) {
            self.leaving.pop_front();
            if let Some(count) = self.subnets.get_mut(&subnet) {
                *count -= 1;
                if *count == 0 {
                    self.subnets.remove(&subnet);
                }
            }
        }
    }
}
