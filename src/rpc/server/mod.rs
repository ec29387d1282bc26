//! The HTTP/2 server under the services, with the settings that measurement chose.
//!
//! A small stream window under a large connection window is what keeps one unread stream from stopping the others on
//! its connection, and from ending the connection altogether: h2 closes a connection whose unread small frames cost
//! more than half its window, so the connection window must be at least 100 stream windows (each frame of 5 bytes
//! costs 256). With hyper's defaults a client that paused for four seconds lost its connection.

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
use incoming::{Admitted, Listener};

/// What one unread stream may hold.
const STREAM_WINDOW: u32 = 256 * 1024;

/// What all unread streams of a connection may hold: 128 stream windows.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;

/// Large messages in few frames: measured at 1.3 against 2.2 GB/s for 100 KB messages.
const FRAME: u32 = 1024 * 1024;

/// Calls at once on one connection.
const STREAMS: u32 = 1024;

/// Request headers of one call.
const HEADERS: u32 = 16 * 1024;

/// Streams reset by the client before we accepted them (CVE-2023-44487, rapid reset): h2's own default, written
/// down so that an update cannot loosen it.
const PENDING_RESETS: usize = 20;

/// A connection on which nothing was read for this long gets an HTTP/2 PING.
const PING_EVERY: Duration = Duration::from_secs(10);
/// The time in which a PING must be answered: a client that vanished is noticed within 30 s. gRPC's own default is 20 s. A
/// client that pauses for less (to collect garbage, or on a busy machine) keeps its stream.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Admitted connections waiting for the server: it takes them at once.
const HANDOVER: usize = 16;

/// Serves `routes`, behind `gate`, on `listeners` until `stop` fires, then until clients are done or the future is dropped.
pub async fn serve(
    routes: Routes,
    gate: Gate,
    listeners: Vec<Listener>,
    stop: oneshot::Receiver<()>,
) -> Result<(), tonic::transport::Error> {
    let (admitted, incoming) = mpsc::channel::<io::Result<Admitted>>(HANDOVER);
    let accepting = tokio::spawn(incoming::accept(listeners, admitted));
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
