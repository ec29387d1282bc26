//! One tree over time: when its root is due, which entry comes next, and what each answer changes.
//!
//! Links come first: their subtree is walked to the end before the nodes, so that a tree that moved elsewhere is
//! followed at once. Nodes are walked in random order, again and again as long as nodes are wanted.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use super::{
    Link,
    entry::{Entry, Hash, Root},
    pass::{Pass, Wanted},
};
use crate::node::Record;

/// How often the root is requested again while the tree is in use.
const RECHECK: Duration = Duration::from_secs(30 * 60);

/// After more failed entries than this, the tree has probably changed: the root is requested early.
const MAX_FAILURES: u32 = 5;

/// The shortest time before such an early request. Without it, a broken zone would be asked for its root at every sixth
/// step.
const MIN_RECHECK: Duration = Duration::from_secs(10);

/// The longest pause between attempts to get a root; the pauses start at one second and double. It is a minute, so that
/// a machine that comes back online finds peers soon.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// The shortest time between the starts of two walks: a list of three nodes is not requested three times a second.
const MIN_PASS: Duration = Duration::from_secs(60);

/// The most entries of one tree that a walk accepts; the largest known tree has about a tenth of that.
pub(super) const MAX_ENTRIES: usize = 50_000;

/// The most entries of a link subtree that a walk accepts. It is plenty for [`super::client::MAX_LINKED`] links, and a
/// list of links without end does not delay the nodes.
pub(super) const MAX_LINK_ENTRIES: usize = 256;

/// The next request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Root,
    Link { wanted: Wanted, pass: u64 },
    Node { wanted: Wanted, pass: u64 },
}

/// The result of a good answer.
#[derive(Debug)]
pub(super) enum Gained {
    /// A branch: nothing to report, except that this many children were refused at the limit.
    Branch {
        refused: usize,
    },
    Link,
    Record(Record),
    /// A node among the links or a link among the nodes.
    Misplaced,
    /// The answer belongs to a walk that has ended.
    Late,
}

#[derive(Debug)]
pub(super) struct Tree {
    pub(super) link: Link,
    /// Whether the operator named the tree, and not another tree.
    pub(super) configured: bool,
    root: Option<Walks>,
    root_asked: bool,
    root_due: Instant,
    root_checked: Instant,
    root_failures: u32,
    entry_failures: u32,
    passes: u64,
    /// The links of the last complete walk.
    pub(super) links: Vec<Link>,
}

#[derive(Debug)]
struct Walks {
    root: Root,
    links: Pass,
    /// Links that the current walk has found.
    collected: Vec<Link>,
    nodes: Pass,
    nodes_began: Instant,
}

impl Tree {
    pub(super) fn new(now: Instant, link: Link, configured: bool) -> Self {
        Self {
            link,
            configured,
            root: None,
            root_asked: false,
            root_due: now,
            root_checked: now,
            root_failures: 0,
            entry_failures: 0,
            passes: 0,
            links: Vec::new(),
        }
    }

    pub(super) fn seq(&self) -> Option<u64> {
        self.root.as_ref().map(|walks| walks.root.seq)
    }

    /// The time of the next step; `None` while everything depends on answers that are awaited.
    pub(super) fn ready_at(&self, now: Instant) -> Option<Instant> {
        let root = (!self.root_asked).then(|| self.root_due());
        let Some(walks) = &self.root else { return root };
        let entries = if walks.links.has_missing() {
            Some(now)
        } else if !walks.links.is_done() {
            None
        } else if walks.nodes.has_missing() {
            Some(now)
        } else if walks.nodes.is_done() && (walks.nodes.leaves > 0 || walks.nodes.given_up > 0) {
            Some(walks.nodes_began + MIN_PASS)
        } else {
            None // nothing was found and nothing failed: only a new root can change that
        };
        [root, entries].into_iter().flatten().min()
    }

    fn root_due(&self) -> Instant {
        if self.root.is_some() && self.entry_failures > MAX_FAILURES {
            self.root_due.min(self.root_checked + MIN_RECHECK)
        } else {
            self.root_due
        }
    }

    /// The next request, if it is time for one.
    pub(super) fn step(&mut self, now: Instant, rng: &mut StdRng) -> Option<Step> {
        if !self.root_asked && self.root_due() <= now {
            self.root_asked = true;
            return Some(Step::Root);
        }
        let walks = self.root.as_mut()?;
        if let Some(wanted) = walks.links.next(rng) {
            return Some(Step::Link { wanted, pass: walks.links.number });
        }
        if !walks.links.is_done() {
            return None;
        }
        if walks.nodes.is_done() && walks.nodes_began + MIN_PASS <= now {
            self.passes += 1;
            walks.nodes = Pass::new(walks.root.nodes, self.passes, MAX_ENTRIES);
            walks.nodes_began = now;
        }
        let wanted = walks.nodes.next(rng)?;
        Some(Step::Node { wanted, pass: walks.nodes.number })
    }

    /// Takes a root whose signature is valid. Returns false if it is older than the current one: then the current one
    /// stays, and the root is requested again at the usual time.
    pub(super) fn take_root(&mut self, now: Instant, root: Root) -> bool {
        self.root_asked = false;
        self.root_checked = now;
        self.root_due = now + RECHECK;
        self.root_failures = 0;
        self.entry_failures = 0;
        match &mut self.root {
            Some(walks) if root.seq < walks.root.seq => return false,
            Some(walks) => {
                if root.links != walks.links.root() {
                    self.passes += 1;
                    walks.links = Pass::new(root.links, self.passes, MAX_LINK_ENTRIES);
                    walks.collected.clear();
                }
                if root.nodes != walks.nodes.root() {
                    self.passes += 1;
                    walks.nodes = Pass::new(root.nodes, self.passes, MAX_ENTRIES);
                    walks.nodes_began = now;
                }
                walks.root = root;
            }
            None => {
                self.passes += 2;
                self.root = Some(Walks {
                    links: Pass::new(root.links, self.passes - 1, MAX_LINK_ENTRIES),
                    collected: Vec::new(),
                    nodes: Pass::new(root.nodes, self.passes, MAX_ENTRIES),
                    nodes_began: now,
                    root,
                });
            }
        }
        true
    }

    /// Counts a failed attempt to get a root.
    pub(super) fn root_failed(&mut self, now: Instant) {
        self.root_asked = false;
        self.root_checked = now;
        let pause = Duration::from_secs(1 << self.root_failures.min(6)).min(MAX_RETRY);
        self.root_due = now + pause;
        self.root_failures = self.root_failures.saturating_add(1);
    }

    /// Takes an entry whose hash was checked, as the answer to `step`.
    pub(super) fn take_entry(&mut self, step: Step, entry: Entry) -> Gained {
        let Some(walks) = &mut self.root else { return Gained::Late };
        match (step, entry) {
            (Step::Link { pass, .. }, entry) if pass == walks.links.number => {
                let gained = match entry {
                    Entry::Branch(children) => Self::branch(&mut walks.links, &children),
                    Entry::Link(link) => {
                        walks.links.answered();
                        walks.links.leaves += 1;
                        if !walks.collected.contains(&link) {
                            walks.collected.push(link);
                        }
                        if walks.collected.len() >= super::client::MAX_LINKED {
                            walks.links.cut();
                        }
                        Gained::Link
                    }
                    Entry::Record(_) => {
                        walks.links.spoiled();
                        Gained::Misplaced
                    }
                };
                self.links_walked();
                gained
            }
            (Step::Node { pass, .. }, entry) if pass == walks.nodes.number => match entry {
                Entry::Branch(children) => Self::branch(&mut walks.nodes, &children),
                Entry::Record(record) => {
                    walks.nodes.answered();
                    walks.nodes.leaves += 1;
                    Gained::Record(record)
                }
                Entry::Link(_) => {
                    walks.nodes.spoiled();
                    Gained::Misplaced
                }
            },
            _ => Gained::Late,
        }
    }

    fn branch(pass: &mut Pass, children: &[Hash]) -> Gained {
        pass.answered();
        Gained::Branch { refused: pass.branch(children) }
    }

    /// Counts that `step` got no answer (`again`), or a bad one.
    pub(super) fn entry_failed(&mut self, step: Step, again: bool) {
        let Some(walks) = &mut self.root else { return };
        let (walk, wanted) = match step {
            Step::Link { wanted, pass } if pass == walks.links.number => (&mut walks.links, wanted),
            Step::Node { wanted, pass } if pass == walks.nodes.number => (&mut walks.nodes, wanted),
            _ => return,
        };
        if again {
            walk.unanswered(wanted);
        } else {
            walk.spoiled();
        }
        self.entry_failures = self.entry_failures.saturating_add(1);
        self.links_walked();
    }

    /// Replaces the links by those of the current walk, if it has ended.
    fn links_walked(&mut self) {
        if let Some(walks) = &mut self.root
            && walks.links.is_done()
        {
            self.links.clone_from(&walks.collected);
        }
    }
}
