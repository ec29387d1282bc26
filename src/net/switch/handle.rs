//! The way into the switch: what other rooms may ask of it, as calls.
//!
//! A call is carried to the switch's task, which runs it between two events and answers. The queue is bounded; a
//! caller waits its turn under its own deadline. Only the end of a stream does not wait, because nobody is left to.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use super::{
    attachment::{Attached, Attachment, StreamWaker},
    boards::Boards,
};
use crate::{
    Now,
    delivery::StreamId,
    lease::{Greeting, RegistrationSpec},
    net::{bandwidth::Rates, connection::Shared},
    node::{NodeId, NodeRef, local::EntryOwner},
    p2p::DisconnectReason,
    policy::{
        Ban, BanError, BanTarget, Settings,
        dial::{AddError, ConnectOutcome, ListEntry},
    },
    switch::{
        Answer, CallId, Engine, PeerView, Principal,
        attachment::PeerChannel,
        metrics::Metrics,
        peers::{BanRequest, ConnectReply, Listed, PeersSummary},
        registration::{
            self, Acting, AttachRequest, Lookup, Registered, RegistrationView, SwitchError, Target,
        },
        registrations::RegistrationId,
    },
};

/// A call on its way.
pub(super) type Command = Box<dyn FnOnce(&mut Desk, Now) + Send>;

/// The engine beside the callers that wait for it.
pub(super) struct Desk {
    pub(super) engine: Engine,
    callers: HashMap<CallId, oneshot::Sender<Answer>>,
    calls_made: u64,
}

impl Desk {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, callers: HashMap::new(), calls_made: 0 }
    }

    /// A caller waits for an answer that comes later. Callers that have given up are forgotten first.
    fn wait(&mut self, caller: oneshot::Sender<Answer>) -> CallId {
        for (call, _) in self.callers.extract_if(|_, caller| caller.is_closed()) {
            self.engine.give_up(call);
        }
        self.calls_made += 1;
        let call = CallId(self.calls_made);
        self.callers.insert(call, caller);
        call
    }

    /// A caller has its answer, unless it has given up.
    pub(super) fn reply(&mut self, call: CallId, answer: Answer) {
        if let Some(caller) = self.callers.remove(&call) {
            let _ = caller.send(answer);
        }
    }
}

/// What may be set about peers while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// Which nodes are dialed, let in and kept.
    pub policy: Settings,
    /// How much may go over connections.
    pub bandwidth: Rates,
}

#[derive(Default)]
pub(super) struct Ending {
    deadline: OnceLock<Duration>,
    over: AtomicBool,
}

/// A handle to the switch. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    pub(super) ending: Arc<Ending>,
    boards: Boards,
    shared: Arc<Shared>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draining {
    /// Not asked for.
    No,
    /// Streams go on until this wall time.
    Until(Duration),
    /// Streams end.
    Over,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>, boards: Boards, shared: Arc<Shared>) -> Self {
        Self { commands, ending: Arc::default(), boards, shared }
    }

    /// What can be watched. Reading it costs the switch nothing.
    #[must_use]
    pub fn boards(&self) -> &Boards {
        &self.boards
    }

    /// Runs a call between two events of the switch.
    pub(super) async fn call<R: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Engine, Now) -> R + Send + 'static,
    ) -> Result<R, SwitchError> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |desk, now| {
            // The caller may have given up.
            let _ = reply.send(run(&mut desk.engine, now));
        });
        self.commands.send(command).await.map_err(|_| SwitchError::Stopped)?;
        answer.await.map_err(|_| SwitchError::Stopped)
    }

    /// Runs a call whose answer comes later.
    async fn ask(
        &self,
        run: impl FnOnce(&mut Engine, Now, CallId) + Send + 'static,
    ) -> Result<oneshot::Receiver<Answer>, SwitchError> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |desk, now| {
            let call = desk.wait(reply);
            run(&mut desk.engine, now, call);
        });
        self.commands.send(command).await.map_err(|_| SwitchError::Stopped)?;
        Ok(answer)
    }

    /// How far a drain has come.
    #[must_use]
    pub fn draining(&self) -> Draining {
        match self.ending.deadline.get() {
            None => Draining::No,
            Some(_) if self.ending.over.load(Ordering::Acquire) => Draining::Over,
            Some(deadline) => Draining::Until(*deadline),
        }
    }

    /// Begins the drain: no more dials, accepts and registrations; applications are told. The first call counts.
    pub async fn drain(&self, deadline: Duration) {
        if self.ending.deadline.set(deadline).is_ok() {
            let _ = self.call(|engine, _| engine.drain()).await;
        }
    }

    /// Says "quitting" to all peers, after what was accepted for them. Their connections end within a second.
    pub async fn quit(&self) {
        let _ = self.call(|engine, _| engine.quit()).await;
    }

    /// Ends the streams of all applications.
    pub async fn end_streams(&self) {
        self.ending.over.store(true, Ordering::Release);
        self.boards.close();
        let _ = self.call(|engine, _| engine.registrations().wake_streams()).await;
    }

    /// Attached streams.
    pub async fn attached(&self) -> usize {
        self.call(|engine, _| engine.registrations().attached()).await.unwrap_or(0)
    }

    /// Connections that are left.
    pub async fn connections(&self) -> usize {
        self.call(|engine, _| engine.connections()).await.unwrap_or(0)
    }

    // Peers.

    /// All connected peers, by node id.
    pub async fn peers(&self) -> Result<Vec<PeerView>, SwitchError> {
        self.call(|engine, _| engine.peers().all()).await
    }

    /// One connected peer.
    pub async fn peer(&self, node: NodeId) -> Result<PeerView, SwitchError> {
        self.call(move |engine, _| engine.peers().get(node)).await?
    }

    /// Ends the session with a node.
    pub async fn disconnect_peer(
        &self,
        node: NodeId,
        reason: DisconnectReason,
    ) -> Result<Option<Duration>, SwitchError> {
        self.call(move |engine, now| engine.disconnect_peer(now, node, reason)).await?
    }

    /// How it goes with peers, summed up.
    pub async fn summary(&self) -> Result<PeersSummary, SwitchError> {
        self.call(|engine, now| engine.peers().summary(now)).await
    }

    /// The settings of peers.
    pub async fn settings(&self) -> Result<PeerSettings, SwitchError> {
        self.change_settings(|_| {}).await
    }

    /// Changes the settings of peers, all at once, and returns what they are then.
    pub async fn change_settings(
        &self,
        change: impl FnOnce(&mut PeerSettings) + Send + 'static,
    ) -> Result<PeerSettings, SwitchError> {
        let shared = Arc::clone(&self.shared);
        self.call(move |engine, now| {
            let mut peers = engine.peers();
            let before =
                PeerSettings { policy: peers.settings().clone(), bandwidth: shared.bandwidth.rates() };
            let mut settings = before.clone();
            change(&mut settings);
            if settings.policy != before.policy {
                peers.set_settings(now, settings.policy);
            }
            if settings.bandwidth != before.bandwidth {
                shared.bandwidth.set(now.mono, settings.bandwidth);
            }
            PeerSettings { policy: peers.settings().clone(), bandwidth: shared.bandwidth.rates() }
        })
        .await
    }

    /// Bans a node, an address or a network.
    pub async fn ban(&self, ban: BanRequest) -> Result<Result<Ban, BanError>, SwitchError> {
        self.call(move |engine, now| engine.peers().ban(now, ban)).await
    }

    /// Lifts a ban.
    pub async fn unban(&self, target: BanTarget) -> Result<Result<Ban, BanError>, SwitchError> {
        self.call(move |engine, now| engine.peers().unban(now, &target)).await
    }

    /// All bans that stand.
    pub async fn bans(&self) -> Result<Vec<Ban>, SwitchError> {
        self.call(|engine, now| engine.peers().bans(now)).await
    }

    /// Adds a static peer, or answers the entry that is there.
    pub async fn add_static(&self, node: NodeRef) -> Result<ListEntry, SwitchError> {
        self.call(move |engine, now| engine.peers().add_static(now, &node)).await?
    }

    /// The same, and waits for what the first dial comes to, or until `wait` is over; answers how it goes by then. The
    /// wait never fails.
    pub async fn add_static_and_wait(&self, node: NodeRef, wait: Duration) -> Result<ListEntry, SwitchError> {
        let id = node.id();
        let added = self.add_static(node).await?;
        if wait.is_zero() {
            return Ok(added);
        }
        let before = added.last_error.clone();
        let outcome = self.ask(move |engine, now, call| engine.wait_for_dial(now, call, id, before)).await?;
        if let Ok(Ok(Answer::Entry(Some(entry)))) = tokio::time::timeout(wait, outcome).await {
            return Ok(*entry);
        }
        // It was taken off the list meanwhile, by another call; then what was added is the last that is known.
        let entry = self.call(move |engine, now| engine.peers().listed(now, id)).await?;
        Ok(entry.unwrap_or(added))
    }

    /// Removes a static peer and disconnects it, unless `keep` is set or it is trusted.
    pub async fn remove_static(&self, node: NodeId, keep: bool) -> Result<(), SwitchError> {
        self.call(move |engine, now| engine.peers().remove_static(now, node, keep)).await?
    }

    /// All static peers.
    pub async fn static_peers(&self) -> Result<Vec<ListEntry>, SwitchError> {
        self.call(|engine, now| engine.peers().static_peers(now)).await
    }

    /// Adds a trusted peer, or answers the entry that is there.
    pub async fn add_trusted(&self, node: NodeRef) -> Result<ListEntry, SwitchError> {
        self.call(move |engine, now| engine.peers().add_trusted(now, &node)).await?
    }

    /// Removes a trusted peer. It stays connected.
    pub async fn remove_trusted(&self, node: NodeId) -> Result<(), SwitchError> {
        self.call(move |engine, now| engine.peers().remove_trusted(now, node)).await?
    }

    /// Takes over a list of the configuration that was read again. Returns the nodes that cannot be listed, and why.
    pub async fn relist(
        &self,
        list: Listed,
        added: Vec<NodeRef>,
        removed: BTreeSet<NodeId>,
    ) -> Result<Vec<(NodeRef, AddError)>, SwitchError> {
        self.call(move |engine, now| engine.peers().relist(now, list, added, &removed)).await
    }

    /// All trusted peers.
    pub async fn trusted_peers(&self) -> Result<Vec<ListEntry>, SwitchError> {
        self.call(|engine, now| engine.peers().trusted_peers(now)).await
    }

    /// Dials a node once and answers the peer, or what the dial came to.
    pub async fn connect(&self, node: NodeRef, timeout: Duration) -> Result<ConnectReply, SwitchError> {
        let answer = self.ask(move |engine, now, call| engine.connect(now, call, &node, timeout)).await?;
        match answer.await {
            Ok(Answer::Connect(reply)) => Ok(reply),
            _ => Ok(Err(ConnectOutcome::TimedOut)),
        }
    }

    // Registrations.

    /// Makes or resumes a registration without a stream.
    pub async fn register(
        &self,
        principal: Principal,
        target: Target,
        request_id: String,
        takeover: bool,
    ) -> Result<Registered, SwitchError> {
        self.call(move |engine, now| engine.register(now, &principal, &target, &request_id, takeover)).await?
    }

    /// Attaches a stream.
    pub async fn attach(
        &self,
        principal: Principal,
        request: AttachRequest,
    ) -> Result<Attached, SwitchError> {
        let handle = self.clone();
        self.call(move |engine, now| {
            let waker = Arc::<StreamWaker>::default();
            let attached = engine.attach(now, &principal, &request, Arc::clone(&waker) as _)?;
            // Made here, so that a caller that has given up detaches the stream by dropping it.
            Ok(wrap(attached, waker, handle))
        })
        .await?
    }

    /// A stream is gone. Called from a destructor, so it cannot wait: when the queue is full, a task waits for it.
    pub(super) fn detach(&self, id: RegistrationId, stream: StreamId, last_send_id: u64) {
        let command: Command = Box::new(move |desk, now| {
            desk.engine.registrations().detach(now, id, stream, last_send_id);
        });
        if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(command)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let commands = self.commands.clone();
            runtime.spawn(async move {
                let _ = commands.send(command).await;
            });
        }
    }

    /// Begins the lease of a registration anew.
    pub async fn renew(&self, principal: Principal, acting: Acting) -> Result<RegistrationView, SwitchError> {
        self.call(move |engine, now| engine.registrations().renew(now, &principal, &acting)).await?
    }

    /// Changes what a registration says.
    pub async fn update_registration(
        &self,
        principal: Principal,
        acting: Acting,
        spec: RegistrationSpec,
    ) -> Result<RegistrationView, SwitchError> {
        self.call(move |engine, now| engine.update_registration(now, &principal, &acting, spec)).await?
    }

    /// Replaces what is sent on every new channel of a capability, on behalf of a caller.
    pub async fn set_greeting_of(
        &self,
        principal: Principal,
        acting: Acting,
        name: String,
        version: u32,
        greeting: Vec<Greeting>,
    ) -> Result<(), SwitchError> {
        self.call(move |engine, now| {
            engine.registrations().set_greeting_of(now, &principal, &acting, &name, version, greeting)
        })
        .await?
    }

    /// Ends a registration now.
    pub async fn delete(&self, principal: Principal, acting: Acting) -> Result<(), SwitchError> {
        self.call(move |engine, now| engine.registrations().delete(now, &principal, &acting)).await?
    }

    /// Under which name a registration sets entries of our record.
    pub async fn entry_owner(&self, principal: Principal, acting: Acting) -> Result<EntryOwner, SwitchError> {
        self.call(move |engine, now| engine.registrations().entry_owner(now, &principal, &acting)).await?
    }

    /// The client id of the registration that owns an entry of our record.
    pub async fn entry_client(&self, owner: EntryOwner) -> Option<Arc<str>> {
        self.call(move |engine, _| engine.registrations().entry_client(owner)).await.ok().flatten()
    }

    /// One registration.
    pub async fn registration(&self, lookup: Lookup) -> Result<RegistrationView, SwitchError> {
        self.call(move |engine, now| engine.registrations().registration(now, &lookup)).await?
    }

    /// All registrations.
    pub async fn registrations(&self) -> Result<Vec<RegistrationView>, SwitchError> {
        self.call(|engine, now| engine.registrations().registrations(now)).await
    }

    /// The channel on which a call sends.
    pub async fn sender(
        &self,
        principal: Principal,
        acting: Acting,
        node: NodeId,
        protocol: String,
    ) -> Result<PeerChannel, SwitchError> {
        self.call(move |engine, now| engine.sender(now, &principal, &acting, node, &protocol)).await?
    }

    /// The channels on which a call sends to everybody, in random order.
    pub async fn senders(
        &self,
        principal: Principal,
        acting: Acting,
        protocol: String,
    ) -> Result<Vec<PeerChannel>, SwitchError> {
        self.call(move |engine, now| engine.senders(now, &principal, &acting, &protocol)).await?
    }

    /// Lets go of one channel of a registration.
    pub async fn disconnect_channel(
        &self,
        id: RegistrationId,
        target: PeerChannel,
        reason: DisconnectReason,
        end_session: bool,
    ) -> Result<(), SwitchError> {
        self.call(move |engine, now| engine.disconnect_channel(now, id, &target, reason, end_session)).await?
    }

    /// Replaces what is sent on every new channel of a capability.
    pub async fn set_greeting(
        &self,
        id: RegistrationId,
        name: String,
        version: u32,
        greeting: Vec<Greeting>,
    ) -> Result<(), SwitchError> {
        self.call(move |engine, _| engine.registrations().set_greeting(id, &name, version, greeting)).await?
    }

    /// The numbers at this time.
    pub async fn metrics(&self) -> Result<Metrics, SwitchError> {
        self.call(|engine, now| engine.metrics(now)).await
    }
}

/// The answer to a stream, with what its tasks need around the attachment.
fn wrap(attached: registration::Attached, waker: Arc<StreamWaker>, handle: Handle) -> Attached {
    let registration::Attached {
        registration,
        token,
        resumed,
        instance_id,
        last_send_id,
        existing_channels,
        max_frame,
        attachment,
    } = attached;
    Attached {
        registration,
        token,
        resumed,
        instance_id,
        last_send_id,
        existing_channels,
        max_frame,
        attachment: Attachment::new(attachment, waker, handle),
    }
}
