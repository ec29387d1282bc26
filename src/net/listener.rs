//! Accepts TCP connections and hands each to the owner of peers, which decides whether it may go on.
//!
//! If the process has no free file descriptor, accepting pauses for a moment, as in geth. The log says so at most once
//! a second.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::sleep,
};

use super::peer_socket;

/// The most connections that the kernel holds before we accept them.
const BACKLOG: i32 = 1024;

/// The pause after a failed accept (geth: 200 ms). The usual cause is that no file descriptor is free, which takes a
/// while to end.
const PAUSE: Duration = Duration::from_millis(200);

/// A connection that was accepted, and about which nothing is decided yet.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub stream: TcpStream,
    /// The remote end.
    pub remote: SocketAddr,
}

/// Binds one listening socket. Its connections get a receive buffer of `receive_buffer` bytes. An IPv6 socket takes
/// only IPv6, so that both families can have the same port.
pub fn bind(addr: SocketAddr, receive_buffer: usize) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart must not wait for connections of the previous process to time out.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    peer_socket::prepare(&SockRef::from(&socket), receive_buffer)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// An address that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen for peers on {addr}: {}",
    bind_problem(*addr, "--port, --listen-addr or --discovery-addr", source)
)]
pub struct BindError {
    /// The address.
    pub addr: SocketAddr,
    /// The error of the operating system.
    pub source: io::Error,
}

impl BindError {
    /// Whether another process uses the port.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

/// Returns why `addr` could not be bound, and what to do about it. `flags` names the flags that choose another address.
#[must_use]
pub fn bind_problem(addr: SocketAddr, flags: &str, error: &io::Error) -> String {
    let (ip, port) = (addr.ip(), addr.port());
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process uses port {port}, perhaps another devp2pd; `ss -lntup 'sport = :{port}'` shows which. \
             Stop it, or choose another port with {flags}"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "this machine has no address {ip}; `ip address` lists those it has. Choose one of them with {flags}"
        ),
        io::ErrorKind::PermissionDenied if port != 0 && port < 1_024 => {
            format!("ports below 1024 need root or CAP_NET_BIND_SERVICE. Choose a higher port with {flags}")
        }
        _ => error.to_string(),
    }
}

/// Accepts connections until the receiver is closed. While the receiver is busy, connections wait in the kernel's
/// backlog.
pub async fn accept(listener: TcpListener, accepted: mpsc::Sender<Accepted>) {
    let mut complained = None;
    loop {
        let Ok(permit) = accepted.reserve().await else { return };
        match listener.accept().await {
            Ok((stream, remote)) => permit.send(Accepted { stream, remote }),
            Err(error) => {
                let now = super::clock::now().mono;
                let quiet = complained.is_some_and(|at| now.duration_since(at) < Duration::from_secs(1));
                if !quiet {
                    tracing::warn!(
                        %error,
                        "cannot accept connections of nodes; the sidecar tries again. If too many files are open, \
                         raise the limit (ulimit -n)"
                    );
                    complained = Some(now);
                }
                sleep(PAUSE).await;
            }
        }
    }
}
