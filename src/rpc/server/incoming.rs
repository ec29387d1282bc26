//! Connections to the gRPC port: counted, told apart by caller, and held to a deadline until they ask for something.
//!
//! The gRPC library gives every accepted socket a task and memory, whoever sent it. So a connection is admitted here
//! first: at most [`MAX_CONNECTIONS`] in all and [`MAX_PER_ORIGIN`] a caller, and one that has not sent its HTTP/2
//! preface and the headers of a first request within [`FIRST_REQUEST`], a TLS handshake included, is cut. After that the
//! server's own HTTP/2 pings notice who is gone.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::{Instant, Sleep, sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::{
    decoding::{Budget, Share},
    tls,
};

/// Connections to the gRPC port in all.
pub const MAX_CONNECTIONS: usize = 256;

/// Connections of one caller.
pub const MAX_PER_ORIGIN: usize = 64;

/// Connections of callers on other machines, in all: the rest is for this one, so that strangers who fill what is open
/// to them never lock the operator out.
pub const MAX_REMOTE: usize = 192;

/// Time for preface and first request.
pub const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// Pause after a failed accept; the usual cause, no free file descriptors, does not pass faster.
const PAUSE: Duration = Duration::from_millis(200);

/// How often refused connections are worth a line in the log.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Where a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Somebody on this machine, over loopback TCP: every local process is the same caller.
    Loopback,
    /// Somebody elsewhere, over TCP that the operator opened to them.
    Remote(std::net::IpAddr),
    /// A process of this user, over the Unix socket.
    Uid(u32),
}

impl Origin {
    fn of_tcp(remote: SocketAddr) -> Self {
        let ip = remote.ip().to_canonical();
        if ip.is_loopback() { Self::Loopback } else { Self::Remote(ip) }
    }

    /// The name of callers about whom nothing else is known.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Loopback => "loopback".to_owned(),
            Self::Remote(ip) => format!("ip:{ip}"),
            Self::Uid(uid) => format!("uid:{uid}"),
        }
    }
}

/// What is known of a connection. It goes with each of its requests.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where it comes from.
    pub origin: Origin,
    /// The names in the client's certificate, which was verified. `None`: there is no TLS, or it asks for none.
    pub certificate: Option<Arc<[String]>>,
    /// What its requests may hold while they are decoded.
    pub share: Share,
}

/// A socket the gRPC port listens on.
#[derive(Debug)]
pub enum Listener {
    /// TCP, with TLS if there is a configuration for it.
    Tcp(TcpListener, Option<watch::Receiver<Arc<ServerConfig>>>),
    /// A Unix socket.
    Unix(UnixListener),
}

#[derive(Debug, Default)]
struct Census {
    total: usize,
    remote: usize,
    by_origin: HashMap<Origin, usize>,
}

/// One connection's place among the admitted ones. Free again when dropped.
#[derive(Debug)]
struct Seat {
    census: Arc<Mutex<Census>>,
    origin: Origin,
}

impl Seat {
    fn take(census: &Arc<Mutex<Census>>, origin: Origin) -> Option<Self> {
        let mut counts = census.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_origin.get(&origin).copied().unwrap_or(0);
        let remote = usize::from(matches!(origin, Origin::Remote(_)));
        if counts.total >= MAX_CONNECTIONS || own >= MAX_PER_ORIGIN || counts.remote + remote > MAX_REMOTE {
            return None;
        }
        counts.total += 1;
        counts.remote += remote;
        counts.by_origin.insert(origin.clone(), own + 1);
        drop(counts);
        Some(Self { census: Arc::clone(census), origin })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.census.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        if matches!(self.origin, Origin::Remote(_)) {
            counts.remote = counts.remote.saturating_sub(1);
        }
        if let Some(own) = counts.by_origin.get_mut(&self.origin) {
            *own -= 1;
            if *own == 0 {
                counts.by_origin.remove(&self.origin);
            }
        }
    }
}

#[derive(Debug)]
enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// An admitted connection.
#[derive(Debug)]
pub struct Admitted {
    transport: Transport,
    connection: Connection,
    _seat: Seat,
    /// Until the first request has been seen.
    probation: Probation,
}

impl Connected for Admitted {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

/// Accepts from all listeners for as long as the receiver lives.
pub async fn accept(listeners: Vec<Listener>, admitted: mpsc::Sender<io::Result<Admitted>>) {
    let (census, budget) = (Arc::default(), Budget::default());
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept_from(listener, Arc::clone(&census), budget.clone(), admitted.clone()));
    }
    drop(admitted);
    while tasks.join_next().await.is_some() {}
}

async fn accept_from(
    listener: Listener,
    census: Arc<Mutex<Census>>,
    budget: Budget,
    admitted: mpsc::Sender<io::Result<Admitted>>,
) {
    // Refusals are said once in a while: who causes them could cause thousands.
    let (mut said, mut unsaid): (Option<Instant>, u64) = (None, 0);
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener) => accepted,
            () = admitted.closed() => return,
        };
        let (socket, origin) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept gRPC connections, pausing");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some(seat) = Seat::take(&census, origin.clone()) else {
            if said.is_some_and(|at| at.elapsed() < SAY_AGAIN) {
                unsaid += 1;
                continue;
            }
            tracing::warn!(
                caller = origin.name(),
                earlier = unsaid,
                "refused a gRPC connection: {MAX_PER_ORIGIN} of one caller, {MAX_REMOTE} from elsewhere, or \
                 {MAX_CONNECTIONS} in all are open"
            );
            (said, unsaid) = (Some(Instant::now()), 0);
            continue;
        };
        let connection = Connection { origin, certificate: None, share: budget.share() };
        let probation = Some((Box::pin(sleep(FIRST_REQUEST)), Preamble::default()));
        match socket {
            Socket::Plain(transport) => {
                let new = Admitted { transport, connection, _seat: seat, probation };
                if admitted.send(Ok(new)).await.is_err() {
                    return;
                }
            }
            // A client may be slow; the others need not wait for it. There are as many of these as seats.
            Socket::Tls(stream, config) => {
                tokio::spawn(shake_hands(stream, config, connection, seat, probation, admitted.clone()));
            }
        }
    }
}

/// Until when a connection must have asked for something, and how far it has come.
type Probation = Option<(Pin<Box<Sleep>>, Preamble)>;

async fn shake_hands(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    mut connection: Connection,
    seat: Seat,
    mut probation: Probation,
    admitted: mpsc::Sender<io::Result<Admitted>>,
) {
    let Some((deadline, _)) = &mut probation else { return };
    let shaken = tokio::select! {
        shaken = TlsAcceptor::from(config).accept(stream) => shaken,
        () = deadline => Err(io::ErrorKind::TimedOut.into()),
        () = admitted.closed() => return,
    };
    let stream = match shaken {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, origin = connection.origin.name(), "a TLS handshake failed");
            return;
        }
    };
    let client = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    connection.certificate = client.map(|certificate| tls::names(certificate).into());
    let new = Admitted { transport: Transport::Tls(Box::new(stream)), connection, _seat: seat, probation };
    // The receiver is gone when the server stops.
    let _ = admitted.send(Ok(new)).await;
}

/// An accepted socket.
enum Socket {
    Plain(Transport),
    Tls(TcpStream, Arc<ServerConfig>),
}

async fn accept_one(listener: &Listener) -> io::Result<(Socket, Origin)> {
    match listener {
        Listener::Tcp(listener, tls) => {
            let (stream, remote) = listener.accept().await?;
            // Without it a stream of small messages to a client with small windows runs a hundred times slower.
            stream.set_nodelay(true)?;
            let socket = match tls {
                Some(config) => Socket::Tls(stream, Arc::clone(&config.borrow())),
                None => Socket::Plain(Transport::Tcp(stream)),
            };
            Ok((socket, Origin::of_tcp(remote)))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            let uid = stream.peer_cred()?.uid();
            Ok((Socket::Plain(Transport::Unix(stream)), Origin::Uid(uid)))
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
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
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
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
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
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
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
    fn seats_are_limited_per_origin_and_freed() {
        let census = Arc::default();
        let seats: Vec<_> =
            (0..MAX_PER_ORIGIN).map(|_| Seat::take(&census, Origin::Loopback).unwrap()).collect();
        assert!(Seat::take(&census, Origin::Loopback).is_none());
        assert!(Seat::take(&census, Origin::Uid(0)).is_some());
        drop(seats);
        assert!(Seat::take(&census, Origin::Loopback).is_some());
        assert!(census.lock().unwrap().by_origin.is_empty());
    }

    #[test]
    fn strangers_leave_seats_to_this_machine() {
        let census = Arc::default();
        let remote = |last| Origin::Remote([192, 0, 2, last].into());
        let strangers: Vec<_> = (0..8)
            .flat_map(|last| (0..32).map_while(|_| Seat::take(&census, remote(last))).collect::<Vec<_>>())
            .collect();
        assert_eq!(strangers.len(), MAX_REMOTE);
        assert!(Seat::take(&census, remote(9)).is_none());
        let local: Vec<_> = (0..MAX_PER_ORIGIN).map_while(|_| Seat::take(&census, Origin::Uid(0))).collect();
        assert_eq!(local.len(), MAX_CONNECTIONS - MAX_REMOTE);
        drop(strangers);
        assert!(Seat::take(&census, remote(9)).is_some());
    }
}
