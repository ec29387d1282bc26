//! What the kernel may hold for one peer's connection.
//!
//! Linux lets a receive buffer grow to 32 MiB and a send buffer to 4 MiB. What strangers can make us hold is bounded, and
//! so is how old it is: bytes that wait in the kernel delay every Ping behind them. With these two settings a reader of
//! 1 MB/s has its peer's Pings wait for one to four seconds instead of six (`docs/decisions/0006-overflow.md`).
//!
//! Left out: how connections are accepted (`listener`) and opened (`dialer`).

use std::io;

use socket2::SockRef;

/// The receive buffer of a connection unless the operator sets another, in bytes as the socket option counts them. The
/// kernel doubles it for its own bookkeeping; about 0.9 MB of data fit, which is 9 MB/s at a round trip of 100 ms.
pub const RECEIVE_BUFFER: usize = 512 << 10;

/// The smallest receive buffer: with less, a peer 100 ms away sends at most some 200 KB/s.
pub const MIN_RECEIVE_BUFFER: usize = 16 << 10;

/// The largest receive buffer. It holds about 14 MB of data, behind which a Ping waits for 14 s at 1 MB/s. Peers give a Ping
/// up after 20 to 30 s.
pub const MAX_RECEIVE_BUFFER: usize = 8 << 20;

/// The socket takes no more bytes while so many have not been sent. Our Pongs then stand behind at most this much of our
/// own data, and not behind a whole send buffer.
#[cfg(target_os = "linux")]
pub(super) const UNSENT: u32 = 128 << 10;

/// Sets what a peer's socket may hold. Before `listen` or `connect`: the window that TCP offers is fixed then. Connections
/// that are accepted inherit it.
///
/// The kernel caps `receive_buffer` at its own maximum without an error (`net.core.rmem_max`).
pub(super) fn prepare(socket: &SockRef<'_>, receive_buffer: usize) -> io::Result<()> {
    socket.set_recv_buffer_size(receive_buffer)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}

/// The receive buffer that a socket has, as [`prepare`] counts it.
pub fn receive_buffer(socket: &SockRef<'_>) -> io::Result<usize> {
    // Linux reports what it reserves, which is twice what was asked for.
    let reported = socket.recv_buffer_size()?;
    Ok(if cfg!(target_os = "linux") { reported / 2 } else { reported })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::net::{dialer, listener};

    #[tokio::test]
    async fn accepted_and_dialed_sockets_have_the_buffers_that_were_asked_for() {
        let rmem_max = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
        let kernel_max: usize = rmem_max.trim().parse().unwrap();
        for size in [MIN_RECEIVE_BUFFER, 64 << 10, 100_000, RECEIVE_BUFFER, MAX_RECEIVE_BUFFER] {
            let listener = listener::bind("127.0.0.1:0".parse().unwrap(), size).unwrap();
            let to = vec![listener.local_addr().unwrap()];
            let limit = std::time::Duration::from_secs(60);
            let (dialed, accepted) = tokio::join!(dialer::connect(to, limit, size), listener.accept());
            let sockets = [dialed.unwrap().0, accepted.unwrap().0];
            for (side, socket) in ["dialed", "accepted"].into_iter().zip(&sockets) {
                let socket = SockRef::from(socket);
                assert_eq!(receive_buffer(&socket).unwrap(), size.min(kernel_max), "{side}, {size}");
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT, "{side}");
            }
        }
    }
}
