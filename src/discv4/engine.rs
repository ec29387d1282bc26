//! The engine: one discv4 node without a socket and without a clock.
//!
//! It has the shape of all engines (see the crate's docs), and the same public shape as discv5's. The owner feeds
//! datagrams and timeouts, calls commands, and after each of these takes all actions and packets.
//! [`Engine::handle_datagram`] also returns the outcome of the datagram.
//!
//! [`Overlay`] decides which node is asked next, and why. This engine adds the way in which discv4 asks it: a node
//! proves its address first, then it is asked one thing at a time ([`Conversations`]).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Instant,
};

use ::rlp::RlpStream;
use bytes::BytesMut;
use rand::rngs::StdRng;

use super::{
    ClockSkew,
    action::{Action, Config},
    admissions::Admissions,
    answer,
    bonds::Bonds,
    checks::{Checked, Checks},
    conversation::{Ask, Conversations, Due, Peer, RequestEnded},
    crypto::Crypto,
    outbox::Outbox,
    packet::{
        EnrRequest, EnrResponse, Expiration, FindNode, Neighbors, Packet, Ping, Pong, Type, WireEndpoint,
        seal,
    },
    verdict::{Counters, Verdict},
};
use crate::{
    Now,
    kademlia::{
        CallError, Contact, Overlay, Ponged, Protocol, Query, QueryId, Source, Table, Target,
        searches::{Question, SearchId, Wants},
    },
    node::{AddressClass, Endpoint, Record, endpoint::canonical},
};

/// How often one call of `handle_timeout` checks again for timers that have become due meanwhile.
const MAX_ROUNDS: usize = 16;

/// Our endpoint while none is known.
const UNKNOWN: Endpoint = Endpoint { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), udp: 0, tcp: 0 };

/// One discv4 node.
#[derive(Debug)]
pub struct Engine<C> {
    crypto: C,
    /// Our record. Its sequence number goes out with every PING and PONG.
    record: Record,
    overlay: Overlay<ClockSkew>,
    checks: Checks,
    bonds: Bonds,
    conversations: Conversations,
    admissions: Admissions,
    outbox: Outbox,
    counters: Counters,
}

impl<C: Crypto> Engine<C> {
    /// The engine of the node whose record is `record` and whose key `crypto` has. Refreshes its table at once.
    #[must_use]
    pub fn new(now: Now, config: Config, crypto: C, record: Record, mut rng: StdRng) -> Self {
        let Config { restrict, bootnodes, rates } = config;
        Self {
            overlay: Overlay::new(now, Protocol::V4, &record, restrict, bootnodes, &mut rng),
            checks: Checks::new(rates),
            bonds: Bonds::default(),
            conversations: Conversations::default(),
            admissions: Admissions::default(),
            outbox: Outbox::default(),
            counters: Counters::default(),
            crypto,
            record,
        }
    }

    /// Takes a datagram and returns its outcome.
    pub fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) -> Verdict {
        let from = SocketAddr::new(canonical(from.ip()), from.port());
        let verdict = self.receive(now, from, bytes).err().unwrap_or(Verdict::Accepted);
        self.counters.count(verdict);
        self.drive(now);
        verdict
    }

    /// Carries out all timers that are due.
    pub fn handle_timeout(&mut self, now: Now) {
        // One timer may make another due at once: the end of the first refresh admits the nodes that waited for it. A
        // time left in the past would wake the driver again for nothing. The bound is far above the number of timers
        // that one round can set, so a mistake of ours costs a wake-up and not the thread.
        for _ in 0..MAX_ROUNDS {
            self.do_due(now);
            if self.poll_timeout().is_none_or(|at| at > now.mono) {
                return;
            }
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let times = [self.conversations.next_deadline(), self.next_admission(), self.overlay.poll_timeout()];
        times.into_iter().flatten().min()
    }

    /// The next action.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.overlay.poll_action()
    }

    /// Writes the next packet into `out` and returns where it goes.
    pub fn poll_transmit(&mut self, _now: Now, out: &mut BytesMut) -> Option<SocketAddr> {
        self.outbox.pop(out)
    }

    /// Answers a caller's query by an action that names `id`, or refuses it at once.
    pub fn query(&mut self, now: Now, id: QueryId, query: &Query) -> Result<(), CallError> {
        match query {
            Query::Ping(node) => self.ping(now, id, node),
            Query::Lookup(target) => self.lookup(now, id, *target),
            Query::Resolve(target) => self.resolve(now, id, *target, None),
        }
    }

    /// Pings a node; ends in [`Action::PingResult`].
    pub fn ping(&mut self, now: Now, query: QueryId, node: &Contact) -> Result<(), CallError> {
        self.ask(now, node, Ask::Ping(query))
    }

    /// Looks for the nodes closest to a key, any 64 bytes; ends in [`Action::LookupDone`].
    pub fn lookup(&mut self, now: Now, query: QueryId, target: impl Into<Target>) -> Result<(), CallError> {
        let begun = self.overlay.lookup(query, target.into());
        self.drive(now);
        begun
    }

    /// Finds a node's newest record and address; ends in [`Action::Resolved`]. `hint`: a possible address. Without a
    /// key, a node that is neither hinted nor in the table cannot be found.
    pub fn resolve(
        &mut self,
        now: Now,
        query: QueryId,
        target: impl Into<Target>,
        hint: Option<Contact>,
    ) -> Result<(), CallError> {
        let begun = self.overlay.resolve(query, target.into(), hint);
        self.drive(now);
        begun
    }

    /// How many [`Action::Discovered`] are wanted from now on. None are looked for while it is zero.
    pub fn set_demand(&mut self, now: Now, wanted: usize) {
        self.overlay.set_demand(wanted);
        self.drive(now);
    }

    /// Replaces our record. It must be signed by the same key.
    pub fn set_local_record(&mut self, record: Record) {
        self.overlay.set_local_record(&record);
        self.record = record;
    }

    /// Adds a node that every refresh starts from, and refreshes.
    pub fn add_bootnode(&mut self, now: Now, node: Contact) {
        self.overlay.add_bootnode(now, node);
    }

    /// Offers a node of the node database to the table.
    pub fn add_seed(&mut self, now: Now, node: Contact) {
        self.overlay.offer(now, node, Source::Database);
        self.drive(now);
    }

    /// The table, for its snapshot.
    #[must_use]
    pub fn table(&self) -> &Table {
        self.overlay.table()
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the engine's indices agree with each other; for tests and fuzzing.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_consistent(&self) -> bool {
        self.conversations.is_consistent() && self.admissions.is_consistent() && self.overlay.is_consistent()
    }

    fn do_due(&mut self, now: Now) {
        while let Some((peer, due)) = self.conversations.pop_due(now.mono) {
            self.due(now, peer, due);
        }
        while self.overlay.takes_inbound()
            && let Some(contact) = self.admissions.pop_due(now.mono)
        {
            self.overlay.offer(now, contact, Source::Inbound);
        }
        while let Some(contact) = self.overlay.poll_check(now) {
            if self.ask(now, &contact, Ask::Check).is_err() {
                self.overlay.check_skipped(&contact.id);
            }
        }
        self.overlay.handle_timeout(now);
        self.drive(now);
    }

    /// When the next node comes to the table. Before the first refresh is over they all wait: a node that hears us
    /// start up shall not be first in every bucket, but neither shall it have to come again (go-ethereum#30243).
    fn next_admission(&self) -> Option<Instant> {
        self.admissions.next().filter(|_| self.overlay.takes_inbound())
    }

    /// Sends the requests of the searches, and passes on their results and the changes of the table.
    fn drive(&mut self, now: Now) {
        while let Some(question) = self.overlay.poll_question(now) {
            if self.ask_for(now, &question).is_err() {
                self.overlay.unasked(&question);
            }
        }
        self.counters.too_busy += self.overlay.settle(now);
    }

    /// Sends a search's request to a node.
    fn ask_for(&mut self, now: Now, question: &Question) -> Result<(), CallError> {
        let ask = match question.wants {
            Wants::Nodes => Ask::FindNode(question.search),
            Wants::Record => Ask::Record(Some(question.search)),
        };
        self.ask(now, &question.to, ask)
    }

    /// Sends a request to a node. Returns the reason if it cannot be sent.
    fn ask(&mut self, now: Now, contact: &Contact, ask: Ask) -> Result<(), CallError> {
        // A proof is asked for where the node's own ping came from. A caller's ping is sent in any case.
        let addr = match ask {
            Ask::Prove { .. } => self.overlay.may_answer(now, contact),
            Ask::Ping(_) => self.overlay.may_ask(contact),
            _ => self.overlay.may_search(now, contact),
        }?;
        let Ok(peer) = self.conversations.ask(contact, addr, ask) else {
            self.counters.too_busy += 1;
            return Err(CallError::QueueFull);
        };
        self.advance(now, peer);
        Ok(())
    }

    /// Sends all packets that can be sent now.
    fn advance(&mut self, now: Now, peer: Peer) {
        let knows_us = self.bonds.knows_us(now.mono, peer.0, peer.1);
        let steps = self.conversations.next_steps(now.mono, peer, knows_us);
        if let Some((to, repeat)) = steps.ping {
            self.send_ping(now, peer, to, repeat);
        }
        if let Some((to, ask)) = steps.request {
            self.send_request(now, peer, to, ask);
        }
        self.conversations.end_if_idle(&peer);
    }

    fn send_ping(&mut self, now: Now, peer: Peer, to: SocketAddr, repeat: bool) {
        let ping = self.our_ping(now, to);
        let packet = self.seal(Type::Ping, |stream| ping.append(stream));
        self.outbox.push_sealed(&mut self.counters, to, &packet);
        self.conversations.opened_ping(now.mono, peer, to, packet, repeat);
    }

    fn our_ping(&self, now: Now, to: SocketAddr) -> Ping {
        Ping {
            from: self.record.endpoint().unwrap_or(UNKNOWN).into(),
            to: WireEndpoint { ip: Some(to.ip()), udp: to.port(), tcp: 0 },
            expiration: Expiration::from_now(now.unix),
            enr_seq: Some(self.record.seq()),
        }
    }

    fn send_request(&mut self, now: Now, peer: Peer, to: SocketAddr, ask: Ask) {
        let expiration = Expiration::from_now(now.unix);
        let packet = match &ask {
            Ask::FindNode(search) => {
                // The lookup may have ended while the question waited.
                let Some(target) = self.overlay.target(*search).and_then(|target| target.key()) else {
                    return self.advance(now, peer);
                };
                self.seal(Type::FindNode, |stream| FindNode { target, expiration }.append(stream))
            }
            _ => self.seal(Type::EnrRequest, |stream| EnrRequest { expiration }.append(stream)),
        };
        self.outbox.push_sealed(&mut self.counters, to, &packet);
        self.conversations.opened_request(now.mono, peer, ask, to, packet);
    }

    /// A packet that is kept to be sent again.
    fn seal(&self, kind: Type, append: impl FnOnce(&mut RlpStream)) -> Vec<u8> {
        let mut packet = BytesMut::new();
        seal(&self.crypto, kind, &mut packet, append);
        packet.to_vec()
    }

    /// Sends a packet once.
    fn send(&mut self, to: SocketAddr, kind: Type, append: impl FnOnce(&mut RlpStream)) {
        self.outbox.push(&self.crypto, &mut self.counters, to, kind, append);
    }

    fn receive(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) -> Result<(), Verdict> {
        if from.port() == 0 || !self.overlay.reach().allows(from.ip()) {
            return Err(Verdict::Restricted);
        }
        let own = self.overlay.table().own_id();
        let datagram = (from, bytes);
        let crypto = (own, &self.crypto);
        let known = (&mut self.conversations, self.overlay.table());
        let checked = self.checks.check(now, datagram, crypto, known, &mut self.counters);
        if let Some(skew) = self.checks.take_skew() {
            self.overlay.tell(Action::Own(skew));
        }
        let Checked { packet, key, hash } = checked?;
        let peer = (key.id(), from.ip());
        match packet {
            Packet::Ping(ping) => {
                let pong = self.send_pong(now, from, &ping, hash);
                let endpoint = Endpoint { ip: from.ip(), udp: from.port(), tcp: ping.from.tcp };
                let contact = Contact { id: peer.0, public_key: key, endpoint, record: None };
                self.ping_came(now, peer, from, contact, (bytes.len(), &pong));
                Ok(())
            }
            Packet::Pong(pong) => self.pong_came(now, peer, from, &pong),
            Packet::FindNode(findnode) => self.find_node_came(now, peer, from, &findnode),
            Packet::Neighbors(neighbors) => self.neighbors_came(now, peer, &neighbors),
            Packet::EnrRequest(_) => self.enr_request_came(now, peer, from, hash),
            Packet::EnrResponse(response) => self.record_came(now, peer, &response),
        }
    }

    fn send_pong(&mut self, now: Now, to: SocketAddr, ping: &Ping, ping_hash: [u8; 32]) -> Pong {
        let pong = Pong {
            to: WireEndpoint { ip: Some(to.ip()), udp: to.port(), tcp: ping.from.tcp },
            ping_hash,
            expiration: Expiration::from_now(now.unix),
            enr_seq: Some(self.record.seq()),
        };
        self.send(to, Type::Pong, |stream| pong.append(stream));
        pong
    }

    /// A PING came from `contact`, with so many bytes, and was answered by this PONG.
    fn ping_came(
        &mut self,
        now: Now,
        peer: Peer,
        from: SocketAddr,
        contact: Contact,
        (size, pong): (usize, &Pong),
    ) {
        self.bonds.pinged(now.mono, peer.0, peer.1);
        let in_table = self.overlay.table().get(&peer.0).map(|entry| entry.contact.udp_addr());
        if !self.bonds.is_proven(now.mono, peer.0, peer.1) {
            if self.conversations.is_pinging(&peer)
                || answer::within_bound(size, pong, &self.our_ping(now, from))
            {
                self.ask_proof(now, &contact);
            } else {
                self.counters.not_pinged_back += 1;
            }
        } else if in_table.is_none() {
            self.admit(now, contact);
        } else if in_table != Some(Some(from)) {
            // Its router gave it another port. The table takes it over once it is proven.
            self.ask_proof(now, &contact);
        }
        self.conversations.pinged_us(&peer);
        self.advance(now, peer);
    }

    /// Asks the node for the proof that it receives where its ping came from. A stranger that finds no room pings
    /// again.
    fn ask_proof(&mut self, now: Now, contact: &Contact) {
        if let Some(addr) = contact.udp_addr() {
            let _ = self.ask(now, contact, Ask::Prove { addr, tcp: contact.endpoint.tcp });
        }
    }

    /// Puts a node that proved itself in line for the table.
    fn admit(&mut self, now: Now, contact: Contact) {
        let has_room = self.admissions.add(now.mono, contact);
        self.counters.refused_admissions += u64::from(!has_room);
    }

    fn find_node_came(
        &mut self,
        now: Now,
        peer: Peer,
        from: SocketAddr,
        findnode: &FindNode,
    ) -> Result<(), Verdict> {
        if !self.bonds.is_proven(now.mono, peer.0, peer.1) {
            return Err(Verdict::Unproven);
        }
        let expiration = Expiration::from_now(now.unix);
        for packet in answer::neighbors(self.overlay.table(), &peer, &findnode.target, expiration) {
            self.send(from, Type::Neighbors, |stream| packet.append(stream));
        }
        Ok(())
    }

    fn enr_request_came(
        &mut self,
        now: Now,
        peer: Peer,
        from: SocketAddr,
        request_hash: [u8; 32],
    ) -> Result<(), Verdict> {
        if !self.bonds.is_proven(now.mono, peer.0, peer.1) {
            return Err(Verdict::Unproven);
        }
        let response = EnrResponse { request_hash, record: self.record.encoded() };
        self.outbox.push(&self.crypto, &mut self.counters, from, Type::EnrResponse, |stream| {
            response.append(stream);
        });
        Ok(())
    }

    /// A PONG came from `from`: the one that the peer owes us, or none.
    fn pong_came(&mut self, now: Now, peer: Peer, from: SocketAddr, pong: &Pong) -> Result<(), Verdict> {
        if !self.conversations.awaits_pong(&peer, &pong.ping_hash) {
            return Err(Verdict::Unsolicited);
        }
        let came = self.conversations.pong_came(&peer).ok_or(Verdict::Unsolicited)?;
        let contact = came.contact;
        self.bonds.proved(now.mono, peer.0, peer.1, came.pinged_us);
        self.overlay.heard(peer.1);
        self.checks.proved(from);
        let sees_us_at = pong.to.ip.map(|ip| SocketAddr::new(ip, pong.to.udp));
        self.state_endpoint(peer, sees_us_at);
        for ask in came.answered {
            match ask {
                Ask::Prove { tcp, .. } => {
                    let endpoint = Endpoint { ip: from.ip(), udp: from.port(), tcp };
                    self.admit(now, Contact { endpoint, ..contact.clone() });
                }
                Ask::Check => self.check_passed(now, &contact, pong.enr_seq),
                Ask::Ping(query) => {
                    let round_trip = now.mono.saturating_duration_since(came.sent);
                    let pong = Ok(Ponged { round_trip, sees_us_at, enr_seq: pong.enr_seq });
                    self.overlay.tell(Action::PingResult { query, pong });
                }
                Ask::FindNode(_) | Ask::Record(_) => {}
            }
        }
        self.advance(now, peer);
        Ok(())
    }

    fn check_passed(&mut self, now: Now, contact: &Contact, seq: Option<u64>) {
        let Some(passed) = self.overlay.check_passed(now, &contact.id, seq) else { return };
        if let Some(entry) = self.overlay.table().get(&contact.id) {
            let contact = entry.contact.clone();
            self.overlay.tell(Action::Persist { contact, checks: passed.checks });
        }
        if passed.wants_record {
            // A full queue means that it is busy with us; the next check asks again.
            let _ = self.ask(now, contact, Ask::Record(None));
        }
    }

    /// A node that we pinged reports the address at which it sees us. Only table nodes have a vote. A node that pings
    /// us unasked may report any address, so such reports are ignored.
    fn state_endpoint(&mut self, peer: Peer, sees_us_at: Option<SocketAddr>) {
        let usable =
            |addr: &SocketAddr| AddressClass::of(addr.ip()) != AddressClass::Special && addr.port() != 0;
        if let Some(sees_us_at) = sees_us_at.filter(usable)
            && self.overlay.table().get(&peer.0).is_some()
        {
            self.overlay.tell(Action::EndpointStatement { by: peer.0, from: peer.1, sees_us_at });
        }
    }

    /// NEIGHBORS came from `peer`.
    fn neighbors_came(&mut self, now: Now, peer: Peer, neighbors: &Neighbors) -> Result<(), Verdict> {
        let told = self.conversations.told(&peer, neighbors.nodes.len()).ok_or(Verdict::Unsolicited)?;
        let mut contacts = Vec::new();
        for node in neighbors.nodes.iter().take(told.room) {
            match answer::believe(self.overlay.reach(), peer.1, node) {
                Some(contact) => contacts.push(contact),
                None => self.counters.refused_neighbors += 1,
            }
        }
        self.overlay.told(now, told.search, peer.0, contacts);
        if told.is_complete {
            self.due(now, peer, Due::Answer);
        } else {
            self.conversations.hasten_answer(now.mono, peer);
        }
        Ok(())
    }

    /// A record came from `peer`: the one that it owes us, or none.
    fn record_came(&mut self, now: Now, peer: Peer, response: &EnrResponse<'_>) -> Result<(), Verdict> {
        if !self.conversations.awaits_answer(&peer, &response.request_hash) {
            return Err(Verdict::Unsolicited);
        }
        let ended = self.conversations.request_ended(&peer, true).ok_or(Verdict::Unsolicited)?;
        let record = answer::believe_record(self.overlay.table(), &peer, response.record);
        let verdict = if record.is_some() { Ok(()) } else { Err(Verdict::BadRecord) };
        if let Ask::Record(search) = ended.ask {
            self.record_done(now, ended.contact, search, record.as_ref(), true);
        }
        self.advance(now, peer);
        verdict
    }

    /// A deadline came.
    fn due(&mut self, now: Now, peer: Peer, due: Due) {
        if let Some((to, packet)) = self.conversations.repeat(&peer, due) {
            return self.outbox.push_sealed(&mut self.counters, to, packet);
        }
        match due {
            Due::Settle => self.conversations.settle_ended(&peer),
            Due::Pong => self.no_pong(now, peer),
            Due::Answer => self.request_ended(now, peer),
        }
        self.advance(now, peer);
    }

    /// Without a PONG all fails that waited for it, or for the proof that would have followed.
    fn no_pong(&mut self, now: Now, peer: Peer) {
        let knows_us = self.bonds.knows_us(now.mono, peer.0, peer.1);
        let Some((contact, failed)) = self.conversations.no_pong(&peer, knows_us) else { return };
        self.overlay.unanswered(now, peer.1);
        for ask in failed {
            match ask {
                Ask::Prove { .. } => {}
                Ask::Check => self.overlay.check_failed(now, &peer.0),
                Ask::Ping(query) => {
                    self.overlay.tell(Action::PingResult { query, pong: Err(CallError::Timeout) });
                }
                Ask::FindNode(search) => self.overlay.answered(now, search, &peer.0, false),
                Ask::Record(search) => self.record_done(now, contact.clone(), search, None, false),
            }
        }
    }

    /// The open request ended: all parts came, or the time is over.
    fn request_ended(&mut self, now: Now, peer: Peer) {
        let Some(ended) = self.conversations.request_ended(&peer, false) else { return };
        let RequestEnded { contact, ask, answered } = ended;
        if !answered {
            self.bonds.forgot_us(peer.0, peer.1);
        }
        match ask {
            Ask::FindNode(search) => self.overlay.answered(now, search, &peer.0, answered),
            Ask::Record(search) => self.record_done(now, contact, search, None, true),
            Ask::Prove { .. } | Ask::Check | Ask::Ping(_) => {}
        }
    }

    /// The request for a record ended, with or without an answer. `answered`: the node is at its address.
    fn record_done(
        &mut self,
        now: Now,
        contact: Contact,
        search: Option<SearchId>,
        record: Option<&Record>,
        answered: bool,
    ) {
        let contact = record.map(|record| answer::with_record(contact, record));
        if let Some(contact) =
            contact.as_ref().filter(|contact| self.overlay.table().get(&contact.id).is_some())
        {
            // It gave the record from where it is.
            self.overlay.offer(now, contact.clone(), Source::Inbound);
        }
        if let Some(search) = search {
            self.overlay.record_came(search, contact, answered);
        }
    }
}

#[cfg(test)]
mod tests;
