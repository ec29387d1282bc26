//! Lists that are read page by page (AIP-158), from a real client.

use devp2pd::{
    node::Enode,
    rpc::proto::{
        self, AddBootnodeRequest, ListBansRequest, ListNodesRequest, ListPeersRequest,
        ListRegistrationsRequest, ListStaticPeersRequest, ListTrustedPeersRequest, Peer, ban_peer_request,
    },
};
use prost_types::Duration;

use crate::harness::{Liar, Sidecar, eventually, refused, spec};

/// All peers, two a page; and how many pages there were.
async fn peers(sidecar: &Sidecar) -> (Vec<Peer>, usize) {
    let (mut peers, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = ListPeersRequest { page_size: 2, page_token };
        let page = sidecar.peers().list_peers(request).await.unwrap().into_inner();
        assert!(page.peers.len() <= 2);
        (pages, page_token) = (pages + 1, page.next_page_token);
        peers.extend(page.peers);
        if page_token.is_empty() {
            return (peers, pages);
        }
    }
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let sidecar = Sidecar::start().await;
    let _app = sidecar.echo().await;
    let mut liars = Vec::new();
    for n in 1..=5 {
        liars.push(Liar::established(&sidecar, n).await);
    }
    let (all, pages) = eventually("five peers", async || {
        let (peers, pages) = peers(&sidecar).await;
        (peers.len() == 5).then_some((peers, pages))
    })
    .await;
    assert_eq!(pages, 3);
    let mut ids: Vec<String> = liars.iter().map(Liar::id).collect();
    ids.sort();
    assert_eq!(all.iter().map(|peer| peer.node_id.clone()).collect::<Vec<_>>(), ids);
    let whole = sidecar.peers().list_peers(ListPeersRequest::default()).await.unwrap().into_inner();
    assert_eq!((whole.peers.len(), whole.next_page_token.as_str()), (5, ""));
}

#[tokio::test]
async fn nodes_are_listed_page_by_page() {
    let flags = ["--nodiscover=false", "--discv4", "false", "--nodial"];
    let sidecar = Sidecar::start_with(&flags).await;
    let others = [
        Sidecar::start_with(&flags).await,
        Sidecar::start_with(&flags).await,
        Sidecar::start_with(&flags).await,
    ];
    for other in &others {
        let node = other.started().record.to_string();
        sidecar.node().add_bootnode(AddBootnodeRequest { node }).await.unwrap();
    }
    let mut expected: Vec<_> = others.iter().map(|other| other.started().record.id().to_string()).collect();
    expected.sort();
    eventually("all are in the table", async || {
        let whole = sidecar.discovery().list_nodes(ListNodesRequest::default()).await.unwrap().into_inner();
        (whole.nodes.len() == 3).then_some(())
    })
    .await;
    let (mut page_token, mut ids) = (String::new(), Vec::new());
    for page in 1..=3 {
        let request = ListNodesRequest { page_size: 1, page_token, ..Default::default() };
        let one = sidecar.discovery().list_nodes(request).await.unwrap().into_inner();
        ids.extend(one.nodes.into_iter().map(|node| node.node.unwrap().node_id));
        page_token = one.next_page_token;
        assert_eq!((ids.len(), page_token.is_empty()), (page, page == 3));
    }
    ids.sort();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn every_list_has_pages_and_refuses_what_is_none() {
    let sidecar = Sidecar::start().await;
    let nobody = |n: u64| Enode::at(Liar::key_of(n).public(), ([127, 0, 0, 1], 1).into()).to_string();
    for n in 1..=3 {
        sidecar.add_static(&nobody(n)).await;
        let request = proto::AddTrustedPeerRequest { node: nobody(n) };
        sidecar.peers().add_trusted_peer(request).await.unwrap();
        let target = Some(ban_peer_request::Target::Ip(format!("192.0.2.{n}")));
        let duration = Some(Duration { seconds: 600, nanos: 0 });
        let ban = proto::BanPeerRequest { target, duration, reason: String::new(), force: false };
        sidecar.peers().ban_peer(ban).await.unwrap();
        let name = format!("p{n}");
        let spec = Some(spec(&format!("app{n}"), &[(&name, 1, 1)]));
        let request = proto::RegisterProtocolsRequest { spec, ..Default::default() };
        sidecar.protocols().register_protocols(request).await.unwrap();
    }
    let (mut peers, mut protocols) = (sidecar.peers(), sidecar.protocols());
    let (mut tokens, mut seen) = ([const { String::new() }; 4], [const { Vec::new() }; 4]);
    for page in 0..3 {
        let [a, b, c, d] = tokens;
        let page_size = 1;
        let statics =
            peers.list_static_peers(ListStaticPeersRequest { page_size, page_token: a }).await.unwrap();
        let trusted =
            peers.list_trusted_peers(ListTrustedPeersRequest { page_size, page_token: b }).await.unwrap();
        let bans = peers.list_bans(ListBansRequest { page_size, page_token: c }).await.unwrap();
        let request = ListRegistrationsRequest { page_size, page_token: d };
        let registrations = protocols.list_registrations(request).await.unwrap();
        let (statics, trusted) = (statics.into_inner(), trusted.into_inner());
        let (bans, registrations) = (bans.into_inner(), registrations.into_inner());
        let [one, two, three, four] = &mut seen;
        one.extend(statics.static_peers.into_iter().map(|peer| peer.node_id));
        two.extend(trusted.trusted_peers.into_iter().map(|peer| peer.node_id));
        three.extend(bans.bans.into_iter().map(|ban| ban.target));
        four.extend(registrations.registrations.into_iter().map(|one| one.spec.unwrap().client_id));
        tokens = [
            statics.next_page_token,
            trusted.next_page_token,
            bans.next_page_token,
            registrations.next_page_token,
        ];
        assert!(tokens.iter().all(|token| token.is_empty() == (page == 2)), "{page}: {tokens:?}");
    }
    for keys in &seen {
        assert_eq!(keys.len(), 3);
        assert!(keys.is_sorted(), "{keys:?}");
    }
    assert_eq!(seen[3], ["app1", "app2", "app3"]);

    let wrong = ListPeersRequest { page_size: -1, page_token: String::new() };
    let refusal = refused(&peers.list_peers(wrong).await.unwrap_err());
    assert_eq!((refusal.reason.as_str(), refusal.fields), ("INVALID_FIELD", vec!["page_size".to_owned()]));
    let wrong = ListBansRequest { page_size: 0, page_token: "page 2".to_owned() };
    let refusal = refused(&peers.list_bans(wrong).await.unwrap_err());
    assert_eq!((refusal.reason.as_str(), refusal.fields), ("INVALID_FIELD", vec!["page_token".to_owned()]));
}
