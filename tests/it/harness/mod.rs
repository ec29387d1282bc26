//! What the topics share: sidecars, applications, scripted peers, and refusals taken apart.

mod application;
mod liar;
mod refused;
mod sidecar;
pub(crate) mod wire;

pub(crate) use application::{Application, Event, Wish, attach, greeting, message, protocol, spec};
pub(crate) use liar::{FIRST, HELLO, Liar, PING, PONG, Trap};
pub(crate) use refused::{Refused, refused};
pub(crate) use sidecar::{Sidecar, connect, linked, try_start};

use std::time::Duration;

/// How long an event may take before its absence is a failure: far longer than any takes on a busy machine, where an
/// unoptimized build encrypts 16 MiB in some seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `future`, and fails naming `what` if it does not come.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: nothing within {PATIENCE:?}"),
    }
}

/// Asks again and again until the answer is something: for states that no event tells of.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
