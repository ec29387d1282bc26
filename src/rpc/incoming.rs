//! Connections to the gRPC port: counted, told apart by caller, and held to a deadline until they ask for something.
//!
//! The gRPC library gives every accepted socket a task and memory, whoever sent it. So a connection is admitted here
//! first: at most [`MAX_CONNECTIONS`] in all and [`MAX_PER_PRINCIPAL`] a caller, and one that has not sent its HTTP/2
//! preface and the headers of a first request within [`FIRST_REQUEST`] is cut. After that the server's own HTTP/2
//! pings notice who is gone.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::mpsc,
    time::{Sleep, sleep},
};
use tonic::transport::server::Connected;

/// Connections to the gRPC port in all.
pub const MAX_CONNECTIONS: usize = 256;

/// Connections of one caller.
pub const MAX_PER_PRINCIPAL: usize = 64;

/// Time for preface and first request.
pub const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// Pause after a failed accept; the usual cause, no free file descriptors, does not pass faster.
const PAUSE: Duration = Duration::from_millis(200);

/// Who is calling, as far as the transport tells. Registrations belong to a principal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Somebody on this machine, over loopback TCP: every local process is the same caller.
    Loopback,
    /// Somebody elsewhere, over TCP that the operator opened to them.
    Remote(std::net::IpAddr),
    /// A process of this user, over the Unix socket.
    Uid(u32),
}

impl Principal {
    fn of_tcp(remote: SocketAddr) -> Self {
        let ip = remote.ip().to_canonical();
        if ip.is_loopback() { Self::Loopback } else { Self::Remote(ip) }
    }

    /// The name under which registrations are kept and other applications see the owner's transport.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Loopback => "loopback".to_owned(),
            Self::Remote(ip) => format!("ip:{ip}"),
            Self::Uid(uid) => format!("uid:{uid}"),
        }
    }
}

/// A socket the gRPC port listens on.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

#[derive(Debug, Default)]
struct Census {
    total: usize,
    by_principal: HashMap<Principal, usize>,
}

/// One connection's place among the admitted ones. Free again when dropped.
#[derive(Debug)]
struct Seat {
    census: Arc<Mutex<Census>>,
    principal: Principal,
}

impl Seat {
    fn take(census: &Arc<Mutex<Census>>, principal: Principal) -> Option<Self> {
        let mut counts = census.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_principal.get(&principal).copied().unwrap_or(0);
        if counts.total >= MAX_CONNECTIONS || own >= MAX_PER_PRINCIPAL {
            return None;
        }
        counts.total += 1;
        counts.by_principal.insert(principal.clone(), own + 1);
        drop(counts);
        Some(Self { census: Arc::clone(census), principal })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.census.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        if let Some(own) = counts.by_principal.get_mut(&self.principal) {
            *own -= 1;
            if *own == 0 {
                counts.by_principal.remove(&self.principal);
            }
        }
    }
}

#[derive(Debug)]
enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// An admitted connection.
#[derive(Debug)]
pub struct Admitted {
    transport: Transport,
    seat: Seat,
    /// Until the first request has been seen.
    probation: Option<(Pin<Box<Sleep>>, Preamble)>,
}

impl Connected for Admitted {
    type ConnectInfo = Principal;

    fn connect_info(&self) -> Principal {
        self.seat.principal.clone()
    }
}

/// Accepts from all listeners for as long as the receiver lives.
pub async fn accept(listeners: Vec<Listener>, admitted: mpsc::Sender<io::Result<Admitted>>) {
    let census = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept_from(listener, Arc::clone(&census), admitted.clone()));
    }
    drop(admitted);
    while tasks.join_next().await.is_some() {}
}

async fn accept_from(
    listener: Listener,
    census: Arc<Mutex<Census>>,
    admitted: mpsc::Sender<io::Result<Admitted>>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener) => accepted,
            () = admitted.closed() => return,
        };
        let (transport, principal) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept gRPC connections, pausing");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(seat) = Seat::take(&census, principal) else {
            tracing::warn!(
                "refused a gRPC connection: {MAX_CONNECTIONS} in all or {MAX_PER_PRINCIPAL} of one caller are open"
            );
            continue;
        };
        let probation = Some((Box::pin(sleep(FIRST_REQUEST)), Preamble::default()));
        if admitted.send(Ok(Admitted { transport, seat, probation })).await.is_err() {
            return;
        }
    }
}

async fn accept_one(listener: &Listener) -> io::Result<(Transport, Principal)> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, remote) = listener.accept().await?;
            // Without it a stream of small messages to a client with small windows runs a hundred times slower.
            stream.set_nodelay(true)?;
            Ok((Transport::Tcp(stream), Principal::of_tcp(remote)))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            Ok((Transport::Unix(stream), Principal::Uid(uid)))
        }
    }
}

/// Follows the start of an HTTP/2 connection just far enough to see whether a request has begun.
#[derive(Debug)]
struct Preamble {
    /// Bytes to skip before the next frame header: the preface at first, then frame payloads.
    skip: usize,
    header: [u8; 9],
    have: usize,
}

/// `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n` (RFC 9113, 3.4); hyper checks its text.
const PREFACE_BYTES: usize = 24;

/// Frame type HEADERS (RFC 9113, 6.2).
const HEADERS: u8 = 1;

impl Default for Preamble {
    fn default() -> Self {
        Self { skip: PREFACE_BYTES, header: [0; 9], have: 0 }
    }
}

impl Preamble {
    /// Takes received bytes; true once a HEADERS frame has begun.
    fn request_began(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((first, rest)) = bytes.split_first() else { return false };
            bytes = rest;
            if let Some(slot) = self.header.get_mut(self.have) {
                *slot = *first;
            }
            self.have += 1;
            if self.have == self.header.len() {
                let [a, b, c, kind, ..] = self.header;
                if kind == HEADERS {
                    return true;
                }
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.have = 0;
            }
        }
    }
}

impl AsyncRead for Admitted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let polled = match &mut this.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        if let Some((deadline, preamble)) = &mut this.probation {
            let fresh = buf.filled().get(before..).unwrap_or_default();
            if preamble.request_began(fresh) {
                this.probation = None;
            } else if polled.is_pending() && deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        polled
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_seen_at_its_headers_however_the_bytes_are_cut() {
        let mut bytes = vec![b'x'; PREFACE_BYTES];
        bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0]); // SETTINGS with one entry
        bytes.extend([1; 6]);
        bytes.extend([0, 0, 9, HEADERS, 4, 0, 0, 0, 1]);
        for size in 1..bytes.len() {
            let mut preamble = Preamble::default();
            let mut seen = false;
            for chunk in bytes.chunks(size) {
                assert!(!seen);
                seen = preamble.request_began(chunk);
            }
            assert!(seen, "chunks of {size}");
            let mut early = Preamble::default();
            assert!(!early.request_began(&bytes[..bytes.len() - 1]));
        }
    }

    #[test]
    fn seats_are_limited_per_principal_and_freed() {
        let census = Arc::default();
        let seats: Vec<_> =
            (0..MAX_PER_PRINCIPAL).map(|_| Seat::take(&census, Principal::Loopback).unwrap()).collect();
        assert!(Seat::take(&census, Principal::Loopback).is_none());
        assert!(Seat::take(&census, Principal::Uid(0)).is_some());
        drop(seats);
        assert!(Seat::take(&census, Principal::Loopback).is_some());
        assert!(census.lock().unwrap().by_principal.is_empty());
    }
}
