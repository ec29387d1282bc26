//! A writer of lines that never waits for its reader.
//!
//! Standard error and standard output are pipes in most deployments. A pipe that is not read is full after 64 KiB, and
//! the next write blocks until the reader reads. On a thread of the runtime that would stop probes, calls and signals.
//! So lines go into a bounded buffer, and one thread, which does nothing else, writes them out. When the buffer is
//! full, the new line is dropped and counted. The owner gets the count as soon as lines are read again.
//!
//! The thread writes to its own descriptor and takes no lock of `std::io`, so that code that prints through `std` does
//! not wait for a blocked write here.
//!
//! Left out: the format of a line (`telemetry`).

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// The most bytes of lines that wait for the reader: about 4,000 lines of the log, which a burst at `debug` writes in a
/// second.
const MAX_WAITING: usize = 1 << 20;

/// The most bytes of one write. The system writes up to 4,096 bytes to a pipe in one piece (PIPE_BUF), so lines of two
/// processes that share a pipe do not mix.
const WRITE: usize = 4_096;

/// The capacity that an empty buffer keeps after a burst, in bytes.
const KEPT: usize = 64 << 10;

/// The pause before a write is tried again, if the descriptor is in non-blocking mode (a parent process may set it) and
/// full.
const RETRY: Duration = Duration::from_millis(10);

/// A bounded queue of lines in front of a file descriptor. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Sender>);

/// Closes the queue when the last clone is dropped, which ends the thread.
#[derive(Debug)]
struct Sender(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when lines are queued, when a batch is written, and when the queue is closed.
    changed: Condvar,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<u8>,
    /// Whether the thread is writing lines that it took out of `waiting`.
    writing: bool,
    closed: bool,
}

impl Lines {
    /// Returns a queue for lines. A new thread called `name` writes them to a duplicate of `target`. After lines were
    /// dropped and others could be written again, the thread calls `on_dropped` with the number of lines dropped so
    /// far.
    pub fn to(target: impl AsFd, name: &str, on_dropped: impl Fn(u64) + Send + 'static) -> io::Result<Self> {
        let file = File::from(target.as_fd().try_clone_to_owned()?);
        let shared =
            Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), dropped: Arc::default() });
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || write_lines(&writer, file, &on_dropped))?;
        Ok(Self(Arc::new(Sender(shared))))
    }

    /// Queues `text`, which ends with a newline. If the queue is full, drops and counts it.
    pub fn push(&self, text: &[u8]) {
        let shared = &self.0.0;
        let mut queue = shared.lock();
        if queue.waiting.len() + text.len() > MAX_WAITING {
            drop(queue);
            shared.dropped.fetch_add(lines_in(text), Ordering::Relaxed);
            return;
        }
        queue.waiting.extend_from_slice(text);
        shared.changed.notify_all();
    }

    /// Waits until all queued lines are written, for at most `limit`. Returns whether they are written.
    pub fn flush(&self, limit: Duration) -> bool {
        let shared = &self.0.0;
        let busy = |queue: &mut Queue| queue.writing || !queue.waiting.is_empty();
        let waited = shared.changed.wait_timeout_while(shared.lock(), limit, busy);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        !busy(&mut queue)
    }

    /// Returns the counter of lines that were dropped since the start. It goes on counting.
    #[must_use]
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.0.dropped)
    }
}

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.push(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    /// Locks the queue. The lock is held for copies in memory only, never during a write.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The function of the thread: writes queued lines until the queue is closed and empty.
fn write_lines(shared: &Shared, mut file: File, on_dropped: &dyn Fn(u64)) {
    let mut batch = Vec::new();
    let mut reported = 0;
    loop {
        let queue = shared.lock();
        let idle = |queue: &mut Queue| queue.waiting.is_empty() && !queue.closed;
        let mut queue = shared.changed.wait_while(queue, idle).unwrap_or_else(PoisonError::into_inner);
        if queue.waiting.is_empty() {
            return;
        }
        std::mem::swap(&mut batch, &mut queue.waiting);
        queue.writing = true;
        drop(queue);

        let lost = write_batch(&mut file, &batch);
        shared.dropped.fetch_add(lost, Ordering::Relaxed);
        batch.clear();
        batch.shrink_to(KEPT);
        let dropped = shared.dropped.load(Ordering::Relaxed);
        // If the write failed, `on_dropped` is not called, because a line that it logs would be lost as well.
        if lost == 0 && dropped > reported {
            reported = dropped;
            on_dropped(dropped);
        }
        shared.lock().writing = false;
        shared.changed.notify_all();
    }
}

/// Writes `batch` in pieces of whole lines. Returns the number of lines that could not be written.
fn write_batch(file: &mut File, batch: &[u8]) -> u64 {
    let mut rest = batch;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(piece_len(rest));
        if write_piece(file, piece).is_err() {
            return lines_in(rest);
        }
        rest = after;
    }
    0
}

/// Returns the length of the next piece in bytes: as many whole lines as fit one write, and at least one line.
fn piece_len(rest: &[u8]) -> usize {
    let newline = |byte: &u8| *byte == b'\n';
    let fits = rest.get(..WRITE).unwrap_or(rest);
    let end = fits.iter().rposition(newline).or_else(|| rest.iter().position(newline));
    end.map_or(rest.len(), |end| end + 1)
}

fn write_piece(file: &mut File, mut piece: &[u8]) -> io::Result<()> {
    while !piece.is_empty() {
        match file.write(piece) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => piece = piece.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn lines_in(text: &[u8]) -> u64 {
    let newlines = text.iter().filter(|byte| **byte == b'\n').count() as u64;
    newlines.max(u64::from(!text.is_empty()))
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, sync::mpsc};

    use super::*;

    /// A time limit for a busy machine. A test reaches it only if it fails.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn lines_are_written_whole_and_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let lines = Lines::to(&writer, "test", |_| panic!("nothing is dropped")).unwrap();
        drop(writer);
        let mut expected = Vec::new();
        for number in 0..1_000 {
            let line = format!("{number} {}\n", "x".repeat(number));
            // This test writes half of `MAX_WAITING` before the reader begins, so no line is dropped.
            lines.push(line.as_bytes());
            expected.extend_from_slice(line.as_bytes());
        }
        let dropped = lines.dropped();
        drop(lines);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert!(read == expected, "{} bytes of {}", read.len(), expected.len());
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_never_time() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (told, tells) = mpsc::sync_channel(100);
        let lines = Lines::to(&writer, "test", move |count| told.try_send(count).unwrap()).unwrap();
        drop(writer);
        // Far more lines than pipe and queue hold. A push that waits would wait for ever, because this thread is the
        // reader.
        let line = [b'x'; 1_023].iter().copied().chain([b'\n']).collect::<Vec<u8>>();
        let pushed = 10_000;
        for _ in 0..pushed {
            lines.push(&line);
        }
        assert!(!lines.flush(Duration::ZERO), "the reader has not read");
        let dropped = lines.dropped().load(Ordering::Relaxed);
        assert!(dropped >= pushed - 2 * (MAX_WAITING as u64 >> 10) - 64, "{dropped} of {pushed}");
        // The reader reads again: the lines that waited are complete, and the owner gets the number of the others.
        let mut read = Vec::new();
        let kept = (pushed - dropped) * line.len() as u64;
        reader.by_ref().take(kept).read_to_end(&mut read).unwrap();
        assert!(read.chunks(line.len()).all(|have| have == line));
        assert_eq!(tells.recv_timeout(PATIENCE), Ok(dropped));
        assert!(lines.flush(PATIENCE));
    }

    #[test]
    fn a_reader_that_has_gone_costs_lines_only() {
        let (reader, writer) = io::pipe().unwrap();
        let lines = Lines::to(&writer, "test", |_| panic!("there is no reader to tell")).unwrap();
        drop((reader, writer));
        lines.push(b"one\ntwo\n");
        assert!(lines.flush(PATIENCE));
        lines.push(b"three\n");
        assert!(lines.flush(PATIENCE));
        assert_eq!(lines.dropped().load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_descriptor_in_non_blocking_mode_loses_nothing() {
        let (mut reader, writer) = io::pipe().unwrap();
        let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
        rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let lines = Lines::to(&writer, "test", |_| panic!("nothing is dropped")).unwrap();
        drop(writer);
        let line = [b'x'; 999].iter().copied().chain([b'\n']).collect::<Vec<u8>>();
        // Twice as many bytes as a pipe holds.
        for _ in 0..130 {
            lines.push(&line);
        }
        drop(lines);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), 130 * line.len());
    }

    #[test]
    fn pieces_end_with_lines() {
        let text = |lens: &[usize]| {
            lens.iter().map(|len| format!("{}\n", "x".repeat(len - 1))).collect::<String>().into_bytes()
        };
        for (lens, expected) in [
            (&[10, 20][..], 30),
            (&[4_096, 1], 4_096),
            (&[4_000, 96, 1], 4_096),
            (&[4_000, 97], 4_000),
            (&[5_000, 1], 5_000),
        ] {
            assert_eq!(piece_len(&text(lens)), expected, "{lens:?}");
        }
        assert_eq!(piece_len(b"no end"), 6);
    }
}
