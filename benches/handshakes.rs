//! The cost of a flood of handshakes for connections that only pass messages.
//!
//! A message a millisecond arrives on a socket, and a task waits for it, on a runtime with two workers. Meanwhile peers
//! knock, 50 at a time (what we let wait), each with a valid auth: the most expensive thing that a stranger can send.
//! Measured is how long a message takes from socket to task, quiet and flooded, once with handshakes that take turns
//! and once with all of them at once. The ratios are what counts. Those who knock run on the same two cores.
//!
//! `cargo bench --bench handshakes`

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "not part of the product")]

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::BytesMut;
use devp2pd::{
    budget::{Budget, Resource},
    net::{
        bandwidth::Bandwidth,
        buffers::{BufferPool, ReceiveBudget},
        connection::{Connection, ConnectionId, Event, Role, Shared},
        turns::Turns,
    },
    node::NodeKey,
    p2p::{BaseTotals, DisconnectReason, LocalNode, Outbound},
    rlpx::Initiator,
};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// Workers of the runtime: those of the smallest machine we are made for.
const WORKERS: usize = 2;

/// Who knocks at the same time: as many as may wait (`--max-pending-inbound`).
const KNOCKING: usize = 50;

/// How long each figure is measured.
const WINDOW: Duration = Duration::from_secs(3);

fn main() {
    println!("a message from socket to task, {WORKERS} workers, {KNOCKING} peers knocking");
    for (name, turns) in [("all handshakes at once", usize::MAX), ("handshakes take turns", WORKERS)] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .expect("a runtime");
        let quiet = runtime.block_on(async { tokio::spawn(messages(WINDOW)).await.expect("no panic") });
        let (done, noisy) = runtime.block_on(flood(turns));
        println!("{name}: {} handshakes/s", done / WINDOW.as_secs());
        for (share, label) in [(0.5, "p50"), (0.99, "p99"), (1.0, "max")] {
            let (floor, flooded) = (at(&quiet, share), at(&noisy, share));
            println!(
                "  {label} {floor:>10.1?} quiet {flooded:>10.1?} flooded, ratio {:.1}",
                flooded.as_secs_f64() / floor.as_secs_f64()
            );
        }
    }
}

fn at(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len() - 1;
    sorted[(last as f64 * share) as usize]
}

/// How long a message takes from a socket to the task that waits for it, sorted. Another thread writes one every
/// millisecond, so the receiving task has no influence on its time.
async fn messages(window: Duration) -> Vec<Duration> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let base = Instant::now();
    let writer = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(addr).expect("our own listener");
        stream.set_nodelay(true).expect("a TCP socket");
        while base.elapsed() < window {
            std::thread::sleep(Duration::from_millis(1));
            let nanos = u64::try_from(base.elapsed().as_nanos()).expect("seconds");
            stream.write_all(&nanos.to_be_bytes()).expect("the reader lives");
        }
    });
    let (mut stream, _) = listener.accept().await.expect("the writer connects");
    let mut delays = Vec::new();
    while let Ok(nanos) = stream.read_u64().await {
        delays.push(base.elapsed().saturating_sub(Duration::from_nanos(nanos)));
    }
    writer.join().expect("no panic");
    delays.sort_unstable();
    delays
}

/// The same while peers knock. Also returns how many handshakes were completed.
async fn flood(turns: usize) -> (u64, Vec<Duration>) {
    let mut rng = StdRng::seed_from_u64(1);
    let key = NodeKey::random(&mut rng);
    let mut auth = BytesMut::new();
    // RLPx does not notice a repeated auth, so one packet does for all.
    let _ = Initiator::start(&NodeKey::random(&mut rng), key.public(), &mut rng, &mut auth);
    let local = Arc::new(LocalNode::new(key, "bench/v1"));
    let shared = Arc::new(Shared {
        pool: BufferPool::default(),
        budget: ReceiveBudget::new(Budget::whole(Resource::Receive)),
        turns: Turns::among(turns.min(1 << 20)),
        bandwidth: Bandwidth::default(),
        inbound: Budget::whole(Resource::Delivery),
        base: Arc::<BaseTotals>::default(),
    });
    let (events, mut said) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(event) = said.recv().await {
            if let Event::Authenticated { reply, .. } = event {
                let _ = reply.send(Err(DisconnectReason::TooManyPeers));
            }
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    let accepting = tokio::spawn(async move {
        for number in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            let connection = Connection {
                id: ConnectionId(number),
                stream,
                role: Role::Accept,
                local: Arc::clone(&local),
                rng: StdRng::seed_from_u64(number),
                outbound: Outbound::alone(),
                traffic: Arc::default(),
                space: Arc::default(),
                control: mpsc::channel(1).1,
                events: events.clone(),
                shared: Arc::clone(&shared),
            };
            tokio::spawn(connection.run());
        }
    });
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let auth = auth.freeze();
    let knocking: Vec<_> = (0..KNOCKING)
        .map(|_| tokio::spawn(knock(addr, auth.clone(), Arc::clone(&stop), Arc::clone(&done))))
        .collect();
    let rounds = tokio::spawn(messages(WINDOW)).await.expect("no panic");
    stop.store(true, Ordering::Relaxed);
    accepting.abort();
    for task in knocking {
        task.abort();
    }
    (done.load(Ordering::Relaxed), rounds)
}

/// Connects, sends the auth, reads until the other side has closed, and begins anew.
async fn knock(addr: SocketAddr, auth: bytes::Bytes, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect(addr).await else { return };
        if stream.write_all(&auth).await.is_err() {
            continue;
        }
        let mut sink = Vec::new();
        if stream.read_to_end(&mut sink).await.is_ok_and(|count| count > 0) {
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}
