//! Where a connection stands. Each state holds what exists in it and nothing else: before there are keys there is
//! nothing to encrypt with, and only an open connection has channels to send on.

use std::{sync::Arc, time::Instant};

use crate::{
    p2p::{Channel, DisconnectReason, Fault, LocalCapability, keepalive::Keepalive},
    rlpx::{Initiator, Session},
};

/// The states of the diagram in the documentation of [`super`].
pub(super) enum Stage {
    /// We accepted; auth is awaited.
    AwaitAuth,
    /// We dialed and wrote auth; ack is awaited.
    AwaitAck(Box<Initiator>),
    /// Keys exist; the driver is to greet.
    Authenticated(Box<Session>),
    /// We said Hello; the peer's is awaited.
    AwaitHello(Box<Greeted>),
    /// Both said Hello; the driver is to open.
    Negotiated(Box<Shared>),
    /// Messages flow.
    Open(Box<Open>),
    /// We leave; what was accepted and our reason are to be written.
    Closing(Box<Closing>),
    /// It is over.
    Closed,
}

pub(super) struct Greeted {
    pub(super) session: Session,
    /// What we said in our Hello.
    pub(super) capabilities: Vec<LocalCapability>,
}

pub(super) struct Shared {
    pub(super) session: Session,
    pub(super) channels: Arc<[Channel]>,
}

pub(super) struct Open {
    pub(super) shared: Shared,
    pub(super) keepalive: Keepalive,
}

pub(super) struct Closing {
    pub(super) session: Session,
    pub(super) reason: DisconnectReason,
    pub(super) fault: Option<Fault>,
    pub(super) deadline: Instant,
}

impl Stage {
    /// The state's name, for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::AwaitAuth => "awaits auth",
            Self::AwaitAck(_) => "awaits ack",
            Self::Authenticated(_) => "authenticated",
            Self::AwaitHello(_) => "awaits hello",
            Self::Negotiated(_) => "negotiated",
            Self::Open(_) => "open",
            Self::Closing(_) => "closing",
            Self::Closed => "closed",
        }
    }
}
