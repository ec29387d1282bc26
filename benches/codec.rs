//! Frames a second, beside the arithmetic that no RLPx codec can do without.
//!
//! Every frame of P padded bytes needs AES-256-CTR over 16 + P bytes, a Keccak state that absorbs 16 + P + 16 bytes,
//! three Keccak finals and two single AES blocks. `ceiling` does exactly that on a fixed buffer, with the same crates,
//! and no codec around it. What counts is the ratio to it within one run: absolute figures belong to one machine.
//!
//! `cargo bench --bench codec` prints the ratios first (best of many interleaved samples, because neighbours on the
//! machine only ever make a sample slower), then criterion's figures. `-- --ratios-only` stops after the ratios.

#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "not part of the product")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput};
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use devp2pd::rlpx::frame::{FrameReader, FrameWriter, MAX_FRAME};
use devp2pd::rlpx::mac::Mac;
use sha3::{Digest, Keccak256};

const SIZES: [usize; 4] = [100, 1024, 16 * 1024, 1024 * 1024];
const CODE: u64 = 0x10;
const KEY: [u8; 32] = [7; 32];

fn writer() -> FrameWriter {
    FrameWriter::new(&KEY, Mac::new(&KEY, Keccak256::new()))
}

fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31) as u8).collect()
}

/// A codec that processes this many frames and returns the time.
trait Frames {
    fn run(&mut self, frames: u64) -> Duration;
}

struct Ceiling {
    stream: Ctr128BE<Aes256>,
    block: Aes256,
    state: Keccak256,
    buffer: Vec<u8>,
}

impl Ceiling {
    fn new(size: usize) -> Self {
        // One byte of code, header and padding included.
        let buffer = vec![0; 16 + (size + 1).next_multiple_of(16)];
        let stream = Ctr128BE::<Aes256>::new(&KEY.into(), &[0; 16].into());
        Self { stream, block: Aes256::new(&KEY.into()), state: Keccak256::new(), buffer }
    }

    fn stir(&mut self) {
        let mut seed = [3; 16].into();
        self.block.encrypt_block(&mut seed);
        self.state.update(seed);
        black_box(self.state.clone().finalize());
    }
}

impl Frames for Ceiling {
    fn run(&mut self, frames: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..frames {
            self.stream.apply_keystream(&mut self.buffer[..16]);
            self.stir();
            for piece in self.buffer[16..].chunks_mut(4096) {
                self.stream.apply_keystream(piece);
                self.state.update(piece);
            }
            black_box(self.state.clone().finalize());
            self.stir();
        }
        start.elapsed()
    }
}

struct Encode {
    writer: FrameWriter,
    payload: Vec<u8>,
    out: BytesMut,
}

impl Frames for Encode {
    fn run(&mut self, frames: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..frames {
            // As a connection does: many frames into one buffer, which is written and used again.
            if self.out.len() > 64 * 1024 {
                self.out.clear();
            }
            self.writer.write(CODE, &self.payload, &mut self.out).unwrap();
        }
        start.elapsed()
    }
}

struct Decode {
    writer: FrameWriter,
    reader: FrameReader,
    payload: Vec<u8>,
    wire: BytesMut,
}

impl Frames for Decode {
    fn run(&mut self, mut frames: u64) -> Duration {
        let per_batch = (256 * 1024 / (self.payload.len() + 80)).max(1) as u64;
        let mut total = Duration::ZERO;
        while frames > 0 {
            let batch = frames.min(per_batch);
            frames -= batch;
            for _ in 0..batch {
                self.writer.write(CODE, &self.payload, &mut self.wire).unwrap();
            }
            let start = Instant::now();
            for _ in 0..batch {
                black_box(self.reader.read(&mut self.wire, MAX_FRAME).unwrap().unwrap());
            }
            total += start.elapsed();
        }
        total
    }
}

fn contestants(size: usize) -> [(&'static str, Box<dyn Frames>); 3] {
    let reader = FrameReader::new(&KEY, Mac::new(&KEY, Keccak256::new()));
    let payload = payload(size);
    let encode = Encode { writer: writer(), payload: payload.clone(), out: BytesMut::new() };
    let decode = Decode { writer: writer(), reader, payload, wire: BytesMut::new() };
    [("ceiling", Box::new(Ceiling::new(size))), ("encode", Box::new(encode)), ("decode", Box::new(decode))]
}

/// The best of interleaved samples of about a millisecond each, as nanoseconds a frame.
fn best(size: usize) -> [f64; 3] {
    let frames = (400 * 1024 / (size + 300)).max(1) as u64;
    let mut contestants = contestants(size);
    let mut best = [f64::INFINITY; 3];
    for _ in 0..500 {
        for (best, (_, contestant)) in best.iter_mut().zip(&mut contestants) {
            *best = best.min(contestant.run(frames).as_nanos() as f64 / frames as f64);
        }
    }
    best
}

fn print_ratios() {
    println!(
        "   payload    ceiling         encode              decode        (share of the ceiling's speed)"
    );
    for size in SIZES {
        let [ceiling, encode, decode] = best(size);
        let rate = |nanos: f64| 1e9 / nanos;
        println!(
            "{size:>8} B {:>8.0}/s {:>8.0}/s {:>5.1} % {:>8.0}/s {:>5.1} %",
            rate(ceiling),
            rate(encode),
            100.0 * ceiling / encode,
            rate(decode),
            100.0 * ceiling / decode,
        );
    }
}

fn main() {
    print_ratios();
    if std::env::args().any(|arg| arg == "--ratios-only") {
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    for size in SIZES {
        let mut group = criterion.benchmark_group("frame");
        group.throughput(Throughput::Bytes(size as u64));
        for (name, mut contestant) in contestants(size) {
            let id = BenchmarkId::new(name, size);
            group.bench_function(id, |bencher| bencher.iter_custom(|frames| contestant.run(frames)));
        }
        group.finish();
    }
    criterion.final_summary();
}
