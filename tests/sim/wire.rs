//! The network between the nodes: latency, loss, and routers that translate addresses.

use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::{Rng, rngs::StdRng};

/// How long a router lets packets from an address in after its node has sent to that address. RFC 4787 asks for 2
/// minutes; many routers forget after 30 to 60 seconds.
const NAT_MEMORY: Duration = Duration::from_secs(60);

/// An event at a node.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// Its timer is due.
    Timer,
    /// A datagram arrives.
    Datagram { from: SocketAddr, bytes: Vec<u8> },
}

/// The delays and losses of the network.
#[derive(Clone)]
pub(crate) struct Conditions {
    /// One-way delays.
    pub(crate) latency: std::ops::Range<Duration>,
    /// The share of datagrams that is lost.
    pub(crate) loss: f64,
}

struct Port {
    node: usize,
    /// Behind a router: the addresses to which the node sent, and the time of the last datagram to each.
    opened: Option<HashMap<SocketAddr, Instant>>,
}

/// The network, with the events that are under way in the order of their times.
pub(crate) struct Wire {
    conditions: Conditions,
    ports: HashMap<SocketAddr, Port>,
    /// Reversed by the ordering of [`Scheduled`]: the earliest first.
    events: BinaryHeap<Scheduled>,
    serial: u64,
    rng: StdRng,
}

struct Scheduled {
    at: Instant,
    serial: u64,
    node: usize,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.serial).cmp(&(self.at, self.serial))
    }
}

impl Wire {
    pub(crate) fn new(conditions: Conditions, rng: StdRng) -> Self {
        Self { conditions, ports: HashMap::new(), events: BinaryHeap::new(), serial: 0, rng }
    }

    /// Connects a node, behind a router of its own if `nat`.
    pub(crate) fn connect(&mut self, node: usize, addr: SocketAddr, nat: bool) {
        self.ports.insert(addr, Port { node, opened: nat.then(HashMap::new) });
    }

    pub(crate) fn send(&mut self, now: Instant, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        if let Some(opened) = self.ports.get_mut(&from).and_then(|port| port.opened.as_mut()) {
            opened.insert(to, now);
        }
        // Drawn for every datagram, even if it is not delivered, so that one more loss does not change all later draws.
        let (lost, delay) = (
            self.rng.random_bool(self.conditions.loss),
            self.rng.random_range(self.conditions.latency.clone()),
        );
        let Some(port) = self.ports.get(&to) else { return };
        let admitted = port
            .opened
            .as_ref()
            .is_none_or(|opened| opened.get(&from).is_some_and(|at| now.duration_since(*at) < NAT_MEMORY));
        if admitted && !lost {
            let event = Event::Datagram { from, bytes: bytes.to_vec() };
            let node = port.node;
            self.schedule(now + delay, node, event);
        }
    }

    pub(crate) fn schedule(&mut self, at: Instant, node: usize, event: Event) {
        self.serial += 1;
        self.events.push(Scheduled { at, serial: self.serial, node, event });
    }

    /// Takes the next event that is not after `end`.
    pub(crate) fn next(&mut self, end: Instant) -> Option<(Instant, usize, Event)> {
        if self.events.peek()?.at > end {
            return None;
        }
        self.events.pop().map(|next| (next.at, next.node, next.event))
    }
}
