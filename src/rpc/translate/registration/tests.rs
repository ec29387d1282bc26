//! A spec comes back as it was registered, and all wrong fields of a spec are reported at once.

use super::*;

fn said(
    filter: proto::dial_filter::Filter,
    action: proto::overflow_policy::Action,
) -> proto::RegistrationSpec {
    proto::RegistrationSpec {
        client_id: "geth".to_owned(),
        protocols: vec![proto::ProtocolSpec {
            name: "eth".to_owned(),
            version: 69,
            message_count: 18,
            max_message_bytes: 1_000,
            greeting: vec![proto::Payload { code: 0, payload: (&b"hello"[..]).into() }],
            keep_first: 1,
        }],
        linger: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        overflow_policy: Some(proto::OverflowPolicy {
            stall_limit: Some(prost_types::Duration { seconds: 3, nanos: 0 }),
            action: action.into(),
            channel_queue_bytes: 1 << 20,
        }),
        dial_filter: Some(proto::DialFilter { filter: Some(filter) }),
        desired_peers: 25,
    }
}

#[test]
fn a_spec_comes_back_as_it_was_said() {
    use proto::{dial_filter::Filter, overflow_policy::Action as A};
    let chain = proto::ForkFilter {
        genesis_hash: vec![7; 32].into(),
        genesis_time: 1,
        fork_heights: vec![2, 3],
        fork_times: vec![4],
        head_height: 5,
        head_time: 6,
        announce: true,
    };
    let ours = proto::ForkFilter { head_height: 5, announce: true, ..proto::ForkFilter::default() };
    let entry = proto::RecordEntryFilter {
        key: "eth".to_owned(),
        accepted_values: vec![(&[0xc0_u8][..]).into(), (&[0x80_u8][..]).into()],
    };
    let filters = [
        Filter::AnyNode(proto::AnyNode {}),
        Filter::RecordEntry(entry),
        Filter::Fork(chain),
        Filter::Fork(ours),
    ];
    for filter in filters {
        for action in [A::DropAndReport, A::DisconnectPeer, A::Wait] {
            let said = said(filter.clone(), action);
            assert_eq!(spec_view(&spec(Some(said.clone())).unwrap()), said);
        }
    }
}

#[test]
fn what_is_not_said_is_shown_with_its_default() {
    let said = proto::RegistrationSpec { client_id: "geth".to_owned(), ..Default::default() };
    let shown = spec_view(&spec(Some(said)).unwrap());
    let overflow = shown.overflow_policy.unwrap();
    assert_eq!(overflow.action(), proto::overflow_policy::Action::DropAndReport);
    assert!(overflow.stall_limit.is_some() && overflow.channel_queue_bytes > 0);
    assert!(shown.linger.is_some());
    assert_eq!(shown.dial_filter, None);
}

#[test]
fn all_that_is_wrong_with_a_spec_is_told_at_once() {
    let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let wrong = proto::RegistrationSpec {
        linger: negative,
        overflow_policy: Some(proto::OverflowPolicy { stall_limit: negative, ..Default::default() }),
        dial_filter: Some(proto::DialFilter { filter: None }),
        ..Default::default()
    };
    let fields: Vec<String> =
        spec(Some(wrong)).unwrap_err().into_fields().into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["spec.overflow_policy.stall_limit", "spec.linger", "spec.dial_filter"]);
    assert!(spec(None).unwrap_err().message().starts_with("spec: is missing"));
}

#[test]
fn a_fork_filter_without_a_whole_genesis_hash_names_it() {
    let filter = |fork| Some(proto::DialFilter { filter: Some(proto::dial_filter::Filter::Fork(fork)) });
    for fork in [
        proto::ForkFilter { genesis_hash: vec![7; 31].into(), ..Default::default() },
        proto::ForkFilter { fork_times: vec![1], ..Default::default() },
        proto::ForkFilter { genesis_time: 1, ..Default::default() },
    ] {
        let fields = dial_filter::wanted(filter(fork)).unwrap_err().into_fields();
        assert_eq!(fields[0].0, "spec.dial_filter.fork.genesis_hash");
    }
}

#[test]
fn a_stream_says_which_registration_it_is_for() {
    use proto::attach::Target as T;
    let attach = |target| {
        attach_request(proto::Attach {
            target,
            request_id: "1".to_owned(),
            takeover: true,
            ..Default::default()
        })
    };
    let token = attach(Some(T::ResumeToken("t".to_owned()))).unwrap();
    assert!(matches!(token.target, RegistrationRef::Token(text) if text == "t"));
    assert!(token.takeover && token.request_id == "1");
    assert!(matches!(attach(Some(T::ClientId("c".to_owned()))).unwrap().target, RegistrationRef::Client(_)));
    assert!(attach(None).unwrap_err().message().starts_with("attach: must name"));
    let long = proto::Attach {
        target: Some(T::ClientId("c".to_owned())),
        request_id: "x".repeat(65),
        ..Default::default()
    };
    assert!(attach_request(long).unwrap_err().message().starts_with("request_id: "));
}
