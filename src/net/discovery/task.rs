//! The loop of discovery's task: it handles sockets, timers, calls and seeds, one event at a time.

use std::{net::SocketAddr, num::NonZeroU32, time::Instant};

use bytes::BytesMut;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep_until,
};

use super::{
    Setup,
    pace::{Pace, share_of_strangers},
    queries::{Command, State},
};
use crate::{
    Now,
    discv4::{self, limits::Rates},
    discv5,
    discv5::Unmasker,
    kademlia::Contact,
    net::{
        clock,
        node_db::{NodeDb, StoredNode},
        udp::UdpPort,
    },
    node::{Reach, Record, local::Mapped, ration::Rate},
};

/// The number of seeds that are read from the database at once (geth: 30).
const SEEDS: usize = 30;

/// Discovery before it runs.
pub struct Task {
    state: State,
    port: Option<UdpPort>,
    unmasker: Option<Unmasker>,
    pace: Pace,
    commands: mpsc::Receiver<Command>,
    demand: watch::Receiver<usize>,
    mapped: watch::Receiver<Mapped>,
}

impl Task {
    pub(super) fn new(
        now: Now,
        setup: Setup,
        commands: mpsc::Receiver<Command>,
        record: watch::Sender<Record>,
    ) -> Self {
        let Setup {
            port,
            v4,
            v5,
            key,
            local,
            bootnodes_v4,
            bootnodes_v5,
            restrict,
            rate,
            db,
            demand,
            candidates,
            observer,
            mapped,
            mut rng,
        } = setup;
        let mut fork = || StdRng::seed_from_u64(rng.next_u64());
        let runs = port.is_some();
        let v4 = (v4 && runs).then(|| {
            let config =
                discv4::Config { restrict: restrict.clone(), bootnodes: bootnodes_v4, rates: v4_rates(rate) };
            discv4::Engine::new(now, config, key.clone(), local.record().clone(), fork())
        });
        let v5 = (v5 && runs).then(|| {
            let config = discv5::Config {
                restrict,
                bootnodes: bootnodes_v5,
                strangers_per_second: rate.map_or(discv5::STRANGERS_PER_SECOND, share_of_strangers),
                ..discv5::Config::default()
            };
            discv5::Engine::new(now, config, key, local.record().clone(), fork())
        });
        let unmasker = v5.as_ref().map(|engine| engine.unmasker().clone());
        let state = State::new(v4, v5, local, record, db, candidates, observer);
        Self { state, port, unmasker, pace: Pace::new(rate), commands, demand, mapped }
    }
}

/// Runs discovery until `stop` fires. The database is closed by its owner.
pub async fn run(task: Task, mut stop: oneshot::Receiver<()>) {
    let Task { mut state, mut port, unmasker, mut pace, mut commands, mut demand, mut mapped } = task;
    let mut timer = std::pin::pin!(sleep_until(clock::now().mono.into()));
    let mut out = BytesMut::new();
    let (seeds, mut seed_queue) = mpsc::channel::<Vec<StoredNode>>(1);
    set_demand(&mut state, clock::now(), *demand.borrow());
    loop {
        let now = clock::now();
        state.act(now);
        transmit(&mut state, port.as_mut(), &mut pace, now, &mut out);
        if std::mem::take(&mut state.seeds_wanted)
            && let Some(db) = state.db.clone()
        {
            fetch_seeds(db, seeds.clone());
        }
        let timeout = poll_timeout(&state, now);
        if let Some(at) = timeout {
            timer.as_mut().reset(at.into());
        }
        tokio::select! {
            _ = &mut stop => return,
            () = readable(port.as_ref()) => {
                if let Some(port) = &mut port {
                    receive(&mut state, port, unmasker.as_ref());
                }
            }
            () = timer.as_mut(), if timeout.is_some() => handle_timeout(&mut state, clock::now()),
            Some(command) = commands.recv() => command(&mut state, clock::now()),
            Ok(()) = demand.changed() => {
                let wanted = *demand.borrow_and_update();
                set_demand(&mut state, clock::now(), wanted);
            }
            Ok(()) = mapped.changed() => {
                let told = *mapped.borrow_and_update();
                let changed = state.local.set_mapped(told);
                state.publish(changed);
            }
            Some(nodes) = seed_queue.recv() => add_seeds(&mut state, clock::now(), nodes),
        }
    }
}

async fn readable(port: Option<&UdpPort>) {
    match port {
        Some(port) => port.readable().await,
        None => std::future::pending().await,
    }
}

/// Gives datagrams that unmask to discv5 to discv5, and the rest to discv4, which decides whether they are noise.
fn receive(state: &mut State, port: &mut UdpPort, unmasker: Option<&Unmasker>) {
    let now = clock::now();
    port.receive(|from, bytes| {
        if let (Some(engine), Some(true)) =
            (&mut state.v5, unmasker.map(|unmasker| unmasker.looks_like_discv5(bytes)))
        {
            state.counters.v5 += 1;
            engine.handle_datagram(now, from, bytes);
        } else if let Some(engine) = &mut state.v4 {
            match engine.handle_datagram(now, from, bytes) {
                discv4::Verdict::TooShort
                | discv4::Verdict::TooLong
                | discv4::Verdict::UnknownType
                | discv4::Verdict::NotAList
                | discv4::Verdict::WrongHash => state.counters.noise += 1,
                _ => state.counters.v4 += 1,
            }
        } else {
            state.counters.noise += 1;
        }
    });
}

fn transmit(state: &mut State, port: Option<&mut UdpPort>, pace: &mut Pace, now: Now, out: &mut BytesMut) {
    let Some(port) = port else { return };
    // An engine's answer goes back to the address of the request, which only the route limits.
    let reach = Reach::new(Vec::new(), state.local.record());
    let mut send = |to: SocketAddr, out: &mut BytesMut| {
        if !reach.carries(to.ip()) {
            state.counters.unroutable += 1;
        } else if !pace.allows(now.mono) {
            state.counters.over_rate += 1;
        } else {
            port.send(to, out);
        }
        out.clear();
    };
    if let Some(engine) = &mut state.v4 {
        while let Some(to) = engine.poll_transmit(now, out) {
            send(to, out);
        }
    }
    if let Some(engine) = &mut state.v5 {
        while let Some(to) = engine.poll_transmit(now, out) {
            send(to, out);
        }
    }
    port.flush();
    state.counters.sockets = port.counters();
}

/// The packets that strangers may make discv4 check, and so answer.
fn v4_rates(rate: Option<NonZeroU32>) -> Rates {
    let rates = Rates::default();
    match rate.map(share_of_strangers) {
        Some(share) => Rates { strangers: Rate::per_second(share), ..rates },
        None => rates,
    }
}

fn handle_timeout(state: &mut State, now: Now) {
    let moved = state.local.handle_timeout(now);
    state.publish(moved);
    if let Some(engine) = &mut state.v4 {
        engine.handle_timeout(now);
    }
    if let Some(engine) = &mut state.v5 {
        engine.handle_timeout(now);
    }
}

fn poll_timeout(state: &State, now: Now) -> Option<Instant> {
    let v4 = state.v4.as_ref().and_then(discv4::Engine::poll_timeout);
    let v5 = state.v5.as_ref().and_then(discv5::Engine::poll_timeout);
    [v4, v5, state.local.poll_timeout(now)].into_iter().flatten().min()
}

fn set_demand(state: &mut State, now: Now, wanted: usize) {
    if let Some(engine) = &mut state.v4 {
        engine.set_demand(now, wanted);
    }
    if let Some(engine) = &mut state.v5 {
        engine.set_demand(now, wanted);
    }
}

/// Reads seeds from the database in a task of its own: a slow disk must not delay packets.
fn fetch_seeds(db: NodeDb, seeds: mpsc::Sender<Vec<StoredNode>>) {
    tokio::spawn(async move {
        let nodes = db.seeds(SEEDS).await;
        // A second answer while the first one waits brings nothing new.
        let _ = seeds.try_send(nodes);
    });
}

fn add_seeds(state: &mut State, now: Now, nodes: Vec<StoredNode>) {
    for node in nodes {
        let Some(contact) = Contact::from_record(node.record) else { continue };
        if let Some(engine) = &mut state.v4 {
            engine.add_seed(now, contact.clone());
        }
        if let Some(engine) = &mut state.v5 {
            engine.add_seed(now, contact);
        }
    }
}
