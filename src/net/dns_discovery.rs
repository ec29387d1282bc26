//! Drives the tree client ([`crate::dnsdisc`]) against the resolver, and offers the nodes that it finds to the dialer.
//!
//! The queue between the two sets the demand: the tree client looks for as many nodes as the queue has free places.
//! While the dialer has no free slot, nothing is taken from the queue, and no DNS server is asked.
//!
//! Left out: how a tree is read and checked (`dnsdisc`), and which candidates are dialed (`policy`).

use std::{
    future::pending,
    time::{Duration, Instant},
};

use rand::rngs::StdRng;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep_until,
};

use super::{clock, resolver::Resolver, running::Running};
use crate::{
    dnsdisc::{self, Action, Answer, Client, Counters, Link, LookupId},
    node::Record,
    policy::dial::{Candidate, Source},
};

/// The most nodes of trees that are fetched before the dialer needs them.
const AHEAD: usize = 8;

/// The parts that candidates from DNS trees need: trees, resolver, demand, and the queue to the dialer.
#[derive(Debug)]
pub struct Feed {
    /// The trees.
    pub links: Vec<Link>,
    /// The resolver to ask.
    pub resolver: Resolver,
    /// The number of candidates that the dialer has room for.
    pub demand: watch::Receiver<usize>,
    /// The queue for candidates.
    pub candidates: mpsc::Sender<Candidate>,
    /// The randomness of the client.
    pub rng: StdRng,
}

/// Starts to offer the nodes of the trees. Returns the counters of reading the trees, and the task.
pub fn start(feed: Feed) -> (watch::Receiver<Counters>, Running) {
    let (counters, told) = watch::channel(Counters::default());
    (told, Running::start_without_end("DNS trees", offer(feed, counters)))
}

/// Reads trees, and offers their nodes while the dialer has room for candidates.
async fn offer(feed: Feed, counters: watch::Sender<Counters>) {
    let Feed { links, resolver, mut demand, candidates, rng } = feed;
    // No DNS server is asked before the dialer has room for a candidate.
    if demand.wait_for(|wanted| *wanted > 0).await.is_err() {
        return;
    }
    let client = Client::new(clock::now(), dnsdisc::Config { allow_private: false }, &links, rng);
    let (nodes, mut found) = mpsc::channel::<Record>(AHEAD);
    let reading = run(client, resolver, nodes, counters);
    let feeding = async {
        loop {
            if demand.wait_for(|wanted| *wanted > 0).await.is_err() {
                return;
            }
            let Some(record) = found.recv().await else { return };
            let Some(addr) = record.tcp_addr() else { continue };
            let candidate = Candidate {
                public_key: record.public_key(),
                addr,
                record: Some(record),
                source: Source::Dns,
                served: Duration::ZERO,
            };
            if candidates.send(candidate).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = feeding => {}
    }
}

/// Lookups in progress. Each returns the texts of the resolver; `None` if the lookup failed.
type Lookups = JoinSet<(LookupId, Option<Vec<String>>)>;

/// Runs `client` until the receiver of `nodes` is closed. `counters` always holds the newest counters.
async fn run(
    mut client: Client,
    resolver: Resolver,
    nodes: mpsc::Sender<Record>,
    counters: watch::Sender<Counters>,
) {
    let mut lookups = Lookups::new();
    loop {
        // Nodes that were found go into the queue before its free places are counted.
        drain(&mut client, &resolver, &nodes, &mut lookups);
        if client.wanted() != nodes.capacity() {
            client.want(clock::now(), nodes.capacity());
            drain(&mut client, &resolver, &nodes, &mut lookups);
        }
        counters.send_if_modified(|told| std::mem::replace(told, client.counters()) != client.counters());
        // Wait for the first of these: the receiver is closed, a full queue has a free place, a timer of the client
        // fires, or a lookup ends.
        tokio::select! {
            () = nodes.closed() => return,
            // The top of the loop then counts the free place.
            Ok(_) = nodes.reserve(), if nodes.capacity() == 0 => {}
            () = until(client.poll_timeout()) => client.handle_timeout(clock::now()),
            Some(done) = lookups.join_next() => {
                // Lookups do not panic, and they are not aborted while this loop runs.
                let Ok((id, texts)) = done else { continue };
                let answer = texts.as_deref().map_or(Answer::Failed, Answer::Texts);
                client.handle_answer(clock::now(), id, answer);
            }
        }
    }
}

/// Waits until a time; for ever if there is none.
async fn until(timer: Option<Instant>) {
    match timer {
        Some(at) => sleep_until(at.into()).await,
        None => pending().await,
    }
}

fn drain(client: &mut Client, resolver: &Resolver, nodes: &mpsc::Sender<Record>, lookups: &mut Lookups) {
    while let Some(action) = client.poll_action() {
        carry_out(action, resolver, nodes, lookups);
    }
}

fn carry_out(action: Action, resolver: &Resolver, nodes: &mpsc::Sender<Record>, lookups: &mut Lookups) {
    match action {
        Action::Resolve { id, name } => {
            let resolver = resolver.clone();
            // There are as many tasks as the client has open requests: at most four.
            lookups.spawn(async move {
                let answer = resolver.txt(&name).await;
                (
                    id,
                    answer
                        .inspect_err(|error| tracing::debug!(%error, "a lookup for a node list failed"))
                        .ok(),
                )
            });
        }
        Action::Found { record, .. } => {
            // The queue has a free place: the client finds no more nodes than are wanted, and there is no other sender.
            if nodes.try_send(record).is_err() {
                tracing::debug!("the queue for nodes from the DNS is full or closed; a node was dropped");
            }
        }
        Action::Problem { domain, entry, problem } => {
            tracing::debug!(tree = %domain, entry, %problem, "a node list has a problem");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;

    use super::*;
    use crate::{
        dnsdisc::{
            Config,
            zone::{Maker, Zone, records},
        },
        net::test_dns::{Reply, TestDns},
        node::NodeId,
    };

    fn replies(zone: Zone) -> impl Iterator<Item = (String, Reply)> {
        zone.into_iter().map(|(name, text)| (name, Reply::Texts(vec![text])))
    }

    #[tokio::test]
    async fn nodes_come_as_they_are_taken() {
        let maker = Maker::new(1, "nodes.test");
        let (link, records) = (maker.link(), records(0..8));
        let dns = TestDns::start(replies(maker.tree(1, &records, &[]))).await;
        let client = Client::new(clock::now(), Config::default(), &[link], StdRng::seed_from_u64(1));
        let (sender, mut nodes) = mpsc::channel(2);
        let (counters, told) = watch::channel(Counters::default());
        let resolver = Resolver::with_server(dns.addr).unwrap();
        let driver = tokio::spawn(run(client, resolver, sender, counters));
        // The client asks for the root, two subtrees, and as many records as the queue has places.
        tokio::time::timeout(Duration::from_secs(5), async {
            while nodes.len() < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(dns.asked().len(), 5, "{:?}", dns.asked());
        let mut found = BTreeSet::new();
        for _ in 0..8 {
            let record = tokio::time::timeout(Duration::from_secs(5), nodes.recv()).await.unwrap().unwrap();
            found.insert(record.id());
        }
        assert_eq!(found, records.iter().map(Record::id).collect::<BTreeSet<NodeId>>());
        assert!(told.borrow().found >= 8);
        drop(nodes);
        tokio::time::timeout(Duration::from_secs(1), driver).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_name_server_that_fails_is_asked_again() {
        let maker = Maker::new(1, "nodes.test");
        let (link, records) = (maker.link(), records(0..1));
        let dns = TestDns::start([("nodes.test", Reply::ServerFailure)]).await;
        let client = Client::new(clock::now(), Config::default(), &[link], StdRng::seed_from_u64(1));
        let (sender, mut nodes) = mpsc::channel(2);
        let (counters, told) = watch::channel(Counters::default());
        let resolver = Resolver::with_server(dns.addr).unwrap();
        let _driver = tokio::spawn(run(client, resolver, sender, counters));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(told.borrow().unanswered, 1);
        dns.set(replies(maker.tree(1, &records, &[])));
        let record = tokio::time::timeout(Duration::from_secs(10), nodes.recv()).await.unwrap().unwrap();
        assert_eq!(record, records[0]);
    }
}
