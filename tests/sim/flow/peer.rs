//! Peers that behave like the known implementations: what they write first, how long they wait for a write or a Pong,
//! and when they leave. The values come from their sources; `docs/decisions/0006-overflow.md` has the table.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::pipe::{Frame, Pipe};

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    /// go-ethereum, and Erigon. One writer, with 20 s for a frame. It ignores Pongs, and leaves after 30 s without any
    /// frame. It reads a request after it has written the answer to the one before.
    Geth,
    /// Pings every 60 s, and waits 15 s for the Pong. Each Ping of ours takes a token from a bucket of 5, which gains
    /// one a second.
    Reth,
    /// Leaves at the fourth tick of 10 s without a Pong, after 30 s of writing a frame, or with more than 1,024
    /// messages in its queue.
    Ethrex,
    /// Pings every 10 s. Leaves when no Pong has come within 3 s of its Ping for 30 s.
    Nethermind,
    /// Pings every 15 s, and waits 10 s for the Pong.
    EthereumJs,
    /// Pings after 15 s without a frame from us. Leaves after 15 s more without the Pong or another frame.
    Besu,
}

impl Stack {
    pub(crate) const ALL: [Self; 6] =
        [Self::Geth, Self::Reth, Self::Ethrex, Self::Nethermind, Self::EthereumJs, Self::Besu];

    /// The interval of its Ping timer.
    fn interval(self) -> Duration {
        match self {
            Self::Geth | Self::EthereumJs | Self::Besu => seconds(15),
            Self::Reth => seconds(60),
            Self::Ethrex | Self::Nethermind => seconds(10),
        }
    }

    /// The longest time that the write of one frame may take.
    pub(crate) fn write_limit(self) -> Duration {
        match self {
            Self::Geth => seconds(20),
            Self::Ethrex => seconds(30),
            _ => Duration::MAX,
        }
    }
}

/// A frame that a peer sends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Says {
    Message {
        channel: u16,
        /// Bytes of payload, and of the frame.
        len: usize,
        wire: usize,
    },
    /// A Pong without a Ping of ours.
    Pong,
}

/// A message that does not compress.
pub(crate) fn message(len: usize) -> Says {
    Says::Message { channel: 0, len, wire: len + 48 }
}

/// The source of a peer's messages.
pub(crate) enum Supply {
    /// No messages.
    Silent,
    /// A next message at any time, until the function returns `None`.
    Flood(Box<dyn FnMut() -> Option<Says>>),
    /// One message at each interval, whether or not the messages before it were written.
    Gossip { every: Duration, due: Instant, say: Says },
    /// One answer of this size for each message of ours.
    Answers { say: Says, open: u64 },
}

impl Supply {
    pub(crate) fn flood(len: usize) -> Self {
        Self::Flood(Box::new(move || Some(message(len))))
    }

    /// `count` messages of `len` bytes.
    pub(crate) fn messages(count: usize, len: usize) -> Self {
        let mut left = count;
        Self::Flood(Box::new(move || {
            left = left.checked_sub(1)?;
            Some(message(len))
        }))
    }
}

/// When a peer answers our Pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pongs {
    Prompt,
    Never,
    Late(Duration),
}

pub(crate) struct Peer {
    pub(crate) stack: Stack,
    pub(crate) supply: Supply,
    pub(crate) pongs: Pongs,
    /// The indices of the pipes from it and to it.
    pub(crate) out: usize,
    pub(crate) input: usize,
    /// Its own queue of frames that its writer has not begun.
    queue: VecDeque<Frame>,
    /// The number of messages sent so far, by channel.
    serials: Vec<u64>,
    next_ping: Instant,
    /// When its Pings without a Pong were queued.
    pings: VecDeque<Instant>,
    /// The time of the last Pong; of Nethermind, the last one within 3 s.
    good: Instant,
    ticks: u32,
    heard: Instant,
    /// The times of the Pongs that it delays.
    owed: VecDeque<Instant>,
    /// reth's bucket for our Pings.
    tokens: f64,
    refilled: Instant,
    /// It does not read our frames before this time.
    pub(crate) deaf_until: Option<Instant>,
    pub(crate) pongs_heard: u64,
    /// When it left, and why.
    pub(crate) gone: Option<(Instant, &'static str)>,
}

impl Peer {
    pub(crate) fn new(now: Instant, stack: Stack, supply: Supply) -> Self {
        Self {
            stack,
            supply,
            pongs: Pongs::Prompt,
            out: 0,
            input: 0,
            queue: VecDeque::new(),
            serials: Vec::new(),
            next_ping: now + stack.interval(),
            pings: VecDeque::new(),
            good: now,
            ticks: 0,
            heard: now,
            owed: VecDeque::new(),
            tokens: 5.0,
            refilled: now,
            deaf_until: None,
            pongs_heard: 0,
            gone: None,
        }
    }

    pub(crate) fn with_pongs(self, pongs: Pongs) -> Self {
        Self { pongs, ..self }
    }

    /// From now on its Pings count as answered, and it has not left.
    pub(crate) fn forgive_pings(&mut self) {
        self.pings.clear();
        self.gone = None;
    }

    /// The number of messages that it has sent on a channel.
    pub(crate) fn said(&self, channel: usize) -> u64 {
        self.serials.get(channel).copied().unwrap_or(0)
    }

    fn leave(&mut self, now: Instant, why: &'static str) {
        self.gone.get_or_insert((now, why));
    }

    fn frame(&mut self, say: Says) -> Frame {
        let Says::Message { channel, len, wire } = say else { return Frame::Pong };
        let at = usize::from(channel);
        self.serials.resize(self.serials.len().max(at + 1), 0);
        let serial = self.serials[at];
        self.serials[at] += 1;
        Frame::Message { channel, serial, len, wire }
    }

    /// Puts a message of the base protocol into the queue where its implementation does.
    fn base(&mut self, frame: Frame) {
        match self.stack {
            // A separate goroutine writes it, and waits only for the write lock.
            Stack::Geth => self.queue.push_front(frame),
            // Behind two messages, ahead of the session's queue.
            Stack::Reth => self.queue.insert(self.queue.len().min(2), frame),
            _ => self.queue.push_back(frame),
        }
    }

    /// Does everything that can be done now. Returns whether it did anything.
    pub(crate) fn go(&mut self, now: Instant, pipes: &mut [Pipe]) -> bool {
        if self.gone.is_some() {
            return false;
        }
        let mut moved = self.read(now, &mut pipes[self.input]);
        moved |= self.tick(now);
        if let Supply::Gossip { every, due, say } = self.supply
            && due <= now
        {
            self.supply = Supply::Gossip { every, due: due + every, say };
            let frame = self.frame(say);
            self.queue.push_back(frame);
            moved = true;
        }
        while self.owed.front().is_some_and(|at| *at <= now) {
            self.owed.pop_front();
            self.base(Frame::Pong);
            moved = true;
        }
        let pipe = &mut pipes[self.out];
        if pipe.longest_write(now) >= self.stack.write_limit() {
            self.leave(now, "a frame took too long to write");
        }
        if self.stack == Stack::Ethrex && self.queue.len() > 1024 {
            self.leave(now, "its queue is full");
        }
        // One turn writes at most 64 frames, so that the other parts get their turns.
        for _ in 0..64 {
            if !pipe.is_free() {
                break;
            }
            let Some(frame) = self.next() else { break };
            pipe.write(now, frame);
            moved = true;
        }
        moved
    }

    fn next(&mut self) -> Option<Frame> {
        if let Some(frame) = self.queue.pop_front() {
            return Some(frame);
        }
        let say = match &mut self.supply {
            Supply::Silent | Supply::Gossip { .. } => return None,
            Supply::Flood(next) => next()?,
            Supply::Answers { say, open } => {
                *open = open.checked_sub(1)?;
                *say
            }
        };
        Some(self.frame(say))
    }

    /// Whether it reads our next frame.
    fn listens(&self, now: Instant) -> bool {
        let open = match &self.supply {
            Supply::Answers { open, .. } => *open,
            _ => 0,
        };
        let most = match self.stack {
            Stack::Geth => 0,
            Stack::Reth => 4,
            _ => u64::MAX,
        };
        open <= most && self.deaf_until.is_none_or(|until| until <= now)
    }

    fn read(&mut self, now: Instant, pipe: &mut Pipe) -> bool {
        let mut moved = false;
        while self.listens(now) {
            let Some(frame) = pipe.take() else {
                if pipe.read(now, 64 << 10) == 0 {
                    break;
                }
                continue;
            };
            moved = true;
            self.heard = now;
            match frame {
                Frame::Ping => self.pinged(now),
                Frame::Pong => self.ponged(now),
                Frame::Message { .. } => {
                    if let Supply::Answers { open, .. } = &mut self.supply {
                        *open += 1;
                    }
                }
            }
        }
        moved
    }

    fn pinged(&mut self, now: Instant) {
        if self.stack == Stack::Reth {
            self.tokens = (self.tokens + (now - self.refilled).as_secs_f64()).min(5.0);
            self.refilled = now;
            self.tokens -= 1.0;
            if self.tokens < 0.0 {
                self.leave(now, "TooManyPings");
            }
        }
        match self.pongs {
            Pongs::Prompt => self.base(Frame::Pong),
            Pongs::Never => {}
            Pongs::Late(delay) => self.owed.push_back(now + delay),
        }
    }

    fn ponged(&mut self, now: Instant) {
        self.pongs_heard += 1;
        let Some(pinged) = self.pings.pop_front() else {
            if self.stack == Stack::Reth {
                self.leave(now, "a Pong that it did not ask for");
            }
            return;
        };
        self.ticks = 0;
        if self.stack != Stack::Nethermind || now - pinged <= seconds(3) {
            self.good = now;
        }
    }

    /// Runs its timers. Returns whether the Ping timer was due.
    fn tick(&mut self, now: Instant) -> bool {
        let oldest = self.pings.front().map(|at| now - *at);
        match self.stack {
            Stack::Geth => {
                if self.listens(now) && now - self.heard >= seconds(30) {
                    self.leave(now, "30 s without a frame");
                }
            }
            Stack::Reth => {
                if oldest.is_some_and(|age| age >= seconds(15)) {
                    self.leave(now, "PingTimeout");
                }
            }
            Stack::EthereumJs => {
                if oldest.is_some_and(|age| age >= seconds(10)) {
                    self.leave(now, "TIMEOUT");
                }
            }
            Stack::Nethermind => {
                if now - self.good >= seconds(30) {
                    self.leave(now, "no Pong in time for 30 s");
                }
            }
            Stack::Ethrex => {}
            Stack::Besu => {
                // Every frame of ours restarts its timer.
                if self.pings.is_empty() {
                    self.next_ping = self.heard + seconds(15);
                }
            }
        }
        if now < self.next_ping {
            return false;
        }
        self.next_ping = now + self.stack.interval();
        match self.stack {
            Stack::Ethrex => {
                self.ticks += 1;
                if self.ticks > 3 {
                    self.leave(now, "three Pings unanswered");
                }
            }
            Stack::Besu if !self.pings.is_empty() => {
                if now - self.heard >= seconds(15) {
                    self.leave(now, "idle");
                }
                return true;
            }
            _ => {}
        }
        self.pings.push_back(now);
        self.base(Frame::Ping);
        true
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        if self.gone.is_some() {
            return None;
        }
        let gossip = match self.supply {
            Supply::Gossip { due, .. } => Some(due),
            _ => None,
        };
        let patience = match self.stack {
            Stack::Reth => self.pings.front().map(|at| *at + seconds(15)),
            Stack::EthereumJs => self.pings.front().map(|at| *at + seconds(10)),
            Stack::Nethermind => Some(self.good + seconds(30)),
            Stack::Geth if self.listens(now) => Some(self.heard + seconds(30)),
            _ => None,
        };
        let deaf = self.deaf_until.filter(|until| *until > now);
        [Some(self.next_ping), gossip, patience, deaf, self.owed.front().copied()].into_iter().flatten().min()
    }
}
