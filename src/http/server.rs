//! The server of the HTTP port: hyper, with limits for each client.

use std::{collections::VecDeque, convert::Infallible, io, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{Metrics, Probes, answer};

/// The most connections at a time. Probes and a monitor need a few. When all are taken, the oldest is closed, so that
/// silent connections do not lock out others.
const MAX_CONNECTIONS: usize = 64;

/// The time for the head of a request: for the first one, and for each one after an answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest life of a connection, used or not: clients of probes connect again by themselves.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The most bytes of a request's head: the smallest limit that hyper allows. The head of a probe has some 100 bytes.
const HEAD_BYTES: usize = 8 << 10;

/// The most headers of a request. Browsers send about 20.
const HEAD_FIELDS: usize = 64;

/// The pause after a failed accept. If no file descriptor is free, accepting at once would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the probes and, if they are on, the metrics on `listener`. Dropping the future closes all connections.
pub async fn serve(listener: TcpListener, probes: Probes, metrics: Option<Metrics>) -> Infallible {
    let mut tasks = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = tasks.join_next() => {
                oldest_first.retain(|task| !task.is_finished());
                continue;
            }
        };
        match accepted {
            Ok((stream, _)) => {
                if oldest_first.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    oldest.abort();
                }
                oldest_first.push_back(tasks.spawn(connection(stream, probes.clone(), metrics.clone())));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(
                    %error,
                    "cannot accept HTTP connections; the sidecar tries again. If too many files are open, raise the \
                     limit (ulimit -n)"
                );
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection. Its errors are ignored, because they concern its client only.
async fn connection(stream: TcpStream, probes: Probes, metrics: Option<Metrics>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (probes, metrics) = (probes.clone(), metrics.clone());
        async move { Ok::<_, Infallible>(answer(&probes, metrics.as_ref(), &request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_FIELDS)
        .serve_connection(TokioIo::new(stream), service);
    let _ = timeout(CONNECTION_TIMEOUT, served).await;
}

/// Whether the error is about one connection, which its client closed before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
