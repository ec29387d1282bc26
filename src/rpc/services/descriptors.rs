//! The services that describe the server: reflection (v1 and v1alpha) and health.
//!
//! With reflection, grpcurl and similar tools need no proto file. The descriptors keep the comments, so `describe`
//! prints the documentation. Both versions are served because current tools speak v1 and older ones only v1alpha.
//! The descriptors of `google.rpc` are served too: with them grpcurl prints the details of errors decoded.
//!
//! Left out: when the sidecar is ready or draining. `app` reports that through [`Health`].

use tonic::service::RoutesBuilder;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::rpc::proto::{
    discovery_service_server, message_service_server, node_service_server, peer_service_server,
    protocol_service_server,
};

/// `proto/` with comments, as an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.binpb"));

/// The prefix of the full names of our services.
pub const PACKAGE: &str = "devp2p.v1.";

/// Returns the HTTP/2 paths of all calls that the contract declares: `/package.Service/Method`.
#[cfg(any(test, feature = "internals"))]
pub fn methods() -> impl Iterator<Item = String> {
    let set = <prost_types::FileDescriptorSet as prost::Message>::decode(DESCRIPTORS).unwrap_or_default();
    let ours = set.file.into_iter().filter(|file| format!("{}.", file.package()) == PACKAGE);
    ours.flat_map(|file| file.service).flat_map(|service| {
        let name = service.name().to_owned();
        service.method.into_iter().map(move |method| format!("/{PACKAGE}{name}/{}", method.name()))
    })
}

/// Full names of our services, for health checks by name.
pub const SERVICES: [&str; 5] = [
    discovery_service_server::SERVICE_NAME,
    node_service_server::SERVICE_NAME,
    peer_service_server::SERVICE_NAME,
    protocol_service_server::SERVICE_NAME,
    message_service_server::SERVICE_NAME,
];

/// Adds both reflection services to `routes`. Fails only if the embedded descriptors do not decode; a test makes sure
/// that they do.
pub fn add_reflection(routes: &mut RoutesBuilder) -> Result<(), tonic_reflection::server::Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
            .include_reflection_service(false)
    };
    routes.add_service(builder().build_v1()?);
    routes.add_service(builder().build_v1alpha()?);
    Ok(())
}

/// The health of the server, as `grpc.health.v1` reports it.
///
/// | name | serving |
/// | --- | --- |
/// | `liveness` | always, also while draining: otherwise a supervisor would kill a process that is stopping in order |
/// | `startup` | from [`Health::set_ready`] on |
/// | empty, `readiness`, each service | between [`Health::set_ready`] and [`Health::set_draining`] |
#[derive(Clone)]
pub struct Health(HealthReporter);

impl Health {
    /// Adds the health service to `routes`, in the state "alive and not ready".
    pub async fn add_to(routes: &mut RoutesBuilder) -> Self {
        let (reporter, service) = tonic_health::server::health_reporter();
        routes.add_service(service);
        let health = Self(reporter);
        health.set("liveness", true).await;
        health.set("startup", false).await;
        health.set_serving(false).await;
        health
    }

    /// Reports that the API serves and that peers are accepted.
    pub async fn set_ready(&self) {
        self.set("startup", true).await;
        self.set_serving(true).await;
    }

    /// Reports that the process is stopping.
    pub async fn set_draining(&self) {
        self.set_serving(false).await;
    }

    async fn set_serving(&self, serving: bool) {
        for name in ["", "readiness"].into_iter().chain(SERVICES) {
            self.set(name, serving).await;
        }
    }

    async fn set(&self, name: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.set_service_status(name, status).await;
    }
}

#[cfg(test)]
mod tests;
