//! TCP connections in virtual time: two directions of bytes, each with a latency and a bounded buffer.
//!
//! The network can fail a connection in two ways. A reset is reported to both ends. Silence is not reported: each end
//! notices it only by its own timeouts.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes, BytesMut};

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Socket {
    pub(super) link: u64,
    side: usize,
}

impl Socket {
    fn other(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }
}

/// The owner of one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A connection of a sidecar: which sidecar, which of its runs, and the connection's number.
    Sidecar { index: usize, run: u64, connection: u64 },
    /// A liar.
    Liar,
}

/// The connection was reset.
#[derive(Debug)]
pub(super) struct Reset;

/// How a direction ends, once its bytes have been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Closed,
    Reset,
}

/// One direction.
struct Way {
    latency: Duration,
    capacity: usize,
    segments: VecDeque<(Instant, Bytes)>,
    used: usize,
    /// The latest arrival so far: bytes do not overtake each other.
    latest: Instant,
    ending: Option<(Instant, Ending)>,
    /// From this time on a write fails.
    broken: Option<Instant>,
}

impl Way {
    fn arrival(&mut self, now: Instant) -> Instant {
        self.latest = self.latest.max(now + self.latency);
        self.latest
    }

    fn next(&self) -> Option<Instant> {
        let first = self.segments.front().map(|(at, _)| *at);
        first.or(self.ending.map(|(at, _)| at))
    }
}

struct Link {
    ways: [Way; 2],
    open: [bool; 2],
    silent: bool,
}

/// All connections.
#[derive(Default)]
pub(super) struct Links {
    all: BTreeMap<u64, Link>,
    /// The owners of the two ends of each connection, also of those that have ended.
    owners: BTreeMap<u64, [Option<Owner>; 2]>,
    made: u64,
}

impl Links {
    /// A new connection. Returns the end that dialed and the end that accepts.
    pub(super) fn connect(&mut self, now: Instant, latency: Duration, capacity: usize) -> (Socket, Socket) {
        self.made += 1;
        let way = || Way {
            latency,
            capacity,
            segments: VecDeque::new(),
            used: 0,
            latest: now,
            ending: None,
            broken: None,
        };
        let link = Link { ways: [way(), way()], open: [true; 2], silent: false };
        self.all.insert(self.made, link);
        (Socket { link: self.made, side: 0 }, Socket { link: self.made, side: 1 })
    }

    /// Sets the owner of an end.
    pub(super) fn own(&mut self, socket: Socket, owner: Owner) {
        self.owners.entry(socket.link).or_default()[socket.side] = Some(owner);
    }

    /// The owner of the other end, also after the connection has ended.
    pub(super) fn across(&self, socket: Socket) -> Option<Owner> {
        self.owners.get(&socket.link)?[socket.other().side]
    }

    /// Whether both ends are open and nothing stops bytes between them.
    pub(super) fn is_whole(&self, socket: Socket) -> bool {
        self.all.get(&socket.link).is_some_and(|link| link.open == [true; 2] && !link.silent)
    }

    fn inward(&self, socket: Socket) -> Option<&Way> {
        self.all.get(&socket.link).map(|link| &link.ways[socket.other().side])
    }

    /// The next time at which there is something to read.
    pub(super) fn read_time(&self, socket: Socket) -> Option<Instant> {
        self.inward(socket)?.next()
    }

    /// Whether a read returns something now.
    pub(super) fn is_readable(&self, now: Instant, socket: Socket) -> bool {
        self.read_time(socket).is_some_and(|at| at <= now)
    }

    /// Reads at most `limit` bytes. Returns 0 when the other end has closed; `None` when nothing has come.
    pub(super) fn read(
        &mut self,
        now: Instant,
        socket: Socket,
        limit: usize,
        into: &mut BytesMut,
    ) -> Result<Option<usize>, Reset> {
        let Some(link) = self.all.get_mut(&socket.link) else { return Err(Reset) };
        let way = &mut link.ways[socket.other().side];
        let mut count = 0;
        while count < limit
            && let Some((at, segment)) = way.segments.front_mut()
            && *at <= now
        {
            let part = segment.split_to(segment.len().min(limit - count));
            count += part.len();
            into.extend_from_slice(&part);
            if !segment.has_remaining() {
                way.segments.pop_front();
            }
        }
        way.used -= count;
        if count > 0 {
            return Ok(Some(count));
        }
        match way.ending.filter(|(at, _)| *at <= now && way.segments.is_empty()) {
            None => Ok(None),
            Some((_, Ending::Closed)) => Ok(Some(0)),
            Some((_, Ending::Reset)) => Err(Reset),
        }
    }

    /// Whether a write takes bytes, or fails, now.
    pub(super) fn is_writable(&self, now: Instant, socket: Socket) -> bool {
        let Some(link) = self.all.get(&socket.link) else { return true };
        let way = &link.ways[socket.side];
        way.used < way.capacity || way.broken.is_some_and(|at| at <= now)
    }

    /// The time from which a write fails, if there is one.
    pub(super) fn write_time(&self, socket: Socket) -> Option<Instant> {
        self.all.get(&socket.link)?.ways[socket.side].broken
    }

    /// Writes as many bytes as there is room for. Returns their number.
    pub(super) fn write(&mut self, now: Instant, socket: Socket, bytes: &[u8]) -> Result<usize, Reset> {
        let Some(link) = self.all.get_mut(&socket.link) else { return Err(Reset) };
        let (other_is_open, silent) = (link.open[socket.other().side], link.silent);
        let way = &mut link.ways[socket.side];
        if way.broken.is_some_and(|at| at <= now) {
            return Err(Reset);
        }
        let count = bytes.len().min(way.capacity.saturating_sub(way.used));
        if silent {
            way.used += count; // they wait for an acknowledgement that never comes
        } else if other_is_open {
            let at = way.arrival(now);
            way.segments.push_back((at, Bytes::copy_from_slice(&bytes[..count])));
            way.used += count;
        } else {
            let back = now + 2 * way.latency;
            way.broken.get_or_insert(back);
        }
        Ok(count)
    }

    /// Closes one end. The bytes that it wrote arrive first. `reset`: the other end gets an error instead of the end of
    /// the stream.
    pub(super) fn close(&mut self, now: Instant, socket: Socket, reset: bool) {
        let Some(link) = self.all.get_mut(&socket.link) else { return };
        link.open[socket.side] = false;
        let silent = link.silent;
        let way = &mut link.ways[socket.side];
        if !silent && way.ending.is_none() {
            let ending = if reset { Ending::Reset } else { Ending::Closed };
            way.ending = Some((way.arrival(now), ending));
        }
        if link.open == [false; 2] {
            self.all.remove(&socket.link);
        }
    }

    /// Connections with both ends open.
    pub(super) fn whole(&self) -> Vec<u64> {
        self.all
            .iter()
            .filter(|(_, link)| link.open == [true; 2] && !link.silent)
            .map(|(id, _)| *id)
            .collect()
    }

    /// The network resets a connection: the bytes under way are lost.
    pub(super) fn cut(&mut self, now: Instant, link: u64) {
        let Some(link) = self.all.get_mut(&link) else { return };
        for way in &mut link.ways {
            way.segments.retain(|(at, _)| *at <= now);
            way.used = way.segments.iter().map(|(_, segment)| segment.len()).sum();
            way.ending = Some((now + way.latency, Ending::Reset));
            way.broken = Some(now + way.latency);
        }
    }

    /// The network drops a connection: nothing arrives any more, and neither end is notified.
    pub(super) fn silence(&mut self, now: Instant, link: u64) {
        let Some(link) = self.all.get_mut(&link) else { return };
        link.silent = true;
        for way in &mut link.ways {
            way.segments.retain(|(at, _)| *at <= now);
        }
    }

    /// Gives a connection another latency from now on.
    pub(super) fn set_latency(&mut self, link: u64, latency: Duration) {
        if let Some(link) = self.all.get_mut(&link) {
            link.ways.iter_mut().for_each(|way| way.latency = latency);
        }
    }

    /// The number of connections of which an end is open.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}
