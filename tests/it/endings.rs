//! Connections that end while a message waits for room in its application's queue: messages that were read are
//! delivered or reported, and bytes in the kernel are read first where the connection allows it.
//!
//! Real sockets, because the kernel decides about the bytes of a connection that was closed or reset. The same endings
//! in virtual time are in `tests/sim/flow`.

use devp2pd::rpc::proto::{
    Attach, DisconnectPeerRequest, GetPeerRequest, OverflowPolicy, PeerTraffic, RegistrationSpec,
    WindowUpdate, overflow_policy::Action,
};
use rand::{RngCore, SeedableRng, rngs::StdRng};

use crate::harness::{Application, ClientEventKind, Event, FIRST, Liar, Sidecar, attach, eventually, spec};

const MESSAGES: u32 = 250;
/// 1 MB in all: more than queue and window, less than the buffers of two kernels.
const SIZE: usize = 4096;
const WINDOW: u64 = 64 << 10;

/// How the connection ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// The peer has sent everything and closes its side.
    Closed,
    /// The peer's kernel answers with a reset from now on.
    Reset,
    /// The operator sends the peer away.
    DisconnectPeer,
}

/// A sidecar, a slow application, a peer whose messages wait for it, and the traffic of that peer.
async fn held() -> (Sidecar, Application, Liar, PeerTraffic) {
    let sidecar = Sidecar::start().await;
    let policy = OverflowPolicy {
        action: Action::Wait.into(),
        channel_queue_bytes: WINDOW,
        ..OverflowPolicy::default()
    };
    let spec = RegistrationSpec { overflow_policy: Some(policy), ..spec("slow", &[("echo", 1, 8)]) };
    let attach = Attach { auto_credit: false, channel_window_bytes: WINDOW, ..attach(spec) };
    let mut app = Application::attach(sidecar.messages(), attach).await.unwrap();
    let mut peer = Liar::established(&sidecar, 1).await;
    app.opened().await;
    let mut rng = StdRng::seed_from_u64(7);
    for number in 0..MESSAGES {
        let mut payload = vec![0; SIZE];
        rng.fill_bytes(&mut payload);
        payload[..4].copy_from_slice(&number.to_be_bytes());
        peer.send(FIRST, &payload).await;
    }
    let traffic = eventually("the connection is held", async || {
        let request = GetPeerRequest { node: peer.id() };
        let traffic = sidecar.peers().get_peer(request).await.unwrap().into_inner().traffic.unwrap();
        // Window and queue are full: nothing moves before the application gives credit.
        let full = traffic.messages_received * (SIZE as u64 + 64) >= 2 * WINDOW;
        (full && traffic.hold.is_some()).then_some(traffic)
    })
    .await;
    (sidecar, app, peer, traffic)
}

/// Reads on, with credit for each message, until the channel closes. Returns the numbers that came and how many
/// messages were reported as lost.
async fn read(app: &mut Application) -> (Vec<u32>, u64) {
    let (mut numbers, mut lost) = (Vec::new(), 0);
    loop {
        match app.event().await {
            Event::Message(message) => {
                assert_eq!(lost, 0, "a message behind a gap at the end");
                numbers.push(u32::from_be_bytes(message.payload[..4].try_into().unwrap()));
                let update =
                    WindowUpdate { channel_id: message.channel_id, bytes: message.payload.len() as u64 + 64 };
                app.tell(ClientEventKind::WindowUpdate(update)).await;
            }
            Event::Gap(gap) => lost += gap.messages,
            Event::ChannelClosed(_) => return (numbers, lost),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn what_was_read_is_delivered_or_reported_however_the_connection_ends() {
    for ending in [Ending::Closed, Ending::Reset, Ending::DisconnectPeer] {
        let (sidecar, mut app, mut peer, traffic) = held().await;
        let taken = traffic.messages_received + traffic.hold.unwrap().messages;
        let mut open = None;
        match ending {
            Ending::Closed => {
                peer.finish().await;
                open = Some(peer);
            }
            Ending::Reset => peer.reset(),
            Ending::DisconnectPeer => {
                let request = DisconnectPeerRequest { node: peer.id(), reason: 0 };
                sidecar.peers().disconnect_peer(request).await.unwrap();
                peer.drained().await;
            }
        }
        let (numbers, lost) = read(&mut app).await;
        let expected: Vec<u32> = (0..MESSAGES).take(numbers.len()).collect();
        assert_eq!(numbers, expected, "{ending:?}: in order, each once, and none is missing in between");
        let (delivered, note) = (numbers.len() as u64, format!("{ending:?}: {taken} were read, {lost} lost"));
        match ending {
            Ending::Closed => assert_eq!((delivered, lost), (u64::from(MESSAGES), 0), "{note}"),
            // The bytes in the kernel are read; the rest of the peer's bytes never arrived.
            Ending::Reset => assert!(lost == 0 && delivered >= taken, "{note}, {delivered} delivered"),
            Ending::DisconnectPeer => assert_eq!(delivered + lost, taken, "{note}"),
        }
        drop(open);
    }
}
