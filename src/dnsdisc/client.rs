//! The client: all trees, one rate limit, and requests only while nodes are wanted.
//!
//! The caller sets how many nodes it wants ([`Client::want`]). It resolves the names of [`Action::Resolve`], always
//! reports the result to [`Client::handle_answer`], and gets records ([`Action::Found`]). While no nodes are wanted,
//! nothing is requested, not even a root.
//!
//! Nodes at private addresses are refused: a list on the Internet that contains them is wrong or malicious, because it
//! makes us dial into our own network. A test network sets [`Config::allow_private`].

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use rand::{Rng, rngs::StdRng};

use super::{
    Link,
    entry::{Entry, EntryError, Hash, Root},
    limiter::Limiter,
    tree::{Gained, Step, Tree},
};
use crate::{
    Now,
    node::{AddressClass, Record},
};

/// The most requests that wait for an answer at the same time: slow name servers slow us down before the rate does.
const MAX_ASKED: usize = 4;

/// The most trees that are followed because another tree links to them.
pub(super) const MAX_LINKED: usize = 16;

/// The settings of the operator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Accept nodes at loopback, link-local and private addresses.
    pub allow_private: bool,
}

/// Identifies a request, for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LookupId(u64);

/// The result from the resolver.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// The TXT records at the name, each with its strings joined; none if there are none.
    Texts(&'a [String]),
    /// No answer: a timeout or a failure of the server. The request may be repeated.
    Failed,
}

/// The reason why an answer could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The resolver had no answer.
    #[error("no answer from the resolver")]
    Unanswered,
    /// There is no TXT record of a tree at the name.
    #[error("there is no entry at this name")]
    Nothing,
    /// The entry at the name has another hash.
    #[error("the entry at this name has another hash")]
    WrongHash,
    /// The entry is malformed, or the root's signature is wrong.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A node among the links or a link among the nodes.
    #[error("a link is among the nodes, or a node is among the links")]
    Misplaced,
    /// The root is older than one we have seen.
    #[error("the root's sequence {new} is lower than {known}, which was seen before")]
    OldRoot {
        /// The sequence number of the new root.
        new: u64,
        /// The sequence number of the current root.
        known: u64,
    },
    /// The node has no address that we may dial.
    #[error("the record of node {0} has no address on the Internet")]
    Address(crate::node::NodeId),
    /// The tree has more entries than we follow.
    #[error("{0} entries are beyond the limit and were left out")]
    TooMany(usize),
    /// There are more trees than we follow.
    #[error("{0} linked trees are beyond the limit and are not followed")]
    TooManyTrees(usize),
}

/// A request of the client, or something it has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Resolve the TXT records at `name` (without the final dot), and report the result, whatever it is.
    Resolve {
        /// Identifies the request, for its answer.
        id: LookupId,
        /// The name.
        name: String,
    },
    /// A node of the tree at `domain`.
    Found {
        /// Its record.
        record: Record,
        /// The domain of the tree that contains it.
        domain: Arc<str>,
    },
    /// A problem, for the log.
    Problem {
        /// The tree's domain.
        domain: Arc<str>,
        /// The hash of the entry; empty for the root.
        entry: String,
        /// The reason why the answer could not be used.
        problem: Problem,
    },
}

/// The counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests to the resolver.
    pub requests: u64,
    /// Requests without an answer.
    pub unanswered: u64,
    /// Entries and roots that were refused.
    pub bad_entries: u64,
    /// Nodes that were handed out.
    pub found: u64,
    /// Nodes that were refused because of their address.
    pub bad_addresses: u64,
    /// Entries and trees beyond the limits.
    pub over_limit: u64,
}

impl Counters {
    /// All counters, with their names in metrics. A new counter cannot be forgotten: without it this does not compile.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 6] {
        let Self { requests, unanswered, bad_entries, found, bad_addresses, over_limit } = *self;
        [
            ("requests", requests),
            ("unanswered", unanswered),
            ("bad_entries", bad_entries),
            ("found", found),
            ("bad_addresses", bad_addresses),
            ("over_limit", over_limit),
        ]
    }
}

#[derive(Clone, Copy, Debug)]
struct Query {
    tree: u64,
    step: Step,
}

/// The EIP-1459 client.
#[derive(Debug)]
pub struct Client {
    config: Config,
    rng: StdRng,
    trees: BTreeMap<u64, Tree>,
    queries: HashMap<LookupId, Query>,
    next_number: u64,
    limiter: Limiter,
    /// The time of the last call.
    seen: Instant,
    wanted: usize,
    /// Nodes that came when fewer were wanted than were requested: at most [`MAX_ASKED`], because nothing is requested
    /// while there are some.
    surplus: VecDeque<(Record, Arc<str>)>,
    actions: VecDeque<Action>,
    counters: Counters,
}

impl Client {
    /// A client of the trees at `links`.
    #[must_use]
    pub fn new(now: Now, config: Config, links: &[Link], rng: StdRng) -> Self {
        let mut client = Self {
            config,
            rng,
            trees: BTreeMap::new(),
            queries: HashMap::new(),
            next_number: 0,
            limiter: Limiter::new(now.mono),
            seen: now.mono,
            wanted: 0,
            surplus: VecDeque::new(),
            actions: VecDeque::new(),
            counters: Counters::default(),
        };
        for link in links {
            if !client.trees.values().any(|tree| tree.link == *link) {
                client.add_tree(now, link.clone(), true);
            }
        }
        client
    }

    /// Sets how many more nodes are wanted; 0 stops all requests.
    pub fn want(&mut self, now: Now, nodes: usize) {
        self.wanted = nodes;
        while self.wanted > 0
            && let Some((record, domain)) = self.surplus.pop_front()
        {
            self.hand_out(record, domain);
        }
        self.advance(now);
    }

    /// How many nodes are still wanted.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// Takes the answer to a request. Each request is answered once.
    pub fn handle_answer(&mut self, now: Now, id: LookupId, answer: Answer<'_>) {
        let Some(query) = self.queries.remove(&id) else { return };
        if matches!(answer, Answer::Failed) {
            self.counters.unanswered += 1;
        }
        if let Err(problem) = self.take(now, query, answer) {
            self.report(query, problem);
        }
        if matches!(query.step, Step::Link { .. }) {
            let beyond = self.relink(now);
            if beyond > 0 {
                self.report(query, Problem::TooManyTrees(beyond));
            }
        }
        self.advance(now);
    }

    /// Continues when a timer has expired.
    pub fn handle_timeout(&mut self, now: Now) {
        self.advance(now);
    }

    /// The time at which to call [`Client::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.queries.len() >= self.wanted.min(MAX_ASKED) {
            return None;
        }
        let ready = self.trees.values().filter_map(|tree| tree.ready_at(self.seen)).min()?;
        Some(ready.max(self.limiter.free_at(self.seen)))
    }

    /// The next action for the caller.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The counts since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The trees that are followed, each with the sequence number of its current root.
    #[cfg(any(test, feature = "internals"))]
    pub fn trees(&self) -> impl Iterator<Item = (&Link, Option<u64>)> {
        self.trees.values().map(|tree| (&tree.link, tree.seq()))
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn add_tree(&mut self, now: Now, link: Link, configured: bool) {
        let number = self.number();
        self.trees.insert(number, Tree::new(now.mono, link, configured));
    }

    /// Makes the requests that are possible now. There is at most one request in flight for each wanted node, so that
    /// never more nodes come than were wanted.
    fn advance(&mut self, now: Now) {
        self.seen = now.mono;
        while self.queries.len() < self.wanted.min(MAX_ASKED) && self.limiter.free_at(now.mono) <= now.mono {
            // A random tree that has something to request: a large tree does not delay the others.
            let ready = |tree: &Tree| tree.ready_at(now.mono).is_some_and(|at| at <= now.mono);
            let count = self.trees.values().filter(|tree| ready(tree)).count();
            if count == 0 {
                return;
            }
            let index = self.rng.random_range(0..count);
            let chosen = self.trees.iter_mut().filter(|(_, tree)| ready(tree)).nth(index);
            let Some((&number, tree)) = chosen else { return };
            let Some(step) = tree.step(now.mono, &mut self.rng) else { return };
            let domain = &tree.link.domain;
            let name = match entry_of(step) {
                None => domain.to_string(),
                Some(hash) => format!("{hash}.{domain}"),
            };
            self.limiter.take(now.mono);
            self.counters.requests += 1;
            let id = LookupId(self.number());
            self.queries.insert(id, Query { tree: number, step });
            self.actions.push_back(Action::Resolve { id, name });
        }
    }

    /// Passes an answer to its tree. Answers for trees without a link to them are dropped.
    fn take(&mut self, now: Now, query: Query, answer: Answer<'_>) -> Result<(), Problem> {
        let Some(tree) = self.trees.get_mut(&query.tree) else { return Ok(()) };
        let Some(hash) = entry_of(query.step) else {
            let known = tree.seq();
            return match read_root(answer, &tree.link) {
                Err(problem) => {
                    tree.root_failed(now.mono);
                    Err(problem)
                }
                Ok(root) => {
                    let new = root.seq;
                    let taken = tree.take_root(now.mono, root);
                    let known = known.unwrap_or_default();
                    if taken { Ok(()) } else { Err(Problem::OldRoot { new, known }) }
                }
            };
        };
        let entry = read_entry(answer, hash).inspect_err(|problem| {
            tree.entry_failed(query.step, *problem == Problem::Unanswered);
        })?;
        match tree.take_entry(query.step, entry) {
            Gained::Branch { refused: 0 } | Gained::Link | Gained::Late => Ok(()),
            Gained::Branch { refused } => Err(Problem::TooMany(refused)),
            Gained::Misplaced => Err(Problem::Misplaced),
            Gained::Record(record) => {
                let domain = tree.link.domain.clone();
                self.found(record, domain)
            }
        }
    }

    fn found(&mut self, record: Record, domain: Arc<str>) -> Result<(), Problem> {
        let class = record.endpoint().map(|endpoint| AddressClass::of(endpoint.ip));
        let allowed = match class {
            None | Some(AddressClass::Special) => false,
            Some(AddressClass::Global) => true,
            Some(AddressClass::Loopback | AddressClass::LinkLocal | AddressClass::Private) => {
                self.config.allow_private
            }
        };
        if !allowed {
            return Err(Problem::Address(record.id()));
        }
        if self.wanted > 0 {
            self.hand_out(record, domain);
        } else {
            self.surplus.push_back((record, domain));
        }
        Ok(())
    }

    fn hand_out(&mut self, record: Record, domain: Arc<str>) {
        self.counters.found += 1;
        self.wanted = self.wanted.saturating_sub(1);
        self.actions.push_back(Action::Found { record, domain });
    }

    fn report(&mut self, query: Query, problem: Problem) {
        match &problem {
            Problem::Unanswered => {}
            Problem::Address(_) => self.counters.bad_addresses += 1,
            Problem::TooMany(count) | Problem::TooManyTrees(count) => {
                self.counters.over_limit = self.counters.over_limit.saturating_add(*count as u64);
            }
            _ => self.counters.bad_entries += 1,
        }
        if let Some(tree) = self.trees.get(&query.tree) {
            let entry = entry_of(query.step).map(|hash| hash.to_string()).unwrap_or_default();
            self.actions.push_back(Action::Problem { domain: tree.link.domain.clone(), entry, problem });
        }
    }

    /// Follows the current links, and drops the trees to which no link leads any more. Returns how many trees are
    /// beyond the limit.
    fn relink(&mut self, now: Now) -> usize {
        let configured = self.trees.values().filter(|tree| tree.configured);
        let mut open: VecDeque<Link> = configured.map(|tree| tree.link.clone()).collect();
        let limit = open.len() + MAX_LINKED;
        let (mut reached, mut beyond) = (Vec::new(), 0);
        // The nearest trees first, and each tree once: a loop of links ends here.
        while let Some(link) = open.pop_front() {
            if reached.contains(&link) {
                continue;
            }
            if reached.len() >= limit {
                beyond += 1;
                continue;
            }
            let tree = self.trees.values().find(|tree| tree.link == link);
            open.extend(tree.into_iter().flat_map(|tree| tree.links.iter().cloned()));
            reached.push(link);
        }
        self.trees.retain(|_, tree| reached.contains(&tree.link));
        for link in reached {
            if !self.trees.values().any(|tree| tree.link == link) {
                self.add_tree(now, link, false);
            }
        }
        beyond
    }
}

/// The entry that a step requests; `None` for the root.
fn entry_of(step: Step) -> Option<Hash> {
    match step {
        Step::Root => None,
        Step::Link { wanted, .. } | Step::Node { wanted, .. } => Some(wanted.hash),
    }
}

fn read_root(answer: Answer<'_>, link: &Link) -> Result<Root, Problem> {
    let Answer::Texts(texts) = answer else { return Err(Problem::Unanswered) };
    // Other TXT records may exist at the domain. Of several roots, the newest valid one counts.
    let roots = texts.iter().filter(|text| Root::is_root(text));
    let mut error = Problem::Nothing;
    let mut best: Option<Root> = None;
    for root in roots.map(|text| Root::parse(text, &link.public_key)) {
        match root {
            Ok(root) if best.as_ref().is_none_or(|best| best.seq < root.seq) => best = Some(root),
            Ok(_) => {}
            Err(problem) => error = problem.into(),
        }
    }
    best.ok_or(error)
}

fn read_entry(answer: Answer<'_>, hash: Hash) -> Result<Entry, Problem> {
    let Answer::Texts(texts) = answer else { return Err(Problem::Unanswered) };
    match texts.iter().find(|text| hash.matches(text)) {
        Some(text) => Ok(text.parse()?),
        None if texts.is_empty() => Err(Problem::Nothing),
        None => Err(Problem::WrongHash),
    }
}
