//! Slots of connections to the gRPC port: how many connections each origin may have, and which one is closed when there
//! are too many.
//!
//! A client can open connections before it authenticates, so connections are counted by their origin. When all slots
//! are taken, a connection that makes little use of its slot is closed for the new one, in this order:
//!
//! 1. a connection that has made no authorised call and has no open call, the longest idle first;
//! 2. a connection that has made no authorised call and has open calls: reflection and health need no credential;
//! 3. a connection without an open call, the longest idle first.
//!
//! Only a connection whose slot the new one can take is closed: one of the same place if that place has reached its
//! limit, one of another machine if those have reached theirs. A client whose idle connection was closed connects again
//! for its next call; every gRPC library does.
//!
//! Left out: how many calls a caller may have open (`access::gate`), and how a connection is closed (`incoming`).

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::node::endpoint::Subnet;

/// The most connections to the gRPC port in all. A client needs one. Each costs a task, and up to the HTTP/2 window of
/// a connection for data that is not read.
pub const MAX_CONNECTIONS: usize = 448;

/// The most connections of one user over the Unix socket, or of one address of another machine (IPv6: one /64).
pub const MAX_PER_ORIGIN: usize = 64;

/// The most connections over loopback TCP. The processes of this machine cannot be told apart there, so this limit is
/// larger: one process with a large pool of connections should not take the slots of all others.
pub const MAX_LOOPBACK: usize = 192;

/// The most connections of callers on other machines, in all. The rest is for this machine, so that strangers never
/// lock the operator out.
pub const MAX_REMOTE: usize = 192;

/// Where a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A process of this machine, over loopback TCP. All local processes are the same caller.
    Loopback,
    /// Another machine, over a TCP port that the operator opened to other machines.
    Remote(IpAddr),
    /// A process of this user, over the Unix socket.
    Uid(u32),
}

impl Origin {
    pub(super) fn of_tcp(remote: SocketAddr) -> Self {
        let ip = remote.ip().to_canonical();
        if ip.is_loopback() { Self::Loopback } else { Self::Remote(ip) }
    }

    /// Returns the name of a caller of this origin that has no name in the access file.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Loopback => "loopback".to_owned(),
            Self::Remote(ip) => format!("ip:{ip}"),
            Self::Uid(uid) => format!("uid:{uid}"),
        }
    }

    fn place(&self) -> Place {
        match self {
            Self::Loopback => Place::Loopback,
            // One subscriber line usually has a whole /64.
            Self::Remote(IpAddr::V6(ip)) => Place::Net64(Subnet::narrow(IpAddr::V6(*ip))),
            Self::Remote(ip) => Place::Ip(*ip),
            Self::Uid(uid) => Place::Uid(*uid),
        }
    }
}

/// The unit by which slots are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Loopback,
    Ip(IpAddr),
    Net64(Subnet),
    Uid(u32),
}

impl Place {
    fn is_remote(self) -> bool {
        matches!(self, Self::Ip(_) | Self::Net64(_))
    }

    fn limit(self) -> usize {
        if self == Self::Loopback { MAX_LOOPBACK } else { MAX_PER_ORIGIN }
    }
}

/// A connection that has a slot.
#[derive(Debug)]
struct SlotHolder {
    place: Place,
    /// The number of open calls.
    calls: usize,
    /// Whether it has ever made a call that needs a role, with that role.
    authorised: bool,
    /// The number of the event at which its last call ended, or at which it connected. A smaller number is longer ago.
    idle_since: u64,
    /// Dropped with this holder; that tells the connection that it must close.
    _tie: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
pub(super) struct ConnectionSlots {
    holders: BTreeMap<u64, SlotHolder>,
    remote: usize,
    by_place: HashMap<Place, usize>,
    events: u64,
}

impl ConnectionSlots {
    fn next(&mut self) -> u64 {
        self.events += 1;
        self.events
    }

    fn leave(&mut self, id: u64) {
        let Some(SlotHolder { place, .. }) = self.holders.remove(&id) else { return };
        self.remote -= usize::from(place.is_remote());
        if let Some(own) = self.by_place.get_mut(&place) {
            *own -= 1;
            if *own == 0 {
                self.by_place.remove(&place);
            }
        }
    }

    /// Makes room for a connection from `place`: frees the slot of another connection if there is no free one. Returns
    /// whether there is room. Takes time linear in the number of slots, which is small.
    fn make_room(&mut self, place: Place) -> bool {
        let own_full = self.by_place.get(&place).copied().unwrap_or(0) >= place.limit();
        let remote_full = place.is_remote() && self.remote >= MAX_REMOTE;
        if !own_full && !remote_full && self.holders.len() < MAX_CONNECTIONS {
            return true;
        }
        let of_use = |holder: &SlotHolder| match (own_full, remote_full) {
            (true, _) => holder.place == place,
            (false, true) => holder.place.is_remote(),
            (false, false) => true,
        };
        let rank = |holder: &SlotHolder| match (holder.authorised, holder.calls) {
            (false, 0) => Some(0),
            (false, _) => Some(1),
            (true, 0) => Some(2),
            (true, _) => None,
        };
        let candidates = self.holders.iter().filter(|(_, holder)| of_use(holder));
        let first = candidates.filter_map(|(id, holder)| Some((rank(holder)?, holder.idle_since, *id))).min();
        let Some((_, _, id)) = first else { return false };
        self.leave(id);
        true
    }
}

type Shared = Arc<Mutex<ConnectionSlots>>;

fn lock(shared: &Shared) -> MutexGuard<'_, ConnectionSlots> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The slot of one connection. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct ConnectionSlot(Standing);

impl ConnectionSlot {
    /// Takes a slot. The receiver ends when the connection must close to make room. Returns `None` if all slots that
    /// could be freed have authorised calls open.
    pub(super) fn take(shared: &Shared, origin: &Origin) -> Option<(Self, oneshot::Receiver<()>)> {
        let place = origin.place();
        let mut counts = lock(shared);
        if !counts.make_room(place) {
            return None;
        }
        let id = counts.next();
        let (tie, cut) = oneshot::channel();
        let holder = SlotHolder { place, calls: 0, authorised: false, idle_since: id, _tie: tie };
        counts.holders.insert(id, holder);
        counts.remote += usize::from(place.is_remote());
        *counts.by_place.entry(place).or_default() += 1;
        drop(counts);
        Some((Self(Standing { shared: Arc::clone(shared), id }), cut))
    }

    /// Returns the handle with which the connection's calls are counted.
    pub(super) fn standing(&self) -> Standing {
        self.0.clone()
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        lock(&self.0.shared).leave(self.0.id);
    }
}

/// A handle with which the calls of one connection are counted.
#[derive(Clone, Debug)]
pub struct Standing {
    shared: Shared,
    id: u64,
}

impl Standing {
    /// Counts a call as open until the returned value is dropped. `authorised`: the call needs a role, and its caller
    /// has that role.
    pub(in crate::rpc) fn call(&self, authorised: bool) -> OpenCall {
        if let Some(holder) = lock(&self.shared).holders.get_mut(&self.id) {
            holder.calls += 1;
            holder.authorised |= authorised;
        }
        OpenCall(self.clone())
    }

    /// Whether the connection has made an authorised call.
    pub(super) fn is_authorised(&self) -> bool {
        lock(&self.shared).holders.get(&self.id).is_some_and(|holder| holder.authorised)
    }
}

/// A call of a connection, while it is open.
#[derive(Debug)]
pub(in crate::rpc) struct OpenCall(Standing);

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut counts = lock(&self.0.shared);
        let now = counts.next();
        if let Some(holder) = counts.holders.get_mut(&self.0.id) {
            holder.calls -= 1;
            holder.idle_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Taken = (ConnectionSlot, oneshot::Receiver<()>);

    fn take(shared: &Shared, origin: &Origin) -> Taken {
        ConnectionSlot::take(shared, origin).expect("a slot")
    }

    fn fill(shared: &Shared, origin: &Origin) -> Vec<Taken> {
        (0..origin.place().limit()).map(|_| take(shared, origin)).collect()
    }

    fn is_cut(taken: &mut Taken) -> bool {
        taken.1.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    fn remote(last: u8) -> Origin {
        Origin::Remote([192, 0, 2, last].into())
    }

    #[test]
    fn seats_are_limited_per_origin_and_freed() {
        for origin in [Origin::Loopback, Origin::Uid(7), remote(1)] {
            let shared = Arc::default();
            let slots = fill(&shared, &origin);
            let calls: Vec<OpenCall> = slots.iter().map(|(slot, _)| slot.standing().call(true)).collect();
            assert!(ConnectionSlot::take(&shared, &origin).is_none(), "{origin:?}: all are in use");
            assert!(ConnectionSlot::take(&shared, &Origin::Uid(0)).is_some());
            drop(calls);
            drop(slots);
            assert!(ConnectionSlot::take(&shared, &origin).is_some());
            let shared = lock(&shared);
            assert!(shared.by_place.is_empty() && shared.holders.is_empty() && shared.remote == 0);
        }
    }

    #[test]
    fn idle_connections_make_room_the_longest_idle_first() {
        let shared = Arc::default();
        let mut slots = fill(&shared, &Origin::Loopback);
        // All have made a call. The second has it open still, and the last call of the first ended after all others.
        let open = slots[1].0.standing().call(true);
        for (slot, _) in slots.iter().skip(2).chain(slots.first()) {
            drop(slot.standing().call(true));
        }
        let newcomers: Vec<Taken> = (0..MAX_LOOPBACK - 2)
            .map(|_| {
                let taken = take(&shared, &Origin::Loopback);
                drop(taken.0.standing().call(true));
                taken
            })
            .collect();
        let cut: Vec<bool> = slots.iter_mut().map(is_cut).collect();
        assert_eq!((cut[0], cut[1]), (false, false), "the most recently used, and the one in use");
        assert!(cut[2..].iter().all(|cut| *cut));
        let _more = take(&shared, &Origin::Loopback);
        assert!(is_cut(&mut slots[0]) && !is_cut(&mut slots[1]));
        drop((open, newcomers));
    }

    #[test]
    fn who_has_no_credential_makes_room_before_all_others() {
        let shared = Arc::default();
        // Strangers hold all slots of other machines, with open calls that need no role.
        let mut strangers: Vec<Taken> = (1..=3).flat_map(|last| fill(&shared, &remote(last))).collect();
        let open: Vec<OpenCall> = strangers.iter().map(|(slot, _)| slot.standing().call(false)).collect();
        assert_eq!(strangers.len(), MAX_REMOTE);
        let mut friend = take(&shared, &remote(9));
        assert!(is_cut(&mut strangers[0]));
        drop(friend.0.standing().call(true));
        // A stranger never takes the slot of a connection that has made an authorised call.
        for _ in 0..3 * MAX_REMOTE {
            let (slot, _) = take(&shared, &remote(1));
            let _call = slot.standing().call(false);
        }
        assert!(!is_cut(&mut friend));
        drop(open);
    }

    #[test]
    fn strangers_leave_seats_to_this_machine() {
        let shared = Arc::default();
        let strangers: Vec<Taken> = (1..=3).flat_map(|last| fill(&shared, &remote(last))).collect();
        let busy: Vec<OpenCall> = strangers.iter().map(|(slot, _)| slot.standing().call(true)).collect();
        assert!(ConnectionSlot::take(&shared, &remote(9)).is_none());
        let local = fill(&shared, &Origin::Loopback);
        let unix = fill(&shared, &Origin::Uid(0));
        assert_eq!(strangers.len() + local.len() + unix.len(), MAX_CONNECTIONS);
        drop((busy, local, unix));
        assert!(ConnectionSlot::take(&shared, &remote(9)).is_some());
    }

    #[test]
    fn the_addresses_of_one_line_are_one_place() {
        let shared = Arc::default();
        let line = |host: u16| Origin::Remote([0x2600, 0, 0, 1, 0, 0, 0, host].into());
        let slots: Vec<Taken> = (0..64).map(|host| take(&shared, &line(host))).collect();
        let _open: Vec<OpenCall> = slots.iter().map(|(slot, _)| slot.standing().call(true)).collect();
        assert!(ConnectionSlot::take(&shared, &line(99)).is_none());
        assert!(
            ConnectionSlot::take(&shared, &Origin::Remote([0x2600, 0, 0, 2, 0, 0, 0, 1].into())).is_some()
        );
    }
}
