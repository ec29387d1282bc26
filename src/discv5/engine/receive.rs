//! What comes in: messages, challenges, handshakes.

use std::net::SocketAddr;

use rand::RngCore;

use super::Engine;
use crate::{
    Now,
    discv5::{
        challenge::Standing,
        crypto::Crypto,
        handshake::{self, Answer, HandshakeError, Local},
        header::{
            Auth, ChallengeData, HANDSHAKE_OVERHEAD, HeaderBuf, HeaderError, MAX_PACKET, Nonce, Packet,
        },
        message::{Message, MessageError, Ping, RequestId},
        packet,
        peer::{Peer, canonical_addr},
        session::{Role, Session},
    },
    kademlia::{Contact, Source},
    node::Record,
};

impl<C: Crypto> Engine<C> {
    pub(super) fn receive(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.counters.packets_received += 1;
        let from = canonical_addr(from);
        let mut buf = HeaderBuf::default();
        let packet = match self.unmasker.open(bytes, &mut buf) {
            Ok(packet) => packet,
            Err(HeaderError::Protocol | HeaderError::Size) => return self.counters.noise += 1,
            Err(_) => return self.counters.malformed += 1,
        };
        let src = match packet.auth {
            Auth::WhoAreYou { enr_seq, data } => {
                return self.challenged(now, from, packet.nonce, enr_seq, data);
            }
            Auth::Message { src } | Auth::Handshake { src, .. } => src,
        };
        if src == self.record.id() || from.port() == 0 {
            return self.counters.malformed += 1;
        }
        if !self.reach.allows(from.ip()) {
            return self.counters.restricted += 1;
        }
        let peer = Peer::new(src, from);
        // Taken out while it is read, so that the engine may be changed by what it says.
        let mut plaintext = std::mem::take(&mut self.plaintext);
        let opened = match packet.auth {
            Auth::Handshake { signature, ephemeral, record, .. } => {
                let answer = Answer { src, signature, ephemeral, record };
                self.open_handshake(now, peer, &packet, &answer, &mut plaintext)
            }
            _ => self.open_message(now, peer, &packet, &mut plaintext),
        };
        if opened {
            self.read_message(now, peer, &plaintext);
        }
        self.plaintext = plaintext;
    }

    fn open_message(&mut self, now: Now, peer: Peer, packet: &Packet<'_>, plaintext: &mut Vec<u8>) -> bool {
        let session = self.sessions.get(&peer, now.mono);
        let opens = |session: &mut Session| session.open(&packet.nonce, packet.ad, packet.message, plaintext);
        let opened = session.is_some_and(opens);
        if !opened {
            self.counters.unreadable += 1;
            self.challenge(now, peer, packet.nonce);
        }
        opened
    }

    /// Sends a WHOAREYOU for the packet with this nonce: the one that `peer` has not answered yet, or a new one.
    fn challenge(&mut self, now: Now, peer: Peer, nonce: Nonce) {
        if let Some(pending) = self.challenges.pending(&peer, now.mono) {
            packet::repeat_challenge(&mut self.scratch, &peer.id, &pending.data);
            self.counters.challenges_repeated += 1;
            return self.send_scratch(peer.addr);
        }
        let session = self.sessions.record(&peer);
        let entry = self.table.get(&peer.id).map(|entry| &entry.contact);
        let at_home = entry.is_some_and(|contact| contact.udp_addr() == Some(peer.addr));
        let standing =
            if at_home || self.sessions.contains(&peer) { Standing::Known } else { Standing::Stranger };
        let table = entry.and_then(|contact| contact.record.as_ref());
        let record = [session, table].into_iter().flatten().max_by_key(|record| record.seq()).cloned();
        if !self.challenges.ration(&peer, standing, now.mono, self.is_exempt(&peer)) {
            return self.counters.challenges_refused += 1;
        }
        let seq = record.as_ref().map_or(0, Record::seq);
        let data = packet::challenge(&mut self.scratch, &mut self.rng, &peer.id, &nonce, seq);
        self.challenges.insert(peer, standing, data, record, now.mono);
        self.counters.challenges_sent += 1;
        self.send_scratch(peer.addr);
    }

    fn open_handshake(
        &mut self,
        now: Now,
        peer: Peer,
        packet: &Packet<'_>,
        answer: &Answer<'_>,
        plaintext: &mut Vec<u8>,
    ) -> bool {
        let Some(challenge) = self.challenges.take(&peer, now.mono) else {
            self.counters.handshakes_unexpected += 1;
            return false;
        };
        let local = Local { crypto: &self.crypto, record: &self.record };
        let session = handshake::accept(&local, &challenge, answer, now.mono).and_then(|session| {
            let opened = session.open(&packet.nonce, packet.ad, packet.message, plaintext);
            if opened { Ok(session) } else { Err(HandshakeError::Message) }
        });
        let Ok(session) = session else {
            self.counters.handshakes_failed += 1;
            return false;
        };
        self.counters.handshakes_accepted += 1;
        let record = session.record().cloned();
        self.sessions.insert(peer, session, Role::Recipient, self.is_exempt(&peer));
        if let Some(record) = record {
            self.meet(now, peer, record);
        }
        true
    }

    /// A node proved who it is and where it is. It enters the table if its record names that endpoint: others could
    /// not reach it elsewhere, and we must not write to an address because a stranger claims it.
    fn meet(&mut self, now: Now, peer: Peer, record: Record) {
        let endpoints = [record.endpoint4(), record.endpoint6()];
        let here = endpoints.into_iter().flatten().find(|endpoint| endpoint.udp_addr() == Some(peer.addr));
        if let Some(endpoint) = here {
            let contact =
                Contact { id: peer.id, public_key: record.public_key(), endpoint, record: Some(record) };
            self.offer(now, contact, Source::Inbound);
        }
    }

    /// A WHOAREYOU: if it answers a request of ours, the request is sent again in a handshake.
    fn challenged(&mut self, now: Now, from: SocketAddr, nonce: Nonce, enr_seq: u64, data: &ChallengeData) {
        let active = self.calls.by_nonce(&nonce).filter(|active| active.call.peer.addr == from);
        let Some(active) = active.filter(|active| !active.handshaken) else {
            return self.counters.challenges_unsolicited += 1;
        };
        active.handshaken = true;
        let (peer, mut message) = (active.call.peer, active.call.message.clone());
        if message.len() > MAX_PACKET - HANDSHAKE_OVERHEAD - self.record.encoded().len() {
            // Only a TALKREQ is that large. A PING makes the session; the request follows when it is answered.
            let id = RequestId::from_u64(self.rng.next_u64());
            active.warming = Some(id);
            self.message.clear();
            Ping { id, enr_seq: self.record.seq() }.encode(&mut self.message);
            message = self.message.split().freeze();
        }
        let answered = handshake::answer(
            &mut self.scratch,
            &mut self.rng,
            &Local { crypto: &self.crypto, record: &self.record },
            &active.call.to,
            (data, enr_seq),
            &message,
            now.mono,
        );
        let Some((session, nonce)) = answered else { return };
        self.sessions.insert(peer, session, Role::Initiator, self.is_exempt(&peer));
        self.calls.touch(&peer.id, Some(nonce), now.mono);
        self.counters.handshakes_sent += 1;
        self.send_scratch(peer.addr);
    }

    fn read_message(&mut self, now: Now, peer: Peer, plaintext: &[u8]) {
        match Message::decode(plaintext) {
            Ok(Message::Ping(ping)) => self.pinged(now, peer, ping),
            Ok(Message::FindNode(find)) => self.asked_for_nodes(now, peer, &find),
            Ok(Message::TalkRequest(talk)) => self.talked_to(now, peer, &talk),
            Ok(response) => self.answered(now, peer, &response),
            Err(MessageError::Unknown(_)) => self.counters.messages_unknown += 1,
            Err(_) => self.counters.messages_malformed += 1,
        }
    }
}
