//! Errors as their reader needs them: all problems, and what to type instead.

use devp2pd::{
    node::Enode,
    rpc::proto::{
        self, Attach, ConnectPeerRequest, PeerRole, RegisterProtocolsRequest, RegistrationSpec,
        SendMessageRequest,
    },
};
use prost_types::Duration;

use crate::harness::{Liar, Sidecar, Trap, protocol, refused, spec};

/// The commonest mistake of all: an address with the key of another node.
#[tokio::test]
async fn a_wrong_key_is_what_a_closed_handshake_is_blamed_on_first() {
    let (sidecar, other) = (Sidecar::start().await, Sidecar::start().await);
    let (_app, _other) = (sidecar.echo().await, other.echo().await);
    let node = Enode::at(Liar::key_of(7).public(), other.peer_addr()).to_string();
    let request = ConnectPeerRequest { node, timeout: None };
    let refusal = refused(&sidecar.peers().connect_peer(request).await.unwrap_err());
    assert_eq!(refusal.metadata["cause"], "hung_up");
    let (key, throttle) =
        (refusal.message.find("public key is not that node's"), refusal.message.find("throttle"));
    assert!(key.is_some() && key < throttle, "{}", refusal.message);
}

#[tokio::test]
async fn a_spec_with_several_faults_is_told_all_of_them() {
    let sidecar = Sidecar::start().await;
    let mut protocols = sidecar.protocols();
    let mut register = async |spec: RegistrationSpec| {
        let request = RegisterProtocolsRequest { spec: Some(spec), ..Default::default() };
        refused(&protocols.register_protocols(request).await.unwrap_err())
    };
    let mut wrong = spec("", &[("toolongname", 1, 0), ("eth", 69, 1)]);
    wrong.protocols.push(proto::ProtocolSpec { keep_first: 1_000, ..protocol("x", 1, 1) });
    let refusal = register(wrong).await;
    let fields = [
        "spec.client_id",
        "spec.protocols[0].name",
        "spec.protocols[0].message_count",
        "spec.protocols[1].message_count",
        "spec.protocols[2].keep_first",
    ];
    assert_eq!(refusal.fields, fields);
    assert!(fields.iter().all(|field| refusal.message.contains(field)), "{}", refusal.message);
    // The same where fields are translated.
    let wrong = RegistrationSpec {
        linger: Some(Duration { seconds: -1, nanos: 0 }),
        dial_filter: Some(proto::DialFilter::default()),
        ..spec("app", &[("x", 1, 1)])
    };
    let refusal = register(wrong).await;
    assert_eq!(refusal.fields, ["spec.linger", "spec.dial_filter"]);
    assert!(refusal.message.contains("such as \"10s\""), "{}", refusal.message);
}

#[tokio::test]
async fn particulars_are_told_as_the_caller_wrote_them() {
    let sidecar = Sidecar::start().await;
    let request = SendMessageRequest {
        node: Liar::key_of(1).id().to_string(),
        protocol: "echo".to_owned(),
        ..Default::default()
    };
    let mut messages = sidecar.messages();
    let refusal = refused(&messages.send_message(request).await.unwrap_err());
    assert_eq!(refusal.kind().1, "PROTOCOL_NOT_REGISTERED");
    assert_eq!(refusal.metadata["protocol"], "echo");
    assert!(refusal.message.starts_with("no application registered \"echo\";"), "{}", refusal.message);
}

#[tokio::test]
async fn a_channel_tells_the_roles_of_its_peer_and_a_registration_its_defaults() {
    let sidecar = Sidecar::start().await;
    let mut app = sidecar.echo().await;
    let spec = app.attached.registration.clone().unwrap().spec.unwrap();
    assert_eq!(spec.protocols[0].max_message_bytes, (1 << 24) - 1);
    let overflow = spec.overflow_policy.unwrap();
    assert!(overflow.channel_queue_bytes > 0 && overflow.stall_limit.is_some() && spec.linger.is_some());

    let trap = Trap::set(2).await;
    sidecar.add_static(&trap.enode()).await;
    let mut peer = trap.caught(&sidecar).await;
    peer.answer().await;
    peer.say_hello(&[("echo", 1)]).await;
    let opened = app.opened().await.peer.unwrap();
    assert_eq!(opened.roles, [i32::from(PeerRole::Static)]);
    // The registration in the answer can be sent back: it is the same with its defaults spelled out.
    drop(app);
    let again = RegistrationSpec { ..sidecar_spec(&sidecar).await };
    let attach = Attach {
        target: Some(proto::attach::Target::Spec(again)),
        takeover: true,
        auto_credit: true,
        ..Default::default()
    };
    let app = crate::harness::Application::attach(sidecar.messages(), attach).await.unwrap();
    assert!(app.attached.resumed);
}

async fn sidecar_spec(sidecar: &Sidecar) -> RegistrationSpec {
    let request = proto::ListRegistrationsRequest::default();
    let listed = sidecar.protocols().list_registrations(request).await.unwrap().into_inner();
    listed.registrations[0].spec.clone().unwrap()
}
