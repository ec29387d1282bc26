//! Opens TCP connections and looks up host names: the two slow steps of a dial. `policy` decides which nodes are
//! dialed.
//!
//! A name may have several addresses, and some may not work: a family without a route, a machine that is down. They are
//! tried as in RFC 8305 ("happy eyeballs"): the next one as soon as one has failed, or a quarter of a second after the
//! one before. The first connection is used. An error names the outcome of each address.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::peer_socket;

/// The longest time for the lookup of a name (geth: 5 s).
const LOOKUP: Duration = Duration::from_secs(5);

/// The most addresses of one name that are tried: a name with hundreds of addresses must not make us scan them all.
const MAX_ADDRESSES: usize = 8;

/// The time after which the next address is tried, too (RFC 8305 section 5, Connection Attempt Delay).
const HEAD_START: Duration = Duration::from_millis(250);

/// Returns the addresses of a host name from the system's resolver; none if the name has none.
pub async fn lookup(name: &str) -> io::Result<Vec<IpAddr>> {
    // The interface needs a port, which the resolver does not use.
    let found = timeout(LOOKUP, tokio::net::lookup_host((name, 0))).await;
    let found = found
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer within 5 s"))?;
    Ok(found?.map(|addr| addr.ip()).take(MAX_ADDRESSES).collect())
}

/// Why no connection was made: each address that was tried, and its error.
#[derive(Debug)]
pub struct ConnectError {
    /// Each address that was tried, and its error. Never empty.
    pub tried: Vec<(SocketAddr, io::Error)>,
}

impl std::error::Error for ConnectError {}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (addr, error)) in self.tried.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{addr}: {error}")?;
        }
        Ok(())
    }
}

/// Connects to the first of `addrs` that accepts, within `limit` for all of them together. The socket gets a receive
/// buffer of `receive_buffer` bytes. Returns the connection and its remote address.
pub async fn connect(
    addrs: Vec<SocketAddr>,
    limit: Duration,
    receive_buffer: usize,
) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let (mut tried, mut begun) = (Vec::new(), Vec::new());
    if let Ok(Some(connected)) = timeout(limit, race(addrs, receive_buffer, &mut begun, &mut tried)).await {
        return Ok(connected);
    }
    // Attempts that the time limit ended have no error of their own.
    let silent = |addr: &SocketAddr| !tried.iter().any(|(failed, _)| failed == addr);
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
    let silent: Vec<_> = begun.into_iter().filter(silent).map(|addr| (addr, late())).collect();
    tried.extend(silent);
    Err(ConnectError { tried })
}

/// Tries the addresses in order, each with a head start. Returns `None` when all have failed. Adds each address to
/// `begun` when it is tried, and to `failed` when its attempt has failed.
async fn race(
    addrs: Vec<SocketAddr>,
    receive_buffer: usize,
    begun: &mut Vec<SocketAddr>,
    failed: &mut Vec<(SocketAddr, io::Error)>,
) -> Option<(TcpStream, SocketAddr)> {
    let mut left = addrs.into_iter();
    // Dropping the set ends the attempts that are not needed any more.
    let mut attempts = JoinSet::new();
    loop {
        let next = left.next();
        if let Some(addr) = next {
            begun.push(addr);
            attempts.spawn(async move { (addr, open(addr, receive_buffer).await) });
        }
        // Wait until an attempt ends. If an address was started in this round, wait at most for its head start: the
        // next round then starts the next address.
        let outcome = tokio::select! {
            outcome = attempts.join_next() => outcome,
            () = sleep(HEAD_START), if next.is_some() => continue,
        };
        match outcome {
            Some(Ok((addr, Ok(stream)))) => return Some((stream, addr)),
            Some(Ok((addr, Err(error)))) => failed.push((addr, error)),
            // An attempt that panicked has failed. Attempts are not cancelled while this function runs.
            Some(Err(_)) => {}
            None if next.is_none() => return None,
            None => {}
        }
    }
}

async fn open(addr: SocketAddr, receive_buffer: usize) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    peer_socket::prepare(&SockRef::from(&socket), receive_buffer)?;
    let stream = socket.connect(addr).await?;
    // Messages are batched before they are written, so the kernel must not wait for more.
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use socket2::{Domain, Socket, Type};

    use super::{peer_socket::RECEIVE_BUFFER, *};

    /// A time limit that only an attempt without an outcome reaches.
    const LONG: Duration = Duration::from_secs(60);

    /// Returns a listening address, and the listener that keeps it open.
    fn listener() -> (std::net::TcpListener, SocketAddr) {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    /// Returns an address that refuses connections: its socket is bound and does not listen.
    fn refusing() -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, addr)
    }

    /// Returns an address that never answers: its queue of connections is full, so the kernel drops new ones.
    async fn silent() -> (Socket, Vec<TcpStream>, SocketAddr) {
        let (socket, addr) = refusing();
        socket.listen(0).unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = timeout(Duration::from_millis(300), TcpStream::connect(addr)).await {
            held.push(stream);
            assert!(held.len() < 64, "a queue of no connections takes them all");
        }
        (socket, held, addr)
    }

    #[tokio::test]
    async fn one_dial_tries_all_addresses_of_a_name() {
        let (_refusing, refused) = refusing();
        let (_socket, _held, silent) = silent().await;
        let (_listener, good) = listener();
        for addrs in
            [vec![good], vec![refused, good], vec![silent, good], vec![silent, refused, good, silent]]
        {
            let (stream, addr) = connect(addrs.clone(), LONG, RECEIVE_BUFFER).await.unwrap();
            assert_eq!((addr, stream.peer_addr().unwrap()), (good, good), "{addrs:?}");
            assert!(stream.nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn an_error_names_every_address_and_what_became_of_it() {
        let (_first, first) = refusing();
        let (_second, second) = refusing();
        let error = connect(vec![first, second], LONG, RECEIVE_BUFFER).await.unwrap_err();
        assert_eq!(error.tried.iter().map(|(addr, _)| *addr).collect::<Vec<_>>(), [first, second]);
        let text = error.to_string();
        for addr in [first, second] {
            assert!(text.contains(&format!("{addr}: Connection refused")), "{text}");
        }
        let (_socket, _held, silent) = silent().await;
        let error = connect(vec![first, silent], Duration::from_millis(500), RECEIVE_BUFFER)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("{first}: Connection refused")), "{error}");
        assert!(error.contains(&format!("{silent}: no answer within 500ms")), "{error}");
    }
}
