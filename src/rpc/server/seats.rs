//! Where connections to the gRPC port come from, and how many each place may have.
//!
//! Whoever can reach the port can open connections before it has shown who it is, so they are counted by where they come
//! from. A seat is free again when its connection ends.
//!
//! Left out: how many calls a caller may have open (`access::gate`).

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Connections to the gRPC port in all. A client needs one; each costs a task and, unread, up to HTTP/2's window.
pub const MAX_CONNECTIONS: usize = 256;

/// Connections of one caller: all processes of this machine that use loopback TCP are one.
pub const MAX_PER_ORIGIN: usize = 64;

/// Connections of callers on other machines, in all: the rest is for this one, so that strangers who fill what is open
/// to them never lock the operator out.
pub const MAX_REMOTE: usize = 192;

/// Where a connection comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Somebody on this machine, over loopback TCP: every local process is the same caller.
    Loopback,
    /// Somebody elsewhere, over TCP that the operator opened to them.
    Remote(std::net::IpAddr),
    /// A process of this user, over the Unix socket.
    Uid(u32),
}

impl Origin {
    pub(super) fn of_tcp(remote: SocketAddr) -> Self {
        let ip = remote.ip().to_canonical();
        if ip.is_loopback() { Self::Loopback } else { Self::Remote(ip) }
    }

    /// The name of callers about whom nothing else is known.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Loopback => "loopback".to_owned(),
            Self::Remote(ip) => format!("ip:{ip}"),
            Self::Uid(uid) => format!("uid:{uid}"),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Census {
    total: usize,
    remote: usize,
    by_origin: HashMap<Origin, usize>,
}

/// One connection's place among the admitted ones. Free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    census: Arc<Mutex<Census>>,
    origin: Origin,
}

impl Seat {
    pub(super) fn take(census: &Arc<Mutex<Census>>, origin: Origin) -> Option<Self> {
        let mut counts = census.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_origin.get(&origin).copied().unwrap_or(0);
        let remote = usize::from(matches!(origin, Origin::Remote(_)));
        if counts.total >= MAX_CONNECTIONS || own >= MAX_PER_ORIGIN || counts.remote + remote > MAX_REMOTE {
            return None;
        }
        counts.total += 1;
        counts.remote += remote;
        counts.by_origin.insert(origin.clone(), own + 1);
        drop(counts);
        Some(Self { census: Arc::clone(census), origin })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.census.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        if matches!(self.origin, Origin::Remote(_)) {
            counts.remote = counts.remote.saturating_sub(1);
        }
        if let Some(own) = counts.by_origin.get_mut(&self.origin) {
            *own -= 1;
            if *own == 0 {
                counts.by_origin.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_are_limited_per_origin_and_freed() {
        let census = Arc::default();
        let seats: Vec<_> =
            (0..MAX_PER_ORIGIN).map(|_| Seat::take(&census, Origin::Loopback).unwrap()).collect();
        assert!(Seat::take(&census, Origin::Loopback).is_none());
        assert!(Seat::take(&census, Origin::Uid(0)).is_some());
        drop(seats);
        assert!(Seat::take(&census, Origin::Loopback).is_some());
        assert!(census.lock().unwrap().by_origin.is_empty());
    }

    #[test]
    fn strangers_leave_seats_to_this_machine() {
        let census = Arc::default();
        let remote = |last| Origin::Remote([192, 0, 2, last].into());
        let strangers: Vec<_> = (0..8)
            .flat_map(|last| (0..32).map_while(|_| Seat::take(&census, remote(last))).collect::<Vec<_>>())
            .collect();
        assert_eq!(strangers.len(), MAX_REMOTE);
        assert!(Seat::take(&census, remote(9)).is_none());
        let local: Vec<_> = (0..MAX_PER_ORIGIN).map_while(|_| Seat::take(&census, Origin::Uid(0))).collect();
        assert_eq!(local.len(), MAX_CONNECTIONS - MAX_REMOTE);
        drop(strangers);
        assert!(Seat::take(&census, remote(9)).is_some());
    }
}
