//! Settings of peers that change while the sidecar runs, and what went over connections.

use std::time::Duration;

use devp2pd::{
    net::clock,
    p2p::DisconnectReason as Reason,
    rpc::proto::{
        Capability, CapabilityTraffic, GetPeerRequest, GetPeerSettingsRequest, NetworkList, PeerSettings,
        UpdatePeerSettingsRequest,
    },
};
use tonic::Status;

use crate::harness::{FIRST, Liar, Sidecar, linked, refused, soon};

async fn settings(sidecar: &Sidecar) -> PeerSettings {
    let answer = sidecar.peers().get_peer_settings(GetPeerSettingsRequest {}).await.unwrap();
    answer.into_inner().settings.unwrap()
}

async fn update(sidecar: &Sidecar, settings: PeerSettings) -> Result<PeerSettings, Status> {
    let request = UpdatePeerSettingsRequest { settings: Some(settings) };
    Ok(sidecar.peers().update_peer_settings(request).await?.into_inner().settings.unwrap())
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

#[tokio::test]
async fn what_the_configuration_says_is_shown_and_a_call_changes_a_part_of_it() {
    let flags = ["--maxpeers", "7", "--churn", "5m", "--send-rate", "1MiB", "--inbound-throttle", "0s"];
    let flags = [&flags[..], &["--max-peers-per-subnet", "0", "--max-pending-per-subnet", "9"]].concat();
    let sidecar = Sidecar::start_with(&flags).await;
    let before = settings(&sidecar).await;
    assert_eq!((before.max_peers, before.dial_ratio, before.dialing), (Some(7), Some(3), Some(true)));
    assert_eq!((before.churn_interval, before.inbound_throttle), (seconds(300), seconds(0)));
    assert_eq!((before.send_rate, before.receive_rate), (Some(1 << 20), Some(0)));
    assert_eq!((before.max_peers_per_subnet, before.max_pending_per_subnet), (Some(0), Some(9)));
    let change = |before| PeerSettings {
        max_peers: Some(9),
        churn_interval: seconds(0),
        max_peers_per_subnet: Some(3),
        max_pending_per_subnet: Some(0),
        ..before
    };
    let after = update(&sidecar, change(PeerSettings::default())).await.unwrap();
    let expected = change(before);
    assert_eq!((&after, &settings(&sidecar).await), (&expected, &expected));
    for (wrong, field) in [
        (PeerSettings { dial_ratio: Some(0), ..Default::default() }, "settings.dial_ratio"),
        (PeerSettings { dial_timeout: seconds(0), ..Default::default() }, "settings.dial_timeout"),
        (PeerSettings { inbound_throttle: seconds(-1), ..Default::default() }, "settings.inbound_throttle"),
        (PeerSettings { send_rate: Some(5), ..Default::default() }, "settings.send_rate"),
        (
            PeerSettings {
                net_restrict: Some(NetworkList { networks: vec!["x".to_owned()] }),
                ..Default::default()
            },
            "settings.net_restrict.networks[0]",
        ),
    ] {
        // Nothing of a request with a mistake takes effect.
        let wrong = PeerSettings { max_peers: Some(1), ..wrong };
        assert_eq!(refused(&update(&sidecar, wrong).await.unwrap_err()).fields, [field]);
        assert_eq!(settings(&sidecar).await, expected);
    }
}

#[tokio::test]
async fn limits_take_effect_at_once() {
    let sidecar = Sidecar::start_with(&["--maxpeers", "1"]).await;
    let _app = sidecar.echo().await;
    // The only slot is one that we would dial.
    let mut first = Liar::connect(&sidecar, 1).await;
    first.shake_hands().await;
    assert_eq!(first.reason().await, Some(Reason::TooManyPeers), "no inbound slot");
    update(&sidecar, PeerSettings { max_peers: Some(5), ..Default::default() }).await.unwrap();
    let second = Liar::established(&sidecar, 2).await;
    sidecar.connected(second.key.id()).await;
    update(&sidecar, PeerSettings { allowlist_only: Some(true), ..Default::default() }).await.unwrap();
    sidecar.disconnected(second.key.id()).await;
}

/// Ten messages of 16 KiB at 64 KiB a second: after the first second's worth they take more than a second, and pings
/// are answered meanwhile. The time is a lower bound that the cap sets, whatever the machine does.
#[tokio::test]
async fn a_capped_peer_is_slow_and_alive() {
    let pair = linked().await;
    let (mut a_app, mut b_app) = (pair.a_app, pair.b_app);
    let messages = 10_u32;
    let random = |seed: u32| -> Vec<u8> {
        let mut state = u64::from(seed) + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..16 << 10).map(|_| next()).collect()
    };
    let cap = Some(64 << 10);
    for (direction, capped) in [
        ("to the peer", PeerSettings { peer_send_rate: cap, ..Default::default() }),
        (
            "from the peer",
            PeerSettings { peer_receive_rate: cap, peer_send_rate: Some(0), ..Default::default() },
        ),
        ("from all", PeerSettings { receive_rate: cap, peer_receive_rate: Some(0), ..Default::default() }),
    ] {
        update(&pair.a, capped).await.unwrap();
        let begin = clock::now().mono;
        for seed in 0..messages {
            match direction {
                "to the peer" => a_app.send(pair.a_channel, 1, random(seed)).await,
                _ => b_app.send(pair.b_channel, 1, random(seed)).await,
            }
        }
        for seed in 0..messages {
            let got = match direction {
                "to the peer" => b_app.message().await,
                _ => a_app.message().await,
            };
            assert!(got == (1, random(seed)), "{direction}: message {seed} is another");
        }
        let took = clock::now().mono - begin;
        assert!(took > Duration::from_millis(1_000), "{direction}: {took:?}");
    }
    // The session is the one that there was.
    assert_eq!(pair.a.connected(pair.b.id()).await.session_id, 1);
    update(&pair.a, PeerSettings { receive_rate: Some(0), ..Default::default() }).await.unwrap();
    b_app.send(pair.b_channel, 1, *b"free").await;
    assert_eq!(soon("a message", a_app.message()).await, (1, b"free".to_vec()));
}

#[tokio::test]
async fn traffic_is_told_by_protocol() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let mut peer = Liar::established(&sidecar, 1).await;
    let channel = app.opened().await.channel_id;
    for size in [100, 3000] {
        peer.send(FIRST, &vec![1; size]).await;
        app.message().await;
    }
    app.send(channel, 1, vec![0; 5000]).await;
    assert_eq!(peer.receive().await, Some((FIRST + 1, vec![0; 5000])));
    let expected = CapabilityTraffic {
        capability: Some(Capability { name: "echo".to_owned(), version: 1 }),
        messages_received: 2,
        bytes_received: 3100,
        messages_sent: 1,
        bytes_sent: 5000,
    };
    crate::harness::eventually("sent messages are counted as written", async || {
        let answer = sidecar.peers().get_peer(GetPeerRequest { node: peer.id() }).await.unwrap().into_inner();
        let traffic = answer.traffic.unwrap();
        (traffic.capabilities == [expected.clone()]).then_some(())
    })
    .await;
}
