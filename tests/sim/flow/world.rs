//! Applications, connections and peers in one virtual time, and the conditions that must hold.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::Bytes;
use devp2pd::budget::{Budget, Resource};
use devp2pd::delivery::{AttachParams, Config};

use super::{
    application::Application,
    peer::{Peer, Supply},
    pipe::{Line, Pipe},
    sidecar::Sidecar,
};

/// The largest payload that a frame carries, in bytes.
pub(crate) const LARGEST: usize = (16 << 20) - 1;

pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
pub(crate) fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Zeros. Every payload is a slice of them, so that payloads need no memory of their own.
fn zeros() -> Bytes {
    static ZEROS: OnceLock<Bytes> = OnceLock::new();
    ZEROS.get_or_init(|| Bytes::from(vec![0; LARGEST])).clone()
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) budget: Arc<Budget>,
    pub(crate) applications: Vec<Application>,
    pub(crate) sidecars: Vec<Sidecar>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) pipes: Vec<Pipe>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            now: start(),
            budget: Budget::whole(Resource::Delivery),
            applications: Vec::new(),
            sidecars: Vec::new(),
            peers: Vec::new(),
            pipes: Vec::new(),
        }
    }

    /// Adds an application that reads `rate` bytes a second. Returns its index.
    pub(crate) fn application(&mut self, config: Config, params: AttachParams, rate: u64) -> usize {
        let budget = Arc::clone(&self.budget);
        self.applications.push(Application::new(self.now, config, params, rate, budget));
        self.applications.len() - 1
    }

    /// Adds a peer that shares a capability with each of these applications. Returns the index of the connection, which
    /// is the index of the peer as well.
    pub(crate) fn connect(&mut self, mut peer: Peer, line: Line, owners: &[usize]) -> usize {
        let at = self.pipes.len();
        self.pipes.push(Pipe::new(self.now, line));
        self.pipes.push(Pipe::new(self.now, Line { latency: line.latency, ..Line::ours() }));
        (peer.out, peer.input) = (at, at + 1);
        self.peers.push(peer);
        self.add_sidecar(owners, (at, at + 1))
    }

    /// Connects two nodes like ours, one with each of these applications. Returns the indices of both ends of the
    /// connection.
    pub(crate) fn join(&mut self, one: usize, other: usize) -> (usize, usize) {
        let at = self.pipes.len();
        self.pipes.push(Pipe::new(self.now, Line::ours()));
        self.pipes.push(Pipe::new(self.now, Line::ours()));
        (self.add_sidecar(&[one], (at, at + 1)), self.add_sidecar(&[other], (at + 1, at)))
    }

    fn add_sidecar(&mut self, owners: &[usize], pipes: (usize, usize)) -> usize {
        let budget = Arc::clone(&self.budget);
        self.sidecars.push(Sidecar::new(self.now, zeros(), &self.applications, owners, pipes, budget));
        self.sidecars.len() - 1
    }

    /// Lets `time` pass.
    pub(crate) fn run(&mut self, time: Duration) {
        self.run_while(time, |_| true);
    }

    /// Lets `time` pass, but stops as soon as `so` returns false.
    pub(crate) fn run_while(&mut self, time: Duration, so: impl Fn(&Self) -> bool) {
        let end = self.now + time;
        loop {
            self.settle();
            if !so(self) {
                return;
            }
            let next = self.next_time().filter(|at| *at < end).unwrap_or(end);
            self.now = next;
            if next == end {
                self.settle();
                return;
            }
        }
    }

    /// All parts do everything that can be done without time passing.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 200_000, "time stands still");
            let (now, mut moved) = (self.now, false);
            for pipe in &mut self.pipes {
                moved |= pipe.pump(now);
            }
            for peer in &mut self.peers {
                moved |= peer.go(now, &mut self.pipes);
            }
            for sidecar in &mut self.sidecars {
                moved |= sidecar.go(now, &self.applications, &mut self.pipes);
            }
            for (number, application) in self.applications.iter_mut().enumerate() {
                moved |= application.go(now);
                for key in application.take_space() {
                    let waits = |sidecar: &&mut Sidecar| {
                        sidecar.routes.iter().any(|route| route.application == number && route.key == key)
                    };
                    if let Some(sidecar) = self.sidecars.iter_mut().find(waits) {
                        sidecar.woken = true;
                        moved = true;
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let now = self.now;
        let pipes = self.pipes.iter().filter_map(|pipe| pipe.poll_timeout(now));
        let peers = self.peers.iter().filter_map(|peer| peer.poll_timeout(now));
        let sidecars = self.sidecars.iter().filter_map(Sidecar::poll_timeout);
        let applications = self.applications.iter().filter_map(|application| application.poll_timeout(now));
        pipes.chain(peers).chain(sidecars).chain(applications).filter(|at| *at > now).min()
    }

    /// The peers stop sending, the applications read everything, and every message that was sent must be accounted for.
    pub(crate) fn finish(&mut self) {
        for peer in &mut self.peers {
            peer.supply = Supply::Silent;
        }
        for application in &mut self.applications {
            application.read_all();
        }
        self.run_while(seconds(3600), |world| !world.has_arrived());
        self.run(seconds(2));
        self.check();
    }

    /// Whether all messages of the peers have been read.
    fn has_arrived(&self) -> bool {
        self.sidecars.iter().enumerate().all(|(number, sidecar)| {
            let routes = || sidecar.routes.iter().enumerate();
            let peer = self.peers.get(number).filter(|_| sidecar.ended.is_none());
            peer.is_none_or(|peer| routes().all(|(at, route)| peer.said(at) == route.messages))
        })
    }

    /// Checks that every message that was sent is accounted for. No message may be under way.
    pub(crate) fn check(&self) {
        for (number, sidecar) in self.sidecars.iter().enumerate() {
            for (channel, route) in sidecar.routes.iter().enumerate() {
                let application = &self.applications[route.application];
                if !application.registered {
                    continue;
                }
                let tally = application.tallies.get(&sidecar.name(channel)).copied().unwrap_or_default();
                let (messages, bytes) = (tally.messages + tally.lost, tally.bytes + tally.lost_bytes);
                assert_eq!(messages + route.unheard, route.messages, "connection {number} channel {channel}");
                if route.unheard == 0 {
                    assert_eq!(bytes, route.bytes, "connection {number} channel {channel}");
                }
                // With two of our nodes there is no peer.
                if let Some(peer) = self.peers.get(number).filter(|_| sidecar.ended.is_none()) {
                    assert_eq!(peer.said(channel), route.messages, "all of it has arrived");
                }
            }
        }
    }

    /// Checks that no peer left, and that no connection ended.
    pub(crate) fn all_stand(&self) {
        for (number, peer) in self.peers.iter().enumerate() {
            let writing = self.pipes[peer.out].longest_write(self.now);
            assert!(peer.gone.is_none(), "{:?} {number} left: {:?}", peer.stack, peer.gone);
            assert!(writing < peer.stack.write_limit(), "{:?} {number} wrote for {writing:?}", peer.stack);
        }
        for sidecar in &self.sidecars {
            assert_eq!(sidecar.ended, None);
        }
    }

    /// Messages that were lost, over all applications; the gaps may still wait in their queues.
    pub(crate) fn lost(&self) -> u64 {
        self.applications.iter().map(|application| application.lost().messages).sum()
    }

    /// Checks that no message was lost and no peer left, now and after everything was read.
    pub(crate) fn expect_lossless(&mut self, what: &str) {
        self.all_stand();
        assert_eq!(self.lost(), 0, "{what}");
        self.finish();
        assert_eq!(self.lost(), 0, "{what}, at the end");
    }
}
