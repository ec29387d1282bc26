//! The request side of `Exchange`: reads what the application sends, for as long as it sends, and does what it asks for.
//!
//! It holds the attachment weakly, so that the end of the response side ends the attachment while this side waits for the
//! client. Whatever it finds wrong, the response side says.

use std::{
    sync::{Arc, Weak},
    vec,
};

use tokio::sync::oneshot;
use tonic::{Status, Streaming};

use super::{super::reader::no_attach, ending::Verdict};
use crate::{
    net::switch::{Attached, Attachment, Handle},
    rpc::{
        proto::{self, ClientEvent, ErrorReason, client_event},
        translate::{
            registration,
            status::{self, Refusal},
            value::wire_reason,
        },
    },
    switch::{
        Engine, Principal,
        attachment::{Encoder, Reply, StreamMessage},
    },
};

/// Channels that one message may name. geth gossips to the square root of its peers; this is all of them.
const MAX_TARGETS: usize = 4096;

/// Reads `requests` until the client ends its side, or something is wrong. What became of the first event goes to
/// `attached`, and an error after it to `verdict`.
pub(super) async fn read(
    handle: Handle,
    principal: Principal,
    mut requests: Streaming<proto::ExchangeRequest>,
    attached: oneshot::Sender<Result<Attached, Status>>,
    verdict: Verdict,
) {
    let (opened, events) = match attach(&handle, principal, &mut requests).await {
        Ok(opened) => opened,
        Err(Some(status)) => {
            let _ = attached.send(Err(status));
            return;
        }
        Err(None) => return,
    };
    let attachment = Arc::downgrade(&opened.attachment);
    if attached.send(Ok(opened)).is_ok() {
        Requests { attachment, encoder: Encoder::default(), verdict }.run(events, requests).await;
    }
}

/// Attaches as the first event says, and returns the events that came in one frame with it.
///
/// # Errors
///
/// Why there is no attachment; `None` if the client ended its side before it asked for one.
async fn attach(
    handle: &Handle,
    principal: Principal,
    requests: &mut Streaming<proto::ExchangeRequest>,
) -> Result<(Attached, vec::IntoIter<ClientEvent>), Option<Status>> {
    let mut events = loop {
        let frame = requests.message().await.map_err(status::with_reason)?.ok_or(None)?;
        if !frame.events.is_empty() {
            break frame.events.into_iter();
        }
    };
    let Some(client_event::Event::Attach(attach)) = events.next().and_then(|first| first.event) else {
        return Err(Some(no_attach().into()));
    };
    let request = registration::attach_request(attach).map_err(Status::from)?;
    let opened = handle.attach(principal, request).await.map_err(Status::from)?;
    Ok((opened, events))
}

/// What reading an attached stream needs.
struct Requests {
    attachment: Weak<Attachment>,
    encoder: Encoder,
    verdict: Verdict,
}

impl Requests {
    async fn run(
        mut self,
        mut events: vec::IntoIter<ClientEvent>,
        mut requests: Streaming<proto::ExchangeRequest>,
    ) {
        loop {
            for event in events {
                let Some(attachment) = self.attachment.upgrade() else { return };
                // Another process took over: what this one still wants must not disturb it.
                if attachment.is_fenced() {
                    return;
                }
                let Some(event) = event.event else { continue };
                if let Err(refusal) = obey(&attachment, &mut self.encoder, event).await {
                    return self.end(refusal.into());
                }
            }
            events = match requests.message().await {
                Ok(Some(frame)) => frame.events.into_iter(),
                // Half-close: no more requests, and delivery goes on.
                Ok(None) => return,
                // The transport ended the call, or the message was malformed; the response side says which.
                Err(status) => return self.end(status::with_reason(status)),
            };
        }
    }

    /// Ends the stream with `status`.
    fn end(self, status: Status) {
        self.verdict.pass(status);
        if let Some(attachment) = self.attachment.upgrade() {
            attachment.wake();
        }
    }
}

/// Does what one event of the application asks for. An error ends the stream.
async fn obey(
    attachment: &Attachment,
    encoder: &mut Encoder,
    event: client_event::Event,
) -> Result<(), Refusal> {
    match event {
        client_event::Event::Attach(_) => Err(Refusal::new(
            ErrorReason::StreamProtocolViolation,
            "\"attach\" is the first event of a stream and comes once",
        )),
        client_event::Event::Message(message) => send(attachment, encoder, &message),
        client_event::Event::WindowUpdate(update) => Ok(attachment.credit(update.channel_id, update.bytes)?),
        client_event::Event::Barrier(barrier) => {
            attachment.reply(Reply::Barrier { nonce: barrier.nonce });
            Ok(())
        }
        client_event::Event::DisconnectChannel(disconnect) => {
            // A channel that is gone already is what was asked for.
            if let Some(target) = attachment.target(disconnect.channel_id) {
                let reason = wire_reason(disconnect.reason());
                let owner = attachment.registration();
                let end_session = disconnect.end_session;
                let call = move |switch: &mut Engine, now| {
                    switch.disconnect_channel(now, owner, &target, reason, end_session)
                };
                attachment.handle().call(call).await?;
            }
            Ok(())
        }
        client_event::Event::SetGreeting(greeting) => {
            let (name, version, messages) = registration::greeting(greeting);
            let owner = attachment.registration();
            let call = move |switch: &mut Engine, _| {
                switch.registrations().set_greeting(owner, &name, version, messages)
            };
            attachment.handle().call(call).await?;
            Ok(())
        }
    }
}

fn send(
    attachment: &Attachment,
    encoder: &mut Encoder,
    message: &proto::OutboundMessage,
) -> Result<(), Refusal> {
    if message.want_result && message.send_id == 0 {
        return Err(Refusal::field("message.send_id", "must not be 0 when want_result is set"));
    }
    if message.channel_ids.is_empty() || message.channel_ids.len() > MAX_TARGETS {
        let problem = format!("names {} channels; 1 to {MAX_TARGETS} are allowed", message.channel_ids.len());
        return Err(Refusal::field("message.channel_ids", problem));
    }
    let proto::OutboundMessage { channel_ids, code, payload, send_id, want_result } = message;
    attachment.send(
        encoder,
        &StreamMessage {
            channels: channel_ids,
            code: *code,
            payload,
            send_id: *send_id,
            want_result: *want_result,
        },
    );
    Ok(())
}
