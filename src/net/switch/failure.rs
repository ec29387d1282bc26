//! Why a dial led to no connection, as a [`Cause`] of the dial policy. Only this file maps errors of sockets to causes.

use std::io;

use crate::{net::dialer::ConnectError, policy::Cause};

/// Returns why a dial failed before there was a connection. The cause is local only if all attempts failed for a local
/// reason.
pub(super) fn of_connect(error: &ConnectError) -> Cause {
    let ours = error.tried.iter().all(|(_, error)| of_attempt(error) == Cause::LocalFault);
    if ours { Cause::LocalFault } else { Cause::Unreachable }
}

fn of_attempt(error: &io::Error) -> Cause {
    match error.kind() {
        // No file descriptor, buffer or local address is free, or the process has no permission: a local cause.
        io::ErrorKind::PermissionDenied | io::ErrorKind::OutOfMemory | io::ErrorKind::AddrNotAvailable => {
            Cause::LocalFault
        }
        _ if matches!(error.raw_os_error(), Some(23 | 24)) => Cause::LocalFault, // ENFILE, EMFILE
        _ => Cause::Unreachable,
    }
}
