//! The HTTP port: read only, for those who watch the process from outside.
//!
//! `GET /livez` answers 200 while the process can answer at all, also while it drains: a supervisor that killed what
//! is stopping in order would lose messages. `GET /readyz` answers 200 between start and stop, else 503 with the
//! word for it. `GET /metrics` answers numbers for a monitor (`metrics`).
//!
//! Readiness is about us, not about the network: it does not wait for peers or applications, because orchestrators
//! start the application only when the sidecar is ready.
//!
//! A browser must not be made to ask for a stranger's page: only requests whose `Host` is an IP address or
//! `localhost` are answered (DNS rebinding), there are no CORS headers, and nothing but GET does anything.
//!
//! `server` holds the bounds on clients.
//!
//! Left out: gRPC's own health service (`rpc::services::descriptors`).

mod metrics;
mod server;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use hyper::{Method, Request, Response, StatusCode, Version, header};
pub use metrics::{Facts, Metrics};
pub use server::serve;

type Body = http_body_util::Full<bytes::Bytes>;

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not everything is there yet.
    Starting,
    /// The API serves and peers are accepted.
    Ready,
    /// It is stopping.
    Draining,
}

/// The stage, as `app` tells it and the probes answer it.
#[derive(Clone, Debug)]
pub struct Probes(Arc<AtomicU8>);

impl Default for Probes {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(Stage::Starting as u8)))
    }
}

impl Probes {
    /// From now on, the process is at `stage`.
    pub fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Relaxed);
    }

    /// Where the process is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.0.load(Ordering::Relaxed) {
            0 => Stage::Starting,
            1 => Stage::Ready,
            _ => Stage::Draining,
        }
    }
}

/// The answer to one request.
async fn answer<B>(probes: &Probes, metrics: Option<&Metrics>, request: &Request<B>) -> Response<Body> {
    if !is_asked_by_address(request) {
        return text(
            StatusCode::FORBIDDEN,
            "this port answers requests to an IP address or localhost only (header Host)\n",
        );
    }
    if request.method() != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this port answers GET only\n");
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
        return response;
    }
    match (request.uri().path(), probes.stage()) {
        ("/livez", _) => text(StatusCode::OK, "alive\n"),
        ("/readyz", Stage::Ready) => text(StatusCode::OK, "ready\n"),
        ("/readyz", Stage::Starting) => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        ("/readyz", Stage::Draining) => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        ("/metrics", _) => match metrics {
            Some(metrics) => match metrics.page().await {
                Some(page) => response(StatusCode::OK, metrics::CONTENT_TYPE, page.into()),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
            },
            None => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        },
        _ => text(StatusCode::NOT_FOUND, "not found; this port has /livez, /readyz and /metrics\n"),
    }
}

/// Whether the asker knows our address, instead of a name that somebody pointed here. HTTP/1.0 needs no `Host`, and
/// no browser speaks it.
fn is_asked_by_address<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => return request.version() == Version::HTTP_10 && request.uri().authority().is_none(),
        (Some(_), Some(_)) => return false,
        (Some(host), None) => host.to_str().unwrap_or_default(),
    };
    let same = request.uri().authority().is_none_or(|authority| authority.as_str() == host);
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    let by_address =
        host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) || {
            let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            inner.is_some_and(|inner| inner.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()))
        };
    same && (by_address || name.eq_ignore_ascii_case("localhost"))
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    response(status, "text/plain; charset=utf-8", text.into())
}

fn response(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests;
