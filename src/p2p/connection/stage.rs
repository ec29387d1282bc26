//! Where a connection stands. Each state holds what exists in it and nothing else: before there are keys there is
//! nothing to encrypt with, and only an open connection has channels to send on.

use std::{sync::Arc, time::Instant};

use crate::p2p::{
    Channel, DisconnectReason, Fault, LocalCapability,
    keepalive::Keepalive,
    wire::{Handshake, Wire},
};

/// The states of the diagram in the documentation of [`super`].
pub(super) enum Stage {
    /// Each side is proving its key.
    Handshake(Handshake),
    /// Keys exist; the driver is to greet.
    Authenticated(Box<Wire>),
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
    pub(super) wire: Wire,
    /// What we said in our Hello.
    pub(super) capabilities: Vec<LocalCapability>,
}

pub(super) struct Shared {
    pub(super) wire: Wire,
    pub(super) channels: Arc<[Channel]>,
}

pub(super) struct Open {
    pub(super) shared: Shared,
    pub(super) keepalive: Keepalive,
}

pub(super) struct Closing {
    pub(super) wire: Wire,
    pub(super) reason: DisconnectReason,
    pub(super) fault: Option<Fault>,
    pub(super) deadline: Instant,
}

impl Stage {
    /// The state's name, for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Handshake(Handshake::Accept) => "awaits auth",
            Self::Handshake(Handshake::Dial(_)) => "awaits ack",
            Self::Authenticated(_) => "authenticated",
            Self::AwaitHello(_) => "awaits hello",
            Self::Negotiated(_) => "negotiated",
            Self::Open(_) => "open",
            Self::Closing(_) => "closing",
            Self::Closed => "closed",
        }
    }
}
