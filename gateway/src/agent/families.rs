//! The agent's metrics.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering,
    time::{SystemTime, UNIX_EPOCH},
};

use super::state::State;
use crate::{
    dns::{ResolverHandle, stats},
    http::{
        Agent as _,
        metrics::{Family, Labels, Samples},
    },
    source::Feedback,
};

impl State {
    pub(super) fn families(&self) -> Vec<Family> {
        let status = self.status();
        let count = |number: usize| number as f64;
        let flag = |yes: bool| if yes { 1.0 } else { 0.0 };
        let interfaces: Vec<Labels> = status
            .interfaces
            .iter()
            .map(|attachment| {
                vec![
                    ("interface", attachment.interface.clone()),
                    ("role", attachment.role.to_owned()),
                    ("xdp", attachment.xdp.unwrap_or("none").to_owned()),
                    ("tc", attachment.tc.to_string()),
                ]
            })
            .collect();
        let mut families = vec![
            Family::info("build_info", "Version of the agent", vec![vec![("version", status.version.to_owned())]]),
            Family::gauge("ready", "1 when the gateway serves", flag(status.ready)),
            Family::gauge("start_time_seconds", "When the agent started, in seconds since 1970", now() - status.uptime),
            Family::packets(&status.counters),
            Family::info("interface_info", "Attached interfaces", interfaces),
            Family::gauge("services", "Services", count(status.counts.services)),
            Family::gauge("frontends", "VIPs and ports", count(status.counts.frontends)),
            Family::gauge("endpoints", "Endpoints that new flows go to", count(status.counts.endpoints)),
            Family::gauge("zone_records", "Records of Services in the cluster zone", count(status.counts.records)),
            Family::gauge("flows", "Flows in the table", count(status.counts.flows)),
            Family::gauge("flows_limit", "Most flows that the table holds", f64::from(self.config.datapath.flows)),
            Family::gauge("problems", "Objects that cannot be served as they are", count(status.problems.len())),
            Family::gauge("source_synced", "1 when the first state of the cluster is here", flag(status.source.synced)),
            Family::gauge("source_connected", "1 when the source is reached", flag(status.source.connected)),
            Family::gauge(
                "source_unreached_seconds",
                "For how long the source has not been reached; 0 while it is",
                status.source.unreached.unwrap_or_default(),
            ),
            Family::gauge(
                "source_problems",
                "Files and objects of the source that could not be read",
                count(status.source.problems.len()),
            ),
            Family::counter(
                "service_changes",
                "Changes of Services applied to datapath and zone",
                self.changes.load(Ordering::Relaxed),
            ),
            Family::counter("apply_errors", "Changes that the kernel refused", self.errors.load(Ordering::Relaxed)),
        ];
        families.extend(super::memory::resident().map(|bytes| {
            Family::gauge(
                "resident_memory_bytes",
                "Resident memory of the agent; its maps are the kernel's",
                bytes as f64,
            )
        }));
        if let Some(figures) = self.feedback.get().map(Feedback::figures) {
            let events = [("written", figures.written), ("failed", figures.failed), ("left_out", figures.left_out)];
            let samples = events.map(|(result, count)| (vec![("result", result.to_owned())], count)).to_vec();
            families.extend([
                Family::gauge(
                    "lease_held",
                    "1 while the gateway's Lease at the API server is its own",
                    flag(figures.lease),
                ),
                Family {
                    name: "events",
                    help: "Events about Services by what became of them",
                    samples: Samples::Counter(samples),
                },
            ]);
        }
        if let Some(since) = status.source.last_change {
            families.push(Family::gauge(
                "source_last_change_timestamp_seconds",
                "When the cluster's state last changed, in seconds since 1970",
                now() - since,
            ));
        }
        if let Some(resolver) = self.resolver.get() {
            families.extend(dns(resolver));
        }
        families
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs_f64()).unwrap_or_default()
}

/// The forwarder's; what the kernel answered is among the packets.
fn dns(resolver: &ResolverHandle) -> Vec<Family> {
    // The cache's entries are not wanted, only its size.
    let stats::Snapshot { cached, zones, upstreams, counters, .. } = resolver.snapshot(0);
    let labelled = |label: &'static str, values: &BTreeMap<&'static str, u64>| {
        Samples::Counter(values.iter().map(|(name, value)| (vec![(label, (*name).to_owned())], *value)).collect())
    };
    let per_upstream = |value: fn(&crate::dns::upstream::ServerInfo) -> f64| {
        Samples::Gauge(upstreams.iter().map(|server| (upstream(&server.address), value(server))).collect())
    };
    let count_upstream = |value: fn(&crate::dns::upstream::ServerInfo) -> u64| {
        Samples::Counter(upstreams.iter().map(|server| (upstream(&server.address), value(server))).collect())
    };
    let family = |name, help, samples| Family { name, help, samples };
    vec![
        family("dns_queries", "Queries to the forwarder by transport", labelled("transport", &counters.queries)),
        family(
            "dns_answers",
            "Answers of the forwarder by where they came from",
            labelled("source", &counters.answers),
        ),
        family("dns_responses", "Answers of the forwarder by response code", labelled("rcode", &counters.rcodes)),
        family("dns_dropped", "Queries that the forwarder did not answer", labelled("reason", &counters.dropped)),
        Family::counter("dns_kernel_refusals", "Answers that the kernel's table refused", counters.refused_by_kernel),
        Family::counter("dns_upstream_failures", "Questions that no upstream answered", counters.upstream_failures),
        Family::gauge("dns_cache_entries", "Learnt answers held", cached as f64),
        Family::gauge(
            "dns_zone_names",
            "Names of the cluster zone",
            zones.iter().map(|zone| zone.names).sum::<usize>() as f64,
        ),
        family(
            "dns_upstream_healthy",
            "1 when the last question got a good answer",
            per_upstream(|s| f64::from(u8::from(s.healthy))),
        ),
        family("dns_upstream_rtt_seconds", "How long the last answer took", per_upstream(|s| s.rtt_us as f64 / 1e6)),
        family("dns_upstream_queries", "Questions sent to an upstream", count_upstream(|s| s.queries)),
        family("dns_upstream_errors", "Questions without a usable answer", count_upstream(|s| s.failures)),
    ]
}

fn upstream(address: &str) -> Labels {
    vec![("upstream", address.to_owned())]
}
