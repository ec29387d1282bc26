//! Tasks that wait for a change in a pure room: [`Wake`] for tokio's [`Notify`], and the wait until one message is
//! written.
//!
//! Left out: the state that tasks wait for (`p2p::outbound`, `delivery`).

use std::sync::Arc;

use tokio::sync::Notify;

use crate::{
    Wake,
    p2p::{ChannelIndex, Lane, Outbound},
};

impl Wake for Notify {
    fn wake(&self) {
        self.notify_one();
    }
}

/// Waits for the message of a call, given by its number on the channel's lane. Returns true when the socket has taken
/// the message, and false if the session or the channel ended first.
pub async fn call_written(outbound: &Outbound, channel: ChannelIndex, number: u64) -> bool {
    let decided = Arc::new(Notify::new());
    loop {
        let wake = Arc::clone(&decided);
        if let Some(written) = outbound.watch_written(Lane::Call, channel, number, wake) {
            return written;
        }
        decided.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::clock,
        p2p::{ChannelLimits, Next, Source as _},
        rlpx::Compressor,
    };

    #[tokio::test]
    async fn a_call_waits_until_its_message_is_written_or_can_no_more_be() {
        let outbound = Outbound::alone();
        let limits = ChannelLimits { offset: 0x10, message_count: 1, max_message: 100 };
        outbound.set_channels([limits], true);
        let (lane, channel) = (Lane::Call, ChannelIndex(0));
        let message = Compressor::default().compress(b"hello").unwrap();
        let [first, second] = [(); 2].map(|()| outbound.send(lane, channel, 0, message.clone()).unwrap());
        let (is_first, is_second, ()) = tokio::join!(
            call_written(&outbound, channel, first),
            call_written(&outbound, channel, second),
            async {
                assert!(matches!((&*outbound).next(clock::now().mono), Next::Message(_)));
                tokio::task::yield_now().await;
                outbound.written(1);
                tokio::task::yield_now().await;
                outbound.close();
            }
        );
        assert!(is_first && !is_second);
        assert!(call_written(&outbound, channel, first).await, "it was, though the session is over");
    }
}
