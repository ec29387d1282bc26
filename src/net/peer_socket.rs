//! What the kernel may hold for one peer's connection.
//!
//! Linux lets a receive buffer grow to 32 MiB and a send buffer to 4 MiB. What strangers can make us hold is bounded, and
//! so is how old it is: bytes that wait in the kernel delay every Ping behind them. With these two settings a reader of
//! 1 MB/s has its peer's Pings wait for one to four seconds instead of six (`docs/decisions/0006-overflow.md`).
//!
//! Left out: how connections are accepted (`listener`) and opened (`dialer`).

use std::io;

use socket2::SockRef;

/// The receive buffer of a connection, in bytes as the socket option counts them. The kernel doubles it for its own
/// bookkeeping; about 0.9 MB of data fit, which is 9 MB/s at a round trip of 100 ms.
pub(super) const RECEIVE_BUFFER: usize = 512 << 10;

/// The socket takes no more bytes while so many have not been sent. Our Pongs then stand behind at most this much of our
/// own data, and not behind a whole send buffer.
#[cfg(target_os = "linux")]
pub(super) const UNSENT: u32 = 128 << 10;

/// Sets what a peer's socket may hold. Before `listen` or `connect`: the window that TCP offers is fixed then. Connections
/// that are accepted inherit it.
pub(super) fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::net::{dialer, listener};

    #[tokio::test]
    async fn accepted_and_dialed_sockets_are_bounded() {
        let listener = listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = vec![listener.local_addr().unwrap()];
        let (dialed, accepted) =
            tokio::join!(dialer::connect(to, std::time::Duration::from_secs(60)), listener.accept());
        let sockets = [dialed.unwrap().0, accepted.unwrap().0];
        for (side, socket) in ["dialed", "accepted"].into_iter().zip(&sockets) {
            let socket = SockRef::from(socket);
            // The kernel reports twice what was set, or its own maximum where that is lower.
            assert!(socket.recv_buffer_size().unwrap() <= 2 * RECEIVE_BUFFER, "{side}");
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT, "{side}");
        }
    }
}
