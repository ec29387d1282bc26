//! The client: all trees, one rate limit, and nodes only when somebody wants them.
//!
//! The caller says how many nodes it wants ([`Client::want`]), resolves the names it is given
//! ([`Action::Resolve`], answered by [`Client::handle_answer`], always), and gets records ([`Action::Found`]). Nothing
//! is asked for while nobody wants nodes, not even a root.
//!
//! Nodes at private addresses are refused: a list on the Internet that names them is wrong or means harm, because it
//! makes us dial into our own network. A test network says so in [`Config::allow_private`].

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

/// Requests that wait for an answer at the same time: slow name servers slow us down before the rate does.
const MAX_ASKED: usize = 4;

/// Trees that are followed because another tree links to them.
pub(super) const MAX_LINKED: usize = 16;

/// What the operator decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Config {
    /// Accept nodes at loopback, link-local and private addresses.
    pub allow_private: bool,
}

/// Names a request, for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryId(u64);

/// What the resolver said.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// The TXT records at the name, each with its strings joined; none if there are none.
    Texts(&'a [String]),
    /// No answer: timeout, server failure. Worth asking again.
    Failed,
}

/// Why an answer was of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The resolver had no answer.
    #[error("no answer from the resolver")]
    Unanswered,
    /// There is no TXT record of a tree.
    #[error("no entry stands at this name")]
    Nothing,
    /// What stands there has another hash.
    #[error("the entry at this name has another hash")]
    WrongHash,
    /// The entry is malformed, or the root's signature wrong.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// A node among the links or a link among the nodes.
    #[error("a link stands among the nodes or a node among the links")]
    Misplaced,
    /// The root is older than one we have seen.
    #[error("the root's sequence {new} is lower than {known}, which was seen before")]
    OldRoot {
        /// Of the root that came.
        new: u64,
        /// Of the root at hand.
        known: u64,
    },
    /// The node has no address that we would dial.
    #[error("the record of node {0} has no address on the Internet")]
    Address(crate::node::NodeId),
    /// The tree is larger than we follow.
    #[error("{0} entries are beyond the limit and were left out")]
    TooMany(usize),
    /// Too many trees.
    #[error("{0} linked trees are beyond the limit and are not followed")]
    TooManyTrees(usize),
}

/// What the client wants or has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for the TXT records at `name` (without the final dot) and bring the answer, whatever it is.
    Resolve {
        /// To go with the answer.
        id: QueryId,
        /// The name.
        name: String,
    },
    /// A node of the tree at `domain`.
    Found {
        /// Its record.
        record: Record,
        /// Where it was found.
        domain: Arc<str>,
    },
    /// Something for the log.
    Problem {
        /// The tree's domain.
        domain: Arc<str>,
        /// Which entry; empty for the root.
        entry: String,
        /// What was wrong.
        problem: Problem,
    },
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests to the resolver.
    pub requests: u64,
    /// … without an answer.
    pub unanswered: u64,
    /// Entries and roots that were refused.
    pub bad_entries: u64,
    /// Nodes handed out.
    pub found: u64,
    /// Nodes refused for their address.
    pub bad_addresses: u64,
    /// Entries and trees beyond the limits.
    pub over_limit: u64,
}

impl Counters {
    /// All counters with their names in metrics. A new one cannot be left out: this does not compile without it.
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
    queries: HashMap<QueryId, Query>,
    next_number: u64,
    limiter: Limiter,
    /// The time of the last call.
    seen: Instant,
    wanted: usize,
    /// Nodes whose requests were on their way when fewer were wanted: at most [`MAX_ASKED`], because nothing is asked
    /// for while there are some.
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
    pub fn handle_answer(&mut self, now: Now, id: QueryId, answer: Answer<'_>) {
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

    /// Goes on when a timer has run out.
    pub fn handle_timeout(&mut self, now: Now) {
        self.advance(now);
    }

    /// When [`Client::handle_timeout`] is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.queries.len() >= self.wanted.min(MAX_ASKED) {
            return None;
        }
        let ready = self.trees.values().filter_map(|tree| tree.ready_at(self.seen)).min()?;
        Some(ready.max(self.limiter.free_at(self.seen)))
    }

    /// The next thing to do or to know.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What has happened since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The trees that are followed, with the sequence of the root at hand.
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

    /// Asks for what can be asked for now. One request in flight for each node that is wanted, so that never more
    /// nodes come than were asked for.
    fn advance(&mut self, now: Now) {
        self.seen = now.mono;
        while self.queries.len() < self.wanted.min(MAX_ASKED) && self.limiter.free_at(now.mono) <= now.mono {
            // A random tree that has something to do: a large one does not starve the others.
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
            let id = QueryId(self.number());
            self.queries.insert(id, Query { tree: number, step });
            self.actions.push_back(Action::Resolve { id, name });
        }
    }

    /// Hands an answer to its tree. Answers for trees that nobody links to any more are dropped.
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

    /// Follows the links there are now and drops the trees that nobody links to any more. Returns how many trees are
    /// beyond the limit.
    fn relink(&mut self, now: Now) -> usize {
        let configured = self.trees.values().filter(|tree| tree.configured);
        let mut open: VecDeque<Link> = configured.map(|tree| tree.link.clone()).collect();
        let limit = open.len() + MAX_LINKED;
        let (mut reached, mut beyond) = (Vec::new(), 0);
        // The nearest first, and each tree once: loops end here.
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

/// The entry a step asks for; `None` for the root.
fn entry_of(step: Step) -> Option<Hash> {
    match step {
        Step::Root => None,
        Step::Link { wanted, .. } | Step::Node { wanted, .. } => Some(wanted.hash),
    }
}

fn read_root(answer: Answer<'_>, link: &Link) -> Result<Root, Problem> {
    let Answer::Texts(texts) = answer else { return Err(Problem::Unanswered) };
    // Other TXT records may stand at the domain; of several roots the newest good one counts.
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
