//! Why a dial came to no connection, in the words of the dial policy: the one place where errors of sockets are judged.

use std::io;

use crate::{net::dialer::ConnectError, policy::Cause};

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
