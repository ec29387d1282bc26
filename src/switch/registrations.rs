//! Registrations as the switch keeps them: the lease (who owns which names, for how long) beside the inbox (what
//! waits for the application), and the answers to calls about them.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    attachment::{Attachment, Fence, Inbox, PeerChannel, StreamWaker},
    losses::LossLog,
    peers::ListError,
};
use crate::delivery::Budget;
use crate::delivery::{AttachParams, ChannelKey, Hooks, Lost, SharedInbox};
use crate::lease::{
    self, Claim, LeaseError, LeaseStream, Registration, RegistrationSpec, ResumeToken, StateName, Who,
};
use crate::{Now, node::NodeId};

pub use crate::lease::RegistrationId;

/// Why the switch refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    /// The process is ending.
    #[error("the sidecar is stopping")]
    Stopped,
    /// The lease says no.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// The peer is not connected.
    #[error("no session with node {node}; ListPeers shows who is connected")]
    PeerNotConnected {
        /// Who.
        node: NodeId,
    },
    /// The peer is connected but does not speak the protocol.
    #[error("node {node} is connected and does not share {protocol}")]
    ProtocolNotShared {
        /// Who.
        node: NodeId,
        /// What was asked for.
        protocol: String,
    },
    /// Another application uses the session too.
    #[error(
        "other applications use the session with node {node} too, {others} of them; ending it for all needs the admin \
         role, or end-shared-sessions in the configuration"
    )]
    SharedSession {
        /// Whose session.
        node: NodeId,
        /// How many others.
        others: usize,
    },
    /// A list of peers says no.
    #[error(transparent)]
    List(#[from] ListError),
}

/// Which registration a stream is for.
#[derive(Clone, Debug)]
pub enum Target {
    /// The one with this token.
    Token(String),
    /// A new one, or the client's own with a changed spec.
    Spec(RegistrationSpec),
    /// The client's own.
    Client(Arc<str>),
}

/// A stream's wish to attach.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// Which registration.
    pub target: Target,
    /// Windows and frame sizes.
    pub params: AttachParams,
    /// Names the attempt, so that a repeated one gets the same answer; empty for none.
    pub request_id: String,
    /// Whether an attached registration may be taken over.
    pub takeover: bool,
}

/// On whose behalf a call acts.
#[derive(Clone, Debug)]
pub enum Acting {
    /// The holder of a resume token.
    Token(String),
    /// The principal's registration with this client id.
    Client(Arc<str>),
    /// The principal's registration that owns the protocol of the call.
    Protocol(String),
}

impl Acting {
    pub(super) fn who(&self) -> Who<'_> {
        match self {
            Self::Token(token) => Who::Token(token),
            Self::Client(client) => Who::Client(client),
            Self::Protocol(protocol) => Who::Protocol(protocol),
        }
    }
}

/// How a registration is looked up by whoever wants to see it.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// By its public id.
    Id(RegistrationId),
    /// By its client id.
    Client(Arc<str>),
    /// By a protocol it owns, with or without a version.
    Protocol(String),
}

/// A registration as everybody may see it.
#[derive(Clone, Debug)]
pub struct RegistrationView {
    /// Its public id.
    pub id: RegistrationId,
    /// What was registered.
    pub spec: RegistrationSpec,
    /// The lease's state.
    pub state: StateName,
    /// How many tokens it has had.
    pub generation: u64,
    /// Wall time at which the lease ends unless its application comes back.
    pub expire_time: Option<Duration>,
    /// Open channels.
    pub open_channels: usize,
    /// What waits for the application: bytes, and a cost for each message.
    pub waiting_bytes: u64,
    /// Channels that hold their connection.
    pub holding_channels: usize,
    /// Wall time at which the longest of these holds began.
    pub holding_since: Option<Duration>,
    /// What the application lost so far.
    pub lost: Lost,
}

impl RegistrationView {
    /// What it takes in memory, in bytes: greetings above all.
    pub(super) fn bytes(&self) -> usize {
        let protocols = self.spec.protocols.iter().map(|protocol| {
            size_of_val(protocol)
                + protocol.greeting.iter().map(|said| said.payload.len() + 64).sum::<usize>()
        });
        size_of::<Self>() + protocols.sum::<usize>()
    }
}

/// The answer to a registration by call.
#[derive(Clone, Debug)]
pub struct Registered {
    /// What was registered.
    pub registration: RegistrationView,
    /// The secret that stands for it.
    pub token: ResumeToken,
    /// Whether it existed before.
    pub resumed: bool,
    /// This run of the sidecar.
    pub instance_id: Arc<str>,
}

/// The answer to a stream.
#[derive(Clone, Debug)]
pub struct Attached {
    /// What it holds now.
    pub registration: RegistrationView,
    /// The secret that stands for it.
    pub token: ResumeToken,
    /// Whether it existed before.
    pub resumed: bool,
    /// This run of the sidecar.
    pub instance_id: Arc<str>,
    /// The last send that an earlier stream's task processed.
    pub last_send_id: u64,
    /// How many channels of earlier streams will be told to this one.
    pub existing_channels: usize,
    /// The largest frame that the client takes, in bytes.
    pub max_frame: usize,
    /// The stream's hold.
    pub attachment: Arc<Attachment>,
}

/// Why a stream ended that its client did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Another stream holds the registration.
    TakenOver,
    /// The registration is gone.
    Deleted,
    /// The process is ending.
    Drained,
}

/// What a registration's streams and sinks share. It outlives each of them.
pub struct Holding {
    /// Its public id.
    pub id: RegistrationId,
    /// What waits for the application.
    pub inbox: Inbox,
    /// Wakes the stream of the moment.
    pub waker: Arc<StreamWaker>,
    /// What its application lost, for the log.
    pub(super) losses: Arc<LossLog>,
    spaces: Arc<Mutex<HashMap<ChannelKey, Arc<Notify>>>>,
    deleted: OnceLock<()>,
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Holding({})", self.id)
    }
}

impl Holding {
    pub(super) fn new(id: RegistrationId, spec: &RegistrationSpec, budget: Arc<Budget>) -> Arc<Self> {
        let waker = Arc::<StreamWaker>::default();
        let spaces = Arc::<Mutex<HashMap<ChannelKey, Arc<Notify>>>>::default();
        let hooks = {
            let (waker, spaces) = (Arc::clone(&waker), Arc::clone(&spaces));
            Hooks {
                on_readable: Box::new(move || waker.wake()),
                on_space: Box::new(move |key| {
                    let spaces = spaces.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(space) = spaces.get(&key) {
                        space.notify_one();
                    }
                }),
            }
        };
        let inbox = SharedInbox::new(crate::delivery::Inbox::new(inbox_config(spec), budget), hooks);
        let losses = LossLog::new(Arc::clone(&spec.client_id));
        Arc::new(Self { id, inbox, waker, losses, spaces, deleted: OnceLock::new() })
    }

    /// Names who is to be told of room on a channel: the connection that stalls for it.
    pub(super) fn on_space(&self, key: ChannelKey, space: Arc<Notify>) {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner).insert(key, space);
    }

    pub(super) fn forget_space(&self, key: ChannelKey) {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    pub(super) fn end(&self) {
        let _ = self.deleted.set(());
        self.inbox.lock().clear();
        self.waker.wake();
    }

    /// Why a stream of this registration was ended.
    #[must_use]
    pub fn why_ended(&self) -> Ended {
        if self.deleted.get().is_some() { Ended::Deleted } else { Ended::TakenOver }
    }
}

pub(super) fn inbox_config(spec: &RegistrationSpec) -> crate::delivery::Config {
    let defaults = crate::delivery::Config::default();
    crate::delivery::Config {
        channel_bytes: match spec.channel_queue_bytes {
            0 => defaults.channel_bytes,
            bytes => bytes,
        },
        overflow: spec.overflow,
        ..defaults
    }
}

/// A registration that the switch keeps: its shared half, and what only the switch needs.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) holding: Arc<Holding>,
    /// Its number in the policy.
    pub(super) policy_id: crate::policy::RegistrationId,
    /// The streams of the moment, as lease and inbox name them.
    pub(super) stream: Option<(LeaseStream, crate::delivery::StreamId)>,
    /// Ends what the stream of the moment sends.
    pub(super) fence: Option<Fence>,
    /// Of the latest stream that sent anything.
    pub(super) last_send_id: u64,
    /// Whether our record announces its chain.
    pub(super) announces: bool,
}

impl Kept {
    /// Whatever stream there was sends no more; what it sent until now counts.
    pub(super) fn fence(&mut self) {
        if let Some(last) = self.fence.take().and_then(|fence| fence.close()) {
            self.last_send_id = last;
        }
    }
}

pub(super) fn view(now: Now, registration: &Registration, kept: Option<&Kept>) -> RegistrationView {
    let (open_channels, waiting_bytes, holding, lost) = kept.map_or((0, 0, None, Lost::default()), |kept| {
        let inbox = kept.holding.inbox.lock();
        (inbox.open_channels(), inbox.waiting(), inbox.holding(), inbox.counters().lost())
    });
    RegistrationView {
        id: registration.id(),
        spec: registration.spec().clone(),
        state: registration.state_name(),
        generation: registration.generation(),
        expire_time: registration.expire_time(now),
        open_channels,
        waiting_bytes,
        holding_channels: holding.map_or(0, |(channels, _)| channels),
        holding_since: holding
            .map(|(_, since)| now.unix.saturating_sub(now.mono.saturating_duration_since(since))),
        lost,
    }
}

/// The claim that a stream's target makes on the lease.
pub(super) fn claim<'a>(target: &'a Target, request_id: &'a str, takeover: bool) -> Claim<'a> {
    let (who, spec) = match target {
        Target::Token(token) => (Who::Token(token), None),
        Target::Spec(spec) => (Who::Client(&spec.client_id), Some(spec.clone())),
        Target::Client(client) => (Who::Client(client), None),
    };
    Claim { who, spec, request_id, takeover }
}

/// What an inbox's channel says of its peer.
pub(super) type About = crate::delivery::About<PeerChannel>;

/// The limits of leases, from the configuration.
pub(super) type LeaseConfig = lease::Config;
