//! Applications: one Exchange stream each, with credit by hand or automatic, a sender that respects its windows, and a
//! reader with a pace.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use devp2pd::rpc::proto::{
    Attach, ClientEvent, ExchangeRequest, ExchangeResponse, OutboundMessage, OverflowPolicy, ProtocolSpec,
    RegistrationSpec, ServerEvent, WindowUpdate, attach::Target, client_event::Event as Wish,
    overflow_policy::Action, server_event::Event,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::processes::Sidecar;

/// The cost of a message beside its bytes, in all windows.
const MESSAGE_COST: i64 = 64;
/// The most that one frame of requests carries.
const FRAME: usize = 256 << 10;

/// How an application takes messages.
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) auto_credit: bool,
    pub(crate) action: Action,
}

impl Reading {
    pub(crate) const BY_HAND: Self = Self { auto_credit: false, action: Action::DropAndReport };
    pub(crate) const AUTO: Self = Self { auto_credit: true, action: Action::DropAndReport };
}

/// The counters of an application. Shared with the code that watches it.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) messages: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) gaps: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) closed: AtomicU64,
    /// The pace of the reader in bytes a second; 0 is as fast as it goes.
    pub(crate) pace: AtomicU64,
    /// Reads nothing while it is set.
    pub(crate) stopped: AtomicBool,
}

impl Seen {
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(crate) fn accounted(&self) -> u64 {
        self.messages() + self.lost()
    }

    /// Waits until so many messages are delivered or reported; `false` if nothing comes for a minute before.
    pub(crate) async fn reaches(&self, count: u64) -> bool {
        let (mut before, mut since) = (self.accounted(), Instant::now());
        while before < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let now = self.accounted();
            if now != before {
                (before, since) = (now, Instant::now());
            } else if since.elapsed() > Duration::from_secs(60) {
                return false;
            }
        }
        true
    }
}

/// An attached application. Its reader runs in a task of its own.
pub(crate) struct Application {
    pub(crate) seen: Arc<Seen>,
    requests: mpsc::Sender<ExchangeRequest>,
    /// Send credit and channels, from the reader.
    news: mpsc::Receiver<News>,
    /// The windows of the channels that are open.
    windows: HashMap<u32, i64>,
    /// Sends that were refused.
    pub(crate) refused: u64,
}

enum News {
    Opened(u32, i64),
    Window(u32, i64),
    Refused,
}

impl Application {
    pub(crate) async fn attach(sidecar: &Sidecar, client: &str, protocol: &str, reading: Reading) -> Self {
        let protocol = ProtocolSpec {
            name: protocol.to_owned(),
            version: 1,
            message_count: 8,
            ..ProtocolSpec::default()
        };
        let overflow = OverflowPolicy { action: reading.action.into(), ..OverflowPolicy::default() };
        let spec = RegistrationSpec {
            client_id: client.to_owned(),
            protocols: vec![protocol],
            overflow_policy: Some(overflow),
            ..RegistrationSpec::default()
        };
        let attach = Attach {
            target: Some(Target::Spec(spec)),
            auto_credit: reading.auto_credit,
            ..Attach::default()
        };
        let (requests, outgoing) = mpsc::channel(64);
        let first = ClientEvent { event: Some(Wish::Attach(attach)) };
        requests.send(ExchangeRequest { events: vec![first] }).await.unwrap();
        let responses =
            sidecar.messages().exchange(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
        // A sender that waits for credit takes the events. A reader without a listener must not wait for it.
        let (tell, news) = mpsc::channel(65_536);
        let seen = Arc::<Seen>::default();
        let reader = Reader {
            seen: Arc::clone(&seen),
            requests: requests.clone(),
            tell,
            by_hand: !reading.auto_credit,
        };
        tokio::spawn(reader.run(responses));
        Self { seen, requests, news, windows: HashMap::new(), refused: 0 }
    }

    /// Waits for the next channel.
    pub(crate) async fn channel(&mut self) -> u32 {
        loop {
            let news = tokio::time::timeout(Duration::from_secs(60), self.news.recv()).await;
            if let News::Opened(channel, window) = news.expect("a channel opens").expect("the stream stands")
            {
                self.windows.insert(channel, window);
                return channel;
            }
        }
    }

    /// Sends messages of this size as fast as the windows allow, until `until`. Returns how many were accepted.
    pub(crate) async fn pour(&mut self, channel: u32, code: u32, payload: &Bytes, until: Until) -> u64 {
        let (mut sent, refused) = (0, self.refused);
        while until.goes_on(sent) {
            let (mut events, mut bytes) = (Vec::new(), 0);
            while self.windows[&channel] > 0 && bytes < FRAME && until.goes_on(sent) {
                *self.windows.get_mut(&channel).unwrap() -= payload.len() as i64 + MESSAGE_COST;
                bytes += payload.len() + 16;
                sent += 1;
                let message = OutboundMessage {
                    channel_ids: vec![channel],
                    code,
                    payload: payload.clone(),
                    ..OutboundMessage::default()
                };
                events.push(ClientEvent { event: Some(Wish::Message(message)) });
            }
            if events.is_empty() {
                // The window is used up.
                if !self.hear(Duration::from_secs(1)).await {
                    continue;
                }
            } else if self.requests.send(ExchangeRequest { events }).await.is_err() {
                break;
            }
            while self.hear(Duration::ZERO).await {}
        }
        sent - (self.refused - refused)
    }

    /// Takes one piece of news, if it comes in time.
    async fn hear(&mut self, within: Duration) -> bool {
        let news = match within {
            Duration::ZERO => self.news.try_recv().ok(),
            within => tokio::time::timeout(within, self.news.recv()).await.ok().flatten(),
        };
        match news {
            Some(News::Window(channel, bytes)) => *self.windows.entry(channel).or_default() += bytes,
            Some(News::Opened(channel, window)) => drop(self.windows.insert(channel, window)),
            Some(News::Refused) => self.refused += 1,
            None => return false,
        }
        true
    }
}

/// When a sender stops.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    Time(Instant),
    Count(u64),
}

impl Until {
    fn goes_on(self, sent: u64) -> bool {
        match self {
            Self::Time(time) => Instant::now() < time,
            Self::Count(count) => sent < count,
        }
    }
}

struct Reader {
    seen: Arc<Seen>,
    requests: mpsc::Sender<ExchangeRequest>,
    tell: mpsc::Sender<News>,
    by_hand: bool,
}

impl Reader {
    async fn run(self, mut responses: Streaming<ExchangeResponse>) {
        let (mut pace, mut paced, mut since) = (0, 0, Instant::now());
        loop {
            while self.seen.stopped.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let frame = match responses.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(status) => {
                    // A sidecar that is killed at the end of its row breaks the connection; anything else is news.
                    if status.code() != tonic::Code::Unknown {
                        eprintln!("a stream ended: {status}");
                    }
                    return;
                }
            };
            let mut credit: HashMap<u32, u64> = HashMap::new();
            for event in frame.events.into_iter().filter_map(|ServerEvent { event }| event) {
                let (channel, bytes, whole) = match event {
                    Event::Message(message) => {
                        let whole = message.fragment.as_ref().is_none_or(|part| {
                            part.offset as usize + message.payload.len() == part.total_bytes as usize
                        });
                        (message.channel_id, message.payload.len() as u64, whole)
                    }
                    other => {
                        self.note(other);
                        continue;
                    }
                };
                self.seen.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.seen.messages.fetch_add(u64::from(whole), Ordering::Relaxed);
                let cost = bytes + if whole { MESSAGE_COST as u64 } else { 0 };
                *credit.entry(channel).or_default() += cost;
                let now = self.seen.pace.load(Ordering::Relaxed);
                if now != pace {
                    (pace, paced, since) = (now, 0, Instant::now());
                }
                if pace > 0 {
                    paced += bytes;
                    let due = since + Duration::from_secs_f64(paced as f64 / pace as f64);
                    if due > Instant::now() + Duration::from_millis(5) {
                        self.give(&mut credit).await;
                        tokio::time::sleep_until(due.into()).await;
                    }
                }
            }
            self.give(&mut credit).await;
        }
    }

    /// Returns the credit of the processed messages.
    async fn give(&self, credit: &mut HashMap<u32, u64>) {
        let total: u64 = credit.values().sum();
        if !self.by_hand || total == 0 {
            credit.clear();
            return;
        }
        let updates = credit.drain().chain([(0, total)]);
        let events = updates
            .map(|(channel_id, bytes)| ClientEvent {
                event: Some(Wish::WindowUpdate(WindowUpdate { channel_id, bytes })),
            })
            .collect();
        let _ = self.requests.send(ExchangeRequest { events }).await;
    }

    fn note(&self, event: Event) {
        let news = match event {
            Event::ChannelOpened(opened) => {
                News::Opened(opened.channel_id, i64::try_from(opened.send_window_bytes).unwrap())
            }
            Event::WindowUpdate(update) => {
                News::Window(update.channel_id, i64::try_from(update.bytes).unwrap())
            }
            Event::SendFailure(failure) => {
                eprintln!("a message was refused: {failure:?}");
                News::Refused
            }
            Event::Gap(gap) => {
                self.seen.gaps.fetch_add(1, Ordering::Relaxed);
                self.seen.lost.fetch_add(gap.messages, Ordering::Relaxed);
                return;
            }
            Event::ChannelClosed(closed) => {
                eprintln!("a channel was closed: {:?} by {}: {}", closed.reason(), closed.by, closed.detail);
                self.seen.closed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            _ => return,
        };
        let _ = self.tell.try_send(news);
    }
}

/// Bytes that do not compress, but for the last 256 KiB of a message that would not fit a frame otherwise.
pub(crate) fn noise(size: usize) -> Bytes {
    const LARGEST: usize = (16 << 20) - (256 << 10);
    let mut state = 11_u64;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size.min(LARGEST) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.resize(size, 0);
    Bytes::from(bytes)
}
