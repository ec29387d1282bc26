//! Why connections ended, as a cause of the dial policy, and why we end them, as a reason on the wire.
//!
//! Left out: dials that never became a connection. The driver determines the causes of their errors.

use crate::{
    p2p::{DisconnectReason, Side, session::End},
    policy::{Cause, Refusal},
};

/// Returns why a connection ended. `established`: it had become a session.
pub(super) fn of_end(end: &End, established: bool) -> Cause {
    match (end.by, end.reason) {
        (Side::Remote, Some(reason)) => match reason {
            DisconnectReason::Requested => Cause::Requested,
            DisconnectReason::UselessPeer => Cause::UselessPeer,
            DisconnectReason::TooManyPeers => Cause::TooManyPeers,
            DisconnectReason::AlreadyConnected => Cause::AlreadyConnected,
            DisconnectReason::Quitting => Cause::Quitting,
            DisconnectReason::UnexpectedIdentity | DisconnectReason::InvalidIdentity => Cause::WrongIdentity,
            DisconnectReason::NetworkError | DisconnectReason::ReadTimeout => Cause::LinkLost,
            DisconnectReason::BreachOfProtocol
            | DisconnectReason::IncompatibleVersion
            | DisconnectReason::ConnectedToSelf
            | DisconnectReason::SubprotocolError
            | DisconnectReason::Invalid
            | DisconnectReason::Other(_) => Cause::Breach,
        },
        (Side::Remote, None) if established => Cause::LinkLost,
        (Side::Remote, None) => Cause::HungUp,
        (Side::Local, Some(reason)) => match reason {
            DisconnectReason::UselessPeer => Cause::UselessPeer,
            DisconnectReason::UnexpectedIdentity | DisconnectReason::InvalidIdentity => Cause::WrongIdentity,
            DisconnectReason::ReadTimeout if established => Cause::LinkLost,
            DisconnectReason::ReadTimeout => Cause::Silent,
            DisconnectReason::BreachOfProtocol if established => Cause::Breach,
            DisconnectReason::BreachOfProtocol => Cause::Garbled,
            DisconnectReason::TooManyPeers | DisconnectReason::AlreadyConnected => Cause::LocalPolicy,
            DisconnectReason::Quitting => Cause::LocalFault,
            _ => Cause::Operator,
        },
        // Without keys no reason was sent: the handshake timed out, or its bytes were not a handshake.
        (Side::Local, None) if end.timed_out => Cause::Silent,
        (Side::Local, None) => Cause::Garbled,
    }
}

/// Returns the reason that the other side reads when we refuse it.
pub(super) fn of_refusal(refusal: Refusal) -> DisconnectReason {
    match refusal {
        Refusal::OwnIdentity => DisconnectReason::ConnectedToSelf,
        Refusal::Duplicate | Refusal::Connected => DisconnectReason::AlreadyConnected,
        Refusal::Useless | Refusal::NoProtocol | Refusal::Filtered => DisconnectReason::UselessPeer,
        Refusal::TooManyPeers
        | Refusal::TooManyInbound
        | Refusal::TooManyDialed
        | Refusal::SubnetFull
        | Refusal::NotOnAllowlist
        | Refusal::PushedOut => DisconnectReason::TooManyPeers,
        _ => DisconnectReason::Requested,
    }
}
