//! One direction of a TCP connection: a writer, its send buffer, a line, and the reader's receive buffer.
//!
//! Bytes are counted, not stored. The model has the parts of TCP that matter for back-pressure: a writer that found the
//! buffer full sleeps until a third of it is free, bytes leave the send buffer when they are acknowledged, and the
//! reader's window closes when nothing is read. Left out: loss, congestion control, and the delay of small window
//! updates.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The bytes of a Ping or a Pong on the wire: a header and a block of data, each with a MAC.
const SMALL: u64 = 64;

/// One RLPx frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Ping,
    Pong,
    Message {
        channel: u16,
        /// Counts the messages of the channel.
        serial: u64,
        /// Bytes of payload.
        len: usize,
        /// Bytes on the wire.
        wire: usize,
    },
}

impl Frame {
    pub(crate) fn wire(&self) -> u64 {
        match self {
            Self::Ping | Self::Pong => SMALL,
            Self::Message { wire, .. } => *wire as u64,
        }
    }
}

/// The properties of the line between two ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    /// The writer's kernel buffer.
    pub(crate) send_buffer: u64,
    /// The reader's kernel buffer.
    pub(crate) receive_buffer: u64,
    /// Bytes a second; `None` is no limit.
    pub(crate) rate: Option<u64>,
    /// The latency of one direction.
    pub(crate) latency: Duration,
}

impl Default for Line {
    /// A near peer: Linux's largest send buffer, and the receive buffer that results from an `SO_RCVBUF` of 512 KiB.
    fn default() -> Self {
        Self { send_buffer: 4 << 20, receive_buffer: 900_000, rate: None, latency: Duration::ZERO }
    }
}

impl Line {
    /// Our own socket to a near peer: `TCP_NOTSENT_LOWAT` lets 128 KiB wait.
    pub(crate) fn ours() -> Self {
        Self { send_buffer: 128 << 10, ..Self::default() }
    }
}

/// See the module's documentation. All positions count bytes from the beginning.
#[derive(Debug)]
pub(crate) struct Pipe {
    line: Line,
    /// Frames that the writer has begun and the reader has not taken, each with the position of its end.
    frames: VecDeque<(u64, Frame)>,
    begun: u64,
    written: u64,
    sent: u64,
    arrived: u64,
    read: u64,
    /// The position of the end of the last frame that was taken.
    taken: u64,
    /// The positions up to which the writer's side knows that bytes have arrived, and have been read.
    acknowledged: u64,
    known_read: u64,
    /// Whether the writer sleeps until a third of the buffer is free.
    asleep: bool,
    writing_since: Instant,
    longest_write: Duration,
    line_free: Instant,
    travelling: VecDeque<(Instant, u64)>,
    returning: VecDeque<(Instant, u64, u64)>,
}

impl Pipe {
    pub(crate) fn new(now: Instant, line: Line) -> Self {
        Self {
            line,
            frames: VecDeque::new(),
            begun: 0,
            written: 0,
            sent: 0,
            arrived: 0,
            read: 0,
            taken: 0,
            acknowledged: 0,
            known_read: 0,
            asleep: false,
            writing_since: now,
            longest_write: Duration::ZERO,
            line_free: now,
            travelling: VecDeque::new(),
            returning: VecDeque::new(),
        }
    }

    /// Whether the writer can begin another frame.
    pub(crate) fn is_free(&self) -> bool {
        self.written == self.begun
    }

    /// Begins to write a frame. Panics unless [`Self::is_free`].
    pub(crate) fn write(&mut self, now: Instant, frame: Frame) {
        assert!(self.is_free(), "one writer, one frame");
        self.begun += frame.wire();
        self.frames.push_back((self.begun, frame));
        self.writing_since = now;
        self.pump(now);
    }

    /// The number of bytes that the writer has put into the send buffer.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The longest time that the writer needed for one frame, including the frame that is being written.
    pub(crate) fn longest_write(&self, now: Instant) -> Duration {
        let current = if self.is_free() { Duration::ZERO } else { now - self.writing_since };
        self.longest_write.max(current)
    }

    /// Bytes that the reader can read.
    pub(crate) fn available(&self) -> u64 {
        self.arrived - self.read
    }

    /// Reads up to `most` bytes. Returns how many.
    pub(crate) fn read(&mut self, now: Instant, most: u64) -> u64 {
        let count = self.available().min(most);
        if count > 0 {
            self.read += count;
            self.acknowledge(now);
            self.pump(now);
        }
        count
    }

    /// Takes the next frame that was read completely.
    pub(crate) fn take(&mut self) -> Option<Frame> {
        let (end, frame) = *self.frames.front()?;
        if end > self.read {
            return None;
        }
        self.taken = end;
        self.frames.pop_front();
        Some(frame)
    }

    /// Whether part of a frame was read.
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.read > self.taken
    }

    /// Moves all bytes that can be moved at `now`. Returns whether any were moved.
    pub(crate) fn pump(&mut self, now: Instant) -> bool {
        let before = (self.written, self.sent, self.arrived, self.acknowledged, self.known_read);
        while let Some(&(at, end)) = self.travelling.front()
            && at <= now
        {
            self.travelling.pop_front();
            self.arrived = end;
            self.acknowledge(now);
        }
        while let Some(&(at, arrived, read)) = self.returning.front()
            && at <= now
        {
            self.returning.pop_front();
            (self.acknowledged, self.known_read) = (arrived, read);
        }
        loop {
            self.fill(now);
            let window = (self.known_read + self.line.receive_buffer).saturating_sub(self.sent);
            let ready = (self.written - self.sent).min(window);
            if ready == 0 || self.line_free > now {
                break;
            }
            let count = self.line.rate.map_or(ready, |rate| ready.min((rate / 100).max(1500)));
            self.sent += count;
            let on_the_line = self.line.rate.map_or(Duration::ZERO, |rate| time_for(count, rate));
            self.line_free = now + on_the_line;
            let at = self.line_free + self.line.latency;
            if at <= now {
                self.arrived = self.sent;
                self.acknowledge(now);
            } else {
                self.travelling.push_back((at, self.sent));
            }
        }
        before != (self.written, self.sent, self.arrived, self.acknowledged, self.known_read)
    }

    /// Writes as much of the current frame as the send buffer takes, unless the writer sleeps.
    fn fill(&mut self, now: Instant) {
        let free = self.line.send_buffer - (self.written - self.acknowledged);
        if self.is_free() || (self.asleep && free < self.line.send_buffer / 3) {
            return;
        }
        self.written += free.min(self.begun - self.written);
        self.asleep = !self.is_free();
        if self.is_free() {
            self.longest_write = self.longest_write.max(now - self.writing_since);
        }
    }

    fn acknowledge(&mut self, now: Instant) {
        if self.line.latency.is_zero() {
            (self.acknowledged, self.known_read) = (self.arrived, self.read);
        } else {
            self.returning.push_back((now + self.line.latency, self.arrived, self.read));
        }
    }

    /// The next time at which [`Self::pump`] can move bytes.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let travelling = self.travelling.front().map(|(at, _)| *at);
        let returning = self.returning.front().map(|(at, ..)| *at);
        let line = (self.line_free > now && self.written > self.sent).then_some(self.line_free);
        [travelling, returning, line].into_iter().flatten().min()
    }
}

/// The time that `bytes` bytes take at `rate` bytes a second.
pub(crate) fn time_for(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(wire: usize) -> Frame {
        Frame::Message { channel: 0, serial: 0, len: wire, wire }
    }

    /// A writer of 2 MB against a reader that takes nothing, then a little: it sleeps until a third is free.
    #[test]
    fn a_blocked_writer_wakes_when_a_third_is_free() {
        let now = crate::flow::world::start();
        let line = Line { send_buffer: 900_000, receive_buffer: 300_000, ..Line::default() };
        let mut pipe = Pipe::new(now, line);
        pipe.write(now, frame(2_000_000));
        assert_eq!((pipe.written(), pipe.available()), (1_200_000, 300_000));
        pipe.read(now, 299_999);
        assert_eq!(pipe.written(), 1_200_000, "not yet a third");
        pipe.read(now, 1);
        assert_eq!(pipe.written(), 1_500_000);
        let later = now + Duration::from_secs(7);
        while pipe.read(later, u64::MAX) > 0 {}
        assert!(pipe.is_free() && pipe.take() == Some(frame(2_000_000)) && !pipe.is_inside_frame());
        assert_eq!(pipe.longest_write(later), Duration::from_secs(7));
    }

    /// 1 MB at 1 MB/s and 300 ms each way: the last byte arrives after 1.3 s.
    #[test]
    fn a_line_has_a_rate_and_a_latency() {
        let start = crate::flow::world::start();
        let line = Line { rate: Some(1_000_000), latency: Duration::from_millis(300), ..Line::default() };
        let (mut pipe, mut now) = (Pipe::new(start, line), start);
        pipe.write(now, frame(1_000_000));
        while pipe.take().is_none() {
            now = pipe.poll_timeout(now).unwrap();
            pipe.pump(now);
            pipe.read(now, u64::MAX);
        }
        assert_eq!(now - start, Duration::from_millis(1300));
    }
}
