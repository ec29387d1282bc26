//! Dials: the order for the driver, and the dials in progress.
//!
//! A node has at most one dial at a time, so that a list, a candidate and a caller that want the same node share it.
//! Left out: the choice of nodes and times ([`scheduler`](super::scheduler)).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::candidates::Source;
use crate::{
    Now,
    node::{NodeId, PublicKey, Record, RegistrationId},
};

/// A dial's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// Why a node is dialed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It is static.
    Static,
    /// It is trusted.
    Trusted,
    /// A slot was free.
    Dynamic(Source),
    /// A caller asked for it.
    OneOff,
}

/// A TCP connection to open and a handshake to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Names the dial in its result.
    pub task: TaskId,
    /// Who should be there.
    pub id: NodeId,
    /// The key the handshake is made with.
    pub public_key: PublicKey,
    /// Where.
    pub addr: SocketAddr,
    /// Further addresses of the same name, in the order in which they are to be tried.
    pub also: Vec<SocketAddr>,
    /// The record that the node was offered with, if there was one.
    pub record: Option<Record>,
    /// Why.
    pub kind: Kind,
    /// How long the TCP connection may take.
    pub timeout: Duration,
}

impl Dial {
    /// All addresses, in the order in which they are to be tried.
    pub fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.addr).chain(self.also.iter().copied())
    }
}

/// A dial in progress: a name lookup first, where there is a name, then a connection.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: NodeId,
    pub(super) public_key: PublicKey,
    pub(super) kind: Kind,
    pub(super) since: Now,
    /// The RLPx port, for a name that is being looked up.
    pub(super) port: u16,
    /// Known once it is dialed.
    pub(super) addr: Option<SocketAddr>,
    /// The offer for the node, until it is dialed.
    pub(super) record: Option<Record>,
    pub(super) timeout: Duration,
    /// The registration whose turn it was.
    pub(super) turn_of: Option<RegistrationId>,
    /// The checksum that the node announces, if it is wanted only for a fork that a schedule lacks.
    pub(super) fork: Option<[u8; 4]>,
}

impl Task {
    /// A dial that is not made for a candidate.
    pub(super) fn new(
        now: Now,
        id: NodeId,
        public_key: PublicKey,
        port: u16,
        kind: Kind,
        timeout: Duration,
    ) -> Self {
        let (addr, record, turn_of, fork) = (None, None, None, None);
        Self { id, public_key, kind, since: now, port, addr, record, timeout, turn_of, fork }
    }

    /// The source that offered the node, if it is dialed as a candidate.
    pub(super) fn source(&self) -> Option<Source> {
        match self.kind {
            Kind::Dynamic(source) => Some(source),
            Kind::Static | Kind::Trusted | Kind::OneOff => None,
        }
    }
}

/// The dials in progress. The scheduler bounds them by
/// [`Settings::max_pending_dials`](super::super::Settings::max_pending_dials).
#[derive(Debug, Default)]
pub(super) struct Dials {
    tasks: BTreeMap<TaskId, Task>,
    by_node: BTreeMap<NodeId, TaskId>,
    next: u64,
    /// Those for candidates, by source.
    dynamic: [usize; Source::ALL.len()],
}

impl Dials {
    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn get(&self, name: TaskId) -> Option<&Task> {
        self.tasks.get(&name)
    }

    /// The dial of a node.
    pub(super) fn of(&self, id: &NodeId) -> Option<(TaskId, &Task)> {
        let name = *self.by_node.get(id)?;
        Some((name, self.tasks.get(&name)?))
    }

    pub(super) fn contains(&self, id: &NodeId) -> bool {
        self.by_node.contains_key(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TaskId, &Task)> {
        self.tasks.iter().map(|(name, task)| (*name, task))
    }

    /// The dials for candidates of one source.
    pub(super) fn from(&self, source: Source) -> usize {
        self.dynamic.get(source as usize).copied().unwrap_or_default()
    }

    /// The dials for candidates of all sources.
    pub(super) fn dynamic(&self) -> usize {
        self.dynamic.iter().sum()
    }

    pub(super) fn add(&mut self, task: Task) -> TaskId {
        let name = TaskId(self.next);
        self.next += 1;
        self.count(task.source(), 1);
        self.by_node.insert(task.id, name);
        self.tasks.insert(name, task);
        name
    }

    /// The addresses of a dial are known: the order for the driver.
    pub(super) fn describe(&mut self, name: TaskId, ip: IpAddr, also: &[IpAddr]) -> Option<Dial> {
        let task = self.tasks.get_mut(&name)?;
        let addr = SocketAddr::new(ip, task.port);
        task.addr = Some(addr);
        let also = also.iter().map(|ip| SocketAddr::new(*ip, task.port)).collect();
        let Task { id, public_key, kind, timeout, .. } = *task;
        Some(Dial { task: name, id, public_key, addr, also, record: task.record.take(), kind, timeout })
    }

    pub(super) fn remove(&mut self, name: TaskId) -> Option<Task> {
        let task = self.tasks.remove(&name)?;
        self.by_node.remove(&task.id);
        self.count(task.source(), -1);
        Some(task)
    }

    fn count(&mut self, source: Option<Source>, step: isize) {
        if let Some(source) = source
            && let Some(count) = self.dynamic.get_mut(source as usize)
        {
            *count = count.saturating_add_signed(step);
        }
    }
}
