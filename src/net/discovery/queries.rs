//! What others ask of discovery, and the answers that are still owed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Counters, Details, DiscoveryError, LOOKUP_NODES, Pong, QUESTIONS, TableNode, TableObserver, TalkQuestion,
    candidate,
};
use crate::{
    Now, discv4,
    discv5::{self, TalkToken},
    kademlia::{CallError, Contact, Event, Table},
    net::node_db::{NodeDb, Update},
    node::{
        Endpoint, ForkSchedule, Head, NodeId, NodeKey, PublicKey, Record,
        local::{EntryOwner, LocalRecord},
    },
    policy::dial::{Candidate, Source},
};

/// A call on its way.
pub(super) type Command = Box<dyn FnOnce(&mut State, Now) + Send>;

type Answer<T> = oneshot::Receiver<T>;

/// Checks after which a node is worth remembering (geth: more than 5).
const PERSIST_CHECKS: u32 = 5;

/// An answer that is owed.
enum Owed {
    Ping(oneshot::Sender<Result<Pong, DiscoveryError>>),
    /// A protocol's part in the [`Resolve`] of this number.
    Resolve(u64),
    Lookup(mpsc::Sender<Contact>, HashSet<NodeId>),
    Talk(oneshot::Sender<Result<Bytes, DiscoveryError>>),
}

/// A resolve asks both protocols: the first that finds the node answers, the last that does not says so.
struct Resolve {
    reply: oneshot::Sender<Option<Contact>>,
    /// Protocols that still search.
    searching: usize,
}

/// An application that serves a TALKREQ protocol.
struct Served {
    questions: mpsc::Sender<TalkQuestion>,
    /// Questions that found the queue full since one got in.
    lost: u64,
}

/// What the task owns beside the sockets.
pub(super) struct State {
    pub(super) v4: Option<discv4::Engine<NodeKey>>,
    pub(super) v5: Option<discv5::Engine<NodeKey>>,
    pub(super) local: LocalRecord,
    pub(super) record: watch::Sender<Record>,
    pub(super) db: Option<NodeDb>,
    pub(super) candidates: mpsc::Sender<Candidate>,
    observer: Box<dyn TableObserver>,
    pub(super) seeds_wanted: bool,
    pub(super) counters: Counters,
    owed: HashMap<u64, Owed>,
    resolves: HashMap<u64, Resolve>,
    queries: u64,
    served: HashMap<Bytes, Served>,
}

impl State {
    pub(super) fn new(
        v4: Option<discv4::Engine<NodeKey>>,
        v5: Option<discv5::Engine<NodeKey>>,
        local: LocalRecord,
        record: watch::Sender<Record>,
        db: Option<NodeDb>,
        candidates: mpsc::Sender<Candidate>,
        observer: Box<dyn TableObserver>,
    ) -> Self {
        Self {
            v4,
            v5,
            local,
            record,
            db,
            candidates,
            observer,
            seeds_wanted: false,
            counters: Counters::default(),
            owed: HashMap::new(),
            resolves: HashMap::new(),
            queries: 0,
            served: HashMap::new(),
        }
    }

    pub(super) fn details(&self) -> Details {
        Details {
            v4: self.v4.as_ref().map(|engine| engine.counters().clone()),
            v5: self.v5.as_ref().map(|engine| *engine.counters()),
            database: self.db.as_ref().map(NodeDb::counters),
        }
    }

    fn owe(&mut self, owed: Owed) -> u64 {
        self.queries += 1;
        self.owed.insert(self.queries, owed);
        self.queries
    }

    pub(super) fn nodes(&self) -> Vec<TableNode> {
        let of = |table: &Table, source| -> Vec<TableNode> {
            let buckets = table.buckets().iter().enumerate();
            buckets
                .flat_map(|(bucket, nodes)| {
                    let all = nodes.entries().iter().chain(nodes.replacements());
                    all.map(move |entry| TableNode { table: source, bucket, entry: entry.clone() })
                })
                .collect()
        };
        let mut nodes = self.v4.as_ref().map(|engine| of(engine.table(), Source::V4)).unwrap_or_default();
        nodes.extend(self.v5.as_ref().map(|engine| of(engine.table(), Source::V5)).unwrap_or_default());
        nodes
    }

    pub(super) fn resolve(
        &mut self,
        now: Now,
        id: NodeId,
        key: Option<PublicKey>,
    ) -> Result<Answer<Option<Contact>>, DiscoveryError> {
        if self.v4.is_none() && self.v5.is_none() {
            return Err(DiscoveryError::Off("discovery"));
        }
        self.queries += 1;
        let number = self.queries;
        let (v4_query, v5_query) = (self.owe(Owed::Resolve(number)), self.owe(Owed::Resolve(number)));
        let v4 = self.v4.as_mut().map(|engine| engine.resolve(now, discv4::QueryId(v4_query), id, key, None));
        let v5 = self.v5.as_mut().map(|engine| engine.resolve(now, discv5::QueryId(v5_query), id));
        let (mut searching, mut refused) = (0, None);
        for (query, asked) in [(v4_query, v4), (v5_query, v5)] {
            match asked {
                Some(Ok(())) => {
                    searching += 1;
                    continue;
                }
                Some(Err(error)) => refused = Some(error),
                None => {}
            }
            self.owed.remove(&query);
        }
        match refused {
            Some(error) if searching == 0 => Err(error.into()),
            _ => {
                let (reply, answer) = oneshot::channel();
                self.resolves.insert(number, Resolve { reply, searching });
                Ok(answer)
            }
        }
    }

    pub(super) fn ping(
        &mut self,
        now: Now,
        node: Contact,
        over: Option<Source>,
    ) -> Result<Answer<Result<Pong, DiscoveryError>>, DiscoveryError> {
        let (reply, answer) = oneshot::channel();
        let query = self.owe(Owed::Ping(reply));
        // discv5 starts from a record; without one discv4 is the one to ask.
        let use_v4 = match over {
            Some(Source::V4) => true,
            Some(_) => false,
            None => self.v4.is_some() && (node.record.is_none() || self.v5.is_none()),
        };
        let asked = match (use_v4, &mut self.v4, &mut self.v5) {
            (true, Some(engine), _) => engine.ping(now, discv4::QueryId(query), &node).map_err(Into::into),
            (true, None, _) => Err(DiscoveryError::Off("discv4")),
            (false, _, Some(engine)) => engine.ping(now, discv5::QueryId(query), node).map_err(Into::into),
            (false, _, None) => Err(DiscoveryError::Off("discv5")),
        };
        if asked.is_err() {
            self.owed.remove(&query);
        }
        asked.map(|()| answer)
    }

    pub(super) fn lookup(
        &mut self,
        now: Now,
        target: NodeId,
        v4_target: Option<[u8; 64]>,
        over: Option<Source>,
    ) -> Result<mpsc::Receiver<Contact>, DiscoveryError> {
        let (nodes, met) = mpsc::channel(LOOKUP_NODES);
        let wants = |source| over.is_none_or(|over| over == source);
        let v4_query = self.owe(Owed::Lookup(nodes.clone(), HashSet::new()));
        let v5_query = self.owe(Owed::Lookup(nodes, HashSet::new()));
        let v4 = self.v4.as_mut().filter(|_| wants(Source::V4)).map(|engine| match v4_target {
            Some(key) => engine.lookup(now, discv4::QueryId(v4_query), key).map_err(Into::into),
            None => Err(DiscoveryError::KeyNeeded),
        });
        let v5 = self.v5.as_mut().filter(|_| wants(Source::V5));
        let v5 = v5.map(|engine| {
            engine.lookup(now, discv5::QueryId(v5_query), target).map_err(DiscoveryError::from)
        });
        let (mut searching, mut refused) = (false, None);
        for (query, asked) in [(v4_query, v4), (v5_query, v5)] {
            match asked {
                Some(Ok(())) => {
                    searching = true;
                    continue;
                }
                Some(Err(error)) => refused = Some(error),
                None => {}
            }
            self.owed.remove(&query);
        }
        if searching {
            return Ok(met);
        }
        Err(refused.unwrap_or(DiscoveryError::Off(match over {
            Some(Source::V4) => "discv4",
            Some(Source::V5) => "discv5",
            _ => "discovery",
        })))
    }

    pub(super) fn set_entry(
        &mut self,
        owner: EntryOwner,
        key: &str,
        value: &[u8],
    ) -> Result<Record, DiscoveryError> {
        let changed = self.local.set_entry(owner, key, value)?;
        self.publish(changed);
        Ok(self.local.record().clone())
    }

    pub(super) fn delete_entry(&mut self, owner: EntryOwner, key: &str) -> Result<Record, DiscoveryError> {
        let changed = self.local.delete_entry(owner, key)?;
        self.publish(changed);
        Ok(self.local.record().clone())
    }

    pub(super) fn announce(
        &mut self,
        now: Now,
        owner: EntryOwner,
        chain: Option<(Arc<ForkSchedule>, Head)>,
    ) -> Result<(), DiscoveryError> {
        let changed = match chain {
            Some((schedule, head)) => self.local.announce(now, owner, schedule, head)?,
            None => self.local.withdraw(owner),
        };
        self.publish(changed);
        Ok(())
    }

    pub(super) fn release_entries(&mut self, owner: EntryOwner) {
        let changed = self.local.release(owner);
        self.publish(changed);
    }

    /// Both protocols can begin with a key and an address; the record follows.
    pub(super) fn add_bootnode(
        &mut self,
        now: Now,
        node: &Contact,
        over: Option<Source>,
    ) -> Result<(), DiscoveryError> {
        let wants = |source| over.is_none_or(|over| over == source);
        let mut added = false;
        if let Some(engine) = self.v4.as_mut().filter(|_| wants(Source::V4)) {
            engine.add_bootnode(now, node.clone());
            added = true;
        }
        if let Some(engine) = self.v5.as_mut().filter(|_| wants(Source::V5)) {
            engine.add_bootnode(now, node.clone());
            added = true;
        }
        let off = match over {
            Some(Source::V4) => "discv4",
            Some(Source::V5) => "discv5",
            _ => "discovery",
        };
        if added { Ok(()) } else { Err(DiscoveryError::Off(off)) }
    }

    pub(super) fn talk(
        &mut self,
        now: Now,
        node: Contact,
        protocol: &[u8],
        request: &[u8],
    ) -> Result<Answer<Result<Bytes, DiscoveryError>>, DiscoveryError> {
        let (reply, answer) = oneshot::channel();
        let query = self.owe(Owed::Talk(reply));
        let asked = match &mut self.v5 {
            None => Err(DiscoveryError::Off("discv5")),
            Some(engine) => {
                engine.talk(now, discv5::QueryId(query), node, protocol, request).map_err(Into::into)
            }
        };
        if asked.is_err() {
            self.owed.remove(&query);
        }
        asked.map(|()| answer)
    }

    pub(super) fn serve_talk(
        &mut self,
        protocol: Bytes,
    ) -> Result<mpsc::Receiver<TalkQuestion>, DiscoveryError> {
        if self.v5.is_none() {
            return Err(DiscoveryError::Off("discv5"));
        }
        self.served.retain(|_, served| !served.questions.is_closed());
        if self.served.contains_key(&protocol) {
            return Err(DiscoveryError::TalkOwned(protocol.escape_ascii().to_string()));
        }
        let (questions, asked) = mpsc::channel(QUESTIONS);
        self.served.insert(protocol, Served { questions, lost: 0 });
        self.tell_talk_protocols();
        Ok(asked)
    }

    fn tell_talk_protocols(&mut self) {
        let names: Vec<Vec<u8>> = self.served.keys().map(|name| name.to_vec()).collect();
        if let Some(engine) = &mut self.v5 {
            engine.set_talk_protocols(names);
        }
    }

    pub(super) fn answer_talk(
        &mut self,
        now: Now,
        token: TalkToken,
        response: &[u8],
    ) -> Result<(), DiscoveryError> {
        let engine = self.v5.as_mut().ok_or(DiscoveryError::Off("discv5"))?;
        Ok(engine.answer_talk(now, token, response)?)
    }

    /// Tells everybody of our new record.
    pub(super) fn publish(&mut self, record: Option<Record>) {
        let Some(record) = record else { return };
        if let Some(engine) = &mut self.v4 {
            let endpoint = record.endpoint().unwrap_or(UNKNOWN);
            engine.set_local(discv4::Local { endpoint, record: record.clone() });
        }
        if let Some(engine) = &mut self.v5 {
            engine.set_local_record(record.clone());
        }
        tracing::info!(seq = record.seq(), endpoint = ?record.endpoint(), "our node record changed");
        self.record.send_replace(record);
    }

    /// Does what the engines ask for.
    pub(super) fn act(&mut self, now: Now) {
        while let Some(action) = self.v4.as_mut().and_then(discv4::Engine::poll_action) {
            self.act_v4(now, action);
        }
        while let Some(action) = self.v5.as_mut().and_then(discv5::Engine::poll_action) {
            self.act_v5(now, action);
        }
    }

    fn act_v4(&mut self, now: Now, action: discv4::Action) {
        use discv4::Action as A;
        match action {
            A::Discovered(contact) => self.offer(&contact, Source::V4),
            A::LookupNode { query, contact } => self.met(query.0, contact),
            A::LookupDone { query, .. } => drop(self.owed.remove(&query.0)),
            A::Resolved { query, contact } => self.resolved(query.0, contact),
            A::PingResult { query, pong } => {
                let pong = pong.map(|pong| Pong {
                    round_trip: pong.round_trip,
                    sees_us_at: pong.sees_us_at,
                    enr_seq: pong.enr_seq,
                });
                self.ponged(query.0, pong.ok_or(CallError::Timeout.into()));
            }
            A::RecordResult { .. } => {}
            A::Table(event) => self.observe(now, Source::V4, event),
            // Who pinged us unasked may say anything about our address: only answers count.
            A::EndpointStatement { from, sees_us_at, solicited: true, .. } => {
                let changed = self.local.statement(now, from, sees_us_at);
                self.publish(changed);
            }
            A::EndpointStatement { .. } => {}
            A::Persist { contact, checks } => self.persist(now, &contact, checks),
            A::SeedsWanted => self.seeds_wanted = true,
            A::ClockSkew { ahead } => tracing::warn!(
                seconds = ahead,
                "our clock is off by that much against the nodes around us; discv4 drops what looks expired"
            ),
        }
    }

    fn act_v5(&mut self, now: Now, action: discv5::Action) {
        use discv5::Action as A;
        match action {
            A::Discovered(contact) => self.offer(&contact, Source::V5),
            A::LookupNode { query, contact } => self.met(query.0, contact),
            A::LookupDone { query, .. } => drop(self.owed.remove(&query.0)),
            A::Resolved { query, contact } => self.resolved(query.0, contact),
            A::PingResult { query, pong } => {
                let pong = pong.map(|pong| Pong {
                    round_trip: pong.round_trip,
                    sees_us_at: Some(pong.sees_us_at),
                    enr_seq: Some(pong.enr_seq),
                });
                self.ponged(query.0, pong.map_err(Into::into));
            }
            A::TalkResult { query, response } => {
                if let Some(Owed::Talk(reply)) = self.owed.remove(&query.0) {
                    let _ = reply.send(response.map_err(Into::into));
                }
            }
            A::TalkRequested { token, from, protocol, request } => {
                let Some(served) = self.served.get_mut(&protocol) else {
                    let _ = self.answer_talk(now, token, &[]);
                    return;
                };
                let lost_before = served.lost;
                let question = TalkQuestion { token, node: from.id, addr: from.addr, request, lost_before };
                match served.questions.try_send(question) {
                    Ok(()) => served.lost = 0,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        served.lost += 1;
                        let _ = self.answer_talk(now, token, &[]);
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => {
                        self.served.remove(&protocol);
                        self.tell_talk_protocols();
                        let _ = self.answer_talk(now, token, &[]);
                    }
                }
            }
            A::EndpointStatement { from, sees_us_at, .. } => {
                let changed = self.local.statement(now, from, sees_us_at);
                self.publish(changed);
            }
            A::Persist { contact, checks } => self.persist(now, &contact, checks),
            A::Table(event) => self.observe(now, Source::V5, event),
            A::SeedsWanted => self.seeds_wanted = true,
        }
    }

    /// Passes on what happened in a table, with what the table knows by now.
    fn observe(&self, now: Now, source: Source, event: Event) {
        let table = match source {
            Source::V4 => self.v4.as_ref().map(discv4::Engine::table),
            _ => self.v5.as_ref().map(discv5::Engine::table),
        };
        let Some(table) = table else { return };
        match event {
            Event::Removed(contact, why) => self.observer.gone(source, contact.id, why, now.unix),
            Event::Added(contact) | Event::Live(contact) | Event::Updated(contact) => {
                // It may be gone again: then that is told next.
                if let Some(entry) = table.get(&contact.id) {
                    let bucket = table.bucket_of(&contact.id);
                    self.observer.there(TableNode { table: source, bucket, entry: entry.clone() });
                }
            }
        }
    }

    fn offer(&mut self, contact: &Contact, source: Source) {
        if self.candidates.try_send(candidate(contact, source)).is_err() {
            self.counters.candidates_dropped += 1;
        }
    }

    fn met(&mut self, query: u64, contact: Contact) {
        if let Some(Owed::Lookup(nodes, seen)) = self.owed.get_mut(&query)
            && seen.insert(contact.id)
        {
            // A reader that has gone, or is slower than a search, misses the node; the search goes on.
            let _ = nodes.try_send(contact);
        }
    }

    fn resolved(&mut self, query: u64, contact: Option<Contact>) {
        let Some(Owed::Resolve(number)) = self.owed.remove(&query) else { return };
        // None is left if the other protocol found the node.
        let Some(resolve) = self.resolves.get_mut(&number) else { return };
        resolve.searching = resolve.searching.saturating_sub(1);
        if (contact.is_some() || resolve.searching == 0)
            && let Some(Resolve { reply, .. }) = self.resolves.remove(&number)
        {
            // The caller may have given up.
            let _ = reply.send(contact);
        }
    }

    fn ponged(&mut self, query: u64, pong: Result<Pong, DiscoveryError>) {
        if let Some(Owed::Ping(reply)) = self.owed.remove(&query) {
            let _ = reply.send(pong);
        }
    }

    fn persist(&mut self, now: Now, contact: &Contact, checks: u32) {
        let (Some(db), Some(record)) = (&self.db, &contact.record) else { return };
        if checks > PERSIST_CHECKS {
            db.update(Update::Record(record.clone()));
            let (id, ip) = (contact.id, contact.endpoint.ip);
            db.update(Update::Pong { id, ip, at: now.unix.as_secs() });
        }
    }
}

/// Our endpoint while none is known.
pub(super) const UNKNOWN: Endpoint =
    Endpoint { ip: std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), udp: 0, tcp: 0 };
