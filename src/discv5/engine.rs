//! The engine: one discv5 node without a socket and without a clock.
//!
//! It has the shape of all engines (see the crate's docs), and the same public shape as discv4's. The owner feeds
//! datagrams and timeouts, calls commands, and after each of these takes all actions and packets. Errors of strangers
//! are counted ([`Counters`]), never returned; a `Result` is for our own caller.
//!
//! [`Overlay`] decides which node is asked next, and why. This engine adds the way in which discv5 asks it: in a
//! session ([`Wire`]), one request at a time ([`Calls`]).

use std::{fmt, net::SocketAddr, num::NonZeroUsize, time::Instant};

use bytes::{Bytes, BytesMut};
use rand::{RngCore, rngs::StdRng};

use super::{
    action::{Action, Config, Counters, TalkAction},
    answer,
    call::{Call, Calls, Ended, Purpose, Reply, Request, Response},
    crypto::Crypto,
    header::{
        Auth, ChallengeData, HANDSHAKE_OVERHEAD, HeaderBuf, HeaderError, MAX_MESSAGE, MAX_PACKET, Nonce,
        Unmasker,
    },
    message::{
        FindNode, Message, MessageError, Ping, Pong, RequestId, TalkRequest, TalkResponse, encode_nodes,
    },
    peer::{Peer, canonical_addr},
    talk::{Admission, Asker, MAX_TALK_RESPONSE, TalkError, TalkServer, TalkToken},
    wire::Wire,
};
use crate::{
    Now,
    kademlia::{
        CallError, Contact, Overlay, Ponged, Protocol, Query, QueryId, Source, Table, Target,
        distance::lookup_distances,
        searches::{Question, Wants},
        subnets::is_exempt,
    },
    node::{
        NodeId, Record,
        ration::{ProvenRates, ProvenRations},
    },
};

/// How often one call of `handle_timeout` checks again for timers that have become due meanwhile.
const MAX_ROUNDS: usize = 16;
/// How many senders of requests have a ration, about 3 MB.
const MAX_REQUESTERS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// A FINDNODE takes as much of its sender's ration as this many other requests: its answer has up to five packets.
const FINDNODE_COST: u32 = 4;

/// One discv5 node.
pub struct Engine<C> {
    wire: Wire<C>,
    overlay: Overlay<TalkAction>,
    calls: Calls,
    talk: TalkServer,
    /// The rations of the addresses that have sessions with us.
    requests: ProvenRations,
    counters: Counters,
    rng: StdRng,
    /// The buffer in which a message is encoded.
    message: BytesMut,
    /// The plaintext of the message that is read.
    plaintext: Vec<u8>,
}

impl<C: Crypto> fmt::Debug for Engine<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (record, nodes) = (self.wire.record(), self.overlay.table().len());
        let (sessions, requests) = (self.wire.sessions().len(), self.calls.len());
        write!(f, "Engine({record:?}, {nodes} nodes, {sessions:?} sessions, {requests} requests)")
    }
}

impl<C: Crypto> Engine<C> {
    /// The engine of the node whose record is `record` and whose key `crypto` holds. Refreshes its table at once.
    #[must_use]
    pub fn new(now: Now, config: Config, crypto: C, record: Record, mut rng: StdRng) -> Self {
        let Config { sessions, restrict, bootnodes, strangers_per_second } = config;
        Self {
            wire: Wire::new(crypto, record.clone(), sessions, strangers_per_second, &mut rng),
            overlay: Overlay::new(now, Protocol::V5, &record, restrict, bootnodes, &mut rng),
            calls: Calls::default(),
            talk: TalkServer::default(),
            requests: ProvenRations::new(ProvenRates::default(), MAX_REQUESTERS),
            counters: Counters::default(),
            message: BytesMut::new(),
            plaintext: Vec::new(),
            rng,
        }
    }

    /// Takes a datagram. Those that are not for us are counted and discarded.
    pub fn handle_datagram(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        self.receive(now, from, bytes);
        self.drive(now);
    }

    /// Carries out all timers that are due.
    pub fn handle_timeout(&mut self, now: Now) {
        // One timer may make another due at once: a bootnode that was added during a refresh makes the next one due at
        // its end. A time left in the past would wake the driver again for nothing. The bound is far above the number
        // of timers that one round can set, so a mistake of ours costs a wake-up and not the thread.
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
        let times = [self.calls.next_timeout(), self.talk.next_timeout(), self.overlay.poll_timeout()];
        times.into_iter().flatten().min()
    }

    /// The next action.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.overlay.poll_action()
    }

    /// Appends the next packet to `out` and returns its destination.
    pub fn poll_transmit(&mut self, _now: Now, out: &mut BytesMut) -> Option<SocketAddr> {
        self.wire.poll_transmit(&mut self.counters, out)
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
        self.ask(now, node, &Request::Ping, Purpose::Ping(query))
    }

    /// Looks for the nodes closest to `target`; ends in [`Action::LookupDone`].
    pub fn lookup(&mut self, now: Now, query: QueryId, target: impl Into<Target>) -> Result<(), CallError> {
        let begun = self.overlay.lookup(query, target.into());
        self.drive(now);
        begun
    }

    /// Finds a node's newest record: asks the node itself if the table has it or `hint` gives a possible address, and
    /// looks it up if it does not answer. Ends in [`Action::Resolved`].
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

    /// Asks an application at `node`; ends in [`TalkAction::Result`].
    pub fn talk(
        &mut self,
        now: Now,
        query: QueryId,
        node: &Contact,
        protocol: &[u8],
        request: &[u8],
    ) -> Result<(), CallError> {
        self.ask(now, node, &Request::Talk { protocol, request }, Purpose::Talk(query))
    }

    /// Answers a TALKREQ.
    pub fn answer_talk(&mut self, now: Now, token: TalkToken, response: &[u8]) -> Result<(), TalkError> {
        if response.len() > MAX_TALK_RESPONSE {
            return Err(TalkError::TooLarge(response.len(), MAX_TALK_RESPONSE));
        }
        let asker = self.talk.answer(token).ok_or(TalkError::Expired)?;
        if self.respond_talk(now, &asker, response) { Ok(()) } else { Err(TalkError::Expired) }
    }

    /// Sets the TALKREQ protocols that are served.
    pub fn set_talk_protocols(&mut self, protocols: impl IntoIterator<Item = Vec<u8>>) {
        self.talk.set_protocols(protocols);
    }

    /// How many [`Action::Discovered`] are wanted from now on. None are looked for while it is zero.
    pub fn set_demand(&mut self, now: Now, wanted: usize) {
        self.overlay.set_demand(wanted);
        self.drive(now);
    }

    /// Replaces our record. It must be signed by the same key.
    pub fn set_local_record(&mut self, record: Record) {
        self.overlay.set_local_record(&record);
        self.wire.set_record(record);
    }

    /// Adds a node that every refresh starts from, and refreshes. Its record may be missing: the key is enough.
    pub fn add_bootnode(&mut self, now: Now, node: Contact) {
        self.overlay.add_bootnode(now, node);
    }

    /// Offers a node of the node database to the table.
    pub fn add_seed(&mut self, now: Now, node: Contact) {
        self.overlay.offer(now, node, Source::Database);
        self.drive(now);
    }

    /// Distinguishes discv5 packets for us from all others; the demultiplexer keeps a copy.
    #[must_use]
    pub fn unmasker(&self) -> &Unmasker {
        self.wire.unmasker()
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

    /// Whether searches and requests keep their bounds; for tests and fuzzing.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_consistent(&self) -> bool {
        self.overlay.is_consistent() && self.calls.len() <= super::call::MAX_CALLS
    }

    fn do_due(&mut self, now: Now) {
        while let Some(id) = self.calls.expired(now.mono) {
            self.counters.requests_timed_out += 1;
            self.request_ended(now, &id, Err(CallError::Timeout));
        }
        while let Some((_, asker)) = self.talk.expired(now.mono) {
            self.counters.talk_expired += 1;
            self.respond_talk(now, &asker, &[]);
        }
        while let Some(contact) = self.overlay.poll_check(now) {
            match self.ask(now, &contact, &Request::Ping, Purpose::Check) {
                Ok(()) => {}
                // A full queue shows nothing about the node; an address that we may not write to does.
                Err(CallError::QueueFull) => self.overlay.check_skipped(&contact.id),
                Err(_) => self.overlay.check_failed(now, &contact.id),
            }
        }
        self.overlay.handle_timeout(now);
        self.drive(now);
    }

    /// Sends the requests of the searches, and passes on their results and the changes of the table.
    fn drive(&mut self, now: Now) {
        while let Some(question) = self.overlay.poll_question(now) {
            if self.ask_for(now, &question).is_err() {
                self.overlay.unasked(&question);
            }
        }
        self.counters.lookups_refused += self.overlay.settle(now);
    }

    /// Sends a search's request to a node: both its record and other nodes are asked for by distance.
    fn ask_for(&mut self, now: Now, question: &Question) -> Result<(), CallError> {
        let Question { search, to, wants } = question;
        let (distances, purpose) = match (wants, self.overlay.target(*search)) {
            (Wants::Nodes, Some(target)) if target.id() != to.id => {
                (lookup_distances(&target.id(), &to.id), Purpose::Nodes(*search))
            }
            // The target itself: only whether it answers counts.
            (Wants::Nodes, _) => (vec![0], Purpose::Nodes(*search)),
            (Wants::Record, _) => (vec![0], Purpose::Record(Some(*search))),
        };
        self.ask(now, to, &Request::FindNode(distances), purpose)
    }

    /// Asks a node, at once or after the requests that wait for the same node. Returns the reason if it cannot be
    /// asked.
    fn ask(
        &mut self,
        now: Now,
        to: &Contact,
        request: &Request<'_>,
        purpose: Purpose,
    ) -> Result<(), CallError> {
        // A caller's request is sent in any case, and so are checks of the table.
        let addr = match purpose {
            Purpose::Nodes(_) | Purpose::Record(_) => self.overlay.may_search(now, to),
            Purpose::Check | Purpose::Ping(_) | Purpose::Talk(_) => self.overlay.may_ask(to),
        }?;
        let id = RequestId::from_u64(self.rng.next_u64());
        self.message.clear();
        let expects = request.encode(id, self.wire.record().seq(), &mut self.message);
        if self.message.len() > MAX_MESSAGE {
            return Err(CallError::TooLarge(self.message.len(), MAX_MESSAGE));
        }
        let message = Bytes::copy_from_slice(&self.message);
        let (peer, distances) = (Peer::new(to.id, addr), request.distances().to_vec());
        let call = Call { to: to.clone(), peer, purpose, id, message, expects, distances };
        match self.calls.enqueue(call, now.mono) {
            Ok(true) => self.send_request(now, &to.id),
            Ok(false) => {}
            Err(full) => {
                self.counters.requests_refused += 1;
                return Err(full);
            }
        }
        Ok(())
    }

    /// Sends the active request to `id`: in the session if there is one, else a packet that asks for a challenge.
    fn send_request(&mut self, now: Now, id: &NodeId) {
        let Some((peer, message)) = self.calls.active(id) else { return };
        let nonce = match self.wire.send(now.mono, peer, message, &mut self.counters) {
            Some(nonce) => nonce,
            None => self.wire.ask_for_challenge(peer, &mut self.counters),
        };
        self.calls.touch(id, Some(nonce), now.mono);
        self.counters.requests_sent += 1;
    }

    /// Sends what `encode` writes, in the session with `peer`. False if there is none any more.
    fn send(&mut self, now: Now, peer: Peer, encode: impl FnOnce(&mut BytesMut)) -> bool {
        self.message.clear();
        encode(&mut self.message);
        self.wire.send(now.mono, peer, &self.message, &mut self.counters).is_some()
    }

    fn receive(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
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
                return self.challenge_came(now, from, packet.nonce, enr_seq, data);
            }
            Auth::Message { src } => (src, false),
            Auth::Handshake { src, .. } => (src, true),
        };
        if src == self.overlay.table().own_id() || from.port() == 0 {
            return self.counters.malformed += 1;
        }
        if !self.overlay.reach().allows(from.ip()) {
            return self.counters.restricted += 1;
        }
        let peer = Peer::new(src, from);
        let limits = (self.overlay.table(), self.is_exempt(&peer));
        // Taken out while it is read, because its contents may change the engine.
        let mut plaintext = std::mem::take(&mut self.plaintext);
        if self.wire.open(now.mono, peer, &packet, limits, &mut self.counters, &mut plaintext) {
            if is_handshake
                && let Some(contact) = self.wire.record_of(&peer).and_then(|record| at_home(&peer, record))
            {
                self.overlay.offer(now, contact, Source::Inbound);
            }
            self.message_came(now, peer, &plaintext);
        }
        self.plaintext = plaintext;
    }

    /// Whether the limits per subnet leave the peer out.
    fn is_exempt(&self, peer: &Peer) -> bool {
        is_exempt(peer.addr.ip(), self.overlay.reach().is_private())
    }

    /// A WHOAREYOU: if it answers a request of ours, the request is sent again in a handshake.
    fn challenge_came(
        &mut self,
        now: Now,
        from: SocketAddr,
        nonce: Nonce,
        enr_seq: u64,
        data: &ChallengeData,
    ) {
        let Some((to, peer, mut message)) = self.calls.challenged(&nonce, from) else {
            return self.counters.challenges_unsolicited += 1;
        };
        self.overlay.heard(from.ip());
        if message.len() > MAX_PACKET - HANDSHAKE_OVERHEAD - self.wire.record().encoded().len() {
            // Only a TALKREQ is that large. A PING makes the session; the request follows when it is answered.
            let id = RequestId::from_u64(self.rng.next_u64());
            self.calls.warm(&peer.id, id);
            self.message.clear();
            Ping { id, enr_seq: self.wire.record().seq() }.encode(&mut self.message);
            message = self.message.split().freeze();
        }
        let (to, challenge, exempt) = ((&to, peer), (data, enr_seq), self.is_exempt(&peer));
        let shaken = self.wire.shake_hands(now.mono, to, challenge, &message, exempt, &mut self.counters);
        if let Some(nonce) = shaken {
            self.calls.touch(&peer.id, Some(nonce), now.mono);
        }
    }

    fn message_came(&mut self, now: Now, peer: Peer, plaintext: &[u8]) {
        let message = Message::decode(plaintext);
        let cost = match &message {
            Ok(Message::Ping(_) | Message::TalkRequest(_)) => Some(1),
            Ok(Message::FindNode(_)) => Some(FINDNODE_COST),
            _ => None,
        };
        if let Some(cost) = cost {
            self.counters.requests_received += 1;
            if !self.may_request(now, &peer, cost) {
                return self.counters.requests_limited += 1;
            }
        }
        match message {
            Ok(Message::Ping(ping)) => self.ping_came(now, peer, ping),
            Ok(Message::FindNode(find)) => self.find_node_came(now, peer, &find),
            Ok(Message::TalkRequest(talk)) => self.talk_came(now, peer, &talk),
            Ok(response) => self.response_came(now, peer, &response),
            Err(MessageError::Unknown(_)) => self.counters.messages_unknown += 1,
            Err(_) => self.counters.messages_malformed += 1,
        }
    }

    /// Takes from the ration of a request's sender. A session lasts for a day and its packets can be replayed, so a
    /// session alone gives no right to any number of answers. Test networks are exempt, as from all limits per subnet.
    fn may_request(&mut self, now: Now, peer: &Peer, cost: u32) -> bool {
        if self.is_exempt(peer) {
            return true;
        }
        let addr = peer.addr;
        self.requests.prove(addr);
        let table = self.overlay.table();
        self.requests.take(now.mono, addr, cost, || table.has_addr(addr)).unwrap_or_default()
    }

    fn ping_came(&mut self, now: Now, peer: Peer, ping: Ping) {
        let pong = Pong { id: ping.id, enr_seq: self.wire.record().seq(), recipient: peer.addr };
        self.send(now, peer, |out| pong.encode(out));
    }

    fn find_node_came(&mut self, now: Now, peer: Peer, find: &FindNode<'_>) {
        let records =
            answer::find(self.overlay.table(), self.wire.record(), peer.addr.ip(), find.distances());
        let packets = answer::divide(&records);
        for range in &packets {
            let records = records.get(range.clone()).unwrap_or_default();
            self.send(now, peer, |out| encode_nodes(out, find.id, packets.len() as u64, records));
        }
    }

    fn talk_came(&mut self, now: Now, peer: Peer, talk: &TalkRequest<'_>) {
        let asker = Asker { peer, id: talk.id };
        match self.talk.admit(talk.protocol, asker, self.is_exempt(&peer), now.mono) {
            Admission::Waits(token) => self.overlay.tell(Action::Own(TalkAction::Requested {
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

    /// Sends a TALKRESP. Returns false if the session has ended.
    fn respond_talk(&mut self, now: Now, asker: &Asker, response: &[u8]) -> bool {
        self.send(now, asker.peer, |out| TalkResponse { id: asker.id, response }.encode(out))
    }

    /// A response came in the session with `peer`: to the request that is open, or to none.
    fn response_came(&mut self, now: Now, peer: Peer, message: &Message<'_>) {
        let round_trip = match self.calls.response_came(now.mono, &peer, message) {
            Response::Unsolicited => return self.counters.responses_unsolicited += 1,
            Response::Warmed => return self.send_request(now, &peer.id),
            Response::Answer(round_trip) => round_trip,
        };
        self.overlay.heard(peer.addr.ip());
        let exempt = self.is_exempt(&peer);
        self.wire.answered(&peer, exempt);
        let reply = match message {
            Message::Nodes(nodes) => {
                let decode = |raw: &[u8]| self.wire.crypto().decode_record(raw).ok();
                let reach = self.overlay.reach();
                let may_accept = |addr| reach.may_accept(peer.addr.ip(), addr);
                let (complete, refused) = self.calls.collect(now.mono, &peer, nodes, decode, may_accept);
                self.counters.records_refused += refused;
                if !complete {
                    return;
                }
                Reply::Nodes
            }
            Message::TalkResponse(talk) => Reply::Talk(Bytes::copy_from_slice(talk.response)),
            Message::Pong(pong) => Reply::Pong(Ponged {
                enr_seq: Some(pong.enr_seq),
                sees_us_at: Some(pong.recipient),
                round_trip,
            }),
            Message::Ping(_) | Message::FindNode(_) | Message::TalkRequest(_) => return,
        };
        self.request_ended(now, &peer.id, Ok(reply));
    }

    /// The active request to `id` ended. Sends the next one that waits for the node.
    fn request_ended(&mut self, now: Now, id: &NodeId, result: Result<Reply, CallError>) {
        let Some(Ended { to, purpose, records, next }) = self.calls.finish(id, now.mono) else { return };
        if next {
            self.send_request(now, id);
        }
        if let (Err(CallError::Timeout), Some(addr)) = (&result, to.udp_addr()) {
            self.overlay.unanswered(now, addr.ip());
        }
        match (purpose, result) {
            (Purpose::Check, Ok(Reply::Pong(pong))) => self.check_passed(now, to, pong),
            (Purpose::Check, _) => self.overlay.check_failed(now, id),
            (Purpose::Record(search), result) => {
                let own = records.into_iter().find(|record| record.id() == *id);
                let contact = own.and_then(Contact::from_record);
                if let Some(contact) = &contact {
                    self.overlay.offer(now, contact.clone(), Source::Relayed { by: *id });
                }
                if let Some(search) = search {
                    self.overlay.record_came(search, contact, result.is_ok());
                }
            }
            (Purpose::Nodes(search), result) => {
                // The packets that came before a NODES packet was lost count as the whole answer.
                let answered = result.is_ok() || !records.is_empty();
                let told = records.into_iter().filter_map(Contact::from_record).collect();
                self.overlay.told(now, search, *id, told);
                self.overlay.answered(now, search, id, answered);
            }
            (Purpose::Ping(query), Ok(Reply::Pong(pong))) => {
                self.overlay.tell(Action::PingResult { query, pong: Ok(pong) });
            }
            (Purpose::Talk(query), Ok(Reply::Talk(response))) => {
                self.overlay.tell(Action::Own(TalkAction::Result { query, response: Ok(response) }));
            }
            (Purpose::Ping(query), Err(error)) => {
                self.overlay.tell(Action::PingResult { query, pong: Err(error) });
            }
            (Purpose::Talk(query), Err(error)) => {
                self.overlay.tell(Action::Own(TalkAction::Result { query, response: Err(error) }));
            }
            // An answer of another type was refused when it came.
            (Purpose::Ping(_) | Purpose::Talk(_), Ok(_)) => {}
        }
    }

    fn check_passed(&mut self, now: Now, contact: Contact, pong: Ponged) {
        let Some(passed) = self.overlay.check_passed(now, &contact.id, pong.enr_seq) else { return };
        let (by, from) = (contact.id, contact.endpoint.ip);
        if let Some(sees_us_at) = pong.sees_us_at {
            self.overlay.tell(Action::EndpointStatement { by, from, sees_us_at });
        }
        self.overlay.tell(Action::Persist { contact: contact.clone(), checks: passed.checks });
        if passed.wants_record {
            // A full queue means that it is busy with us; the next check asks again.
            let _ = self.ask(now, &contact, &Request::FindNode(vec![0]), Purpose::Record(None));
        }
    }
}

/// A node proved its identity and address, if its record names that endpoint. Otherwise other nodes could not reach it
/// there, and we must not write to an address because a stranger claims it.
fn at_home(peer: &Peer, record: &Record) -> Option<Contact> {
    let endpoints = [record.endpoint4(), record.endpoint6()];
    let endpoint = endpoints.into_iter().flatten().find(|endpoint| endpoint.udp_addr() == Some(peer.addr))?;
    Some(Contact { id: peer.id, public_key: record.public_key(), endpoint, record: Some(record.clone()) })
}

#[cfg(test)]
mod tests;
