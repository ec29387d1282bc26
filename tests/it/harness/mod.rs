//! Helpers that the topics share: sidecars, applications, scripted peers, and refusals taken apart.

mod application;
mod liar;
mod refused;
mod sidecar;
mod tls;
pub(crate) mod wire;

pub(crate) use application::{
    Application, ClientEventKind, Event, attach, greeting, message, protocol, spec,
};
pub(crate) use liar::{FIRST, HELLO, Liar, PING, PONG, Trap};
pub(crate) use refused::{Refused, refused};
pub(crate) use sidecar::{MAX_RESPONSE, Sidecar, connect, connect_unix, linked, try_start};
pub(crate) use tls::{Authority, connect_tls, put};

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How long an event may take before its absence is a failure: far longer than any takes on a busy machine, where an
/// unoptimized build encrypts 16 MiB in some seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `future`, and fails naming `what` if it does not come.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: nothing within {PATIENCE:?}"),
    }
}

/// Asks again and again until `ask` returns a value: for states without an event.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// The status and body of a page of the HTTP port; `None` without an answer.
pub(crate) async fn probe(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.ok()?;
    let code = answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((code, answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim().to_owned()))
}
