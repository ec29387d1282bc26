//! Applications talk: TALKREQ both ways.

use bytes::Bytes;

use super::*;
use crate::discv5::{
    message::{TalkRequest, TalkResponse},
    talk::{ANSWER_TIME, MAX_PER_NODE},
};

const US: &str = "9.9.9.9:30303";
const THEM: &str = "8.8.8.8:30303";

fn asked(rig: &mut Rig) -> Vec<(TalkToken, Bytes)> {
    let talk = |action| match action {
        Action::Own(TalkAction::Requested { token, request, .. }) => Some((token, request)),
        _ => None,
    };
    rig.take_actions().into_iter().filter_map(talk).collect()
}

fn response(plaintext: &[u8]) -> (RequestId, Vec<u8>) {
    let Ok(Message::TalkResponse(talk)) = Message::decode(plaintext) else { panic!("no TALKRESP") };
    (talk.id, talk.response.to_vec())
}

#[test]
fn an_application_answers_or_silence_is_an_empty_answer() {
    let mut rig = Rig::new(US);
    rig.engine.set_talk_protocols([b"echo".to_vec()]);
    let mut tester = Tester::new(1, THEM);
    tester.meet(&mut rig);
    let request = |id, protocol: &'static [u8]| {
        encoded(|out| TalkRequest { id, protocol, request: b"hello" }.encode(out))
    };
    let ids = [1, 2].map(RequestId::from_u64);
    for id in ids {
        assert!(tester.ask(&mut rig, &request(id, b"echo")).is_empty());
    }
    let waiting = asked(&mut rig);
    assert_eq!(waiting.iter().map(|(_, request)| &request[..]).collect::<Vec<_>>(), [b"hello", b"hello"]);
    let (result, sent) = rig.command(|engine, now| engine.answer_talk(now, waiting[1].0, b"world"));
    assert_eq!(result, Ok(()));
    let Got::Message(answer) = tester.read_one(&sent) else { panic!("no message") };
    assert_eq!(response(&answer), (ids[1], b"world".to_vec()));
    assert_eq!(
        rig.command(|engine, now| engine.answer_talk(now, waiting[1].0, b"")).0,
        Err(TalkError::Expired)
    );
    // The largest answer fits; a larger one may be tried again.
    let (result, sent) = rig.command(|engine, now| engine.answer_talk(now, waiting[0].0, &[0; 1178]));
    assert_eq!((result, sent.len()), (Err(TalkError::TooLarge(1178, 1177)), 0));
    let (result, sent) = rig.command(|engine, now| engine.answer_talk(now, waiting[0].0, &[0; 1177]));
    assert_eq!((result, sent[0].1.len()), (Ok(()), 1280));

    assert!(tester.ask(&mut rig, &request(ids[0], b"echo")).is_empty());
    let late = asked(&mut rig)[0].0;
    let sent = rig.advance(ANSWER_TIME);
    let Got::Message(answer) = tester.read_one(&sent) else { panic!("no message") };
    assert_eq!(response(&answer), (ids[0], vec![]));
    assert_eq!(rig.command(|engine, now| engine.answer_talk(now, late, b"late")).0, Err(TalkError::Expired));
    assert_eq!(rig.counters().talk_expired, 1);
}

#[test]
fn one_node_cannot_occupy_an_application() {
    let mut rig = Rig::new(US);
    rig.engine.set_talk_protocols([b"echo".to_vec()]);
    let mut tester = Tester::new(1, THEM);
    let mut refused = 0;
    for index in 0..MAX_PER_NODE as u64 + 5 {
        let id = RequestId::from_u64(index);
        let request = encoded(|out| TalkRequest { id, protocol: b"echo", request: b"" }.encode(out));
        for answer in tester.ask(&mut rig, &request) {
            assert_eq!(response(&answer), (id, vec![]));
            refused += 1;
        }
    }
    assert_eq!((refused, rig.counters().talk_refused), (5, 5));
    assert_eq!(asked(&mut rig).len(), MAX_PER_NODE);
}

#[test]
fn we_ask_and_a_request_too_large_for_a_handshake_follows_it() {
    let mut rig = Rig::new(US);
    for (seed, length) in [(1, 10), (2, 1100)] {
        let mut tester = Tester::reachable(seed, THEM);
        let body = vec![7; length];
        let node = tester.contact();
        let (result, sent) =
            rig.command(|engine, now| engine.talk(now, QueryId(seed), &node, b"echo", &body));
        result.unwrap();
        let mut request = tester.challenge_engine(&mut rig, &sent[0].1);
        if length > 700 {
            let Ok(Message::Ping(ping)) = Message::decode(&request) else { panic!("no PING first") };
            let pong = crate::discv5::message::Pong { id: ping.id, enr_seq: 1, recipient: addr(US) };
            let packet = tester.write(&encoded(|out| pong.encode(out)));
            let sent = rig.deliver(tester.addr, &packet);
            let Got::Message(plaintext) = tester.read_one(&sent) else { panic!("no request") };
            request = plaintext;
        }
        let Ok(Message::TalkRequest(talk)) = Message::decode(&request) else { panic!("no TALKREQ") };
        assert_eq!((talk.protocol, talk.request), (&b"echo"[..], &body[..]));
        let packet = tester.write(&encoded(|out| TalkResponse { id: talk.id, response: b"re" }.encode(out)));
        assert!(rig.deliver(tester.addr, &packet).is_empty());
        let result =
            Action::Own(TalkAction::Result { query: QueryId(seed), response: Ok(Bytes::from_static(b"re")) });
        assert!(rig.take_actions().contains(&result));
    }
    let node = contact(&key(1), THEM);
    let (result, sent) = rig.command(|engine, now| engine.talk(now, QueryId(3), &node, b"echo", &[0; 1200]));
    assert_eq!((result, sent.len()), (Err(CallError::TooLarge(1221, 1193)), 0));
}
