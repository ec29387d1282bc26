//! The HTTP/2 server under the services, with settings that come from measurements.
//!
//! The window of a stream is small and the window of a connection is large, so that an unread stream does not stop the
//! others on its connection. It must not end the connection either: h2 closes a connection whose unread small frames
//! cost more than half its window. A frame of 5 bytes costs 256 there, so the connection window must be at least 100
//! stream windows. With hyper's defaults a client that paused for four seconds lost its connection.

pub mod connection_slots;
pub mod decoding;
pub mod incoming;
pub mod tls;
pub mod unix_socket;

use std::{io, time::Duration};

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{service::Routes, transport::Server};

use super::access::gate::Gate;
use decoding::Requests;
use incoming::{Admitted, Listener};

/// The bytes that one unread stream may hold.
const STREAM_WINDOW: u32 = 256 * 1024;

/// The bytes that all unread streams of a connection may hold: 128 stream windows.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;

/// The largest frame in bytes, so that a large message takes few frames: measured at 1.3 against 2.2 GB/s for 100 KB
/// messages.
const FRAME: u32 = 1024 * 1024;

/// The most open calls on one connection.
const STREAMS: u32 = 1024;

/// The most bytes of the request headers of one call.
const HEADERS: u32 = 16 * 1024;

/// The most streams that the client reset before we accepted them (CVE-2023-44487, rapid reset). It is h2's default,
/// and it is set here so that an update of h2 cannot raise it.
const PENDING_RESETS: usize = 20;

/// A connection on which nothing was read for this long gets an HTTP/2 PING.
const PING_EVERY: Duration = Duration::from_secs(10);
/// The time in which a PING must be answered: a client that vanished is noticed within 30 s. gRPC's own default is 20
/// s. A client that pauses for less (to collect garbage, or on a busy machine) keeps its stream.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The most admitted connections that wait for the server, which takes them at once.
const HANDOVER: usize = 16;

/// Serves `routes`, behind `gate`, on `listeners` until `stop` fires. Then it takes no new connections, and returns
/// when the clients are done; the caller may drop the future before.
pub async fn serve(
    routes: Routes,
    gate: Gate,
    listeners: Vec<Listener>,
    requests: Requests,
    stop: oneshot::Receiver<()>,
) -> Result<(), tonic::transport::Error> {
    let (admitted, incoming) = mpsc::channel::<io::Result<Admitted>>(HANDOVER);
    let accepting = tokio::spawn(incoming::accept(listeners, requests, admitted));
    let served = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADERS)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .layer(gate)
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), async {
            let _ = stop.await;
        })
        .await;
    accepting.abort();
    served
}
