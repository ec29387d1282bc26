//! A load tool: real sidecars, real applications, and peers of other stacks, with a table of lost messages.
//!
//! ```text
//! cargo run --release --example load -- flood [--seconds N] [--rows NAME,…]
//! ```
//!
//! Each row starts processes of its own on loopback: two sidecars with an application on each, or a sidecar with an
//! application and a peer of another stack (go-ethereum, which needs Go, or ethereumjs, which needs Node.js and npm).
//! One side sends as fast as it is let, the other takes at the pace of the row. At the end sent = delivered + reported,
//! and a row that promises no loss fails if anything was lost. `--seconds` is the length of each flood: 15 by default,
//! 120 in `.ci/full flood`.
//!
//! The binary under load is built first, unless DEVP2PD names one.

#![allow(clippy::disallowed_methods, reason = "a load tool reads the clock")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "not part of the product"
)]

mod application;
mod link;
mod peer;
mod processes;
mod rows;

use std::process::ExitCode;

use rows::{Plan, ROWS};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut plan = Plan { seconds: 15, rows: Vec::new() };
    let mut words = arguments.iter();
    match words.next().map(String::as_str) {
        Some("flood") => {}
        _ => return usage("name the load: flood"),
    }
    while let Some(word) = words.next() {
        let value = words.next().map(String::as_str).unwrap_or_default();
        match word.as_str() {
            "--seconds" => match value.parse() {
                Ok(seconds) if seconds > 0 => plan.seconds = seconds,
                _ => return usage("--seconds takes a whole number above zero"),
            },
            "--rows" => plan.rows = value.split(',').map(str::to_owned).collect(),
            _ => return usage(&format!("{word:?} is no option")),
        }
    }
    if let Some(unknown) = plan.rows.iter().find(|name| ROWS.iter().all(|row| row.name != name.as_str())) {
        return usage(&format!("there is no row {unknown:?}"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let failed = runtime.block_on(rows::run(&plan));
    runtime.shutdown_background();
    ExitCode::from(u8::from(failed > 0))
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("load: {problem}");
    eprintln!("usage: cargo run --release --example load -- flood [--seconds N] [--rows NAME,…]");
    eprintln!("rows:");
    ROWS.iter().for_each(|row| eprintln!("  {:24} {}", row.name, row.what));
    ExitCode::from(2)
}
