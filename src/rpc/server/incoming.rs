//! Connections to the gRPC port: each one needs a slot (`connection_slots`), and must make its first request in time.
//!
//! The gRPC library gives every accepted socket a task and memory. So a connection is admitted here first: it gets a
//! slot, for which an idle one may be closed. The new connection is closed if it has not sent its HTTP/2 preface and
//! the headers of a first request within [`FIRST_REQUEST`], a TLS handshake included. After that the HTTP/2 pings of
//! the server notice a client that has vanished. A connection from another machine that has made no authorised call
//! ends after [`FIRST_AUTHORISED`].
//!
//! A client that speaks HTTP/1 gets one fixed answer that says what this port is. The answer has status 400 and no
//! header that would let a page in a browser read it. Then the connection ends.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, oneshot, watch},
    time::{Instant, Sleep, sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;

use super::{
    connection_slots::{
        ConnectionSlot, ConnectionSlots, MAX_CONNECTIONS, MAX_LOOPBACK, MAX_PER_ORIGIN, MAX_REMOTE, Origin,
        Standing,
    },
    decoding::{Requests, Share},
    tls,
};

/// The time that a connection has for its TLS handshake, its preface and its first request.
pub const FIRST_REQUEST: Duration = Duration::from_secs(5);

/// The time that a connection from another machine has for its first authorised call. Strangers can open calls that
/// need no role, for example reflection, and keep them open.
pub const FIRST_AUTHORISED: Duration = Duration::from_secs(60);

/// The pause after a failed accept. The usual cause is that no file descriptor is free, which takes a while to end.
const PAUSE: Duration = Duration::from_millis(200);

/// The shortest time between two log lines about refused connections.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The facts about a connection. Each of its requests carries them.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where it comes from.
    pub origin: Origin,
    /// The names in the client's certificate, which was verified. `None`: there is no TLS, or it asks for no
    /// certificate.
    pub certificate: Option<Arc<[String]>>,
    /// The memory that its requests may hold while they are decoded.
    pub share: Share,
    /// Counts its calls.
    pub standing: Standing,
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
    /// The bytes that were read to see which protocol the client speaks, and that the server has not read yet.
    early: Early,
    connection: Connection,
    _slot: ConnectionSlot,
    /// The deadline of the first request; `None` once it has begun.
    probation: Probation,
    /// The deadline of the first authorised call; `None` once there was one, and for connections of this machine.
    unauthorised: Option<Pin<Box<Sleep>>>,
    /// Ends when the connection must close to make room. `None`: that has happened.
    cut: Option<oneshot::Receiver<()>>,
}

/// The first bytes of a connection: `have` of them were read, and `given` of them were passed on to the server.
#[derive(Debug, Default)]
struct Early {
    bytes: [u8; PREFACE_BYTES],
    given: usize,
    have: usize,
}

impl Connected for Admitted {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

/// Accepts connections from all listeners, and returns when the receiver is closed.
pub async fn accept(
    listeners: Vec<Listener>,
    requests: Requests,
    admitted: mpsc::Sender<io::Result<Admitted>>,
) {
    let slots = Arc::default();
    let mut tasks = tokio::task::JoinSet::new();
    for listener in listeners {
        tasks.spawn(accept_from(listener, Arc::clone(&slots), requests.clone(), admitted.clone()));
    }
    drop(admitted);
    while tasks.join_next().await.is_some() {}
}

async fn accept_from(
    listener: Listener,
    slots: Arc<Mutex<ConnectionSlots>>,
    requests: Requests,
    admitted: mpsc::Sender<io::Result<Admitted>>,
) {
    // Refusals are logged at most once in `SAY_AGAIN`, because one client could cause thousands of them.
    let (mut said, mut unsaid): (Option<Instant>, u64) = (None, 0);
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener) => accepted,
            () = admitted.closed() => return,
        };
        let (socket, origin) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "cannot accept gRPC connections; the sidecar tries again. If too many files are open, raise the \
                     limit (ulimit -n)"
                );
                sleep(PAUSE).await;
                continue;
            }
        };
        let Some((slot, cut)) = ConnectionSlot::take(&slots, &origin) else {
            if said.is_some_and(|at| at.elapsed() < SAY_AGAIN) {
                unsaid += 1;
                continue;
            }
            tracing::warn!(
                caller = origin.name(),
                earlier = unsaid,
                "refused a gRPC connection: all slots have open calls ({MAX_PER_ORIGIN} of one caller, {MAX_LOOPBACK} \
                 over loopback, {MAX_REMOTE} from other machines, or {MAX_CONNECTIONS} in all). Let clients use fewer \
                 connections"
            );
            (said, unsaid) = (Some(Instant::now()), 0);
            continue;
        };
        let remote = matches!(origin, Origin::Remote(_));
        let standing = slot.standing();
        let connection = Connection { origin, certificate: None, share: requests.share(), standing };
        let newcomer = Newcomer {
            connection,
            slot,
            cut,
            deadline: Box::pin(sleep(FIRST_REQUEST)),
            unauthorised: remote.then(|| Box::pin(sleep(FIRST_AUTHORISED))),
        };
        // In a task of its own, so that other connections do not wait for a slow client. Each task has a slot, which
        // limits their number.
        tokio::spawn(newcomer.enter(socket, admitted.clone()));
    }
}

/// The deadline of a connection's first request, and how much of its start was seen.
type Probation = Option<(Pin<Box<Sleep>>, Preamble)>;

/// A connection that has a slot and has not yet shown which protocol it speaks.
struct Newcomer {
    connection: Connection,
    slot: ConnectionSlot,
    cut: oneshot::Receiver<()>,
    deadline: Pin<Box<Sleep>>,
    unauthorised: Option<Pin<Box<Sleep>>>,
}

impl Newcomer {
    /// Finds out which protocol the client speaks. Answers and ends a connection of HTTP/1, and passes any other to the
    /// server, which checks it.
    async fn enter(mut self, socket: Socket, admitted: mpsc::Sender<io::Result<Admitted>>) {
        let origin = self.connection.origin.clone();
        let entering = async {
            let (mut transport, certificate) = socket.transport().await?;
            self.connection.certificate = certificate;
            let early = Early::read(&mut transport).await?;
            if early.is_http1() {
                say_what_this_is(&mut transport).await?;
                return Ok(None);
            }
            io::Result::Ok(Some((transport, early)))
        };
        // Four things end the wait: the client has shown its protocol, its time is over, the slot is needed for another
        // connection, or the server stops. The latter two close the connection without a log line.
        let entered = tokio::select! {
            entered = entering => entered,
            () = &mut self.deadline => Err(io::ErrorKind::TimedOut.into()),
            _ = &mut self.cut => return,
            () = admitted.closed() => return,
        };
        let (transport, early) = match entered {
            Ok(Some(entered)) => entered,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, origin = origin.name(), "a gRPC connection ended before its first request");
                return;
            }
        };
        let Self { connection, slot, cut, deadline, unauthorised } = self;
        let probation = Some((deadline, Preamble::default()));
        let new =
            Admitted { transport, early, connection, _slot: slot, probation, unauthorised, cut: Some(cut) };
        // Sending fails only if the server has stopped.
        let _ = admitted.send(Ok(new)).await;
    }
}

impl Early {
    /// Reads until it is clear whether this may be HTTP/2.
    async fn read(transport: &mut Transport) -> io::Result<Self> {
        let mut early = Self::default();
        while early.have < CLEAR && PREFACE.starts_with(early.seen()) {
            let free = early.bytes.get_mut(early.have..).unwrap_or_default();
            match transport.read(free).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => early.have += count,
            }
        }
        Ok(early)
    }

    fn seen(&self) -> &[u8] {
        self.bytes.get(..self.have).unwrap_or_default()
    }

    /// Whether the bytes begin as a request of HTTP/1 does: with a method, which is a word in capitals, and not with
    /// the preface of HTTP/2. A word that is not complete yet counts as a method.
    fn is_http1(&self) -> bool {
        let seen = self.seen();
        let word = seen.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        let ends_well = seen.get(word).is_none_or(|byte| *byte == b' ');
        !PREFACE.starts_with(seen) && word > 0 && ends_well
    }

    /// Passes on the bytes that were read, as many as fit `buf`.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let left = self.bytes.get(self.given..self.have).unwrap_or_default();
        let count = left.len().min(buf.remaining());
        buf.put_slice(left.get(..count).unwrap_or_default());
        self.given += count;
    }

    fn is_given(&self) -> bool {
        self.given == self.have
    }
}

/// Sends a client of HTTP/1 its answer. Then reads what the client still sends, so that closing the connection does not
/// discard the answer.
async fn say_what_this_is(transport: &mut Transport) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{HTTP1_ANSWER}",
        HTTP1_ANSWER.len()
    );
    transport.write_all(answer.as_bytes()).await?;
    transport.shutdown().await?;
    let mut rest = [0; 1024];
    for _ in 0..MAX_HTTP1_READS {
        if transport.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// An accepted socket.
enum Socket {
    Plain(Transport),
    Tls(TcpStream, Arc<ServerConfig>),
}

impl Socket {
    /// Returns the stream to read and write, after the TLS handshake if the port has TLS, and the names in the client's
    /// certificate.
    async fn transport(self) -> io::Result<(Transport, Option<Arc<[String]>>)> {
        match self {
            Self::Plain(transport) => Ok((transport, None)),
            Self::Tls(stream, config) => {
                let stream = TlsAcceptor::from(config).accept(stream).await?;
                let client = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let names = client.map(|certificate| tls::names(certificate).into());
                Ok((Transport::Tls(Box::new(stream)), names))
            }
        }
    }
}

async fn accept_one(listener: &Listener) -> io::Result<(Socket, Origin)> {
    match listener {
        Listener::Tcp(listener, tls) => {
            let (stream, remote) = listener.accept().await?;
            // Without TCP_NODELAY a stream of small messages to a client with small windows is a hundred times slower.
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

/// Follows the start of an HTTP/2 connection until the first request begins.
#[derive(Debug)]
struct Preamble {
    /// The number of bytes before the next frame header: first the preface, then the payloads of frames.
    skip: usize,
    header: [u8; 9],
    have: usize,
}

/// The preface of HTTP/2 (RFC 9113, 3.4). hyper checks its text.
const PREFACE: &[u8; PREFACE_BYTES] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PREFACE_BYTES: usize = 24;

/// The number of bytes of the preface after which it is clear that the client speaks HTTP/2: no method of HTTP/1 begins
/// with them.
const CLEAR: usize = 4;

/// The text of the answer to a client of HTTP/1.
const HTTP1_ANSWER: &str = "This is the gRPC port of devp2pd. It speaks gRPC over HTTP/2 alone: use a gRPC client, \
                            for example grpcurl. The probes and metrics are on the port of --http-addr.\n";

/// The most reads, of 1 KiB each, of data that a client of HTTP/1 still sends.
const MAX_HTTP1_READS: usize = 64;

/// Frame type HEADERS (RFC 9113, 6.2).
const HEADERS: u8 = 1;

impl Default for Preamble {
    fn default() -> Self {
        Self { skip: PREFACE_BYTES, header: [0; 9], have: 0 }
    }
}

impl Preamble {
    /// Takes received bytes. Returns true once the header of a HEADERS frame is complete.
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
        if this.cut.as_mut().is_none_or(|cut| Pin::new(cut).poll(cx).is_ready()) {
            this.cut = None;
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "made room for a newer connection",
            )));
        }
        if let Some(deadline) = &mut this.unauthorised
            && deadline.as_mut().poll(cx).is_ready()
        {
            if !this.connection.standing.is_authorised() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            this.unauthorised = None;
        }
        let before = buf.filled().len();
        let polled = if this.early.is_given() {
            Pin::new(&mut this.transport).poll_read(cx, buf)
        } else {
            this.early.give(buf);
            Poll::Ready(Ok(()))
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

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write_vectored(cx, bufs)
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

    fn early(bytes: &[u8]) -> Early {
        let mut early = Early { have: bytes.len().min(PREFACE_BYTES), ..Early::default() };
        let have = early.have;
        early.bytes[..have].copy_from_slice(&bytes[..have]);
        early
    }

    #[test]
    fn http_1_is_told_from_http_2_and_from_noise() {
        for http1 in [
            "GET / HTTP/1.1\r\n",
            "POST /x HTTP/1.0\r\n",
            "PUT / H",
            "PATCH",
            "P ",
            "PROPFIND / HTTP/1.1\r\n",
            "G",
        ] {
            assert!(early(http1.as_bytes()).is_http1(), "{http1}");
        }
        for other in
            [&PREFACE[..], b"PRI ", b"PRI", b"P", b"", b"\x16\x03\x01", b"get / HTTP/1.1", b"GET\0", b"\xff"]
        {
            assert!(!early(other).is_http1(), "{other:?}");
        }
    }

    #[test]
    fn what_was_read_early_is_handed_on_whole() {
        for room in 1..30 {
            let (mut early, mut seen) = (early(&PREFACE[..]), Vec::new());
            while !early.is_given() {
                let mut space = vec![0; room];
                let mut buf = ReadBuf::new(&mut space);
                early.give(&mut buf);
                seen.extend_from_slice(buf.filled());
            }
            assert_eq!(seen, PREFACE, "{room}");
        }
    }
}
