//! BroadcastMessage: one message to many peers, for clients that have no stream.
//!
//! Compressed once; each peer's queue shares the bytes. What a peer has no room for is told and not tried again.

use std::collections::HashSet;

use super::{
    events::send_error,
    node_ref,
    proto::{self, broadcast_message_request::Sender},
    status::Refusal,
};
use crate::{
    net::switch::Handle,
    node::NodeId,
    p2p::{Lane, Refused},
    rlpx::Compressor,
    switch::{Principal, attachment::SendError, registrations::Acting},
};

/// Nodes that a request may except.
const MAX_EXCEPT: usize = 4096;

pub(super) async fn broadcast(
    handle: &Handle,
    caller: Principal,
    request: proto::BroadcastMessageRequest,
) -> Result<proto::BroadcastMessageResponse, Refusal> {
    let proto::BroadcastMessageRequest { protocol, code, payload, max_peers, except, sender } = request;
    if protocol.is_empty() {
        return Err(Refusal::field("protocol", "is missing; write eth or eth/69"));
    }
    if except.len() > MAX_EXCEPT {
        let problem = format!("names {} nodes; {MAX_EXCEPT} are allowed", except.len());
        return Err(Refusal::field("except", problem));
    }
    let except: HashSet<NodeId> = except
        .iter()
        .enumerate()
        .map(|(at, node)| Ok(node_ref(&format!("except[{at}]"), node)?.id()))
        .collect::<Result<_, Refusal>>()?;
    let acting = match sender {
        Some(Sender::ResumeToken(text)) => Acting::Token(text),
        Some(Sender::ClientId(id)) => Acting::Client(id.into()),
        None => Acting::Protocol(protocol.clone()),
    };
    let channels = handle.senders(caller, acting, protocol).await?;
    let message = Compressor::default().compress(&payload).map_err(|error| {
        Refusal::new(proto::ErrorReason::MessageTooLarge, error.to_string()).with("bytes", payload.len())
    })?;
    let most = if max_peers == 0 { usize::MAX } else { max_peers as usize };
    let mut answer = proto::BroadcastMessageResponse::default();
    for target in channels.iter().filter(|target| !except.contains(&target.session.node_id)) {
        if answer.node_ids.len() >= most {
            break;
        }
        let node_id = target.session.node_id.to_string();
        let queued = target.check(code, &message).and_then(|()| {
            let outbound = &target.session.outbound;
            outbound.send(Lane::Call, target.channel.index, u64::from(code), message.clone()).map_err(
                |error| match error {
                    Refused::Full => SendError::WindowExceeded,
                    Refused::Closed => SendError::NotConnected,
                },
            )
        });
        match queued {
            Ok(_) => answer.node_ids.push(node_id),
            Err(error) => {
                let (reason, detail) = send_error(error);
                let reason = reason.into();
                answer.refused.push(proto::BroadcastRefusal { node_id, reason, detail });
            }
        }
    }
    Ok(answer)
}
