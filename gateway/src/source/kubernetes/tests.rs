//! Message by message: what becomes an event, and when.

use super::{
    super::{Extra, ServiceCidrs},
    gather::Gatherer,
    watch::{Item, Kind, Message, Refusal, What},
};
use crate::model::{Event, ObjectName, Service, ServiceKind};

const EXTRA: Extra = Extra { service_cidrs: ServiceCidrs::Wanted, pods: false };
const REQUIRED: Extra = Extra { service_cidrs: ServiceCidrs::Required, pods: false };

fn key(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn object(name: &str) -> What {
    let service = Service {
        name: key(name),
        kind: ServiceKind::Headless,
        ports: vec![],
        publish_not_ready: false,
        affinity: None,
        internal_local: false,
        external_ips: vec![],
        load_balancer_ips: vec![],
    };
    What::Object { key: key(name), item: Some(Item::Service(service)), problems: vec![] }
}

fn unusable(name: &str) -> What {
    What::Object { key: key(name), item: None, problems: vec![format!("{name} is bad")] }
}

fn tell(gatherer: &mut Gatherer, kind: Kind, whats: Vec<What>) -> Vec<String> {
    let events = gatherer.take(whats.into_iter().map(|what| Message { kind, what }));
    let name = |event: &Event| match event {
        Event::Snapshot(objects) => {
            let names: Vec<_> = objects.services.keys().map(|n| &*n.name).collect();
            format!("snapshot {}", names.join(" "))
        }
        Event::Service(service) => format!("+{}", service.name.name),
        Event::ServiceGone(name) => format!("-{}", name.name),
        Event::ServiceCidrs(cidrs) => format!("{} cidrs", cidrs.len()),
        other => panic!("{other:?}"),
    };
    events.iter().map(name).collect()
}

/// A gatherer that has told the snapshot of these Services.
fn synced(services: &[&str]) -> Gatherer {
    let mut gatherer = Gatherer::new(EXTRA);
    for kind in Kind::wanted(EXTRA).filter(|kind| *kind != Kind::Services) {
        assert_eq!(tell(&mut gatherer, kind, vec![What::ListBegins, What::Listed]), Vec::<String>::new());
    }
    let mut whats = vec![What::ListBegins];
    whats.extend(services.iter().map(|name| object(name)));
    assert_eq!(
        tell(&mut gatherer, Kind::Services, whats),
        Vec::<String>::new(),
        "a list that is not complete says nothing"
    );
    let snapshot = tell(&mut gatherer, Kind::Services, vec![What::Listed]);
    assert_eq!(snapshot, [format!("snapshot {}", services.join(" "))]);
    gatherer
}

#[test]
fn changes_while_other_kinds_are_still_listed_are_in_the_snapshot() {
    let mut gatherer = Gatherer::new(EXTRA);
    let services = vec![What::ListBegins, object("a"), object("b"), What::Listed, What::Gone(key("a")), object("c")];
    assert_eq!(tell(&mut gatherer, Kind::Services, services), Vec::<String>::new());
    for kind in [Kind::Slices, Kind::Namespaces, Kind::Nodes] {
        assert_eq!(tell(&mut gatherer, kind, vec![What::ListBegins, What::Listed]), Vec::<String>::new());
    }
    assert_eq!(tell(&mut gatherer, Kind::Cidrs, vec![failed("403", Some(Refusal::Forbidden))]), ["snapshot b c"]);
}

fn failed(error: &str, refusal: Option<Refusal>) -> What {
    What::Failed { error: error.to_owned(), refusal }
}

fn cidrs(name: &str) -> What {
    let cidrs = vec!["10.1.0.0/16".parse().expect("a prefix")];
    What::Object { key: ObjectName::new("", name), item: Some(Item::Cidrs(cidrs)), problems: vec![] }
}

/// A server that has just started refuses what it grants a moment later, and has no service CIDRs yet.
#[test]
fn required_service_cidrs_are_waited_for_and_told() {
    let mut gatherer = Gatherer::new(REQUIRED);
    for kind in Kind::wanted(REQUIRED).filter(|kind| *kind != Kind::Cidrs) {
        assert_eq!(tell(&mut gatherer, kind, vec![failed("403", Some(Refusal::Forbidden))]), Vec::<String>::new());
        assert_eq!(tell(&mut gatherer, kind, vec![What::ListBegins, What::Listed]), Vec::<String>::new());
        tell(&mut gatherer, kind, vec![What::Answered]);
    }
    let mut told = |whats| {
        let events = tell(&mut gatherer, Kind::Cidrs, whats);
        (events, gatherer.news().map(|(_, problems)| problems).unwrap_or_default())
    };
    let (events, problems) = told(vec![failed("403", Some(Refusal::Forbidden))]);
    assert_eq!((events.len(), problems.len()), (0, 1), "{problems:?}");
    assert!(problems[0].starts_with("servicecidrs: 403; allow list and watch of servicecidrs"), "{problems:?}");
    let (events, problems) = told(vec![What::Answered, What::ListBegins, What::Listed, What::Answered]);
    assert_eq!((events.len(), problems.len()), (0, 1), "{problems:?}");
    assert!(problems[0].contains("none yet"), "{problems:?}");
    assert_eq!(told(vec![cidrs("kubernetes")]), (vec!["snapshot ".to_owned()], vec![]));
}

#[test]
fn a_server_without_service_cidrs_is_not_waited_for() {
    let mut gatherer = Gatherer::new(REQUIRED);
    for kind in Kind::wanted(REQUIRED).filter(|kind| *kind != Kind::Cidrs) {
        tell(&mut gatherer, kind, vec![What::ListBegins, What::Listed]);
    }
    assert_eq!(tell(&mut gatherer, Kind::Cidrs, vec![failed("404", Some(Refusal::Unknown))]), ["snapshot "]);
}

#[test]
fn a_new_list_tells_what_is_gone_first_and_only_when_it_is_complete() {
    let mut gatherer = synced(&["a", "b", "c"]);
    let begun = vec![What::ListBegins, object("b"), object("d")];
    assert_eq!(tell(&mut gatherer, Kind::Services, begun), Vec::<String>::new());
    assert_eq!(tell(&mut gatherer, Kind::Services, vec![What::Listed]), ["-a", "-c", "+b", "+d"]);
}

#[test]
fn a_list_that_is_broken_off_is_forgotten() {
    let mut gatherer = synced(&["a", "b"]);
    let broken = vec![What::ListBegins, object("x"), failed("reset", None)];
    assert_eq!(tell(&mut gatherer, Kind::Services, broken), Vec::<String>::new());
    let again = vec![What::ListBegins, object("a"), object("b"), What::Listed];
    assert_eq!(tell(&mut gatherer, Kind::Services, again), ["+a", "+b"]);
}

#[test]
fn an_object_that_becomes_unusable_is_gone_and_its_problem_goes_with_it() {
    let mut gatherer = synced(&["a"]);
    gatherer.news();
    assert_eq!(tell(&mut gatherer, Kind::Services, vec![unusable("a"), unusable("b")]), ["-a"]);
    assert_eq!(gatherer.news().map(|(_, problems)| problems), Some(vec!["a is bad".to_owned(), "b is bad".to_owned()]));
    assert_eq!(tell(&mut gatherer, Kind::Services, vec![What::Gone(key("b")), object("a")]), ["+a"]);
    assert_eq!(gatherer.news().map(|(_, problems)| problems), Some(vec![]));
    assert_eq!(gatherer.news(), None, "what is as before is not told again");
}

#[test]
fn connected_is_what_services_and_slices_say() {
    let mut gatherer = synced(&[]);
    let answered = |gatherer: &mut Gatherer, kind| {
        tell(gatherer, kind, vec![What::Answered]);
        gatherer.news().map(|(connected, _)| connected)
    };
    assert_eq!(answered(&mut gatherer, Kind::Services), Some(false));
    assert_eq!(answered(&mut gatherer, Kind::Slices), Some(true));
    let failed = || vec![failed("refused", None)];
    tell(&mut gatherer, Kind::Nodes, failed());
    assert_eq!(gatherer.news(), Some((true, vec!["nodes: refused; it is tried again".to_owned()])));
    tell(&mut gatherer, Kind::Slices, failed());
    assert_eq!(gatherer.news().map(|(connected, problems)| (connected, problems.len())), Some((false, 2)));
}
