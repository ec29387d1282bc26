//! Reflection and health as a client sees them, over a real connection.

use std::collections::BTreeSet;

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use tokio::net::TcpListener;
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest as Ask, server_reflection_response::MessageResponse as Answer,
};

use super::*;

/// Starts a server that has only reflection and health. It ends with the test's runtime.
async fn serve() -> (Channel, Health) {
    let mut routes = RoutesBuilder::default();
    add_reflection(&mut routes).unwrap();
    let health = Health::add_to(&mut routes).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(
        Server::builder()
            .add_routes(routes.routes())
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))),
    );
    (Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap(), health)
}

async fn ask(channel: &Channel, question: Ask) -> Answer {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tonic::codegen::tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    answers.message().await.unwrap().unwrap().message_response.unwrap()
}

async fn file_of(channel: &Channel, symbol: &str) -> FileDescriptorProto {
    match ask(channel, Ask::FileContainingSymbol(symbol.to_owned())).await {
        Answer::FileDescriptorResponse(files) => {
            FileDescriptorProto::decode(files.file_descriptor_proto.first().unwrap().as_slice()).unwrap()
        }
        other => panic!("{symbol}: {other:?}"),
    }
}

#[tokio::test]
async fn reflection_lists_every_service_and_serves_every_symbol() {
    let (channel, _health) = serve().await;
    let Answer::ListServicesResponse(list) = ask(&channel, Ask::ListServices(String::new())).await else {
        panic!("no list");
    };
    let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
    let expected = SERVICES.into_iter().chain([
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]);
    assert_eq!(names, expected.map(str::to_owned).collect());

    for symbol in
        ["google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo", "google.rpc.Status"]
    {
        assert_eq!(file_of(&channel, symbol).await.package(), "google.rpc", "{symbol}");
    }
    let node = file_of(&channel, "devp2p.v1.NodeService").await;
    let info = node.source_code_info.expect("comments travel");
    let comments: String = info.location.iter().filter_map(|place| place.leading_comments.clone()).collect();
    assert!(comments.contains("Signed node record"), "{comments}");
}

#[tokio::test]
async fn reflection_v1alpha_is_served_too() {
    use tonic_reflection::pb::v1alpha as old;
    let (channel, _health) = serve().await;
    let request = old::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(old::server_reflection_request::MessageRequest::FileContainingSymbol(
            "devp2p.v1.PeerService".to_owned(),
        )),
    };
    let mut answers = old::server_reflection_client::ServerReflectionClient::new(channel)
        .server_reflection_info(tonic::codegen::tokio_stream::once(request))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(
        answer,
        old::server_reflection_response::MessageResponse::FileDescriptorResponse(files)
            if files.file_descriptor_proto.len() == 1
    ));
}

#[tokio::test]
async fn health_follows_the_life_of_the_process() {
    async fn serving(channel: &Channel, name: &str) -> bool {
        let request = HealthCheckRequest { service: name.to_owned() };
        let answer = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        answer.status() == tonic_health::pb::health_check_response::ServingStatus::Serving
    }
    let (channel, health) = serve().await;
    let table = |started: bool, ready: bool| {
        [("liveness", true), ("startup", started), ("", ready), ("readiness", ready)]
            .into_iter()
            .chain(SERVICES.map(|name| (name, ready)))
    };
    for (name, expected) in table(false, false) {
        assert_eq!(serving(&channel, name).await, expected, "{name:?} while starting");
    }
    health.set_ready().await;
    for (name, expected) in table(true, true) {
        assert_eq!(serving(&channel, name).await, expected, "{name:?} when ready");
    }
    health.set_draining().await;
    for (name, expected) in table(true, false) {
        assert_eq!(serving(&channel, name).await, expected, "{name:?} while draining");
    }
    let unknown = HealthCheckRequest { service: "nobody".to_owned() };
    let error = HealthClient::new(channel).check(unknown).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
}

#[test]
fn every_service_is_in_the_list_and_every_part_of_it_is_explained() {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let ours = || set.file.iter().filter(|file| file.package() == "devp2p.v1");
    let services: BTreeSet<_> = ours()
        .flat_map(|file| &file.service)
        .map(|service| format!("devp2p.v1.{}", service.name()))
        .collect();
    assert_eq!(services, SERVICES.map(str::to_owned).into());

    let mut explained = 0;
    for file in ours() {
        let info = file.source_code_info.as_ref().unwrap();
        let comments: BTreeSet<&[i32]> = info
            .location
            .iter()
            .filter(|place| !place.leading_comments().trim().is_empty())
            .map(|place| place.path.as_slice())
            .collect();
        let mut check = |path: Vec<i32>| {
            assert!(comments.contains(path.as_slice()), "{}: no comment at {path:?}", file.name());
            explained += 1;
        };
        // Field numbers of descriptor.proto: in a file, 4 is messages, 5 enums, 6 services; in a message, 2 is fields
        // and 8 oneofs.
        for (index, message) in (0..).zip(&file.message_type) {
            check(vec![4, index]);
            members(message, &[4, index], &mut check);
        }
        for (index, item) in (0..).zip(&file.enum_type) {
            check(vec![5, index]);
            (0..).zip(&item.value).for_each(|(value, _)| check(vec![5, index, 2, value]));
        }
        for (index, service) in (0..).zip(&file.service) {
            check(vec![6, index]);
            (0..).zip(&service.method).for_each(|(method, _)| check(vec![6, index, 2, method]));
        }
    }
    assert!(explained > 200, "only {explained} parts seen");
}

fn members(message: &DescriptorProto, path: &[i32], check: &mut impl FnMut(Vec<i32>)) {
    let at = |kind: i32, index: i32| [path, &[kind, index]].concat();
    (0..).zip(&message.field).for_each(|(index, _)| check(at(2, index)));
    // For each optional field the compiler makes a oneof with that field alone. Its name is `_` and the name of the
    // field.
    let written = message.oneof_decl.iter().filter(|oneof| !oneof.name().starts_with('_'));
    (0..).zip(written).for_each(|(index, _)| check(at(8, index)));
}
