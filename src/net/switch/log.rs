//! Writes the lines that the switch has for the log.

use data_encoding::HEXLOWER;

use crate::{policy::fork_following::News, switch::LogLine};

/// Writes one line.
pub(super) fn write(line: LogLine) {
    match line {
        LogLine::Connected(session) => tracing::info!(
            node = %session.node_id,
            remote = %session.remote,
            inbound = session.inbound,
            client = %session.hello.client.escape_debug(),
            "peer connected"
        ),
        LogLine::Disconnected { session, reason, detail } => tracing::info!(
            node = %session.node_id,
            remote = %session.remote,
            %reason,
            detail = %detail.escape_debug(),
            "peer disconnected"
        ),
        LogLine::Refused { remote, refusal } => tracing::debug!(%remote, %refusal, "refused a connection"),
        LogLine::Registered { client, protocols } => {
            tracing::info!(%client, %protocols, "protocols registered");
        }
        LogLine::RegistrationEnded { client, expired } => {
            let why = if expired { "its lease ran out" } else { "it was deleted" };
            tracing::info!(%client, why, "registration ended");
        }
        LogLine::Lost(line) => {
            let several = || ("several".to_owned(), "several".into());
            let (peer, protocol) = line.origin.map_or_else(several, |(node, of)| (node.to_string(), of));
            let advice = if line.attached {
                "it takes messages more slowly than they come: return credit sooner, or choose another overflow \
                 policy (docs/grpc.md, \"Overflow\")"
            } else {
                "it is not attached, and what waits for it is bounded: attach again sooner"
            };
            tracing::warn!(
                client = %line.client, %peer, %protocol, messages = line.lost.messages, bytes = line.lost.bytes,
                advice, "an application lost messages of its peers"
            );
        }
        LogLine::Rehello(node) => {
            tracing::info!(%node, "reconnecting a peer, so that it learns of a protocol");
        }
        LogLine::Fork(news) => write_fork(news),
        LogLine::Warn(warning) => tracing::warn!(name = warning.name(), "{warning}"),
        LogLine::WarningOver(name) => tracing::info!(name, "this warning does not hold any more"),
        LogLine::OneSource(source) => tracing::warn!("{source}"),
        LogLine::LeftOut { node, error } => {
            tracing::warn!(node, %error, "a static or trusted peer of an earlier run is left out");
        }
    }
}

fn write_fork(news: News) {
    let hex = |hash: [u8; 4]| HEXLOWER.encode(&hash);
    match news {
        News::Followed(fork) => tracing::warn!(
            hash = hex(fork.hash),
            before = hex(fork.before),
            time = fork.time,
            "the chain has passed a fork that our schedule lacks; nodes of several networks announce it, and it is \
             followed until the next start (--follow-forks false switches this off)"
        ),
        News::Dropped(fork) => tracing::warn!(
            hash = hex(fork.hash),
            time = fork.time,
            "a fork that was followed is not our chain's: applications rejected its peers; it is dropped"
        ),
    }
}
