//! Our half of the conversations: questions, what comes of their answers, and what of their absence.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ::rlp::RlpStream;
use bytes::BytesMut;

use super::Engine;
use crate::{
    Now,
    discv4::{
        action::Action,
        conversation::{Ask, Due, Peer, RequestEnded},
        crypto::Crypto,
        packet::{
            EnrRequest, Expiration, FindNode, Neighbors, Ping, Pong, Type, WireEndpoint, neighbors::Neighbor,
            seal,
        },
        verdict::Verdict,
    },
    kademlia::{CallError, Contact, Ponged, Source, searches::SearchId},
    node::{AddressClass, Endpoint, PublicKey, Record, endpoint::may_relay},
};

/// Our endpoint while none is known.
const UNKNOWN: Endpoint = Endpoint { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), udp: 0, tcp: 0 };

impl<C: Crypto> Engine<C> {
    /// Asks a node, and says why if it cannot be asked.
    pub(super) fn try_ask(&mut self, now: Now, contact: &Contact, ask: Ask) -> Result<(), CallError> {
        let addr = contact.udp_addr().ok_or(CallError::NoEndpoint)?;
        if contact.id == self.table.own_id() {
            return Err(CallError::Myself);
        }
        // A proof is asked for where the node's own ping came from.
        let may_ask = match ask {
            Ask::Prove { .. } => self.reach.allows(addr.ip()),
            _ => self.reach.may_ask(addr.ip()),
        };
        if !may_ask {
            return Err(CallError::Address);
        }
        let Ok(peer) = self.conversations.ask(contact, addr, ask) else {
            self.counters.too_busy += 1;
            return Err(CallError::QueueFull);
        };
        self.advance(now, peer);
        Ok(())
    }

    /// Sends what can be sent now.
    pub(super) fn advance(&mut self, now: Now, peer: Peer) {
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

    /// A packet that is kept to be sent again.
    fn seal(&self, kind: Type, append: impl FnOnce(&mut RlpStream)) -> Vec<u8> {
        let mut packet = BytesMut::new();
        seal(&self.crypto, kind, &mut packet, append);
        packet.to_vec()
    }

    pub(super) fn our_ping(&self, now: Now, to: SocketAddr) -> Ping {
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
                let Some(target) = self.searches.target(*search).and_then(|target| target.key()) else {
                    return self.advance(now, peer);
                };
                self.seal(Type::FindNode, |stream| FindNode { target, expiration }.append(stream))
            }
            _ => self.seal(Type::EnrRequest, |stream| EnrRequest { expiration }.append(stream)),
        };
        self.outbox.push_sealed(&mut self.counters, to, &packet);
        self.conversations.opened_request(now.mono, peer, ask, to, packet);
    }

    /// The PONG that `peer` owed us came from `from`.
    pub(super) fn pong_came(&mut self, now: Now, peer: Peer, from: SocketAddr, pong: &Pong) {
        let Some(came) = self.conversations.pong_came(&peer) else { return };
        let contact = came.contact;
        self.bonds.proved(now.mono, peer.0, peer.1, came.pinged_us);
        self.limits.prove(from);
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
                    self.actions.push_back(Action::PingResult { query, pong });
                }
                Ask::FindNode(_) | Ask::Record(_) => {}
            }
        }
        self.advance(now, peer);
    }

    fn check_passed(&mut self, now: Now, contact: &Contact, seq: Option<u64>) {
        let Some(passed) = self.table.check_passed(now, &contact.id, seq) else { return };
        if let Some(entry) = self.table.get(&contact.id) {
            let contact = entry.contact.clone();
            self.actions.push_back(Action::Persist { contact, checks: passed.checks });
        }
        if passed.wants_record {
            // A full queue means that it is busy with us; the next check asks again.
            let _ = self.try_ask(now, contact, Ask::Record(None));
        }
    }

    /// Puts a node that proved itself in line for the table.
    pub(super) fn admit(&mut self, now: Now, contact: Contact) {
        let has_room = self.admissions.add(now.mono, contact);
        self.counters.refused_admissions += u64::from(!has_room);
    }

    /// A node that we pinged says where it sees us; only table nodes have a say. A node that pings us unasked may say
    /// anything about our address, so that is not listened to.
    fn state_endpoint(&mut self, peer: Peer, sees_us_at: Option<SocketAddr>) {
        let class = sees_us_at.map(|addr| (AddressClass::of(addr.ip()), addr.port()));
        let Some(sees_us_at) = sees_us_at.filter(|_| {
            matches!(class, Some((class, port)) if class != AddressClass::Special && port != 0)
                && self.table.get(&peer.0).is_some()
        }) else {
            return;
        };
        self.actions.push_back(Action::EndpointStatement { by: peer.0, from: peer.1, sees_us_at });
    }

    /// NEIGHBORS came from `peer`.
    pub(super) fn neighbors_came(
        &mut self,
        now: Now,
        peer: Peer,
        neighbors: Neighbors,
    ) -> Result<(), Verdict> {
        let told = self.conversations.told(&peer, neighbors.nodes.len()).ok_or(Verdict::Unsolicited)?;
        let contacts: Vec<Contact> =
            neighbors.nodes.iter().take(told.room).filter_map(|node| self.believe(peer, node)).collect();
        self.searches.told(now, &mut self.table, told.search, peer.0, contacts);
        if told.is_complete {
            self.due(now, peer, Due::Answer);
        } else {
            self.conversations.hasten_answer(now.mono, peer);
        }
        Ok(())
    }

    /// A told node, if it may be what it is told to be.
    fn believe(&mut self, teller: Peer, node: &Neighbor) -> Option<Contact> {
        let contact = (|| {
            let told = |ip: &IpAddr| self.reach.may_be_told(teller.1, SocketAddr::new(*ip, node.udp));
            let ip = node.ip.filter(told)?;
            let key = PublicKey::from_uncompressed(&node.key).ok()?;
            Some(Contact::new(key, Endpoint { ip, udp: node.udp, tcp: node.tcp }))
        })();
        self.counters.refused_neighbors += u64::from(contact.is_none());
        contact
    }

    /// The record that `peer` owed us came.
    pub(super) fn record_came(&mut self, now: Now, peer: Peer, record: &[u8]) -> Result<(), Verdict> {
        let ended = self.conversations.request_ended(&peer, true).ok_or(Verdict::Unsolicited)?;
        let record = Record::decode(record).ok().filter(|record| {
            let seq = self.table.get(&peer.0).map_or(0, |entry| entry.contact.seq());
            let may_tell = record.endpoint().is_none_or(|endpoint| may_relay(peer.1, endpoint.ip));
            record.id() == peer.0 && record.seq() >= seq && may_tell
        });
        let verdict = if record.is_some() { Ok(()) } else { Err(Verdict::BadRecord) };
        if let Ask::Record(search) = ended.ask {
            self.record_done(now, ended.contact, search, record.as_ref(), true);
        }
        self.advance(now, peer);
        verdict
    }

    /// A deadline came.
    pub(super) fn due(&mut self, now: Now, peer: Peer, due: Due) {
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
        for ask in failed {
            match ask {
                Ask::Prove { .. } => {}
                Ask::Check => self.table.check_failed(now, &peer.0),
                Ask::Ping(query) => {
                    self.actions.push_back(Action::PingResult { query, pong: Err(CallError::Timeout) });
                }
                Ask::FindNode(search) => {
                    self.searches.answered(now, &mut self.table, search, &peer.0, false);
                }
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
            Ask::FindNode(search) => {
                self.searches.answered(now, &mut self.table, search, &peer.0, answered);
            }
            Ask::Record(search) => self.record_done(now, contact, search, None, true),
            Ask::Prove { .. } | Ask::Check | Ask::Ping(_) => {}
        }
    }

    /// The answer to a request for a record came, or will not. `answered` says that the node is at its address.
    fn record_done(
        &mut self,
        now: Now,
        contact: Contact,
        search: Option<SearchId>,
        record: Option<&Record>,
        answered: bool,
    ) {
        let contact = record.map(|record| with_record(contact, record));
        if let Some(contact) = contact.as_ref().filter(|contact| self.table.get(&contact.id).is_some()) {
            // It gave the record from where it is.
            self.table.insert(now, contact.clone(), Source::Inbound);
        }
        if let Some(search) = search {
            self.searches.record_came(&self.table, search, contact, answered);
        }
    }
}

/// The node with its record. Where it answers stays where it answers; the record knows the TCP port.
fn with_record(contact: Contact, record: &Record) -> Contact {
    let same_family = if contact.endpoint.ip.is_ipv4() { record.endpoint4() } else { record.endpoint6() };
    let tcp = same_family.map_or(0, |endpoint| endpoint.tcp);
    let endpoint = Endpoint { tcp: if tcp == 0 { contact.endpoint.tcp } else { tcp }, ..contact.endpoint };
    Contact { endpoint, record: Some(record.clone()), ..contact }
}
