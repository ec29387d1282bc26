//! Scripts of rounds in virtual time: each step has an event and the nodes that must be dialed because of it.

mod dynamic;
mod forks;
mod listed;
mod one_off;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use rand::{SeedableRng, rngs::StdRng};

use super::{
    super::{
        action::Action, cause::Cause, dial_filter::DialFilter, refusal::Refusal, rules::Rules,
        settings::Settings, test_now,
    },
    Candidate, ConnectId, Dial, EntryState, List, ListSource, Scheduler, Source, TaskId,
};
use crate::{
    Now,
    node::{Enode, Host, NodeId, NodeKey, NodeRef, PublicKey, RegistrationId},
};

/// The secret key of test node `n`.
fn secret(n: u64) -> NodeKey {
    let mut scalar = [0; 32];
    scalar[24..].copy_from_slice(&(n + 1).to_be_bytes());
    NodeKey::from_bytes(&scalar).unwrap()
}

/// The key of test node `n`.
fn key(n: u64) -> PublicKey {
    secret(n).public()
}

fn id(n: u64) -> NodeId {
    key(n).id()
}

/// Every test node has a network of its own.
fn addr(n: u64) -> SocketAddr {
    SocketAddr::from(([8, (n >> 8) as u8, n as u8, 1], 30303))
}

fn enode(n: u64) -> NodeRef {
    NodeRef::Enode(Enode::at(key(n), addr(n)))
}

fn named(n: u64, host: &str) -> NodeRef {
    let host = Host::Name(host.into());
    NodeRef::Enode(Enode { public_key: key(n), host, tcp: 30303, udp: 30303 })
}

fn candidate(n: u64, source: Source) -> Candidate {
    Candidate { public_key: key(n), addr: addr(n), record: None, source, served: Duration::ZERO }
}

/// The event of one step. Nodes are numbers.
#[derive(Clone, Debug)]
enum Do {
    /// A static peer with an address is added.
    Static(u64),
    /// A static peer that is known by id alone.
    StaticById(u64),
    /// A trusted peer with an address.
    Trusted(u64),
    /// A static peer is removed.
    Remove(u64),
    /// A source offers a node; the result must be this.
    Offer(u64, Source, Result<(), Refusal>),
    /// The dial to a node made it a peer.
    Up(u64),
    /// The dial to a node failed.
    Fail(u64, Cause),
    /// A node dialed us and is a peer.
    In(u64),
    /// A peer went.
    Gone(u64, Cause),
    /// Discovery found a node at the address of another one, or did not.
    Found(u64, Option<u64>),
    /// A registration came.
    Register(u64),
    /// A registration ended.
    Unregister(u64),
    /// Time passes, in seconds; the engine's own timeouts are served on the way.
    Pass(u64),
}

struct Bench {
    now: Now,
    rules: Rules,
    dial: Scheduler,
    dials: Vec<Dial>,
    /// Everything but dials, as it came.
    other: Vec<Action>,
}

impl Bench {
    /// A scheduler with one registration.
    fn new(settings: Settings) -> Self {
        let mut bench = Self::unregistered(settings);
        bench.step(&Do::Register(0));
        bench
    }

    fn unregistered(settings: Settings) -> Self {
        let now = test_now();
        let rules = Rules::new(NodeId([0; 32]), settings);
        let dial = Scheduler::new(now, StdRng::seed_from_u64(7));
        Self { now, rules, dial, dials: Vec::new(), other: Vec::new() }
    }

    /// Runs a script; each step names the nodes that are dialed because of it, in order.
    fn run(&mut self, script: &[(Do, &[u64])]) {
        for (index, (step, expected)) in script.iter().enumerate() {
            let from = self.dials.len();
            self.step(step);
            let dialed: Vec<NodeId> = self.dials[from..].iter().map(|dial| dial.id).collect();
            let expected: Vec<NodeId> = expected.iter().map(|n| id(*n)).collect();
            assert_eq!(dialed, expected, "step {index}: {step:?}");
        }
    }

    fn step(&mut self, step: &Do) {
        let (now, rules) = (self.now, &self.rules);
        let dial = &mut self.dial;
        match step {
            Do::Static(n) => dial.add(now, rules, &enode(*n), List::Static, ListSource::Call).unwrap(),
            Do::StaticById(n) => {
                dial.add(now, rules, &NodeRef::Id(id(*n)), List::Static, ListSource::Call).unwrap();
            }
            Do::Trusted(n) => dial.add(now, rules, &enode(*n), List::Trusted, ListSource::Call).unwrap(),
            Do::Remove(n) => {
                dial.remove(now, rules, &id(*n), List::Static).unwrap();
            }
            Do::Offer(n, source, expected) => {
                let result = dial.candidate(now, rules, candidate(*n, *source), false);
                assert_eq!(result, *expected, "candidate {n}");
            }
            Do::Up(n) => dial.peer_connected(now, rules, id(*n), false, &[RegistrationId(0)]),
            Do::In(n) => dial.peer_connected(now, rules, id(*n), true, &[RegistrationId(0)]),
            Do::Fail(n, cause) => {
                let task = self.task(*n);
                self.dial.dial_failed(now, &self.rules, task, *cause, "as scripted");
            }
            Do::Gone(n, cause) => dial.peer_disconnected(now, rules, &id(*n), *cause, "as scripted"),
            Do::Found(n, at) => {
                let found = at.map(|at| Enode::at(key(*n), addr(at)));
                dial.node_resolved(now, rules, &id(*n), found);
            }
            Do::Register(n) => dial.register(now, rules, RegistrationId(*n), DialFilter::Any, None),
            Do::Unregister(n) => dial.unregister(now, rules, RegistrationId(*n)),
            Do::Pass(secs) => self.pass(*secs),
        }
        self.drain();
    }

    fn pass(&mut self, secs: u64) {
        let end = self.now.after(Duration::from_secs(secs));
        let mut turns = 0;
        while let Some(at) = self.dial.poll_timeout(&self.rules).filter(|at| *at <= end.mono) {
            let ahead = at.saturating_duration_since(self.now.mono);
            self.now = self.now.after(ahead);
            self.dial.handle_timeout(self.now, &self.rules);
            self.drain();
            turns += 1;
            assert!(turns < 10_000, "the timer does not move on");
        }
        self.now = end;
        self.dial.handle_timeout(self.now, &self.rules);
    }

    fn drain(&mut self) {
        while let Some(action) = self.dial.poll_action() {
            match action {
                Action::Dial(dial) => self.dials.push(dial),
                // For watchers. The rounds check the dials that follow.
                Action::DialFailed { .. } => {}
                other => self.other.push(other),
            }
        }
        assert!(self.dial.dials().len() <= self.rules.settings.max_pending_dials);
    }

    /// The last dial, or lookup, of a node.
    fn task(&self, n: u64) -> TaskId {
        self.dial.dials().of(&id(n)).unwrap_or_else(|| panic!("node {n} is not being dialed")).0
    }

    fn state(&self, n: u64) -> EntryState {
        self.dial.entry(self.now, &self.rules, &id(n)).unwrap().state
    }

    fn error(&self, n: u64) -> Option<Cause> {
        self.dial.entry(self.now, &self.rules, &id(n)).unwrap().last_error.map(|error| error.cause)
    }

    /// Seconds until an entry is dialed again.
    fn wait(&self, n: u64) -> u64 {
        match self.state(n) {
            EntryState::BackingOff { until } => (until - self.now.unix).as_secs(),
            other => panic!("node {n} is not backing off but {other:?}"),
        }
    }

    /// Drains and returns what matches.
    fn took(&mut self, what: impl Fn(&Action) -> bool) -> usize {
        let before = self.other.len();
        self.other.retain(|action| !what(action));
        before - self.other.len()
    }
}
