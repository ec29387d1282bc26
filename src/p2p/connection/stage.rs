//! The states of a connection. Each state holds the data that exists in it and nothing else: before there are keys,
//! nothing can be encrypted, and only an open connection has channels.

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
    /// Keys exist; the driver is to call `greet`.
    Authenticated(Box<Wire>),
    /// Our Hello is written; the peer's is awaited.
    AwaitHello(Box<Greeted>),
    /// Both Hellos were exchanged; the driver is to call `open`.
    Negotiated(Box<Shared>),
    /// Messages flow.
    Open(Box<Open>),
    /// We end the connection; our reason is to be written.
    Closing(Box<Closing>),
    /// It is over.
    Closed,
}

pub(super) struct Greeted {
    pub(super) wire: Wire,
    /// The capabilities in our Hello.
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
    /// The state's name, for display.
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
