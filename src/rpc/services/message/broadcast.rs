//! BroadcastMessage: one message to many peers, for clients that have no stream.
//!
//! The message is encoded once, and the queues of all peers share its bytes. The answer names each peer whose queue has
//! no room. The sidecar does not send the message again.

use std::collections::HashSet;

use crate::{
    net::switch::Handle,
    node::NodeId,
    rpc::{
        proto,
        translate::{errors, status::ErrorStatus, value::node_ref},
    },
    switch::{Principal, attachment::Encoder, registrations::Acting},
};

/// The most nodes that a request may exclude.
const MAX_EXCEPT: usize = 4096;

pub(super) async fn broadcast(
    handle: &Handle,
    caller: Principal,
    request: proto::BroadcastMessageRequest,
) -> Result<proto::BroadcastMessageResponse, ErrorStatus> {
    let proto::BroadcastMessageRequest { protocol, code, payload, max_peers, except, sender } = request;
    if protocol.is_empty() {
        return Err(ErrorStatus::field("protocol", "is missing; write eth or eth/69"));
    }
    if except.len() > MAX_EXCEPT {
        let problem = format!("names {} nodes; the most is {MAX_EXCEPT}", except.len());
        return Err(ErrorStatus::field("except", problem));
    }
    let except: HashSet<NodeId> = except
        .iter()
        .enumerate()
        .map(|(at, node)| Ok(node_ref(&format!("except[{at}]"), node)?.id()))
        .collect::<Result<_, ErrorStatus>>()?;
    let acting = sender.map_or_else(|| Acting::Protocol(protocol.clone()), Acting::from);
    let channels = handle.call(move |switch, now| switch.senders(now, &caller, &acting, &protocol)).await?;
    let message = Encoder::default()
        .encode(code, &payload)
        .map_err(|error| errors::too_large_for_all(payload.len(), &error))?;
    let most = if max_peers == 0 { usize::MAX } else { max_peers as usize };
    let mut answer = proto::BroadcastMessageResponse::default();
    for target in channels.iter().filter(|target| !except.contains(&target.session.node_id)) {
        if answer.node_ids.len() >= most {
            break;
        }
        let node_id = target.session.node_id.to_string();
        match target.send(&message) {
            Ok(_) => answer.node_ids.push(node_id),
            Err(error) => {
                let (reason, detail) = errors::unsent(error);
                answer.refused.push(proto::BroadcastRefusal { node_id, reason: reason.into(), detail });
            }
        }
    }
    Ok(answer)
}
