//! Promises about next hops: they follow routes, neighbours, links and addresses.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use gateway_common::maps::{Endpoint, NextHop, endpoint as endpoint_flag, nexthop};

use super::{
    Row, dual_settings, endpoint, name,
    net::{Namespace, eventually, skip},
    plan,
};
use crate::{
    kernel::{Kernel, Mode, netlink::Netlink},
    model::Protocol,
};

/// An attached kernel room with one Service of one endpoint.
struct Attached {
    row: Row,
    kernel: Arc<Kernel>,
}

impl Attached {
    fn new(row: Row, mode: Mode, to: &str) -> Self {
        let kernel = Arc::new(row.load(dual_settings(mode)).unwrap());
        let inside = Arc::clone(&kernel);
        let vip = if to.contains(':') { "fd00:10::1" } else { "10.1.0.1" };
        let web = plan(vip, 80, Protocol::Tcp, &[endpoint(to, 80)]);
        row.node.run(move || {
            inside.apply(&name("web"), Some(&web)).unwrap();
            inside.attach().unwrap();
        });
        Self { row, kernel }
    }

    /// The endpoint and where it leads.
    fn hop(&self) -> (Endpoint, NextHop) {
        let state = self.kernel.shared.state();
        let e = state.maps().endpoints.get(&1).unwrap().unwrap();
        (e, state.next_hops().get(&e.nexthop).unwrap().unwrap())
    }

    fn via(&self) -> [u8; 4] {
        self.hop().1.via[..4].try_into().unwrap()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let kernel = Arc::clone(&self.kernel);
        self.row.node.run(move || kernel.detach().unwrap());
    }
}

#[test]
fn routes_that_are_asked_for_together_are_those_that_each_alone_has() {
    if skip() {
        return;
    }
    let node = Namespace::new();
    node.ip("link add up0 type veth peer name up1");
    node.ip("link set up0 up");
    node.ip("link set up1 up");
    node.ip("address add 10.90.1.1/24 dev up0");
    node.ip("address add fd00:90:1::1/64 dev up0 nodad");
    node.ip("route add 10.1.0.0/16 via 10.90.1.2 mtu 1300");
    node.ip("route add unreachable 10.2.0.0/16");
    // A route that only the rule leads to.
    node.ip("rule add to 10.3.0.0/16 lookup 77");
    node.ip("route add 10.3.0.0/16 via 10.90.1.3 table 77");
    let addresses: Vec<IpAddr> = (0..20)
        .flat_map(|n| {
            [1, 2, 3, 90].map(|b| IpAddr::from([10, b, 1, n + 1])).into_iter().chain([
                IpAddr::from([192, 0, 2, n]),
                IpAddr::from([0xfd00, 0x90, 1, 0, 0, 0, 0, u16::from(n)]),
                IpAddr::from([0xfd00, 0x91, 1, 0, 0, 0, 0, u16::from(n)]),
            ])
        })
        .collect();
    node.run(move || {
        let mut netlink = Netlink::open().unwrap();
        let together: HashMap<_, _> = netlink.routes(&addresses).unwrap().into_iter().collect();
        assert_eq!(together.len(), addresses.len(), "every question has its answer");
        for addr in addresses {
            assert_eq!(together[&addr], netlink.route(addr).unwrap(), "{addr}");
        }
        assert_eq!(together[&IpAddr::from([10, 3, 1, 1])].unwrap().via, IpAddr::from([10, 90, 1, 3]));
        assert_eq!(together[&IpAddr::from([10, 2, 1, 1])], None);
    });
}

const RESOLVED: u16 = nexthop::RESOLVED;

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn an_endpoint_on_the_link_has_its_own_mac_and_follows_it() {
    if skip() {
        return;
    }
    let row = Row::new();
    row.server.ip("link set eth0 address 02:00:00:00:00:0a");
    row.node.ip("link set down0 address 02:00:00:00:00:01");
    let attached = Attached::new(row, Mode::Tc, "10.90.3.2");
    let (e, hop) = attached.hop();
    assert_ne!(e.nexthop, 0);
    assert_eq!((hop.flags, hop.mtu), (RESOLVED, 1500));
    assert_eq!((hop.src, hop.dst), (mac("02:00:00:00:00:01"), mac("02:00:00:00:00:0a")));
    assert_eq!(attached.via(), [10, 90, 3, 2]);

    attached.row.server.ip("link set eth0 address 02:00:00:00:00:0b");
    attached.row.node.ip("neigh replace 10.90.3.2 lladdr 02:00:00:00:00:0b dev down0 nud reachable");
    eventually("the new MAC is in the map", || attached.hop().1.dst == mac("02:00:00:00:00:0b"));
    attached.row.node.ip("link set down0 mtu 1400");
    eventually("the new MTU is in the map", || attached.hop().1.mtu == 1400);
}

#[test]
fn an_ipv6_endpoint_is_found_by_neighbour_discovery_behind_whatever_gateway() {
    if skip() {
        return;
    }
    let row = Row::dual();
    row.server.ip("link set eth0 address 02:00:00:00:00:0a");
    row.server.ip("addr add fe80::5/64 dev eth0 nodad");
    let attached = Attached::new(row, Mode::Tc, "fd90:3::2");
    const FLAGS: u16 = RESOLVED | nexthop::V6;
    eventually("resolved", || attached.hop().1.flags == FLAGS);
    let (e, hop) = attached.hop();
    assert_eq!(e.flags, endpoint_flag::V6);
    assert_eq!(
        (IpAddr::from(hop.via), IpAddr::from(e.addr)),
        ("fd90:3::2".parse().unwrap(), "fd90:3::2".parse().unwrap())
    );
    assert_eq!((hop.dst, hop.mtu), (mac("02:00:00:00:00:0a"), 1500));

    attached.row.node.ip("-6 route add fd90:3::2/128 via fe80::5 dev down0 mtu 1400");
    let link_local: IpAddr = "fe80::5".parse().unwrap();
    eventually("the gateway", || IpAddr::from(attached.hop().1.via) == link_local);
    eventually("its MAC", || attached.hop().1.flags == FLAGS && attached.hop().1.mtu == 1400);
    attached.row.node.ip("-6 route del fd90:3::2/128");
    attached.row.node.ip("-6 route add unreachable fd90:3::2/128");
    eventually("no way where the route says so", || attached.hop().1.ifindex == 0);
    attached.row.node.ip("-6 route del unreachable fd90:3::2/128");
    eventually("the link again", || attached.hop().1.flags == FLAGS);
    attached.row.node.ip("addr add fd90:3::2/128 dev down0 nodad");
    eventually("the endpoint is local", || attached.hop().0.flags == endpoint_flag::V6 | endpoint_flag::LOCAL);
}

#[test]
fn an_endpoint_behind_a_gateway_follows_its_route() {
    if skip() {
        return;
    }
    let row = Row::new();
    row.node.ip("route add 10.244.1.0/24 via 10.90.3.2 mtu 1450");
    let attached = Attached::new(row, Mode::Tc, "10.244.1.5");
    assert_eq!((attached.via(), attached.hop().1.mtu), ([10, 90, 3, 2], 1450));

    attached.row.node.ip("route replace 10.244.1.0/24 via 10.90.3.3");
    eventually("the other gateway", || attached.via() == [10, 90, 3, 3]);
    eventually("its MAC", || attached.hop().1.flags & RESOLVED != 0);
    attached.row.node.ip("route del 10.244.1.0/24");
    eventually("no way without a route", || attached.hop().1.ifindex == 0);
    attached.row.node.ip("route add 10.244.0.0/16 via 10.90.3.2");
    eventually("a wider route counts, too", || attached.via() == [10, 90, 3, 2]);
}

#[test]
fn an_address_of_this_node_is_local_from_the_moment_it_is_one() {
    if skip() {
        return;
    }
    let attached = Attached::new(Row::new(), Mode::Tc, "10.90.3.77");
    assert_eq!(attached.hop().0.flags & endpoint_flag::LOCAL, 0);
    attached.row.node.ip("addr add 10.90.3.77/32 dev down0");
    eventually("the endpoint is local", || attached.hop().0.flags & endpoint_flag::LOCAL != 0);
    assert_ne!(attached.hop().1.flags & nexthop::LOCAL, 0);
    attached.row.node.ip("addr del 10.90.3.77/32 dev down0");
    eventually("the endpoint is not local", || attached.hop().0.flags & endpoint_flag::LOCAL == 0);
}

#[test]
fn a_link_that_goes_down_and_comes_up_takes_its_next_hops_with_it() {
    if skip() {
        return;
    }
    let attached = Attached::new(Row::new(), Mode::Tc, "10.90.3.2");
    attached.row.node.ip("link set down0 down");
    eventually("unusable", || attached.hop().1.ifindex == 0);
    attached.row.node.ip("link set down0 up");
    eventually("usable again", || attached.hop().1.flags & RESOLVED != 0);
}

#[test]
fn an_interface_that_is_made_anew_is_found_and_attached() {
    if skip() {
        return;
    }
    let attached = Attached::new(Row::new(), Mode::Tc, "10.90.3.2");
    attached.row.node.ip("link del down0");
    eventually("it is gone", || attached.kernel.attachments().len() == 1);
    attached.row.node.veth("down1", "10.90.3.1/24", &attached.row.server, "eth0", "10.90.3.2/24");
    eventually("the other one is attached", || attached.kernel.attachments().iter().any(|a| a.interface == "down1"));
    eventually("and resolved", || attached.hop().1.flags & RESOLVED != 0);
}

#[test]
fn xdp_redirects_into_veths_that_carry_it_and_never_into_bridges() {
    if skip() {
        return;
    }
    let attached = Attached::new(Row::new(), Mode::Native, "10.90.3.2");
    assert_ne!(attached.hop().1.flags & nexthop::XDP, 0);
    drop(attached);
    let row = Row::new();
    row.node.ip("link add br0 type bridge");
    row.node.ip("addr add 10.90.7.1/24 dev br0");
    row.node.ip("link set br0 up");
    let attached = Attached::new(row, Mode::Native, "10.90.7.2");
    assert_eq!(attached.hop().1.flags & nexthop::XDP, 0);
    let bridge = attached.kernel.attachments().into_iter().find(|a| a.interface == "br0").unwrap();
    assert_eq!((bridge.xdp, bridge.tc), (None, true));
}

#[test]
fn a_rule_that_chooses_another_table_is_followed() {
    if skip() {
        return;
    }
    for (to, one, other, family) in
        [("10.99.0.5", "10.90.3.2", "10.90.3.3", ""), ("fd99::5", "fd90:3::2", "fd90:3::3", "-6 ")]
    {
        let row = Row::dual();
        let subnet = if family.is_empty() { "10.99.0.0/24" } else { "fd99::/64" };
        row.node.ip(&format!("{family}route add {subnet} via {one}"));
        row.node.ip(&format!("{family}route add {subnet} via {other} table 100"));
        let attached = Attached::new(row, Mode::Tc, to);
        let leads = |via: &str| attached.hop().1.via == crate::kernel::family::sixteen(via.parse().unwrap());
        assert!(leads(one));
        attached.row.node.ip(&format!("{family}rule add to {subnet} table 100"));
        eventually("the rule's table", || leads(other));
        attached.row.node.ip(&format!("{family}rule del to {subnet} table 100"));
        eventually("the main table again", || leads(one));
    }
}
