//! What a large cluster takes in memory, counted in bytes that are allocated, not in what the allocator keeps: the objects, the plans in force
//! and the zone. The kernel's room is not part of it; `cargo xtask bench control` measures the whole agent.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io,
    sync::{
        Arc,
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
    plan::{self, PlanConfig, Pods, ServicePlan, VipKinds},
    source,
};
use gateway_common::maps::{self, DnsEntry, DnsKey, DnsLarge};

/// Endpoints of each Service.
const ENDPOINTS: u32 = 10;

/// The system's allocator, and how many bytes it has given out. A piece takes 8 bytes beside what was asked for, in steps of 16, and at
/// least 32, as in glibc.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

const fn taken(size: usize) -> usize {
    let size = (size + 8).next_multiple_of(16);
    if size < 32 { 32 } else { size }
}

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(taken(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that the system's allocator wants.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(taken(layout.size()), Ordering::Relaxed);
        // SAFETY: as above; `pointer` came from there.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated() -> usize {
    BYTES.load(Ordering::Relaxed)
}

/// Keeps nothing, as if all of it were the kernel's.
struct Kernel;

impl AnswerStore for Kernel {
    fn put(&self, _: &DnsKey, _: &DnsEntry, _: Option<&DnsLarge>) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, _: &DnsKey) -> io::Result<()> {
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
    plans: std::collections::BTreeMap<ObjectName, ServicePlan>,
    zone: Zone,
    config: PlanConfig,
}

impl World {
    fn new() -> Self {
        let zone = ZoneConfig {
            domain: "cluster.local",
            ttl: 30,
            negative_ttl: 30,
            serial: 1,
            fixed: Vec::new(),
            pods: false,
            local: false,
        };
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
        let publisher = Publisher::new(Arc::new(Kernel), Arc::new(Stats::default()));
        let zone = Zone::new(&zone, Arc::new(publisher)).expect("a zone");
        zone.set_service_cidrs(&["10.1.0.0/16".parse().expect("a CIDR")]);
        Self { cluster: Cluster::default(), plans: std::collections::BTreeMap::new(), zone, config }
    }

    fn apply(&mut self, events: Vec<Event>) {
        for name in self.cluster.apply(events).services {
            let plan = plan::plan_service(&self.cluster, &name, &self.config);
            self.zone.apply(&name, plan.as_ref());
            match plan {
                // As the agent keeps it: its records are the zone's.
                Some(plan) => drop(self.plans.insert(name, ServicePlan { records: Vec::new(), ..plan })),
                None => drop(self.plans.remove(&name)),
            }
        }
    }
}

/// A Service and its slice, as an API server's; `turn` decides the address of its last endpoint.
fn objects_of(number: u32, turn: u32) -> Objects {
    let [_, _, a, b] = number.to_be_bytes();
    let first = number * (ENDPOINTS + 2);
    let hosts = (first..first + ENDPOINTS - 1).chain([first + ENDPOINTS - 1 + turn % 2]);
    let endpoint = |host: u32| {
        let [_, x, y, z] = host.to_be_bytes();
        format!(
            "- {{addresses: [10.{}.{y}.{z}], conditions: {{ready: true, serving: true, terminating: false}}, nodeName: node-{:03}, zone: zone-{}}}\n",
            128 + x,
            host % 250,
            host % 3
        )
    };
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web-{number}, namespace: team-{}}}\n\
         spec: {{clusterIP: 10.1.{a}.{b}, ports: [{{name: http, port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{number}-00000\n  namespace: team-{}\n  \
         labels: {{kubernetes.io/service-name: web-{number}}}\naddressType: IPv4\nports: [{{name: http, port: 8080}}]\n\
         endpoints:\n{}",
        number / 10,
        number / 10,
        hosts.map(endpoint).collect::<String>()
    );
    source::parse(&text).expect("manifests").0
}

/// One test, so that nothing else allocates meanwhile.
#[test]
fn an_endpoint_takes_little_and_changes_leave_nothing_behind() {
    // The large cluster of the bench has 10,000.
    let services: u32 = std::env::var("MEMORY_SERVICES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000);
    let before = allocated();
    let mut whole = Objects::default();
    for number in 0..services {
        let parsed = objects_of(number, 0);
        whole.services.extend(parsed.services);
        whole.slices.extend(parsed.slices);
    }
    let objects = allocated() - before;
    let mut world = World::new();
    let before_apply = allocated();
    let names = world.cluster.apply([Event::Snapshot(Box::new(whole))]).services;
    let model = allocated() - before_apply + objects;
    let before_plans = allocated();
    let mut records = std::collections::BTreeMap::new();
    for name in &names {
        let mut plan = plan::plan_service(&world.cluster, name, &world.config).expect("a plan");
        records.insert(name.clone(), std::mem::take(&mut plan.records));
        world.plans.insert(name.clone(), plan);
    }
    let kept = records.len();
    drop(records);
    let plans = allocated() - before_plans;
    let before_zone = allocated();
    for name in &names {
        let plan = plan::plan_service(&world.cluster, name, &world.config);
        world.zone.apply(name, plan.as_ref());
    }
    let zone = allocated() - before_zone;
    drop(names);
    world.zone.synced();
    assert_eq!(kept, services as usize);

    let each = |bytes: usize| bytes / (services * ENDPOINTS) as usize;
    println!("bytes an endpoint: objects {}, plans {}, zone {}", each(model), each(plans), each(zone));
    assert!(each(model) <= 260, "objects: {} bytes an endpoint", each(model));
    assert!(each(plans) <= 100, "plans: {} bytes an endpoint", each(plans));
    assert!(each(zone) <= 600, "zone: {} bytes an endpoint", each(zone));

    // Every Service there and back, three times; the first time tables may find their size.
    let mut rest = Vec::new();
    for _ in 0..3 {
        for turn in [1, 0] {
            for number in (0..services).step_by(5) {
                let slices = objects_of(number, turn).slices;
                world.apply(slices.into_values().map(Event::Slice).collect());
            }
        }
        rest.push(allocated());
    }
    assert!(rest[2] <= rest[0] + rest[0] / 100, "it grows with changes alone: {rest:?}");

    for number in 0..services {
        let gone = objects_of(number, 0);
        let mut events: Vec<_> = gone.slices.into_keys().map(Event::SliceGone).collect();
        events.extend(gone.services.into_keys().map(Event::ServiceGone));
        world.apply(events);
    }
    assert_eq!((world.zone.info().names, world.plans.len()), (1, 0), "only the reverse zone's own name");
}
