//! Queries to discovery, and the replies that are still due.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Counters, Details, DiscoveryError, LOOKUP_NODES, QUESTIONS, TableNode, TableObserver, TalkQuestion,
    candidate,
};
use crate::{
    Now,
    discv4::{self, ClockSkew},
    discv5::{self, TalkAction, TalkToken},
    kademlia::{Action, CallError, Contact, Event, Ponged, Protocol, Query, QueryId, Table, Target},
    net::node_db::{NodeDb, Update},
    node::{
        ForkSchedule, Head, NodeId, NodeKey, Record,
        local::{EntryOwner, LocalRecord},
    },
    policy::dial::Candidate,
};

/// A call that is sent to the task.
pub(super) type Command = Box<dyn FnOnce(&mut State, Now) + Send>;

type Answer<T> = oneshot::Receiver<T>;

/// A node with more successful checks than this is written to the database (geth: more than 5).
const PERSIST_CHECKS: u32 = 5;

/// A reply that is due.
enum Owed {
    Ping(oneshot::Sender<Result<Ponged, CallError>>),
    /// A protocol's part in the [`Resolve`] of this number.
    Resolve(u64),
    Lookup(mpsc::Sender<Contact>, HashSet<NodeId>),
    Talk(oneshot::Sender<Result<Bytes, CallError>>),
}

/// A resolve asks both protocols. The first that finds the node replies; the last one that does not find it replies so.
struct Resolve {
    reply: oneshot::Sender<Option<Contact>>,
    /// The number of protocols that still search.
    searching: usize,
}

/// An application that serves a TALKREQ protocol.
struct Served {
    questions: mpsc::Sender<TalkQuestion>,
    /// The TALKREQs that found the queue full since the last one that was queued.
    lost: u64,
}

/// The state of the task beside the sockets.
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
    owed: HashMap<QueryId, Owed>,
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

    fn owe(&mut self, owed: Owed) -> QueryId {
        self.queries += 1;
        let query = QueryId(self.queries);
        self.owed.insert(query, owed);
        query
    }

    pub(super) fn nodes(&self) -> Vec<TableNode> {
        let mut nodes = Vec::new();
        for protocol in [Protocol::V4, Protocol::V5] {
            let buckets = self.table(protocol).map(Table::buckets).unwrap_or_default();
            for (bucket, of_bucket) in buckets.iter().enumerate() {
                let all = of_bucket.entries().iter().chain(of_bucket.replacements());
                nodes.extend(all.map(|entry| TableNode { table: protocol, bucket, entry: entry.clone() }));
            }
        }
        nodes
    }

    fn table(&self, of: Protocol) -> Option<&Table> {
        match of {
            Protocol::V4 => self.v4.as_ref().map(discv4::Engine::table),
            Protocol::V5 => self.v5.as_ref().map(discv5::Engine::table),
        }
    }

    /// The protocols that a call is for: the one that it names, or all that run.
    fn running(&self, over: Option<Protocol>) -> Result<Vec<Protocol>, DiscoveryError> {
        let mut running = vec![Protocol::V4, Protocol::V5];
        running
            .retain(|protocol| over.is_none_or(|over| over == *protocol) && self.table(*protocol).is_some());
        match (running.is_empty(), over) {
            (false, _) => Ok(running),
            (true, Some(over)) => Err(DiscoveryError::Off(over)),
            (true, None) => Err(DiscoveryError::NoDiscovery),
        }
    }

    /// Gives a query to one protocol. A reply is due only if the query is not refused.
    fn ask(&mut self, now: Now, over: Protocol, query: &Query, owed: Owed) -> Result<(), DiscoveryError> {
        let id = self.owe(owed);
        let asked = match over {
            Protocol::V4 => self.v4.as_mut().map(|engine| engine.query(now, id, query)),
            Protocol::V5 => self.v5.as_mut().map(|engine| engine.query(now, id, query)),
        };
        let asked = asked.ok_or(DiscoveryError::Off(over)).and_then(|asked| Ok(asked?));
        if asked.is_err() {
            self.owed.remove(&id);
        }
        asked
    }

    pub(super) fn resolve(
        &mut self,
        now: Now,
        target: Target,
    ) -> Result<Answer<Option<Contact>>, DiscoveryError> {
        let protocols = self.running(None)?;
        self.queries += 1;
        let number = self.queries;
        let (mut searching, mut refused) = (0, None);
        for over in protocols {
            match self.ask(now, over, &Query::Resolve(target), Owed::Resolve(number)) {
                Ok(()) => searching += 1,
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if searching == 0 => Err(error),
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
        over: Option<Protocol>,
    ) -> Result<Answer<Result<Ponged, CallError>>, DiscoveryError> {
        // discv5 starts from a record; without one discv4 is the one to ask.
        let v4_is_better = self.v4.is_some() && (node.record.is_none() || self.v5.is_none());
        let over = over.unwrap_or(if v4_is_better { Protocol::V4 } else { Protocol::V5 });
        let (reply, answer) = oneshot::channel();
        self.ask(now, over, &Query::Ping(node), Owed::Ping(reply))?;
        Ok(answer)
    }

    pub(super) fn lookup(
        &mut self,
        now: Now,
        target: Target,
        over: Option<Protocol>,
    ) -> Result<mpsc::Receiver<Contact>, DiscoveryError> {
        let (nodes, met) = mpsc::channel(LOOKUP_NODES);
        let (mut searching, mut refused) = (false, None);
        for over in self.running(over)? {
            let owed = Owed::Lookup(nodes.clone(), HashSet::new());
            match self.ask(now, over, &Query::Lookup(target), owed) {
                Ok(()) => searching = true,
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if !searching => Err(error),
            _ => Ok(met),
        }
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

    /// Both protocols can start with a public key and an address; the node sends its record later.
    pub(super) fn add_bootnode(
        &mut self,
        now: Now,
        node: &Contact,
        over: Option<Protocol>,
    ) -> Result<(), DiscoveryError> {
        for over in self.running(over)? {
            match over {
                Protocol::V4 => self.v4.iter_mut().for_each(|engine| engine.add_bootnode(now, node.clone())),
                Protocol::V5 => self.v5.iter_mut().for_each(|engine| engine.add_bootnode(now, node.clone())),
            }
        }
        Ok(())
    }

    pub(super) fn talk(
        &mut self,
        now: Now,
        node: &Contact,
        protocol: &[u8],
        request: &[u8],
    ) -> Result<Answer<Result<Bytes, CallError>>, DiscoveryError> {
        let (reply, answer) = oneshot::channel();
        let query = self.owe(Owed::Talk(reply));
        let asked = match &mut self.v5 {
            None => Err(DiscoveryError::Off(Protocol::V5)),
            Some(engine) => engine.talk(now, query, node, protocol, request).map_err(Into::into),
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
            return Err(DiscoveryError::Off(Protocol::V5));
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
        let engine = self.v5.as_mut().ok_or(DiscoveryError::Off(Protocol::V5))?;
        Ok(engine.answer_talk(now, token, response)?)
    }

    /// Publishes our new record to all parts.
    pub(super) fn publish(&mut self, record: Option<Record>) {
        let Some(record) = record else { return };
        if let Some(engine) = &mut self.v4 {
            engine.set_local_record(record.clone());
        }
        if let Some(engine) = &mut self.v5 {
            engine.set_local_record(record.clone());
        }
        tracing::info!(seq = record.seq(), endpoint = ?record.endpoint(), "our node record changed");
        self.record.send_replace(record);
    }

    /// Carries out the actions of the engines.
    pub(super) fn act(&mut self, now: Now) {
        while let Some(action) = self.v4.as_mut().and_then(discv4::Engine::poll_action) {
            if let Some(ClockSkew { ahead }) = self.act_on(now, Protocol::V4, action) {
                tracing::warn!(
                    seconds = ahead,
                    "our clock is off by that much against the nodes around us; discv4 drops what looks expired"
                );
            }
        }
        while let Some(action) = self.v5.as_mut().and_then(discv5::Engine::poll_action) {
            if let Some(talk) = self.act_on(now, Protocol::V5, action) {
                self.act_on_talk(now, talk);
            }
        }
    }

    /// Carries out the actions of one engine, and returns those that only its protocol has.
    fn act_on<Own>(&mut self, now: Now, of: Protocol, action: Action<Own>) -> Option<Own> {
        match action {
            Action::Discovered(contact) => self.offer(&contact, of),
            Action::LookupNode { query, contact } => self.met(query, contact),
            Action::LookupDone { query, .. } => drop(self.owed.remove(&query)),
            Action::Resolved { query, contact } => self.resolved(query, contact),
            Action::PingResult { query, pong } => {
                if let Some(Owed::Ping(reply)) = self.owed.remove(&query) {
                    // The caller may have given up.
                    let _ = reply.send(pong);
                }
            }
            Action::EndpointStatement { from, sees_us_at, .. } => {
                let changed = self.local.statement(now, from, sees_us_at);
                self.publish(changed);
            }
            Action::Persist { contact, checks } => self.persist(now, &contact, checks),
            Action::Table(event) => self.observe(now, of, event),
            Action::SeedsWanted => self.seeds_wanted = true,
            Action::Own(own) => return Some(own),
        }
        None
    }

    fn act_on_talk(&mut self, now: Now, action: TalkAction) {
        match action {
            TalkAction::Result { query, response } => {
                if let Some(Owed::Talk(reply)) = self.owed.remove(&query) {
                    // The caller may have given up.
                    let _ = reply.send(response);
                }
            }
            TalkAction::Requested { token, from, protocol, request } => {
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
        }
    }

    /// Passes on a change of a table, with the table's current facts.
    fn observe(&self, now: Now, of: Protocol, event: Event) {
        let Some(table) = self.table(of) else { return };
        match event {
            Event::Removed(contact, why) => self.observer.gone(of, contact.id, why, now.unix),
            Event::Added(contact) | Event::Live(contact) | Event::Updated(contact) => {
                // It may have been removed again: then that change comes next.
                if let Some(entry) = table.get(&contact.id) {
                    let bucket = table.bucket_of(&contact.id);
                    self.observer.there(TableNode { table: of, bucket, entry: entry.clone() });
                }
            }
        }
    }

    fn offer(&mut self, contact: &Contact, found_by: Protocol) {
        if self.candidates.try_send(candidate(contact, found_by)).is_err() {
            self.counters.candidates_dropped += 1;
        }
    }

    fn met(&mut self, query: QueryId, contact: Contact) {
        if let Some(Owed::Lookup(nodes, seen)) = self.owed.get_mut(&query)
            && seen.insert(contact.id)
        {
            // A reader that has ended, or is slower than a search, misses the node; the search goes on.
            let _ = nodes.try_send(contact);
        }
    }

    fn resolved(&mut self, query: QueryId, contact: Option<Contact>) {
        let Some(Owed::Resolve(number)) = self.owed.remove(&query) else { return };
        // There is no entry if the other protocol has found the node already.
        let Some(resolve) = self.resolves.get_mut(&number) else { return };
        resolve.searching = resolve.searching.saturating_sub(1);
        if (contact.is_some() || resolve.searching == 0)
            && let Some(Resolve { reply, .. }) = self.resolves.remove(&number)
        {
            // The caller may have given up.
            let _ = reply.send(contact);
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
