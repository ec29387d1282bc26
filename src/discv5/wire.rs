//! The encrypted wire: writes our packets in the existing sessions, and opens packets of other nodes.
//!
//! A packet that cannot be opened is challenged, within the rations of strangers; the answer to a challenge makes a
//! session. An address that has proven nothing gets at most one WHOAREYOU for a packet, which is smaller than that
//! packet.
//!
//! Left out: the contents of messages, and which requests are open (the engine).

use std::{net::SocketAddr, time::Instant};

use bytes::BytesMut;
use rand::{RngCore, SeedableRng, rngs::StdRng};

use super::{
    action::Counters,
    challenge::{Challenges, Reply, Standing},
    crypto::Crypto,
    handshake::{self, Answer, HandshakeError, Local},
    header::{Auth, ChallengeData, Nonce, Packet, Unmasker, WriteAuth},
    outbox::Outbox,
    packet,
    peer::Peer,
    session::{Role, Session, Sessions},
};
use crate::{
    kademlia::{Contact, Table},
    node::Record,
};

/// Our side of all sessions, and the packets that wait to be sent.
pub(super) struct Wire<C> {
    crypto: C,
    record: Record,
    unmasker: Unmasker,
    sessions: Sessions,
    challenges: Challenges,
    outbox: Outbox,
    /// The buffer in which a packet is assembled.
    scratch: BytesMut,
    rng: StdRng,
}

impl<C: Crypto> Wire<C> {
    /// A wire without sessions, for the node with this record; `crypto` holds its key.
    pub(super) fn new(
        crypto: C,
        record: Record,
        sessions: usize,
        strangers_per_second: u32,
        rng: &mut StdRng,
    ) -> Self {
        Self {
            crypto,
            unmasker: Unmasker::new(&record.id()),
            record,
            sessions: Sessions::new(sessions),
            challenges: Challenges::new(strangers_per_second),
            outbox: Outbox::default(),
            scratch: BytesMut::new(),
            rng: StdRng::from_rng(rng),
        }
    }

    pub(super) fn crypto(&self) -> &C {
        &self.crypto
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn set_record(&mut self, record: Record) {
        self.record = record;
    }

    pub(super) fn unmasker(&self) -> &Unmasker {
        &self.unmasker
    }

    pub(super) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Notes that the peer has answered our request: sessions of strangers no longer replace its session.
    pub(super) fn answered(&mut self, peer: &Peer, exempt: bool) {
        self.sessions.answered(peer, exempt);
    }

    /// Appends the next packet to `out` and returns its destination.
    pub(super) fn poll_transmit(
        &mut self,
        counters: &mut Counters,
        out: &mut BytesMut,
    ) -> Option<SocketAddr> {
        let to = self.outbox.pop(out)?;
        counters.packets_sent += 1;
        Some(to)
    }

    /// Opens a packet of `peer` into `plaintext`. Returns false if it cannot be opened; a message is then challenged.
    /// A good handshake makes a session. `exempt` frees the peer from limits per subnet.
    pub(super) fn open(
        &mut self,
        now: Instant,
        peer: Peer,
        packet: &Packet<'_>,
        (table, exempt): (&Table, bool),
        counters: &mut Counters,
        plaintext: &mut Vec<u8>,
    ) -> bool {
        if let Auth::Handshake { src, signature, ephemeral, record } = packet.auth {
            let answer = Answer { src, signature, ephemeral, record };
            return self.open_handshake(now, peer, packet, &answer, exempt, counters, plaintext);
        }
        let session = self.sessions.get(&peer, now);
        let opens = |session: &mut Session| session.open(&packet.nonce, packet.ad, packet.message, plaintext);
        let opened = session.is_some_and(opens);
        if !opened {
            counters.unreadable += 1;
            self.challenge(now, peer, packet.nonce, (table, exempt), counters);
        }
        opened
    }

    /// The number of challenges that are kept.
    #[cfg(test)]
    pub(super) fn challenges(&self) -> usize {
        self.challenges.len()
    }

    /// The peer's record in its session.
    pub(super) fn record_of(&self, peer: &Peer) -> Option<&Record> {
        self.sessions.record(peer)
    }

    /// Sends a WHOAREYOU for the packet with this nonce: one that `peer` has not answered yet, or a new one.
    fn challenge(
        &mut self,
        now: Instant,
        peer: Peer,
        nonce: Nonce,
        (table, exempt): (&Table, bool),
        counters: &mut Counters,
    ) {
        match self.challenges.reply(&peer, &nonce, now) {
            Reply::New => {}
            Reply::Repeat(data) => {
                packet::repeat_challenge(&mut self.scratch, &peer.id, &data);
                counters.challenges_repeated += 1;
                return self.send_scratch(peer.addr, counters);
            }
            Reply::Another { seq } => {
                let data = packet::challenge(&mut self.scratch, &mut self.rng, &peer.id, &nonce, seq);
                self.challenges.add(&peer, nonce, data, now);
                counters.challenges_sent += 1;
                return self.send_scratch(peer.addr, counters);
            }
        }
        let session = self.sessions.record(&peer);
        let entry = table.get(&peer.id).map(|entry| &entry.contact);
        let at_home = entry.is_some_and(|contact| contact.udp_addr() == Some(peer.addr));
        let standing =
            if at_home || self.sessions.contains(&peer) { Standing::Known } else { Standing::Stranger };
        let of_table = entry.and_then(|contact| contact.record.as_ref());
        let record = [session, of_table].into_iter().flatten().max_by_key(|record| record.seq()).cloned();
        if !self.challenges.ration(&peer, standing, now, exempt) {
            return counters.challenges_refused += 1;
        }
        let seq = record.as_ref().map_or(0, Record::seq);
        let data = packet::challenge(&mut self.scratch, &mut self.rng, &peer.id, &nonce, seq);
        self.challenges.insert(peer, standing, (nonce, data), record, now);
        counters.challenges_sent += 1;
        self.send_scratch(peer.addr, counters);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one packet, named once")]
    fn open_handshake(
        &mut self,
        now: Instant,
        peer: Peer,
        packet: &Packet<'_>,
        answer: &Answer<'_>,
        exempt: bool,
        counters: &mut Counters,
        plaintext: &mut Vec<u8>,
    ) -> bool {
        let Some(challenge) = self.challenges.take(&peer, now) else {
            counters.handshakes_unexpected += 1;
            return false;
        };
        let local = Local { crypto: &self.crypto, record: &self.record };
        let session = handshake::accept(&local, &challenge, answer, now).and_then(|session| {
            let opened = session.open(&packet.nonce, packet.ad, packet.message, plaintext);
            if opened { Ok(session) } else { Err(HandshakeError::Message) }
        });
        let Ok(session) = session else {
            counters.handshakes_failed += 1;
            return false;
        };
        counters.handshakes_accepted += 1;
        self.sessions.insert(peer, session, Role::Recipient, exempt);
        true
    }

    /// Answers a challenge of `to` with a handshake that carries `message`. Returns the packet's nonce.
    pub(super) fn shake_hands(
        &mut self,
        now: Instant,
        (to, peer): (&Contact, Peer),
        challenge: (&ChallengeData, u64),
        message: &[u8],
        exempt: bool,
        counters: &mut Counters,
    ) -> Option<Nonce> {
        let local = Local { crypto: &self.crypto, record: &self.record };
        let (session, nonce) =
            handshake::answer(&mut self.scratch, &mut self.rng, &local, to, challenge, message, now)?;
        self.sessions.insert(peer, session, Role::Initiator, exempt);
        counters.handshakes_sent += 1;
        self.send_scratch(peer.addr, counters);
        Some(nonce)
    }

    /// Sends a message in the session with `peer`, and returns the packet's nonce. `None` if there is no session.
    pub(super) fn send(
        &mut self,
        now: Instant,
        peer: Peer,
        message: &[u8],
        counters: &mut Counters,
    ) -> Option<Nonce> {
        let (key, nonce) = self.sessions.get(&peer, now)?.seal(&mut self.rng)?;
        let auth = WriteAuth::Message { src: self.record.id() };
        packet::sealed(&mut self.scratch, &mut self.rng, &peer.id, &auth, (key, &nonce), message);
        self.send_scratch(peer.addr, counters);
        Some(nonce)
    }

    /// Sends a packet that `peer` cannot read, so that it challenges us. Returns the packet's nonce.
    pub(super) fn ask_for_challenge(&mut self, peer: Peer, counters: &mut Counters) -> Nonce {
        let mut nonce = [0; 12];
        self.rng.fill_bytes(&mut nonce);
        packet::random(&mut self.scratch, &mut self.rng, &peer.id, self.record.id(), &nonce);
        self.send_scratch(peer.addr, counters);
        nonce
    }

    /// Queues the packet in `scratch`.
    fn send_scratch(&mut self, to: SocketAddr, counters: &mut Counters) {
        if !self.outbox.push(to, &self.scratch) {
            counters.packets_dropped += 1;
        }
    }
}
