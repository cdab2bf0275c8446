//! Promises about what is attached, and that nothing stays.

use gateway_common::maps::Vlan;
use std::{os::unix::fs::MetadataExt as _, process::Command, sync::Arc};

use super::{
    Row, endpoint, name,
    net::{eventually, no_vlans, skip},
    plan, settings,
};
use crate::{
    kernel::{
        Attachment, Kernel, KernelError, Mode, Settings,
        attach::{Around, Role},
        netlink::{Kind, Link},
        state::State,
        vlan::Below,
    },
    model::Protocol,
};

const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";

fn attached(kernel: &Arc<Kernel>, row: &Row) -> Result<Vec<Attachment>, KernelError> {
    let kernel = Arc::clone(kernel);
    row.node.run(move || kernel.attach())
}

fn drop_inside(kernel: Arc<Kernel>, row: &Row) {
    row.node.run(move || drop(kernel));
}

#[test]
fn detaching_leaves_no_program_and_no_sysctl() {
    if skip() {
        return;
    }
    let row = Row::new();
    row.node.set_sysctl(RESERVED, "8080,30000-30010");
    for (mode, xdp) in [(Mode::Native, Some("native")), (Mode::Generic, Some("generic")), (Mode::Auto, None)] {
        let kernel = Arc::new(row.load(settings(mode)).unwrap());
        assert_eq!(row.node.sysctl(RESERVED), "8080,20000-30010", "reserved ranges are joined");
        assert_eq!(row.node.sysctl("net.ipv4.conf.up0.forwarding"), "0", "the node does not become a router");
        let list = attached(&kernel, &row).unwrap();
        assert_eq!(list, [Attachment { interface: "up0".into(), role: "uplink", xdp, tc: true }]);
        let links = row.node.command("ip", "-d link show dev up0");
        assert_eq!(links.contains("xdp"), xdp.is_some(), "{links}");
        drop_inside(kernel, &row);
        let links = row.node.command("ip", "-d link show dev up0");
        assert!(!links.contains("xdp"), "{links}");
        assert_eq!(row.node.sysctl(RESERVED), "8080,30000-30010");
        assert_eq!(row.node.sysctl("net.ipv4.conf.lo.forwarding"), "0");
    }
}

/// A router advertisement from the client's side, if it can send one yet: a default route for half an hour (RFC 4861 section 4.2).
fn advertise(row: &Row) {
    row.client.run(|| {
        let address = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, 0);
        let socket =
            socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::RAW, Some(socket2::Protocol::ICMPV6)).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.set_multicast_hops_v6(255).unwrap();
        let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        drop(socket.send_to(&message, &address.into()));
    });
}

#[test]
fn a_default_route_from_a_router_advertisement_outlives_the_sysctls() {
    if skip() {
        return;
    }
    let row = Row::dual();
    let default = || row.node.command("ip", "-6 route show default").contains("proto ra");
    // Heard from the moment when the sender's link-local address is its own.
    eventually("the node has a default route", || {
        advertise(&row);
        default()
    });
    let kernel = Arc::new(row.load(super::dual_settings(Mode::Tc)).unwrap());
    assert_eq!(row.node.sysctl("net.ipv6.conf.lo.forwarding"), "1");
    assert_eq!(row.node.sysctl("net.ipv6.conf.up0.forwarding"), "0", "the node does not become a router");
    assert_eq!(row.node.sysctl("net.ipv6.conf.up0.accept_ra"), "1", "as it was");
    assert!(default(), "the kernel deletes such routes with that sysctl, if nobody stops it");
    drop_inside(kernel, &row);
    assert_eq!(row.node.sysctl("net.ipv6.conf.lo.forwarding"), "0");
    assert!(default());
}

#[test]
fn a_range_left_by_a_killed_agent_is_not_taken_for_the_hosts_own() {
    if skip() {
        return;
    }
    let row = Row::new();
    row.node.set_sysctl(RESERVED, "8080");
    let killed = row.load(settings(Mode::Tc)).unwrap();
    // As SIGKILL would: nothing is put back.
    std::mem::forget(killed);
    assert_eq!(row.node.sysctl(RESERVED), "8080,20000-29999");
    let mut other = settings(Mode::Tc);
    other.snat_ports = 40000..=40999;
    let kernel = Arc::new(row.load(other).unwrap());
    assert_eq!(row.node.sysctl(RESERVED), "8080,40000-40999");
    drop_inside(kernel, &row);
    assert_eq!(row.node.sysctl(RESERVED), "8080");
}

#[test]
fn notes_about_namespaces_that_are_gone_are_taken_away() {
    if skip() {
        return;
    }
    let note = |row: &Row| row.node.run(|| std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino());
    let row = Row::new();
    let path = format!("/run/gateway/sysctl.{}", note(&row));
    std::mem::forget(row.load(settings(Mode::Tc)).unwrap());
    assert!(std::path::Path::new(&path).exists());
    drop(row);
    let row = Row::new();
    let kernel = Arc::new(row.load(settings(Mode::Tc)).unwrap());
    // Its number may have been given to the new one.
    assert!(!std::path::Path::new(&path).exists() || path.ends_with(&note(&row).to_string()));
    drop_inside(kernel, &row);
}

#[test]
fn an_interface_that_does_not_exist_is_named_with_those_that_do() {
    if skip() {
        return;
    }
    let row = Row::new();
    let mut wrong = settings(Mode::Tc);
    wrong.uplinks = vec!["eth7".into()];
    let error = row.load(wrong).unwrap_err().to_string();
    assert_eq!(error, "uplinks: interface eth7 does not exist; there are: down0, up0");
    let mut wrong = settings(Mode::Tc);
    wrong.cluster_interfaces = vec!["lo".into()];
    assert!(matches!(row.load(wrong), Err(KernelError::Loopback { .. })));
}

#[test]
fn uplinks_default_to_the_interfaces_of_the_default_routes() {
    if skip() {
        return;
    }
    let row = Row::new();
    let mut open = settings(Mode::Tc);
    open.uplinks = vec![];
    assert!(matches!(row.load(open.clone()), Err(KernelError::NoUplink)));
    row.node.ip("route add default via 10.90.1.100");
    let kernel = Arc::new(row.load(open).unwrap());
    assert_eq!(kernel.uplinks(), ["up0"]);
    assert_eq!(kernel.uplink_addresses(), ["10.90.1.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(kernel.dns_addresses(), kernel.uplink_addresses());
    drop_inside(kernel, &row);
}

#[test]
fn an_uplink_that_cannot_take_native_xdp_is_an_error_and_nothing_stays() {
    if skip() {
        return;
    }
    let row = Row::new();
    row.node.ip("link add br0 type bridge");
    row.node.ip("addr add 10.90.5.1/24 dev br0");
    let mut wrong = settings(Mode::Native);
    wrong.uplinks = vec!["up0".into(), "br0".into()];
    let kernel = Arc::new(row.load(wrong).unwrap());
    let error = attached(&kernel, &row).unwrap_err().to_string();
    assert!(error.contains("native XDP to br0") && error.contains("datapath.mode"), "{error}");
    assert!(!row.node.command("ip", "-d link show dev up0").contains("xdp"));
    drop_inside(kernel, &row);
}

#[test]
fn a_vlan_uplink_on_a_veth_is_no_place_for_native_xdp_and_the_error_says_why() {
    if skip() {
        return;
    }
    let row = Row::new();
    if no_vlans(&row.node) {
        return;
    }
    row.node.ip("link add link up0 name up0.5 type vlan id 5");
    row.node.ip("link set up0.5 up");
    row.node.ip("addr add 10.90.5.1/24 dev up0.5");
    let of = |mode| super::Settings { uplinks: vec!["up0.5".into()], ..settings(mode) };
    let kernel = Arc::new(row.load(of(Mode::Native)).unwrap());
    let error = attached(&kernel, &row).unwrap_err().to_string();
    assert!(error.contains("native XDP to up0.5: up0 is a veth") && error.contains("datapath.mode"), "{error}");
    drop_inside(kernel, &row);
    let kernel = Arc::new(row.load(of(Mode::Auto)).unwrap());
    let list = attached(&kernel, &row).unwrap();
    assert_eq!(list, [Attachment { interface: "up0.5".into(), role: "uplink", xdp: None, tc: true }]);
    drop_inside(kernel, &row);
}

/// With a veth as the card, and another one as the VLAN on it: what the datapath is told of a card that shows its tags.
#[test]
fn xdp_for_a_vlan_is_attached_below_it_and_goes_with_the_last_one() {
    if skip() {
        return;
    }
    let row = Row::new();
    row.node.command("ethtool", "-K up0 rxvlan off");
    let kernel = Arc::new(row.load(settings(Mode::Native)).unwrap());
    let inside = Arc::clone(&kernel);
    let xdp = || row.node.command("ip", "-d link show dev up0").contains("xdp");
    let (card, vlan, key) = row.node.run(move || {
        let mut state = inside.shared.state();
        let card = Link { kind: Kind::Nic, ..state.hops.link_named("up0").unwrap().clone() };
        let vlan = Link { kind: Kind::Vlan, ..state.hops.link_named("down0").unwrap().clone() };
        let below = Below { lowest: card.clone(), vids: [[0, 5], [1, 44]] };
        let key = below.key();
        let around = Around { below: Some(below), carries_vlans: false };
        let State { attacher, ebpf, .. } = &mut *state;
        assert!(attacher.attach(ebpf, &vlan, &around, Role::Uplink).unwrap());
        assert!(attacher.takes_frames(vlan.index), "frames go out below");
        (card, vlan, key)
    });
    assert!(xdp());
    let listed = Attachment { interface: "down0".into(), role: "uplink", xdp: Some("native"), tc: true };
    assert_eq!(kernel.attachments(), std::slice::from_ref(&listed));
    let vlans = kernel.shared.state().attacher.vlans().clone();
    assert_eq!(vlans.get(&key).unwrap(), Some(Vlan { ifindex: vlan.index, role: 1 }));
    // The card becomes an uplink of its own: one program serves both.
    let inside = Arc::clone(&kernel);
    let (index, both) = (card.index, card);
    row.node.run(move || {
        let mut state = inside.shared.state();
        let State { attacher, ebpf, .. } = &mut *state;
        assert!(attacher.attach(ebpf, &both, &Around::default(), Role::Uplink).unwrap());
    });
    assert_eq!((kernel.attachments().len(), xdp()), (2, true));
    kernel.shared.state().attacher.forget(index);
    assert!(!xdp(), "the VLAN goes on in TC");
    assert_eq!(kernel.attachments(), [Attachment { xdp: None, ..listed }]);
    kernel.shared.state().attacher.forget(vlan.index);
    assert_eq!(vlans.get(&key).unwrap(), None);
    drop_inside(kernel, &row);
}

#[test]
fn a_cluster_interface_is_attached_when_an_endpoint_needs_it() {
    if skip() {
        return;
    }
    let row = Row::new();
    let kernel = Arc::new(row.load(settings(Mode::Tc)).unwrap());
    attached(&kernel, &row).unwrap();
    assert_eq!(kernel.attachments().len(), 1);
    let web = plan("10.1.0.1", 80, Protocol::Tcp, &[endpoint("10.90.3.2", 80)]);
    let inside = Arc::clone(&kernel);
    row.node.run(move || inside.apply(&name("web"), Some(&web))).unwrap();
    let list = kernel.attachments();
    assert_eq!(list.len(), 2);
    assert_eq!(list[1], Attachment { interface: "down0".into(), role: "cluster", xdp: None, tc: true });
    drop_inside(kernel, &row);
}

#[test]
fn an_uplink_that_vanishes_and_returns_is_attached_again() {
    if skip() {
        return;
    }
    let row = Row::new();
    let kernel = Arc::new(row.load(settings(Mode::Native)).unwrap());
    attached(&kernel, &row).unwrap();
    row.node.ip("link del up0");
    eventually("the uplink is gone", || kernel.attachments().is_empty());
    row.node.veth("up0", "10.90.1.1/24", &row.client, "eth0", "10.90.1.100/24");
    eventually("the uplink is back", || kernel.attachments().iter().any(|a| a.interface == "up0"));
    drop_inside(kernel, &row);
}

/// A service CIDR with the node's own addresses in it must not cut it off: they stay the node's, whenever they come, but for those that
/// are a Service's, as kube-proxy's IPVS mode has them.
#[test]
fn the_nodes_own_addresses_in_a_service_cidr_stay_its_own() {
    if skip() {
        return;
    }
    let row = Row::new();
    let cidr: ipnet::IpNet = "10.90.0.0/16".parse().unwrap();
    let kernel = Arc::new(row.load(Settings { claims: vec![cidr], ..settings(Mode::Tc) }).unwrap());
    kernel.apply(&name("ipvs"), Some(&plan("10.90.3.200", 80, Protocol::Tcp, &[]))).unwrap();
    row.node.ip("addr add 10.90.3.200/32 dev down0");
    attached(&kernel, &row).unwrap();
    let own = |list: &[&str]| -> Vec<_> { list.iter().map(|addr| (addr.parse().unwrap(), cidr)).collect() };
    assert_eq!(kernel.spared(), own(&["10.90.1.1", "10.90.3.1"]));
    let heard = |to: &'static str| {
        row.client.run(move || Command::new("ping").args(["-c1", "-W2", to]).output().unwrap().status.success())
    };
    assert!(heard("10.90.1.1") && heard("10.90.3.1"), "the node is cut off from its clients");
    assert!(!heard("10.90.3.2"), "what is nobody's there is refused");

    row.node.ip("addr add 10.90.1.9/24 dev up0");
    eventually("a new address", || kernel.spared() == own(&["10.90.1.1", "10.90.1.9", "10.90.3.1"]));
    assert!(heard("10.90.1.9"));
    kernel.apply(&name("ipvs"), None).unwrap();
    assert_eq!(kernel.spared(), own(&["10.90.1.1", "10.90.1.9", "10.90.3.1", "10.90.3.200"]));
    row.node.ip("addr del 10.90.1.9/24 dev up0");
    row.node.ip("addr del 10.90.3.200/32 dev down0");
    eventually("addresses that are gone", || kernel.spared() == own(&["10.90.1.1", "10.90.3.1"]));
    kernel.set_claims(&["10.1.0.0/16".parse().unwrap()]).unwrap();
    assert_eq!(kernel.spared(), []);
    assert!(heard("10.90.1.1"));
    drop_inside(kernel, &row);
}
