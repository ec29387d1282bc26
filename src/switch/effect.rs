//! The orders of the engine. Each effect has an id and values; the driver has the sockets, tasks and callers.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use super::{
    calls::{Answer, CallId},
    log_ration::LogRation,
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

/// An order to the driver.
pub enum Effect {
    /// Send an order to a connection.
    Control(ConnectionId, Control),
    /// End a connection that has no keys yet, without a Disconnect. It reports no end.
    AbortConnection(ConnectionId),
    /// Look up a host name. Report with `host_resolved`.
    LookupHost(TaskId, String),
    /// Open a TCP connection. Report with `dialed` or `dial_failed`.
    Dial(Dial),
    /// Abort a dial or its lookup. It need not report.
    AbortDial(TaskId),
    /// Ask discovery for the address of a node. Report with `located`.
    Resolve(NodeId, Option<PublicKey>),
    /// Announce the chain of a registration in our record from now on; with `None`, no longer.
    Announce(EntryOwner, Option<(Arc<ForkSchedule>, Head)>),
    /// Remove a registration's entries from our record.
    ReleaseEntries(EntryOwner),
    /// Tell discovery how many candidates the dialer has room for.
    Demand(usize),
    /// Store this peer for the next run.
    Remember(Box<Acquaintance>),
    /// Report to the database that a peer that we dialed left before [`GOOD_AFTER`]. The database removes the peer if
    /// it never had a longer session.
    PeerLeft(NodeId),
    /// Store the lists. Only the newest lists count.
    Persist(Lists),
    /// Send the answer to a caller that waited.
    Reply(CallId, Answer),
    /// Write a line into the log.
    Log(LogLine),
}

/// A peer that we dialed, as it is stored for the next run.
#[derive(Clone, Debug)]
pub struct Acquaintance {
    /// Its key.
    pub public_key: PublicKey,
    /// The address at which it listens.
    pub addr: SocketAddr,
    /// Its record, if we have it.
    pub record: Option<Record>,
    /// How long the session lasted; zero while it is open.
    pub served: Duration,
    /// The time of this entry, in Unix seconds.
    pub last: u64,
}

/// A line for the log.
#[derive(Debug)]
pub enum LogLine {
    /// A session opened.
    Connected(Arc<Session>),
    /// A session ended.
    Disconnected {
        /// The session that ended.
        session: Arc<Session>,
        /// The reason on the wire, or the one that stands for the end if none was sent.
        reason: DisconnectReason,
        /// A description. The peer may have written parts of it.
        detail: String,
    },
    /// Lines about sessions of strangers were left out since the last one.
    LinesLeftOut(u64),
    /// An inbound connection was refused before its handshake, or a connection at a checkpoint.
    Refused {
        /// The other end.
        remote: SocketAddr,
        /// Why it was refused.
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
        /// Whether its lease ran out; false if it was deleted.
        expired: bool,
    },
    /// An application lost messages.
    Lost(LossLine),
    /// A peer is reconnected, so that it learns of a protocol.
    Rehello(NodeId),
    /// A fork that schedules lack is followed, or is not followed any more.
    Fork(News),
    /// A warning has begun.
    Warn(Warning),
    /// The warning of this name has ended.
    WarningOver(&'static str),
    /// Most refused connections come from one private address.
    OneSource(OneSource),
    /// A peer that was listed in an earlier run cannot be listed any more.
    LeftOut {
        /// The node, as it was stored.
        node: String,
        /// Why it cannot be listed.
        error: AddError,
    },
}

/// The shortest session after which a peer is worth a dial at the next start. Peers that find us useless, or that have
/// no free slot, disconnect within seconds.
const GOOD_AFTER: Duration = Duration::from_secs(60);

/// The effects that the driver has not taken yet, in order.
#[derive(Default)]
pub(super) struct Effects {
    queue: VecDeque<Effect>,
    log_ration: LogRation,
}

impl std::fmt::Debug for Effects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Effects({})", self.queue.len())
    }
}

impl Effects {
    pub(super) fn push(&mut self, effect: Effect) {
        self.queue.push_back(effect);
    }

    pub(super) fn pop(&mut self) -> Option<Effect> {
        self.queue.pop_front()
    }

    pub(super) fn reply(&mut self, call: CallId, answer: Answer) {
        self.push(Effect::Reply(call, answer));
    }

    pub(super) fn log(&mut self, line: LogLine) {
        self.push(Effect::Log(line));
    }

    /// Logs a line. One about a session that the other side began takes from the ration of its network.
    pub(super) fn log_of_session(&mut self, now: Now, line: LogLine) {
        if let LogLine::Connected(session) | LogLine::Disconnected { session, .. } = &line
            && session.inbound
        {
            match self.log_ration.take(now.mono, session.remote.ip()) {
                None => return,
                Some(0) => {}
                Some(left_out) => self.log(LogLine::LinesLeftOut(left_out)),
            }
        }
        self.log(line);
    }

    /// Drops the orders to store the lists, because the lists are stored already.
    pub(super) fn persist_nothing(&mut self) {
        self.queue.retain(|effect| !matches!(effect, Effect::Persist(_)));
    }

    /// Notes a session that ended. `stopping`: it ended because we stop, so its length says nothing about the peer.
    pub(super) fn left(&mut self, now: Now, session: &Session, stopping: bool) {
        let served = now.unix.saturating_sub(session.since);
        if served >= GOOD_AFTER || stopping {
            self.remember(now, session, served);
        } else if !session.inbound {
            self.push(Effect::PeerLeft(session.node_id));
        }
    }

    /// Stores a peer for the next run, which first dials the peers that served longest. Peers that dialed us are left
    /// out: the address at which they listen is not known.
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
