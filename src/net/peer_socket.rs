//! Limits for the kernel buffers of one peer's connection.
//!
//! Linux lets a receive buffer grow to 32 MiB and a send buffer to 4 MiB. The memory that strangers can make us use
//! must have a limit. Bytes that wait in the kernel also delay every Ping behind them. With these two settings a peer's
//! Pings wait for one to four seconds instead of six if we read 1 MB/s (`docs/decisions/0006-overflow.md`).
//!
//! Left out: how connections are accepted (`listener`) and opened (`dialer`).

use std::io;

use socket2::SockRef;

/// The default receive buffer of a connection, in bytes as the socket option counts them. The kernel doubles the value
/// for its own bookkeeping. About 0.9 MB of data fit, which allows 9 MB/s at a round trip of 100 ms.
pub const RECEIVE_BUFFER: usize = 512 << 10;

/// The smallest receive buffer, in bytes. With less, a peer with a round trip of 100 ms sends at most some 200 KB/s.
pub const MIN_RECEIVE_BUFFER: usize = 16 << 10;

/// The largest receive buffer, in bytes. It holds about 14 MB of data, behind which a Ping waits for 14 s at 1 MB/s.
/// Peers give up a Ping after 20 to 30 s.
pub const MAX_RECEIVE_BUFFER: usize = 8 << 20;

/// The most bytes that the socket takes and has not sent yet. Our Pongs then wait behind at most so many bytes of our
/// own data, and not behind a whole send buffer.
#[cfg(target_os = "linux")]
pub(super) const UNSENT: u32 = 128 << 10;

/// Sets the buffers of a peer's socket. Call it before `listen` or `connect`, which fix the window that TCP offers.
/// Accepted connections inherit the buffers of the listening socket.
///
/// The kernel caps `receive_buffer` at its own maximum without an error (`net.core.rmem_max`).
pub(super) fn prepare(socket: &SockRef<'_>, receive_buffer: usize) -> io::Result<()> {
    socket.set_recv_buffer_size(receive_buffer)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT)?;
    Ok(())
}

/// Returns the size of a socket's receive buffer in bytes, as [`prepare`] counts it.
pub fn receive_buffer(socket: &SockRef<'_>) -> io::Result<usize> {
    // Linux reports the bytes that it reserves, which are twice the bytes that were set.
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
