//! The datapath's programs, run by the kernel on single frames: what goes in, what comes out, what is counted.

mod world;

use world::{Tier, World, skip};

#[test]
fn the_verifier_takes_every_program() {
    if skip() {
        return;
    }
    let mut world = World::new(Tier::Xdp);
    let (jiffies, ns) = world.clock();
    assert!(jiffies > 0 && ns > 0);
}
