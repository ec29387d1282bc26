//! Leases against a model that remembers each registration's current token.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use devp2pd::delivery::{OverflowPolicy, StreamId};
use devp2pd::lease::Capability;
use devp2pd::lease::reason::ErrorReason;
use devp2pd::lease::{
    Action, Caller, Claim, Claimed, Config, LeaseError, ProtocolSpec, RegistrationSpec, Registry, Wanted, Who,
};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{Script, origin};
use devp2pd::node::RegistrationId;

/// The model of one registration.
struct Lease {
    token: String,
    generation: u64,
    client: usize,
}

/// Runs the script.
pub(super) fn run(data: &[u8]) {
    const CLIENTS: [&str; 3] = ["a", "b", "c"];
    const NAMES: [&str; 4] = ["eth", "snap", "x", "y"];
    const REQUESTS: [&str; 3] = ["", "r1", "r2"];
    let mut script = Script(data);
    let config = Config { max_registrations: 4, ..Default::default() };
    let mut registry = Registry::new(config, StdRng::seed_from_u64(1));
    let mut now = origin();
    let principals: [Arc<str>; 2] = ["p".into(), "q".into()];
    let mut leases: BTreeMap<RegistrationId, Lease> = BTreeMap::new();
    let mut tokens: Vec<String> = Vec::new();
    let mut streams = Vec::new();
    let mut steps = 0;
    while let Some(operation) = script.below(10)
        && steps < 500
    {
        steps += 1;
        let argument = script.next().unwrap_or(0);
        let principal = &principals[usize::from(argument >= 200)];
        let caller = Caller { principal, may_take_over: argument % 16 < 12 };
        let client = argument % 3;
        match operation {
            0..=4 => {
                let spec = (operation <= 2).then(|| RegistrationSpec {
                    client_id: CLIENTS[client].into(),
                    protocols: NAMES
                        .iter()
                        .enumerate()
                        .filter(|(bit, _)| argument >> (2 + bit) & 1 == 1)
                        .map(|(bit, name)| ProtocolSpec {
                            capability: Capability::new(name, 9, 1 + (argument as u64 + bit as u64) % 2),
                            max_message_bytes: 0,
                            keep_first: 0,
                            greeting: Vec::new(),
                        })
                        .collect(),
                    linger: Some(Duration::from_secs(argument as u64 % 40)),
                    overflow: OverflowPolicy::default(),
                    channel_queue_bytes: 0,
                    wanted: Wanted::Unsaid,
                    desired_peers: 0,
                });
                let token = tokens.get(argument % tokens.len().max(1)).cloned();
                let who = match (&token, operation % 2) {
                    (Some(token), 1) => Who::Token(token),
                    _ => Who::Client(CLIENTS[client]),
                };
                let request_id = REQUESTS[(argument / 3) % 3];
                let claim = Claim { who, spec, request_id, takeover: argument.is_multiple_of(5) };
                let before = capabilities(&registry);
                let result = if argument.is_multiple_of(2) {
                    registry.attach(now, caller, claim)
                } else {
                    registry.register(now, caller, claim)
                };
                match result {
                    Ok(claimed) => {
                        let generation = registry.get(claimed.id).expect("it was claimed").generation();
                        let claimed = (&claimed, generation);
                        claimed_is_right(claimed, &mut leases, &mut tokens, &mut streams, client);
                    }
                    Err(error) => {
                        refused_is_right(&error);
                        // Leases may have expired, but no capability was added.
                        assert!(capabilities(&registry).iter().all(|capability| before.contains(capability)));
                    }
                }
            }
            5 | 6 => {
                if let Some((id, stream)) = streams.get(argument % streams.len().max(1)) {
                    registry.detach(now, *id, *stream);
                }
            }
            7 => {
                now = now.after(Duration::from_millis(argument as u64 * 200));
                registry.handle_timeout(now);
                assert!(registry.poll_timeout().is_none_or(|next| next > now.mono));
            }
            8 if argument.is_multiple_of(8) => {
                if let Some(id) = leases.keys().next().copied() {
                    registry.delete(id);
                }
            }
            _ => {
                let who = Who::Protocol(NAMES[argument % 4]);
                if let Ok(id) = registry.resolve(now, caller, who) {
                    registry.renew(now, id);
                }
            }
        }
        while let Some(Action::Ended { registration, .. }) = registry.poll_action() {
            assert!(leases.remove(&registration.id()).is_some(), "it ended once");
            assert!(registry.get(registration.id()).is_none());
        }
        // Exactly the current tokens are valid. The error for a retired token depends on whether its registration still
        // exists.
        for token in &tokens {
            let current = leases.iter().find(|(_, lease)| lease.token == *token).map(|(id, _)| *id);
            match (registry.resolve(now, caller, Who::Token(token)), current) {
                (Ok(id), Some(current)) => assert_eq!(id, current),
                (Err(LeaseError::ResumeTokenStale { generation }), None) => {
                    assert!(leases.values().any(|lease| lease.generation == generation));
                }
                (Err(LeaseError::RegistrationNotFound { .. }), None) => {}
                (result, current) => panic!("{result:?} for the token of {current:?}"),
            }
        }
        let names: Vec<_> = registry
            .iter()
            .flat_map(|known| known.spec().protocols.iter().map(|protocol| protocol.capability.name.clone()))
            .collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "one owner a name");
        assert_eq!(registry.iter().count(), leases.len());
        assert!(leases.len() <= 4);
    }
    // At the end only registrations with a stream are left.
    registry.handle_timeout(now.after(Duration::from_secs(601)));
    assert!(registry.iter().all(|known| known.stream().is_some()));
    assert_eq!(registry.poll_timeout(), None);
}

fn claimed_is_right(
    (claimed, generation): (&Claimed, u64),
    leases: &mut BTreeMap<RegistrationId, Lease>,
    tokens: &mut Vec<String>,
    streams: &mut Vec<(RegistrationId, StreamId)>,
    client: usize,
) {
    let token = claimed.token.expose();
    let (_, secret) = token.split_at(16);
    assert!(!format!("{claimed:?}").contains(secret), "a token is never printed");
    match leases.get_mut(&claimed.id) {
        None => {
            assert!(!claimed.resumed && generation == 1 && claimed.replaced.is_none());
            assert!(!tokens.contains(&token));
            leases.insert(claimed.id, Lease { token: token.clone(), generation: 1, client });
            tokens.push(token);
        }
        Some(lease) if lease.generation == generation => {
            assert!(claimed.resumed);
            assert_eq!(lease.token, token, "the same attempt has the same answer");
        }
        Some(lease) => {
            assert!(claimed.resumed && lease.client < 3);
            assert_eq!(generation, lease.generation + 1);
            assert!(!tokens.contains(&token), "a new generation has a new token");
            (lease.generation, lease.token) = (generation, token.clone());
            tokens.push(token);
        }
    }
    if let Some(stream) = claimed.stream {
        assert!(!streams.contains(&(claimed.id, stream)));
        streams.push((claimed.id, stream));
    }
    if tokens.len() > 20 {
        // Old tokens are forgotten, but never a current one.
        let current: Vec<String> = leases.values().map(|lease| lease.token.clone()).collect();
        let mut extra = tokens.len() - 20;
        tokens.retain(|token| {
            let keep = extra == 0 || current.contains(token);
            extra -= usize::from(!keep);
            keep
        });
    }
}

fn refused_is_right(error: &LeaseError) {
    assert!(error.to_string().len() < 1024, "{error}");
    assert!(!matches!(error.reason(), ErrorReason::PeerNotConnected | ErrorReason::SendWindowExceeded));
}

/// All capabilities that are registered.
fn capabilities(registry: &Registry) -> Vec<Capability> {
    let protocols = registry.iter().flat_map(|registration| &registration.spec().protocols);
    protocols.map(|protocol| protocol.capability.clone()).collect()
}
