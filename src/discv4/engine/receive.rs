//! What comes from the wire: checked in the order of what the checks cost, then answered or believed.

use std::net::SocketAddr;

use ::rlp::RlpStream;

use super::Engine;
use crate::{
    Now,
    discv4::{
        action::{Action, ClockSkew},
        conversation::{Ask, Peer},
        crypto::Crypto,
        packet::{
            EnrResponse, Expiration, Header, HeaderError, Neighbors, Packet, Ping, Pong, Type, WireEndpoint,
            findnode::FindNode,
            header::HEADER,
            neighbors::{MAX_PER_PACKET, Neighbor},
        },
        verdict::Verdict,
    },
    kademlia::{Contact, bucket::BUCKET_SIZE},
    node::{
        Endpoint, NodeId, PublicKey,
        endpoint::{canonical, may_relay},
        id::keccak256,
    },
};

impl From<HeaderError> for Verdict {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::TooShort => Self::TooShort,
            HeaderError::TooLong => Self::TooLong,
            HeaderError::UnknownType => Self::UnknownType,
            HeaderError::NotAList => Self::NotAList,
        }
    }
}

impl<C: Crypto> Engine<C> {
    /// Takes a datagram and says what became of it.
    pub fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) -> Verdict {
        let from = SocketAddr::new(canonical(from.ip()), from.port());
        let verdict = self.receive(now, from, bytes).err().unwrap_or(Verdict::Accepted);
        self.counters.count(verdict);
        self.drive(now);
        verdict
    }

    fn receive(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) -> Result<(), Verdict> {
        if from.port() == 0 || !self.reach.allows(from.ip()) {
            return Err(Verdict::Restricted);
        }
        let header = Header::read(bytes)?;
        let packet = self.open(now, from, &header)?;
        let expired = packet.expiration().is_some_and(|expiration| expiration.is_past(now.unix));
        if expired && !self.skew.wants_expired(now.mono) {
            return Err(Verdict::Expired);
        }
        self.counters.recovered += 1;
        let key = header.signer(&self.crypto).ok_or(Verdict::BadSignature)?;
        let id = key.id();
        if id == self.table.own_id() {
            return Err(Verdict::Myself);
        }
        if let Some(expiration) = packet.expiration()
            && let Some(ahead) = self.skew.vote(now.mono, from.ip(), expiration.seconds_ahead(now.unix))
        {
            self.actions.push_back(Action::Own(ClockSkew { ahead }));
        }
        if expired {
            return Err(Verdict::Expired);
        }
        let peer = (id, from.ip());
        match packet {
            Packet::Ping(ping) => {
                self.ping_came(now, peer, from, key, &header.hash, bytes.len(), &ping);
                Ok(())
            }
            Packet::Pong(pong) => {
                if !self.conversations.awaits_pong(&peer, &pong.ping_hash) {
                    return Err(Verdict::Unsolicited);
                }
                self.pong_came(now, peer, from, &pong);
                Ok(())
            }
            Packet::FindNode(findnode) => self.find_node_came(now, peer, from, &findnode),
            Packet::Neighbors(neighbors) => self.neighbors_came(now, peer, neighbors),
            Packet::EnrRequest(_) => self.enr_request_came(now, peer, from, &header.hash),
            Packet::EnrResponse(response) => {
                if !self.conversations.awaits_answer(&peer, &response.request_hash) {
                    return Err(Verdict::Unsolicited);
                }
                self.record_came(now, peer, response.record)
            }
        }
    }

    /// Hashes and decodes the packet if it may be looked at: an answer must answer something; a request takes from
    /// the ration of its sender's address.
    fn open<'a>(&mut self, now: Now, from: SocketAddr, header: &Header<'a>) -> Result<Packet<'a>, Verdict> {
        let decode = || Packet::decode(header.kind, header.body).map_err(|_| Verdict::Malformed);
        let mut decoded = None;
        let named = match header.kind {
            Type::Pong | Type::EnrResponse => match decoded.insert(decode()?) {
                Packet::Pong(pong) => Some(pong.ping_hash),
                Packet::EnrResponse(response) => Some(response.request_hash),
                _ => None,
            },
            _ => None,
        };
        let expected = match header.kind {
            Type::Ping | Type::FindNode | Type::EnrRequest => false,
            Type::Pong | Type::Neighbors | Type::EnrResponse => {
                self.conversations.expects(from.ip(), named).ok_or(Verdict::Unsolicited)?
            }
        };
        if !expected && !self.limits.admit(now.mono, from) {
            return Err(Verdict::Limited);
        }
        if !header.hash_is_right(&self.crypto) {
            return Err(Verdict::WrongHash);
        }
        decoded.map_or_else(decode, Ok)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one packet, named once")]
    fn ping_came(
        &mut self,
        now: Now,
        peer: Peer,
        from: SocketAddr,
        key: PublicKey,
        hash: &[u8; 32],
        size: usize,
        ping: &Ping,
    ) {
        let pong = Pong {
            to: WireEndpoint { ip: Some(from.ip()), udp: from.port(), tcp: ping.from.tcp },
            ping_hash: *hash,
            expiration: Expiration::from_now(now.unix),
            enr_seq: Some(self.record.seq()),
        };
        self.outbox.push(&self.crypto, &mut self.counters, from, Type::Pong, |stream| pong.append(stream));
        self.bonds.pinged(now.mono, peer.0, peer.1);
        let endpoint = Endpoint { ip: from.ip(), udp: from.port(), tcp: ping.from.tcp };
        let contact = Contact { id: peer.0, public_key: key, endpoint, record: None };
        let in_table = self.table.get(&peer.0).map(|entry| entry.contact.udp_addr());
        if !self.bonds.is_proven(now.mono, peer.0, peer.1) {
            if self.conversations.is_pinging(&peer) || within_bound(size, &pong, &self.our_ping(now, from)) {
                self.ask_proof(now, &contact);
            } else {
                self.counters.not_pinged_back += 1;
            }
        } else if in_table.is_none() {
            self.admit(now, contact);
        } else if in_table != Some(Some(from)) {
            // Its router gave it another port. The table believes that once it is proven.
            self.ask_proof(now, &contact);
        }
        self.conversations.pinged_us(&peer);
        self.advance(now, peer);
    }

    /// Asks the node for the proof that it receives where its ping came from. A stranger that finds no room pings again.
    fn ask_proof(&mut self, now: Now, contact: &Contact) {
        if let Some(addr) = contact.udp_addr() {
            let _ = self.try_ask(now, contact, Ask::Prove { addr, tcp: contact.endpoint.tcp });
        }
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
        let target = NodeId(keccak256(&[&findnode.target]));
        // Unproven nodes are told only while there is nobody better: a young network has to start somewhere.
        let any_live = !self.table.closest(&target, 1, |entry| entry.live).is_empty();
        let closest = self.table.closest(&target, BUCKET_SIZE, |entry| {
            (entry.live || !any_live)
                && entry.contact.id != peer.0
                && may_relay(peer.1, entry.contact.endpoint.ip)
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
        let expiration = Expiration::from_now(now.unix);
        let mut rest = nodes.as_slice();
        loop {
            // At least one packet: an empty answer is an answer.
            let (part, more) = rest.split_at(rest.len().min(MAX_PER_PACKET));
            let neighbors = Neighbors { nodes: part.to_vec(), expiration };
            self.outbox.push(&self.crypto, &mut self.counters, from, Type::Neighbors, |stream| {
                neighbors.append(stream);
            });
            if more.is_empty() {
                return Ok(());
            }
            rest = more;
        }
    }

    fn enr_request_came(
        &mut self,
        now: Now,
        peer: Peer,
        from: SocketAddr,
        hash: &[u8; 32],
    ) -> Result<(), Verdict> {
        if !self.bonds.is_proven(now.mono, peer.0, peer.1) {
            return Err(Verdict::Unproven);
        }
        let response = EnrResponse { request_hash: *hash, record: self.record.encoded() };
        self.outbox.push(&self.crypto, &mut self.counters, from, Type::EnrResponse, |stream| {
            response.append(stream);
        });
        Ok(())
    }
}

/// Whether an unproven address may get both packets for `size` bytes of its own: 2.5 times as much at the most.
fn within_bound(size: usize, pong: &Pong, ping: &Ping) -> bool {
    let mut bodies = RlpStream::new();
    pong.append(&mut bodies);
    let pong = bodies.len();
    bodies.clear();
    ping.append(&mut bodies);
    let both = HEADER + pong + HEADER + bodies.len();
    both.saturating_mul(2) <= size.saturating_mul(5)
}
