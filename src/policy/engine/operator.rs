//! What the operator says: settings, lists, bans, one-off dials; and what is kept of it over restarts.

use std::{net::IpAddr, time::Duration};

use super::{
    super::{
        bans::{Ban, BanError, BanTarget},
        dial::{AddError, ListEntry, ListSource, QueryId, RemoveError},
        lists::{BanLine, Lists, Parsed},
        refusal::Refusal,
        settings::Settings,
    },
    CloseReason, Policy, is_listed,
};
use crate::{
    Now,
    node::{NodeId, NodeRef, endpoint::canonical},
};

impl Policy {
    /// The settings of the moment.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.rules.settings
    }

    /// Changes settings. Peers beyond a lowered limit stay until they go by themselves; connections that the
    /// allow-list or the net restriction now excludes are closed.
    pub fn set_settings(&mut self, now: Now, settings: Settings) {
        if self.rules.settings.churn != settings.churn {
            self.churn.set(now.mono, settings.churn, &mut self.rng);
        }
        self.rules.settings = settings;
        self.admission.recount(&self.rules, |id| is_listed(&self.dial, id));
        self.dial.rules_changed(now, &self.rules);
        let allowlist = self.rules.settings.allowlist_only;
        let excluded = |id: Option<NodeId>, ip: IpAddr| match self.rules.check_ip(now, ip) {
            Err(refusal) => Some(refusal),
            Ok(()) => {
                id.filter(|id| allowlist && !is_listed(&self.dial, id)).map(|_| Refusal::NotOnAllowlist)
            }
        };
        let out: Vec<_> = self
            .admission
            .connections()
            .filter_map(|(conn, ip, _, id)| Some((conn, excluded(id, ip)?)))
            .collect();
        for (conn, refusal) in out {
            self.close(now, conn, CloseReason::Refused(refusal));
        }
    }

    /// Makes a node static, and answers its entry. Adding it again is fine; a new address takes effect.
    pub fn add_static(
        &mut self,
        now: Now,
        node: &NodeRef,
        source: ListSource,
    ) -> Result<Option<ListEntry>, AddError> {
        self.dial.add_static(now, &self.rules, node, source)?;
        self.lists_changed();
        Ok(self.entry(now, &node.id()))
    }

    /// Makes a node trusted, and answers its entry.
    pub fn add_trusted(
        &mut self,
        now: Now,
        node: &NodeRef,
        source: ListSource,
    ) -> Result<Option<ListEntry>, AddError> {
        self.dial.add_trusted(now, &self.rules, node, source)?;
        self.lists_changed();
        Ok(self.entry(now, &node.id()))
    }

    /// Takes a node off the static list. It is disconnected, unless that is not wanted or it is trusted.
    pub fn remove_static(&mut self, now: Now, id: &NodeId, keep_connected: bool) -> Result<(), RemoveError> {
        let removed = self.dial.remove_static(now, &self.rules, id)?;
        self.lists_changed();
        if !keep_connected && !removed.still_listed {
            self.close_peer(now, id, CloseReason::Removed);
        }
        self.hold_to_allowlist(now, id);
        Ok(())
    }

    /// Takes a node off the static list that the configuration named before and names no longer. It is disconnected
    /// unless it is trusted.
    pub fn unconfigure_static(&mut self, now: Now, id: &NodeId) -> Result<(), RemoveError> {
        self.dial.release_static(id);
        self.remove_static(now, id, false)
    }

    /// The same for the trusted list. The peer stays connected.
    pub fn unconfigure_trusted(&mut self, now: Now, id: &NodeId) -> Result<(), RemoveError> {
        self.dial.release_trusted(id);
        self.remove_trusted(now, id)
    }

    /// Takes a node off the trusted list. It stays connected and takes a slot from now on, unless
    /// only listed peers are wanted.
    pub fn remove_trusted(&mut self, now: Now, id: &NodeId) -> Result<(), RemoveError> {
        self.dial.remove_trusted(now, &self.rules, id)?;
        self.lists_changed();
        self.hold_to_allowlist(now, id);
        Ok(())
    }

    /// In allow-list mode nobody stays who is on no list, whatever the call that took it off says.
    fn hold_to_allowlist(&mut self, now: Now, id: &NodeId) {
        if self.rules.settings.allowlist_only && !is_listed(&self.dial, id) {
            self.close_peer(now, id, CloseReason::Refused(Refusal::NotOnAllowlist));
        }
    }

    /// Whether a node is static.
    #[must_use]
    pub fn is_static(&self, id: &NodeId) -> bool {
        self.dial.is_static(id)
    }

    /// Whether a node is trusted.
    #[must_use]
    pub fn is_trusted(&self, id: &NodeId) -> bool {
        self.dial.is_trusted(id)
    }

    /// A node's list entry.
    #[must_use]
    pub fn entry(&self, now: Now, id: &NodeId) -> Option<ListEntry> {
        self.dial.entry(now, &self.rules, id)
    }

    /// All list entries; static and trusted ones are told apart by `as_static` and `as_trusted`.
    pub fn entries(&self, now: Now) -> impl Iterator<Item = ListEntry> {
        self.dial.entries(now, &self.rules)
    }

    /// Dials a node once; ends in [`ConnectDone`](super::super::dial::Action::ConnectDone), unless refused right here.
    pub fn connect(
        &mut self,
        now: Now,
        query: QueryId,
        node: &NodeRef,
        timeout: Duration,
    ) -> Result<(), Refusal> {
        self.dial.connect(now, &self.rules, query, node, timeout)
    }

    /// Bans a node, an address or a network for `duration`, and closes what it hits. Static and trusted peers need
    /// `force`; they stay on their lists, and are dialed again when the ban ends.
    pub fn ban(
        &mut self,
        now: Now,
        target: BanTarget,
        duration: Duration,
        reason: &str,
        source: ListSource,
        force: bool,
    ) -> Result<Ban, BanError> {
        if target == BanTarget::Node(self.rules.local_id) {
            return Err(BanError::OwnIdentity);
        }
        if let Some(id) = self.protected(&target).filter(|_| !force) {
            return Err(BanError::Protected(id));
        }
        let ban = self.rules.bans.ban(now.unix, target, duration, reason, source)?.clone();
        self.lists_changed = true;
        self.dial.rules_changed(now, &self.rules);
        let hit = |id: Option<NodeId>, ip| {
            id.is_some_and(|id| self.rules.bans.of_node(now.unix, &id).is_some())
                || self.rules.bans.of_ip(now.unix, ip).is_some()
        };
        let out: Vec<_> = self
            .admission
            .connections()
            .filter(|(_, ip, _, id)| hit(*id, *ip))
            .map(|(conn, ..)| conn)
            .collect();
        for conn in out {
            self.close(now, conn, CloseReason::Banned);
        }
        Ok(ban)
    }

    /// Lifts a ban.
    pub fn unban(&mut self, now: Now, target: &BanTarget) -> Result<Ban, BanError> {
        let ban = self.rules.bans.unban(target)?;
        self.lists_changed = true;
        self.dial.rules_changed(now, &self.rules);
        Ok(ban)
    }

    /// All bans that stand.
    pub fn bans(&self, now: Now) -> impl Iterator<Item = &Ban> {
        self.rules.bans.iter(now.unix)
    }

    /// The ban that a node or address is under, if any.
    #[must_use]
    #[cfg(any(test, feature = "internals"))]
    pub fn ban_of(&self, now: Now, id: Option<&NodeId>, ip: Option<IpAddr>) -> Option<&Ban> {
        let bans = &self.rules.bans;
        id.and_then(|id| bans.of_node(now.unix, id)).or_else(|| bans.of_ip(now.unix, ip?))
    }

    /// What is to be kept over restarts.
    #[must_use]
    pub fn lists(&self, now: Now) -> Lists {
        let called = |source: Option<ListSource>| source == Some(ListSource::Call);
        let bans = self.bans(now).filter(|ban| ban.source == ListSource::Call);
        Lists {
            static_peers: self.dial.words(|as_static, _| called(as_static)),
            trusted_peers: self.dial.words(|_, as_trusted| called(as_trusted)),
            bans: bans
                .map(|ban| BanLine {
                    target: ban.target.to_string(),
                    until: ban.until.as_secs(),
                    reason: ban.reason.clone(),
                })
                .collect(),
            ..Lists::default()
        }
    }

    /// Takes in the lists of the configuration, then what was kept of earlier runs, before anything else. A peer that was
    /// banned with force stays listed.
    ///
    /// Returns the kept entries that have no place any more, each with the reason: the node that has become ourselves
    /// because its key was moved here, and what the lists of the configuration left no room for. They are no reason not
    /// to start.
    ///
    /// # Errors
    ///
    /// An entry of the configuration that cannot be listed.
    pub fn restore(
        &mut self,
        now: Now,
        statics: &[NodeRef],
        trusted: &[NodeRef],
        lists: &Parsed,
    ) -> Result<Vec<(String, AddError)>, AddError> {
        for node in statics {
            self.add_static(now, node, ListSource::Config)?;
        }
        for node in trusted {
            self.add_trusted(now, node, ListSource::Config)?;
        }
        // A peer that was listed by its id while discovery ran stays listed without it: it is shown as refused, and a
        // start must not fail for it.
        let discovery = std::mem::replace(&mut self.rules.settings.discovery, true);
        let left_out = self.restore_lists(now, lists);
        self.rules.settings.discovery = discovery;
        self.dial.rules_changed(now, &self.rules);
        Ok(left_out)
    }

    fn restore_lists(&mut self, now: Now, lists: &Parsed) -> Vec<(String, AddError)> {
        let mut left_out = Vec::new();
        for node in &lists.static_peers {
            if let Err(error) = self.dial.add_static(now, &self.rules, node, ListSource::Call) {
                left_out.push((node.id().to_string(), error));
            }
        }
        for node in &lists.trusted_peers {
            if let Err(error) = self.dial.add_trusted(now, &self.rules, node, ListSource::Call) {
                left_out.push((node.id().to_string(), error));
            }
        }
        for (target, until, reason) in &lists.bans {
            let ban =
                Ban { target: *target, until: *until, reason: reason.clone(), source: ListSource::Call };
            // Full is impossible: the lists were checked to be within the bound, and the configuration has no bans.
            let _ = self.rules.bans.restore(now.unix, ban);
        }
        left_out
    }

    fn lists_changed(&mut self) {
        self.lists_changed = true;
        self.admission.recount(&self.rules, |id| is_listed(&self.dial, id));
    }

    /// The static or trusted peer that a ban would hit.
    fn protected(&self, target: &BanTarget) -> Option<NodeId> {
        match target {
            BanTarget::Node(id) => is_listed(&self.dial, id).then_some(*id),
            BanTarget::Net(net) => {
                let by_address = self
                    .dial
                    .listed_addrs()
                    .find(|(_, addr)| addr.is_some_and(|addr| net.contains(&canonical(addr.ip()))));
                let by_connection = || {
                    self.admission
                        .peers()
                        .find(|peer| net.contains(&canonical(peer.ip)) && is_listed(&self.dial, &peer.id))
                };
                by_address.map(|(id, _)| id).or_else(|| by_connection().map(|peer| peer.id))
            }
        }
    }
}
