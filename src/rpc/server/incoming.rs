//! Connections to the gRPC port: counted by where they come from (`seats`), and held to a deadline until they ask for
//! something.
//!
//! The gRPC library gives every accepted socket a task and memory, whoever sent it. So a connection is admitted here
//! first: at most [`MAX_CONNECTIONS`] in all and [`MAX_PER_ORIGIN`] a caller, and one that has not sent its HTTP/2
//! preface and the headers of a first request within [`FIRST_REQUEST`], a TLS handshake included, is cut. After that the
//! server's own HTTP/2 pings notice who is gone.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
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
    seats::{Census, MAX_CONNECTIONS, MAX_PER_ORIGIN, MAX_REMOTE, Origin, Seat},
    tls,
};

/// Time for preface and first request.
pub const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// Pause after a failed accept; the usual cause, no free file descriptors, does not pass faster.
const PAUSE: Duration = Duration::from_millis(200);

/// How often refused connections are worth a line in the log.
const SAY_AGAIN: Duration = Duration::from_secs(10);

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
}
