//! How connections ended, in the words of the dial policy: the one place where sockets' and engines' ends are judged.

use std::io;

use crate::{
    net::{connection::End, dialer::ConnectError},
    p2p::{DisconnectReason, Side},
    policy::Cause,
};

/// Why a dial came to nothing before there was a connection. It is our fault only if no address could be tried.
pub(super) fn of_connect(error: &ConnectError) -> Cause {
    let ours = error.tried.iter().all(|(_, error)| of_attempt(error) == Cause::LocalFault);
    if ours { Cause::LocalFault } else { Cause::Unreachable }
}

fn of_attempt(error: &io::Error) -> Cause {
    match error.kind() {
        // Out of file descriptors or buffers, or no permission: nobody else's fault.
        io::ErrorKind::PermissionDenied | io::ErrorKind::OutOfMemory | io::ErrorKind::AddrNotAvailable => {
            Cause::LocalFault
        }
        _ if matches!(error.raw_os_error(), Some(23 | 24)) => Cause::LocalFault, // ENFILE, EMFILE
        _ => Cause::Unreachable,
    }
}

/// Why a connection ended. `established`: it had become a session.
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
        // Without keys there is no reason to give: the handshake timed out or was no handshake.
        (Side::Local, None) if end.timed_out => Cause::Silent,
        (Side::Local, None) => Cause::Garbled,
    }
}
