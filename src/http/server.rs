//! The server of the HTTP port: hyper, with bounds on everything a client can hold.

use std::{collections::VecDeque, convert::Infallible, io, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{Metrics, Probes, answer};

/// Connections at a time. Probes and a scraper need a handful; when all are taken, the oldest is closed, so that
/// silent ones lock nobody out.
const MAX_CONNECTIONS: usize = 64;

/// How long the head of a request may take, the first and after an answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may live, whatever it does: clients of probes come back by themselves.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a request's head, which is the least that hyper allows; ours are some 100.
const HEAD_BYTES: usize = 8 << 10;

/// Headers of a request. Browsers send about 20.
const HEAD_FIELDS: usize = 64;

/// How long to wait when the system has no more file descriptors: accepting at once would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the probes and, if there are any, the metrics on `listener` until the future is dropped, which closes all
/// connections.
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
                tracing::warn!(%error, "HTTP: cannot accept connections");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection. Its errors are its client's: nobody here can do anything about them.
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

/// Whether the error is about the connection that was to be accepted, which went away meanwhile.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}
