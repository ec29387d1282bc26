//! The HTTP port: probes and metrics for supervisors and monitors. It is read only.
//!
//! `GET /livez` answers 200 for as long as the process can answer, also while it drains: a supervisor that kills a
//! draining process would lose messages. `GET /readyz` answers 200 between start and stop, and otherwise 503 with the
//! word for the stage. `GET /metrics` answers with metrics for a monitor (`metrics`).
//!
//! Readiness is about the sidecar, not about the network. It does not wait for peers or applications, because
//! orchestrators start the application only when the sidecar is ready.
//!
//! A page of a stranger in a browser must not be able to read this port (DNS rebinding). So only requests whose `Host`
//! is an IP address or `localhost` are answered, no answer has CORS headers, and only GET is allowed.
//!
//! `server` has the limits for clients.
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

/// The stage of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The process starts; some components do not run yet.
    Starting,
    /// The API serves and peers are accepted.
    Ready,
    /// The process is stopping.
    Draining,
}

/// The stage of the process, which `app` sets and the probes report. Clones share it.
#[derive(Clone, Debug)]
pub struct Probes(Arc<AtomicU8>);

impl Default for Probes {
    fn default() -> Self {
        Self(Arc::new(AtomicU8::new(Stage::Starting as u8)))
    }
}

impl Probes {
    /// Sets the stage.
    pub fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Relaxed);
    }

    /// Returns the stage.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match self.0.load(Ordering::Relaxed) {
            0 => Stage::Starting,
            1 => Stage::Ready,
            _ => Stage::Draining,
        }
    }
}

/// Returns the answer to one request.
async fn answer<B>(probes: &Probes, metrics: Option<&Metrics>, request: &Request<B>) -> Response<Body> {
    if !is_asked_by_address(request) {
        return text(
            StatusCode::FORBIDDEN,
            "the Host header must be an IP address or localhost; use for example http://127.0.0.1:PORT\n",
        );
    }
    if request.method() != Method::GET {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this port is read only; use GET\n");
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

/// Whether the client uses our address or `localhost`, and not a name that a stranger's DNS points to us. HTTP/1.0
/// needs no `Host`, and no browser uses it.
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
