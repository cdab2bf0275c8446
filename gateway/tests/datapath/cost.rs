//! What a packet costs, against a program that does nothing.

use crate::{
    cast::{V4, port},
    packets::{ACK, Ends, tcp, with_ttl},
    world::{FORWARD, Tier, World, in_turn, skip},
};

/// The median of several batches. The frame is rewritten in place and its TTL goes down with each run, so a batch is short.
fn cost(world: &mut World, name: &str, frame: &[u8]) -> u64 {
    let mut runs: Vec<u64> = (0..61).map(|_| world.run_program(name, frame, 250).2).collect();
    runs.sort_unstable();
    runs[runs.len() / 2]
}

#[test]
fn a_packet_that_is_not_ours_costs_little_and_a_known_flow_not_much_more() {
    if skip() {
        return;
    }
    in_turn(|world| {
        world.begin(Tier::Xdp, false, (0, 0));
        world.uplink(&tcp(Ends::new(V4.client, 4000, V4.web, port::HTTP), ACK, b"x"));
        let (key, mut flow) = world.records(FORWARD)[0];
        // A record that translates a packet into itself finds it again on the next run.
        (flow.new_src, flow.new_dst, flow.new_sport, flow.new_dport) = (key.src, key.dst, key.sport, key.dport);
        (flow.l3_delta, flow.l4_delta, flow.port_delta) = (0, 0, 0);
        world.set_flow(&key, &flow);
        let frame = with_ttl(tcp(Ends::new(V4.client, 4000, V4.web, port::HTTP), ACK, b"x"), 255);
        let empty = cost(world, "empty", &frame);
        let other = cost(world, "xdp_uplink", &tcp(Ends::new(V4.client, 4000, V4.away, 80), ACK, b"x"));
        let known = cost(world, "xdp_uplink", &frame);
        println!(
            "empty {empty} ns, not ours {other} ns, known flow {known} ns, {:.1} times",
            known as f64 / empty as f64
        );
        let (jiffies, ns) = world.clock();
        assert!(jiffies > 0 && ns > 0, "the clocks that the agent calibrates by");
        assert!(known < empty * 8, "known flow {known} ns, empty program {empty} ns");
    });
}
