//! Promises about what the maps hold after `apply`.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use gateway_common::maps::{Endpoint, Service, endpoint as endpoint_flag};
use ipnet::IpNet;

use super::{Row, endpoint, name, net::skip, plan, settings};
use crate::{
    kernel::{Kernel, Mode, family},
    model::Protocol,
    plan as plans,
};

/// A loaded kernel room that is not attached, in namespaces that live as long as it.
struct Loaded {
    row: Row,
    kernel: Arc<Kernel>,
}

impl Loaded {
    fn new() -> Self {
        let row = Row::new();
        let kernel = Arc::new(row.load(settings(Mode::Tc)).unwrap());
        Self { row, kernel }
    }

    fn apply(&self, service: &str, plan: Option<&plans::ServicePlan>) {
        self.kernel.apply(&name(service), plan).unwrap();
    }

    fn service(&self, vip: impl Into<IpAddr>, port: u16) -> Option<Service> {
        let proto = if port == 0 { 0 } else { 6 };
        self.kernel.shared.state().maps().services.get(&family::service(vip.into(), port, proto)).unwrap()
    }

    fn endpoint(&self, index: u32) -> Endpoint {
        self.kernel.shared.state().maps().endpoints.get(&index).unwrap().unwrap()
    }

    /// Index and value of every endpoint that a Service's table leads to.
    fn table(&self, service: &Service) -> Vec<(u32, Endpoint)> {
        let maglev = self.kernel.shared.state().maps().maglev.clone();
        let slots = service.slots..service.slots + service.slot_count;
        let mut indices: Vec<u32> = slots.map(|slot| maglev.get(&slot).unwrap().unwrap()).collect();
        indices.sort_unstable();
        indices.dedup();
        indices.into_iter().map(|i| (i, self.endpoint(i))).collect()
    }

    fn claimed(&self, addr: impl Into<IpAddr>, bits: u8) -> bool {
        let claims = self.kernel.shared.state().maps().claims.clone();
        // A look-up in a trie finds the longest prefix: only an exact one can be removed.
        let key = family::prefix(IpNet::new(addr.into(), bits).unwrap());
        let value = claims.get(&key).unwrap();
        let exact = claims.remove(&key).unwrap();
        if exact {
            claims.put(&key, &value.unwrap()).unwrap();
        }
        exact
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let kernel = Arc::clone(&self.kernel);
        self.row.node.run(move || kernel.detach().unwrap());
    }
}

const VIP: [u8; 4] = [10, 1, 0, 1];

fn web(endpoints: &[plans::Endpoint]) -> plans::ServicePlan {
    plan("10.1.0.1", 80, Protocol::Tcp, endpoints)
}

#[test]
fn a_service_leads_to_its_endpoints_and_leaves_nothing_when_deleted() {
    if skip() {
        return;
    }
    let loaded = Loaded::new();
    loaded.apply("web", Some(&web(&[endpoint("10.90.3.2", 8080), endpoint("10.90.3.3", 8081)])));
    let service = loaded.service(VIP, 80).unwrap();
    assert_eq!((service.views, service.endpoints), (1, 2));
    assert_ne!(service.id, 0);
    let table = loaded.table(&service);
    let mut reached: Vec<_> = table.iter().map(|(_, e)| (e.addr[3], u16::from_be_bytes(e.port))).collect();
    reached.sort_unstable();
    assert_eq!(reached, [(2, 8080), (3, 8081)]);
    for (index, e) in &table {
        assert!(*index != 0 && e.generation != 0 && e.nexthop != 0 && e.service == service.id, "{e:?}");
    }
    assert!(loaded.service(VIP, 0).is_some(), "the address is known to be a VIP");

    loaded.apply("web", None);
    assert_eq!(loaded.service(VIP, 80), None);
    assert_eq!(loaded.service(VIP, 0), None);
    for (index, _) in table {
        assert_eq!(loaded.endpoint(index).generation, 0, "flows of a gone endpoint end");
    }
    assert_eq!(loaded.kernel.totals(), crate::kernel::Totals::default());
}

#[test]
fn an_endpoint_keeps_its_index_while_it_serves_or_drains() {
    if skip() {
        return;
    }
    let loaded = Loaded::new();
    let (stays, drains, comes) = (endpoint("10.90.3.2", 80), endpoint("10.90.3.3", 80), endpoint("10.90.3.4", 80));
    loaded.apply("web", Some(&web(&[stays, drains])));
    let before = loaded.table(&loaded.service(VIP, 80).unwrap());
    let index = |last: u8, table: &[(u32, Endpoint)]| table.iter().find(|(_, e)| e.addr[3] == last).copied();
    let draining = index(3, &before).unwrap();

    let mut next = web(&[stays, comes]);
    next.frontends[0].draining = [drains].into();
    loaded.apply("web", Some(&next));
    let after = loaded.table(&loaded.service(VIP, 80).unwrap());
    assert_eq!(index(2, &after), index(2, &before), "same index, same generation");
    assert_eq!(index(3, &after), None, "new flows do not go to a draining endpoint");
    let flags = draining.1.flags | gateway_common::maps::endpoint::DRAINING;
    let marked = gateway_common::maps::Endpoint { flags, ..draining.1 };
    assert_eq!(loaded.endpoint(draining.0), marked, "its flows go on, and affinity brings it no new ones");

    loaded.apply("web", Some(&web(&[stays, comes])));
    assert_eq!(loaded.endpoint(draining.0).generation, 0);
    // It comes back: whatever index it gets, flows of its first life are not its own.
    thread::sleep(Duration::from_millis(1100));
    loaded.apply("web", Some(&web(&[stays, comes, drains])));
    let again = index(3, &loaded.table(&loaded.service(VIP, 80).unwrap())).unwrap();
    assert_eq!(again.0, draining.0, "a rested index is used again");
    assert_ne!(again.1.generation, draining.1.generation);
}

#[test]
fn a_vip_that_moves_to_another_service_ends_up_with_it_in_either_order() {
    if skip() {
        return;
    }
    let loaded = Loaded::new();
    let (old, new) = (web(&[endpoint("10.90.3.2", 80)]), web(&[endpoint("10.90.3.3", 80)]));
    let reached = || loaded.table(&loaded.service(VIP, 80).unwrap())[0].1.addr[3];

    loaded.apply("old", Some(&old));
    loaded.apply("new", Some(&new));
    assert_eq!(reached(), 3, "the last one to come has it");
    loaded.apply("old", None);
    assert_eq!(reached(), 3);
    assert!(loaded.service(VIP, 0).is_some(), "the VIP is still wanted");

    loaded.apply("new", None);
    assert_eq!(loaded.service(VIP, 0), None);
    loaded.apply("old", Some(&old));
    assert_eq!(reached(), 2);

    // The one that has it goes while another one waits.
    loaded.apply("new", Some(&new));
    loaded.apply("new", None);
    assert_eq!(reached(), 2, "the one before gets it back");
}

#[test]
fn a_renumbered_service_leaves_its_old_address() {
    if skip() {
        return;
    }
    let loaded = Loaded::new();
    loaded.apply("web", Some(&web(&[endpoint("10.90.3.2", 80)])));
    loaded.apply("web", Some(&plan("10.1.0.9", 81, Protocol::Tcp, &[endpoint("10.90.3.2", 80)])));
    assert_eq!(loaded.service(VIP, 80), None);
    assert_eq!(loaded.service(VIP, 0), None);
    assert!(loaded.service([10, 1, 0, 9], 81).is_some());
}

#[test]
fn a_vip_outside_the_service_cidrs_is_claimed_by_itself() {
    if skip() {
        return;
    }
    let loaded = Loaded::new();
    assert!(loaded.claimed([10, 1, 0, 0], 16));
    loaded.apply("out", Some(&plan("192.0.2.7", 80, Protocol::Tcp, &[])));
    assert!(loaded.claimed([192, 0, 2, 7], 32));
    loaded.apply("web", Some(&web(&[])));
    assert!(!loaded.claimed(VIP, 32), "the CIDR claims it");
    // Another CIDR: what was inside has to be claimed now, what is inside now not any more.
    loaded.kernel.set_claims(&["192.0.2.0/24".parse().unwrap()]).unwrap();
    assert!(loaded.claimed(VIP, 32) && !loaded.claimed([10, 1, 0, 0], 16));
    assert!(!loaded.claimed([192, 0, 2, 7], 32) && loaded.claimed([192, 0, 2, 0], 24));
    loaded.apply("web", None);
    assert!(!loaded.claimed(VIP, 32));
}

#[test]
fn each_family_of_a_dual_stack_service_has_its_own_endpoints_and_its_own_echo() {
    if skip() {
        return;
    }
    let loaded = Loaded::new();
    let vip6: IpAddr = "fd00:10::1".parse().unwrap();
    let mut both = web(&[endpoint("10.90.3.2", 80)]);
    both.vips.push(vip6);
    both.frontends.push(plans::Frontend {
        vip: vip6,
        endpoints: [endpoint("fd90:3::2", 80), endpoint("fd90:3::3", 80)].into(),
        ..both.frontends[0].clone()
    });
    loaded.apply("web", Some(&both));
    let (four, six) = (loaded.service(VIP, 80).unwrap(), loaded.service(vip6, 80).unwrap());
    assert_ne!(four.id, six.id);
    assert_eq!((loaded.table(&four).len(), loaded.table(&six).len()), (1, 2));
    for (index, e) in loaded.table(&six) {
        assert_eq!((e.flags & endpoint_flag::V6, e.addr[..4] == [0xfd, 0x90, 0, 3]), (1, true), "{index}: {e:?}");
    }
    let echo = |vip: IpAddr| loaded.service(vip, 0).unwrap().endpoints;
    assert_eq!((echo(VIP.into()), echo(vip6)), (1, 2));
    assert!(loaded.claimed(vip6, 128), "it is outside every service CIDR");
    loaded.kernel.set_claims(&["10.1.0.0/16".parse().unwrap(), "fd00:10::/112".parse().unwrap()]).unwrap();
    assert!(!loaded.claimed(vip6, 128) && loaded.claimed("fd00:10::".parse::<IpAddr>().unwrap(), 112));

    both.frontends[1].endpoints = [].into();
    loaded.apply("web", Some(&both));
    assert_eq!((echo(VIP.into()), echo(vip6)), (1, 0), "a family without endpoints answers no ping");
    assert_eq!(loaded.service(vip6, 80).unwrap().slot_count, 0);
    loaded.apply("web", None);
    assert_eq!((loaded.service(vip6, 80), loaded.service(vip6, 0)), (None, None));
}

#[test]
fn a_reader_never_sees_half_of_a_change() {
    if skip() {
        return;
    }
    let loaded = Loaded::new();
    let sets = [
        web(&[endpoint("10.90.3.2", 80), endpoint("10.90.3.3", 80), endpoint("10.90.3.4", 80)]),
        web(&(10..20).map(|n| endpoint(&format!("10.90.3.{n}"), 80)).collect::<Vec<_>>()),
        web(&[endpoint("10.90.3.30", 80), endpoint("10.90.3.2", 80)]),
    ];
    loaded.apply("web", Some(&sets[0]));
    let (services, maglev, endpoints) = {
        let state = loaded.kernel.shared.state();
        let maps = state.maps();
        (maps.services.clone(), maps.maglev.clone(), maps.endpoints.clone())
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let reader = thread::spawn(move || {
        let key = family::service(VIP.into(), 80, 6);
        let mut reads = 0u32;
        while !stopped.load(Ordering::Relaxed) {
            let before = services.get(&key).unwrap().expect("the Service never disappears");
            let slot = before.slots + reads % before.slot_count;
            let e = maglev.get(&slot).unwrap().map(|index| endpoints.get(&index).unwrap().unwrap()).unwrap();
            // A value that is still the current one must lead to a living endpoint of this Service.
            if services.get(&key).unwrap() == Some(before) {
                assert!(e.generation != 0 && e.service == before.id, "slot {slot} of {before:?} leads to {e:?}");
            }
            reads += 1;
        }
        reads
    });
    let end = Instant::now() + Duration::from_millis(500);
    let mut changes = 0;
    while Instant::now() < end {
        changes += 1;
        loaded.apply("web", Some(&sets[changes % sets.len()]));
    }
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0 && changes > 10);
}

#[test]
fn a_thousand_services_are_applied_within_seconds_and_a_change_within_milliseconds() {
    if skip() {
        return;
    }
    let loaded = Loaded::new();
    loaded.row.node.ip("route add 10.244.0.0/16 via 10.90.3.2");
    let start = Instant::now();
    let service = |n: u32, first: u32| {
        let endpoints: Vec<_> = (first..first + 10)
            .map(|e| endpoint(&format!("10.244.{}.{}", (n * 10 + e) / 250, (n * 10 + e) % 250), 80))
            .collect();
        plan(&format!("10.1.{}.{}", n / 250, n % 250), 80, Protocol::Tcp, &endpoints)
    };
    let kernel = Arc::clone(&loaded.kernel);
    loaded.row.node.run(move || {
        for n in 0..1000 {
            kernel.apply(&name(&n.to_string()), Some(&service(n, 0))).unwrap();
        }
    });
    let all = start.elapsed();
    let start = Instant::now();
    loaded.apply("500", Some(&service(500, 1)));
    let one = start.elapsed();
    println!("1,000 Services of 10 endpoints: {all:?}; one change: {one:?}");
    assert!(all < Duration::from_secs(20), "{all:?}");
    assert!(one < Duration::from_millis(50), "{one:?}");
    assert_eq!(loaded.kernel.totals().endpoints, 10_000);
}
