//! Registrations: the lease (which application owns which names, and for how long) and the inbox (the messages that
//! wait for the application), kept in step.
//!
//! [`Registrations`] is the only place where a registration begins, changes and ends. The consequences for sessions,
//! for the policy and for our record leave as a [`Change`], in the order in which they happened. So no call can forget
//! one of them.
//!
//! Left out: sessions and their channels (`connections`), and the effect of a registration on the policy.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use rand::rngs::StdRng;

use super::{
    attachment::{Attachment, Fence},
    channel::PeerChannel,
    channel_inbox::{Mute, RegistrationInbox, Sharers},
    connections::{OfferedCapability, OpenChannel},
    losses::{LossLine, Losses, Origin},
    session::{Session, SessionChannel},
    shared::{SharedRegistration, inbox_config},
};
use crate::{
    Now, Wake, WakeSlot,
    budget::Budget,
    delivery::{About, ChannelKey, Close, ClosedBy, DEFAULT_MAX_FRAME, Lost, MIN_MAX_FRAME, StreamId},
    lease::{
        self, Capability, Changes, Claimed, Greeting, LeaseError, ProtocolSpec, Registration,
        RegistrationSpec, Registry, StateName, Who,
    },
    node::{ForkSchedule, Head, RegistrationId, local::EntryOwner},
    p2p::{DisconnectReason, Lane, session::ChannelInbox},
    policy::DialFilter,
    rlpx::{Compressor, snappy::MAX_PAYLOAD},
};

pub use super::registration::{
    Acting, AttachRequest, Attached, Ended, Lookup, Principal, RegistrationRef, RegistrationView, SwitchError,
};
use super::registration::{Application, Sender, claim, cut};

/// A registration that began, changed or ended.
#[derive(Debug)]
pub(super) enum Change {
    /// The registration began or changed. The value has its current contents.
    Stands(Box<Stands>),
    /// The registration has ended. Its inbox stays until [`Registrations::forget`], so that its channels can be closed.
    Ended {
        id: RegistrationId,
        client: Arc<str>,
        /// Whether its lease ran out; false if it was deleted.
        expired: bool,
    },
}

/// A registration that began or changed.
#[derive(Debug)]
pub(super) struct Stands {
    pub(super) id: RegistrationId,
    /// Set when it is new: the client and its protocols, for the log.
    pub(super) begun: Option<(Arc<str>, String)>,
    /// Capabilities that it does not have any more: their channels close.
    pub(super) removed: Vec<Capability>,
    /// Whether it has capabilities that it did not have before.
    pub(super) added: bool,
    pub(super) filter: DialFilter,
    pub(super) desired: Option<usize>,
    /// Set if our record is to change: the chain that it announces for this registration, or none.
    pub(super) announce: Option<Option<(Arc<ForkSchedule>, Head)>>,
}

/// The parts of a registration that are not in its lease.
#[derive(Debug)]
struct Entry {
    shared: Arc<SharedRegistration>,
    /// The stream that is attached.
    stream: Option<StreamId>,
    /// Ends the sending of that stream.
    fence: Option<Fence>,
    /// The last send id of the latest stream that sent messages; 0 if there was none.
    last_send_id: u64,
    /// Whether our record announces its chain.
    announces: bool,
}

impl Entry {
    /// Ends the sending of the attached stream. Messages that it sent until now count.
    fn fence(&mut self) {
        if let Some(last) = self.fence.take().and_then(|fence| fence.close()) {
            self.last_send_id = last;
        }
    }

    fn is_attached(&self) -> bool {
        self.stream.is_some()
    }
}

/// All registrations. See the [module](self).
#[derive(Debug)]
pub struct Registrations {
    leases: Registry,
    entries: BTreeMap<RegistrationId, Entry>,
    /// The memory that all inboxes share.
    budget: Arc<Budget>,
    network: Option<Arc<ForkSchedule>>,
    /// The losses of registrations that have ended.
    lost_before: Lost,
    changes: VecDeque<Change>,
    /// Registrations whose view in the watches is not up to date.
    touched: BTreeSet<RegistrationId>,
    /// The last log lines of registrations that have ended.
    last_lines: Vec<LossLine>,
    /// Wakes the driver when a line for the log is due.
    attention: Arc<WakeSlot>,
}

impl Registrations {
    pub(super) fn new(
        leases: lease::Config,
        rng: StdRng,
        budget: Arc<Budget>,
        network: Option<Arc<ForkSchedule>>,
    ) -> Self {
        Self {
            leases: Registry::new(leases, rng),
            entries: BTreeMap::new(),
            budget,
            network,
            lost_before: Lost::default(),
            changes: VecDeque::new(),
            touched: BTreeSet::new(),
            last_lines: Vec::new(),
            attention: Arc::default(),
        }
    }

    /// Returns the slot of the wake-up for the driver. It is used when [`poll_timeout`](Self::poll_timeout) becomes
    /// earlier between two calls.
    pub(super) fn attention(&self) -> &WakeSlot {
        &self.attention
    }

    // Calls.

    /// Makes or resumes a registration without a stream. A stream that holds the registration ends.
    pub(super) fn register(
        &mut self,
        now: Now,
        principal: &Principal,
        target: &RegistrationRef,
        request_id: &str,
        takeover: bool,
    ) -> Result<Claimed, LeaseError> {
        let claimed = self.leases.register(now, principal.caller(), claim(target, request_id, takeover))?;
        self.changed(claimed.id, &claimed.changes);
        if let Some(entry) = self.entries.get_mut(&claimed.id)
            && claimed.replaced.is_some()
            && let Some(stream) = entry.stream.take()
        {
            entry.fence();
            entry.shared.inbox().lock().detach(stream);
            entry.shared.losses().note(now.mono, entry.shared.inbox(), None);
        }
        Ok(claimed)
    }

    /// Makes or resumes a registration for a stream. The caller then closes the channels of removed capabilities, and
    /// calls [`open_stream`](Self::open_stream).
    pub(super) fn claim_for_stream(
        &mut self,
        now: Now,
        principal: &Principal,
        request: &AttachRequest,
    ) -> Result<Claimed, LeaseError> {
        let wanted = claim(&request.target, &request.request_id, request.takeover);
        let claimed = self.leases.attach(now, principal.caller(), wanted)?;
        self.changed(claimed.id, &claimed.changes);
        Ok(claimed)
    }

    /// Gives the inbox to a stream whose claim was granted. `wake` is called whenever the stream may read again. A
    /// stream that had the inbox before ends.
    pub(super) fn open_stream(
        &mut self,
        now: Now,
        claimed: Claimed,
        request: &AttachRequest,
        wake: Arc<dyn Wake>,
        instance_id: &Arc<str>,
    ) -> Result<Attached, SwitchError> {
        let registration = self.view(now, claimed.id)?;
        let entry = self.entries.get_mut(&claimed.id).ok_or(SwitchError::Stopped)?;
        let stream = claimed.stream.ok_or(SwitchError::Stopped)?;
        // The stream that had the inbox learns of its end from its next read. It is fenced only after that, because it
        // may still be noting the events of its last read.
        let existing_channels = {
            let mut inbox = entry.shared.inbox().lock();
            let existing_channels = inbox.existing_channels();
            inbox.attach(stream, request.params);
            existing_channels
        };
        entry.fence();
        entry.shared.stream().set(wake);
        entry.stream = Some(stream);
        let attachment = Attachment::new(Arc::clone(&entry.shared), stream);
        entry.fence = Some(attachment.fence());
        let last_send_id = entry.last_send_id;
        if !matches!(request.target, RegistrationRef::Token(_)) {
            // Without the token, this may be another process, which numbers its sends anew. Then the old number means
            // nothing to its next stream.
            entry.last_send_id = 0;
        }
        Ok(Attached {
            registration,
            token: claimed.token,
            resumed: claimed.resumed,
            instance_id: Arc::clone(instance_id),
            last_send_id,
            existing_channels,
            max_frame: match request.params.max_frame_bytes {
                0 => DEFAULT_MAX_FRAME,
                bytes => bytes.max(MIN_MAX_FRAME),
            },
            attachment,
        })
    }

    /// Reports that a stream has ended. Ignored if another stream holds the registration.
    pub fn detach(&mut self, now: Now, id: RegistrationId, stream: StreamId, last_send_id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.stream.take_if(|attached| *attached == stream).is_some() {
            entry.fence = None;
            if last_send_id > 0 {
                entry.last_send_id = last_send_id;
            }
            entry.shared.inbox().lock().detach(stream);
            entry.shared.losses().note(now.mono, entry.shared.inbox(), None);
            self.leases.detach(now, id, stream);
            self.touched.insert(id);
        }
    }

    /// Starts the lease of a registration anew, unless a stream holds it.
    pub fn renew(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
    ) -> Result<RegistrationView, SwitchError> {
        let id = self.leases.resolve(now, principal.caller(), acting.who())?;
        self.leases.renew(now, id);
        self.touched.insert(id);
        self.view(now, id)
    }

    /// Ends a registration now.
    pub fn delete(&mut self, now: Now, principal: &Principal, acting: &Acting) -> Result<(), SwitchError> {
        let own = self.leases.resolve(now, principal.caller(), acting.who());
        let id = match (own, acting) {
            // A principal whose access token was withdrawn cannot end its registration, and its stream stays. So an
            // operator may name every registration by its client id.
            (Err(error), Acting::Client(client)) if principal.operator => {
                let named = self.leases.iter().find(|have| have.spec().client_id == *client);
                named.map(Registration::id).ok_or(error)?
            }
            (own, _) => own?,
        };
        self.leases.delete(id);
        Ok(())
    }

    /// Changes the contents of a registration. Its stream stays attached.
    pub(super) fn update(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        spec: RegistrationSpec,
    ) -> Result<RegistrationId, LeaseError> {
        let id = self.leases.resolve(now, principal.caller(), acting.who())?;
        let changes = self.leases.update(now, id, spec)?;
        self.changed(id, &changes);
        Ok(id)
    }

    /// Replaces the messages that are sent on every new channel of a capability.
    pub fn set_greeting(
        &mut self,
        id: RegistrationId,
        name: &str,
        version: u32,
        greeting: Vec<Greeting>,
    ) -> Result<(), SwitchError> {
        self.touched.insert(id);
        Ok(self.leases.set_greeting(id, name, version, greeting)?)
    }

    /// [`set_greeting`](Self::set_greeting) for a caller that names its registration.
    pub fn set_greeting_of(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        name: &str,
        version: u32,
        greeting: Vec<Greeting>,
    ) -> Result<(), SwitchError> {
        let id = self.leases.resolve(now, principal.caller(), acting.who())?;
        self.leases.renew(now, id);
        self.set_greeting(id, name, version, greeting)
    }

    /// Returns the registration for which a call sends, and the protocol that it names.
    pub(super) fn sending_for<'p>(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        protocol: &'p str,
    ) -> Result<Sender<'p>, SwitchError> {
        // Only the name selects the registration. A version that is not registered is refused later, because no peer
        // shares it.
        let unknown = || LeaseError::ProtocolNotRegistered { protocol: cut(protocol) };
        let (name, version) = match protocol.split_once('/') {
            Some((name, version)) => (name, Some(version.parse::<u32>().map_err(|_| unknown())?)),
            None => (protocol, None),
        };
        let id = match acting {
            Acting::Protocol(_) => self.leases.resolve(now, principal.caller(), Who::Protocol(name))?,
            acting => {
                let id = self.leases.resolve(now, principal.caller(), acting.who())?;
                let owns =
                    self.leases.get(id).is_some_and(|owner| owner.spec().protocol(name, None).is_some());
                if !owns {
                    return Err(unknown().into());
                }
                id
            }
        };
        self.leases.renew(now, id);
        Ok(Sender { owner: id, name, version })
    }

    /// Returns the owner under which a registration sets entries of our record.
    pub fn entry_owner(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
    ) -> Result<EntryOwner, SwitchError> {
        let id = self.leases.resolve(now, principal.caller(), acting.who())?;
        Ok(EntryOwner::Registration(id))
    }

    /// Returns the client id of the registration that owns an entry of our record.
    #[must_use]
    pub fn entry_client(&self, owner: EntryOwner) -> Option<Arc<str>> {
        let EntryOwner::Registration(id) = owner else { return None };
        self.client(id)
    }

    /// Returns the registration that a caller wants to see.
    pub fn registration(&self, now: Now, lookup: &Lookup) -> Result<RegistrationView, SwitchError> {
        let found = match lookup {
            Lookup::Id(id) => self.leases.get(*id),
            Lookup::Client(client) => self.leases.iter().find(|have| have.spec().client_id == *client),
            Lookup::Protocol(protocol) => {
                let name = protocol.split('/').next().unwrap_or_default();
                self.leases.owner(name)
            }
        };
        let found = found.ok_or_else(|| LeaseError::RegistrationNotFound {
            what: match lookup {
                Lookup::Id(id) => format!("has the id {id}"),
                Lookup::Client(client) => format!("has the client id {:?}", cut(client)),
                Lookup::Protocol(protocol) => format!("owns {:?}", cut(protocol)),
            },
        })?;
        Ok(self.view_of(now, found))
    }

    /// All registrations.
    #[must_use]
    pub fn registrations(&self, now: Now) -> Vec<RegistrationView> {
        self.leases.iter().map(|registration| self.view_of(now, registration)).collect()
    }

    /// One registration, by its id.
    pub(super) fn view(&self, now: Now, id: RegistrationId) -> Result<RegistrationView, SwitchError> {
        self.registration(now, &Lookup::Id(id))
    }

    /// The number of attached streams.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.entries.values().filter(|entry| entry.is_attached()).count()
    }

    /// Wakes every stream, so that it sees the state of the drain.
    pub fn wake_streams(&self) {
        self.entries.values().for_each(|entry| entry.shared.stream().wake());
    }

    // Sessions.

    /// The client id of a registration.
    pub(super) fn client(&self, id: RegistrationId) -> Option<Arc<str>> {
        self.leases.get(id).map(|registration| Arc::clone(&registration.spec().client_id))
    }

    /// Returns the capabilities that our Hello offers now, each with its owner.
    pub(super) fn offered(&self) -> Vec<OfferedCapability> {
        let offer = |owner: RegistrationId, protocol: &ProtocolSpec| OfferedCapability {
            capability: protocol.capability.clone(),
            owner,
            max_message: match protocol.max_message_bytes {
                0 => MAX_PAYLOAD,
                bytes => bytes as usize,
            },
        };
        let of = |registration: &Registration| {
            let owner = registration.id();
            registration.spec().protocols.iter().map(|protocol| offer(owner, protocol)).collect::<Vec<_>>()
        };
        self.leases.iter().flat_map(of).collect()
    }

    /// Returns the owners of these channels that still serve the protocol, each once. A registration may have ended, or
    /// given up the protocol, since our Hello offered it.
    pub(super) fn owners(&self, channels: &[SessionChannel]) -> BTreeSet<RegistrationId> {
        let serving = channels.iter().filter(|channel| self.protocol(channel).is_some());
        serving.map(|channel| channel.owner).collect()
    }

    /// Returns the protocol of a channel as its owner serves it now.
    fn protocol(&self, channel: &SessionChannel) -> Option<&ProtocolSpec> {
        let spec = self.leases.get(channel.owner)?.spec();
        spec.protocol(&channel.name, Some(channel.version))
    }

    /// Opens a channel of a new session in its owner's inbox, and sends the owner's greeting. If the owner has ended,
    /// has given up the protocol, or has an inbox that takes no more channels, there is no channel, and the capability
    /// stays mute on this session.
    pub(super) fn open_channel(
        &mut self,
        session: &Arc<Session>,
        channel: &SessionChannel,
        sharers: &Arc<Sharers>,
        space: &Arc<WakeSlot>,
        compressor: &mut Compressor,
    ) -> (Option<ChannelKey>, Box<dyn ChannelInbox>) {
        let Some(entry) = self.entries.get(&channel.owner) else { return (None, Box::new(Mute(None))) };
        let mute = || (None, Box::new(Mute(Some(entry.shared.inbox().clone()))) as Box<dyn ChannelInbox>);
        let Some(spec) = self.protocol(channel) else { return mute() };
        let mut greeting_sent = false;
        for greeting in &spec.greeting {
            // A greeting has at most 64 KiB, far below every limit of a message.
            if let Ok(message) = compressor.compress(&greeting.payload) {
                let code = u64::from(greeting.code);
                greeting_sent |= session.outbound.send(Lane::Call, channel.index, code, message).is_ok();
            }
        }
        let about = About {
            session_id: session.id.0,
            peer: PeerChannel { session: Arc::clone(session), channel: channel.clone() },
            keep_first: spec.keep_first,
            greeting_sent,
        };
        let shared = &entry.shared;
        let Some(key) = shared.inbox().lock().open(about) else { return mute() };
        self.touched.insert(channel.owner);
        shared.on_space(key, Arc::clone(space));
        let origin = Origin { session: Arc::clone(session), protocol: Arc::clone(&channel.name) };
        let inbox = RegistrationInbox {
            inbox: shared.inbox().clone(),
            key,
            max_message: channel.max_message,
            sharers: Arc::clone(sharers),
            losses: Losses { log: Arc::clone(shared.losses()), origin },
        };
        (Some(key), Box::new(inbox))
    }

    /// Closes a channel of a session in its owner's inbox, unless the owner has ended.
    pub(super) fn close_channel(
        &mut self,
        now: Now,
        session: &Session,
        open: &OpenChannel,
        by: &ClosedBy,
        reason: DisconnectReason,
        detail: &str,
    ) {
        let OpenChannel { owner, key, channel } = open;
        let close = Close {
            reason: reason.code(),
            by: by.clone(),
            detail: detail.into(),
            // This count is final: later writes are not counted.
            unsent_messages: session.outbound.end_channel(channel.index),
        };
        self.touched.insert(*owner);
        let Some(entry) = self.entries.get(owner) else { return };
        entry.shared.inbox().lock().close(*key, close);
        entry.shared.losses().note(now.mono, entry.shared.inbox(), None);
        entry.shared.forget_space(*key);
    }

    /// Whether the peer of a session has a registered capability that the session does not carry for its owner.
    pub(super) fn lacks_one(&self, session: &Session) -> bool {
        self.leases.iter().any(|registration| {
            registration.spec().protocols.iter().any(|protocol| {
                let ours = &protocol.capability;
                let spoken = session.hello.capabilities.iter();
                let mut spoken = spoken.filter(|theirs| *theirs.name == *ours.name);
                let carried =
                    session.channel(&ours.name).is_some_and(|channel| channel.owner == registration.id());
                !carried && spoken.any(|theirs| theirs.version == ours.version)
            })
        })
    }

    // Time and changes.

    /// Ends the leases that ran out.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        self.leases.handle_timeout(now);
    }

    /// When the next lease runs out, or the next line for the log is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let lines = self.entries.values().filter_map(|entry| entry.shared.losses().due());
        lines.chain(self.leases.poll_timeout()).min()
    }

    /// The next line for the log that is due.
    pub(super) fn poll_loss(&mut self, now: Now) -> Option<LossLine> {
        let due = |entry: &Entry| entry.shared.losses().take_due(now.mono, entry.is_attached());
        self.last_lines.pop().or_else(|| self.entries.values().find_map(due))
    }

    /// Returns the next registration that began, changed or ended.
    pub(super) fn poll_change(&mut self) -> Option<Change> {
        if let Some(change) = self.changes.pop_front() {
            return Some(change);
        }
        loop {
            let lease::Action::Ended { registration, expired } = self.leases.poll_action()?;
            let id = registration.id();
            self.touched.insert(id);
            if self.entries.contains_key(&id) {
                let client = Arc::clone(&registration.spec().client_id);
                return Some(Change::Ended { id, client, expired });
            }
        }
    }

    /// Removes a registration that has ended, after its channels are closed. Its stream ends.
    pub(super) fn forget(&mut self, id: RegistrationId) {
        let Some(mut entry) = self.entries.remove(&id) else { return };
        let lost = entry.shared.inbox().lock().counters().lost();
        self.lost_before.messages += lost.messages;
        self.lost_before.bytes += lost.bytes;
        self.last_lines.extend(entry.shared.losses().take_last(entry.is_attached()));
        entry.shared.end();
        // Fenced only after `end`, so that the stream finds the reason of its end. The stream may still exist for a
        // short time, and its protocols may have another owner by then.
        entry.fence();
    }

    /// Returns the registrations whose views are not up to date, as they are now; `None` for those that have ended.
    pub(super) fn take_touched(&mut self, now: Now) -> Vec<(RegistrationId, Option<RegistrationView>)> {
        let touched = std::mem::take(&mut self.touched);
        let now_is = |id: &RegistrationId| self.leases.get(*id).map(|found| self.view_of(now, found));
        touched.into_iter().map(|id| (id, now_is(&id))).collect()
    }

    /// Returns the messages that applications lost since the start.
    pub(super) fn lost(&self) -> Lost {
        let each = self.entries.values().map(|entry| entry.shared.inbox().lock().counters().lost());
        each.fold(self.lost_before, |sum, lost| Lost {
            messages: sum.messages + lost.messages,
            bytes: sum.bytes + lost.bytes,
        })
    }

    /// The number of registrations in this state.
    pub(super) fn in_state(&self, state: StateName) -> usize {
        self.leases.iter().filter(|registration| registration.state_name() == state).count()
    }

    /// Returns the losses and the current queues of applications, by client id.
    pub(super) fn applications(&self) -> BTreeMap<Arc<str>, Application> {
        let mut applications = BTreeMap::<Arc<str>, Application>::new();
        for (id, entry) in &self.entries {
            let Some(client) = self.client(*id) else { continue };
            let application = applications.entry(client).or_default();
            let inbox = entry.shared.inbox().lock();
            let counters = inbox.counters();
            let lost = counters.lost();
            application.lost.messages += lost.messages;
            application.lost.bytes += lost.bytes;
            application.delivered += counters.handed_over;
            application.reported += counters.reported.messages;
            application.folded_sessions += counters.folded.sessions;
            application.waiting_bytes += inbox.waiting();
            application.discarded += counters.discarded;
            application.forced += counters.forced;
            application.holding_channels += inbox.holding().map_or(0, |(channels, _)| channels);
        }
        applications
    }

    /// Brings the inbox in step with the lease, and queues the change for the other parts.
    fn changed(&mut self, id: RegistrationId, changes: &Changes) {
        self.touched.insert(id);
        let Some(registration) = self.leases.get(id) else { return };
        let spec = registration.spec();
        let mut begun = None;
        if let Some(entry) = self.entries.get(&id) {
            entry.shared.inbox().lock().configure(inbox_config(spec));
        } else {
            let (budget, attention) = (Arc::clone(&self.budget), Arc::clone(&self.attention));
            let shared = SharedRegistration::new(id, spec, budget, attention);
            let entry = Entry { shared, stream: None, fence: None, last_send_id: 0, announces: false };
            self.entries.insert(id, entry);
            begun = Some((Arc::clone(&spec.client_id), names(&spec.protocols)));
        }
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let announced = spec.announced(self.network.as_ref());
        let announce = (announced.is_some() || entry.announces).then(|| {
            entry.announces = announced.is_some();
            announced
        });
        self.changes.push_back(Change::Stands(Box::new(Stands {
            id,
            begun,
            removed: changes.removed.clone(),
            added: !changes.added.is_empty(),
            filter: spec.dial_filter(self.network.as_ref()),
            desired: (spec.desired_peers > 0).then_some(spec.desired_peers),
            announce,
        })));
    }

    fn view_of(&self, now: Now, registration: &Registration) -> RegistrationView {
        let entry = self.entries.get(&registration.id());
        let (open_channels, waiting_bytes, holding, lost) =
            entry.map_or((0, 0, None, Lost::default()), |entry| {
                let inbox = entry.shared.inbox().lock();
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
}

fn names(protocols: &[ProtocolSpec]) -> String {
    protocols.iter().map(|protocol| protocol.capability.to_string()).collect::<Vec<_>>().join(", ")
}
