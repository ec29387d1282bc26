//! From a connection task to the queue that owns the channel: the last step of a message before its application.
//!
//! The queue decides what happens to a message (`delivery`). This file translates the decision for the connection, and
//! notes losses for the log. It also counts the applications that share the connection; the owner of registrations
//! changes that count while the connection runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::{channel::Inbox, losses::Losses};
use crate::{
    delivery::{Arrival, ChannelKey, Held, Push, Sharing},
    p2p::{
        DisconnectReason, HeldTime, Inbound, Offer,
        session::{ChannelInbox, ChannelOffer},
    },
};

/// The number of applications that have a channel on one connection.
#[derive(Debug)]
pub(super) struct Sharers {
    applications: AtomicUsize,
    /// The longest time for which one channel may hold the connection while several applications share it.
    max_shared_stall: Duration,
}

impl Sharers {
    pub(super) fn new(applications: usize, max_shared_stall: Duration) -> Arc<Self> {
        Arc::new(Self { applications: AtomicUsize::new(applications), max_shared_stall })
    }

    pub(super) fn set(&self, applications: usize) {
        self.applications.store(applications, Ordering::Relaxed);
    }

    fn sharing(&self) -> Sharing {
        match self.applications.load(Ordering::Relaxed) {
            0 | 1 => Sharing::Alone,
            _ => Sharing::Shared(self.max_shared_stall),
        }
    }
}

/// The interface to the inbox of the registration that owns a channel.
pub(super) struct RegistrationInbox {
    pub(super) inbox: Inbox,
    pub(super) key: ChannelKey,
    /// The largest payload that the owner takes, in bytes.
    pub(super) max_message: usize,
    pub(super) sharers: Arc<Sharers>,
    pub(super) losses: Losses,
}

impl RegistrationInbox {
    fn arrival(message: Inbound) -> Arrival {
        let Inbound { code, payload, wire_bytes, .. } = message;
        // The connection engine has checked the code against the message count, which has 32 bits.
        Arrival { code: u32::try_from(code).unwrap_or(u32::MAX), payload, wire_bytes }
    }
}

impl ChannelInbox for RegistrationInbox {
    fn offer(&self, now: Instant, message: Inbound, held: HeldTime) -> ChannelOffer {
        let bytes = message.payload.len();
        if bytes > self.max_message {
            return ChannelOffer::Offer(Offer::Disconnect(DisconnectReason::SubprotocolError));
        }
        let HeldTime { channel, total } = held;
        let (sharing, held, arrival) =
            (self.sharers.sharing(), Held { channel, total }, Self::arrival(message));
        let push = self.inbox.lock().push(now, self.key, sharing, held, arrival);
        if matches!(push, Push::Dropped | Push::ClosedChannel | Push::Disconnect) {
            self.losses.log.note(now, &self.inbox, Some(&self.losses.origin));
        }
        match push {
            Push::Queued | Push::Dropped | Push::Closed => ChannelOffer::Offer(Offer::Taken),
            Push::Hold { until, charged, payload } => {
                ChannelOffer::Offer(Offer::Hold { payload, until, charged })
            }
            Push::Disconnect => ChannelOffer::Offer(Offer::Disconnect(DisconnectReason::SubprotocolError)),
            Push::ClosedChannel => ChannelOffer::ChannelClosed,
        }
    }

    fn offer_last(&self, now: Instant, message: Inbound) {
        if message.payload.len() > self.max_message {
            // The connection has ended, so there is no peer to disconnect: the message is discarded.
            return;
        }
        let push = self.inbox.lock().push_last(self.key, Self::arrival(message));
        if matches!(push, Push::Dropped) {
            self.losses.log.note(now, &self.inbox, Some(&self.losses.origin));
        }
    }
}

/// The end of a capability without a channel, because its owner has ended, has given up the protocol or has no room for
/// another channel. The capability is mute on this session: no other registration ever gets its messages. They count as
/// discarded in the inbox of the owner, unless the owner has ended.
pub(super) struct Mute(pub(super) Option<Inbox>);

impl Mute {
    fn discard(&self) {
        if let Some(inbox) = &self.0 {
            inbox.lock().discard();
        }
    }
}

impl ChannelInbox for Mute {
    fn offer(&self, _: Instant, _: Inbound, _: HeldTime) -> ChannelOffer {
        self.discard();
        ChannelOffer::Offer(Offer::Taken)
    }

    fn offer_last(&self, _: Instant, _: Inbound) {
        self.discard();
    }
}
