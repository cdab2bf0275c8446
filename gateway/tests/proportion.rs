//! A change costs what it changes, however large the cluster is: counted in Services planned and entries written, not in time.
//! `cargo xtask bench control` measures the same in CPU time.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use gateway::{
    dns::{
        AnswerStore,
        publish::Publisher,
        stats::Stats,
        zone::{Zone, ZoneConfig},
    },
    model::{Cluster, Event, ObjectName, Objects},
    plan::{self, PlanConfig, Pods, VipKinds},
    source,
};
use gateway_common::maps::{self, DnsEntry, DnsKey, DnsLarge};

/// Counts what the kernel would be asked for, and has what it would have.
#[derive(Default)]
struct Counter(AtomicUsize, Mutex<HashMap<DnsKey, DnsEntry>>);

impl AnswerStore for Counter {
    fn put(&self, key: &DnsKey, entry: &DnsEntry, _: Option<&DnsLarge>) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.lock().expect("lock").insert(*key, *entry);
        Ok(())
    }
    fn remove(&self, key: &DnsKey) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.lock().expect("lock").remove(key);
        Ok(())
    }
    fn hits(&self, _: &DnsKey) -> Option<u64> {
        None
    }
    fn set_zone(&self, _: usize, _: &maps::Zone) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    cluster: Cluster,
    zone: Zone,
    written: Arc<Counter>,
    config: PlanConfig,
}

impl World {
    /// So many Services in a tenth as many namespaces, with two endpoints each.
    fn new(services: usize) -> Self {
        let written = Arc::new(Counter::default());
        let zone = ZoneConfig {
            domain: "cluster.local",
            ttl: 30,
            negative_ttl: 30,
            serial: 1,
            fixed: Vec::new(),
            pods: false,
            local: false,
        };
        let publisher = Publisher::new(Arc::<Counter>::clone(&written), Arc::new(Stats::default()));
        let config = PlanConfig {
            views: vec![None],
            cluster_domain: "cluster.local".into(),
            dns_listen: Vec::new(),
            dns_service: ObjectName::new("kube-system", "kube-dns"),
            ttl: 30,
            vips: VipKinds::default(),
            own: Vec::new(),
            pods: Pods::Disabled,
        };
        let zone = Zone::new(&zone, Arc::new(publisher)).expect("a zone");
        let mut world = Self { cluster: Cluster::default(), zone, written, config };
        let mut objects = Objects::default();
        for number in 0..services {
            let parsed = objects_of(number, 1);
            objects.services.extend(parsed.services);
            objects.slices.extend(parsed.slices);
        }
        world.apply(vec![Event::Snapshot(Box::new(objects))]);
        world.zone.synced();
        world
    }

    /// Everything anew, in one step; entries written.
    fn apply_all(&self, names: &[ObjectName]) -> usize {
        let before = self.written.0.load(Ordering::Relaxed);
        let plan = |name| plan::plan_service(&self.cluster, name, &self.config).unwrap_or_default();
        let plans: Vec<_> = names.iter().map(|name| (name, plan(name))).collect();
        self.zone.apply_all(plans.iter().map(|(name, plan)| (*name, &plan.records[..])));
        self.written.0.load(Ordering::Relaxed) - before
    }

    /// Services planned and entries written for these events.
    fn apply(&mut self, events: Vec<Event>) -> (usize, usize) {
        let before = self.written.0.load(Ordering::Relaxed);
        let dirty = self.cluster.apply(events);
        for name in &dirty.services {
            self.zone.apply(name, plan::plan_service(&self.cluster, name, &self.config).as_ref());
        }
        (dirty.services.len(), self.written.0.load(Ordering::Relaxed) - before)
    }
}

/// A Service and its slice, whose second endpoint is number `turn`.
fn objects_of(number: usize, turn: usize) -> Objects {
    let (namespace, a, b) = (number / 10, number / 250, number % 250);
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web-{number}, namespace: team-{namespace}}}\n\
         spec: {{clusterIP: 10.1.{a}.{b}, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{number}\n  namespace: team-{namespace}\n  \
         labels: {{kubernetes.io/service-name: web-{number}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
         endpoints: [{{addresses: [10.{}.{b}.0]}}, {{addresses: [10.{}.{b}.{turn}]}}]\n",
        100 + a,
        100 + a
    );
    source::parse(&text).expect("manifests").0
}

#[test]
fn a_change_is_planned_and_written_alone_however_many_services_there_are() {
    let (mut small, mut large) = (World::new(20), World::new(1_000));
    let slice = |turn: usize| {
        let slices = objects_of(7, turn).slices;
        slices.into_values().map(Event::Slice).collect::<Vec<_>>()
    };
    let service = || objects_of(7, 2).services.into_values().map(Event::Service).collect::<Vec<_>>();
    let gone = || vec![Event::ServiceGone(ObjectName::new("team-0", "web-7"))];
    for (what, events) in
        [("an endpoint", slice(2)), ("nothing", slice(2)), ("a Service goes", gone()), ("and comes", service())]
    {
        let (few, many) = (small.apply(events.clone()), large.apply(events));
        assert_eq!(few, many, "{what}: Services planned, entries written");
        assert!(many.0 <= 1 && many.1 <= 16, "{what}: {many:?}");
        assert_eq!(many == (0, 0), what == "nothing", "{what}: {many:?}");
    }
}

#[test]
fn services_that_come_together_make_the_entries_that_each_alone_makes_and_the_names_they_share_once() {
    let alone = World::new(40);
    let mut together = World::new(0);
    let mut objects = Objects::default();
    for number in 0..40 {
        let parsed = objects_of(number, 1);
        objects.services.extend(parsed.services);
        objects.slices.extend(parsed.slices);
    }
    let dirty = together.cluster.apply(vec![Event::Snapshot(Box::new(objects))]);
    let names: Vec<_> = dirty.services.into_iter().collect();
    let written = together.apply_all(&names);
    let entries = |world: &World| world.written.1.lock().expect("lock").clone();
    assert!(entries(&alone) == entries(&together), "the same entries");
    // The domain's own were there before.
    assert!(written <= entries(&together).len(), "{written} written, each once");
    assert_eq!(together.apply_all(&names), 0, "nothing has changed");

    // One of them goes: what it shares with the others stays.
    together.cluster.apply(vec![Event::ServiceGone(names[3].clone())]);
    let written = together.apply_all(&names);
    assert!((1..=16).contains(&written), "{written}");
    let mut alone = alone;
    alone.apply(vec![Event::ServiceGone(names[3].clone())]);
    assert!(entries(&alone) == entries(&together), "the same entries after one is gone");
}
