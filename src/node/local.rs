//! Our own record: one for discv4, discv5 and everybody who asks who we are.
//!
//! It is put together from what is known: the ports we listen on, our addresses as the operator, the gateway or
//! enough other nodes tell them (in that order of trust), and entries that applications or the operator set. Every
//! call that changes something returns the new signed record, for the caller to publish and to persist its sequence
//! number; a call that changes nothing signs nothing.
//!
//! The sequence number starts at the Unix time in milliseconds and goes up by one with each new record. A persisted
//! number is never gone below, so neither a lost state file nor a clock set back makes others ignore us.
//!
//! Left out: storing anything, and asking gateways (`net`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    AddressClass, NodeKey, Record, RecordBuilder,
    endpoint::canonical,
    record::{MAX_RECORD_BYTES, RecordError},
    votes::EndpointVotes,
};
use crate::{Now, rlp};

/// The ports we listen on; 0 where we do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// RLPx.
    pub tcp: u16,
    /// Discovery.
    pub udp: u16,
}

/// What a gateway told about our IPv4 side; the default is "nothing".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapped {
    /// Its external address.
    pub ip: Option<Ipv4Addr>,
    /// The external port that leads to our RLPx port.
    pub tcp: Option<u16>,
    /// The external port that leads to our discovery port.
    pub udp: Option<u16>,
}

/// Whose an entry is. Only the owner and the operator may change or delete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryOwner {
    /// The operator, by call or configuration. Goes before every registration.
    Operator,
    /// A registration, until its lease ends.
    Registration(u64),
}

/// Why an entry cannot be set or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Identity and endpoint are the sidecar's.
    #[error("the record entry {0:?} is the sidecar's own: id, secp256k1, ip*, tcp* and udp* cannot be set")]
    Reserved(String),
    /// No name.
    #[error("a record entry needs a key of at least one byte")]
    EmptyKey,
    /// Another owner has it.
    #[error("the record entry {key:?} belongs to {}", match .owner {
        EntryOwner::Operator => "the operator".to_owned(),
        EntryOwner::Registration(id) => format!("registration {id}"),
    })]
    Owned {
        /// The entry's key.
        key: String,
        /// Whose it is.
        owner: EntryOwner,
    },
    /// Not exactly one RLP item.
    #[error("the value of a record entry must be exactly one RLP item: {0}")]
    Value(#[from] rlp::Error),
    /// Beyond what EIP-778 allows, counting the room that our addresses may need.
    #[error(
        "with this entry the record could grow to {0} bytes once both address families are known; EIP-778 allows \
         {MAX_RECORD_BYTES}"
    )]
    TooLarge(usize),
}

#[derive(Clone, Debug)]
struct Entry {
    owner: EntryOwner,
    value: Vec<u8>,
}

/// Our record and everything it follows from.
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
    record: Record,
}

impl LocalRecord {
    /// The record at start: 127.0.0.1 with `ports`, and a sequence number above `persisted_seq`.
    ///
    /// Without entries a record is always small enough; the error is there for the type.
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
        })
    }

    /// The record as it stands.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Notes that the node at `teller` answered us at `told`; see [`EndpointVotes`] for what that is worth.
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn statement(&mut self, now: Now, teller: IpAddr, told: SocketAddr) -> Option<Record> {
        let votes = if canonical(told.ip()).is_ipv4() { &mut self.votes4 } else { &mut self.votes6 };
        if votes.add(now.mono, teller, told) { self.renew() } else { None }
    }

    /// Sets the address that the operator says is ours; it goes before all others of its family.
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

    /// Sets what the gateway says now; `Mapped::default()` when it is gone.
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn set_mapped(&mut self, mapped: Mapped) -> Option<Record> {
        self.mapped = mapped;
        self.renew()
    }

    /// Sets an entry to `value`, which is RLP. The operator takes an entry over from a registration; a registration
    /// takes over from nobody.
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
        // Checked with the longest endpoint there can be, so that learning our address can never fail for size.
        let mut largest = RecordBuilder::new(u64::MAX);
        self.write_entries(&mut largest);
        let ports = |port| Ports { tcp: port, udp: port };
        write_endpoints(&mut largest, Some((UNKNOWN, ports(u16::MAX))), Some((LONGEST, ports(u16::MAX - 1))));
        if let Err(RecordError::TooLarge(bytes)) = largest.sign(&self.key) {
            match before {
                Some(entry) => self.entries.insert(key.to_owned(), entry),
                None => self.entries.remove(key),
            };
            return Err(EntryError::TooLarge(bytes));
        }
        Ok(self.renew())
    }

    /// Deletes an entry. One that is not there is already deleted.
    pub fn delete_entry(&mut self, owner: EntryOwner, key: &str) -> Result<Option<Record>, EntryError> {
        self.check_owner(owner, key)?;
        self.entries.remove(key);
        Ok(self.renew())
    }

    /// Deletes all entries of an owner whose lease ended.
    #[must_use = "a new record is to be published and its sequence number persisted"]
    pub fn release(&mut self, owner: EntryOwner) -> Option<Record> {
        self.entries.retain(|_, entry| entry.owner != owner);
        self.renew()
    }

    /// All entries that have an owner: key, owner, value as RLP.
    pub fn entries(&self) -> impl Iterator<Item = (&str, EntryOwner, &[u8])> {
        self.entries.iter().map(|(key, entry)| (key.as_str(), entry.owner, entry.value.as_slice()))
    }

    fn check_owner(&self, owner: EntryOwner, key: &str) -> Result<(), EntryError> {
        let reserved = ["ip", "tcp", "udp"].iter().any(|prefix| key.starts_with(prefix));
        if reserved || key == "id" || key == "secp256k1" {
            return Err(EntryError::Reserved(key.to_owned()));
        }
        match self.entries.get(key) {
            Some(entry) if entry.owner != owner && owner != EntryOwner::Operator => {
                Err(EntryError::Owned { key: key.to_owned(), owner: entry.owner })
            }
            _ => Ok(()),
        }
    }

    /// Signs a new record, if it would say something else than the present one.
    fn renew(&mut self) -> Option<Record> {
        let mut builder = RecordBuilder::new(self.record.seq());
        self.write_entries(&mut builder);
        let (mut four, six) = (self.endpoint4(), self.endpoint6());
        if four.is_none() && six.is_none() {
            four = Some((UNKNOWN, self.ports));
        }
        write_endpoints(&mut builder, four, six);
        // Signatures are deterministic: the same content gives the same record. `set_entry` has seen to the size.
        let same = builder.sign(&self.key).ok()?;
        if same == self.record {
            return None;
        }
        self.record = builder.seq(self.record.seq().saturating_add(1)).sign(&self.key).ok()?;
        Some(self.record.clone())
    }

    fn write_entries(&self, builder: &mut RecordBuilder) {
        for (key, entry) in &self.entries {
            builder.set_raw(key.as_bytes(), &entry.value);
        }
    }

    /// The operator's word, then a gateway's, then the votes. A gateway whose own external address is private stands
    /// behind another translator: the votes know better, if there are any.
    fn endpoint4(&self) -> Option<(IpAddr, Ports)> {
        let vote = self.votes4.winner();
        let told = self.mapped.ip.map(IpAddr::V4);
        let good = told.filter(|ip| AddressClass::of(*ip) == AddressClass::Global);
        let (ip, seen_udp) = match (self.static4.or(good), vote) {
            (Some(ip), _) => (ip, None),
            (None, Some(vote)) => (vote.ip(), Some(vote.port())),
            (None, None) => (told?, None),
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

    /// `ports`, without those on which we do not listen.
    fn listening(&self, ports: Ports) -> Ports {
        Ports {
            tcp: if self.ports.tcp == 0 { 0 } else { ports.tcp },
            udp: if self.ports.udp == 0 { 0 } else { ports.udp },
        }
    }
}

/// The address in the record while none is known.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Some IPv6 address: all have the same length.
const LONGEST: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Writes the endpoint entries. `tcp6` and `udp6` are left out where they repeat `tcp` and `udp`, to which readers
/// fall back (EIP-778); in a record without an IPv4 address they stand alone.
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
