//! The checkpoints and the table of connections behind them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
    time::Instant,
};

use super::{
    super::{
        action::{Action, CloseReason},
        refusal::Refusal,
        rules::Rules,
        settings::Slots,
    },
    duplicates::{Conflict, Winner},
    pending::Pending,
    throttle::Throttle,
};
use crate::{
    Now,
    node::{NodeId, RegistrationId, endpoint::Subnet},
    p2p::session::ConnectionId,
};

/// The decision about a connection whose handshake is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a peer.
    Admitted,
    /// The node is a peer over another connection already. Keep this one open, answer its pings and hold its first
    /// message. Send nothing but pings until it is promoted or closed.
    Parked,
}

/// The state of a connection when it closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Unknown, or refused before.
    Forgotten,
    /// In handshake, or parked. The node is set if the connection had claimed an identity.
    Handshake(Option<NodeId>),
    /// A peer's. If it had a parked one, that has taken its place, and the node is still a peer.
    Peer {
        /// Whose.
        id: NodeId,
        /// Whether another connection stands in its place.
        replaced: bool,
    },
}

/// A peer as admission sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerView {
    /// Who.
    pub id: NodeId,
    /// Over which connection.
    pub conn: ConnectionId,
    /// From where.
    pub ip: IpAddr,
    /// Whether they dialed.
    pub inbound: bool,
    /// Since when.
    pub since: Instant,
    /// Whether it takes one of the slots, being on no list.
    pub takes_slot: bool,
}

#[derive(Debug)]
struct Conn {
    ip: IpAddr,
    inbound: bool,
    /// Dialed on request. Such a dial may exceed the share of dialed peers, but not the total.
    asked_for: bool,
    id: Option<NodeId>,
    served: Vec<RegistrationId>,
}

#[derive(Debug)]
struct Peer {
    conn: ConnectionId,
    since: Instant,
    takes_slot: bool,
    conflict: Option<Conflict>,
}

/// The admission of connections. See the [module](super).
#[derive(Debug)]
pub struct Admission {
    throttle: Throttle,
    pending: Pending,
    conns: BTreeMap<ConnectionId, Conn>,
    peers: BTreeMap<NodeId, Peer>,
    conflicts: BTreeSet<(Instant, NodeId)>,
    /// Peers that take slots.
    inbound: usize,
    dialed: usize,
    /// The same by network, where limits apply.
    subnets: HashMap<Subnet, usize>,
    actions: VecDeque<Action>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            throttle: Throttle::new(),
            pending: Pending::default(),
            conns: BTreeMap::new(),
            peers: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            inbound: 0,
            dialed: 0,
            subnets: HashMap::new(),
            actions: VecDeque::new(),
        }
    }
}

impl Admission {
    /// A TCP connection was accepted. Refused: close it without a byte, for there are no keys yet.
    pub fn accept(&mut self, now: Now, rules: &Rules, conn: ConnectionId, ip: IpAddr) -> Result<(), Refusal> {
        rules.check_ip(now, ip)?;
        let exempt = rules.exempt(ip);
        let settings = &rules.settings;
        if !exempt && !self.throttle.pass(now.mono, settings.inbound_throttle, ip) {
            return Err(Refusal::Throttled);
        }
        let pushed_out =
            self.pending.open(conn, ip, exempt, settings.max_pending_inbound, settings.pending_per_subnet)?;
        if let Some(conn) = pushed_out {
            self.conns.remove(&conn);
            self.close(conn, Refusal::PushedOut);
        }
        let opened = Conn { ip, inbound: true, asked_for: false, id: None, served: Vec::new() };
        self.conns.insert(conn, opened);
        Ok(())
    }

    /// A TCP connection that we dialed is open.
    pub fn dialed(&mut self, conn: ConnectionId, ip: IpAddr, asked_for: bool) {
        let opened = Conn { ip, inbound: false, asked_for, id: None, served: Vec::new() };
        self.conns.insert(conn, opened);
    }

    /// The first checkpoint: the other side claims an identity. A node that dialed us has not proved it yet. `listed`:
    /// the node is static or trusted. On a refusal, disconnect with the reason; the connection is forgotten here.
    pub fn identified(
        &mut self,
        now: Now,
        rules: &Rules,
        slots: Slots,
        conn: ConnectionId,
        id: NodeId,
        listed: bool,
    ) -> Result<(), Refusal> {
        self.pending.authenticated(conn);
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.id = Some(id);
        }
        let result = self.check(now, rules, slots, conn, id, listed);
        if result.is_err() {
            self.forget(conn);
        }
        result
    }

    /// The second checkpoint: both Hellos are there. `served` are the registrations that use the connection; with
    /// none, the peer is useless. Refused: as at the first.
    pub fn ready(
        &mut self,
        now: Now,
        rules: &Rules,
        slots: Slots,
        conn: ConnectionId,
        listed: bool,
        served: &[RegistrationId],
    ) -> Result<Verdict, Refusal> {
        let id = self.conns.get(&conn).and_then(|conn| conn.id).ok_or(Refusal::PushedOut)?;
        let useful = if served.is_empty() { Err(Refusal::Useless) } else { Ok(()) };
        if let Err(refusal) = useful.and_then(|()| self.check(now, rules, slots, conn, id, listed)) {
            self.forget(conn);
            return Err(refusal);
        }
        self.pending.close(conn);
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.served = served.to_vec();
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            let conflict = Conflict::new(now.mono, conn);
            self.conflicts.insert((conflict.until, id));
            peer.conflict = Some(conflict);
            self.actions.extend([Action::Probe(peer.conn), Action::Probe(conn)]);
            return Ok(Verdict::Parked);
        }
        let takes_slot = !listed;
        self.peers.insert(id, Peer { conn, since: now.mono, takes_slot, conflict: None });
        self.weigh(&id, rules, true);
        Ok(Verdict::Admitted)
    }

    /// The rules that both checkpoints share.
    fn check(
        &self,
        now: Now,
        rules: &Rules,
        slots: Slots,
        conn: ConnectionId,
        id: NodeId,
        listed: bool,
    ) -> Result<(), Refusal> {
        let conn = self.conns.get(&conn).ok_or(Refusal::PushedOut)?;
        rules.check_node(now, &id)?;
        rules.check_ip(now, conn.ip)?;
        if let Some(peer) = self.peers.get(&id) {
            let same_direction = self.conns.get(&peer.conn).is_none_or(|other| other.inbound == conn.inbound);
            // The node has its slot, so no limit applies to a connection that may take the other's place.
            let crossing = !same_direction && peer.conflict.is_none();
            return if crossing { Ok(()) } else { Err(Refusal::Duplicate) };
        }
        if listed {
            return Ok(());
        }
        if rules.settings.allowlist_only {
            return Err(Refusal::NotOnAllowlist);
        }
        if self.inbound + self.dialed >= slots.total {
            return Err(Refusal::TooManyPeers);
        }
        if conn.inbound && self.inbound >= slots.inbound {
            return Err(Refusal::TooManyInbound);
        }
        if !conn.inbound && !conn.asked_for && self.dialed >= slots.dialed {
            return Err(Refusal::TooManyDialed);
        }
        if self.subnet_full(rules, conn.ip) { Err(Refusal::SubnetFull) } else { Ok(()) }
    }

    /// Whether the address's network has its share of peers.
    #[must_use]
    pub fn subnet_full(&self, rules: &Rules, ip: IpAddr) -> bool {
        let limit = rules.settings.peers_per_subnet;
        let reached = |subnet, limit| self.subnets.get(&subnet).is_some_and(|count| *count >= limit);
        let (narrow, wide) = (Subnet::narrow(ip), Subnet::wide(ip));
        limit != 0
            && !rules.exempt(ip)
            && (reached(narrow, limit) || (wide != narrow && reached(wide, limit.saturating_mul(2))))
    }

    /// A message came after Hello, on a connection that was probed. Others need not be reported.
    pub fn heard(&mut self, now: Now, rules: &Rules, conn: ConnectionId) {
        let Some(id) = self.conns.get(&conn).and_then(|conn| conn.id) else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let Some(conflict) = &mut peer.conflict else { return };
        conflict.standing_answered |= conn == peer.conn;
        conflict.parked_answered |= conn == conflict.parked;
        self.settle(now.mono, rules, &id);
    }

    /// A connection closed, for whatever reason.
    pub fn closed(&mut self, rules: &Rules, conn: ConnectionId) -> Closed {
        let Some(id) = self.conns.get(&conn).map(|conn| conn.id) else { return Closed::Forgotten };
        let peer = id.and_then(|id| Some((id, self.peers.get_mut(&id)?)));
        let closed = match peer {
            Some((id, peer)) if peer.conn == conn => {
                let replaced = peer.conflict.is_some();
                if replaced {
                    self.promote(rules, &id);
                } else {
                    self.weigh(&id, rules, false);
                    self.peers.remove(&id);
                }
                Closed::Peer { id, replaced }
            }
            Some((id, peer)) => {
                if let Some(conflict) = peer.conflict.take_if(|conflict| conflict.parked == conn) {
                    self.conflicts.remove(&(conflict.until, id));
                }
                Closed::Handshake(Some(id))
            }
            None => Closed::Handshake(id),
        };
        self.forget(conn);
        closed
    }

    /// Time passed: conflicts that were not answered are decided.
    pub fn handle_timeout(&mut self, now: Now, rules: &Rules) {
        while let Some((_, id)) = self.conflicts.first().copied().filter(|(until, _)| *until <= now.mono) {
            self.settle(now.mono, rules, &id);
            // Settled ones have been removed already; this keeps the loop finite in every case.
            self.conflicts.retain(|(until, other)| *other != id || *until > now.mono);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.conflicts.first().map(|(until, _)| *until)
    }

    /// The next thing to do: [`Action::Close`], [`Action::Probe`] or [`Action::Promoted`].
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Counts the peers that take slots again, because the lists or the rules changed. The cost is linear in peers,
    /// which is fine for the operator's calls.
    pub fn recount(&mut self, rules: &Rules, listed: impl Fn(&NodeId) -> bool) {
        (self.inbound, self.dialed) = (0, 0);
        self.subnets.clear();
        let ids: Vec<NodeId> = self.peers.keys().copied().collect();
        for id in ids {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.takes_slot = !listed(&id);
            }
            self.weigh(&id, rules, true);
        }
    }

    /// All peers by id.
    pub fn peers(&self) -> impl Iterator<Item = PeerView> {
        self.peers.iter().filter_map(|(id, peer)| {
            let Conn { ip, inbound, .. } = *self.conns.get(&peer.conn)?;
            let Peer { conn, since, takes_slot, .. } = *peer;
            Some(PeerView { id: *id, conn, ip, inbound, since, takes_slot })
        })
    }

    /// Every open connection: its name, address, direction, and node if known.
    pub fn connections(&self) -> impl Iterator<Item = (ConnectionId, IpAddr, bool, Option<NodeId>)> {
        self.conns.iter().map(|(name, conn)| (*name, conn.ip, conn.inbound, conn.id))
    }

    /// Where a connection comes from or goes to.
    #[must_use]
    pub fn address(&self, conn: ConnectionId) -> Option<IpAddr> {
        self.conns.get(&conn).map(|conn| conn.ip)
    }

    /// The node that a connection is with, and whether it dialed.
    #[must_use]
    pub fn identity(&self, conn: ConnectionId) -> Option<(NodeId, bool)> {
        self.conns.get(&conn).and_then(|conn| Some((conn.id?, conn.inbound)))
    }

    /// The registrations that use a connection.
    #[must_use]
    pub fn served(&self, conn: ConnectionId) -> &[RegistrationId] {
        self.conns.get(&conn).map_or(&[], |conn| &conn.served)
    }

    /// The connection that a node is a peer over.
    #[must_use]
    pub fn connection_of(&self, id: &NodeId) -> Option<ConnectionId> {
        self.peers.get(id).map(|peer| peer.conn)
    }

    /// Peers that take inbound slots and peers that take dialed ones.
    #[must_use]
    pub fn used(&self) -> (usize, usize) {
        (self.inbound, self.dialed)
    }

    /// Inbound connections in handshake.
    #[must_use]
    #[cfg(test)]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Has a connection closed that is forgotten here.
    fn close(&mut self, conn: ConnectionId, refusal: Refusal) {
        self.actions.push_back(Action::Close(conn, CloseReason::Refused(refusal)));
    }

    fn forget(&mut self, conn: ConnectionId) {
        self.pending.close(conn);
        self.conns.remove(&conn);
    }

    /// Decides a conflict if it can be decided.
    fn settle(&mut self, now: Instant, rules: &Rules, id: &NodeId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let (Some(conflict), standing) = (peer.conflict, peer.conn) else { return };
        let inbound = self.conns.get(&standing).is_some_and(|conn| conn.inbound);
        let loser = match conflict.decide(now, &rules.local_id, id, inbound) {
            None => return,
            Some(Winner::Standing) => {
                peer.conflict = None;
                self.conflicts.remove(&(conflict.until, *id));
                conflict.parked
            }
            Some(Winner::Parked) => {
                self.promote(rules, id);
                standing
            }
        };
        self.forget(loser);
        self.close(loser, Refusal::Duplicate);
    }

    /// Puts the parked connection in the place of the standing one, which the caller forgets.
    fn promote(&mut self, rules: &Rules, id: &NodeId) {
        self.weigh(id, rules, false);
        if let Some(peer) = self.peers.get_mut(id)
            && let Some(conflict) = peer.conflict.take()
        {
            self.conflicts.remove(&(conflict.until, *id));
            let before = std::mem::replace(&mut peer.conn, conflict.parked);
            self.actions.push_back(Action::Promoted { conn: conflict.parked, before, id: *id });
        }
        self.weigh(id, rules, true);
    }

    /// Adds a peer to the counts, or takes it out.
    fn weigh(&mut self, id: &NodeId, rules: &Rules, add: bool) {
        let Some(peer) = self.peers.get(id).filter(|peer| peer.takes_slot) else { return };
        let Some(conn) = self.conns.get(&peer.conn) else { return };
        let step = |count: usize| if add { count + 1 } else { count.saturating_sub(1) };
        let side = if conn.inbound { &mut self.inbound } else { &mut self.dialed };
        *side = step(*side);
        let (narrow, wide) = (Subnet::narrow(conn.ip), Subnet::wide(conn.ip));
        let wide = Some(wide).filter(|wide| *wide != narrow);
        for subnet in [Some(narrow), wide].into_iter().flatten().filter(|_| !rules.exempt(conn.ip)) {
            match step(self.subnets.get(&subnet).copied().unwrap_or_default()) {
                0 => self.subnets.remove(&subnet),
                count => self.subnets.insert(subnet, count),
            };
        }
    }
}
