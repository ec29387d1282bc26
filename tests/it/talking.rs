//! Requests of discv5 that applications make and serve (TALKREQ), and their errors when one does not fit.

use devp2pd::rpc::proto::{
    ErrorReason, PingNodeRequest, ServeTalkRequest, ServeTalkStart, TalkAnswer, TalkRequestRequest,
    serve_talk_request::Event as In, serve_talk_response::Event as Out,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::harness::{Sidecar, eventually, refused, soon};

const FLAGS: [&str; 2] = ["--nodiscover=false", "--nodial"];

fn record(sidecar: &Sidecar) -> String {
    sidecar.started().record.to_string()
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_told_and_the_question_stays_open() {
    let (asker, server) = (Sidecar::start_with(&FLAGS).await, Sidecar::start_with(&FLAGS).await);
    let (requests, stream) = mpsc::channel(8);
    let serve = In::Serve(ServeTalkStart { protocol: "echo".to_owned() });
    requests.send(ServeTalkRequest { event: Some(serve) }).await.unwrap();
    let mut events = server.discovery().serve_talk(ReceiverStream::new(stream)).await.unwrap().into_inner();
    let Some(Out::Started(started)) =
        soon("the stream serves", events.message()).await.unwrap().unwrap().event
    else {
        panic!("the first event is not \"started\"")
    };
    let limit = started.max_answer_bytes;
    assert_eq!(limit, 1_177);
    // Each question is answered with a byte too much first, and then, after the refusal, with as much as fits. A busy
    // machine may be too late for one question; the next one is asked then.
    let serving = tokio::spawn(async move {
        let mut asked = None;
        let mut refusals = 0;
        while let Some(response) = events.message().await.unwrap() {
            let (question_id, length) = match response.event.unwrap() {
                Out::Question(question) => {
                    asked = Some(question.question_id);
                    (question.question_id, limit + 1)
                }
                Out::Refused(refusal) => {
                    assert_eq!(Some(refusal.question_id), asked);
                    assert_eq!(refusal.reason(), ErrorReason::MessageTooLarge);
                    assert_eq!((refusal.bytes, refusal.limit), (limit + 1, limit));
                    assert!(refusal.detail.contains("1178") && refusal.detail.contains("1177"));
                    refusals += 1;
                    (refusal.question_id, limit)
                }
                other => panic!("{other:?}"),
            };
            let payload = vec![7; length as usize].into();
            let answer = In::Answer(TalkAnswer { question_id, payload });
            if requests.send(ServeTalkRequest { event: Some(answer) }).await.is_err() {
                break;
            }
        }
        refusals
    });
    let node = record(&server);
    let answer = eventually("the shorter answer arrives", async || {
        let question =
            TalkRequestRequest { node: node.clone(), protocol: "echo".to_owned(), payload: "?".into() };
        let answer = asker.discovery().talk_request(question).await.ok()?.into_inner().payload;
        (!answer.is_empty()).then_some(answer)
    })
    .await;
    assert_eq!(answer, vec![7; limit as usize]);
    server.stop().await;
    assert!(soon("the stream ends", serving).await.unwrap_or(1) >= 1);
}

#[tokio::test]
async fn a_request_that_cannot_be_made_blames_what_is_wrong_with_it() {
    let (asker, other) = (Sidecar::start_with(&FLAGS).await, Sidecar::start_with(&FLAGS).await);
    let ask = async |node: String, protocol: &str, payload: usize| {
        let payload = vec![0; payload].into();
        let request = TalkRequestRequest { node, protocol: protocol.to_owned(), payload };
        refused(&asker.discovery().talk_request(request).await.unwrap_err())
    };
    let long = ask(record(&other), "echo", 1_300).await;
    assert_eq!((long.code, long.reason.as_str()), (Code::InvalidArgument, "INVALID_FIELD"));
    assert_eq!(long.fields, ["payload"], "{}", long.message);
    assert!(long.message.contains("shorter"), "{}", long.message);
    let long = ask(record(&other), &"x".repeat(1_300), 1).await;
    assert_eq!(long.fields, ["protocol"], "{}", long.message);
    let us = ask(record(&asker), "echo", 1).await;
    assert_eq!(us.fields, ["node"], "{}", us.message);
    for protocol in [1, 2] {
        let ping = PingNodeRequest { node: record(&asker), protocol };
        let us = refused(&asker.discovery().ping_node(ping).await.unwrap_err());
        assert_eq!(us.fields, ["node"], "protocol {protocol}: {}", us.message);
    }
}
