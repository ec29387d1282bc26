//! The rows of the flood table: the processes of each, its promise, and how the result is judged.

use std::{
    pin::Pin,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use devp2pd::rpc::proto::overflow_policy::Action;

use crate::{
    application::{Application, Reading, Seen, Until, noise},
    link,
    peer::{Peer, Stack},
    processes::Sidecar,
};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// The largest payload of devp2p.
const LARGEST: usize = 16 * MIB - 1;
/// go-ethereum gives up a write that takes longer.
const GETH_WRITE: Duration = Duration::from_secs(20);
/// The codes of geth-peer's protocol: a flood's message, and a request for bytes.
const FLOOD: u32 = 2;
const ASK: u32 = 3;

/// The rows to run, and for how long.
pub(crate) struct Plan {
    pub(crate) seconds: u64,
    /// By name; empty for all.
    pub(crate) rows: Vec<String>,
}

impl Plan {
    fn span(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// The span of one of several phases of a row: the result of a phase does not change after this long.
    fn phase(&self) -> Duration {
        Duration::from_secs(self.seconds.min(40))
    }
}

/// One line of the table.
pub(crate) struct Outcome {
    what: String,
    sent: u64,
    delivered: u64,
    lost: u64,
    note: String,
    holds: bool,
}

type Running<'a> = Pin<Box<dyn Future<Output = Vec<Outcome>> + 'a>>;

/// A group of lines.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    run: for<'a> fn(&'a Plan) -> Running<'a>,
}

/// All rows.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "full-speed",
        what: "a reader at full speed, every size, both kinds of credit",
        run: |p| Box::pin(full_speed(p)),
    },
    Row {
        name: "steady",
        what: "a steady reader of a peer of another stack that writes without end",
        run: |p| Box::pin(steady(p)),
    },
    Row {
        name: "asks",
        what: "pipelined requests whose answers are read at 20 MB/s",
        run: |p| Box::pin(asks(p)),
    },
    Row {
        name: "trickle",
        what: "a reader of one message a second, with each policy",
        run: |p| Box::pin(trickle(p)),
    },
    Row { name: "dead", what: "a reader that reads nothing", run: |p| Box::pin(dead(p)) },
    Row {
        name: "beside",
        what: "a fast reader beside a trickling one on the same connection",
        run: |p| Box::pin(beside(p)),
    },
    Row { name: "fifty", what: "fifty go-ethereum nodes flood one reader", run: |p| Box::pin(fifty(p)) },
    Row { name: "two-fast", what: "two fast readers on one connection", run: |p| Box::pin(two_fast(p)) },
    Row { name: "slow-link", what: "a fast reader behind a link of 1 MB/s", run: |p| Box::pin(slow_link(p)) },
    Row {
        name: "both-ways",
        what: "a fast reader while large messages go out on the same connection",
        run: |p| Box::pin(both_ways(p)),
    },
    Row {
        name: "both-stop",
        what: "two applications that flood each other and stop reading",
        run: |p| Box::pin(both_stop(p)),
    },
];

/// Runs the rows one after the other and prints the table. Returns how many lines do not hold.
pub(crate) async fn run(plan: &Plan) -> usize {
    println!(
        "{} s a flood, {} cores",
        plan.seconds,
        std::thread::available_parallelism().map_or(0, usize::from)
    );
    let mut failed = 0;
    for row in ROWS {
        if !plan.rows.is_empty() && plan.rows.iter().all(|name| name != row.name) {
            continue;
        }
        for Outcome { what, sent, delivered, lost, note, holds } in (row.run)(plan).await {
            failed += usize::from(!holds);
            let word = if holds { "ok" } else { "FAILED" };
            let text = format!("flood_{}: {what}", row.name.replace('-', "_"));
            println!("{word:7} {text:75} sent {sent:9}  delivered {delivered:9}  lost {lost:7}  {note}");
        }
    }
    println!("{failed} lines do not hold");
    failed
}

fn mb(bytes: u64, time: Duration) -> String {
    format!("{:.1} MB/s", bytes as f64 / time.as_secs_f64() / 1e6)
}

fn size_name(size: usize) -> String {
    match size {
        LARGEST => "16 MiB - 1".to_owned(),
        size if size % MIB == 0 => format!("{} MiB", size / MIB),
        size if size >= MIB => format!("{:.1} MB", size as f64 / 1e6),
        size if size >= KIB => format!("{} KiB", size / KIB),
        size => format!("{size} B"),
    }
}

/// A line that promises no loss.
fn lossless(what: String, sent: u64, seen: &Seen, all: bool, note: String) -> Outcome {
    let (delivered, lost) = (seen.messages(), seen.lost());
    let stands = seen.closed.load(Ordering::Relaxed) == 0;
    let holds = all && sent > 0 && lost == 0 && delivered == sent && stands;
    let note = if stands { note } else { format!("{note} the connection ended") };
    Outcome { what, sent, delivered, lost, note, holds }
}

/// Two sidecars that are connected.
async fn pair() -> (Sidecar, Sidecar) {
    let (a, b) = (Sidecar::start(&[]).await, Sidecar::start(&[]).await);
    b.dial(&a.enode).await;
    (a, b)
}

async fn full_speed(plan: &Plan) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (credit, reading) in [("by hand", Reading::BY_HAND), ("auto_credit", Reading::AUTO)] {
        for size in [100, KIB, 16 * KIB, 2 * MIB, LARGEST] {
            let (a, b) = pair().await;
            let mut reader = Application::attach(&a, "reader", "load", reading).await;
            let mut sender = Application::attach(&b, "sender", "load", Reading::AUTO).await;
            reader.channel().await;
            let channel = sender.channel().await;
            let started = Instant::now();
            let sent = sender.pour(channel, FLOOD, &noise(size), Until::Time(started + plan.span())).await;
            let all = reader.seen.reaches(sent).await;
            let note = mb(reader.seen.bytes.load(Ordering::Relaxed), started.elapsed());
            outcomes.push(lossless(format!("{}, {credit}", size_name(size)), sent, &reader.seen, all, note));
        }
    }
    outcomes
}

/// A sidecar with one application, and a peer of another stack.
async fn with_peer(stack: Stack, reading: Reading) -> (Sidecar, Application, u32, Peer) {
    let sidecar = Sidecar::start(&[]).await;
    let mut reader = Application::attach(&sidecar, "reader", "load", reading).await;
    let peer = Peer::start(stack);
    sidecar.dial(&peer.enode).await;
    let channel = reader.channel().await;
    peer.wait_peer();
    (sidecar, reader, channel, peer)
}

/// All readers at once: each takes a few MB/s at most.
async fn steady(plan: &Plan) -> Vec<Outcome> {
    let cases = [
        (Stack::Geth, 3_000_000, 16 * KIB),
        (Stack::Geth, 1_000_000, 16 * KIB),
        (Stack::Geth, 300_000, 16 * KIB),
        (Stack::Geth, 3_000_000, 5_000_000),
        (Stack::Geth, 1_000_000, 5_000_000),
        (Stack::EthereumJs, 3_000_000, 16 * KIB),
        (Stack::EthereumJs, 3_000_000, 5_000_000),
    ];
    let seconds = if plan.seconds >= 60 { 180 } else { plan.seconds.max(30) };
    let mut tasks = tokio::task::JoinSet::new();
    for (order, (stack, pace, size)) in cases.into_iter().enumerate() {
        tasks.spawn(async move {
            let (sidecar, reader, _, mut peer) = with_peer(stack, Reading::BY_HAND).await;
            reader.seen.pace.store(pace, Ordering::Relaxed);
            peer.pour(size, seconds);
            // A write may wait for a reader that is behind by all buffers on the way.
            let (poured, peer) = peer.poured(Duration::from_secs(seconds + 60)).await;
            let what = format!("{:.1} MB/s of {} from {}", pace as f64 / 1e6, size_name(size), stack.name());
            let Some(poured) = poured else {
                return (order, lossless(what, 0, &reader.seen, false, "the flood did not end".to_owned()));
            };
            let stands = sidecar.peer(&peer.enode).await.is_some();
            reader.seen.pace.store(0, Ordering::Relaxed);
            let all = reader.seen.reaches(poured.sent).await;
            let write = poured.longest_write;
            let note =
                format!("longest write {:.1} s {}", write.as_secs_f64(), poured.error.unwrap_or_default());
            let mut outcome = lossless(what, poured.sent, &reader.seen, all, note);
            outcome.holds &= stands && write < GETH_WRITE;
            (order, outcome)
        });
    }
    let mut outcomes = tasks.join_all().await;
    outcomes.sort_by_key(|(order, _)| *order);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn asks(plan: &Plan) -> Vec<Outcome> {
    let count = if plan.seconds >= 60 { 20_000 } else { 200 * plan.seconds };
    let (_sidecar, mut reader, channel, mut geth) = with_peer(Stack::Geth, Reading::BY_HAND).await;
    reader.seen.pace.store(20_000_000, Ordering::Relaxed);
    let mut request = vec![0; 100];
    request[..4].copy_from_slice(&100_000_u32.to_be_bytes());
    let sent = reader.pour(channel, ASK, &request.into(), Until::Count(count)).await;
    let all = reader.seen.reaches(sent).await;
    // It is kept until the line is judged: its end would close the channel.
    let (write, _geth) = tokio::task::spawn_blocking(move || (geth.longest_write(), geth)).await.unwrap();
    let note = format!("longest write {:.1} s", write.as_secs_f64());
    vec![lossless(format!("{count} requests of 100 KB answers at 20 MB/s"), sent, &reader.seen, all, note)]
}

async fn trickle(_: &Plan) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (name, action) in [("drop", Action::DropAndReport), ("wait", Action::Wait)] {
        let seconds = 60;
        let (sidecar, reader, _, mut geth) =
            with_peer(Stack::Geth, Reading { auto_credit: false, action }).await;
        reader.seen.pace.store(16 * KIB as u64, Ordering::Relaxed);
        geth.pour(16 * KIB, seconds);
        let (poured, geth) = geth.poured(Duration::from_secs(seconds + 60)).await;
        let stands = sidecar.peer(&geth.enode).await.is_some();
        reader.seen.pace.store(0, Ordering::Relaxed);
        let what = format!("one message a second, policy {name}");
        let Some(poured) = poured else {
            outcomes.push(lossless(
                what,
                0,
                &reader.seen,
                false,
                "go-ethereum's flood did not end".to_owned(),
            ));
            continue;
        };
        let note = format!(
            "longest write {:.1} s, the connection {}",
            poured.longest_write.as_secs_f64(),
            if stands { "stands" } else { "has ended" }
        );
        let (sent, lossy) = (poured.sent, action == Action::DropAndReport);
        // A peer that gave up has more messages in its buffers than it will ever deliver.
        let all = if stands { reader.seen.reaches(sent).await } else { true };
        let (delivered, lost) = (reader.seen.messages(), reader.seen.lost());
        let holds = all
            && if lossy {
                stands && lost > 0 && delivered + lost == sent
            } else {
                lost == 0 && delivered > 0
            };
        outcomes.push(Outcome { what, sent, delivered, lost, note, holds });
    }
    outcomes
}

async fn dead(_: &Plan) -> Vec<Outcome> {
    let seconds = 40;
    let (sidecar, reader, _, mut geth) = with_peer(Stack::Geth, Reading::BY_HAND).await;
    reader.seen.stopped.store(true, Ordering::Relaxed);
    geth.pour(16 * KIB, seconds);
    let (poured, geth) = geth.poured(Duration::from_secs(seconds + 60)).await;
    let stands = sidecar.peer(&geth.enode).await.is_some();
    reader.seen.stopped.store(false, Ordering::Relaxed);
    let what = "a reader that reads nothing".to_owned();
    let Some(poured) = poured else {
        return vec![lossless(what, 0, &reader.seen, false, "go-ethereum's flood did not end".to_owned())];
    };
    let all = reader.seen.reaches(poured.sent).await;
    let (sent, delivered, lost) = (poured.sent, reader.seen.messages(), reader.seen.lost());
    let note = format!("longest write {:.1} s", poured.longest_write.as_secs_f64());
    let holds = all && stands && lost > 0 && delivered + lost == sent && poured.longest_write < GETH_WRITE;
    vec![Outcome { what, sent, delivered, lost, note, holds }]
}

/// Fifty go-ethereum nodes that all flood one application.
async fn fifty(plan: &Plan) -> Vec<Outcome> {
    const NODES: usize = 50;
    let sidecar = Sidecar::start(&["--maxpeers", "100", "--inbound-throttle", "0s"]).await;
    let mut reader = Application::attach(&sidecar, "reader", "load", Reading::BY_HAND).await;
    let mut peers = Peer::start_many(NODES, &sidecar.enode);
    for _ in 0..NODES {
        reader.channel().await;
        peers.wait_peer();
    }
    let started = Instant::now();
    peers.pour(16 * KIB, plan.seconds);
    let (mut sent, mut slowest, mut errors) = (0, Duration::ZERO, Vec::new());
    for _ in 0..NODES {
        let (poured, same) = peers.poured(Duration::from_secs(plan.seconds + 60)).await;
        peers = same;
        match poured {
            Some(poured) => {
                sent += poured.sent;
                slowest = slowest.max(poured.longest_write);
                errors.extend(poured.error);
            }
            None => errors.push("a flood did not end".to_owned()),
        }
    }
    let all = reader.seen.reaches(sent).await;
    let rate = mb(reader.seen.bytes.load(Ordering::Relaxed), started.elapsed());
    let note = format!("{rate}, longest write {:.1} s {}", slowest.as_secs_f64(), errors.join(", "));
    let mut outcome = lossless(
        format!("{NODES} go-ethereum nodes, 16 KiB"),
        sent,
        &reader.seen,
        all && errors.is_empty(),
        note,
    );
    outcome.holds &= slowest < GETH_WRITE;
    vec![outcome]
}

/// Two applications on one sidecar, and one on the other that sends to both.
struct Shared {
    _sidecars: (Sidecar, Sidecar),
    readers: [Application; 2],
    senders: [(Application, u32); 2],
}

impl Shared {
    async fn start() -> Self {
        let (a, b) = (Sidecar::start(&[]).await, Sidecar::start(&[]).await);
        let mut readers = [
            Application::attach(&a, "first", "alpha", Reading::BY_HAND).await,
            Application::attach(&a, "second", "beta", Reading::BY_HAND).await,
        ];
        let mut senders = [
            Application::attach(&b, "to-first", "alpha", Reading::AUTO).await,
            Application::attach(&b, "to-second", "beta", Reading::AUTO).await,
        ];
        b.dial(&a.enode).await;
        let mut channels = [0; 2];
        for (channel, (reader, sender)) in channels.iter_mut().zip(readers.iter_mut().zip(&mut senders)) {
            reader.channel().await;
            *channel = sender.channel().await;
        }
        let [first, second] = senders;
        let senders = [(first, channels[0]), (second, channels[1])];
        Self { _sidecars: (a, b), readers, senders }
    }
}

/// The peer floods both channels all the time. The fast reader's rate is measured beside one that reads as fast, then
/// beside one that takes a message a second, then beside a fast one again. The middle is compared with the mean of both
/// ends.
async fn beside(plan: &Plan) -> Vec<Outcome> {
    let mut shared = Shared::start().await;
    let payload = noise(16 * KIB);
    let [other, fast] = &shared.readers;
    let [(to_other, other_channel), (to_fast, fast_channel)] = &mut shared.senders;
    let (mut rates, mut sent) = ([0.0; 3], 0);
    for (rate, pace) in rates.iter_mut().zip([0, 16 * KIB as u64, 0]) {
        other.seen.pace.store(pace, Ordering::Relaxed);
        let started = Instant::now();
        let until = Until::Time(started + plan.phase());
        let before = fast.seen.messages();
        let (more, _) = tokio::join!(
            to_fast.pour(*fast_channel, FLOOD, &payload, until),
            to_other.pour(*other_channel, FLOOD, &payload, until)
        );
        sent += more;
        *rate = (fast.seen.messages() - before) as f64 / started.elapsed().as_secs_f64();
    }
    let all = fast.seen.reaches(sent).await;
    let share = rates[1] * 2.0 / (rates[0] + rates[2]);
    let note = format!("{:.0} % of its rate beside a fast one", share * 100.0);
    let mut outcome =
        lossless("a fast reader beside one message a second".to_owned(), sent, &fast.seen, all, note);
    // A short phase is a noisy measure, and must not fail a gate. It then has to show only that nothing is blocked.
    let least = if plan.phase() >= Duration::from_secs(40) { 0.8 } else { 0.5 };
    outcome.holds &= share >= least && other.seen.closed.load(Ordering::Relaxed) == 0;
    vec![outcome]
}

async fn two_fast(plan: &Plan) -> Vec<Outcome> {
    let mut shared = Shared::start().await;
    let payload = noise(16 * KIB);
    let until = Until::Time(Instant::now() + plan.span());
    let [(first, one), (second, two)] = &mut shared.senders;
    let sent: [u64; 2] =
        tokio::join!(first.pour(*one, FLOOD, &payload, until), second.pour(*two, FLOOD, &payload, until))
            .into();
    let mut outcomes = Vec::new();
    for ((name, reader), sent) in ["first", "second"].into_iter().zip(&shared.readers).zip(sent) {
        let all = reader.seen.reaches(sent).await;
        outcomes.push(lossless(format!("{name} of two, 16 KiB"), sent, &reader.seen, all, String::new()));
    }
    outcomes
}

async fn slow_link(plan: &Plan) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for size in [KIB, 5_000_000] {
        let (a, b) = (Sidecar::start(&[]).await, Sidecar::start(&[]).await);
        let at = a.enode.rfind('@').unwrap();
        let address = a.enode[at + 1..].split('?').next().unwrap().parse().unwrap();
        let proxy = link::slow(address, 1e6).await;
        b.dial(&format!("{}@{proxy}", &a.enode[..at])).await;
        let mut reader = Application::attach(&a, "reader", "load", Reading::BY_HAND).await;
        let mut sender = Application::attach(&b, "sender", "load", Reading::AUTO).await;
        reader.channel().await;
        let channel = sender.channel().await;
        let until = Until::Time(Instant::now() + plan.phase());
        let sent = sender.pour(channel, FLOOD, &noise(size), until).await;
        let all = reader.seen.reaches(sent).await;
        let what = format!("{} over 1 MB/s", size_name(size));
        outcomes.push(lossless(what, sent, &reader.seen, all, String::new()));
    }
    outcomes
}

async fn both_ways(plan: &Plan) -> Vec<Outcome> {
    let (a, b) = pair().await;
    let mut first = Application::attach(&a, "first", "load", Reading::BY_HAND).await;
    let mut second = Application::attach(&b, "second", "load", Reading::BY_HAND).await;
    let (one, two) = (first.channel().await, second.channel().await);
    let until = Until::Time(Instant::now() + plan.span());
    let (large, small) = (noise(LARGEST), noise(16 * KIB));
    let (out, back) =
        tokio::join!(first.pour(one, FLOOD, &large, until), second.pour(two, FLOOD, &small, until));
    let (all_out, all_back) = (second.seen.reaches(out).await, first.seen.reaches(back).await);
    vec![
        lossless("16 KiB in while 16 MiB go out".to_owned(), back, &first.seen, all_back, String::new()),
        lossless("16 MiB out while 16 KiB come in".to_owned(), out, &second.seen, all_out, String::new()),
    ]
}

async fn both_stop(plan: &Plan) -> Vec<Outcome> {
    let (a, b) = pair().await;
    let mut first = Application::attach(&a, "first", "load", Reading::BY_HAND).await;
    let mut second = Application::attach(&b, "second", "load", Reading::BY_HAND).await;
    let (one, two) = (first.channel().await, second.channel().await);
    // A sender needs its credit, which comes on the stream that is not read: its windows fill, and it waits.
    for seen in [&first.seen, &second.seen] {
        seen.stopped.store(true, Ordering::Relaxed);
    }
    let payload = noise(16 * KIB);
    let stop = Duration::from_secs(20);
    let until = Until::Time(Instant::now() + stop + plan.phase());
    let seens = [std::sync::Arc::clone(&first.seen), std::sync::Arc::clone(&second.seen)];
    let wake = async {
        tokio::time::sleep(stop).await;
        seens.iter().for_each(|seen| seen.stopped.store(false, Ordering::Relaxed));
    };
    let (out, back, ()) =
        tokio::join!(first.pour(one, FLOOD, &payload, until), second.pour(two, FLOOD, &payload, until), wake);
    let mut outcomes = Vec::new();
    for (name, sent, seen) in [("first", back, &first.seen), ("second", out, &second.seen)] {
        let all = seen.reaches(sent).await;
        let (delivered, lost) = (seen.messages(), seen.lost());
        let stands = seen.closed.load(Ordering::Relaxed) == 0;
        // It went on: far more came than the windows and queues on the way hold.
        let holds = all && stands && delivered + lost == sent && sent > 1000;
        let what = format!("both stop for {} s, then read: {name}", stop.as_secs());
        outcomes.push(Outcome { what, sent, delivered, lost, note: String::new(), holds });
    }
    outcomes
}
