//! What comes in: challenges and handshakes, requests, and responses. Requests are answered where they came from, in
//! their session.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use rand::RngCore;

use super::{Action, Engine, TalkAction};
use crate::{
    Now,
    discv5::{
        answer,
        crypto::Crypto,
        header::{Auth, ChallengeData, HANDSHAKE_OVERHEAD, HeaderBuf, HeaderError, MAX_PACKET, Nonce},
        message::{
            FindNode, Message, MessageError, Ping, Pong, RequestId, TalkRequest, TalkResponse, encode_nodes,
        },
        peer::{Peer, canonical_addr},
        talk::{Admission, Asker},
    },
    kademlia::{Contact, Source, subnets::is_exempt},
    node::Record,
};

impl<C: Crypto> Engine<C> {
    pub(super) fn receive(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.counters.packets_received += 1;
        let from = canonical_addr(from);
        let mut buf = HeaderBuf::default();
        let packet = match self.wire.unmasker().open(bytes, &mut buf) {
            Ok(packet) => packet,
            Err(HeaderError::Protocol | HeaderError::Size) => return self.counters.noise += 1,
            Err(_) => return self.counters.malformed += 1,
        };
        let (src, is_handshake) = match packet.auth {
            Auth::WhoAreYou { enr_seq, data } => {
                return self.challenged(now, from, packet.nonce, enr_seq, data);
            }
            Auth::Message { src } => (src, false),
            Auth::Handshake { src, .. } => (src, true),
        };
        if src == self.table.own_id() || from.port() == 0 {
            return self.counters.malformed += 1;
        }
        if !self.reach.allows(from.ip()) {
            return self.counters.restricted += 1;
        }
        let peer = Peer::new(src, from);
        let limits = (&self.table, self.is_exempt(&peer));
        // Taken out while it is read, so that the engine may be changed by what it says.
        let mut plaintext = std::mem::take(&mut self.plaintext);
        if self.wire.open(now.mono, peer, &packet, limits, &mut self.counters, &mut plaintext) {
            if is_handshake && let Some(record) = self.wire.record_of(&peer).cloned() {
                self.meet(now, peer, record);
            }
            self.read_message(now, peer, &plaintext);
        }
        self.plaintext = plaintext;
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
        if message.len() > MAX_PACKET - HANDSHAKE_OVERHEAD - self.wire.record().encoded().len() {
            // Only a TALKREQ is that large. A PING makes the session; the request follows when it is answered.
            let id = RequestId::from_u64(self.rng.next_u64());
            active.warming = Some(id);
            self.message.clear();
            Ping { id, enr_seq: self.wire.record().seq() }.encode(&mut self.message);
            message = self.message.split().freeze();
        }
        let (to, challenge) = ((&active.call.to, peer), (data, enr_seq));
        let exempt = is_exempt(peer.addr.ip(), self.reach.is_private());
        let shaken = self.wire.shake_hands(now.mono, to, challenge, &message, exempt, &mut self.counters);
        if let Some(nonce) = shaken {
            self.calls.touch(&peer.id, Some(nonce), now.mono);
        }
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

    pub(super) fn pinged(&mut self, now: Now, peer: Peer, ping: Ping) {
        self.counters.requests_received += 1;
        let pong = Pong { id: ping.id, enr_seq: self.wire.record().seq(), recipient: peer.addr };
        self.respond(now, peer, |out| pong.encode(out));
    }

    pub(super) fn asked_for_nodes(&mut self, now: Now, peer: Peer, find: &FindNode<'_>) {
        self.counters.requests_received += 1;
        let records = answer::find(&self.table, self.wire.record(), peer.addr.ip(), find.distances());
        let packets = answer::divide(&records);
        for range in &packets {
            let records = records.get(range.clone()).unwrap_or_default();
            self.respond(now, peer, |out| encode_nodes(out, find.id, packets.len() as u64, records));
        }
    }

    pub(super) fn talked_to(&mut self, now: Now, peer: Peer, talk: &TalkRequest<'_>) {
        self.counters.requests_received += 1;
        let asker = Asker { peer, id: talk.id };
        match self.talk.admit(talk.protocol, asker, now.mono) {
            Admission::Waits(token) => self.actions.push_back(Action::Own(TalkAction::Requested {
                token,
                from: peer,
                protocol: Bytes::copy_from_slice(talk.protocol),
                request: Bytes::copy_from_slice(talk.request),
            })),
            refused => {
                let full = refused == Admission::Full;
                let counter =
                    if full { &mut self.counters.talk_refused } else { &mut self.counters.talk_unknown };
                *counter += 1;
                self.respond_talk(now, &asker, &[]);
            }
        }
    }

    /// Sends a TALKRESP. False if the session is gone.
    pub(super) fn respond_talk(&mut self, now: Now, asker: &Asker, response: &[u8]) -> bool {
        self.respond(now, asker.peer, |out| TalkResponse { id: asker.id, response }.encode(out))
    }

    /// Sends what `encode` writes, in the session with `peer`. False if there is none any more.
    fn respond(&mut self, now: Now, peer: Peer, encode: impl FnOnce(&mut BytesMut)) -> bool {
        self.message.clear();
        encode(&mut self.message);
        self.wire.send(now.mono, peer, &self.message, &mut self.counters).is_some()
    }
}
