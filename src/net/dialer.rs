//! Opens TCP connections and looks up host names: the two slow steps of a dial. Whom to dial is `policy`'s business.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

/// How long a name may take (geth: 5 s).
const LOOKUP: Duration = Duration::from_secs(5);

/// Addresses of one name that are passed on: a name with hundreds of them is not ours to scan.
const MAX_ADDRESSES: usize = 8;

/// The addresses of a host name, by the system's resolver; empty when there are none.
pub async fn lookup(name: &str) -> io::Result<Vec<IpAddr>> {
    // The port is of no use to the resolver, but its interface wants one.
    let found = timeout(LOOKUP, tokio::net::lookup_host((name, 0))).await;
    let found = found
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer within 5 s"))?;
    Ok(found?.map(|addr| addr.ip()).take(MAX_ADDRESSES).collect())
}

/// Connects within `limit`.
pub async fn connect(addr: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = timeout(limit, TcpStream::connect(addr)).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {addr} within {limit:?}"))
    })??;
    // Messages are batched before they are written; the kernel must not wait for more.
    stream.set_nodelay(true)?;
    Ok(stream)
}
