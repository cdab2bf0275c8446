//! What a batch of events touches, and nothing more.

use proptest::prelude::*;

use super::*;

fn service(name: &str, vip: Option<&str>) -> Service {
    Service {
        name: ObjectName::new("shop", name),
        kind: ServiceKind::ClusterIp(vip.map(|v| v.parse().unwrap()).into_iter().collect()),
        ports: vec![ServicePort { name: shared(""), port: 80, protocol: Protocol::Tcp }],
        publish_not_ready: false,
        affinity: None,
        internal_local: false,
        external_ips: vec![],
        load_balancer_ips: vec![],
    }
}

fn slice(name: &str, service: &str, addresses: &[u8], legacy: bool) -> Slice {
    Slice {
        name: ObjectName::new("shop", name),
        service: service.into(),
        legacy,
        ports: vec![SlicePort { name: shared(""), port: Some(80), protocol: Protocol::Tcp }],
        endpoints: addresses
            .iter()
            .map(|last| SliceEndpoint {
                address: IpAddr::from([10, 42, 0, *last]),
                ready: true,
                serving: true,
                terminating: false,
                hostname: None,
                node: None,
                hints: None,
            })
            .collect(),
    }
}

fn names(list: &[&str]) -> BTreeSet<ObjectName> {
    list.iter().map(|name| ObjectName::new("shop", *name)).collect()
}

fn snapshot(services: &[Service], slices: &[Slice]) -> Event {
    let mut objects = Objects::default();
    services.iter().for_each(|s| objects.insert_service(s.clone()));
    slices.iter().for_each(|s| objects.insert_slice(s.clone()));
    Event::Snapshot(Box::new(objects))
}

#[test]
fn a_slice_that_changes_its_service_touches_both() {
    let mut cluster = Cluster::default();
    cluster.apply([
        Event::Service(service("a", None)),
        Event::Service(service("b", None)),
        Event::Slice(slice("s", "a", &[1], false)),
    ]);
    let dirty = cluster.apply([Event::Slice(slice("s", "b", &[1], false))]);
    assert_eq!(dirty.services, names(&["a", "b"]));
    assert_eq!(cluster.slices(&ObjectName::new("shop", "a")).count(), 0);
    assert_eq!(cluster.slices(&ObjectName::new("shop", "b")).count(), 1);
}

#[test]
fn what_does_not_change_touches_nothing() {
    let mut cluster = Cluster::default();
    let (web, pods) = (service("web", Some("10.1.0.1")), slice("s", "web", &[1, 2], false));
    assert_eq!(
        cluster.apply([snapshot(std::slice::from_ref(&web), std::slice::from_ref(&pods))]).services,
        names(&["web"])
    );
    let again = [
        snapshot(std::slice::from_ref(&web), std::slice::from_ref(&pods)),
        Event::Service(web),
        Event::Slice(pods),
        Event::ServiceGone(ObjectName::new("shop", "unknown")),
        Event::SliceGone(ObjectName::new("shop", "unknown")),
        Event::NamespaceGone("unknown".into()),
    ];
    assert_eq!(cluster.apply(again), Dirty::default());
}

#[test]
fn a_snapshot_touches_only_the_difference() {
    let mut cluster = Cluster::default();
    let (a, b, c) = (service("a", Some("10.1.0.1")), service("b", Some("10.1.0.2")), service("c", Some("10.1.0.3")));
    cluster
        .apply([snapshot(&[a.clone(), b, c.clone()], &[slice("a1", "a", &[1], false), slice("c1", "c", &[3], false)])]);
    let d = service("d", Some("10.1.0.4"));
    let dirty = cluster.apply([snapshot(&[a, c, d], &[slice("a1", "a", &[1], false), slice("c1", "c", &[4], false)])]);
    assert_eq!(dirty.services, names(&["b", "c", "d"]));
    assert!(!cluster.objects.services.contains_key(&ObjectName::new("shop", "b")));
}

#[test]
fn endpoints_objects_count_only_without_a_real_slice() {
    let mut cluster = Cluster::default();
    let web = ObjectName::new("shop", "web");
    cluster.apply([Event::Slice(slice("endpoints/web", "web", &[1], true))]);
    assert_eq!(cluster.slices(&web).map(|s| s.legacy).collect::<Vec<_>>(), [true]);
    cluster.apply([Event::Slice(slice("web-x", "web", &[2], false))]);
    assert_eq!(cluster.slices(&web).map(|s| s.legacy).collect::<Vec<_>>(), [false]);
    cluster.apply([Event::SliceGone(ObjectName::new("shop", "web-x"))]);
    assert_eq!(cluster.slices(&web).map(|s| s.legacy).collect::<Vec<_>>(), [true]);
}

#[test]
fn an_address_has_one_owner_and_changes_hands_at_once() {
    let mut cluster = Cluster::default();
    let vip = "10.1.0.9".parse().unwrap();
    cluster.apply([Event::Service(service("b", Some("10.1.0.9")))]);
    let dirty = cluster.apply([Event::Service(service("a", Some("10.1.0.9")))]);
    assert_eq!(dirty.services, names(&["a", "b"]), "the one that had it is planned anew");
    assert_eq!(cluster.owner(vip), Some(&ObjectName::new("shop", "a")));
    let dirty = cluster.apply([Event::ServiceGone(ObjectName::new("shop", "a"))]);
    assert_eq!(dirty.services, names(&["a", "b"]), "the one that gets it back is planned anew");
    assert_eq!(cluster.owner(vip), Some(&ObjectName::new("shop", "b")));
    cluster.apply([Event::ServiceGone(ObjectName::new("shop", "b"))]);
    assert_eq!(cluster.owner(vip), None);
}

#[test]
fn cidrs_and_namespaces_are_told_when_they_change() {
    let mut cluster = Cluster::default();
    let cidrs = vec!["10.1.0.0/16".parse().unwrap()];
    let dirty = cluster.apply([Event::Namespace("shop".into()), Event::ServiceCidrs(cidrs.clone())]);
    assert!(dirty.cidrs);
    assert_eq!(dirty.namespaces, BTreeSet::from(["shop".to_owned()]));
    let dirty = cluster.apply([Event::ServiceCidrs(cidrs), Event::NamespaceGone("shop".into())]);
    assert!(!dirty.cidrs);
    assert_eq!(dirty.namespaces, BTreeSet::from(["shop".to_owned()]));
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<u8>),
    Slice(u8, u8, u8),
    ServiceGone(u8),
    SliceGone(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..4u8, prop::option::of(0..3u8)).prop_map(|(n, v)| Step::Service(n, v)),
        (0..5u8, 0..4u8, 0..3u8).prop_map(|(n, s, e)| Step::Slice(n, s, e)),
        (0..4u8).prop_map(Step::ServiceGone),
        (0..5u8).prop_map(Step::SliceGone),
    ];
    prop::collection::vec(step, 0..40)
}

fn event(step: &Step) -> Event {
    let name = |n: u8| ObjectName::new("shop", format!("x{n}"));
    match step {
        Step::Service(n, vip) => {
            Event::Service(service(&format!("x{n}"), vip.map(|v| format!("10.1.0.{v}")).as_deref()))
        }
        Step::Slice(n, s, e) => Event::Slice(slice(&format!("x{n}"), &format!("x{s}"), &[*e], *n == 4)),
        Step::ServiceGone(n) => Event::ServiceGone(name(*n)),
        Step::SliceGone(n) => Event::SliceGone(name(*n)),
    }
}

proptest! {
    /// The index after any history is the index of a cluster that was only ever told the end of it.
    #[test]
    fn the_index_depends_on_the_state_and_not_on_the_way(before in steps(), after in steps()) {
        let (mut walked, mut told) = (Cluster::default(), Cluster::default());
        walked.apply(before.iter().map(event));
        let start = walked.objects.clone();
        walked.apply(after.iter().map(event));
        told.apply([Event::Snapshot(Box::new(walked.objects.clone()))]);
        prop_assert_eq!(&walked.slices_of, &told.slices_of);
        for v in 0..3u8 {
            let vip = IpAddr::from([10, 1, 0, v]);
            prop_assert_eq!(walked.owner(vip), told.owner(vip));
        }
        // The difference, applied, leads to the same state as the events did.
        let mut stepped = Cluster::default();
        stepped.apply([Event::Snapshot(Box::new(start.clone()))]);
        stepped.apply(start.difference(&walked.objects));
        prop_assert_eq!(&stepped.objects, &walked.objects);
    }
}
