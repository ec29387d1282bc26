//! A name server for tests, on loopback. It answers from a map by UDP, and by TCP if an answer does not fit a UDP
//! packet.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType, rdata::TXT},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

/// The reply to a question for one name.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Texts(Vec<String>),
    Addresses(Vec<IpAddr>),
    ServerFailure,
    Silence,
}

/// A running server; stops when dropped.
pub(crate) struct TestDns {
    pub(crate) addr: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Zone {
    replies: HashMap<String, Reply>,
    asked: Vec<String>,
}

impl TestDns {
    pub(crate) async fn start<N: Into<String>>(replies: impl IntoIterator<Item = (N, Reply)>) -> Self {
        // Both protocols need the same port. UDP gets a free one; if TCP cannot have it, both try another one.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let addr = udp.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let mut tasks = JoinSet::new();
        let (by_udp, by_tcp) = (zone.clone(), zone.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((len, from)) = udp.recv_from(&mut buffer).await {
                let Some(mut reply) = answer(&by_udp, &buffer[..len]) else { continue };
                let mut bytes = reply.to_vec().unwrap();
                if bytes.len() > 1232 {
                    reply.answers.clear();
                    reply.metadata.truncation = true;
                    bytes = reply.to_vec().unwrap();
                }
                let _ = udp.send_to(&bytes, from).await;
            }
        });
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut query = vec![0; usize::from(stream.read_u16().await.unwrap_or(0))];
                if stream.read_exact(&mut query).await.is_err() {
                    continue;
                }
                let Some(reply) = answer(&by_tcp, &query) else { continue };
                let bytes = reply.to_vec().unwrap();
                let len = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                let _ = stream.write_all(&[&len[..], &bytes].concat()).await;
            }
        });
        let server = Self { addr, zone, _tasks: tasks };
        server.set(replies);
        server
    }

    /// Sets the replies for names.
    pub(crate) fn set<N: Into<String>>(&self, replies: impl IntoIterator<Item = (N, Reply)>) {
        let replies = replies.into_iter().map(|(name, reply)| (name.into().to_lowercase(), reply));
        self.zone.lock().unwrap().replies.extend(replies);
    }

    /// Returns every name that was asked for, as the client wrote it.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.zone.lock().unwrap().asked.clone()
    }
}

fn answer(zone: &Mutex<Zone>, query: &[u8]) -> Option<Message> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let mut zone = zone.lock().unwrap();
    zone.asked.push(question.name().to_string());
    let name = question.name().to_string().trim_end_matches('.').to_lowercase();
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    let mut add = |data| {
        reply.add_answer(Record::from_rdata(question.name().clone(), 60, data));
    };
    match zone.replies.get(&name) {
        None => reply.metadata.response_code = ResponseCode::NXDomain,
        Some(Reply::ServerFailure) => reply.metadata.response_code = ResponseCode::ServFail,
        Some(Reply::Silence) => return None,
        Some(Reply::Texts(texts)) if question.query_type() == RecordType::TXT => {
            for text in texts {
                let strings =
                    text.as_bytes().chunks(255).map(|part| String::from_utf8(part.to_vec()).unwrap());
                add(RData::TXT(TXT::new(strings.collect())));
            }
        }
        Some(Reply::Addresses(ips)) => {
            for ip in ips {
                match (ip, question.query_type()) {
                    (IpAddr::V4(ip), RecordType::A) => add(RData::A((*ip).into())),
                    (IpAddr::V6(ip), RecordType::AAAA) => add(RData::AAAA((*ip).into())),
                    _ => {}
                }
            }
        }
        Some(Reply::Texts(_)) => {}
    }
    Some(reply)
}
