//! The calls of applications and operators to a sidecar.

use std::{sync::Arc, time::Duration};

use devp2pd::{
    NodeId, NodeRef,
    delivery::StreamId,
    lease::RegistrationSpec,
    node::RegistrationId,
    p2p::DisconnectReason,
    policy::{BanTarget, Settings},
    switch::{
        CallId, Principal,
        attachment::PeerChannel,
        peers::BanRequest,
        registration::{Acting, AttachRequest, Attached, RegistrationRef, SwitchError},
    },
};

use super::{mailbox::Flag, net::Net, sidecar::Process};

/// The time limit of a call that waits for a listed peer.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// An application's process: which application, and which of its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) application: usize,
    pub(super) process: u64,
}

/// A call on its way to the switch.
pub(super) enum Command {
    Attach { caller: Caller, principal: Principal, request: Box<AttachRequest>, wake: Arc<Flag> },
    Detach { id: RegistrationId, stream: StreamId, last_send_id: u64 },
    Register { principal: Principal, spec: Box<RegistrationSpec>, takeover: bool },
    Renew { principal: Principal, client: Arc<str> },
    Delete { principal: Principal, client: Arc<str> },
    Update { principal: Principal, spec: Box<RegistrationSpec> },
    Sender { caller: Caller, principal: Principal, client: Arc<str>, node: NodeId, protocol: Arc<str> },
    Senders { caller: Caller, principal: Principal, client: Arc<str>, protocol: Arc<str> },
    DisconnectChannel { id: RegistrationId, target: Box<PeerChannel>, end_session: bool },
    Disconnect(NodeId),
    AddStatic(NodeRef),
    RemoveStatic(NodeId),
    AddTrusted(NodeRef),
    RemoveTrusted(NodeId),
    Ban(NodeId, Duration),
    Unban(NodeId),
    Connect(NodeRef, Duration),
    WaitForDial(NodeId),
    Settings(Box<dyn FnOnce(&mut Settings)>),
    Drain,
    Quit,
}

impl Command {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::Register { .. } => "register",
            Self::Renew { .. } => "renew",
            Self::Delete { .. } => "delete",
            Self::Update { .. } => "update",
            Self::Sender { .. } | Self::Senders { .. } => "send",
            Self::DisconnectChannel { .. } => "disconnect channel",
            Self::Disconnect(_) => "disconnect",
            Self::AddStatic(_) => "add static",
            Self::RemoveStatic(_) => "remove static",
            Self::AddTrusted(_) => "add trusted",
            Self::RemoveTrusted(_) => "remove trusted",
            Self::Ban(..) => "ban",
            Self::Unban(_) => "unban",
            Self::Connect(..) => "connect",
            Self::WaitForDial(_) => "wait for dial",
            Self::Settings(_) => "settings",
            Self::Drain => "drain",
            Self::Quit => "quit",
        }
    }

    /// Carries out the call. Returns the answer if an application waits for it.
    pub(super) fn run(self, net: &Net, process: &mut Process) -> Option<(Caller, Answer)> {
        let now = net.now;
        let engine = &mut process.engine;
        // Refusals are accepted here; the tests of `switch` and `policy` check them.
        match self {
            Self::Attach { caller, principal, request, wake } => {
                let attached = engine.attach(now, &principal, &request, wake);
                return Some((caller, Answer::Attached(Box::new(attached))));
            }
            Self::Detach { id, stream, last_send_id } => {
                engine.registrations().detach(now, id, stream, last_send_id);
            }
            Self::Register { principal, spec, takeover } => {
                drop(engine.register(now, &principal, &RegistrationRef::Spec(*spec), "", takeover));
            }
            Self::Renew { principal, client } => {
                drop(engine.registrations().renew(now, &principal, &Acting::Client(client)));
            }
            Self::Delete { principal, client } => {
                drop(engine.registrations().delete(now, &principal, &Acting::Client(client)));
            }
            Self::Update { principal, spec } => {
                let acting = Acting::Client(Arc::clone(&spec.client_id));
                drop(engine.update_registration(now, &principal, &acting, *spec));
            }
            Self::Sender { caller, principal, client, node, protocol } => {
                let channel = engine.sender(now, &principal, &Acting::Client(client), node, &protocol);
                return Some((caller, Answer::Channels(channel.into_iter().collect())));
            }
            Self::Senders { caller, principal, client, protocol } => {
                let channels = engine.senders(now, &principal, &Acting::Client(client), &protocol);
                return Some((caller, Answer::Channels(channels.unwrap_or_default())));
            }
            Self::DisconnectChannel { id, target, end_session } => {
                let reason = DisconnectReason::Requested;
                drop(engine.disconnect_channel(now, id, &target, reason, end_session));
            }
            Self::Disconnect(node) => {
                drop(engine.disconnect_peer(now, node, DisconnectReason::Requested));
            }
            Self::AddStatic(node) => drop(engine.peers().add_static(now, &node)),
            Self::RemoveStatic(node) => drop(engine.peers().remove_static(now, node, false)),
            Self::AddTrusted(node) => drop(engine.peers().add_trusted(now, &node)),
            Self::RemoveTrusted(node) => drop(engine.peers().remove_trusted(now, node)),
            Self::Ban(node, duration) => {
                let target = BanTarget::Node(node);
                let ban = BanRequest { target, duration, reason: "a test".into(), force: true };
                drop(engine.peers().ban(now, ban));
            }
            Self::Unban(node) => drop(engine.peers().unban(now, &BanTarget::Node(node))),
            Self::Connect(node, timeout) => {
                process.calls_made += 1;
                let call = CallId(process.calls_made);
                process.calls.insert(call, None);
                engine.connect(now, call, &node, timeout);
            }
            Self::WaitForDial(node) => {
                process.calls_made += 1;
                let call = CallId(process.calls_made);
                process.calls.insert(call, Some(now.mono + CALL_TIMEOUT));
                engine.wait_for_dial(now, call, node, None);
            }
            Self::Settings(change) => {
                let mut settings = engine.peers().settings().clone();
                change(&mut settings);
                engine.peers().set_settings(now, settings);
            }
            Self::Drain => engine.drain(),
            Self::Quit => engine.quit(),
        }
        None
    }
}

/// The answer of a call to an application.
pub(super) enum Answer {
    Attached(Box<Result<Attached, SwitchError>>),
    Channels(Vec<PeerChannel>),
}
