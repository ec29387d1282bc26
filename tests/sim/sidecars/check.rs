//! The conditions that must hold: after every step of a switch, after the quiet time, and when all sidecars have
//! stopped.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use devp2pd::{NodeId, Now, node::RegistrationId, p2p::session::ConnectionId, switch::views::PeerState};

use super::{
    ledger::{SessionKey, Told},
    link::Owner,
    sidecar::{Phase, Process, Sidecar},
    world::World,
};

/// Checks the conditions that hold after every step of a switch.
pub(super) fn always(world: &mut World, n: usize) {
    let World { net, sidecars, .. } = world;
    let (now, run) = (net.now, sidecars[n].run);
    let Some(process) = &mut sidecars[n].process else { return };
    let peers = process.engine.peers().all();
    let nodes: BTreeSet<NodeId> = peers.iter().map(|peer| peer.session.node_id).collect();
    assert_eq!(nodes.len(), peers.len(), "two sessions with one node");
    let open: BTreeSet<(NodeId, ConnectionId)> =
        peers.iter().map(|peer| (peer.session.node_id, peer.session.id)).collect();
    let counted: BTreeSet<_> = process.engine.peers().counted().into_iter().collect();
    // A session that the policy ends is no peer from then on, but it is a session until its connection has ended.
    assert!(counted.is_subset(&open), "the peers of the policy are sessions: {counted:?}, {open:?}");
    let told: BTreeSet<_> = net
        .ledger
        .open_sessions(n, run)
        .map(|(_, known)| (known.session.node_id, known.session.id))
        .collect();
    assert_eq!(told, open, "each session is told when it opens and when it ends");
    let alive = process.connections.len() + process.ends_under_way();
    assert_eq!(process.engine.connections(), alive, "the connections of the switch are those that run");
    slots(now, process);
    let shown = process.views.peers().read(|views| {
        let connected = |state: &PeerState| matches!(state, PeerState::Connected(_));
        let shown = nodes.iter().filter(|node| views.peers.get(node).is_some_and(|state| connected(state)));
        (shown.count(), views.peers.len())
    });
    assert_eq!(shown, (nodes.len(), nodes.len()), "watchers see the peers");
    let registrations = process.engine.registrations().registrations(now);
    process.views.registrations().read(|views| {
        assert_eq!(views.len(), registrations.len(), "watchers see the registrations");
        for registration in &registrations {
            let shown = views.get(&registration.id).map(|shown| (shown.state, shown.open_channels));
            assert_eq!(shown, Some((registration.state, registration.open_channels)));
        }
    });
    let clients: BTreeSet<_> =
        registrations.iter().map(|registration| Arc::clone(&registration.spec.client_id)).collect();
    assert_eq!(clients, process.registered, "each registration is told when it begins and when it ends");
    let channels: usize = registrations.iter().map(|registration| registration.open_channels).sum();
    let ids: BTreeSet<RegistrationId> = registrations.iter().map(|registration| registration.id).collect();
    let led = peers.iter().flat_map(|peer| &peer.session.channels);
    let led = led.filter(|channel| ids.contains(&channel.owner)).count();
    assert!(channels <= led, "a channel without a session");
}

/// Checks that the peers that take slots are those that the policy counts.
fn slots(now: Now, process: &mut Process) {
    let counted = process.engine.peers().counted();
    let mut peers = process.engine.peers().all();
    peers.retain(|peer| counted.contains(&(peer.session.node_id, peer.session.id)));
    let by = |inbound| {
        let mut of = peers.iter().filter(|peer| peer.session.inbound == inbound).collect::<Vec<_>>();
        of.retain(|peer| !peer.is_static && !peer.is_trusted);
        of.len()
    };
    let (inbound, dialed) = (by(true), by(false));
    let summary = process.engine.peers().summary(now);
    assert_eq!((summary.inbound, summary.dialed), (inbound, dialed), "the slots in use are those of peers");
}

/// Whether no connection is being made, and none is ending.
pub(super) fn is_still(world: &World) -> bool {
    world.sidecars.iter().all(|sidecar| {
        let open = world.net.ledger.open_sessions(sidecar.index, sidecar.run).count();
        sidecar
            .process
            .as_ref()
            .is_some_and(|process| process.connections.len() == open && process.engine.connections() == open)
    })
}

/// Checks the conditions that hold after the quiet time, in which all applications run and read.
pub(super) fn settled(world: &mut World) {
    assert!(world.liars.is_empty(), "every connection of a liar has ended");
    for n in 0..world.sidecars.len() {
        always(world, n);
        assert_eq!(world.sidecars[n].phase, Phase::Up);
        sessions(world, n);
        told(world, n);
        let sidecar = &mut world.sidecars[n];
        let Some(process) = &mut sidecar.process else { panic!("it runs") };
        assert!(process.calls.is_empty(), "a call has no answer");
        let counted = process.engine.peers().counted().len();
        assert_eq!(counted, process.engine.peers().all().len(), "the peers of the policy are the sessions");
        let lists = process.engine.peers().static_peers(world.net.now);
        let by_call =
            lists.iter().filter(|entry| entry.as_static == Some(devp2pd::policy::dial::ListSource::Call));
        assert_eq!(
            by_call.count(),
            sidecar.kept().static_peers.len(),
            "the lists on the disk are the newest"
        );
    }
    for application in &world.applications {
        application.check_quiet();
        assert!(application.is_attached(), "an application that comes back is let in");
    }
    connected(world);
    let running: usize = world
        .sidecars
        .iter()
        .filter_map(|sidecar| sidecar.process.as_ref())
        .map(|process| process.connections.len())
        .sum();
    assert_eq!(running, 2 * world.net.links.len(), "every connection has two ends");
}

/// Checks that both ends of every connection are sessions with each other, and that all messages have arrived.
fn sessions(world: &mut World, n: usize) {
    let (ledger, links) = (&world.net.ledger, &world.net.links);
    let sidecar = &world.sidecars[n];
    let Some(process) = &sidecar.process else { return };
    let open: Vec<_> = ledger.open_sessions(n, sidecar.run).collect();
    assert_eq!(open.len(), process.connections.len(), "every connection is a session");
    for (key, known) in open {
        let connection = &process.connections[&known.session.id];
        assert!(
            connection.is_open() && links.is_whole(known.socket),
            "a session without a connection: {key:?}: {}",
            connection.state(world.net.now, links)
        );
        let Some(Owner::Sidecar { index, run, connection }) = known.across else {
            panic!("a liar is a peer")
        };
        let there = &world.sidecars[index];
        assert_eq!(known.session.node_id, there.id());
        assert_eq!(run, there.run, "a session with a sidecar that is gone");
        let far = ledger.sessions.get(&SessionKey { sidecar: index, run, connection });
        let far = far.filter(|far| !far.ended).expect("the other end is a session as well");
        for channel in &known.session.channels {
            let told = ledger.told.get(&(n, sidecar.run, channel.owner));
            let tally = told.and_then(|told| told.channels.get(&(key.connection, Arc::clone(&channel.name))));
            if tally.is_none_or(|tally| tally.closed) {
                continue; // its application does not have it open
            }
            let progress = known.session.outbound.progress(channel.index);
            assert_eq!(progress.unwritten(), 0, "all messages are written");
            let accepted = ledger.accepted_on(*key, &channel.name);
            assert_eq!(
                accepted,
                progress.stream.written + progress.call.written,
                "{key:?}, {}",
                channel.name
            );
            let there = far.session.channel(&channel.name).expect("both share it");
            assert_eq!(far.session.traffic.received_on(there.index).0, accepted, "and all have come");
        }
    }
}

/// Checks that each message that arrived for a registration was counted once: delivered, reported in a gap, or
/// discarded.
fn told(world: &mut World, n: usize) {
    let World { net, sidecars, applications, .. } = world;
    let run = sidecars[n].run;
    let Some(process) = &mut sidecars[n].process else { return };
    let discarded: BTreeMap<Arc<str>, u64> = process
        .engine
        .metrics(net.now)
        .applications
        .into_iter()
        .map(|(client, application)| (client, application.discarded))
        .collect();
    let mut used = BTreeSet::new();
    for registration in process.engine.registrations().registrations(net.now) {
        assert_eq!(registration.waiting_bytes, 0, "all that waited was read");
        let owned = net.ledger.sessions.iter().filter(|(key, _)| (key.sidecar, key.run) == (n, run));
        let mut came = 0;
        let mut open = BTreeSet::new();
        for (_, known) in owned {
            for channel in known.session.channels.iter().filter(|channel| channel.owner == registration.id) {
                came += known.session.traffic.received_on(channel.index).0;
                if !known.ended {
                    open.insert((known.session.id.0, Arc::clone(&channel.name)));
                }
            }
        }
        let nothing = Told::default();
        let told = net.ledger.told.get(&(n, run, registration.id)).unwrap_or(&nothing);
        let positions: u64 = told.channels.values().map(|tally| tally.position).sum();
        let discarded = discarded.get(&registration.spec.client_id).copied().unwrap_or_default();
        assert_eq!(positions + told.folded + discarded, came, "messages of {}", registration.spec.client_id);
        for ((session, name), tally) in &told.channels {
            let ended = net.ledger.sessions[&SessionKey { sidecar: n, run, connection: *session }].ended;
            assert!(!ended || tally.closed, "the end of {name} on session {session} was not told");
        }
        used.extend(
            told.channels.iter().filter(|(_, tally)| !tally.closed).map(|((session, _), _)| *session),
        );
        let application = applications.iter().find(|have| have.client() == registration.spec.client_id);
        let Some(application) = application else { continue };
        let known: BTreeSet<_> = application.open_channels().into_iter().collect();
        assert_eq!(known.len(), registration.open_channels, "its stream knows its channels");
        assert!(known.is_subset(&open));
    }
    for (key, _) in net.ledger.open_sessions(n, run) {
        assert!(used.contains(&key.connection), "no application uses the session {key:?}");
    }
}

/// Checks that static peers that share a protocol are connected.
fn connected(world: &mut World) {
    let speaks: Vec<BTreeSet<(String, u32)>> = world
        .sidecars
        .iter_mut()
        .map(|sidecar| {
            let Some(process) = &mut sidecar.process else { return BTreeSet::new() };
            let registrations = process.engine.registrations().registrations(world.net.now);
            let protocols = registrations.iter().flat_map(|registration| &registration.spec.protocols);
            protocols
                .map(|protocol| (protocol.capability.name.to_string(), protocol.capability.version))
                .collect()
        })
        .collect();
    for one in 0..world.sidecars.len() {
        for other in 0..world.sidecars.len() {
            let shared = speaks[one].intersection(&speaks[other]).next().is_some();
            let there = world.sidecars[other].id();
            let now = world.net.now;
            let Some(process) = &mut world.sidecars[one].process else { continue };
            let listed = process.engine.peers().listed(now, there).filter(|entry| entry.as_static.is_some());
            let Some(entry) = listed.filter(|_| shared) else { continue };
            assert!(
                process.engine.peers().get(there).is_ok(),
                "static peer {other} of {one} is not connected: {entry:?}"
            );
        }
    }
}

/// Checks that a sidecar has stopped.
pub(super) fn stopped(sidecar: &Sidecar) {
    assert!(sidecar.process.is_none());
}
