//! What a Service's objects mean, as tables: each row of the YAML files beside this one is a cluster, the changes that it goes through,
//! and what the gateway must make of it after each of them. A row that fails is named with what came out, in the form of the table.
//!
//! ```yaml
//! - row: what it is about
//!   here: { node: n1, zone: a }        # the gateway's own node; default: unknown
//!   vips: [externalIP, loadBalancer]   # datapath.vips, beside clusterIP
//!   steps:                             # each is one batch of events, in order
//!     - put: [objects]                 # created or changed
//!       gone: [Service shop/web]       # deleted, before `put`; `gone-after:` behind it
//!       problems: [...]                # what the source says about the objects
//!       then:                          # of each Service named: all of its ports and problems, and its names where they are given
//!         shop/web:
//!           ports: ["10.1.0.10:80/tcp -> ready endpoints | endpoints that keep their flows"]
//!           names: ["web.shop.svc A 10.1.0.10"]
//!           problems: []
//! ```
//!
//! Beside the table, each step must hold: a Service whose plan is another one than before was named as touched; and a fresh model that is
//! given the same state at once plans the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
};

use gateway::{
    model::{Cluster, Event, Identity, Node, ObjectName},
    plan::{self, Endpoint, Frontend, PlanConfig, Record, RecordData, ServicePlan, VipKinds},
    source::convert,
};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    row: String,
    #[serde(default)]
    here: Here,
    #[serde(default)]
    vips: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Here {
    node: Option<String>,
    zone: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(default)]
    gone: Vec<String>,
    #[serde(default)]
    put: Vec<Value>,
    #[serde(default, rename = "gone-after")]
    gone_after: Vec<String>,
    #[serde(default)]
    problems: Vec<String>,
    #[serde(default)]
    then: BTreeMap<String, Option<Expected>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Expected {
    ports: Vec<String>,
    names: Option<Vec<String>>,
    problems: Vec<String>,
}

#[test]
fn every_row_of_the_tables_holds() {
    let mut failed = Vec::new();
    let mut rows = 0;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/semantics");
    for entry in fs::read_dir(directory).expect("the tables' directory") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a table");
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or("?");
        let mut tree: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"));
        tree.apply_merge().unwrap_or_else(|e| panic!("{file}: {e}"));
        let table: Vec<Value> = serde_yaml_ng::from_value(tree).unwrap_or_else(|e| panic!("{file}: {e}"));
        // A list in which objects stand is where the tables keep what several rows share.
        for row in table.into_iter().filter(Value::is_object) {
            let row: Row = serde_json::from_value(row).unwrap_or_else(|e| panic!("{file}: {e}"));
            rows += 1;
            failed.extend(run(&row).into_iter().map(|what| format!("{file}: {}: {what}", row.row)));
        }
    }
    assert!(failed.is_empty(), "{} of {rows} rows:\n{}", failed.len(), failed.join("\n"));
    assert!(rows > 20, "the tables are there: {rows} rows");
}

fn config(row: &Row) -> PlanConfig {
    PlanConfig {
        views: vec![None],
        cluster_domain: "cluster.local".into(),
        dns_listen: Vec::new(),
        dns_service: ObjectName::new("kube-system", "kube-dns"),
        ttl: 5,
        vips: VipKinds {
            external: row.vips.iter().any(|kind| kind == "externalIP"),
            load_balancer: row.vips.iter().any(|kind| kind == "loadBalancer"),
        },
        own: Vec::new(),
        pods: gateway::plan::Pods::Disabled,
    }
}

/// What is wrong with a row.
fn run(row: &Row) -> Vec<String> {
    let config = config(row);
    let identity = || Identity { names: row.here.node.iter().cloned().collect(), addresses: Vec::new() };
    let mut cluster = Cluster::seen_from(identity());
    if let Some(name) = row.here.node.clone() {
        cluster.apply([Event::Node(Node { name, zone: row.here.zone.clone(), addresses: Vec::new() })]);
    }
    let mut before = BTreeMap::new();
    let mut wrong = Vec::new();
    for (number, step) in row.steps.iter().enumerate() {
        let mut say = |what: String| wrong.push(format!("step {}: {what}", number + 1));
        let mut problems = Vec::new();
        let mut events: Vec<Event> = step.gone.iter().map(|name| gone(name)).collect();
        events.extend(step.put.iter().flat_map(|object| put(object, &mut problems)));
        events.extend(step.gone_after.iter().map(|name| gone(name)));
        if problems != step.problems {
            say(format!("the source said {problems:#?}, not {:#?}", step.problems));
        }
        let dirty = cluster.apply(events);
        let after = plans(&cluster, &config);
        let names: BTreeSet<&ObjectName> = before.keys().chain(after.keys()).collect();
        for name in names {
            if before.get(name) != after.get(name) && !dirty.services.contains(name) {
                say(format!("the plan of {name} changed, and nobody was told"));
            }
        }
        let mut fresh = Cluster::seen_from(identity());
        fresh.apply([Event::Snapshot(Box::new(cluster.objects.clone()))]);
        if plans(&fresh, &config) != after {
            say("a fresh model of the same state plans otherwise".to_owned());
        }
        for (name, expected) in &step.then {
            let (namespace, service) = name.split_once('/').expect("namespace/name");
            compare(name, expected.as_ref(), after.get(&ObjectName::new(namespace, service)), &mut say);
        }
        before = after;
    }
    wrong
}

fn compare(name: &str, expected: Option<&Expected>, plan: Option<&ServicePlan>, say: &mut impl FnMut(String)) {
    let (expected, plan) = match (expected, plan) {
        (None, None) => return,
        (None, Some(_)) => return say(format!("{name} is there")),
        (Some(_), None) => return say(format!("{name} is not there")),
        (Some(expected), Some(plan)) => (expected, plan),
    };
    let mut list = |what: &str, expected: &[String], found: Vec<String>| {
        if expected != found {
            say(format!("{what} of {name} are\n{found:#?}\nand not\n{expected:#?}"));
        }
    };
    list("the ports", &expected.ports, plan.frontends.iter().map(port).collect());
    if let Some(names) = &expected.names {
        list("the names", names, plan.records.iter().filter_map(record).collect());
    }
    let own = format!("Service {name}: ");
    let problems = plan.problems.iter().map(|problem| problem.strip_prefix(&own).unwrap_or(problem).to_owned());
    list("the problems", &expected.problems, problems.collect());
}

fn plans(cluster: &Cluster, config: &PlanConfig) -> BTreeMap<ObjectName, ServicePlan> {
    let plan = |name: &ObjectName| Some((name.clone(), plan::plan_service(cluster, name, config)?));
    cluster.objects.services.keys().filter_map(plan).collect()
}

/// `vip:port/protocol -> endpoints | draining`.
fn port(frontend: &Frontend) -> String {
    let list = |endpoints: &[Endpoint]| {
        endpoints.iter().map(|e| format!(" {}", SocketAddr::new(e.addr, e.port))).collect::<String>()
    };
    let mut line = format!("{}/{} ->", SocketAddr::new(frontend.vip, frontend.port), frontend.protocol.name())
        + &list(&frontend.endpoints);
    if !frontend.draining.is_empty() {
        line = line + " |" + &list(&frontend.draining);
    }
    line
}

/// Without the zone, and without the pointers back.
fn record(record: &Record) -> Option<String> {
    let short = |name: &str| name.trim_end_matches(".cluster.local").to_owned();
    let data = match &record.data {
        RecordData::Address(ip) => format!("{} {ip}", if ip.is_ipv4() { "A" } else { "AAAA" }),
        RecordData::Cname(target) => format!("CNAME {target}"),
        RecordData::Srv(priority, weight, port, target) => format!("SRV {priority} {weight} {port} {}", short(target)),
        RecordData::Txt(text) => format!("TXT {text}"),
        RecordData::Ptr(_) | RecordData::Exists => return None,
    };
    Some(format!("{} {data}", short(&record.name)))
}

/// `Kind namespace/name`.
fn gone(text: &str) -> Event {
    let (kind, name) = text.split_once(' ').expect("kind and name");
    let (namespace, object) = name.split_once('/').unwrap_or(("", name));
    match kind {
        "Service" => Event::ServiceGone(ObjectName::new(namespace, object)),
        "EndpointSlice" => Event::SliceGone(ObjectName::new(namespace, object)),
        "Node" => Event::NodeGone(object.to_owned()),
        "Namespace" => Event::NamespaceGone(object.to_owned()),
        _ => panic!("{kind} is not in the tables"),
    }
}

/// As a watch tells it: an object that cannot be used at all is as good as gone.
fn put(object: &Value, problems: &mut Vec<String>) -> Vec<Event> {
    fn read<T: serde::de::DeserializeOwned>(object: &Value) -> T {
        serde_json::from_value(object.clone()).unwrap_or_else(|e| panic!("{object}: {e}"))
    }
    match object["kind"].as_str() {
        Some("Service") => convert::service(read(object), problems).map(Event::Service).into_iter().collect(),
        Some("EndpointSlice") => convert::slice(read(object), problems).map(Event::Slice).into_iter().collect(),
        Some("Endpoints") => convert::endpoints(read(object), problems).into_iter().map(Event::Slice).collect(),
        Some("Node") => convert::node(read(object), problems).map(Event::Node).into_iter().collect(),
        Some("Namespace") => convert::namespace(read(object), problems).map(Event::Namespace).into_iter().collect(),
        kind => panic!("{kind:?} is not in the tables"),
    }
}
