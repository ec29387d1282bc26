//! What goes wrong with gateways, for the log.

use std::net::SocketAddr;

use crate::net::resolver::ResolveError;

/// What goes wrong with gateways.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no {0} gateway answered")]
    NotFound(&'static str),
    #[error("cannot search: {0}")]
    Search(String),
    #[error("no answer from {0} in time")]
    Timeout(SocketAddr),
    #[error("talking to {to}: {error}")]
    Http { to: SocketAddr, error: String },
    #[error("the gateway {to} refused with code {code}")]
    Refused { to: SocketAddr, code: u16 },
    #[error("the gateway {to} cannot be used: {what}")]
    Answer { to: SocketAddr, what: &'static str },
    #[error("NAT-PMP: {0}")]
    Pmp(String),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("STUN: {0}")]
    Stun(#[from] std::io::Error),
}

impl Error {
    pub(super) fn pmp(error: crab_nat::natpmp::Failure) -> Self {
        Self::Pmp(error.to_string())
    }
}
