//! Peers that announce large messages and send little: they hold only the bytes that they sent, and all of them
//! together share one bound.
//!
//! Connections here run without a switch, so that the test can read the budget that they share; a script replies for
//! the switch. That bytes which trickle in do not extend a frame's 30 seconds is tested in virtual time, with the
//! engine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use devp2pd::{
    budget::{Budget, MAX_MEMORY, Resource},
    net::{
        bandwidth::Bandwidth,
        buffers::{BufferPool, CHUNK, ReceiveBudget},
        connection::{ChannelInbox, Connection, ConnectionId, Event, Open, Role, Shared},
        turns::Turns,
    },
    node::{NodeKey, PublicKey},
    p2p::{
        BaseTotals, HeldTime, Inbound, LocalCapability, LocalNode, Offer, Outbound, session::ChannelOffer,
    },
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use crate::harness::{FIRST, Liar, eventually, soon};

/// The largest payload that a header can announce.
const PROMISED: usize = (1 << 24) - 1;

/// A place where connections are accepted and run, each with the same budget.
struct Place {
    listener: TcpListener,
    local: Arc<LocalNode>,
    shared: Arc<Shared>,
    receive: Arc<Budget>,
    connections: JoinSet<()>,
    events: mpsc::Sender<Event>,
    /// Lengths of the messages that came through.
    messages: mpsc::Receiver<usize>,
}

/// Says how long each message was.
struct Lengths(mpsc::Sender<usize>);

impl ChannelInbox for Lengths {
    fn offer(&self, now: Instant, message: Inbound, _: HeldTime) -> ChannelOffer {
        self.offer_last(now, message);
        ChannelOffer::Offer(Offer::Taken)
    }

    fn offer_last(&self, _: Instant, message: Inbound) {
        self.0.try_send(message.payload.len()).expect("the test reads as much as is sent");
    }
}

/// Has no room, ever.
struct Full;

impl ChannelInbox for Full {
    fn offer(&self, now: Instant, message: Inbound, _: HeldTime) -> ChannelOffer {
        let until = now + Duration::from_secs(1);
        ChannelOffer::Offer(Offer::Hold { payload: message.payload, until, charged: true })
    }

    fn offer_last(&self, _: Instant, _: Inbound) {}
}

impl Place {
    async fn new(budget: usize) -> Self {
        Self::with(budget, Resource::Delivery.limit(MAX_MEMORY), true).await
    }

    /// `takes`: whether messages find room.
    async fn with(budget: usize, inbound: u64, takes: bool) -> Self {
        let (events, mut said) = mpsc::channel(64);
        let (lengths, messages) = mpsc::channel(64);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            while let Some(event) = said.recv().await {
                match event {
                    Event::Authenticated { reply, .. } => {
                        let echo = LocalCapability { name: "echo".into(), version: 1, message_count: 8 };
                        let _ = reply.send(Ok(vec![echo]));
                    }
                    Event::Negotiated { reply, .. } => {
                        let inbox: Box<dyn ChannelInbox> =
                            if takes { Box::new(Lengths(lengths.clone())) } else { Box::new(Full) };
                        let _ = reply.send(Ok(Open::Session(vec![inbox])));
                    }
                    Event::Heard { .. } | Event::ChannelClosed { .. } | Event::Closed { .. } => {}
                }
            }
        });
        let receive = Budget::new(Resource::Receive, budget as u64);
        let key = NodeKey::random(&mut StdRng::seed_from_u64(1000));
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            local: Arc::new(LocalNode::new(key, "place/v1")),
            shared: Arc::new(Shared {
                pool: BufferPool::default(),
                budget: ReceiveBudget::new(Arc::clone(&receive)),
                turns: Turns::among(1),
                bandwidth: Bandwidth::default(),
                inbound: Budget::new(Resource::Delivery, inbound),
                base: Arc::<BaseTotals>::default(),
            }),
            receive,
            connections,
            events,
            messages,
        }
    }

    fn public_key(&self) -> PublicKey {
        self.local.key.public()
    }

    /// A peer that has sent Hello.
    async fn peer(&mut self, seed: u64) -> Liar {
        let dial = TcpStream::connect(self.listener.local_addr().unwrap());
        let (dialed, accepted) = tokio::join!(dial, self.listener.accept());
        let connection = Connection {
            id: ConnectionId(seed),
            stream: accepted.unwrap().0,
            role: Role::Accept,
            local: Arc::clone(&self.local),
            rng: StdRng::seed_from_u64(seed),
            outbound: Outbound::alone(),
            traffic: Arc::default(),
            space: Arc::default(),
            control: mpsc::channel(1).1,
            events: self.events.clone(),
            shared: Arc::clone(&self.shared),
        };
        self.connections.spawn(connection.run());
        let mut peer = Liar::over(dialed.unwrap(), self.public_key(), seed);
        peer.shake_hands().await;
        peer.say_hello(&[("echo", 1)]).await;
        peer.hear_hello().await;
        peer
    }

    /// The bytes that are taken of the receive budget.
    fn taken(&self) -> usize {
        self.receive.used() as usize
    }
}

/// Promises the largest frame and sends so much of it.
async fn promise(peer: &mut Liar, sent: usize) {
    let header = peer.forger().header(PROMISED);
    peer.write(&header).await;
    let piece = peer.forger().piece(&vec![0; sent]);
    peer.write(&piece).await;
}

#[tokio::test]
async fn fifty_promises_of_16_mib_hold_what_was_sent() {
    const BUDGET: usize = 256 << 20;
    const SENT: usize = 100 * 1024;
    let mut place = Place::new(BUDGET).await;
    let mut peers = Vec::new();
    for seed in 0..50 {
        let mut peer = place.peer(seed).await;
        promise(&mut peer, SENT).await;
        peers.push(peer);
    }
    // Each buffer has a chunk that is not counted, and grows by doubling at most.
    eventually("all that was sent is held", async || {
        (place.taken() >= peers.len() * (SENT - CHUNK)).then_some(())
    })
    .await;
    let taken = place.taken();
    assert!(taken <= peers.len() * (2 * SENT + CHUNK), "{taken} bytes for {} promises", peers.len());
    let mut honest = place.peer(99).await;
    honest.send(FIRST, &vec![7; 300_000]).await;
    assert_eq!(soon("a message", place.messages.recv()).await, Some(300_000));

    // The bytes of incomplete messages are returned with the connection.
    drop(peers);
    eventually("the budget is whole again", async || (place.taken() == 0).then_some(())).await;
}

/// When the budget is used up, a peer that needs more than its chunk waits, a smaller one goes on, and returned bytes
/// are used.
#[tokio::test]
async fn the_budget_is_one_for_all_and_small_peers_do_not_need_it() {
    const BUDGET: usize = 512 * 1024;
    let mut place = Place::new(BUDGET).await;
    let mut greedy = Vec::new();
    for seed in 0..4 {
        let mut peer = place.peer(seed).await;
        promise(&mut peer, 300 * 1024).await;
        greedy.push(peer);
    }
    let mut small = place.peer(50).await;
    for size in [0, 1, 1000] {
        small.send(FIRST, &vec![9; size]).await;
        assert_eq!(soon("a message", place.messages.recv()).await, Some(size));
    }
    assert!(place.taken() <= BUDGET);
    drop(greedy);
    let mut large = place.peer(51).await;
    let mut payload = vec![0; 200_000];
    rand::RngCore::fill_bytes(&mut StdRng::seed_from_u64(1), &mut payload);
    large.send(FIRST, &payload).await;
    assert_eq!(soon("a message", place.messages.recv()).await, Some(200_000));
}

/// Peers that hold memory and send nothing more. Small messages pass them at once; for a large one they give way.
#[tokio::test]
async fn peers_that_send_nothing_more_give_way_to_a_large_message() {
    const BUDGET: usize = 4 << 20;
    let mut place = Place::new(BUDGET).await;
    let mut greedy = Vec::new();
    for seed in 0..6 {
        let mut peer = place.peer(seed).await;
        promise(&mut peer, 700 * 1024).await;
        greedy.push(peer);
    }
    eventually("three quarters of the budget are held", async || {
        (place.taken() >= BUDGET * 3 / 4).then_some(())
    })
    .await;
    let mut small = place.peer(50).await;
    let mut large = place.peer(51).await;
    let mut payload = vec![0; 2 << 20];
    rand::RngCore::fill_bytes(&mut StdRng::seed_from_u64(1), &mut payload);
    small.send(FIRST, &payload[..150_000]).await;
    assert_eq!(soon("a small message", place.messages.recv()).await, Some(150_000));
    large.send(FIRST, &payload).await;
    assert_eq!(soon("a large message", place.messages.recv()).await, Some(2 << 20));
    small.send(FIRST, &payload[..150_000]).await;
    assert_eq!(soon("a small message", place.messages.recv()).await, Some(150_000), "it stays");
}

/// Peers whose messages wait for an application that takes none: all of them together hold no more than the budget over
/// all applications and the message that crosses it, however many they are.
#[tokio::test]
async fn what_connections_hold_for_applications_is_bounded_over_all_of_them() {
    const MIB: u64 = 1 << 20;
    let mut place = Place::with(256 << 20, 32 * MIB, false).await;
    let mut peers = Vec::new();
    for seed in 0..12 {
        let mut peer = place.peer(seed).await;
        // 400 KB on the wire, which the kernel takes.
        peer.send(FIRST, &vec![0; 8 << 20]).await;
        peers.push(peer);
    }
    let inbound = Arc::clone(&place.shared.inbound);
    eventually("the budget is full", async || inbound.is_full().then_some(())).await;
    for _ in 0..20 {
        assert!(inbound.used() <= 41 * MIB, "{} MiB are held", inbound.used() / MIB);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(peers);
}
