//! `GET /metrics`: the metrics of the process, in the OpenMetrics text format.
//!
//! All values are read when the page is asked for; nothing is counted here. No peer is named: `GetPeer` has the facts
//! about one peer. The labels have few values: reasons, protocols that applications registered, directions.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use tokio::sync::watch;

use crate::{
    budget::{Budget, Budgets},
    discv4, dnsdisc,
    lease::StateName,
    net::discovery::{Counters, Details, Discovery},
    net::switch::Handle,
    policy::Warning,
    switch::metrics::{Application, Metrics as SwitchMetrics},
};

/// The media type of the page.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The sources of the metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    handle: Handle,
    discovery: Discovery,
    facts: Facts,
}

/// The values that neither the switch nor discovery has.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whether the warning holds that discovery is on and discv5 is off.
    pub discv5_off: bool,
    /// The number of lines that the log dropped.
    pub dropped_lines: Arc<AtomicU64>,
    /// The counters of reading trees in the DNS.
    pub trees: watch::Receiver<dnsdisc::Counters>,
    /// The bounds on memory.
    pub budgets: Budgets,
}

impl Metrics {
    /// Returns the metrics of a switch, of discovery, and of the rest of the process.
    #[must_use]
    pub fn new(handle: Handle, discovery: Discovery, facts: Facts) -> Self {
        Self { handle, discovery, facts }
    }

    /// Returns the page; `None` if the process is stopping and has no metrics any more.
    pub(super) async fn page(&self) -> Option<String> {
        let switch = self.handle.run(|switch, now| switch.metrics(now)).await.ok()?;
        let discovery = self.discovery.counters().await.ok()?;
        let details = self.discovery.details().await.ok()?;
        let trees = *self.facts.trees.borrow();
        let mut registry = Registry::with_prefix("devp2pd");
        let dropped_lines = self.facts.dropped_lines.load(Ordering::Relaxed);
        let discv5_off = self.facts.discv5_off;
        let budgets = self.facts.budgets.clone();
        let numbers = Numbers { switch, discovery, discv5_off, dropped_lines, details, trees, budgets };
        registry.register_collector(Box::new(numbers));
        let mut page = String::new();
        // Writing to a string does not fail.
        text::encode(&mut page, &registry).ok()?;
        Some(page)
    }
}

#[derive(Debug)]
struct Numbers {
    switch: SwitchMetrics,
    discovery: Counters,
    discv5_off: bool,
    dropped_lines: u64,
    details: Details,
    trees: dnsdisc::Counters,
    budgets: Budgets,
}

/// The labels of one value, each a name and a value, and the value.
type Row<'a> = (Vec<(&'static str, &'a str)>, u64);

fn counter(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[Row<'_>]) -> fmt::Result {
    let kind = ConstCounter::new(0_u64).metric_type();
    let mut family = out.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in rows {
        ConstCounter::new(*value).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[Row<'_>]) -> fmt::Result {
    let kind = ConstGauge::new(0_i64).metric_type();
    let mut family = out.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in rows {
        ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(family.encode_family(labels)?)?;
    }
    Ok(())
}

fn one(value: u64) -> [Row<'static>; 1] {
    [(Vec::new(), value)]
}

fn by<'a>(label: &'static str, rows: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<Row<'a>> {
    rows.into_iter().map(|(name, value)| (vec![(label, name)], value)).collect()
}

impl Collector for Numbers {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut out;
        gauge(
            out,
            "build",
            "Always 1; the label has the version",
            &by("version", [(env!("CARGO_PKG_VERSION"), 1)]),
        )?;
        let help = "Lines of the log that were dropped because standard error was not read";
        counter(out, "log_lines_dropped", help, &one(self.dropped_lines))?;
        let each = |value: fn(&Budget) -> u64| {
            by("kind", self.budgets.all().map(|budget| (budget.resource().name(), value(budget))))
        };
        let help = "Memory that peers and applications make the process hold";
        gauge(out, "memory_budget_used_bytes", help, &each(Budget::used))?;
        gauge(out, "memory_budget_limit_bytes", "The bounds on it", &each(Budget::limit))?;
        self.peers(out)?;
        self.messages(out)?;
        self.discovery(out)
    }
}

impl Numbers {
    fn peers(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let SwitchMetrics {
            inbound,
            dialed,
            slots,
            inbound_used,
            dialed_used,
            counts,
            registrations,
            bans,
            ..
        } = &self.switch;
        let directions = |inbound: usize, dialed: usize| {
            by("direction", [("inbound", inbound as u64), ("dialed", dialed as u64)])
        };
        gauge(out, "peers", "Connected peers", &directions(*inbound, *dialed))?;
        let all = directions(slots.inbound, slots.dialed);
        gauge(out, "peer_slots", "Slots for peers on no list", &all)?;
        let used = directions(*inbound_used, *dialed_used);
        gauge(out, "peer_slots_used", "Slots that are taken", &used)?;
        counter(out, "candidates", "Nodes that discovery offered", &one(counts.seen))?;
        let reasons = counts.not_dialed.iter().map(|(why, count)| (why.name(), *count));
        counter(out, "not_dialed", "Nodes that were not dialed", &by("reason", reasons))?;
        counter(out, "dials", "Dials begun", &one(counts.dialed))?;
        counter(out, "dials_succeeded", "Dials that became peers", &one(counts.connected))?;
        let causes = counts.failed.iter().map(|(cause, count)| (cause.name(), *count));
        counter(out, "dials_failed", "Dials that failed", &by("reason", causes))?;
        counter(out, "let_in", "Inbound connections that became peers", &one(counts.let_in))?;
        let reasons = counts.not_let_in.iter().map(|(why, count)| (why.name(), *count));
        counter(out, "not_let_in", "Inbound connections that were refused", &by("reason", reasons))?;
        let micros = |share| {
            let time = self.switch.round_trip(share).unwrap_or_default();
            u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
        };
        let rows = by("quantile", [("0.5", micros(0.5)), ("0.9", micros(0.9)), ("1", micros(1.0))]);
        let rows = if self.switch.round_trips.is_empty() { Vec::new() } else { rows };
        gauge(out, "peer_round_trip_microseconds", "Last round trips of pings, over all peers", &rows)?;
        gauge(out, "bans", "Bans that have not expired", &one(*bans as u64))?;
        let holds = |name| u64::from(self.switch.warnings.iter().any(|warning| warning.name() == name));
        let standing = Warning::NAMES.map(|name| (name, holds(name)));
        let rows = by("name", standing.into_iter().chain([("discv5_off", u64::from(self.discv5_off))]));
        gauge(out, "warnings", "1 while a warning holds that finding peers fails, else 0", &rows)?;
        let help = "Forks that are followed although the fork schedule lacks them";
        gauge(out, "followed_forks", help, &one(self.switch.followed_forks as u64))?;
        let state = |(state, count): &(StateName, usize)| {
            let name = match state {
                StateName::Detached => "detached",
                StateName::Attached => "attached",
                StateName::Lingering => "lingering",
            };
            (name, *count as u64)
        };
        let rows = by("state", registrations.iter().map(state));
        gauge(out, "registrations", "Registered applications", &rows)
    }

    fn messages(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let SwitchMetrics { traffic, lost, applications, base, inbound_queued, outbound_queued, .. } =
            &self.switch;
        let rows = by("direction", [("in", traffic.bytes_in), ("out", traffic.bytes_out)]);
        counter(out, "wire_bytes", "Bytes over connections with peers", &rows)?;
        let versions: Vec<String> =
            traffic.protocols.keys().map(|(_, version)| version.to_string()).collect();
        let (mut messages, mut bytes) = (Vec::new(), Vec::new());
        for (((name, _), all), version) in traffic.protocols.iter().zip(&versions) {
            let labels =
                |direction| vec![("protocol", &**name), ("version", &**version), ("direction", direction)];
            messages.extend([(labels("in"), all.messages_in), (labels("out"), all.messages_out)]);
            bytes.extend([(labels("in"), all.bytes_in), (labels("out"), all.bytes_out)]);
        }
        counter(out, "messages", "Messages of sub-protocols", &messages)?;
        counter(out, "message_bytes", "Bytes of their payloads, uncompressed", &bytes)?;
        let help = "Messages that applications lost because they read too slowly";
        counter(out, "lost_messages", help, &one(lost.messages))?;
        counter(out, "lost_message_bytes", "Bytes of their payloads", &one(lost.bytes))?;
        let each = |value: fn(&Application) -> u64| {
            by("client", applications.iter().map(|(client, application)| (&**client, value(application))))
        };
        let name = "application_lost_messages";
        counter(out, name, "Messages that each registered application lost", &each(|of| of.lost.messages))?;
        let name = "application_lost_message_bytes";
        counter(out, name, "Bytes of their payloads", &each(|of| of.lost.bytes))?;
        let name = "application_delivered_messages";
        counter(out, name, "Messages that each application took", &each(|of| of.delivered))?;
        let name = "application_reported_messages";
        counter(out, name, "Lost messages that each application was told of", &each(|of| of.reported))?;
        let name = "application_folded_sessions";
        let help = "Sessions that became one gap while the application was away";
        counter(out, name, help, &each(|of| of.folded_sessions))?;
        let name = "application_waiting_bytes";
        gauge(out, name, "Bytes that wait for each application", &each(|of| of.waiting_bytes))?;
        let name = "application_holding_channels";
        let help = "Channels whose connection is on hold, because the application takes messages too slowly";
        gauge(out, name, help, &each(|of| of.holding_channels as u64))?;
        let name = "application_discarded_messages";
        let help = "Messages for closed channels, whose capability is mute on that connection";
        counter(out, name, help, &each(|of| of.discarded))?;
        let name = "application_memory_drops";
        let help = "Messages dropped because memory of the whole process was short";
        counter(out, name, help, &each(|of| of.forced))?;
        let rows = [("ping", base.pings_unanswered), ("other", base.base_ignored)];
        let help = "Messages of the base protocol without effect, on connections that have ended";
        counter(out, "base_messages_ignored", help, &by("kind", rows))?;
        let rows = by("for", [("applications", *inbound_queued), ("peers", *outbound_queued)]);
        gauge(out, "queued_bytes", "Bytes of messages that wait for applications or for peers", &rows)
    }

    fn discovery(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Counters { v4, v5, noise, unroutable, over_rate, candidates_dropped, sockets } = self.discovery;
        let rows = [("discv4", v4), ("discv5", v5), ("noise", noise), ("oversize", sockets.oversize)];
        counter(out, "discovery_received", "Packets received", &by("kind", rows))?;
        counter(out, "discovery_sent", "Packets sent", &one(sockets.sent))?;
        let rows = [("unsent", sockets.unsent), ("unroutable", unroutable), ("over_rate", over_rate)];
        counter(out, "discovery_unsent", "Packets not sent", &by("reason", rows))?;
        let help = "Nodes that discovery found when the dialer had no room";
        counter(out, "candidates_dropped", help, &one(candidates_dropped))?;
        self.discovery_details(out)
    }

    /// The counters of packets, searches and records in detail. The labels are the names of the counters in the code,
    /// where each is documented.
    fn discovery_details(&self, out: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Details { v4, v5, database } = &self.details;
        if let Some(v4) = v4 {
            let rows = discv4::Verdict::ALL.map(|verdict| (verdict.name(), v4.of(verdict)));
            counter(
                out,
                "discv4_packets",
                "Packets for discv4, by the verdict on them",
                &by("verdict", rows),
            )?;
            counter(out, "discv4_events", "Actions and refusals of discv4", &by("event", v4.named()))?;
        }
        if let Some(v5) = v5 {
            counter(out, "discv5_events", "Actions and refusals of discv5", &by("event", v5.named()))?;
        }
        if let Some(database) = database {
            let help = "Updates that the node database did not keep, and nodes that it removed";
            counter(out, "node_db_events", help, &by("event", database.named()))?;
        }
        counter(
            out,
            "dns_tree_events",
            "Results of reading trees in the DNS",
            &by("event", self.trees.named()),
        )
    }
}
