//! What the engine wants done. Each effect is an id and values; the driver has the sockets, tasks and callers.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use super::{
    calls::{Answer, CallId},
    losses::LossLine,
    session::Session,
};
use crate::{
    Now,
    node::{ForkSchedule, Head, Host, NodeId, PublicKey, Record, local::EntryOwner},
    p2p::{
        DisconnectReason,
        session::{ConnectionId, Control},
    },
    policy::{
        Refusal, Warning,
        dial::{AddError, Dial, TaskId},
        fork_following::News,
        lists::Lists,
        one_source::OneSource,
    },
};

/// What the driver does for the engine.
pub enum Effect {
    /// Tell a connection.
    Control(ConnectionId, Control),
    /// End a connection that has no keys yet, without a word. It reports no end.
    AbortConnection(ConnectionId),
    /// Look up a host name, and report with `host_resolved`.
    LookupHost(TaskId, String),
    /// Open a TCP connection, and report with `dialed`.
    Dial(Dial),
    /// Give a dial or its lookup up; no report is owed.
    AbortDial(TaskId),
    /// Ask discovery where a node is, and report with `located`.
    Resolve(NodeId, Option<PublicKey>),
    /// Our record announces the chain of a registration from now on, or does not any more.
    Announce(EntryOwner, Option<(Arc<ForkSchedule>, Head)>),
    /// A registration's entries leave our record.
    ReleaseEntries(EntryOwner),
    /// So many candidates are wanted.
    Demand(usize),
    /// Keep this peer for the next run.
    Remember(Box<Acquaintance>),
    /// A peer that we dialed left too soon to be kept anew.
    PeerLeft(NodeId),
    /// Keep the lists. Only the newest count.
    Persist(Lists),
    /// A caller that waited has its answer.
    Reply(CallId, Answer),
    /// Write a line into the log.
    Log(LogLine),
}

/// A peer that we dialed, for the next run.
#[derive(Clone, Debug)]
pub struct Acquaintance {
    /// Its key.
    pub public_key: PublicKey,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its record, if we have it.
    pub record: Option<Record>,
    /// How long the session lasted; zero while it does.
    pub served: Duration,
    /// Wall time, in seconds.
    pub last: u64,
}

/// A line for the log.
#[derive(Debug)]
pub enum LogLine {
    /// A session opened.
    Connected(Arc<Session>),
    /// A session ended.
    Disconnected {
        /// Which.
        session: Arc<Session>,
        /// The reason on the wire, or what stands for it.
        reason: DisconnectReason,
        /// In more words; a peer may have written some of them.
        detail: String,
    },
    /// An inbound connection was refused before its handshake, or a connection at a checkpoint.
    Refused {
        /// The other end.
        remote: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
    /// A registration is new.
    Registered {
        /// Its client id.
        client: Arc<str>,
        /// Its capabilities.
        protocols: String,
    },
    /// A registration ended.
    RegistrationEnded {
        /// Its client id.
        client: Arc<str>,
        /// Whether its lease ran out, rather than being deleted.
        expired: bool,
    },
    /// An application lost messages.
    Lost(LossLine),
    /// A peer is reconnected, so that it learns of a protocol.
    Rehello(NodeId),
    /// A fork that schedules lack is followed, or is not any more.
    Fork(News),
    /// Something is wrong that was not before.
    Warn(Warning),
    /// The warning of this name does not hold any more.
    WarningOver(&'static str),
    /// Most refused connections come from one private address.
    OneSource(OneSource),
    /// A peer that was listed in an earlier run has no place any more.
    LeftOut {
        /// The node, in words.
        node: String,
        /// Why.
        error: AddError,
    },
}

/// How long a peer must have been one to be worth a dial at the next start. Those that find us useless, or are full, say
/// so within seconds.
const GOOD_AFTER: Duration = Duration::from_secs(60);

/// Effects that the driver has not taken yet, in order.
#[derive(Default)]
pub(super) struct Effects(VecDeque<Effect>);

impl std::fmt::Debug for Effects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Effects({})", self.0.len())
    }
}

impl Effects {
    pub(super) fn push(&mut self, effect: Effect) {
        self.0.push_back(effect);
    }

    pub(super) fn pop(&mut self) -> Option<Effect> {
        self.0.pop_front()
    }

    pub(super) fn reply(&mut self, call: CallId, answer: Answer) {
        self.push(Effect::Reply(call, answer));
    }

    pub(super) fn log(&mut self, line: LogLine) {
        self.push(Effect::Log(line));
    }

    /// The lists are kept already.
    pub(super) fn persist_nothing(&mut self) {
        self.0.retain(|effect| !matches!(effect, Effect::Persist(_)));
    }

    /// A session ended. `stopping`: because we stop, so that its length says nothing about the peer.
    pub(super) fn left(&mut self, now: Now, session: &Session, stopping: bool) {
        let served = now.unix.saturating_sub(session.since);
        if served >= GOOD_AFTER || stopping {
            self.remember(now, session, served);
        } else if !session.inbound {
            self.push(Effect::PeerLeft(session.node_id));
        }
    }

    /// Notes a peer for the next run, which dials those that served longest first. Peers that dialed us are left out:
    /// where they listen is not known.
    pub(super) fn remember(&mut self, now: Now, session: &Session, served: Duration) {
        let Host::Ip(ip) = session.enode.host else { return };
        if !session.inbound {
            self.push(Effect::Remember(Box::new(Acquaintance {
                public_key: session.public_key,
                addr: SocketAddr::new(ip, session.enode.tcp),
                record: session.record.clone(),
                served,
                last: now.unix.as_secs(),
            })));
        }
    }
}
