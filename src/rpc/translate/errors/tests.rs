//! Tests of the table: each error has the right reason and metadata, and each reason of the contract has an error.

use std::collections::BTreeSet;

use tonic::{Code, Status};

use super::super::status::tests::{read, reasons};
use super::*;
use crate::{
    discv5::TalkError,
    lease::StateName,
    node::local::EntryOwner,
    policy::{Ban, BanTarget, Cause, Refusal, dial::ListSource},
};

const NODE: NodeId = NodeId([7; 32]);

/// A refusal, its expected reason, the keys of its metadata, and the fields that it names. Both lists are sorted.
type Row = (ErrorStatus, ErrorReason, &'static [&'static str], &'static [&'static str]);

fn lease_errors() -> Vec<Row> {
    use ErrorReason as R;
    let owned = |expire_time| LeaseError::ProtocolAlreadyRegistered {
        protocol: "eth".into(),
        owner: "geth".into(),
        state: StateName::Lingering,
        expire_time,
    };
    let field = |name: &str| (name.to_owned(), "is wrong".to_owned());
    let fields = LeaseError::InvalidFields(vec![field("a"), field("b")]);
    let (name, problem) = field("spec.linger");
    vec![
        (owned(None).into(), R::ProtocolAlreadyRegistered, &["owner", "protocol", "state"], &[]),
        (
            owned(Some(Duration::from_secs(1))).into(),
            R::ProtocolAlreadyRegistered,
            &["expire_time", "owner", "protocol", "state"],
            &[],
        ),
        (
            LeaseError::ProtocolNotRegistered { protocol: "eth".into() }.into(),
            R::ProtocolNotRegistered,
            &["protocol"],
            &[],
        ),
        (
            LeaseError::RegistrationAttached { client_id: "geth".into() }.into(),
            R::RegistrationAttached,
            &["client_id"],
            &[],
        ),
        (
            LeaseError::RegistrationNotFound { what: "has the id 1".into() }.into(),
            R::RegistrationNotFound,
            &[],
            &[],
        ),
        (LeaseError::ResumeTokenStale { generation: 3 }.into(), R::ResumeTokenStale, &["generation"], &[]),
        (LeaseError::HelloTooLarge { limit: 2048 }.into(), R::HelloTooLarge, &["limit"], &[]),
        // The number equals the limit of a Hello, but it is another limit and must not become `HelloTooLarge`.
        (
            LeaseError::LimitReached { what: "registrations", limit: 2048 }.into(),
            R::LimitReached,
            &["limit", "what"],
            &[],
        ),
        (LeaseError::InvalidField { field: name, problem }.into(), R::InvalidField, &[], &["spec.linger"]),
        (fields.into(), R::InvalidField, &[], &["a", "b"]),
        (LeaseError::NotAuthorized { what: "no" }.into(), R::NotAuthorized, &[], &[]),
    ]
}

fn switch_errors() -> Vec<Row> {
    use ErrorReason as R;
    let ban = Ban {
        target: BanTarget::Node(NODE),
        until: Duration::from_secs(9),
        reason: String::new(),
        source: ListSource::Call,
    };
    let add = |error: AddError| ErrorStatus::from(SwitchError::List(error.into()));
    let remove = |error: RemoveError| ErrorStatus::from(SwitchError::List(error.into()));
    vec![
        (SwitchError::Stopped.into(), R::ServerDraining, &[], &[]),
        (
            SwitchError::Lease(LeaseError::ResumeTokenStale { generation: 1 }).into(),
            R::ResumeTokenStale,
            &["generation"],
            &[],
        ),
        (SwitchError::PeerNotConnected { node: NODE }.into(), R::PeerNotConnected, &["node_id"], &[]),
        (
            SwitchError::ProtocolNotShared { node: NODE, protocol: "eth".into() }.into(),
            R::ProtocolNotShared,
            &["node_id", "protocol"],
            &[],
        ),
        (SwitchError::SharedSession { node: NODE, others: 1 }.into(), R::NotAuthorized, &[], &[]),
        (add(AddError::OwnIdentity), R::InvalidField, &[], &["node"]),
        (add(AddError::Banned(Box::new(ban))), R::NodeBanned, &["expire_time", "target"], &[]),
        (add(AddError::AddressUnknown), R::NodeAddressUnknown, &[], &[]),
        (add(AddError::Full { max: 1 }), R::LimitReached, &["limit"], &[]),
        (remove(RemoveError::NotListed), R::EntryNotFound, &[], &[]),
        (remove(RemoveError::FromConfig), R::EntryFromConfig, &[], &[]),
        (BanError::Target.into(), R::InvalidField, &[], &["target"]),
        (BanError::ZeroDuration.into(), R::InvalidField, &[], &["duration"]),
        (BanError::Protected(NODE).into(), R::InvalidField, &["node_id"], &["force"]),
        (BanError::OwnIdentity.into(), R::InvalidField, &[], &["target"]),
        (BanError::Full.into(), R::LimitReached, &[], &[]),
        (BanError::NotBanned.into(), R::EntryNotFound, &[], &[]),
        (TooManyWatchers { limit: 1, whose: "in all" }.into(), R::LimitReached, &["limit", "what"], &[]),
        (ended(Ended::TakenOver), R::ResumeTokenStale, &[], &[]),
        (ended(Ended::Deleted), R::RegistrationNotFound, &[], &[]),
        (ended(Ended::Drained), R::ServerDraining, &[], &[]),
    ]
}

fn discovery_errors() -> Vec<Row> {
    use ErrorReason as R;
    let call = |error: CallError| ErrorStatus::from(DiscoveryError::Call(error));
    let talk = |error: TalkError| ErrorStatus::from(DiscoveryError::Talk(error));
    let entry = |error: EntryError| ErrorStatus::from(DiscoveryError::Entry(error));
    let owned = EntryError::Owned { key: "eth".into(), owner: EntryOwner::Operator };
    vec![
        (DiscoveryError::Stopped.into(), R::ServerDraining, &[], &[]),
        (DiscoveryError::Off(crate::kademlia::Protocol::V5).into(), R::NodeAddressUnknown, &[], &[]),
        (DiscoveryError::NoDiscovery.into(), R::NodeAddressUnknown, &[], &[]),
        (DiscoveryError::NotFound.into(), R::NodeAddressUnknown, &[], &[]),
        (call(CallError::KeyNeeded), R::InvalidField, &[], &["target"]),
        (call(CallError::QueueFull), R::LimitReached, &["what"], &[]),
        (call(CallError::TooManyLookups), R::LimitReached, &["limit", "what"], &[]),
        (call(CallError::NoEndpoint), R::InvalidField, &[], &["node"]),
        (call(CallError::Address), R::InvalidField, &[], &["node"]),
        (call(CallError::Myself), R::InvalidField, &[], &["node"]),
        (call(CallError::TooLarge(2, 1)), R::InvalidField, &[], &["payload"]),
        (call(CallError::Timeout), R::TimedOut, &[], &[]),
        (talk(TalkError::Expired), R::InvalidField, &[], &["payload"]),
        (talk(TalkError::TooLarge(2, 1)), R::InvalidField, &[], &["payload"]),
        (DiscoveryError::TalkOwned("x".into()).into(), R::ProtocolAlreadyRegistered, &["protocol"], &[]),
        (entry(EntryError::Reserved("id".into())), R::InvalidField, &[], &["key"]),
        (entry(EntryError::EmptyKey), R::InvalidField, &[], &["key"]),
        (entry(owned), R::RecordKeyOwned, &[], &[]),
        (record_key_owned("eth", "geth"), R::RecordKeyOwned, &["key", "owner"], &[]),
        (entry(EntryError::TooLarge(301)), R::RecordTooLarge, &["bytes"], &[]),
        // Where the payload is longer than the excess, the payload must be shorter; otherwise the protocol name must.
        (talk_too_long(10, 105, 100), R::InvalidField, &[], &["payload"]),
        (talk_too_long(5, 105, 100), R::InvalidField, &[], &["protocol"]),
    ]
}

fn message_errors() -> Vec<Row> {
    use ErrorReason as R;
    let sent = |error| not_sent(error, NODE);
    let dialed = |outcome| not_connected(NODE, outcome);
    let refused = |why| dialed(ConnectOutcome::Refused(why));
    let failed = ConnectOutcome::Failed { cause: Cause::Silent, detail: String::new() };
    vec![
        (sent(SendError::WindowExceeded), R::SendWindowExceeded, &[], &[]),
        (sent(SendError::NotConnected), R::PeerNotConnected, &["node_id"], &[]),
        (sent(SendError::NeverOpened { channel: 1 }), R::PeerNotConnected, &[], &[]),
        (
            sent(SendError::CodeOutOfRange { message_count: 8 }),
            R::MessageCodeOutOfRange,
            &["message_count"],
            &[],
        ),
        (sent(SendError::TooLarge { bytes: 2, limit: 1 }), R::MessageTooLarge, &["bytes", "limit"], &[]),
        (too_large_for_all(2, &"too large"), R::MessageTooLarge, &["bytes"], &[]),
        (CreditError::NeverOpened { channel: 1 }.into(), R::InvalidField, &[], &["window_update.channel_id"]),
        (CreditError::TooMuch { bytes: 1 }.into(), R::InvalidField, &[], &["window_update.bytes"]),
        (dialed(failed), R::DialFailed, &["cause", "node_id"], &[]),
        (dialed(ConnectOutcome::TimedOut), R::TimedOut, &["node_id"], &[]),
        (dialed(ConnectOutcome::Connected), R::PeerNotConnected, &["node_id"], &[]),
        (refused(Refusal::BannedNode), R::NodeBanned, &["cause", "node_id"], &[]),
        (refused(Refusal::BannedAddress), R::NodeBanned, &["cause", "node_id"], &[]),
        (refused(Refusal::AddressUnknown), R::NodeAddressUnknown, &["cause", "node_id"], &[]),
        (refused(Refusal::NoProtocol), R::ProtocolNotRegistered, &["cause", "node_id"], &[]),
        (refused(Refusal::QueueFull), R::LimitReached, &["cause", "node_id"], &[]),
        (refused(Refusal::OwnIdentity), R::DialFailed, &["cause", "node_id"], &[]),
    ]
}

#[test]
fn each_error_has_one_reason_and_its_particulars() {
    let rows = [lease_errors(), switch_errors(), discovery_errors(), message_errors()];
    for (refusal, reason, keys, fields) in rows.into_iter().flatten() {
        let name = format!("{refusal:?}");
        assert_eq!(refusal.reason(), reason, "{name}");
        let forbidden = reason == ErrorReason::NotAuthorized;
        let (_, info, _, bad) = read(&Status::from(refusal.clone()));
        let metadata: BTreeSet<&str> = info.metadata.keys().map(String::as_str).collect();
        assert_eq!(metadata, keys.iter().copied().collect(), "{name}");
        let blamed: BTreeSet<String> =
            bad.into_iter().flat_map(|bad| bad.field_violations).map(|field| field.field).collect();
        assert_eq!(blamed, fields.iter().map(|&field| field.to_owned()).collect(), "{name}");
        // These errors come after authentication, so their code is PERMISSION_DENIED and never UNAUTHENTICATED.
        assert_eq!(refusal.code() == Code::PermissionDenied, forbidden, "{name}");
    }
}

/// Reasons that no error of another room has. The gate or a service uses them: the request or the stream itself is
/// wrong.
const OF_REQUESTS: [ErrorReason; 5] = [
    ErrorReason::StreamProtocolViolation,
    ErrorReason::NotSupported,
    ErrorReason::RequestMalformed,
    ErrorReason::RequestTooLarge,
    ErrorReason::Internal,
];

#[test]
fn each_reason_of_the_contract_has_an_error() {
    let rows = [lease_errors(), switch_errors(), discovery_errors(), message_errors()];
    let mut said: Vec<ErrorReason> = rows.into_iter().flatten().map(|(_, reason, ..)| reason).collect();
    said.extend(OF_REQUESTS);
    for reason in reasons().filter(|reason| *reason != ErrorReason::Unspecified) {
        assert!(said.contains(&reason), "{reason:?} is in the contract, and no error has it");
    }
    for reason in OF_REQUESTS {
        assert_eq!(said.iter().filter(|said| **said == reason).count(), 1, "an error has {reason:?}, too");
    }
}

#[test]
fn what_is_busy_says_when_to_come_back() {
    for error in [CallError::QueueFull, CallError::TooManyLookups] {
        let (_, _, retry, _) = read(&Status::from(ErrorStatus::from(DiscoveryError::Call(error))));
        assert_eq!(retry.and_then(|retry| retry.retry_delay).map(|delay| delay.seconds), Some(1));
    }
    let full = not_sent(SendError::WindowExceeded, NODE);
    assert!(read(&Status::from(full)).2.is_some(), "a full window empties");
}
