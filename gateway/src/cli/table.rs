//! The agent's JSON as people read it.

use std::fmt::Write as _;

use serde_json::Value;

/// Rows under headings, each column as wide as its widest cell. Numbers are to the right.
struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(self.head[column].len())
        };
        let numeric = |column: usize| {
            !self.rows.is_empty() && self.rows.iter().all(|row| row[column].bytes().all(|byte| byte.is_ascii_digit()))
        };
        let columns: Vec<(usize, bool)> = (0..self.head.len()).map(|column| (width(column), numeric(column))).collect();
        let mut out = String::new();
        let head: Vec<String> = self.head.iter().map(|&title| title.to_owned()).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            for (cell, &(width, numeric)) in row.iter().zip(&columns) {
                if numeric {
                    let _infallible = write!(line, "{cell:>width$}  ");
                } else {
                    let _infallible = write!(line, "{cell:<width$}  ");
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A cell: lists joined by commas, nothing for null.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

fn yes(value: &Value) -> String {
    if value.as_bool() == Some(true) { "yes" } else { "no" }.to_owned()
}

/// `5s`, `3m12s`, `2h05m`, `4d07h`.
fn span(value: &Value) -> String {
    let Some(seconds) = value.as_f64() else {
        return "-".to_owned();
    };
    // Saturates; times here are far below.
    let seconds = seconds.max(0.0) as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

fn address(ip: &Value, port: &Value) -> String {
    let ip = cell(ip);
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// `gateway explain`.
pub(super) fn explain(told: &Value) -> String {
    let mut out = String::new();
    for why in items(&told["why"]) {
        let _infallible = writeln!(out, "  {}", cell(why));
    }
    let _infallible = writeln!(out, "{}", cell(&told["verdict"]));
    let choices = items(&told["endpoints"]);
    if !choices.is_empty() {
        let mut table = Table::new(&["ENDPOINT", "SHARE", "SOURCE", "INTERFACE", "NEXT HOP"]);
        for choice in choices {
            table.row(vec![
                cell(&choice["endpoint"]),
                format!("{:.0} %", choice["share"].as_f64().unwrap_or_default() * 100.0),
                or_dash(cell(&choice["source"])),
                or_dash(cell(&choice["interface"])),
                if choice["resolved"] == true { "known" } else { "not resolved" }.to_owned(),
            ]);
        }
        out.push_str(&table.render());
    }
    out
}

/// `gateway status`.
pub(super) fn status(status: &Value) -> String {
    let source = &status["source"];
    let state = match (status["ready"].as_bool(), items(&status["degraded"]).is_empty()) {
        (Some(true), true) => "ready",
        (Some(true), false) => "ready, degraded",
        _ => "not ready",
    };
    let counts = &status["counts"];
    let mut facts = vec![
        ("gateway", format!("{} {state}, up {}", cell(&status["version"]), span(&status["uptime"]))),
        ("config", cell(&status["config"])),
        ("mode", cell(&status["mode"])),
        ("addresses", or_dash(cell(&status["addresses"]))),
        ("service CIDRs", or_dash(cell(&status["serviceCIDRs"]))),
        ("node", format!("{}, zone {}", or_dash(cell(&status["node"])), or_dash(cell(&status["zone"])))),
        ("names", format!("{} on {}", cell(&status["clusterDomain"]), or_dash(cell(&status["dns"])))),
        (
            "source",
            format!(
                "{} {}: {}, {}, last change {} ago",
                cell(&source["kind"]),
                cell(&source["location"]),
                if source["synced"] == true { "synced" } else { "not synced" },
                match source["connected"] == true {
                    true => "connected".to_owned(),
                    false => format!("not connected for {}", span(&source["unreached"])),
                },
                span(&source["lastChange"])
            ),
        ),
        (
            "holds",
            format!(
                "{} services, {} ports, {} endpoints, {} records, {} flows",
                counts["services"], counts["frontends"], counts["endpoints"], counts["records"], counts["flows"]
            ),
        ),
    ];
    for why in items(&status["degraded"]) {
        facts.push(("degraded", cell(why)));
    }
    let mut out = String::new();
    for (name, fact) in facts {
        let _infallible = writeln!(out, "{name:<14} {fact}");
    }
    let mut interfaces = Table::new(&["INTERFACE", "ROLE", "XDP", "TC"]);
    for item in items(&status["interfaces"]) {
        interfaces.row(vec![
            cell(&item["interface"]),
            cell(&item["role"]),
            or_dash(cell(&item["xdp"])),
            yes(&item["tc"]),
        ]);
    }
    section(&mut out, &interfaces);
    let mut views = Table::new(&["VIEW", "CLIENTS", "NAMESPACES"]);
    for item in items(&status["views"]) {
        views.row(vec![cell(&item["name"]), cell(&item["cidrs"]), or_dash(cell(&item["namespaces"]))]);
    }
    section(&mut out, &views);
    let mut counters = Table::new(&["PACKETS", "REASON"]);
    if let Some(reasons) = status["counters"].as_object() {
        for (reason, packets) in reasons.iter().filter(|(_, packets)| packets.as_u64() != Some(0)) {
            counters.row(vec![cell(packets), reason.clone()]);
        }
    }
    section(&mut out, &counters);
    let problems: Vec<String> = items(&source["problems"]).iter().chain(items(&status["problems"])).map(cell).collect();
    if !problems.is_empty() {
        out.push_str("\nPROBLEMS\n");
        for problem in problems {
            let _infallible = writeln!(out, "{problem}");
        }
    }
    out
}

fn section(out: &mut String, table: &Table) {
    if !table.rows.is_empty() {
        out.push('\n');
        out.push_str(&table.render());
    }
}

/// `gateway services`.
pub(super) fn services(services: &Value) -> String {
    let mut table = Table::new(&["NAMESPACE", "NAME", "ADDRESS", "PROTO", "ENDPOINTS", "AFFINITY", "VIEWS"]);
    for service in items(services) {
        let row = |address: String, protocol: String, endpoints: String, affinity: String| {
            vec![
                cell(&service["namespace"]),
                cell(&service["name"]),
                address,
                protocol,
                endpoints,
                affinity,
                or_dash(cell(&service["views"])),
            ]
        };
        let ports = items(&service["ports"]);
        if ports.is_empty() {
            table.row(row(or_dash(cell(&service["vips"])), "-".to_owned(), "-".to_owned(), "-".to_owned()));
        }
        for port in ports {
            table.row(row(
                address(&port["vip"], &port["port"]),
                cell(&port["protocol"]).to_lowercase(),
                endpoints(port),
                if port["affinity"] == 0 { "-".to_owned() } else { span(&port["affinity"]) },
            ));
        }
    }
    table.render()
}

/// The first few; people want to see that there are some, programs take the JSON.
fn endpoints(port: &Value) -> String {
    const SHOWN: usize = 3;
    let all = items(&port["endpoints"]);
    let mut shown: Vec<String> =
        all.iter().take(SHOWN).map(|endpoint| address(&endpoint["addr"], &endpoint["port"])).collect();
    if all.len() > SHOWN {
        shown.push(format!("+{}", all.len() - SHOWN));
    }
    let draining = items(&port["draining"]).len();
    if draining > 0 {
        shown.push(format!("{draining} draining"));
    }
    or_dash(shown.join(","))
}

/// `gateway flows`.
pub(super) fn flows(flows: &Value) -> String {
    let mut table =
        Table::new(&["PROTO", "CLIENT", "VIP", "ENDPOINT", "SEEN AS", "STATE", "IDLE", "AGE", "PKTS OUT", "PKTS IN"]);
    for flow in items(flows) {
        table.row(vec![
            cell(&flow["protocol"]),
            cell(&flow["client"]),
            cell(&flow["vip"]),
            cell(&flow["endpoint"]),
            cell(&flow["source"]),
            cell(&flow["state"]),
            span(&flow["idle"]),
            span(&flow["age"]),
            cell(&flow["packetsOut"]),
            cell(&flow["packetsIn"]),
        ]);
    }
    table.render()
}

/// `gateway drops`: what was counted at least once.
pub(super) fn drops(drops: &Value) -> String {
    let mut table = Table::new(&["PACKETS", "CLASS", "REASON", "MEANING"]);
    for drop in items(drops).iter().filter(|drop| drop["packets"].as_u64() != Some(0)) {
        table.row(vec![cell(&drop["packets"]), cell(&drop["class"]), cell(&drop["reason"]), cell(&drop["meaning"])]);
    }
    table.render()
}

/// `gateway dns`.
pub(super) fn dns(dns: &Value) -> String {
    let mut out = String::new();
    let _infallible = writeln!(out, "listening on {}", or_dash(cell(&dns["listen"])));
    let mut zones = Table::new(&["ZONE", "SERIAL", "SYNCED", "NAMES", "RRSETS", "IN KERNEL"]);
    for zone in items(&dns["zones"]) {
        zones.row(vec![
            cell(&zone["name"]),
            cell(&zone["serial"]),
            yes(&zone["synced"]),
            cell(&zone["names"]),
            cell(&zone["rrsets"]),
            cell(&zone["kernelEntries"]),
        ]);
    }
    section(&mut out, &zones);
    if let Some(found) = dns["clusterDns"].as_object() {
        let _infallible = writeln!(out, "\nthe cluster's DNS: {}", or_dash(cell(&found["servers"])));
        for problem in items(&found["problems"]) {
            let _infallible = writeln!(out, "  {}", cell(problem));
        }
    }
    let mut upstreams = Table::new(&["UPSTREAM", "HEALTHY", "QUERIES", "FAILURES", "LAST RTT"]);
    for upstream in items(&dns["upstreams"]) {
        let rtt = upstream["rttUs"].as_f64().unwrap_or_default() / 1_000.0;
        upstreams.row(vec![
            cell(&upstream["address"]),
            yes(&upstream["healthy"]),
            cell(&upstream["queries"]),
            cell(&upstream["failures"]),
            format!("{rtt:.1}ms"),
        ]);
    }
    section(&mut out, &upstreams);
    let mut counters = Table::new(&["COUNT", "OF"]);
    for (kind, values) in dns["counters"].as_object().into_iter().flatten() {
        match values.as_object() {
            Some(values) => {
                for (label, count) in values {
                    counters.row(vec![cell(count), format!("{kind} {label}")]);
                }
            }
            None => counters.row(vec![cell(values), kind.clone()]),
        }
    }
    section(&mut out, &counters);
    let mut cache = Table::new(&["CACHED", "TYPE", "RCODE", "TTL", "STALE", "IN KERNEL", "KERNEL HITS", "HITS"]);
    for entry in items(&dns["cache"]) {
        cache.row(vec![
            cell(&entry["name"]),
            cell(&entry["type"]),
            cell(&entry["rcode"]),
            cell(&entry["ttl"]),
            yes(&entry["stale"]),
            yes(&entry["kernel"]),
            cell(&entry["kernelHits"]),
            cell(&entry["hits"]),
        ]);
    }
    section(&mut out, &cache);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{drops, services, span, status};

    #[test]
    fn columns_are_aligned_and_long_lists_shortened() {
        let endpoint = |n: u8| json!({"addr": format!("10.244.1.{n}"), "port": 8080});
        let text = services(&json!([
            {"namespace": "shop", "name": "web", "vips": ["10.1.0.20"], "views": ["developers"], "ports": [
                {"vip": "10.1.0.20", "port": 80, "protocol": "TCP", "draining": [], "affinity": 10_800,
                 "endpoints": [endpoint(1), endpoint(2), endpoint(3), endpoint(4), endpoint(5)]}]},
            {"namespace": "a", "name": "headless", "vips": [], "views": [], "ports": []},
        ]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "shop       web       10.1.0.20:80  tcp    10.244.1.1:8080,10.244.1.2:8080,10.244.1.3:8080,+2  3h00m     developers"
        );
        let column = |line: &str, what: &str| line.find(what).unwrap_or_else(|| panic!("{what} is not in {line}"));
        assert_eq!(column(lines[0], "ADDRESS"), column(lines[1], "10.1.0.20:80"));
        assert!(lines[2].ends_with('-'), "{}", lines[2]);
    }

    #[test]
    fn drops_hide_what_never_happened() {
        let text = drops(&json!([
            {"reason": "stranger", "class": "dropped", "packets": 7, "meaning": "Source address in no view."},
            {"reason": "fragment", "class": "dropped", "packets": 0, "meaning": "-"},
        ]));
        assert!(text.contains("stranger") && !text.contains("fragment"), "{text}");
    }

    #[test]
    fn an_answer_of_another_version_is_shown_as_far_as_it_goes() {
        let text = status(&json!({"version": "9", "source": {"problems": ["a.yaml: line 3"]}}));
        assert!(text.contains("9 not ready") && text.contains("a.yaml: line 3"), "{text}");
    }

    #[test]
    fn times_are_short() {
        for (seconds, wanted) in
            [(0.4, "0s"), (59.9, "59s"), (192.0, "3m12s"), (7_500.0, "2h05m"), (370_800.0, "4d07h")]
        {
            assert_eq!(span(&json!(seconds)), wanted);
        }
        assert_eq!(span(&json!(null)), "-");
    }
}
