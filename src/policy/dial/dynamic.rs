//! Candidates: which are worth waiting for a slot, who gets it, and how many more are wanted.

use std::time::Instant;

use super::super::{
    dial_filter::{RegistrationId, Wanting},
    refusal::Refusal,
    rules::Rules,
};
use super::{
    candidates::{Candidate, Source, Waiting},
    scheduler::{Action, Kind, Scheduler, Task, check_addr},
};
use crate::{
    Now,
    node::{AddressClass, Enode, Host, NodeRef},
};

impl Scheduler {
    /// A source offers a node. It is dialed when a slot is free, or refused right here; both are counted.
    /// `subnet_full` is admission's word that another peer from its network would not be let in.
    pub fn candidate(
        &mut self,
        now: Now,
        rules: &Rules,
        candidate: Candidate,
        subnet_full: bool,
    ) -> Result<(), Refusal> {
        self.recent.count(now.mono, |counts| counts.seen += 1);
        // Somebody came: waiting begins anew.
        self.starved_since = self.starved_since.map(|_| now.mono);
        let full = if subnet_full { Err(Refusal::SubnetFull) } else { Ok(()) };
        let result = self.consider(now, rules, candidate, full);
        if let Err(refusal) = result {
            self.refused(now, refusal);
        }
        self.run(now, rules);
        result
    }

    fn consider(
        &mut self,
        now: Now,
        rules: &Rules,
        candidate: Candidate,
        full: Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Candidate { public_key, addr, record, source, served } = candidate;
        let id = public_key.id();
        self.named_by(now.mono, &id, source);
        rules.check_node(now, &id)?;
        if let Some(entry) = self.entries.get_mut(&id) {
            // A trusted or static peer whose address nobody knew: now somebody does.
            let unknown = entry.target().is_none();
            if unknown
                && check_addr(now, rules, addr, None).is_ok()
                && lan_rule(rules, addr.ip(), source).is_ok()
            {
                entry.learn(&NodeRef::Enode(Enode::at(public_key, addr)));
                self.set_due(&id, Some(now.mono));
                self.changed.insert(id);
            }
            return Err(Refusal::Listed);
        }
        if rules.settings.allowlist_only {
            return Err(Refusal::NotOnAllowlist);
        }
        if self.candidates.contains(&id) {
            return Err(Refusal::Waiting);
        }
        self.may_dial(rules)?;
        lan_rule(rules, addr.ip(), source)?;
        let follow = rules.settings.follow_forks;
        let Wanting { by: wanted_by, fork, unknown } =
            self.registrations.wanting(now, record.as_ref(), addr.ip(), follow);
        if wanted_by.is_empty() {
            if let Some(hash) = unknown {
                self.recent.count(now.mono, |counts| counts.unknown_fork(hash, 1));
            }
            return Err(Refusal::Filtered);
        }
        let waiting = Waiting { id, public_key, addr, source, served, record, wanted_by, fork };
        self.check_waiting(now, rules, &waiting)?;
        full?;
        if self.candidates.push(waiting) { Ok(()) } else { Err(Refusal::QueueFull) }
    }

    /// What is checked both when a candidate comes and when it is dialed.
    fn check_waiting(&mut self, now: Now, rules: &Rules, waiting: &Waiting) -> Result<(), Refusal> {
        let id = &waiting.id;
        if self.peers.contains_key(id) {
            return Err(Refusal::Connected);
        }
        if self.task_of.contains_key(id) {
            return Err(Refusal::Dialing);
        }
        rules.check_node(now, id)?;
        check_addr(now, rules, waiting.addr, None)?;
        if self.backoffs.holds(now.mono, id) {
            return Err(Refusal::BackingOff);
        }
        let limit = rules.settings.dials_per_subnet;
        let limit = (!rules.exempt(waiting.addr.ip())).then_some(limit);
        self.history.check(now.mono, id, &waiting.addr, limit)
    }

    /// How many dials may begin: as geth, twice as many as there are free slots, because most fail; and some of the
    /// pool stays for the lists.
    fn free(&self, rules: &Rules) -> usize {
        let pool = rules.settings.max_pending_dials;
        let kept = self.entries.len().min(pool / 5);
        let missing = self.slots(rules).dialed.saturating_sub(self.dialed);
        let wanted = missing.saturating_mul(2).saturating_sub(self.dialing_dynamic);
        wanted.min(pool.saturating_sub(kept).saturating_sub(self.tasks.len()))
    }

    /// Dials candidates while there are slots for them.
    pub(super) fn start_candidates(&mut self, now: Now, rules: &Rules) {
        while self.free(rules) > 0 {
            let hungry = self.registrations.hungry();
            let allowed = Source::ALL.map(|source| self.may_dial_from(now.mono, rules, source, &hungry));
            let allows = |source: Source| allowed.get(source as usize).copied().unwrap_or_default();
            let found = hungry.iter().find_map(|id| Some((*id, self.candidates.take(*id, allows)?)));
            let Some((turn_of, waiting)) = found else { return };
            if let Err(refusal) = self.check_waiting(now, rules, &waiting) {
                self.refused(now, refusal);
                continue;
            }
            let Waiting { id, public_key, addr, source, record, fork, .. } = waiting;
            let kind = Kind::Dynamic(source);
            let (port, timeout) = (addr.port(), rules.settings.dial_timeout);
            let turn_of = Some(turn_of);
            let task =
                Task { id, public_key, kind, since: now, port, addr: None, record, timeout, turn_of, fork };
            self.start(now, rules, task, &Host::Ip(addr.ip()));
        }
    }

    /// Whether a source may have another slot: not one that is kept for others; up to half always, beyond that if no other source has
    /// anything to offer, and none is still getting ready after the start.
    fn may_dial_from(&self, now: Instant, rules: &Rules, source: Source, hungry: &[RegistrationId]) -> bool {
        if !self.leaves_enough(now, rules, source) {
            return false;
        }
        let half = self.slots(rules).dialed.div_ceil(2);
        if self.held.get(&source).copied().unwrap_or_default() < half {
            return true;
        }
        let others_dialing =
            self.tasks.values().any(|task| matches!(task.kind, Kind::Dynamic(other) if other != source));
        let others_waiting =
            Source::ALL.iter().any(|other| *other != source && self.candidates.offers(*other, hungry));
        !others_dialing && !others_waiting && self.patience_over
    }

    /// Says how many candidates are wanted, if that changed.
    pub(super) fn tell_demand(&mut self, now: Instant, rules: &Rules) {
        let wanted = if self.can_dial(rules) {
            let hungry = self.registrations.hungry();
            // Those that wait for a slot which is not theirs fill no slot: others are looked for nevertheless.
            let of_use = |source: &Source| self.may_dial_from(now, rules, *source, &hungry);
            let waiting: usize = Source::ALL
                .iter()
                .filter(|source| of_use(source))
                .map(|source| self.candidates.of(*source))
                .sum();
            self.free(rules).min(self.registrations.wants()).saturating_sub(waiting)
        } else {
            0
        };
        self.spoke.asked(now, wanted);
        self.starved_since = (wanted > 0).then(|| self.starved_since.unwrap_or(now));
        if wanted != self.demand {
            self.demand = wanted;
            // Only the last word counts.
            self.actions.retain(|action| !matches!(action, Action::Demand(_)));
            self.actions.push_back(Action::Demand(wanted));
        }
    }
}

/// Who may name a private address: nobody to a node on the Internet, DNS trees (which everybody reads) never, and
/// loopback only to a node that is on loopback itself.
fn lan_rule(rules: &Rules, ip: std::net::IpAddr, source: Source) -> Result<(), Refusal> {
    let (class, here) = (AddressClass::of(ip), rules.settings.announced);
    let foreign =
        !here.is_lan() || source == Source::Dns || (class == AddressClass::Loopback && here != class);
    if class.is_lan() && foreign && !rules.settings.allow_lan {
        return Err(Refusal::LanAddress);
    }
    Ok(())
}
