//! One application: its processes, which attach, read, send, stop reading, crash and come back, and the checks of the
//! events that they receive.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use devp2pd::{
    delivery::{AttachParams, Event, credit::MESSAGE_COST},
    lease::{LeaseError, RegistrationSpec},
    node::RegistrationId,
    switch::{
        Principal,
        attachment::{Attachment, Batch, Encoder, PeerChannel, Read, Reply, StreamMessage},
        registration::{AttachRequest, Attached, RegistrationRef, SwitchError},
    },
};
use rand::Rng as _;

use super::{
    command::{Answer, Caller, Command},
    ledger::{SessionKey, Tally},
    mailbox::{Flag, Mailbox},
    net::Net,
};

/// The most bytes and events that one read takes.
const MAX_BYTES: usize = 16 << 10;
const MAX_EVENTS: usize = 32;

/// The reply that the sender of a message must receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Failure,
    Result,
}

/// A stream that is attached.
struct Stream {
    attachment: Attachment,
    run: u64,
    registration: RegistrationId,
    /// The channels that are open, by number.
    channels: BTreeMap<u32, PeerChannel>,
    /// The replies that must still come, by send id and channel.
    owed: BTreeMap<(u64, u32), Owed>,
    sends: u64,
    /// Whether a later stream was attached. If so, messages that are sent on this one are not accepted.
    superseded: bool,
    encoder: Encoder,
    batch: Batch,
}

/// One process of an application.
pub(super) struct Process {
    number: u64,
    stream: Option<Stream>,
    wake: Arc<Flag>,
    pub(super) answers: Mailbox<Answer>,
    pub(super) reads: bool,
    pace: Duration,
    next_read: Instant,
    gives_credit: bool,
    /// Whether it ends its stream when a drain is announced.
    leaves_on_drain: bool,
    gone: bool,
}

/// See the [module](self).
pub(super) struct Application {
    pub(super) home: usize,
    number: usize,
    pub(super) spec: RegistrationSpec,
    token: Option<String>,
    pub(super) processes: Vec<Process>,
    made: u64,
    /// When the next process starts, if none runs. With `None` no process starts.
    pub(super) comes_back: Option<Instant>,
    /// Commands on their way to the switch.
    outgoing: Vec<Command>,
}

impl Application {
    pub(super) fn new(home: usize, number: usize, spec: RegistrationSpec, at: Instant) -> Self {
        Self {
            home,
            number,
            spec,
            token: None,
            processes: Vec::new(),
            made: 0,
            comes_back: Some(at),
            outgoing: Vec::new(),
        }
    }

    pub(super) fn principal(&self) -> Principal {
        Principal { name: Arc::clone(&self.spec.client_id), proven: true, operator: false }
    }

    pub(super) fn client(&self) -> Arc<str> {
        Arc::clone(&self.spec.client_id)
    }

    /// Takes the commands that it has sent.
    pub(super) fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.outgoing)
    }

    /// Whether it has a stream that has not read its end.
    pub(super) fn is_attached(&self) -> bool {
        self.processes.iter().any(|process| process.stream.is_some())
    }

    /// Starts a process, which attaches. `takeover`: also if another stream is attached.
    pub(super) fn start(&mut self, net: &mut Net, takeover: bool) {
        self.made += 1;
        let target = match (net.rng.random_range(0..4), &self.token) {
            (0 | 1, Some(token)) => RegistrationRef::Token(token.clone()),
            (2, Some(_)) => RegistrationRef::Client(self.client()),
            _ => RegistrationRef::Spec(self.spec.clone()),
        };
        let auto_credit = net.rng.random_bool(0.5);
        let window = [0, 0, 2 << 10][net.rng.random_range(0..3)];
        let params =
            AttachParams { auto_credit, stream_window: window, channel_window: window, max_frame_bytes: 0 };
        let request_id =
            if net.rng.random_bool(0.3) { format!("attempt {}", self.made) } else { String::new() };
        let request = Box::new(AttachRequest { target, params, request_id, takeover });
        let wake = Arc::<Flag>::default();
        let caller = Caller { application: self.number, process: self.made };
        self.outgoing.push(Command::Attach {
            caller,
            principal: self.principal(),
            request,
            wake: Arc::clone(&wake),
        });
        self.processes.push(Process {
            number: self.made,
            stream: None,
            wake,
            answers: Mailbox::default(),
            reads: net.rng.random_bool(0.9) || net.is_calm,
            pace: Duration::from_millis([0, 0, 5, 200][net.rng.random_range(0..4)]),
            next_read: net.now.mono,
            gives_credit: !auto_credit,
            leaves_on_drain: net.rng.random_bool(0.5),
            gone: false,
        });
    }

    /// All processes crash. The next one starts at `comes_back`, if that is a time.
    pub(super) fn crash(&mut self, comes_back: Option<Instant>) {
        for mut process in std::mem::take(&mut self.processes) {
            self.outgoing.extend(process.leave());
        }
        self.comes_back = comes_back;
    }

    /// The sidecar has ended, and all streams with it.
    pub(super) fn sidecar_gone(&mut self, net: &mut Net) {
        self.outgoing.clear();
        if !self.processes.is_empty() {
            self.processes.clear();
            self.comes_back = Some(net.now.mono + Duration::from_millis(net.rng.random_range(0..3000)));
        }
    }

    /// Announces to all streams that the sidecar stops, with the deadline as wall time.
    pub(super) fn announce_drain(&self, deadline: Duration) {
        for stream in self.processes.iter().filter_map(|process| process.stream.as_ref()) {
            stream.attachment.announce_drain(deadline);
        }
    }

    /// An answer to a call, for one of its processes.
    pub(super) fn answered(&mut self, net: &mut Net, process: u64, answer: Answer) {
        let at = net.soon();
        if matches!(&answer, Answer::Attached(attached) if attached.is_ok()) {
            let earlier = self.processes.iter_mut().filter_map(|have| have.stream.as_mut());
            earlier.for_each(|stream| stream.superseded = true);
        }
        match self.processes.iter_mut().find(|have| have.number == process) {
            Some(process) => process.answers.send(at, answer),
            // The process has died meanwhile: its connection breaks, and with it the stream that was just attached.
            None => {
                if let Answer::Attached(attached) = answer
                    && let Ok(Attached { attachment, .. }) = *attached
                {
                    self.outgoing.push(detach(&attachment));
                }
            }
        }
    }

    pub(super) fn is_ready(&self, now: Instant) -> bool {
        (self.processes.is_empty() && self.comes_back.is_some_and(|at| at <= now))
            || self.processes.iter().any(|process| process.is_ready(now))
    }

    pub(super) fn next(&self) -> Option<Instant> {
        let back = self.comes_back.filter(|_| self.processes.is_empty());
        let of = |process: &Process| {
            let read = (process.wants_to_read() && process.wake.is_set()).then_some(process.next_read);
            [process.answers.next(), read].into_iter().flatten().min()
        };
        self.processes.iter().filter_map(of).chain(back).min()
    }

    /// One of its processes goes on.
    pub(super) fn step(&mut self, net: &mut Net, run: u64) {
        let now = net.now.mono;
        if self.processes.is_empty() {
            self.comes_back = None;
            return self.start(net, false);
        }
        let ready: Vec<usize> =
            (0..self.processes.len()).filter(|at| self.processes[*at].is_ready(now)).collect();
        if ready.is_empty() {
            return;
        }
        let at = ready[net.rng.random_range(0..ready.len())];
        let process = &mut self.processes[at];
        net.note(("application", self.number, process.number));
        match process.answers.receive(now) {
            Some(Answer::Attached(attached)) => match *attached {
                Ok(attached) => {
                    self.token = Some(attached.token.expose());
                    process.attached(attached, run);
                }
                Err(error) => self.refused(net, at, &error),
            },
            Some(Answer::Channels(channels)) => process.send_calls(net, self.home, run, &channels),
            None => self.outgoing.extend(process.read(net, self.home)),
        }
        self.processes.retain(|process| !process.gone);
        if self.processes.is_empty() && self.comes_back.is_none() {
            self.comes_back = Some(now + Duration::from_millis(net.rng.random_range(0..5000)));
        }
    }

    /// The switch did not let the process attach: it ends, and the next one tries something else.
    fn refused(&mut self, net: &mut Net, at: usize, error: &SwitchError) {
        self.processes.remove(at);
        if !matches!(
            error,
            SwitchError::Stopped | SwitchError::Lease(LeaseError::RegistrationAttached { .. })
        ) {
            self.token = None;
        }
        if self.processes.is_empty() {
            let takeover = matches!(error, SwitchError::Lease(LeaseError::RegistrationAttached { .. }));
            if takeover {
                return self.start(net, true);
            }
            self.comes_back = Some(net.now.mono + Duration::from_millis(net.rng.random_range(500..4000)));
        }
    }

    /// Sends `count` messages of `len` bytes on channels of its stream. Returns false if it has none.
    pub(super) fn send(&mut self, net: &mut Net, count: usize, len: usize) -> bool {
        let home = self.home;
        self.processes.iter_mut().any(|process| process.send(net, home, count, len))
    }

    /// A channel that is open on its stream.
    pub(super) fn channel(&self, net: &mut Net) -> Option<(RegistrationId, PeerChannel)> {
        let stream = self.processes.iter().find_map(|process| process.stream.as_ref())?;
        let channels: Vec<_> = stream.channels.values().collect();
        let chosen = channels.get(net.rng.random_range(0..channels.len().max(1)))?;
        Some((stream.registration, (*chosen).clone()))
    }

    /// The process that has a stream, and a channel that is open on it.
    pub(super) fn caller_and_channel(&self, net: &mut Net) -> Option<(Caller, PeerChannel)> {
        let (_, channel) = self.channel(net)?;
        let process = self.processes.iter().find(|process| process.stream.is_some())?;
        Some((Caller { application: self.number, process: process.number }, channel))
    }

    /// Changes its registration: another size of the queues, and perhaps one protocol less.
    pub(super) fn change_spec(&mut self, net: &mut Net) {
        self.spec.channel_queue_bytes = [0, 4 << 10, 64 << 10][net.rng.random_range(0..3)];
        if self.spec.protocols.len() > 1 && net.rng.random_bool(0.5) {
            self.spec.protocols.pop();
        }
    }

    /// From now on it reads without pauses. If no process runs, the next one starts at once.
    pub(super) fn calm(&mut self, now: Instant) {
        for process in &mut self.processes {
            (process.reads, process.pace) = (true, Duration::ZERO);
        }
        self.comes_back = Some(now);
    }

    /// Checks that no reply is missing.
    pub(super) fn check_quiet(&self) {
        for stream in self.processes.iter().filter_map(|process| process.stream.as_ref()) {
            assert!(stream.owed.is_empty(), "a message has no answer: {:?}", stream.owed);
        }
    }

    /// The open channels of its stream: session id and protocol name.
    pub(super) fn open_channels(&self) -> Vec<(u64, Arc<str>)> {
        let stream = self.processes.iter().find_map(|process| process.stream.as_ref());
        let channels = stream.into_iter().flat_map(|stream| stream.channels.values());
        channels.map(|channel| (channel.session.id.0, Arc::clone(&channel.channel.name))).collect()
    }
}

/// Ends a stream, as its driver does when it is dropped. Returns the command for the switch.
fn detach(attachment: &Attachment) -> Command {
    let last_send_id = attachment.end();
    Command::Detach { id: attachment.registration(), stream: attachment.stream(), last_send_id }
}

impl Process {
    fn wants_to_read(&self) -> bool {
        self.stream.is_some() && self.reads
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.answers.is_due(now) || (self.wants_to_read() && self.wake.is_set() && self.next_read <= now)
    }

    fn attached(&mut self, attached: Attached, run: u64) {
        use devp2pd::Wake as _;
        assert!(self.stream.is_none());
        self.stream = Some(Stream {
            run,
            registration: attached.registration.id,
            attachment: attached.attachment,
            channels: BTreeMap::new(),
            owed: BTreeMap::new(),
            sends: 0,
            superseded: false,
            encoder: Encoder::default(),
            batch: Batch::default(),
        });
        self.wake.wake();
    }

    /// Ends the stream, as the end of the process does. Streams in answers under way are detached as well.
    fn leave(&mut self) -> Vec<Command> {
        self.gone = true;
        let under_way = self.answers.drain().filter_map(|answer| match answer {
            Answer::Attached(attached) => attached.ok().map(|attached| detach(&attached.attachment)),
            Answer::Channels(_) => None,
        });
        let mut commands: Vec<Command> = under_way.collect();
        commands.extend(self.stream.take().map(|stream| detach(&stream.attachment)));
        commands
    }

    /// Reads once. Returns the commands for the switch if the stream ends.
    fn read(&mut self, net: &mut Net, home: usize) -> Vec<Command> {
        self.wake.take();
        let Some(stream) = &mut self.stream else { return Vec::new() };
        let mut batch = std::mem::take(&mut stream.batch);
        let read = stream.attachment.read(MAX_BYTES, MAX_EVENTS, &mut batch);
        let mut leaves = false;
        match read {
            Read::Nothing => {}
            Read::Ended => leaves = true,
            Read::Overrun => panic!("replies are read"),
            Read::Some => {
                use devp2pd::Wake as _;
                let (replies, events) = batch.drain();
                for reply in replies {
                    leaves |= stream.heard(&reply) && self.leaves_on_drain;
                }
                for (event, _) in events {
                    stream.told(net, home, event, self.gives_credit);
                }
                self.wake.wake();
                self.next_read = net.now.mono + self.pace;
            }
        }
        stream.batch = batch;
        if leaves { self.leave() } else { Vec::new() }
    }

    fn send(&mut self, net: &mut Net, home: usize, count: usize, len: usize) -> bool {
        let Some(stream) = self.stream.as_mut().filter(|stream| !stream.channels.is_empty()) else {
            return false;
        };
        for _ in 0..count {
            let numbers: Vec<u32> = stream.channels.keys().copied().collect();
            let mut chosen = vec![numbers[net.rng.random_range(0..numbers.len())]];
            if net.rng.random_bool(0.2) {
                chosen = numbers;
            }
            if net.rng.random_bool(0.02) {
                chosen.push(1 << 20);
            }
            stream.send(net, home, &chosen, len);
        }
        true
    }

    /// Sends by calls on the channels that the switch returned.
    fn send_calls(&mut self, net: &mut Net, home: usize, run: u64, channels: &[PeerChannel]) {
        let (number, payload) = net.ledger.payload(40);
        let message = Encoder::default().encode(1, &payload).unwrap();
        for channel in channels {
            if channel.send(&message).is_ok() {
                net.ledger.accepted(home, run, channel, number);
            }
        }
    }
}

impl Stream {
    fn key(&self, home: usize, session: u64) -> SessionKey {
        SessionKey { sidecar: home, run: self.run, connection: session }
    }

    fn send(&mut self, net: &mut Net, home: usize, channels: &[u32], len: usize) {
        self.sends += 1;
        let (number, payload) = net.ledger.payload(len);
        let accepted = |peer: &PeerChannel| {
            let progress = peer.session.outbound.progress(peer.channel.index);
            progress.stream.accepted + progress.call.accepted
        };
        let before: Vec<Option<u64>> =
            channels.iter().map(|channel| self.channels.get(channel).map(accepted)).collect();
        let want_result = net.rng.random_bool(0.7);
        let fenced = self.attachment.is_fenced();
        assert!(fenced || !self.superseded, "a stream that was taken over sends no more");
        let message =
            StreamMessage { channels, code: 0, payload: &payload, send_id: self.sends, want_result };
        self.attachment.send(&mut self.encoder, &message);
        for (channel, before) in channels.iter().zip(before) {
            let peer = self.channels.get(channel);
            let taken = peer.map(accepted).zip(before).map_or(0, |(after, before)| after - before);
            assert!(
                taken <= u64::from(!fenced),
                "a message is accepted once, and only from the stream that counts"
            );
            if taken == 1 {
                net.ledger.accepted(home, self.run, peer.unwrap(), number);
            }
            if !fenced && (taken == 0 || want_result) {
                let owed = if taken == 0 { Owed::Failure } else { Owed::Result };
                self.owed.insert((self.sends, *channel), owed);
            }
        }
    }

    /// A reply has come. Returns whether it announces a drain.
    fn heard(&mut self, reply: &Reply) -> bool {
        let (key, owed) = match *reply {
            Reply::Failure { send_id, channel, .. } => ((send_id, channel), Owed::Failure),
            Reply::Result { send_id, channel, .. } => ((send_id, channel), Owed::Result),
            Reply::Credit { .. } | Reply::Barrier { .. } => return false,
            Reply::Drain { .. } => return true,
        };
        assert_eq!(self.owed.remove(&key), Some(owed), "the answer to message {key:?}");
        false
    }

    fn told(&mut self, net: &mut Net, home: usize, event: Event<PeerChannel>, gives_credit: bool) {
        let told_key = (home, self.run, self.registration);
        match event {
            Event::Opened(opened) => {
                let peer = opened.about.peer.clone();
                assert_eq!(peer.channel.owner, self.registration, "a channel leads to its owner");
                let told = net.ledger.told.entry(told_key).or_default();
                let tally =
                    told.channels.entry((peer.session.id.0, Arc::clone(&peer.channel.name))).or_default();
                assert!(!tally.closed, "a channel that has closed is not told again");
                assert_eq!(opened.position, tally.position, "the position of a channel");
                assert!(self.channels.insert(opened.channel, peer).is_none(), "numbers are not used again");
            }
            Event::Message { channel, payload, part, .. } => {
                assert!(part.is_none(), "these messages fit a frame");
                let cost = payload.len() as u64 + MESSAGE_COST;
                let (session, name, tally) = self.tally(net, home, channel);
                let position = tally.position;
                tally.position += 1;
                net.ledger.delivered += 1;
                net.ledger.check_message(self.key(home, session), &name, position, &payload);
                if gives_credit {
                    self.attachment.credit(0, cost).unwrap();
                    self.attachment.credit(channel, cost).unwrap();
                }
            }
            Event::Gap { channel: 0, messages, .. } => {
                net.ledger.lost += messages;
                net.ledger.told.entry(told_key).or_default().folded += messages;
            }
            Event::Gap { channel, messages, .. } => {
                net.ledger.lost += messages;
                self.tally(net, home, channel).2.position += messages;
            }
            Event::Closed { channel, close } => {
                let (_, _, tally) = self.tally(net, home, channel);
                assert!(!std::mem::replace(&mut tally.closed, true), "a channel closes once");
                let owed = self.owed.keys().find(|(_, of)| *of == channel);
                assert_eq!(owed, None, "what was sent on a channel is answered before its end");
                let peer = self.channels.remove(&channel).expect("an open channel closes");
                let progress = peer.session.outbound.progress(peer.channel.index);
                assert_eq!(close.unsent_messages, progress.unwritten(), "each message is written or unsent");
            }
        }
    }

    fn tally<'a>(&self, net: &'a mut Net, home: usize, channel: u32) -> (u64, Arc<str>, &'a mut Tally) {
        let peer = &self.channels[&channel];
        let (session, name) = (peer.session.id.0, Arc::clone(&peer.channel.name));
        let told = net.ledger.told.get_mut(&(home, self.run, self.registration)).unwrap();
        let tally = told.channels.get_mut(&(session, Arc::clone(&name))).unwrap();
        (session, name, tally)
    }
}
