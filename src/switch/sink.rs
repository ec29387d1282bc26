//! From a connection task to the inbox that owns the channel: the last step of a message before its application.
//!
//! The inbox decides; this only translates, and keeps what one session's stalls have used up, which all its channels
//! share.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::attachment::Inbox;
use crate::delivery::{ChannelKey, Push, Sharing, Stalls};
use crate::{
    Now,
    net::connection::{MessageSink, Offer},
    p2p::DisconnectReason,
};

/// One session's stalls, whichever of its channels they are for.
pub(super) type SessionStalls = Arc<Mutex<Stalls>>;

/// The way into the inbox of the registration that owns a channel.
pub(super) struct InboxSink {
    pub(super) inbox: Inbox,
    pub(super) key: ChannelKey,
    /// The largest payload that the owner takes, in bytes.
    pub(super) max_message: usize,
    pub(super) sharing: Sharing,
    pub(super) stalls: SessionStalls,
}

impl MessageSink for InboxSink {
    fn offer(&self, now: Now, code: u64, payload: Bytes) -> Offer {
        // The engine has checked the code against the message count, which has 32 bits.
        let code = u32::try_from(code).unwrap_or(u32::MAX);
        if payload.len() > self.max_message {
            return Offer::Disconnect(DisconnectReason::SubprotocolError);
        }
        let mut stalls = self.stalls.lock().unwrap_or_else(PoisonError::into_inner);
        match self.inbox.lock().push(now.mono, self.sharing, &mut stalls, self.key, code, payload) {
            Push::Queued | Push::Dropped | Push::Closed => Offer::Taken,
            Push::Stall { until, payload } => Offer::Wait { payload, until },
            Push::Disconnect => Offer::Disconnect(DisconnectReason::SubprotocolError),
        }
    }
}

/// Where messages go whose owner is gone: the name stays mute on this session, and nobody else ever gets it.
pub(super) struct Mute;

impl MessageSink for Mute {
    fn offer(&self, _: Now, _: u64, _: Bytes) -> Offer {
        Offer::Taken
    }
}
