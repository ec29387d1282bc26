//! What dials and connections come to, and what follows from it for the next dial.

use std::{net::IpAddr, time::Duration};

use super::super::{cause::Cause, dial_filter::RegistrationId, fork_following::SETTLED, rules::Rules};
use super::{
    backoff::{FORGIVEN_AFTER, wait},
    entry::Standing,
    one_off::ConnectOutcome,
    scheduler::{Action, Kind, Peer, Scheduler, Task, TaskId, check_addr},
    vouching::Vouchers,
};
use crate::{Now, node::NodeId};

/// The longest pause after faults of ours.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Addresses with the families taking turns, each in its order, the family of the first one first (RFC 8305 section 4):
/// a family without a route costs one attempt before the other one has its chance.
fn by_turns(addrs: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let addrs: Vec<IpAddr> = addrs.collect();
    let first = addrs.first().is_some_and(IpAddr::is_ipv6);
    let (mut one, mut other) =
        (addrs.iter().filter(|ip| ip.is_ipv6() == first), addrs.iter().filter(|ip| ip.is_ipv6() != first));
    let turns = (0..addrs.len()).flat_map(|_| [one.next(), other.next()]);
    turns.flatten().copied().collect()
}

impl Scheduler {
    /// The answer to a name lookup: its addresses in the order of preference, or what went wrong.
    pub fn host_resolved(&mut self, now: Now, rules: &Rules, name: TaskId, addrs: Result<&[IpAddr], &str>) {
        let Some(id) = self.tasks.get(&name).filter(|task| task.addr.is_none()).map(|task| task.id) else {
            return;
        };
        // It came to us while we looked its name up.
        if self.peers.contains_key(&id) {
            return self.dial_failed(now, rules, name, Cause::AlreadyConnected, "");
        }
        if let Err(refusal) = self.may_dial(rules) {
            return self.give_up(now, name, refusal);
        }
        let Some(mut task) = self.tasks.remove(&name) else { return };
        let widest = self.entries.get(&task.id).and_then(|entry| entry.widest);
        let check = |ip: &IpAddr| check_addr(now, rules, (*ip, task.port).into(), widest);
        let all = addrs.unwrap_or_default();
        let allowed = by_turns(all.iter().copied().filter(|ip| check(ip).is_ok()));
        if let Some((ip, also)) = allowed.split_first() {
            if let Some(entry) = self.entries.get_mut(&task.id) {
                entry.saw(*ip);
            }
            self.dial(now, rules, name, &mut task, *ip, also);
            self.tasks.insert(name, task);
            return;
        }
        let (cause, detail) = match (addrs, all.first()) {
            (Err(error), _) => (Cause::NameUnknown, error.to_owned()),
            (Ok(_), None) => (Cause::NameUnknown, String::new()),
            (Ok(_), Some(ip)) => {
                let reason = check(ip).err().map(|refusal| refusal.to_string()).unwrap_or_default();
                (Cause::AddressRefused, format!("{ip}: {reason}"))
            }
        };
        self.tasks.insert(name, task);
        self.dial_failed(now, rules, name, cause, &detail);
    }

    /// A dial ended without a peer.
    pub fn dial_failed(&mut self, now: Now, rules: &Rules, name: TaskId, cause: Cause, detail: &str) {
        let Some(task) = self.end(name) else { return };
        // These come after the handshake, in which it proved its identity.
        if let (Some(hash), Some(addr)) = (task.fork, task.addr)
            && matches!(
                cause,
                Cause::TooManyPeers | Cause::AlreadyConnected | Cause::UselessPeer | Cause::Requested
            )
        {
            let news = self.registrations.proved(now, hash, addr.ip());
            self.actions.extend(news.into_iter().map(Action::Fork));
        }
        self.recent.count(now.mono, |counts| *counts.failed.entry(cause).or_default() += 1);
        let (id, addr, kind) = (task.id, task.addr, task.kind);
        self.actions.push_back(Action::Failed { id, addr, kind, cause, detail: detail.to_owned() });
        if cause == Cause::LocalFault {
            let pause = Duration::from_secs(1 << self.local_faults.min(5)).min(LONGEST_PAUSE);
            self.local_faults = self.local_faults.saturating_add(1);
            self.paused_until = Some(now.mono + pause);
        } else {
            self.local_faults = 0;
        }
        self.finish_one_offs(&task.id, &ConnectOutcome::Failed { cause, detail: detail.to_owned() });
        self.ended(now, rules, &task.id, task.since, cause, detail);
        self.run(now, rules);
    }

    /// A node became a peer, after both admission checkpoints. `served` are the registrations that use it.
    pub fn peer_connected(
        &mut self,
        now: Now,
        rules: &Rules,
        id: NodeId,
        inbound: bool,
        served: &[RegistrationId],
    ) {
        self.forget_peer(&id);
        let task =
            if inbound { None } else { self.task_of.get(&id).copied().and_then(|task| self.end(task)) };
        let source = match task {
            Some(Task { kind: Kind::Dynamic(source), .. }) => Some(source),
            _ => None,
        };
        let fork = task.as_ref().and_then(|task| Some((task.fork?, task.addr?.ip())));
        if let Some((hash, ip)) = fork {
            let news = self.registrations.proved(now, hash, ip);
            self.actions.extend(news.into_iter().map(Action::Fork));
        }
        self.recent
            .count(now.mono, |counts| if inbound { counts.let_in += 1 } else { counts.connected += 1 });
        if !inbound {
            self.local_faults = 0;
        }
        let standing = Standing { since: now, inbound };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.standing = Some(standing);
            entry.refused = None;
            entry.resolve_failures = 0;
            // The address works: what was counted against it is over. What ends connections is counted on.
            if entry.last_error.as_ref().is_some_and(|error| !error.cause.reached_someone()) {
                entry.failures = 0;
            }
            if !inbound {
                entry.reached = Some(now.mono);
            }
            self.set_due(&id, None);
            self.changed.insert(id);
        } else if !inbound {
            self.dialed += 1;
            if let Some(source) = source {
                *self.held.entry(source).or_default() += 1;
            }
        }
        self.registrations.connected(served);
        self.peers.insert(
            id,
            Peer { standing, source, vouchers: Vouchers::of(source), fork, served: served.to_vec() },
        );
        self.candidates.retain(|waiting| waiting.id != id);
        self.finish_one_offs(&id, &ConnectOutcome::Connected);
        self.run(now, rules);
    }

    /// A peer is no longer one.
    pub fn peer_disconnected(&mut self, now: Now, rules: &Rules, id: &NodeId, cause: Cause, detail: &str) {
        let Some(peer) = self.forget_peer(id) else { return };
        let since = peer.standing.since;
        if let Some((hash, ip)) = peer.fork {
            self.fork_peer_ended(now, hash, ip, since, cause);
        }
        if now.mono.saturating_duration_since(since.mono) >= FORGIVEN_AFTER {
            self.backoffs.forgive(id);
            if let Some(entry) = self.entries.get_mut(id) {
                entry.failures = 0;
            }
        }
        self.ended(now, rules, id, since, cause, detail);
        self.run(now, rules);
    }

    /// A peer that was dialed for a fork that a schedule lacks is gone. If an application, or the peer, ended it at once,
    /// that speaks against the fork, unless another peer of it has stayed.
    fn fork_peer_ended(&mut self, now: Now, hash: [u8; 4], ip: IpAddr, since: Now, cause: Cause) {
        let settled = |since: Now| now.mono.saturating_duration_since(since.mono) >= SETTLED;
        let for_its_chain =
            matches!(cause, Cause::Operator | Cause::UselessPeer | Cause::Breach | Cause::Requested);
        if settled(since) || !for_its_chain {
            return;
        }
        let same = |peer: &&Peer| peer.fork.is_some_and(|(other, _)| other == hash);
        let kept = self.peers.values().filter(same).any(|peer| settled(peer.standing.since));
        let news = self.registrations.rejected(hash, ip, kept);
        self.actions.extend(news.into_iter().map(Action::Fork));
    }

    /// Decides when a node is dialed again after its dial or connection, which began at `began`, ended.
    fn ended(&mut self, now: Now, rules: &Rules, id: &NodeId, began: Now, cause: Cause, detail: &str) {
        let window = rules.settings.history;
        let Some(entry) = self.entries.get_mut(id) else {
            self.backoffs.failed(now.mono, *id, cause, window, &mut self.rng);
            return;
        };
        if entry.standing.is_some() {
            return;
        }
        entry.set_error(now, cause, detail);
        if cause != Cause::LocalFault {
            entry.failures = entry.failures.saturating_add(1);
        }
        if cause.reached_someone() {
            entry.reached = entry.reached.max(Some(began.mono));
        }
        let wait = wait(cause, entry.failures, true, window, &mut self.rng);
        // Whoever accepted us lately may still throttle our address.
        let polite = entry.reached.filter(|_| cause.reached_someone()).map(|reached| reached + window);
        let due = polite.map_or(now.mono + wait, |polite| polite.max(now.mono + wait));
        let ask = cause.doubts_address() && entry.as_static.is_some() && rules.settings.discovery;
        // What discovery found did not help: back to what was given, if anything was.
        if ask && entry.given.is_some() {
            entry.found = None;
        }
        self.set_due(id, Some(due));
        self.changed.insert(*id);
        if ask {
            // Cannot refuse; its result is about entries without an address only.
            let _ = self.ask_discovery(now, id);
        }
    }

    fn forget_peer(&mut self, id: &NodeId) -> Option<Peer> {
        let peer = self.peers.remove(id)?;
        self.registrations.disconnected(&peer.served);
        if let Some(entry) = self.entries.get_mut(id) {
            entry.standing = None;
        } else if !peer.standing.inbound {
            self.dialed = self.dialed.saturating_sub(1);
            if let Some(source) = peer.source {
                self.release(source);
            }
        }
        Some(peer)
    }
}
