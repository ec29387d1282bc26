//! Our own record: the same one for discv4, discv5 and all other readers.
//!
//! It is made from three inputs. First, the ports we listen on. Second, our addresses from the operator, the gateway or
//! enough other nodes (in that order of trust). Third, the entries that applications or the operator set. Every call
//! that changes something returns the new signed record, for the caller to publish it and to persist its sequence
//! number; a call that changes nothing signs nothing.
//!
//! The sequence number starts at the Unix time in milliseconds and increases by one with each new record. It always
//! starts above the persisted number. So other nodes accept our record after a lost state file, and after a clock that
//! was set back.
//!
//! Left out: storing anything, and asking gateways (`net`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    AddressClass, ForkId, ForkSchedule, Head, NodeKey, Record, RecordBuilder, RegistrationId,
    endpoint::canonical,
    record::{MAX_RECORD_BYTES, RecordError},
    votes::EndpointVotes,
};
use crate::{Now, rlp};

/// The ports we listen on; 0 for one that is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// RLPx.
    pub tcp: u16,
    /// Discovery.
    pub udp: u16,
}

/// The facts that a gateway reported about our IPv4 address; the default is that it reported nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// The gateway's external address.
    pub ip: Option<Ipv4Addr>,
    /// The external port that leads to our RLPx port.
    pub tcp: Option<u16>,
    /// The external port that leads to our discovery port.
    pub udp: Option<u16>,
}

/// The owner of an entry. Only the owner and the operator may change or delete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryOwner {
    /// The operator, by call or configuration. The operator takes precedence over every registration.
    Operator,
    /// A registration, until its lease ends.
    Registration(RegistrationId),
}

/// The reason why an entry cannot be set or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The sidecar sets the identity, the endpoint and the entries of discovery itself.
    #[error(
        "the record entry {0:?} cannot be set: the sidecar itself sets id, secp256k1 and keys that begin with ip, tcp, \
         udp or quic; qh and topic-discovery are reserved for discovery"
    )]
    Reserved(String),
    /// The key is empty.
    #[error("a record entry needs a key of at least one byte")]
    EmptyKey,
    /// Another owner has set it.
    #[error("the record entry {key:?} belongs to {}", match .owner {
        EntryOwner::Operator => "the operator".to_owned(),
        EntryOwner::Registration(id) => format!("registration {id}"),
    })]
    Owned {
        /// The entry's key.
        key: String,
        /// The entry's owner.
        owner: EntryOwner,
    },
    /// The value is not exactly one RLP item.
    #[error("the value of a record entry must be exactly one RLP item: {0}")]
    Value(#[from] rlp::Error),
    /// The record would exceed the size that EIP-778 allows, including the room that our addresses may need.
    #[error(
        "with this entry the record could grow to {0} bytes once both address families are known; EIP-778 allows \
         {MAX_RECORD_BYTES}"
    )]
    TooLarge(usize),
}

/// The key of the entry with a node's fork id (EIP-2124).
const ETH: &str = "eth";

/// The longest time between two comparisons of the wall clock with the next fork: the clock may jump.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Keys that no caller may set, beside those that begin with one of [`RESERVED_PREFIXES`]: the identity scheme
/// (EIP-778), and keys that drafts of discv5 and QUIC use.
const RESERVED: [&str; 4] = ["id", "secp256k1", "qh", "topic-discovery"];

/// The beginnings of reserved keys: `ip`, `ip6`, `tcp`, `tcp6`, `udp`, `udp6` (EIP-778), `quic`, `quic6`.
const RESERVED_PREFIXES: [&str; 4] = ["ip", "tcp", "udp", "quic"];

/// A chain whose current fork id is in the `eth` entry.
#[derive(Clone, Debug)]
struct Announced {
    schedule: Arc<ForkSchedule>,
    head: Head,
    /// The fork id in the entry.
    id: ForkId,
    /// The Unix time in seconds at which it changes; `None` if no later fork is known.
    next: Option<u64>,
}

impl Announced {
    /// The fork id at the time `unix` of a node that has followed the chain until then. `head` limits the height,
    /// unless it is the default.
    fn at(schedule: Arc<ForkSchedule>, head: Head, unix: Duration) -> Self {
        let time = unix.as_secs();
        let present = if head == Head::default() {
            schedule.synced_head(time)
        } else {
            Head { height: head.height, time: head.time.max(time) }
        };
        Self { id: schedule.id(present), next: schedule.next_time(present.time), schedule, head }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    owner: EntryOwner,
    value: Vec<u8>,
}

/// Our record and everything from which it is made.
#[derive(Debug)]
pub struct LocalRecord {
    key: NodeKey,
    ports: Ports,
    static4: Option<IpAddr>,
    static6: Option<IpAddr>,
    mapped: Mapped,
    votes4: EndpointVotes,
    votes6: EndpointVotes,
    entries: BTreeMap<String, Entry>,
    /// Chains to announce, with their owners, in the order in which they came. The first one is in the record, unless
    /// an entry `eth` was set.
    announced: Vec<(EntryOwner, Announced)>,
    record: Record,
}

impl LocalRecord {
    /// The record at start: 127.0.0.1 with `ports`, and a sequence number above `persisted_seq`.
    ///
    /// A record without set entries is always small enough, so an error cannot happen.
    pub fn new(
        now: Now,
        key: NodeKey,
        ports: Ports,
        persisted_seq: Option<u64>,
    ) -> Result<Self, RecordError> {
        let millis = u64::try_from(now.unix.as_millis()).unwrap_or(u64::MAX);
        let seq = persisted_seq.map_or(millis, |persisted| millis.max(persisted.saturating_add(1)));
        let mut builder = RecordBuilder::new(seq);
        write_endpoints(&mut builder, Some((UNKNOWN, ports)), None);
        Ok(Self {
            record: builder.sign(&key)?,
            key,
            ports,
            static4: None,
            static6: None,
            mapped: Mapped::default(),
            votes4: EndpointVotes::default(),
            votes6: EndpointVotes::default(),
            entries: BTreeMap::new(),
            announced: Vec::new(),
        })
    }

    /// The current record.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Counts that the node at `teller` saw us at `observed`; [`EndpointVotes`] says when that changes our address.
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn statement(&mut self, now: Now, teller: IpAddr, observed: SocketAddr) -> Option<Record> {
        let votes = if canonical(observed.ip()).is_ipv4() { &mut self.votes4 } else { &mut self.votes6 };
        if votes.add(now.mono, teller, observed) { self.renew() } else { None }
    }

    /// Sets the address that the operator gave as ours. It takes precedence over all others of its family.
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn set_static_ip(&mut self, ip: IpAddr) -> Option<Record> {
        let ip = canonical(ip);
        if ip.is_ipv4() {
            self.static4 = Some(ip);
        } else {
            self.static6 = Some(ip);
        }
        self.renew()
    }

    /// Sets the gateway's current facts; `Mapped::default()` when there is no gateway any more.
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn set_mapped(&mut self, mapped: Mapped) -> Option<Record> {
        self.mapped = mapped;
        self.renew()
    }

    /// Sets an entry to `value`, which is RLP. The operator may take an entry from a registration; a registration
    /// cannot take one from another owner.
    pub fn set_entry(
        &mut self,
        owner: EntryOwner,
        key: &str,
        value: &[u8],
    ) -> Result<Option<Record>, EntryError> {
        if key.is_empty() {
            return Err(EntryError::EmptyKey);
        }
        self.check_owner(owner, key)?;
        rlp::validate(value)?;
        let before = self.entries.insert(key.to_owned(), Entry { owner, value: value.to_vec() });
        if let Err(error) = self.check_size() {
            match before {
                Some(entry) => self.entries.insert(key.to_owned(), entry),
                None => self.entries.remove(key),
            };
            return Err(error);
        }
        Ok(self.renew())
    }

    /// Keeps an `eth` entry with the fork id of a node that has followed the chain of `schedule` to the present time
    /// (EIP-2124), and updates it at each fork. `head` is how far the owner has come; [`Head::default`] if it does not
    /// know. An `eth` entry that was set takes precedence while it exists. If several owners announce chains, the
    /// record has the chain of the owner that has announced for the longest time.
    pub fn announce(
        &mut self,
        now: Now,
        owner: EntryOwner,
        schedule: Arc<ForkSchedule>,
        head: Head,
    ) -> Result<Option<Record>, EntryError> {
        let announced = Announced::at(schedule, head, now.unix);
        if let Some((_, before)) = self.announced.iter_mut().find(|(of, _)| *of == owner) {
            // All announcements are checked at the size of the longest one, so a changed one fits as well.
            *before = announced;
            return Ok(self.renew());
        }
        self.announced.push((owner, announced));
        if let Err(error) = self.check_size() {
            self.announced.pop();
            return Err(error);
        }
        Ok(self.renew())
    }

    /// Stops announcing the owner's chain ([`Self::announce`]).
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn withdraw(&mut self, owner: EntryOwner) -> Option<Record> {
        let at = self.announced.iter().position(|(of, _)| *of == owner)?;
        self.announced.remove(at);
        self.renew()
    }

    /// Updates the fork ids of announced chains whose next fork has passed.
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn handle_timeout(&mut self, now: Now) -> Option<Record> {
        let time = now.unix.as_secs();
        for (_, announced) in &mut self.announced {
            if announced.next.is_some_and(|next| next <= time) {
                *announced = Announced::at(Arc::clone(&announced.schedule), announced.head, now.unix);
            }
        }
        self.renew()
    }

    /// The time at which to call [`Self::handle_timeout`]; `None` if no fork is awaited.
    #[must_use]
    pub fn poll_timeout(&self, now: Now) -> Option<Instant> {
        let next = self.announced.iter().filter_map(|(_, announced)| announced.next).min()?;
        Some(now.mono + Duration::from_secs(next).saturating_sub(now.unix).min(LOOK_AGAIN))
    }

    /// Checks that the record fits even with the longest endpoint and fork id. So a new address or a passed fork never
    /// makes it too large.
    fn check_size(&self) -> Result<(), EntryError> {
        let mut largest = RecordBuilder::new(u64::MAX);
        if !self.announced.is_empty() {
            let longest = ForkId { hash: [0xff; 4], next: u64::from(u32::MAX) };
            largest.set_raw(ETH.as_bytes(), &longest.encode_entry());
        }
        self.write_set_entries(&mut largest);
        let ports = |port| Ports { tcp: port, udp: port };
        write_endpoints(&mut largest, Some((UNKNOWN, ports(u16::MAX))), Some((LONGEST, ports(u16::MAX - 1))));
        match largest.sign(&self.key) {
            Err(RecordError::TooLarge(bytes)) => Err(EntryError::TooLarge(bytes)),
            _ => Ok(()),
        }
    }

    /// Deletes an entry. It is not an error if the entry does not exist.
    pub fn delete_entry(&mut self, owner: EntryOwner, key: &str) -> Result<Option<Record>, EntryError> {
        self.check_owner(owner, key)?;
        self.entries.remove(key);
        Ok(self.renew())
    }

    /// Deletes all entries of an owner whose lease ended.
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn release(&mut self, owner: EntryOwner) -> Option<Record> {
        self.entries.retain(|_, entry| entry.owner != owner);
        self.announced.retain(|(of, _)| *of != owner);
        self.renew()
    }

    fn check_owner(&self, owner: EntryOwner, key: &str) -> Result<(), EntryError> {
        let reserved = RESERVED_PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        if reserved || RESERVED.contains(&key) {
            return Err(EntryError::Reserved(key.to_owned()));
        }
        let announcer = self.announced.first().map(|(owner, _)| owner).filter(|_| key == ETH);
        let holder = self.entries.get(key).map(|entry| &entry.owner).or(announcer);
        match holder {
            Some(holder) if *holder != owner && owner != EntryOwner::Operator => {
                Err(EntryError::Owned { key: key.to_owned(), owner: *holder })
            }
            _ => Ok(()),
        }
    }

    /// Signs a new record, if its content would differ from the current one.
    fn renew(&mut self) -> Option<Record> {
        let mut builder = RecordBuilder::new(self.record.seq());
        self.write_entries(&mut builder);
        let (mut four, six) = (self.endpoint4(), self.endpoint6());
        if four.is_none() && six.is_none() {
            four = Some((UNKNOWN, self.ports));
        }
        write_endpoints(&mut builder, four, six);
        // Signatures are deterministic: the same content gives the same record. `check_size` has ensured that it fits.
        let same = builder.sign(&self.key).ok()?;
        if same == self.record {
            return None;
        }
        self.record = builder.seq(self.record.seq().saturating_add(1)).sign(&self.key).ok()?;
        Some(self.record.clone())
    }

    fn write_entries(&self, builder: &mut RecordBuilder) {
        if let Some((_, announced)) = self.announced.first() {
            builder.set_raw(ETH.as_bytes(), &announced.id.encode_entry());
        }
        self.write_set_entries(builder);
    }

    fn write_set_entries(&self, builder: &mut RecordBuilder) {
        for (key, entry) in &self.entries {
            builder.set_raw(key.as_bytes(), &entry.value);
        }
    }

    /// The operator's address comes first, then the gateway's, then the votes. A gateway whose own external address is
    /// not public is behind another address translation: then the votes are better, if there are any.
    fn endpoint4(&self) -> Option<(IpAddr, Ports)> {
        let vote = self.votes4.winner();
        let mapped = self.mapped.ip.map(IpAddr::V4);
        let good = mapped.filter(|ip| AddressClass::of(*ip) == AddressClass::Global);
        let (ip, seen_udp) = match (self.static4.or(good), vote) {
            (Some(ip), _) => (ip, None),
            (None, Some(vote)) => (vote.ip(), Some(vote.port())),
            (None, None) => (mapped?, None),
        };
        let udp = self.mapped.udp.or(seen_udp).unwrap_or(self.ports.udp);
        let tcp = self.mapped.tcp.unwrap_or(self.ports.tcp);
        Some((ip, self.listening(Ports { tcp, udp })))
    }

    fn endpoint6(&self) -> Option<(IpAddr, Ports)> {
        let vote = self.votes6.winner();
        match (self.static6, vote) {
            (Some(ip), _) => Some((ip, self.ports)),
            (None, Some(vote)) => {
                Some((vote.ip(), self.listening(Ports { tcp: self.ports.tcp, udp: vote.port() })))
            }
            (None, None) => None,
        }
    }

    /// `ports`, with 0 for those on which we do not listen.
    fn listening(&self, ports: Ports) -> Ports {
        Ports {
            tcp: if self.ports.tcp == 0 { 0 } else { ports.tcp },
            udp: if self.ports.udp == 0 { 0 } else { ports.udp },
        }
    }
}

/// The address in the record while ours is not known.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An IPv6 address for the size check: all have the same length.
const LONGEST: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Writes the endpoint entries. `tcp6` and `udp6` are left out if they are equal to `tcp` and `udp`, which readers then
/// use (EIP-778). In a record without an IPv4 address they are always written.
fn write_endpoints(builder: &mut RecordBuilder, four: Option<(IpAddr, Ports)>, six: Option<(IpAddr, Ports)>) {
    let mut ports4 = Ports { tcp: 0, udp: 0 };
    if let Some((ip, ports)) = four {
        builder.ip(ip);
        ports4 = ports;
    }
    let mut write = |key: &str, port: u16, repeated: u16| {
        if port != 0 && port != repeated {
            builder.port(key, port);
        }
    };
    write("tcp", ports4.tcp, 0);
    write("udp", ports4.udp, 0);
    if let Some((ip, ports)) = six {
        write("tcp6", ports.tcp, ports4.tcp);
        write("udp6", ports.udp, ports4.udp);
        builder.ip(ip);
    }
}

#[cfg(test)]
mod tests;
