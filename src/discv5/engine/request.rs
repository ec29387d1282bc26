//! What we ask: requests from their beginning to their end, and what their answers change.

use bytes::Bytes;
use rand::RngCore;

use super::{Action, Engine, TalkAction};
use crate::{
    Now,
    discv5::{
        answer::{MAX_PACKETS, MAX_RECORDS},
        call::Call,
        crypto::Crypto,
        header::MAX_MESSAGE,
        message::{Message, MessageType, Nodes, Ping, RequestId, TalkRequest, encode_findnode},
        peer::Peer,
    },
    kademlia::{
        CallError, Contact, Ponged, QueryId, Source,
        distance::{log_distance, lookup_distances},
        searches::{Question, SearchId, Wants},
    },
    node::{NodeId, Record},
};

/// What a request was made for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A liveness check of the table.
    Check,
    /// The node's newest record: a search wants to know, or the table, because the node said that it has a newer one.
    Record(Option<SearchId>),
    /// The nodes that it knows near this lookup's target.
    Nodes(SearchId),
    /// [`Engine::ping`].
    Ping(QueryId),
    /// [`Engine::talk`].
    Talk(QueryId),
}

/// A request, before it has an id.
#[derive(Debug)]
pub(super) enum Request<'a> {
    Ping,
    FindNode(Vec<u16>),
    Talk { protocol: &'a [u8], request: &'a [u8] },
}

/// What an answer says. The records of NODES are with the request, which collects them.
#[derive(Debug)]
pub(super) enum Reply {
    Pong(Ponged),
    Nodes,
    Talk(Bytes),
}

impl<C: Crypto> Engine<C> {
    /// Asks a node what a search wants to know: both its record and other nodes are asked for by distance.
    pub(super) fn ask(&mut self, now: Now, question: &Question) -> Result<(), CallError> {
        let Question { search, to, wants } = question;
        let (distances, purpose) = match (wants, self.searches.target(*search)) {
            (Wants::Nodes, Some(target)) if target.id() != to.id => {
                (lookup_distances(&target.id(), &to.id), Purpose::Nodes(*search))
            }
            // The target itself: whether it answers is what counts.
            (Wants::Nodes, _) => (vec![0], Purpose::Nodes(*search)),
            (Wants::Record, _) => (vec![0], Purpose::Record(Some(*search))),
        };
        self.begin_call(now, to, &Request::FindNode(distances), purpose)
    }

    /// Begins a request, at once or after those that wait for the same node.
    pub(super) fn begin_call(
        &mut self,
        now: Now,
        to: &Contact,
        request: &Request<'_>,
        purpose: Purpose,
    ) -> Result<(), CallError> {
        let addr = to.udp_addr().ok_or(CallError::NoEndpoint)?;
        if to.id == self.table.own_id() {
            return Err(CallError::Myself);
        }
        if !self.reach.may_ask(addr.ip()) {
            return Err(CallError::Address);
        }
        let id = RequestId::from_u64(self.rng.next_u64());
        let (expects, distances) = self.encode_request(id, request);
        if self.message.len() > MAX_MESSAGE {
            return Err(CallError::TooLarge(self.message.len(), MAX_MESSAGE));
        }
        let message = Bytes::copy_from_slice(&self.message);
        let (peer, node) = (Peer::new(to.id, addr), to.id);
        let call = Call { to: to.clone(), peer, purpose, id, message, expects, distances };
        match self.calls.enqueue(call, now.mono) {
            Ok(true) => self.send_call(now, &node),
            Ok(false) => {}
            Err(full) => {
                self.counters.requests_refused += 1;
                return Err(full);
            }
        }
        Ok(())
    }

    fn encode_request(&mut self, id: RequestId, request: &Request<'_>) -> (MessageType, Vec<u16>) {
        let out = &mut self.message;
        out.clear();
        match request {
            Request::Ping => {
                Ping { id, enr_seq: self.wire.record().seq() }.encode(out);
                (MessageType::Pong, Vec::new())
            }
            Request::FindNode(distances) => {
                encode_findnode(out, id, distances);
                (MessageType::Nodes, distances.clone())
            }
            Request::Talk { protocol, request } => {
                TalkRequest { id, protocol, request }.encode(out);
                (MessageType::TalkResponse, Vec::new())
            }
        }
    }

    /// Sends the active request to `id`: in the session if there is one, else a packet that asks for a challenge.
    fn send_call(&mut self, now: Now, id: &NodeId) {
        let Some(active) = self.calls.active(id) else { return };
        let (peer, message) = (active.call.peer, &active.call.message);
        let nonce = match self.wire.send(now.mono, peer, message, &mut self.counters) {
            Some(nonce) => nonce,
            None => self.wire.ask_for_challenge(peer, &mut self.counters),
        };
        self.calls.touch(id, Some(nonce), now.mono);
        self.counters.requests_sent += 1;
    }

    /// A response came in the session with `peer`.
    pub(super) fn answered(&mut self, now: Now, peer: Peer, message: &Message<'_>) {
        let exempt = self.is_exempt(&peer);
        let active = self.calls.active(&peer.id).filter(|active| active.call.peer == peer);
        let Some(active) = active else { return self.counters.responses_unsolicited += 1 };
        if active.warming.is_some_and(|id| id == message.id()) && message.kind() == MessageType::Pong {
            active.warming = None;
            return self.send_call(now, &peer.id);
        }
        let fits = message.id() == active.call.id && message.kind() == active.call.expects;
        if !fits || active.warming.is_some() {
            return self.counters.responses_unsolicited += 1;
        }
        let round_trip = now.mono.saturating_duration_since(active.sent);
        self.wire.answered(&peer, exempt);
        let reply = match message {
            Message::Nodes(nodes) => {
                if !self.collect(now, peer, nodes) {
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
        self.end_call(now, &peer.id, Ok(reply));
    }

    /// Takes the records of one NODES packet. True once all packets are there.
    fn collect(&mut self, now: Now, peer: Peer, nodes: &Nodes<'_>) -> bool {
        let Some(active) = self.calls.active(&peer.id) else { return false };
        let (received, total) = &mut active.packets;
        if *received == 0 {
            // The first packet's word counts, within reason: none means one, hundreds mean five.
            *total = nodes.total.clamp(1, MAX_PACKETS as u64);
        }
        *received += 1;
        let complete = received >= total;
        for raw in nodes.records() {
            let record = if active.records.len() < MAX_RECORDS {
                self.wire.crypto().decode_record(raw).ok()
            } else {
                None
            };
            let fits = |record: &Record| {
                active.call.distances.contains(&log_distance(&peer.id, &record.id()))
                    && !active.records.iter().any(|known| known.id() == record.id())
                    && record
                        .endpoint()
                        .and_then(|endpoint| endpoint.udp_addr())
                        .is_some_and(|told| self.reach.may_be_told(peer.addr.ip(), told))
            };
            match record.filter(fits) {
                Some(record) => active.records.push(record),
                None => self.counters.records_refused += 1,
            }
        }
        if !complete {
            self.calls.touch(&peer.id, None, now.mono);
        }
        complete
    }

    /// Ends the active request to `id` and sends the next one that waits for it.
    pub(super) fn end_call(&mut self, now: Now, id: &NodeId, result: Result<Reply, CallError>) {
        let Some((mut ended, next)) = self.calls.finish(id, now.mono) else { return };
        if next {
            self.send_call(now, id);
        }
        let records = std::mem::take(&mut ended.records);
        match (ended.call.purpose, result) {
            (Purpose::Check, Ok(Reply::Pong(pong))) => self.check_passed(now, ended.call.to, pong),
            (Purpose::Check, _) => self.table.check_failed(now, id),
            (Purpose::Record(search), result) => {
                let own = records.into_iter().find(|record| record.id() == *id);
                let contact = own.and_then(Contact::from_record);
                if let Some(contact) = &contact {
                    self.offer(now, contact.clone(), Source::Relayed { by: *id });
                }
                if let Some(search) = search {
                    self.searches.record_came(&self.table, search, contact, result.is_ok());
                }
            }
            (Purpose::Nodes(search), result) => {
                // What came before a NODES packet was lost is as good as if all had come.
                let answered = result.is_ok() || !records.is_empty();
                let told = records.into_iter().filter_map(Contact::from_record).collect();
                self.searches.told(now, &mut self.table, search, *id, told);
                self.searches.answered(now, &mut self.table, search, id, answered);
            }
            (Purpose::Ping(query), Ok(Reply::Pong(pong))) => {
                self.actions.push_back(Action::PingResult { query, pong: Ok(pong) });
            }
            (Purpose::Talk(query), Ok(Reply::Talk(response))) => {
                self.actions.push_back(Action::Own(TalkAction::Result { query, response: Ok(response) }));
            }
            (Purpose::Ping(query), Err(error)) => {
                self.actions.push_back(Action::PingResult { query, pong: Err(error) });
            }
            (Purpose::Talk(query), Err(error)) => {
                self.actions.push_back(Action::Own(TalkAction::Result { query, response: Err(error) }));
            }
            // An answer of another type was refused when it came.
            (Purpose::Ping(_) | Purpose::Talk(_), Ok(_)) => {}
        }
    }

    /// Checks the nodes of the table whose time has come.
    pub(super) fn check_table(&mut self, now: Now) {
        while let Some(contact) = self.table.poll_check(now) {
            match self.begin_call(now, &contact, &Request::Ping, Purpose::Check) {
                Ok(()) => {}
                // The queue says nothing about the node; an address that we may not write to does.
                Err(CallError::QueueFull) => self.table.check_skipped(&contact.id),
                Err(_) => self.table.check_failed(now, &contact.id),
            }
        }
    }

    fn check_passed(&mut self, now: Now, contact: Contact, pong: Ponged) {
        let Some(passed) = self.table.check_passed(now, &contact.id, pong.enr_seq) else { return };
        let (by, from) = (contact.id, contact.endpoint.ip);
        if let Some(sees_us_at) = pong.sees_us_at {
            self.actions.push_back(Action::EndpointStatement { by, from, sees_us_at });
        }
        self.actions.push_back(Action::Persist { contact: contact.clone(), checks: passed.checks });
        if passed.wants_record {
            // A full queue means that it is busy with us; the next check asks again.
            let _ = self.begin_call(now, &contact, &Request::FindNode(vec![0]), Purpose::Record(None));
        }
    }
}
