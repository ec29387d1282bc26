//! Tests with bodies that are cut at every place, and with callers that send only half a message.

use std::{collections::VecDeque, sync::atomic::AtomicUsize, task::Waker};

use http_body_util::BodyExt as _;
use tonic::Code;

use super::*;
use crate::budget::Resource;

/// The part of a body that a test has written.
#[derive(Default)]
struct Written {
    frames: VecDeque<Bytes>,
    ended: bool,
    reader: Option<Waker>,
}

/// A body whose data comes when the test writes it.
struct Script {
    written: Arc<Mutex<Written>>,
    /// The number of frames that were read.
    taken: Arc<AtomicUsize>,
}

struct Writer(Arc<Mutex<Written>>);

impl Writer {
    fn send(&self, data: &[u8]) {
        self.change(|written| written.frames.push_back(Bytes::copy_from_slice(data)));
    }

    fn end(&self) {
        self.change(|written| written.ended = true);
    }

    fn change(&self, change: impl FnOnce(&mut Written)) {
        let mut written = self.0.lock().unwrap();
        change(&mut written);
        if let Some(reader) = written.reader.take() {
            reader.wake();
        }
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut written = self.written.lock().unwrap();
        match written.frames.pop_front() {
            Some(data) => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            None if written.ended => Poll::Ready(None),
            None => {
                written.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn body(share: &Share, limit: usize) -> (Writer, Budgeted<Script>, Arc<AtomicUsize>) {
    let written = Arc::<Mutex<Written>>::default();
    let taken = Arc::<AtomicUsize>::default();
    let script = Script { written: Arc::clone(&written), taken: Arc::clone(&taken) };
    (Writer(written), Budgeted::new(script, limit, share.clone()), taken)
}

/// A message as gRPC frames it.
fn framed(size: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(size).unwrap().to_be_bytes());
    bytes.extend((0..size).map(|n| u8::try_from(n % 251).unwrap()));
    bytes
}

const PATIENT: Duration = Duration::from_secs(60);

/// The unit in which the tests count.
const UNIT: usize = 1024;

/// Requests with this many units in all, and for each connection.
fn requests(total: u64, per_connection: u64, patience: Duration) -> Requests {
    let budget = Budget::new(Resource::Requests, total * UNIT as u64);
    Requests::with(budget, per_connection * UNIT as u64, patience)
}

/// How many units are taken, each message rounded down.
fn held(pool: &Arc<Pool>) -> usize {
    pool.budget.used() as usize / UNIT
}

#[tokio::test]
async fn bytes_pass_unchanged_however_they_are_cut_and_nothing_stays_claimed() {
    let budget = requests(64, 8, PATIENT);
    let share = budget.share();
    let sizes = [0, 1, 4, 5, 0, 0, 3_000, 1, 8 * UNIT, 700];
    let whole: Vec<u8> = sizes.iter().flat_map(|size| framed(*size)).collect();
    for cut in [1, 2, 3, 4, 5, 6, 7, 1_000, 4_096, whole.len() - 1, whole.len()] {
        let (writer, mut body, _) = body(&share, 8 * UNIT);
        whole.chunks(cut).for_each(|chunk| writer.send(chunk));
        writer.end();
        let mut got = Vec::new();
        while let Some(frame) = body.frame().await {
            got.extend(frame.unwrap().into_data().unwrap());
        }
        assert!(got == whole, "cut to {cut}");
        assert_eq!((held(&share.own), held(&share.all)), (0, 0), "cut to {cut}");
        assert!(share.own.holders().is_empty() && share.all.holders().is_empty());
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_at_its_prefix() {
    let share = requests(64, 8, PATIENT).share();
    let (writer, mut body, _) = body(&share, 1_000);
    writer.send(&framed(1_000));
    body.frame().await.unwrap().unwrap();
    writer.send(&framed(1_001)[..5]);
    let status = body.frame().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("1001") && status.message().contains("1000"), "{status}");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn what_finds_no_room_waits_unread_and_goes_on() {
    let budget = requests(16, 16, PATIENT);
    let (one, two) = (budget.share(), budget.share());
    let large = framed(10 * UNIT);
    let (first, mut first_body, _) = body(&one, 16 * UNIT);
    first.send(&large[..100]);
    assert_eq!(first_body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 100);
    assert_eq!((held(&one.own), held(&budget.all)), (10, 10));

    // A large message of another connection has to wait: the bytes before it pass, and its own bytes are not read.
    let (second, mut second_body, seen) = body(&two, 16 * UNIT);
    let small = framed(20);
    second.send(&[&small[..], &large[..200]].concat());
    second.send(&large[200..]);
    second.end();
    let passed = second_body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&passed[..], [&small[..], &large[..4]].concat());
    let waits = tokio::time::timeout(Duration::from_millis(50), second_body.frame()).await;
    assert!(waits.is_err());
    assert_eq!(seen.load(Ordering::Relaxed), 1, "the second frame is not read");
    // A message that arrives whole does not wait for the others.
    let (third, mut third_body, _) = body(&two, 16 * UNIT);
    third.send(&framed(12 * UNIT));
    assert!(third_body.frame().await.unwrap().is_ok());

    // The first message becomes whole and frees its room. The second one goes on where it stopped.
    first.send(&large[100..]);
    first_body.frame().await.unwrap().unwrap();
    let mut rest = Vec::new();
    while let Some(frame) = second_body.frame().await {
        rest.extend(frame.unwrap().into_data().unwrap());
    }
    assert_eq!(rest, large[4..]);
    assert_eq!(held(&budget.all), 0);
}

#[tokio::test]
async fn who_does_not_finish_gives_way_and_only_as_far_as_needed() {
    let patience = Duration::from_millis(50);
    let budget = requests(16, 8, patience);
    let (liar, other) = (budget.share(), budget.share());
    let half = &framed(4 * UNIT)[..1_000];
    let mut halves: Vec<_> = (0..20)
        .map(|_| {
            let (writer, body, _) = body(&liar, 8 * UNIT);
            writer.send(half);
            (writer, body)
        })
        .collect();
    // Two messages have room in the share of their connection. The others wait for it.
    for (_, body) in &mut halves {
        let _ = tokio::time::timeout(Duration::from_millis(1), body.frame()).await;
    }
    assert_eq!((held(&liar.own), held(&budget.all)), (8, 8));

    // Another connection has its own share, and gets room at once.
    let (writer, mut good, _) = body(&other, 8 * UNIT);
    let large = framed(8 * UNIT);
    writer.send(&large[..500]);
    let started = Instant::now();
    good.frame().await.unwrap().unwrap();
    assert!(started.elapsed() < patience, "it waited");
    writer.send(&large[500..]);
    good.frame().await.unwrap().unwrap();
    drop(good);

    // On the first connection the oldest message is cut off, and the next one in order gets its room.
    let (_, mut third) = halves.remove(2);
    let waiting = tokio::spawn(async move { third.frame().await.map(|frame| frame.is_ok()) });
    let first = halves.remove(0).1.frame().await.unwrap().unwrap_err();
    assert_eq!(first.code(), Code::ResourceExhausted);
    assert!(first.message().contains("was not whole"), "{first}");
    assert_eq!(waiting.await.unwrap(), Some(true));
    // After all bodies are dropped, no room is claimed.
    drop(halves);
    assert_eq!((held(&liar.own), held(&budget.all)), (0, 0));
}

#[tokio::test]
async fn room_is_free_again_when_a_body_is_dropped_while_it_waits() {
    let budget = requests(8, 8, PATIENT);
    let share = budget.share();
    let half = &framed(8 * UNIT)[..100];
    let (writer, mut first, _) = body(&share, 8 * UNIT);
    writer.send(half);
    first.frame().await.unwrap().unwrap();
    let (writer, mut second, _) = body(&share, 8 * UNIT);
    writer.send(half);
    assert!(second.frame().await.unwrap().is_ok(), "the prefix but its last byte");
    assert!(tokio::time::timeout(Duration::from_millis(20), second.frame()).await.is_err());
    drop(second);
    let (writer, mut third, _) = body(&share, 8 * UNIT);
    writer.send(half);
    third.frame().await.unwrap().unwrap();
    drop(first);
    assert!(third.frame().await.unwrap().is_ok(), "no other message holds the room");
    drop(third);
    assert_eq!((held(&share.own), held(&budget.all)), (0, 0));
}

#[tokio::test]
async fn waiting_for_others_is_not_held_against_a_message() {
    let patience = Duration::from_millis(80);
    let budget = requests(8, 8, patience);
    let (liar, honest) = (budget.share(), budget.share());
    let large = framed(8 * UNIT);
    let (writer, mut half, _) = body(&liar, 8 * UNIT);
    writer.send(&large[..100]);
    half.frame().await.unwrap().unwrap();
    // Two messages of one connection: the first waits until the other connection's half is cut off, the second waits
    // for the first. The time of waiting must not count against them.
    let sent = |share: &Share| {
        let (writer, mut body, _) = body(share, 8 * UNIT);
        tokio::spawn(async move {
            writer.send(&large_half());
            body.frame().await.unwrap().unwrap();
            body.frame().await.unwrap().unwrap();
            writer.send(&framed(8 * UNIT)[4_000..]);
            body.frame().await.unwrap().map(drop)
        })
    };
    let (first, second) = (sent(&honest), sent(&honest));
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    assert!(half.frame().await.unwrap().is_err(), "the message that was not finished is cut off");
}

fn large_half() -> Vec<u8> {
    framed(8 * UNIT)[..4_000].to_vec()
}
