//! ClientIP affinity: a client stays with its endpoint while its time runs, whatever its hash says by then.

use std::{
    net::IpAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use gateway_common::maps::{Service, endpoint};

use crate::{
    cast::{ep, hop, port},
    packets::{Ends, look, udp},
    world::{Action, World, everywhere},
};

const SECONDS: u32 = 1;

/// The Service's endpoints, by their index.
fn serve(world: &mut World, indices: &[u32], seconds: u32) {
    let c = world.cast;
    let all = [(ep::STICKY, c.pod, 9088, hop::POD), (ep::STICKY + 1, c.pod2, 9088, hop::POD2)];
    let some: Vec<_> = all.into_iter().filter(|(index, ..)| indices.contains(index)).collect();
    world.service(c.web, port::STICKY, 17, &some);
    let value = world.service_value(port::STICKY, some.len());
    world.set_service(c.web, port::STICKY, 17, Service { affinity: seconds, ..value });
}

/// Where a new flow of that client goes.
fn new_flow(world: &mut World, client: IpAddr, sport: u16) -> IpAddr {
    let outcome = world.uplink(&udp(Ends::new(client, sport, world.cast.web, port::STICKY), b"?"));
    assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.counted);
    assert_eq!(outcome.counted.get("flow_created"), Some(&1), "a flow of its own");
    look(&outcome.frame).expect("a good frame").dst
}

fn index_of(world: &World, pod: IpAddr) -> u32 {
    ep::STICKY + u32::from(pod == world.cast.pod2)
}

/// The clock of affinity ticks as the config says, not as a second does: the real rate, as an agent measures it.
fn measure_clock(world: &mut World) {
    let (jiffies, ns) = world.clock();
    sleep(Duration::from_millis(200));
    let (later, after) = world.clock();
    let hz = ((later - jiffies) as f64 * 1e9 / (after - ns) as f64).round() as u32;
    world.configure(|config| config.hz = hz);
}

#[test]
fn all_flows_of_a_client_go_to_one_endpoint_and_clients_spread() {
    everywhere(|world| {
        let c = world.cast;
        serve(world, &[ep::STICKY, ep::STICKY + 1], 600);
        let mut hits = [0; 2];
        for last in 1..60 {
            let client = c.neighbour(last);
            let first = new_flow(world, client, 1);
            hits[(first == c.pod2) as usize] += 1;
            for sport in 2..6 {
                assert_eq!(new_flow(world, client, sport), first);
            }
        }
        assert!(hits.iter().all(|&n| n > 10), "{hits:?}");
    });
}

#[test]
fn a_client_stays_while_its_time_runs_and_goes_where_its_hash_says_afterwards() {
    everywhere(|world| {
        let c = world.cast;
        measure_clock(world);
        let both = [ep::STICKY, ep::STICKY + 1];
        serve(world, &both, SECONDS);
        let first = new_flow(world, c.client, 1);
        let begun = Instant::now();
        let other = both[usize::from(index_of(world, first) == both[0])];
        // Its endpoint has no place among the hashes any more, and is still there.
        let kept = world.endpoint(index_of(world, first));
        serve(world, &[other], SECONDS);
        world.set_endpoint(index_of(world, first), kept);
        let stays = new_flow(world, c.client, 2);
        // On a machine that stood still meanwhile, its time may be over.
        if begun.elapsed() < Duration::from_millis(900) {
            assert_eq!(stays, first, "while its time runs");
        }
        assert_ne!(new_flow(world, c.neighbour(9), 1), first, "nobody else is kept");
        // Each new flow begins the time anew: from now on it is over.
        sleep(Duration::from_secs(u64::from(SECONDS)) + Duration::from_millis(200));
        assert_ne!(new_flow(world, c.client, 3), first, "when its time is over");
        serve(world, &both, 600);
        assert_ne!(new_flow(world, c.client, 4), first, "kept where it went then");
    });
}

#[test]
fn an_endpoint_that_drains_or_is_gone_keeps_nobody() {
    everywhere(|world| {
        let c = world.cast;
        let both = [ep::STICKY, ep::STICKY + 1];
        for gone in [false, true] {
            serve(world, &both, 600);
            let first = new_flow(world, c.client, 1 + 10 * u16::from(gone));
            let (index, other) = (index_of(world, first), both[usize::from(index_of(world, first) == both[0])]);
            let mut left = world.endpoint(index);
            if gone {
                left.generation += 1;
            } else {
                left.flags |= endpoint::DRAINING;
            }
            serve(world, &[other], 600);
            world.set_endpoint(index, left);
            assert_ne!(new_flow(world, c.client, 2 + 10 * u16::from(gone)), first, "gone: {gone}");
        }
    });
}

#[test]
fn without_affinity_nobody_is_kept() {
    everywhere(|world| {
        serve(world, &[ep::STICKY, ep::STICKY + 1], 0);
        let client = world.cast.client;
        let mut hits = [0; 2];
        for sport in 1..60 {
            hits[(new_flow(world, client, sport) == world.cast.pod2) as usize] += 1;
        }
        assert!(hits.iter().all(|&n| n > 10), "{hits:?}");
    });
}
