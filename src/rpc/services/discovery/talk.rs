//! The stream of `ServeTalk`: what strangers ask an application over discv5, and what it answers.
//!
//! Questions wait in a bounded queue of the driver. A question that nobody answers in time has had its empty answer
//! already, so an answer that comes later is not an error. An answer that does not fit a packet is refused by an event,
//! and its question stays open: the application may send a shorter one.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::{
    discv5::{MAX_TALK_RESPONSE, TalkError, TalkToken},
    net::discovery::{Discovery, DiscoveryError, TalkQuestion},
    rpc::{
        proto::{self, ErrorReason},
        translate::status::{self, Refusal},
    },
};

/// How long an application has to answer a TALKREQ; the asker waits 700 ms in geth, of which the way takes some.
const TALK_DEADLINE: Duration = Duration::from_millis(500);

/// Questions whose answers may still come; beyond, the oldest are over anyway.
const OPEN_QUESTIONS: usize = 1024;

/// Serves one TALKREQ protocol: questions out, answers in.
pub(super) struct TalkServer {
    discovery: Discovery,
    asked: u64,
    open: BTreeMap<u64, TalkToken>,
}

impl TalkServer {
    pub(super) fn new(discovery: Discovery) -> Self {
        Self { discovery, asked: 0, open: BTreeMap::new() }
    }

    fn question(&mut self, question: TalkQuestion) -> Vec<proto::serve_talk_response::Event> {
        use proto::serve_talk_response::Event as Out;
        let mut events = Vec::new();
        if question.lost_before > 0 {
            events.push(Out::Lost(proto::TalkQuestionsLost { questions: question.lost_before }));
        }
        self.asked += 1;
        self.open.insert(self.asked, question.token);
        if self.open.len() > OPEN_QUESTIONS {
            self.open.pop_first();
        }
        events.push(Out::Question(proto::TalkQuestion {
            question_id: self.asked,
            node_id: question.node.to_string(),
            remote_address: question.addr.to_string(),
            payload: question.request,
        }));
        events
    }

    /// Sends an answer. `Some` is what the application is told about it.
    async fn answer(
        &mut self,
        answer: proto::TalkAnswer,
    ) -> Result<Option<proto::serve_talk_response::Event>, Refusal> {
        let proto::TalkAnswer { question_id, payload } = answer;
        let Some(token) = self.open.get(&question_id).copied() else { return Ok(None) };
        let outcome = self.discovery.answer_talk(token, payload).await;
        if let Err(DiscoveryError::Talk(TalkError::TooLarge(bytes, limit))) = outcome {
            let refused = proto::TalkAnswerRefused {
                question_id,
                reason: ErrorReason::MessageTooLarge.into(),
                detail: format!(
                    "the answer has {bytes} bytes, and a packet has room for {limit}; the question is still open"
                ),
                bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                limit: u32::try_from(limit).unwrap_or(u32::MAX),
            };
            return Ok(Some(proto::serve_talk_response::Event::Refused(refused)));
        }
        self.open.remove(&question_id);
        match outcome {
            // Too late: the asker has its empty answer.
            Ok(()) | Err(DiscoveryError::Talk(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn run(
        mut self,
        mut requests: Streaming<proto::ServeTalkRequest>,
        mut questions: mpsc::Receiver<TalkQuestion>,
        out: mpsc::Sender<Result<proto::ServeTalkResponse, Status>>,
    ) {
        use proto::{serve_talk_request::Event as In, serve_talk_response::Event as Out};
        let started = proto::ServeTalkStarted {
            deadline: prost_types::Duration::try_from(TALK_DEADLINE).ok(),
            max_answer_bytes: u32::try_from(MAX_TALK_RESPONSE).unwrap_or(u32::MAX),
        };
        let first = proto::ServeTalkResponse { event: Some(Out::Started(started)) };
        if out.send(Ok(first)).await.is_err() {
            return;
        }
        let mut answering = true;
        loop {
            let outcome = tokio::select! {
                () = out.closed() => return,
                question = questions.recv() => match question {
                    Some(question) => {
                        for event in self.question(question) {
                            let response = proto::ServeTalkResponse { event: Some(event) };
                            if out.send(Ok(response)).await.is_err() {
                                return;
                            }
                        }
                        Ok(())
                    }
                    None => return,
                },
                request = requests.message(), if answering => match request {
                    Ok(Some(proto::ServeTalkRequest { event: Some(In::Answer(answer)) })) => {
                        match self.answer(answer).await {
                            Ok(Some(event)) => {
                                let response = proto::ServeTalkResponse { event: Some(event) };
                                if out.send(Ok(response)).await.is_err() {
                                    return;
                                }
                                Ok(())
                            }
                            Ok(None) => Ok(()),
                            Err(refusal) => Err(refusal),
                        }
                    }
                    Ok(Some(_)) => Err(Refusal::new(
                        ErrorReason::StreamProtocolViolation,
                        "\"serve\" is the first event of the stream and comes once; \"answer\" follows",
                    )),
                    Ok(None) => {
                        answering = false;
                        Ok(())
                    }
                    Err(status) => {
                        let _ = out.send(Err(status::with_reason(status))).await;
                        return;
                    }
                },
            };
            if let Err(refusal) = outcome {
                let _ = out.send(Err(refusal.into())).await;
                return;
            }
        }
    }
}
