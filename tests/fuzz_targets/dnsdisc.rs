//! Node lists in the DNS: entries of any text, and the client against a zone whose answers the input chooses.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use devp2pd::Now;
use devp2pd::dnsdisc::entry::{Entry, Hash, Root};
use devp2pd::dnsdisc::{Action, Answer, Client, Config, Link, LookupId};
use devp2pd::node::{NodeKey, RecordBuilder, id::keccak256};
use rand::{SeedableRng, rngs::StdRng};

/// An accepted entry is equal after it is written and read again. No text is accepted as a root under a key that did
/// not sign it.
pub fn dns_entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Entry>() {
        Ok(Entry::Branch(children)) => {
            let names: Vec<String> = children.iter().map(Hash::to_string).collect();
            assert_eq!(format!("enrtree-branch:{}", names.join(",")), text);
        }
        Ok(Entry::Link(link)) => assert_eq!(link.to_string().parse(), Ok(Entry::Link(link))),
        Ok(Entry::Record(record)) => assert_eq!(record.to_string(), text),
        Err(error) => assert!(error.to_string().len() < 1024, "{error}"),
    }
    assert!(Root::parse(text, &key(9).public()).is_err());
    assert!(Hash::of(text).matches(text));
    if let Ok(hash) = text.parse::<Hash>() {
        assert_eq!(hash.to_string(), text);
    }
}

fn key(number: u8) -> NodeKey {
    NodeKey::from_bytes(&[number; 32]).expect("one of the valid keys")
}

/// The client keeps its limits whatever the zone answers: no more nodes than wanted, at most 4 requests in flight, 3
/// requests a second after a burst of 10, and at most 17 trees.
pub fn dns_tree(data: &[u8]) {
    let (build, operations) = data.split_at(data.len().min(32));
    let zone = Zone::new(build);
    let mut now = start();
    let begin = now;
    let config = Config { allow_private: build.first().is_some_and(|byte| byte & 1 == 1) };
    let mut client = Client::new(now, config, &[zone.link(0)], StdRng::seed_from_u64(1));
    let mut asked: VecDeque<(LookupId, String)> = VecDeque::new();
    let (mut requests, mut allowed) = (0_u128, 0_usize);
    for pair in operations.chunks(2) {
        let argument = pair.get(1).copied().unwrap_or(0);
        match pair[0] % 8 {
            0 => {
                allowed = usize::from(argument);
                client.want(now, allowed);
            }
            1 => now = now.after(Duration::from_millis(1 << (argument % 23))),
            2 => now = now.after(client.poll_timeout().map_or(Duration::ZERO, |at| at - now.mono)),
            operation => {
                let Some((id, name)) = asked.pop_front() else { continue };
                let texts = match operation {
                    3 | 4 => zone.at(&name, argument),
                    5 => vec![zone.entries[usize::from(argument) % zone.entries.len()].clone()],
                    6 => vec![String::from_utf8_lossy(build).into_owned()],
                    _ => vec![],
                };
                let answer = if pair[0] >= 248 { Answer::Failed } else { Answer::Texts(&texts) };
                client.handle_answer(now, id, answer);
            }
        }
        client.handle_timeout(now);
        while let Some(action) = client.poll_action() {
            match action {
                Action::Resolve { id, name } => {
                    assert!(name.len() <= 253, "{name}");
                    requests += 1;
                    asked.push_back((id, name));
                }
                Action::Found { record, .. } => {
                    allowed = allowed.checked_sub(1).expect("a node that nobody wanted");
                    assert!(record.endpoint().is_some());
                }
                Action::Problem { problem, .. } => assert!(problem.to_string().len() < 1024),
            }
        }
        assert_eq!(client.wanted(), allowed);
        assert!(asked.len() <= 4 && client.trees().count() <= 17);
        let time = (now.mono - begin.mono).as_millis();
        assert!(requests <= 10 + time * 3 / 999, "{requests} requests in {time} ms");
        assert!(client.poll_timeout().is_none_or(|at| at > now.mono), "a timer in the past spins");
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual time needs a beginning")]
fn start() -> Now {
    Now { mono: Instant::now(), unix: Duration::from_secs(1_700_000_000) }
}

/// Three trees. The input chooses which entries point at which.
struct Zone {
    entries: Vec<String>,
    by_hash: HashMap<String, String>,
}

impl Zone {
    fn new(build: &[u8]) -> Self {
        let mut zone = Self { entries: Vec::new(), by_hash: HashMap::new() };
        zone.add("enrtree-branch:".to_owned());
        for number in 0..3 {
            zone.add(zone.link(number).to_string());
        }
        for (number, ip) in ["8.8.8.8", "9.9.9.9", "10.0.0.1", "127.0.0.1"].into_iter().enumerate() {
            let mut record = RecordBuilder::new(1);
            record.ip(ip.parse().expect("an address")).port("tcp", 30303);
            let key = key(u8::try_from(number).expect("four") + 20);
            zone.add(record.sign(&key).expect("a small record").to_string());
        }
        // Each byte makes a branch over three of the entries so far.
        for byte in build {
            let child = |shift: u8| {
                let place = usize::from(byte.rotate_right(shift.into())) % zone.entries.len();
                Hash::of(&zone.entries[place]).to_string()
            };
            zone.add(format!("enrtree-branch:{},{},{}", child(0), child(3), child(5)));
        }
        zone
    }

    fn add(&mut self, text: String) {
        self.by_hash.insert(Hash::of(&text).to_string(), text.clone());
        self.entries.push(text);
    }

    fn link(&self, number: u8) -> Link {
        Link { public_key: key(number + 1).public(), domain: format!("tree{number}").into() }
    }

    /// Returns the texts at a name: the entry with that hash, or a root that `argument` selects.
    fn at(&self, name: &str, argument: u8) -> Vec<String> {
        if let Some((hash, _)) = name.split_once('.') {
            return self.by_hash.get(hash).cloned().into_iter().collect();
        }
        let number = (0..3).find(|number| *name == *self.link(*number).domain).unwrap_or(0);
        let place = |byte: u8| Hash::of(&self.entries[usize::from(byte) % self.entries.len()]);
        let (nodes, links) = (place(argument), place(argument.rotate_left(4)));
        let signed = format!("enrtree-root:v1 e={nodes} l={links} seq={}", argument % 8);
        let signature = key(number + 1).sign_recoverable(&keccak256(&[signed.as_bytes()]));
        vec![format!("{signed} sig={}", BASE64URL_NOPAD.encode(&signature))]
    }
}
