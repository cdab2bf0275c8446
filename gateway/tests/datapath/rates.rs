//! How often the gateway speaks by itself: so many answers a second and source, twice that at once.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    cast::port,
    packets::{ACK, Ends, ping, tcp, udp},
    world::{Action, World, everywhere},
};

const RATE: u32 = 5;

/// How many of so many frames were answered; the others were dropped and counted.
fn answered(world: &mut World, frames: impl Iterator<Item = Vec<u8>>) -> u32 {
    let mut answered = 0;
    for frame in frames {
        let outcome = world.uplink(&frame);
        match outcome.action {
            Action::Redirect => answered += 1,
            action => assert_eq!((action, outcome.counted), (Action::Drop, [("rate_limited", 1)].into())),
        }
    }
    answered
}

#[test]
fn a_source_gets_twice_its_rate_at_once_and_its_rate_from_then_on() {
    everywhere(|world| {
        let c = world.cast;
        let unknown = |src, n| (0..n).map(move |i| udp(Ends::new(src, i, c.web, 9999), b"?"));
        // A slow clock: a second of its own takes as long as this machine needs for 40 of its seconds' ticks.
        world.configure(|config| (config.icmp_rate, config.hz) = (RATE, 10_000));
        assert_eq!(answered(world, unknown(c.client, 50)), 2 * RATE);
        // Others have not spoken yet.
        assert_eq!(answered(world, unknown(c.neighbour(9), 50)), 2 * RATE);
        // Every answer of the gateway's own counts: pings and resets, too.
        world.set_vip_endpoints(c.web, 1);
        assert_eq!(answered(world, (0..9).map(|_| ping(c.client, c.web, b"?"))), 0);
        world.uplink(&tcp(Ends::new(c.client, 1, c.web, port::HTTP), ACK, b""));
        world.lose_endpoint(crate::cast::ep::HTTP);
        let gone = tcp(Ends::new(c.client, 1, c.web, port::HTTP), ACK, b"x");
        assert_eq!(answered(world, std::iter::once(gone)), 0);
        // What is forwarded does not.
        let outcome = world.uplink(&udp(Ends::new(c.client, 1, c.web, port::ECHO_UDP), b""));
        assert_eq!(outcome.action, Action::Redirect);
    });
}

#[test]
fn the_rate_comes_back_with_time() {
    everywhere(|world| {
        let c = world.cast;
        let (jiffies, ns) = world.clock();
        sleep(Duration::from_millis(100));
        let (later, after) = world.clock();
        let hz = ((later - jiffies) as f64 * 1e9 / (after - ns) as f64).round() as u32;
        world.configure(|config| (config.icmp_rate, config.hz) = (RATE, hz));
        let unknown = |n| (0..n).map(move |i| udp(Ends::new(c.client, i, c.web, 9999), b"?"));
        let begun = Instant::now();
        let mut all = answered(world, unknown(50));
        for _ in 0..3 {
            sleep(Duration::from_millis(300));
            all += answered(world, unknown(50));
        }
        // As many as there were at first, and what came since: however long this machine took.
        let most = 2 * RATE + (begun.elapsed().as_secs_f64() * f64::from(RATE)).ceil() as u32 + 1;
        assert!(all >= 2 * RATE + 3 && all <= most, "{all} of at most {most}");
    });
}
