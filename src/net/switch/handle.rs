//! The way into the switch: other rooms run calls on its engine through it.
//!
//! A call is sent to the task of the switch, which runs it between two events and sends back its result. The queue is
//! bounded, and each caller waits with its own deadline. Only the end of a stream does not wait, because it has no
//! caller.
//!
//! [`Handle::run`] and [`Handle::call`] take any call. So a call is defined once, in `switch`, and used once, by the
//! service that needs it. The other methods do more: their answer comes later, they involve a second owner, or they
//! change how streams end.

use std::{
    collections::HashMap,
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
    watches::Watches,
};
use crate::{
    Now,
    delivery::StreamId,
    net::{bandwidth::Rates, connection::Shared},
    node::{NodeRef, RegistrationId},
    policy::{
        Settings,
        dial::{ConnectOutcome, ListEntry},
    },
    switch::{
        Answer, CallId, Engine, Principal,
        peers::ConnectReply,
        registration::{self, AttachRequest, SwitchError},
    },
};

/// A call that waits in the queue of the switch.
pub(super) type Command = Box<dyn FnOnce(&mut Desk, Now) + Send>;

/// The engine, and the callers that wait for an answer that comes later.
pub(super) struct Desk {
    pub(super) engine: Engine,
    callers: HashMap<CallId, oneshot::Sender<Answer>>,
    calls_made: u64,
}

impl Desk {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, callers: HashMap::new(), calls_made: 0 }
    }

    /// Adds a caller that waits for an answer that comes later, and returns the id of its call. Callers that have given
    /// up are removed first.
    fn wait(&mut self, caller: oneshot::Sender<Answer>) -> CallId {
        for (call, _) in self.callers.extract_if(|_, caller| caller.is_closed()) {
            self.engine.give_up(call);
        }
        self.calls_made += 1;
        let call = CallId(self.calls_made);
        self.callers.insert(call, caller);
        call
    }

    /// Sends an answer to its caller, unless the caller has given up.
    pub(super) fn reply(&mut self, call: CallId, answer: Answer) {
        if let Some(caller) = self.callers.remove(&call) {
            let _ = caller.send(answer);
        }
    }
}

/// The settings for peers that may change while the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSettings {
    /// The rules for nodes that are dialed, let in and kept.
    pub policy: Settings,
    /// The caps on the bytes per second of connections.
    pub bandwidth: Rates,
}

/// The state of the drain. Streams read it without a call.
#[derive(Default)]
pub(super) struct Ending {
    /// Wall time at which streams end. Set when the drain begins.
    deadline: OnceLock<Duration>,
    /// Whether the drain is over, so that streams end.
    over: AtomicBool,
}

/// A handle to the switch. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    pub(super) ending: Arc<Ending>,
    watches: Watches,
    shared: Arc<Shared>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

/// The state of the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draining {
    /// There is no drain.
    No,
    /// The drain has begun. Streams go on until this wall time.
    Until(Duration),
    /// The drain is over. Streams end.
    Over,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>, watches: Watches, shared: Arc<Shared>) -> Self {
        Self { commands, ending: Arc::default(), watches, shared }
    }

    /// Returns the state that can be watched. Reading it does not need the task of the switch.
    #[must_use]
    pub fn watches(&self) -> &Watches {
        &self.watches
    }

    /// Runs a call between two events of the switch, and returns its result. Fails only if the switch is stopping.
    ///
    /// The call is one of the engine's own methods, or a few that must see the same state. It must be fast, because the
    /// switch handles nothing else at the same time.
    pub async fn run<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Engine, Now) -> R + Send + 'static,
    ) -> Result<R, SwitchError> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |desk, now| {
            // Sending fails if the caller has given up, which is no error.
            let _ = reply.send(call(&mut desk.engine, now));
        });
        self.commands.send(command).await.map_err(|_| SwitchError::Stopped)?;
        answer.await.map_err(|_| SwitchError::Stopped)
    }

    /// Runs a call that may fail, as [`Self::run`] does. Its own error and the error "the switch is stopping" have one
    /// type.
    pub async fn call<T: Send + 'static, E: From<SwitchError> + Send + 'static>(
        &self,
        call: impl FnOnce(&mut Engine, Now) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        self.run(call).await?
    }

    /// Runs a call whose answer comes later. Returns the receiver of the answer.
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

    /// Returns the state of the drain.
    #[must_use]
    pub fn draining(&self) -> Draining {
        match self.ending.deadline.get() {
            None => Draining::No,
            Some(_) if self.ending.over.load(Ordering::Acquire) => Draining::Over,
            Some(deadline) => Draining::Until(*deadline),
        }
    }

    /// Begins the drain: dials, accepts and registrations end, and applications get a notice. Only the first call has
    /// an effect.
    pub async fn drain(&self, deadline: Duration) {
        if self.ending.deadline.set(deadline).is_ok() {
            let _ = self.run(|engine, _| engine.drain()).await;
        }
    }

    /// Sends Disconnect with the reason "client quitting" to all peers, after the messages that were accepted for them.
    /// Their connections end within a second.
    pub async fn quit(&self) {
        let _ = self.run(|engine, _| engine.quit()).await;
    }

    /// Ends the streams of all applications.
    pub async fn end_streams(&self) {
        self.ending.over.store(true, Ordering::Release);
        self.watches.close();
        let _ = self.run(|engine, _| engine.registrations().wake_streams()).await;
    }

    /// Returns the settings of peers.
    pub async fn settings(&self) -> Result<PeerSettings, SwitchError> {
        self.change_settings(|_| {}).await
    }

    /// Changes the settings of peers in one step, and returns the settings after the change.
    pub async fn change_settings(
        &self,
        change: impl FnOnce(&mut PeerSettings) + Send + 'static,
    ) -> Result<PeerSettings, SwitchError> {
        let shared = Arc::clone(&self.shared);
        self.run(move |engine, now| {
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

    /// Adds a static peer, unless it is one already. Waits at most `wait` for the outcome of its first dial. Returns
    /// the entry after that; the end of the wait is not an error.
    pub async fn add_static(&self, node: NodeRef, wait: Duration) -> Result<ListEntry, SwitchError> {
        let id = node.id();
        let added = self.call(move |engine, now| engine.peers().add_static(now, &node)).await?;
        if wait.is_zero() {
            return Ok(added);
        }
        let before = added.last_error.clone();
        let outcome = self.ask(move |engine, now, call| engine.wait_for_dial(now, call, id, before)).await?;
        if let Ok(Ok(Answer::Entry(Some(entry)))) = tokio::time::timeout(wait, outcome).await {
            return Ok(*entry);
        }
        // If another call has removed the entry meanwhile, the entry as it was added is returned.
        let entry = self.run(move |engine, now| engine.peers().listed(now, id)).await?;
        Ok(entry.unwrap_or(added))
    }

    /// Dials a node once. Returns the peer, or the outcome of the dial.
    pub async fn connect(&self, node: NodeRef, timeout: Duration) -> Result<ConnectReply, SwitchError> {
        let answer = self.ask(move |engine, now, call| engine.connect(now, call, &node, timeout)).await?;
        match answer.await {
            Ok(Answer::Connect(reply)) => Ok(reply),
            _ => Ok(Err(ConnectOutcome::TimedOut)),
        }
    }

    /// Attaches a stream to its registration.
    pub async fn attach(
        &self,
        principal: Principal,
        request: AttachRequest,
    ) -> Result<Attached, SwitchError> {
        let handle = self.clone();
        self.call(move |engine, now| {
            let waker = Arc::<StreamWaker>::default();
            let attached = engine.attach(now, &principal, &request, Arc::clone(&waker) as _)?;
            // The attachment is made inside the call. If the caller has given up, the reply is dropped, which detaches
            // the stream.
            Ok(wrap(attached, waker, handle))
        })
        .await
    }

    /// Reports that a stream has ended. It is called from a destructor, so it cannot wait: if the queue is full, a task
    /// waits instead.
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
}

/// Returns the answer to a stream, in which the attachment has the waker and the handle that its tasks need.
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
