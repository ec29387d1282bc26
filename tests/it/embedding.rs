//! A program that runs sidecars itself: configuration in code, several in one process, what they tell, and their end.

use devp2pd::{
    App, Config, NodeRef,
    rpc::proto::{
        GetNodeInfoRequest, message_service_client::MessageServiceClient,
        node_service_client::NodeServiceClient,
    },
};

use crate::harness::{Application, attach, connect, probe, soon, spec};

async fn echo(sidecar: &App) -> Application {
    let messages = MessageServiceClient::new(connect(sidecar.started().grpc_addr).await);
    Application::attach(messages, attach(spec("echo-app", &[("echo", 1, 8)]))).await.unwrap()
}

#[tokio::test]
async fn two_sidecars_in_one_process_find_each_other_and_stop_by_themselves() {
    let first = App::start(Config::default()).await.unwrap();
    let enode = first.started().enode.clone().unwrap();
    let mut config = Config::default();
    config.peers.static_peers = vec![NodeRef::Enode(enode)];
    let second = App::start(config).await.unwrap();

    // What each says of itself is what its API says, and no two of them share anything.
    for sidecar in [&first, &second] {
        let started = sidecar.started();
        let mut node = NodeServiceClient::new(connect(started.grpc_addr).await);
        let info = node.get_node_info(GetNodeInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.node_id, started.record.id().to_string());
        assert_eq!(Some(info.enode), started.enode.as_ref().map(ToString::to_string));
        let ports = |addrs: &[std::net::SocketAddr]| addrs.iter().map(|addr| addr.port()).collect::<Vec<_>>();
        assert_eq!(ports(&started.udp_addrs), ports(&started.listen_addrs));
        assert_eq!(probe(started.http_addr.unwrap(), "/readyz").await, Some((200, "ready".to_owned())));
    }
    let dirs = [&first, &second].map(|sidecar| sidecar.started().data_dir.clone());
    assert_ne!(dirs[0], dirs[1]);
    assert_ne!(first.started().record.id(), second.started().record.id());

    let (mut first_app, mut second_app) = (echo(&first).await, echo(&second).await);
    let opened = [second_app.opened().await, first_app.opened().await];
    let ids = [&first, &second].map(|sidecar| sidecar.started().record.id().to_string());
    assert_eq!(opened.map(|channel| channel.peer.unwrap().node_id), ids);

    drop(first_app);
    soon("the first one stops", first.stop()).await;
    assert!(!dirs[0].exists() && dirs[1].exists(), "the data directory goes with its sidecar");
    let http = second.started().http_addr.unwrap();
    assert_eq!(probe(http, "/readyz").await, Some((200, "ready".to_owned())), "the second one goes on");
    drop(second_app);
    soon("the second one stops", second.stop()).await;
    assert!(!dirs[1].exists());
}
