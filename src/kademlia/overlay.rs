//! One node's part in the overlay network: its table, its searches, the addresses that it may write to, and the actions
//! for its owner.
//!
//! An engine is an [`Overlay`] and its protocol's way to ask a node. This type has the work that both protocols share:
//! results of searches enter the table, changes of the table reach the owner, and a table that has emptied is
//! refreshed. After each call, an engine takes the questions ([`Overlay::poll_question`]), asks them, and calls
//! [`Overlay::settle`].
//!
//! Left out: packets, sessions and timeouts of requests (the engines).

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use ipnet::IpNet;
use rand::rngs::StdRng;

use super::{
    Action, CallError, Contact, Event, Protocol, QueryId, Searches, Source, Table, Target,
    searches::{Question, SearchId},
    silence::Silence,
    table::Passed,
};
use crate::{
    Now,
    node::{NodeId, Reach, Record},
};

/// The part of an engine that is the same for both protocols. `Own` is what its actions have beside those of both.
#[derive(Debug)]
pub struct Overlay<Own> {
    reach: Reach,
    table: Table,
    searches: Searches<Own>,
    silence: Silence,
    /// Bounded by the engine's owner, which takes all actions after each call.
    actions: VecDeque<Action<Own>>,
}

impl<Own> Overlay<Own> {
    /// The part of the node whose record is `record`, with an empty table. It exchanges packets only with the networks
    /// of `restrict`, if any are given. The first refresh is due at once.
    #[must_use]
    pub fn new(
        now: Now,
        protocol: Protocol,
        record: &Record,
        restrict: Vec<IpNet>,
        bootnodes: Vec<Contact>,
        rng: &mut StdRng,
    ) -> Self {
        let own = Target::from(record.public_key());
        let mut overlay = Self {
            reach: Reach::new(restrict, record),
            table: Table::new(own.id(), rng),
            searches: Searches::new(protocol, own, bootnodes, now.mono, rng),
            silence: Silence::default(),
            actions: VecDeque::new(),
        };
        overlay.set_local_record(record);
        overlay
    }

    /// Our record has changed. It must be signed by the same key.
    pub fn set_local_record(&mut self, record: &Record) {
        debug_assert_eq!(record.id(), self.table.own_id(), "a node keeps its id");
        self.reach.set_local_record(record);
        self.table.set_private(self.reach.is_private());
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The addresses that we may write to, and accept from others.
    #[must_use]
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Adds a node that every refresh starts from, and refreshes.
    pub fn add_bootnode(&mut self, now: Now, node: Contact) {
        self.searches.add_bootnode(now, node);
    }

    /// Offers a node to the table, if the restriction allows it.
    pub fn offer(&mut self, now: Now, node: Contact, source: Source) {
        if self.reach.allows(node.endpoint.ip) {
            self.table.insert(now, node, source);
        }
    }

    /// How many candidates are wanted from now on; none are looked for while it is zero.
    pub fn set_demand(&mut self, wanted: usize) {
        self.searches.set_demand(wanted);
    }

    /// Looks for the nodes closest to `target`. Ends in [`Action::LookupDone`].
    pub fn lookup(&mut self, query: QueryId, target: Target) -> Result<(), CallError> {
        self.searches.lookup(&self.table, query, target)
    }

    /// Looks for the newest record and address of a node. Ends in [`Action::Resolved`].
    pub fn resolve(
        &mut self,
        query: QueryId,
        target: Target,
        hint: Option<Contact>,
    ) -> Result<(), CallError> {
        self.searches.resolve(&self.table, query, target, hint)
    }

    /// Where a node may be written to of our own accord, or why it may not.
    pub fn may_ask(&self, node: &Contact) -> Result<SocketAddr, CallError> {
        let addr = self.addr_of(node)?;
        if self.reach.may_ask(addr.ip()) { Ok(addr) } else { Err(CallError::Address) }
    }

    /// Where a search may ask a node, or why it may not. An address that stays silent is asked for nodes of the table
    /// alone.
    pub fn may_search(&self, now: Now, node: &Contact) -> Result<SocketAddr, CallError> {
        let addr = self.may_ask(node)?;
        self.check_silence(now, node, addr)
    }

    /// Where a node may be asked for a proof because it wrote to us from there, or why it may not.
    pub fn may_answer(&self, now: Now, node: &Contact) -> Result<SocketAddr, CallError> {
        let addr = self.addr_of(node)?;
        if !self.reach.allows(addr.ip()) {
            return Err(CallError::Address);
        }
        self.check_silence(now, node, addr)
    }

    fn check_silence(&self, now: Now, node: &Contact, addr: SocketAddr) -> Result<SocketAddr, CallError> {
        let in_table =
            || self.table.get(&node.id).is_some_and(|entry| entry.contact.udp_addr() == Some(addr));
        if self.silence.is_silent(now.mono, addr.ip()) && !in_table() {
            return Err(CallError::Timeout);
        }
        Ok(addr)
    }

    /// A question to a node at `ip` got no answer.
    pub fn unanswered(&mut self, now: Now, ip: IpAddr) {
        self.silence.unanswered(now.mono, ip);
    }

    /// An answer came from `ip`.
    pub fn heard(&mut self, ip: IpAddr) {
        self.silence.heard(ip);
    }

    fn addr_of(&self, node: &Contact) -> Result<SocketAddr, CallError> {
        let addr = node.udp_addr().ok_or(CallError::NoEndpoint)?;
        if node.id == self.table.own_id() { Err(CallError::Myself) } else { Ok(addr) }
    }

    /// The next node to ask for a search. Call until `None`, and report the result of each question.
    pub fn poll_question(&mut self, now: Now) -> Option<Question> {
        self.searches.poll_question(now, &mut self.table)
    }

    /// The target of a lookup; `None` if the lookup has ended.
    #[must_use]
    pub fn target(&self, search: SearchId) -> Option<Target> {
        self.searches.target(search)
    }

    /// The node could not be asked: its address may not be written to, or too much waits.
    pub fn unasked(&mut self, question: &Question) {
        self.searches.unasked(&self.table, question);
    }

    /// The node `by`, which the lookup asked, answered with these nodes.
    pub fn told(&mut self, now: Now, search: SearchId, by: NodeId, told: Vec<Contact>) {
        self.searches.told(now, &mut self.table, search, by, told);
    }

    /// The node `by`, which the lookup asked, has completed its answer, or has not answered in time.
    pub fn answered(&mut self, now: Now, search: SearchId, by: &NodeId, answered: bool) {
        self.searches.answered(now, &mut self.table, search, by, answered);
    }

    /// The request for a node's record ended, with or without the record. `answered`: the node is at its address
    /// although no acceptable record came.
    pub fn record_came(&mut self, search: SearchId, contact: Option<Contact>, answered: bool) {
        self.searches.record_came(&self.table, search, contact, answered);
    }

    /// Whether nodes that come to us may enter the table: not before the first refresh is over.
    #[must_use]
    pub fn takes_inbound(&self) -> bool {
        self.table.takes_inbound()
    }

    /// The next node of the table whose liveness check is due. Call until `None`, and report how each check ended.
    pub fn poll_check(&mut self, now: Now) -> Option<Contact> {
        self.table.poll_check(now)
    }

    /// A node passed its check. `seq` is the sequence number of its record, if the answer had one.
    pub fn check_passed(&mut self, now: Now, id: &NodeId, seq: Option<u64>) -> Option<Passed> {
        self.table.check_passed(now, id, seq)
    }

    /// A node did not answer its check.
    pub fn check_failed(&mut self, now: Now, id: &NodeId) {
        self.table.check_failed(now, id);
    }

    /// A check could not be made, which shows nothing about the node.
    pub fn check_skipped(&mut self, id: &NodeId) {
        self.table.check_skipped(id);
    }

    /// Tells the owner something.
    pub fn tell(&mut self, action: Action<Own>) {
        self.actions.push_back(action);
    }

    /// Passes on the results of the searches and the changes of the table. Returns how many lookups were refused since
    /// the last call.
    pub fn settle(&mut self, now: Now) -> u64 {
        self.actions.extend(std::iter::from_fn(|| self.searches.poll_action()));
        while let Some(event) = self.table.poll_event() {
            if matches!(event, Event::Removed(..)) && self.table.is_empty() {
                self.searches.table_emptied(now);
            }
            self.actions.push_back(Action::Table(event));
        }
        self.searches.take_refused()
    }

    /// Begins the refreshes and walks that are due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.searches.handle_timeout(now, &mut self.table, &self.reach);
    }

    /// When a check of the table, a refresh or a walk is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.table.poll_timeout().into_iter().chain(self.searches.poll_timeout(&self.table)).min()
    }

    /// The next action.
    pub fn poll_action(&mut self) -> Option<Action<Own>> {
        self.actions.pop_front()
    }

    /// Restricts us to these networks from now on.
    #[cfg(test)]
    pub fn restrict(&mut self, restrict: Vec<IpNet>, record: &Record) {
        self.reach = Reach::new(restrict, record);
    }

    /// How many lookups run.
    #[cfg(test)]
    #[must_use]
    pub fn lookups(&self) -> usize {
        self.searches.len()
    }

    /// Whether the searches keep their bounds; for tests and fuzzing.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn is_consistent(&self) -> bool {
        self.searches.is_consistent()
    }
}
