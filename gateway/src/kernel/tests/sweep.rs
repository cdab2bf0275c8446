//! Promises about the collection of dead flows.

use std::sync::Arc;

use bytemuck::Zeroable as _;
use gateway_common::maps::{Flow, FlowKey, flow, tcp};

use super::{Row, endpoint, name, net::skip, plan, settings};
use crate::{
    kernel::{Kernel, Mode, Timeouts},
    model::Protocol,
};

type Key = FlowKey<[u8; 4]>;
type Record = Flow<[u8; 4]>;

const TIMEOUTS: Timeouts =
    Timeouts { tcp_syn: 60, tcp_established: 7440, tcp_fin: 50, tcp_rst: 10, udp: 120, icmp: 30 };

/// A kernel room whose flow table the test fills.
struct Table {
    row: Row,
    kernel: Arc<Kernel>,
    hz: u64,
    now: u64,
    generation: u32,
}

impl Table {
    fn new() -> Self {
        let row = Row::new();
        let kernel = Arc::new(row.load(super::Settings { timeouts: TIMEOUTS, ..settings(Mode::Tc) }).unwrap());
        let web = plan("10.1.0.1", 80, Protocol::Tcp, &[endpoint("10.90.3.2", 80)]);
        kernel.apply(&name("web"), Some(&web)).unwrap();
        let clock = kernel.shared.clock().unwrap();
        let generation = kernel.shared.state().maps().endpoints.get(&1).unwrap().unwrap().generation;
        Self { row, kernel, hz: clock.hz.into(), now: clock.now, generation }
    }

    /// Both records of a flow, so many seconds idle each way.
    fn flow(
        &self,
        port: u16,
        proto: u8,
        (out_tcp, out_idle): (u8, u64),
        (back_tcp, back_idle): (u8, u64),
    ) -> (Key, Key) {
        let (client, vip, server, own) = ([10, 90, 1, 100], [10, 1, 0, 1], [10, 90, 3, 2], [10, 90, 1, 1]);
        let (sport, snat, eighty) = (port.to_be_bytes(), (port + 10_000).to_be_bytes(), 80u16.to_be_bytes());
        let key = Key::new(client, vip, sport, eighty, proto);
        let common = Record { endpoint: 1, generation: self.generation, service: 1, ..Record::zeroed() };
        let out = Record {
            flags: flow::FORWARD,
            tcp: out_tcp,
            seen: self.now.wrapping_sub(out_idle * self.hz),
            new_src: own,
            new_dst: server,
            new_sport: snat,
            new_dport: eighty,
            ..common
        };
        let back = Record {
            flags: flow::REVERSE,
            tcp: back_tcp,
            seen: self.now.wrapping_sub(back_idle * self.hz),
            new_src: vip,
            new_dst: client,
            new_sport: eighty,
            new_dport: sport,
            ..common
        };
        let twin = out.twin(proto);
        assert_eq!(back.twin(proto), key, "the records point at each other");
        let flows = &self.kernel.shared.flow_maps().v4;
        flows.put(&key, &out).unwrap();
        flows.put(&twin, &back).unwrap();
        (key, twin)
    }

    fn has(&self, (key, twin): (Key, Key)) -> (bool, bool) {
        let flows = &self.kernel.shared.flow_maps().v4;
        (flows.get(&key).unwrap().is_some(), flows.get(&twin).unwrap().is_some())
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let kernel = Arc::clone(&self.kernel);
        self.row.node.run(move || kernel.detach().unwrap());
    }
}

#[test]
fn each_state_has_its_timeout_and_either_direction_keeps_a_flow_alive() {
    if skip() {
        return;
    }
    let table = Table::new();
    const OPEN: u8 = tcp::SYN | tcp::ACK;
    const OVER: u8 = OPEN | tcp::FIN;
    let cases = [
        // What, protocol, forward (flags, idle), reverse (flags, idle), lives.
        ("syn", 6, (tcp::SYN, 55), (0, 55), true),
        ("syn over", 6, (tcp::SYN, 65), (0, 65), false),
        ("established", 6, (OPEN, 7000), (OPEN, 7000), true),
        ("established over", 6, (OPEN, 7500), (OPEN, 7500), false),
        ("downloading only", 6, (OPEN, 9000), (OPEN, 5), true),
        ("uploading only", 6, (OPEN, 5), (OPEN, 9000), true),
        ("half closed", 6, (OVER, 600), (OPEN, 600), true),
        ("closed", 6, (OVER, 45), (OVER, 45), true),
        ("closed over", 6, (OVER, 55), (OVER, 55), false),
        ("reset by the server", 6, (OPEN, 15), (OPEN | tcp::RST, 15), false),
        ("reset just now", 6, (OPEN | tcp::RST, 5), (OPEN, 15), true),
        ("udp", 17, (0, 100), (0, 100), true),
        ("udp over", 17, (0, 130), (0, 130), false),
        ("udp one way", 17, (0, 5), (0, 900), true),
        ("never idle", 17, (0, 0), (0, 0), true),
    ];
    let flows: Vec<_> =
        (1000u16..).zip(cases).map(|(port, (_, proto, out, back, _))| table.flow(port, proto, out, back)).collect();
    let ended = table.kernel.sweep().unwrap();
    for (case, keys) in cases.iter().zip(&flows) {
        assert_eq!(table.has(*keys), (case.4, case.4), "{}", case.0);
    }
    assert_eq!(ended, cases.iter().filter(|c| !c.4).count(), "each flow is counted once");
    assert_eq!(table.kernel.flow_count(), cases.iter().filter(|c| c.4).count());
}

#[test]
fn a_record_without_its_twin_goes_when_it_is_idle_and_stays_when_it_is_not() {
    if skip() {
        return;
    }
    let table = Table::new();
    let flows = table.kernel.shared.flow_maps().v4.clone();
    let idle = table.flow(1, 17, (0, 130), (0, 130));
    let busy = table.flow(2, 17, (0, 130), (0, 1));
    let only_forward = table.flow(3, 17, (0, 1), (0, 1));
    flows.remove(&idle.0).unwrap();
    flows.remove(&busy.0).unwrap();
    flows.remove(&only_forward.1).unwrap();
    table.kernel.sweep().unwrap();
    assert_eq!(table.has(idle), (false, false));
    assert_eq!(table.has(busy), (false, true), "the datapath rebuilds the other half");
    assert_eq!(table.has(only_forward), (true, false));
}

#[test]
fn idle_flows_of_a_gone_endpoint_do_not_wait_for_their_timeout() {
    if skip() {
        return;
    }
    let table = Table::new();
    const OPEN: u8 = tcp::SYN | tcp::ACK;
    let idle = table.flow(1, 6, (OPEN, 20), (OPEN, 20));
    let fresh = table.flow(2, 6, (OPEN, 2), (OPEN, 2));
    table.kernel.sweep().unwrap();
    assert_eq!((table.has(idle), table.has(fresh)), ((true, true), (true, true)));
    table.kernel.apply(&name("web"), None).unwrap();
    table.kernel.sweep().unwrap();
    assert_eq!(table.has(idle), (false, false));
    assert_eq!(table.has(fresh), (true, true), "its next packet gets a reset, from the record");
}

#[test]
fn clients_of_living_flows_have_next_hops_and_lose_them_with_their_flows() {
    if skip() {
        return;
    }
    let table = Table::new();
    let flow = table.flow(1, 17, (0, 1), (0, 1));
    let kernel = Arc::clone(&table.kernel);
    table.row.node.run(move || kernel.sweep().unwrap());
    let client = [10, 90, 1, 100];
    let hop = table.kernel.shared.state().client_hop(client.into()).expect("the client has a next hop");
    let value = table.kernel.shared.state().next_hops().get(&hop).unwrap().unwrap();
    assert_eq!(value.via[..4], client);

    let flows = &table.kernel.shared.flow_maps().v4;
    flows.remove(&flow.0).unwrap();
    flows.remove(&flow.1).unwrap();
    table.kernel.sweep().unwrap();
    assert_eq!(table.kernel.shared.state().client_hop(client.into()), None);
}

#[test]
fn ipv6_flows_are_swept_and_listed_like_the_others() {
    if skip() {
        return;
    }
    let row = Row::dual();
    let kernel = Arc::new(row.load(super::Settings { timeouts: TIMEOUTS, ..super::dual_settings(Mode::Tc) }).unwrap());
    let inside = Arc::clone(&kernel);
    row.node.run(move || {
        let web = plan("fd00:10::1", 80, Protocol::Udp, &[endpoint("fd90:3::2", 80)]);
        inside.apply(&name("web"), Some(&web)).unwrap();
    });
    let clock = kernel.shared.clock().unwrap();
    let generation = kernel.shared.state().maps().endpoints.get(&1).unwrap().unwrap().generation;
    let six = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    let (client, vip) = (six("fd90:1::100"), six("fd00:10::1"));
    let flows = &kernel.shared.flow_maps().v6;
    let put = |port: u16, proto: u8, idle: u64| {
        let (sport, eighty) = (port.to_be_bytes(), 80u16.to_be_bytes());
        let key = FlowKey::new(client, vip, sport, eighty, proto);
        let seen = clock.now.wrapping_sub(idle * u64::from(clock.hz));
        let common = Flow::<[u8; 16]> { endpoint: 1, generation, service: 1, seen, ..Flow::zeroed() };
        let out = Flow {
            flags: flow::FORWARD,
            new_src: six("fd90:1::1"),
            new_dst: six("fd90:3::2"),
            new_sport: sport,
            new_dport: eighty,
            ..common
        };
        let back =
            Flow { flags: flow::REVERSE, new_src: vip, new_dst: client, new_sport: eighty, new_dport: sport, ..common };
        flows.put(&key, &out).unwrap();
        flows.put(&out.twin(proto), &back).unwrap();
        key
    };
    let (lives, over, ping) = (put(1, 17, 5), put(2, 17, 130), put(3, 58, 40));
    let sweeping = Arc::clone(&kernel);
    assert_eq!(row.node.run(move || sweeping.sweep().unwrap()), 2);
    let there = |key| flows.get(&key).unwrap().is_some();
    assert_eq!((there(lives), there(over), there(ping)), (true, false, false));
    let list = kernel.flows(10).unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!((list[0].client.as_str(), list[0].endpoint.as_str()), ("[fd90:1::100]:1", "[fd90:3::2]:80"));
    let hop = kernel.shared.state().client_hop(client.into()).expect("the client has a next hop");
    assert_eq!(kernel.shared.state().next_hops().get(&hop).unwrap().unwrap().via, client);
    row.node.run(move || kernel.detach().unwrap());
}

#[test]
fn a_table_of_many_flows_is_swept_in_a_moment() {
    if skip() {
        return;
    }
    let table = Table::new();
    for port in 0..2000 {
        table.flow(port, 17, (0, 1), (0, 1));
        table.flow(port, 6, (tcp::RST, 200), (0, 200));
    }
    let start = std::time::Instant::now();
    assert_eq!(table.kernel.sweep().unwrap(), 2000);
    let dead = start.elapsed();
    let start = std::time::Instant::now();
    assert_eq!(table.kernel.sweep().unwrap(), 0);
    println!("2,000 dead flows among 2,000 living ones: {dead:?}; the living ones alone: {:?}", start.elapsed());
    assert_eq!(table.kernel.flow_count(), 2000);
    assert_eq!(table.kernel.flows(10).unwrap().len(), 10);
}
