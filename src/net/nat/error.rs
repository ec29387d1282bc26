//! Errors of gateways and STUN servers, for the log.

use std::net::SocketAddr;

use crate::net::resolver::ResolveError;

/// An error of a gateway or a STUN server.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no {0} gateway answered")]
    NotFound(&'static str),
    #[error("cannot search for a gateway: {0}")]
    Search(String),
    #[error("no answer from {0} in time")]
    Timeout(SocketAddr),
    #[error("the request to {to} failed: {error}")]
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
