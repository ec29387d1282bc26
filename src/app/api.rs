//! The part of the start that serves: gRPC on its addresses, and the probes.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::net::{TcpListener, UnixListener};
use tonic::service::RoutesBuilder;

use super::{
    components::{Component, Components},
    error::StartFailure,
};
use crate::{
    budget::Budgets,
    config::{Grpc, Tls},
    http::{self, Metrics, Probes},
    net::switch::Handle,
    net::{discovery::Discovery, running::Running},
    rpc::{
        self,
        access::{credentials, gate::Gate},
        descriptors::Health,
        node::{Controls, NodeFacts},
        server::{
            decoding::Requests,
            incoming::Listener,
            tls::TlsFiles,
            unix_socket::{self, Place},
        },
    },
};

/// The sources of the services.
pub(super) struct Services<'a> {
    pub(super) facts: NodeFacts,
    pub(super) controls: Controls,
    pub(super) discovery: &'a Discovery,
    pub(super) handle: &'a Handle,
    pub(super) budgets: &'a Budgets,
}

/// gRPC, served.
pub(super) struct Served {
    /// Where, over TCP.
    pub(super) addr: SocketAddr,
    /// The Unix socket, which is removed when this is dropped.
    pub(super) socket: Option<Place>,
    /// The health that it reports.
    pub(super) health: Health,
}

/// Serves gRPC.
pub(super) async fn serve(
    grpc: &Grpc,
    services: Services<'_>,
    components: &mut Components,
) -> Result<Served, StartFailure> {
    let (credentials, watching) = credentials::load(grpc.access.clone(), grpc.tls.clone().map(tls_files))?;
    components.add(Running::start_without_end("the credentials", watching.run()));
    let (listener, addr) = bind("gRPC", "--grpc-addr", grpc.addr).await?;
    let (unix, socket) = match unix_listener(grpc)? {
        Some((listener, place)) => (Some(Listener::Unix(listener)), Some(place)),
        None => (None, None),
    };
    let mut routes = RoutesBuilder::default();
    let Services { facts, controls, discovery, handle, budgets } = services;
    rpc::add_services(&mut routes, facts, controls, discovery, handle);
    rpc::descriptors::add_reflection(&mut routes)
        .map_err(|error| StartFailure::Services(error.to_string()))?;
    let health = Health::add_to(&mut routes).await;
    let tcp = Listener::Tcp(listener, credentials.tls);
    let listeners = std::iter::once(tcp).chain(unix).collect();
    let gate = Gate::new(credentials.access);
    let requests = Requests::new(Arc::clone(&budgets.requests));
    // A client that never closes its connection is cut when the server's time to stop is over.
    let server = Running::start("the gRPC server", async move |stop| {
        if let Err(error) = rpc::server::serve(routes.routes(), gate, listeners, requests, stop).await {
            tracing::error!(%error, "the gRPC server has failed");
        }
    });
    components.add(Component::from(server).essential());
    Ok(Served { addr, socket, health })
}

/// Serves the probes and the metrics. They answer until all other components have stopped: a supervisor asks whether
/// the process lives, in particular while it stops.
pub(super) async fn serve_probes(
    addr: SocketAddr,
    probes: Probes,
    metrics: Metrics,
    components: &mut Components,
) -> Result<SocketAddr, StartFailure> {
    let (listener, addr) = bind("the probes", "--http-addr", addr).await?;
    components.add_below(Running::start_without_end("the probes", async move {
        match http::serve(listener, probes, Some(metrics)).await {}
    }));
    Ok(addr)
}

async fn bind(
    what: &'static str,
    flag: &'static str,
    addr: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartFailure> {
    let failed = |source: io::Error| StartFailure::Serve { what, flag, addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// The Unix socket of gRPC. A socket that the operator named is required. The default may fail, with a warning.
fn unix_listener(grpc: &Grpc) -> Result<Option<(UnixListener, Place)>, StartFailure> {
    match grpc.socket.as_deref().map(unix_socket::bind) {
        None => Ok(None),
        Some(Ok(bound)) => Ok(Some(bound)),
        Some(Err(error)) if grpc.socket_asked => Err(error.into()),
        Some(Err(error)) => {
            tracing::warn!(%error, "gRPC is served on TCP alone");
            Ok(None)
        }
    }
}

fn tls_files(files: Tls) -> TlsFiles {
    let Tls { cert, key, client_ca } = files;
    TlsFiles { cert, key, client_ca }
}
