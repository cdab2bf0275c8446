//! Promises about next hops.

use super::{Row, net::skip};
use crate::kernel::netlink::Netlink;

#[test]
fn a_neighbour_is_resolved_by_asking() {
    if skip() {
        return;
    }
    let row = Row::new();
    row.node.run(|| {
        let mut netlink = Netlink::open().unwrap();
        let route = netlink.route("10.90.3.2".parse().unwrap()).unwrap().unwrap();
        println!("{route:?}");
        netlink.resolve(route.oif, route.via).unwrap();
        println!("{:?}", netlink.neighbour(route.oif, route.via));
        std::thread::sleep(std::time::Duration::from_millis(300));
        println!("{:?}", netlink.neighbour(route.oif, route.via));
        println!("{:?}", netlink.neighbours());
    });
    println!("{}", row.node.command("ip", "neigh show"));
}
