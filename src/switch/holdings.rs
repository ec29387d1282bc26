//! Calls about registrations: where leases, inboxes and the policy's view of who wants peers are kept in step.

use std::{collections::BTreeSet, sync::Arc};

use rand::seq::SliceRandom as _;

use super::{
    attachment::{Attachment, PeerChannel},
    links::Stage,
    registrations::{
        Acting, AttachRequest, Attached, Holding, Kept, Lookup, Registered, RegistrationId, RegistrationView,
        SwitchError, Target, claim, inbox_config, view,
    },
    session::{Session, SessionChannel},
    state::{Effect, State},
};
use crate::delivery::{ClosedBy, DEFAULT_MAX_FRAME, MIN_MAX_FRAME, StreamId};
use crate::{
    Now,
    lease::{Caller, Changes, Claimed, Greeting, LeaseError, Registration, RegistrationSpec, Who},
    node::{NodeId, local::EntryOwner},
    p2p::DisconnectReason,
    policy,
};

/// Who calls, as the transport told.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The name under which registrations are kept.
    pub name: Arc<str>,
    /// Whether it is proven, so that taking over is allowed.
    pub proven: bool,
    /// Whether it is an operator, who may end the registration of anybody.
    pub operator: bool,
}

impl Principal {
    fn caller(&self) -> Caller<'_> {
        Caller { principal: &self.name, may_take_over: self.proven }
    }
}

impl State {
    pub(super) fn register(
        &mut self,
        now: Now,
        principal: &Principal,
        target: &Target,
        request_id: &str,
        takeover: bool,
    ) -> Result<Registered, SwitchError> {
        self.open_for_business()?;
        let claimed = self.leases.register(now, principal.caller(), claim(target, request_id, takeover))?;
        self.claimed(now, &claimed);
        if let Some(kept) = self.kept.get_mut(&claimed.id)
            && claimed.replaced.is_some()
            && let Some((_, stream)) = kept.stream.take()
        {
            kept.fence();
            kept.holding.inbox.lock().detach(stream);
            kept.holding.losses.note(now.mono, &kept.holding.inbox, None);
        }
        Ok(Registered {
            registration: self.view(now, claimed.id)?,
            token: claimed.token,
            resumed: claimed.resumed,
            instance_id: Arc::clone(&self.instance_id),
        })
    }

    pub(super) fn attach(
        &mut self,
        now: Now,
        principal: &Principal,
        request: &AttachRequest,
    ) -> Result<Attached, SwitchError> {
        self.open_for_business()?;
        let wanted = claim(&request.target, &request.request_id, request.takeover);
        let claimed = self.leases.attach(now, principal.caller(), wanted)?;
        self.claimed(now, &claimed);
        let registration = self.view(now, claimed.id)?;
        let kept = self.kept.get_mut(&claimed.id).ok_or(SwitchError::Stopped)?;
        // Attaching ends whatever stream was there: its next pull says so. Only then is it fenced: what it pulled before
        // it may still be noting.
        let (existing_channels, stream) = {
            let mut inbox = kept.holding.inbox.lock();
            (inbox.existing_channels(), inbox.attach(request.params))
        };
        kept.fence();
        kept.stream = claimed.stream.map(|lease| (lease, stream));
        let attachment = Attachment::new(Arc::clone(&kept.holding), stream, self.handle.clone());
        kept.fence = Some(attachment.fence());
        let last_send_id = kept.last_send_id;
        if !matches!(request.target, Target::Token(_)) {
            // Perhaps another process, which counts anew: what was before it says nothing to its next stream.
            kept.last_send_id = 0;
        }
        Ok(Attached {
            registration,
            token: claimed.token,
            resumed: claimed.resumed,
            instance_id: Arc::clone(&self.instance_id),
            last_send_id,
            existing_channels,
            max_frame: match request.params.max_frame_bytes {
                0 => DEFAULT_MAX_FRAME,
                bytes => bytes.max(MIN_MAX_FRAME),
            },
            attachment: Arc::new(attachment),
        })
    }

    /// A stream is gone. Ignored if another holds the registration.
    pub(super) fn detach(&mut self, now: Now, id: RegistrationId, stream: StreamId, last_send_id: u64) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        if let Some((lease, _)) = kept.stream.take_if(|(_, of)| *of == stream) {
            kept.fence = None;
            if last_send_id > 0 {
                kept.last_send_id = last_send_id;
            }
            kept.holding.inbox.lock().detach(stream);
            kept.holding.losses.note(now.mono, &kept.holding.inbox, None);
            self.leases.detach(now, id, lease);
            self.touched.insert(id);
        }
    }

    pub(super) fn renew(
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

    pub(super) fn delete(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
    ) -> Result<(), SwitchError> {
        let own = self.leases.resolve(now, principal.caller(), acting.who());
        let id = match (own, acting) {
            // An application whose token was withdrawn keeps its stream: somebody must be able to end it.
            (Err(error), Acting::Client(client)) if principal.operator => {
                let anybody = self.leases.iter().find(|have| have.spec().client_id == *client);
                anybody.map(Registration::id).ok_or(error)?
            }
            (own, _) => own?,
        };
        self.leases.delete(id);
        Ok(())
    }

    pub(super) fn registration(&self, now: Now, lookup: &Lookup) -> Result<RegistrationView, SwitchError> {
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
        Ok(view(now, found, self.kept.get(&found.id())))
    }

    pub(super) fn registrations(&self, now: Now) -> Vec<RegistrationView> {
        self.leases
            .iter()
            .map(|registration| view(now, registration, self.kept.get(&registration.id())))
            .collect()
    }

    fn view(&self, now: Now, id: RegistrationId) -> Result<RegistrationView, SwitchError> {
        self.registration(now, &Lookup::Id(id))
    }

    /// The channel on which a call sends: of the caller's registration, to a connected peer that shares the protocol.
    pub(super) fn sender(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        node: NodeId,
        protocol: &str,
    ) -> Result<PeerChannel, SwitchError> {
        let (id, name, version) = self.sending_for(now, principal, acting, protocol)?;
        let session = self.sessions.get(&node).ok_or(SwitchError::PeerNotConnected { node })?;
        let channel = session
            .channel(name)
            .filter(|channel| channel.owner == id && version.is_none_or(|version| version == channel.version))
            .ok_or_else(|| SwitchError::ProtocolNotShared { node, protocol: cut(protocol) })?;
        Ok(PeerChannel { session: Arc::clone(session), channel: channel.clone() })
    }

    /// The channels on which a call sends to everybody: of the caller's registration, for the protocol, in random
    /// order, so that a part of them is a fair choice.
    pub(super) fn senders(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        protocol: &str,
    ) -> Result<Vec<PeerChannel>, SwitchError> {
        let (id, name, version) = self.sending_for(now, principal, acting, protocol)?;
        let of = |session: &Arc<Session>| {
            let channel = session.channel(name)?;
            let fits = channel.owner == id && version.is_none_or(|version| version == channel.version);
            fits.then(|| PeerChannel { session: Arc::clone(session), channel: channel.clone() })
        };
        let mut channels: Vec<PeerChannel> = self.sessions.values().filter_map(of).collect();
        channels.shuffle(&mut self.rng);
        Ok(channels)
    }

    /// The registration for which a call sends, and the name and version of the protocol that it means.
    fn sending_for<'p>(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        protocol: &'p str,
    ) -> Result<(RegistrationId, &'p str, Option<u32>), SwitchError> {
        // A version that nobody registered is one that the peer cannot share either: the name decides who acts.
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
        Ok((id, name, version))
    }

    /// An application lets go of one of its channels. The session ends with it, unless another application uses it.
    pub(super) fn disconnect_channel(
        &mut self,
        id: RegistrationId,
        target: &PeerChannel,
        reason: DisconnectReason,
        end_session: bool,
    ) -> Result<(), SwitchError> {
        let client = self.leases.get(id).map(|registration| Arc::clone(&registration.spec().client_id));
        let by = ClosedBy::Client(client.unwrap_or_default());
        let connection = target.session.id;
        let Some(Stage::Open { inboxes, .. }) = self.links.get(&connection).map(|link| &link.stage) else {
            return Ok(());
        };
        let others = others_than(id, inboxes.iter().map(|(owner, ..)| *owner));
        if others > 0 && end_session && !self.end_shared_sessions {
            return Err(SwitchError::SharedSession { node: target.session.node_id, others });
        }
        if others == 0 || end_session {
            self.disconnect(connection, reason, by, "an application ended the session");
        } else {
            let index = target.channel.index;
            self.release_channels(
                id,
                |channel| channel.index == index,
                Some(connection),
                DisconnectReason::Requested,
                "the application left",
            );
        }
        Ok(())
    }

    pub(super) fn set_greeting(
        &mut self,
        id: RegistrationId,
        name: &str,
        version: u32,
        greeting: Vec<Greeting>,
    ) -> Result<(), SwitchError> {
        self.touched.insert(id);
        Ok(self.leases.set_greeting(id, name, version, greeting)?)
    }

    /// Under which name a registration sets entries of our record.
    pub(super) fn entry_owner(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
    ) -> Result<EntryOwner, SwitchError> {
        let id = self.leases.resolve(now, principal.caller(), acting.who())?;
        let kept = self.kept.get(&id).ok_or(SwitchError::Stopped)?;
        Ok(EntryOwner::Registration(kept.policy_id.0))
    }

    /// The client id of the registration that owns an entry.
    pub(super) fn entry_client(&self, owner: EntryOwner) -> Option<Arc<str>> {
        let EntryOwner::Registration(number) = owner else { return None };
        let (id, _) = self.kept.iter().find(|(_, kept)| kept.policy_id.0 == number)?;
        self.leases.get(*id).map(|registration| Arc::clone(&registration.spec().client_id))
    }

    /// Changes what a registration says, while whoever holds it goes on.
    pub(super) fn update_registration(
        &mut self,
        now: Now,
        principal: &Principal,
        acting: &Acting,
        spec: RegistrationSpec,
    ) -> Result<RegistrationView, SwitchError> {
        self.open_for_business()?;
        let id = self.leases.resolve(now, principal.caller(), acting.who())?;
        let changes = self.leases.update(now, id, spec)?;
        self.changed(now, id, &changes);
        self.view(now, id)
    }

    /// [`Self::set_greeting`] for a call.
    pub(super) fn set_greeting_of(
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

    /// Brings inbox and policy in step with a claim that the leases granted.
    fn claimed(&mut self, now: Now, claimed: &Claimed) {
        self.changed(now, claimed.id, &claimed.changes);
    }

    fn changed(&mut self, now: Now, id: RegistrationId, changes: &Changes) {
        self.touched.insert(id);
        let Some(registration) = self.leases.get(id) else { return };
        let spec = registration.spec().clone();
        let Changes { removed, added, .. } = changes;
        if let Some(kept) = self.kept.get(&id) {
            kept.holding.inbox.lock().configure(inbox_config(&spec));
        } else {
            self.registrations_made += 1;
            let policy_id = policy::RegistrationId(self.registrations_made);
            let holding = Holding::new(id, &spec, Arc::clone(&self.budget));
            let kept =
                Kept { holding, policy_id, stream: None, fence: None, last_send_id: 0, announces: false };
            self.kept.insert(id, kept);
            tracing::info!(client = %spec.client_id, protocols = %names(&spec.protocols), "protocols registered");
        }
        if !removed.is_empty() {
            let gone = |channel: &SessionChannel| {
                removed.iter().any(|capability| {
                    capability.name == channel.name && capability.version == channel.version
                })
            };
            let detail = "the protocol is not registered any more";
            self.release_channels(id, gone, None, DisconnectReason::Requested, detail);
        }
        if let Some(kept) = self.kept.get_mut(&id) {
            let announced = spec.announced(self.network.as_ref());
            if announced.is_some() || kept.announces {
                kept.announces = announced.is_some();
                let owner = EntryOwner::Registration(kept.policy_id.0);
                self.effects.push_back(Effect::Announce(owner, announced));
            }
            let filter = spec.dial_filter(self.network.as_ref());
            let desired = (spec.desired_peers > 0).then_some(spec.desired_peers);
            self.policy.register(now, kept.policy_id, filter, desired);
            if !added.is_empty() {
                self.policy.protocols_added(now);
                self.rehello.registered(now.mono);
            }
        }
    }

    /// A registration is gone: its names are free, its streams end, peers that nobody else uses are let go.
    pub(super) fn registration_ended(&mut self, now: Now, registration: &Registration, expired: bool) {
        let id = registration.id();
        self.touched.insert(id);
        let why = if expired { "its lease ran out" } else { "it was deleted" };
        tracing::info!(client = %registration.spec().client_id, why, "registration ended");
        if let Some(kept) = self.kept.get(&id) {
            self.policy.unregister(now, kept.policy_id);
            self.effects.push_back(Effect::ReleaseEntries(EntryOwner::Registration(kept.policy_id.0)));
        }
        self.release_channels(id, |_| true, None, DisconnectReason::Requested, "the registration ended");
        if let Some(mut kept) = self.kept.remove(&id) {
            self.past.lose(kept.holding.inbox.lock().counters().lost());
            kept.holding.end();
            // After its end is said, so that its reader knows why. The stream may live on for a moment, and its protocols
            // may have another owner by then.
            kept.fence();
        }
    }

    fn open_for_business(&self) -> Result<(), SwitchError> {
        if self.draining { Err(SwitchError::Stopped) } else { Ok(()) }
    }
}

/// How many registrations own something, beside `id`. One may own several channels of a session.
pub(super) fn others_than(id: RegistrationId, owners: impl Iterator<Item = RegistrationId>) -> usize {
    owners.filter(|owner| *owner != id).collect::<BTreeSet<_>>().len()
}

fn names(protocols: &[crate::lease::ProtocolSpec]) -> String {
    protocols.iter().map(|protocol| protocol.capability.to_string()).collect::<Vec<_>>().join(", ")
}

/// What a caller wrote, at the length of a message.
fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}
