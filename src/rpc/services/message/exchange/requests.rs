//! The request side of `Exchange`: reads the application's events, and carries them out, until the application ends its
//! side.
//!
//! This side holds a weak reference to the attachment. So the end of the response side ends the attachment, even while
//! this side waits for the client. If this side finds an error, the response side ends the stream with it.

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
            status::{self, ErrorStatus},
            value::wire_reason,
        },
    },
    switch::{
        Engine, Principal,
        attachment::{Encoder, Reply, StreamMessage},
    },
};

/// The most channels that one message may name: all channels of an application with thousands of peers. geth gossips to
/// the square root of its peers only.
const MAX_TARGETS: usize = 4096;

/// Reads `requests` until the client ends its side or does something wrong. The outcome of the first event goes to
/// `attached`, and a later error to `verdict`.
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

/// Attaches as the first event says. Returns the attachment, and the events after the first one in the same frame.
///
/// # Errors
///
/// The reason why there is no attachment; `None` if the client ended its side before it sent an event.
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

/// The state of the request side after the first event.
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
                // Another stream has taken over the registration. Events of this stream must not disturb it.
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
                // The client has closed its side of the stream. It sends no more events, and delivery goes on.
                Ok(None) => return,
                // The transport ended the call, or a frame is malformed. The status says which.
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

/// Carries out one event of the application. An error ends the stream.
async fn obey(
    attachment: &Attachment,
    encoder: &mut Encoder,
    event: client_event::Event,
) -> Result<(), ErrorStatus> {
    match event {
        client_event::Event::Attach(_) => Err(ErrorStatus::new(
            ErrorReason::StreamProtocolViolation,
            "\"attach\" came again; it must be the first event of a stream and come once",
        )),
        client_event::Event::Message(message) => send(attachment, encoder, &message),
        client_event::Event::WindowUpdate(update) => Ok(attachment.credit(update.channel_id, update.bytes)?),
        client_event::Event::Barrier(barrier) => {
            attachment.reply(Reply::Barrier { nonce: barrier.nonce });
            Ok(())
        }
        client_event::Event::DisconnectChannel(disconnect) => {
            // If the channel is closed already, there is nothing to do.
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
) -> Result<(), ErrorStatus> {
    if message.want_result && message.send_id == 0 {
        return Err(ErrorStatus::field("message.send_id", "must not be 0 when want_result is set"));
    }
    if message.channel_ids.is_empty() || message.channel_ids.len() > MAX_TARGETS {
        let problem = format!("names {} channels; must name 1 to {MAX_TARGETS}", message.channel_ids.len());
        return Err(ErrorStatus::field("message.channel_ids", problem));
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
