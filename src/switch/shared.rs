//! The state that the streams, the connections and the owner of one registration share: its inbox, and the wake-ups
//! around it.
//!
//! It outlives each of them, so that messages are queued while an application restarts.
//!
//! Left out: the right to hold the registration (`lease`).

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use super::{channel::Inbox, losses::LossLog};
use crate::{
    Wake, WakeSlot,
    budget::Budget,
    delivery::{self, ChannelKey, Hooks, SharedInbox},
    lease::RegistrationSpec,
    node::RegistrationId,
};

/// Why a stream ended that its client did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Another stream holds the registration.
    TakenOver,
    /// The registration has ended.
    Deleted,
    /// The sidecar is stopping.
    Drained,
}

/// Wakes the stream that is attached, if one is.
#[derive(Default)]
pub(super) struct StreamSlot(Mutex<Option<Arc<dyn Wake>>>);

impl StreamSlot {
    /// Sets the stream that is woken from now on.
    pub(super) fn set(&self, wake: Arc<dyn Wake>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(wake);
    }

    /// Wakes the stream.
    pub(super) fn wake(&self) {
        let wake = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(wake) = wake {
            wake.wake();
        }
    }
}

/// See the [module](self).
pub(super) struct SharedRegistration {
    id: RegistrationId,
    inbox: Inbox,
    stream: Arc<StreamSlot>,
    losses: Arc<LossLog>,
    /// The connections that wait for room, by channel.
    spaces: Arc<Mutex<HashMap<ChannelKey, Arc<WakeSlot>>>>,
    deleted: OnceLock<()>,
}

impl fmt::Debug for SharedRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration({})", self.id)
    }
}

impl SharedRegistration {
    pub(super) fn new(
        id: RegistrationId,
        spec: &RegistrationSpec,
        budget: Arc<Budget>,
        attention: Arc<WakeSlot>,
    ) -> Arc<Self> {
        let stream = Arc::<StreamSlot>::default();
        let spaces = Arc::<Mutex<HashMap<ChannelKey, Arc<WakeSlot>>>>::default();
        let hooks = {
            let (stream, spaces) = (Arc::clone(&stream), Arc::clone(&spaces));
            Hooks {
                on_readable: Box::new(move || stream.wake()),
                on_space: Box::new(move |key| {
                    let spaces = spaces.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(space) = spaces.get(&key) {
                        space.wake();
                    }
                }),
            }
        };
        let inbox = SharedInbox::new(delivery::Inbox::new(inbox_config(spec), budget), hooks);
        let losses = LossLog::new(Arc::clone(&spec.client_id), attention);
        Arc::new(Self { id, inbox, stream, losses, spaces, deleted: OnceLock::new() })
    }

    pub(super) fn id(&self) -> RegistrationId {
        self.id
    }

    /// The messages that wait for the application.
    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Returns the wake-up of the stream that is attached.
    pub(super) fn stream(&self) -> &Arc<StreamSlot> {
        &self.stream
    }

    /// The losses of the application, for the log.
    pub(super) fn losses(&self) -> &Arc<LossLog> {
        &self.losses
    }

    /// Sets the connection that is woken when a channel has room: the connection that waits for it.
    pub(super) fn on_space(&self, key: ChannelKey, space: Arc<WakeSlot>) {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner).insert(key, space);
    }

    pub(super) fn forget_space(&self, key: ChannelKey) {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Notes that the registration has ended, and wakes its stream.
    pub(super) fn end(&self) {
        let _ = self.deleted.set(());
        self.inbox.lock().clear();
        self.stream.wake();
    }

    /// Why a stream of this registration was ended.
    pub(super) fn why_ended(&self) -> Ended {
        if self.deleted.get().is_some() { Ended::Deleted } else { Ended::TakenOver }
    }
}

/// Returns the configuration of the inbox that a spec asks for.
pub(super) fn inbox_config(spec: &RegistrationSpec) -> delivery::Config {
    let defaults = delivery::Config::default();
    delivery::Config {
        channel_bytes: match spec.channel_queue_bytes {
            0 => defaults.channel_bytes,
            bytes => bytes,
        },
        overflow: spec.overflow,
        ..defaults
    }
}
