//! Hands the messages of a connection's intake to the queues of applications
//! ([`ChannelInbox`](super::session::ChannelInbox)).
//!
//! It counts each message once, when it is accounted for, and collects the channels that their queues closed.
//!
//! Left out: the decision of a queue (`delivery`), and the messages that wait while a connection is held (`intake`).

use std::{mem, time::Instant};

use super::{
    ChannelIndex, Delivery, HeldTime, Inbound, Offer, Traffic,
    session::{ChannelInboxes, ChannelOffer},
};

/// The inboxes of a session, by channel.
pub struct SessionDelivery<'a> {
    inboxes: &'a ChannelInboxes,
    traffic: &'a Traffic,
    closed: Vec<ChannelIndex>,
}

impl<'a> SessionDelivery<'a> {
    /// Delivers to `inboxes` and counts in `traffic`.
    #[must_use]
    pub fn new(inboxes: &'a ChannelInboxes, traffic: &'a Traffic) -> Self {
        Self { inboxes, traffic, closed: Vec::new() }
    }

    /// Takes the channels that were closed because their applications are late, each once.
    #[must_use]
    pub fn take_closed(&mut self) -> Vec<ChannelIndex> {
        mem::take(&mut self.closed)
    }
}

impl Delivery for SessionDelivery<'_> {
    fn offer(&mut self, now: Instant, message: Inbound, held: HeldTime) -> Offer {
        let (channel, bytes) = (message.channel, message.payload.len());
        // Parked connections have no inboxes, and their intake delivers nothing.
        let Some(inbox) = self.inboxes.get(usize::from(channel.0)) else { return Offer::Taken };
        let offer = match inbox.offer(now, message, held) {
            ChannelOffer::Offer(offer) => offer,
            ChannelOffer::ChannelClosed => {
                self.closed.push(channel);
                Offer::Taken
            }
        };
        if !matches!(offer, Offer::Hold { .. }) {
            self.traffic.message_received(channel, bytes);
        }
        offer
    }

    fn offer_last(&mut self, now: Instant, message: Inbound) {
        let (channel, bytes) = (message.channel, message.payload.len());
        if let Some(inbox) = self.inboxes.get(usize::from(channel.0)) {
            self.traffic.message_received(channel, bytes);
            inbox.offer_last(now, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::p2p::session::ChannelInbox;

    /// Holds message 0, closes the channel at message 1, takes all others.
    struct OneInbox;

    impl ChannelInbox for OneInbox {
        fn offer(&self, now: Instant, message: Inbound, _: HeldTime) -> ChannelOffer {
            match message.code {
                0 => ChannelOffer::Offer(Offer::Hold {
                    payload: message.payload,
                    until: now + Duration::from_secs(1),
                    charged: true,
                }),
                1 => ChannelOffer::ChannelClosed,
                _ => ChannelOffer::Offer(Offer::Taken),
            }
        }

        fn offer_last(&self, _: Instant, _: Inbound) {}
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time starts anywhere")]
    fn a_message_counts_once_when_it_is_accounted_for() {
        let (inboxes, traffic, now): (ChannelInboxes, _, _) =
            (vec![Box::new(OneInbox), Box::new(OneInbox)], Traffic::default(), Instant::now());
        traffic.set_channels(2);
        let message = |channel, code| {
            let payload = Bytes::from_static(b"five!");
            Inbound { channel: ChannelIndex(channel), code, payload, wire_bytes: 64 }
        };
        let mut delivery = SessionDelivery::new(&inboxes, &traffic);
        let mut offer = |message| delivery.offer(now, message, HeldTime::default());
        assert!(matches!(offer(message(1, 0)), Offer::Hold { .. }));
        assert!(matches!(offer(message(1, 0)), Offer::Hold { .. }));
        assert_eq!(traffic.snapshot().messages_in, 0, "it is offered again");
        assert!(matches!(offer(message(1, 1)), Offer::Taken));
        assert!(matches!(offer(message(0, 2)), Offer::Taken));
        delivery.offer_last(now, message(1, 0));
        assert_eq!(delivery.take_closed(), [ChannelIndex(1)]);
        assert_eq!(delivery.take_closed(), []);
        assert_eq!(
            (traffic.received_on(ChannelIndex(0)), traffic.received_on(ChannelIndex(1))),
            ((1, 5), (2, 10))
        );
    }
}
