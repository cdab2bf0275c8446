//! Every row of "what happens to a packet", written once and run for IPv4 and IPv6, in XDP and in TC, without tags, with one and with two.
//!
//! In XDP the tags are in the frame: rows run as they are, between a clients' VLAN and a pods' VLAN. In TC there are two places where a
//! tagged frame could be seen. On the lower device the kernel has taken the tag off into the buffer's metadata before the program runs,
//! which a test run cannot write; the nearest that it can, a frame with its tags in the data, passes untouched whatever is behind
//! them, and that every row shows. On the VLAN's own device the kernel has taken the tags away: that is the row without tags. Real
//! VLAN devices with both are in `wire`.

mod begin;
mod checks;
mod errors;
mod fragments;
mod odd;
mod ping;
mod replies;
mod tags;

use std::rc::Rc;

use crate::{
    cast::Cast,
    world::{Action, Outcome, Role, Tier, World, in_turn, save, skip},
};

/// A row that ran.
pub struct Case<'a> {
    pub cast: Cast,
    pub tier: Tier,
    /// The frame as it was, without tags.
    pub before: &'a [u8],
    pub after: &'a Outcome,
    /// Tags, EtherTypes included, that a frame has on the side that it came from.
    pub back: Vec<[u8; 4]>,
    /// And on the other side.
    pub on: Vec<[u8; 4]>,
}

pub type Check = Rc<dyn Fn(&Case<'_>) -> Result<(), String>>;

/// What one tier does with a row's frame.
#[derive(Clone)]
pub struct Expect {
    action: Action,
    counted: Vec<(&'static str, u64)>,
    check: Check,
}

type Make = Box<dyn Fn(&mut World) -> Vec<u8>>;

pub struct Row {
    name: String,
    role: Role,
    /// Prepares the world and makes the frame, without tags.
    make: Make,
    xdp: Expect,
    tc: Expect,
    /// A test run of TC refuses frames that end in their IP header.
    short: bool,
}

/// The frame is as it was.
pub fn pass(counted: &[(&'static str, u64)]) -> Expect {
    let check: Check = Rc::new(|case| if case.after.same { Ok(()) } else { Err("the frame was changed".into()) });
    Expect { action: Action::Pass, counted: counted.to_vec(), check }
}

pub fn dropped(counted: &[(&'static str, u64)]) -> Expect {
    Expect { action: Action::Drop, counted: counted.to_vec(), check: Rc::new(|_| Ok(())) }
}

/// Out of an interface.
pub fn sent(counted: &[(&'static str, u64)], check: impl Fn(&Case<'_>) -> Result<(), String> + 'static) -> Expect {
    Expect { action: Action::Redirect, counted: counted.to_vec(), check: Rc::new(check) }
}

/// Up this node's own stack, changed; or out of it.
pub fn on(counted: &[(&'static str, u64)], check: impl Fn(&Case<'_>) -> Result<(), String> + 'static) -> Expect {
    Expect { action: Action::Pass, counted: counted.to_vec(), check: Rc::new(check) }
}

impl Row {
    /// A client's frame, the same in both tiers.
    pub fn new(name: impl Into<String>, frame: Vec<u8>, expect: Expect) -> Self {
        Self::made(name, move |_| frame.clone(), expect)
    }

    /// With something to be prepared, or found out, first.
    pub fn made(name: impl Into<String>, make: impl Fn(&mut World) -> Vec<u8> + 'static, expect: Expect) -> Self {
        Self {
            name: name.into(),
            role: Role::Uplink,
            make: Box::new(make),
            xdp: expect.clone(),
            tc: expect,
            short: false,
        }
    }

    /// In XDP otherwise.
    pub fn xdp(self, expect: Expect) -> Self {
        Self { xdp: expect, ..self }
    }

    /// It ends in its IP header.
    pub fn short(self) -> Self {
        Self { short: true, ..self }
    }

    /// Another program than the uplink's.
    pub fn at(self, role: Role) -> Self {
        Self { role, ..self }
    }
}

fn rows(cast: &Cast) -> Vec<Row> {
    let mut rows = begin::rows(cast);
    rows.extend(begin::gone(cast));
    rows.extend(replies::rows(cast));
    rows.extend(ping::rows(cast));
    rows.extend(errors::rows(cast));
    rows.extend(fragments::rows(cast));
    rows.extend(odd::rows(cast));
    rows
}

/// What a row came to instead; nothing when all is well.
fn judge(world: &mut World, row: &Row, expect: &Expect, frame: &[u8]) -> Option<String> {
    let outcome = world.run(row.role, frame);
    let other = if row.role == Role::Cluster { Role::Uplink } else { Role::Cluster };
    let (back, on) = (world.tags_of(row.role), world.tags_of(other));
    let case = Case { cast: world.cast, tier: world.tier, before: frame, after: &outcome, back, on };
    let counted: Vec<(&str, u64)> = outcome.counted.iter().map(|(&name, &n)| (name, n)).collect();
    let mut wrong = Vec::new();
    if outcome.action != expect.action {
        wrong.push(format!("{:?}, should be {:?}", outcome.action, expect.action));
    }
    let mut should = expect.counted.clone();
    should.sort_unstable();
    if counted != should {
        wrong.push(format!("counted {counted:?}, should be {should:?}"));
    }
    if outcome.action == expect.action
        && let Err(why) = (expect.check)(&case)
    {
        wrong.push(why);
    }
    if wrong.is_empty() {
        return None;
    }
    let family = if world.cast.v6 { "IPv6" } else { "IPv4" };
    let name = format!("{} ({:?}, {family}, {:?} tags)", row.name, world.tier, world.tags);
    let path = save(&name, &[frame, &outcome.frame]);
    Some(format!("{name}: {} [{}]", wrong.join("; "), path.display()))
}

fn run(tier: Tier) {
    if skip() {
        return;
    }
    let (mut failures, mut judged) = (Vec::new(), 0);
    in_turn(|world| {
        for (v6, tags) in [(false, 0), (false, 1), (false, 2), (true, 0), (true, 1), (true, 2)] {
            world.begin(tier, v6, (0, 0));
            for row in rows(&world.cast.clone()) {
                let expect = if tier == Tier::Xdp { row.xdp.clone() } else { row.tc.clone() };
                // The egress of a VLAN's own device is, to a test run, the one without tags.
                let skipped = row.role == Role::Egress && tags > 0 || row.short && tier == Tier::Tc;
                if skipped {
                    continue;
                }
                let below = tier == Tier::Tc && tags > 0;
                world.begin(tier, v6, if below { (0, 0) } else { (tags, tags) });
                let frame = (row.make)(world);
                world.tags = (tags, tags);
                judged += 1;
                let expect = if below { pass(&[("not_ours", 1)]) } else { expect };
                failures.extend(judge(world, &row, &expect, &frame));
            }
        }
    });
    println!("{tier:?}: {judged} frames judged");
    assert!(failures.is_empty(), "{tier:?}: {} of {judged}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn what_happens_to_a_packet_in_xdp() {
    run(Tier::Xdp);
}

#[test]
fn what_happens_to_a_packet_in_tc() {
    run(Tier::Tc);
}
