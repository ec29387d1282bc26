//! The stream of `ServeTalk`: TALKREQs of other nodes to an application over discv5 (questions), and its answers.
//!
//! Questions wait in a bounded queue of the driver. Discovery gives an empty answer to a question that is not answered
//! in time, so a later answer is dropped and is not an error. An answer that does not fit a packet is refused by an
//! event, and its question stays open: the application may send a shorter answer.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::{
    discv5::{MAX_TALK_RESPONSE, TalkError, TalkToken},
    net::discovery::{Discovery, DiscoveryError, TalkQuestion},
    rpc::{
        proto::{self, ErrorReason, serve_talk_request::Event as In, serve_talk_response::Event as Out},
        translate::status::{self, ErrorStatus},
    },
};

/// The time in which an application must answer a TALKREQ. geth waits 700 ms for an answer, and the round trip takes
/// some of it.
const TALK_DEADLINE: Duration = Duration::from_millis(500);

/// The most questions that may still be answered. With more, the oldest are dropped; their time is over anyway.
const OPEN_QUESTIONS: usize = 1024;

/// The sender of the stream's events.
type Events = mpsc::Sender<Result<proto::ServeTalkResponse, Status>>;

/// Why a stream ended without the application closing its side.
enum Ended {
    /// The application does not read the stream any more.
    Unread,
    /// The application did something wrong, or the sidecar is stopping.
    Wrong(Status),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::Wrong(status)
    }
}

/// Serves the protocol that the first of `requests` names.
pub(super) async fn serve(
    discovery: Discovery,
    mut requests: Streaming<proto::ServeTalkRequest>,
    out: Events,
) {
    let served = match begin(&discovery, &mut requests).await {
        Ok(questions) => TalkServer::new(discovery).run(requests, questions, &out).await,
        Err(status) => Err(Ended::Wrong(status)),
    };
    if let Err(Ended::Wrong(status)) = served {
        // Sending fails if the client has ended the call, which is no error.
        let _ = out.send(Err(status)).await;
    }
}

/// Reads the first event, and registers for its protocol.
async fn begin(
    discovery: &Discovery,
    requests: &mut Streaming<proto::ServeTalkRequest>,
) -> Result<mpsc::Receiver<TalkQuestion>, Status> {
    match requests.message().await.map_err(status::with_reason)? {
        Some(proto::ServeTalkRequest { event: Some(In::Serve(start)) }) if !start.protocol.is_empty() => {
            let protocol = start.protocol.into_bytes().into();
            Ok(discovery.serve_talk(protocol).await.map_err(ErrorStatus::from)?)
        }
        _ => Err(wrong_order("the first event of the stream must be \"serve\" with the name of a protocol")),
    }
}

fn wrong_order(problem: &str) -> Status {
    ErrorStatus::new(ErrorReason::StreamProtocolViolation, problem).into()
}

async fn tell(out: &Events, event: Out) -> Result<(), Ended> {
    let response = proto::ServeTalkResponse { event: Some(event) };
    out.send(Ok(response)).await.map_err(|_| Ended::Unread)
}

/// Serves one TALKREQ protocol: questions out, answers in.
struct TalkServer {
    discovery: Discovery,
    asked: u64,
    open: BTreeMap<u64, TalkToken>,
}

impl TalkServer {
    fn new(discovery: Discovery) -> Self {
        Self { discovery, asked: 0, open: BTreeMap::new() }
    }

    fn question(&mut self, question: TalkQuestion) -> Vec<Out> {
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

    /// Sends an answer. Returns an event for the application if the answer is too large for a packet.
    async fn answer(&mut self, answer: proto::TalkAnswer) -> Result<Option<Out>, ErrorStatus> {
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
            return Ok(Some(Out::Refused(refused)));
        }
        self.open.remove(&question_id);
        match outcome {
            // An error here means that the answer came too late: the node has got an empty answer.
            Ok(()) | Err(DiscoveryError::Talk(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Serves the stream until the application stops reading it, the sidecar stops, or the application does something
    /// wrong.
    async fn run(
        mut self,
        mut requests: Streaming<proto::ServeTalkRequest>,
        mut questions: mpsc::Receiver<TalkQuestion>,
        out: &Events,
    ) -> Result<(), Ended> {
        let started = proto::ServeTalkStarted {
            deadline: prost_types::Duration::try_from(TALK_DEADLINE).ok(),
            max_answer_bytes: u32::try_from(MAX_TALK_RESPONSE).unwrap_or(u32::MAX),
        };
        tell(out, Out::Started(started)).await?;
        let mut answering = true;
        // Three conditions: the application does not read any more, a question came, or an answer came. An application
        // that closed its side sends no more answers and still gets questions, so the stream goes on without that
        // branch.
        loop {
            tokio::select! {
                () = out.closed() => return Ok(()),
                question = questions.recv() => {
                    let Some(question) = question else { return Ok(()) };
                    for event in self.question(question) {
                        tell(out, event).await?;
                    }
                }
                request = requests.message(), if answering => match request.map_err(status::with_reason)? {
                    Some(proto::ServeTalkRequest { event: Some(In::Answer(answer)) }) => {
                        if let Some(event) = self.answer(answer).await.map_err(Status::from)? {
                            tell(out, event).await?;
                        }
                    }
                    Some(_) => return Err(Ended::Wrong(wrong_order(
                        "\"serve\" is the first event of the stream and comes once; later events must be \"answer\"",
                    ))),
                    None => answering = false,
                },
            }
        }
    }
}
