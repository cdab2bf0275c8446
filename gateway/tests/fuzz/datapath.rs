//! Damaged packets through every program of the datapath.

use std::collections::BTreeMap;

use gateway_common::{Reason, maps::config, reason::Class};

use crate::{
    epoch::{self, Failure, Rng},
    frames::{self, Ends, Look},
    judge::Case,
    mutate,
    world::{Action, PORTS, PROGRAMS, Plan, TAGS, World},
};

/// Frames in `cargo xtask test`.
const USUAL: usize = 150_000;
/// Frames of an epoch, those that begin its flows not counted.
const EPOCH: usize = 600;
/// Conversations of an epoch.
const FLOWS: usize = 16;

/// An honest frame, and the program that would see it.
#[derive(Clone)]
struct Template {
    program: &'static str,
    frame: Vec<u8>,
}

fn payload(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(10) {
        0..5 => rng.below(40),
        5..8 => rng.below(700),
        _ => rng.below(1460),
    };
    rng.bytes(len)
}

fn tags(rng: &mut Rng) -> &'static [[u8; 2]] {
    match rng.below(10) {
        0 => &TAGS[..1],
        1 => &TAGS,
        _ => &[],
    }
}

/// A client's packet to a Service port.
fn to_service(rng: &mut Rng, plan: &Plan) -> Vec<u8> {
    let port = rng.pick(&PORTS.each_ref());
    let client = if rng.percent(90) { 0 } else { 1 + rng.below(2) };
    let ends = Ends {
        src: plan.clients[client].clone(),
        dst: if port.port == 53 { plan.dns.clone() } else { plan.vip.clone() },
        sport: 1024 + rng.below(60_000) as u16,
        dport: port.port,
    };
    let look = Look::any(rng);
    if port.proto == 6 { segment(rng, &ends, look, 2) } else { frames::udp(&ends, look, &payload(rng)) }
}

fn segment(rng: &mut Rng, ends: &Ends, look: Look, flags: u8) -> Vec<u8> {
    let options: &[u8] = if flags & 2 != 0 { &[2, 4, 5, 0xb4, 1, 3, 3, 7] } else { &[] };
    let data = if flags & 2 != 0 { Vec::new() } else { payload(rng) };
    frames::tcp(ends, look, flags, options, &data, (rng.number() as u32, rng.number() as u32))
}

/// A packet of no flow: a ping, a stray, another protocol, nobody's address.
fn stray(rng: &mut Rng, plan: &Plan) -> Vec<u8> {
    let mut ends = Ends {
        src: plan.clients[rng.below(3)].clone(),
        dst: rng.pick(&[&plan.vip, &plan.nobody, &plan.own, &plan.dns, &plan.pods[0]]).clone(),
        sport: rng.number() as u16,
        dport: rng.number() as u16,
    };
    let look = Look::any(rng);
    let data = payload(rng);
    match rng.below(6) {
        0 | 1 => {
            let kind = if plan.v6 { 128 } else { 8 };
            let body = [&[kind, 0, 0, 0, 1, 2, 3, 4][..], &data].concat();
            frames::ip(&ends, if plan.v6 { 58 } else { 1 }, look, &body)
        }
        2 => {
            let proto = rng.pick(&[132, 47, 50, 33, 136]);
            frames::ip(&ends, proto, look, &data)
        }
        3 => {
            ends.dport = 53;
            ends.dst.clone_from(&plan.own);
            frames::udp(&ends, look, &crate::queries::query(rng))
        }
        4 => frames::udp(&ends, look, &data),
        _ => {
            let flags = rng.byte();
            segment(rng, &ends, look, flags)
        }
    }
}

/// What an error quotes of a packet: all of it, or as little as there may be.
fn quote(rng: &mut Rng, packet: &[u8]) -> Vec<u8> {
    let head = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let most = if head == 20 { 548 } else { 1232 };
    let len = match rng.below(3) {
        0 => head + 8,
        1 => packet.len().min(head + 8 + rng.below(64)),
        _ => packet.len(),
    };
    packet[..len.min(packet.len()).min(most)].to_vec()
}

fn error_about(rng: &mut Rng, from: &[u8], packet: &[u8]) -> Vec<u8> {
    let v6 = packet[0] >> 4 == 6;
    let to = if v6 { &packet[8..24] } else { &packet[12..16] };
    let kinds: &[(u8, u8)] = if v6 {
        &[(1, 4), (1, 0), (2, 0), (3, 0), (4, 1)]
    } else {
        &[(3, 3), (3, 1), (3, 4), (11, 0), (12, 0), (5, 1)]
    };
    let kind = rng.pick(kinds);
    let quoted = quote(rng, packet);
    let look = Look::any(rng);
    frames::error(from, to, look, kind, [0, 0, 5, 0], &quoted)
}

/// What became of the frames, in all.
type Tally = BTreeMap<&'static str, u64>;

struct Epoch<'a> {
    world: &'a mut World,
    rng: Rng,
    config: gateway_common::maps::Config,
    seen: Vec<Vec<u8>>,
    tally: &'a mut Tally,
    templates: Vec<Template>,
}

impl Epoch<'_> {
    /// Runs and judges one frame.
    fn run(&mut self, program: &'static str, frame: &[u8]) -> Result<crate::world::Outcome, Failure> {
        self.seen.push(frame.to_vec());
        let outcome = self.world.run(program, frame);
        let case = Case { program, config: &self.config, plans: &self.world.plans, before: frame, outcome: &outcome };
        match case.judge() {
            Ok(()) => {
                for (reason, times) in &outcome.counted {
                    *self.tally.entry(reason.name()).or_default() += times;
                }
                Ok(outcome)
            }
            Err(what) => {
                let mut frames = std::mem::take(&mut self.seen);
                frames.push(outcome.frame.clone());
                let counted: Vec<_> = outcome.counted.iter().map(|(reason, _)| reason.name()).collect();
                let what = format!(
                    "{program}: {what}\n{:?}, counted {counted:?}\n in {frame:02x?}\nout {:02x?}",
                    outcome.action, outcome.frame
                );
                Err(Failure { what, frames })
            }
        }
    }

    fn template(&mut self, program: &'static str, packet: &[u8], unchecked: bool) {
        let tags = if program.starts_with("xdp") { tags(&mut self.rng) } else { &[] };
        self.templates.push(Template { program, frame: frames::frame(packet, tags, unchecked) });
    }

    /// One conversation's packets, both ways, its fragments, and errors about them.
    fn converse(&mut self) -> Result<(), Failure> {
        let plan = Plan::of(self.rng.percent(40));
        let tier = self.rng.below(2);
        let uplink = PROGRAMS[tier];
        let cluster = if self.rng.percent(70) { PROGRAMS[2 + tier] } else { uplink };
        let first = to_service(&mut self.rng, &plan);
        let unchecked = self.rng.percent(10);
        let frame = frames::frame(&first, &[], unchecked);
        let outcome = self.run(uplink, &frame)?;
        self.template(uplink, &first, unchecked);
        let Some((ends, proto)) = Ends::of(&frame) else { return Ok(()) };
        let sent = outcome.has(Reason::Forwarded);
        if !sent || !matches!(outcome.action, Action::Redirect | Action::Pass) {
            return Ok(());
        }
        let Some((there, _)) = Ends::of(&outcome.frame) else { return Ok(()) };
        let cluster = if outcome.has(Reason::Local) { PROGRAMS[4] } else { cluster };
        let look = Look::any(&mut self.rng);
        let (more, reply) = if proto == 6 {
            let flags = self.rng.pick(&[0x10, 0x18, 0x11, 0x12, 0x14, 4]);
            (segment(&mut self.rng, &ends, look, flags), segment(&mut self.rng, &there.back(), look, flags))
        } else {
            let (a, b) = (payload(&mut self.rng), payload(&mut self.rng));
            (frames::udp(&ends, look, &a), frames::udp(&there.back(), look, &b))
        };
        self.template(uplink, &more, unchecked);
        self.template(cluster, &reply, unchecked);
        // Whole checksums before they are cut.
        for (program, packet) in [(uplink, &more), (cluster, &reply)] {
            let whole = frames::frame(packet, &[], unchecked);
            let whole = frames::packet(&whole).unwrap_or(packet);
            let id = self.rng.number() as u32;
            let size = 8 * (1 + self.rng.below(60));
            let parts = frames::fragments(whole, size, id);
            // An error about the first one, as the endpoint's side sees it.
            if program == uplink && parts.len() > 1 {
                let sent = self.run(program, &frames::frame(&parts[0], &[], unchecked))?;
                if sent.has(Reason::Forwarded) && sent.action == Action::Redirect {
                    let quoted = frames::packet(&sent.frame).unwrap_or_default().to_vec();
                    let about = error_about(&mut self.rng, &plan.router, &quoted);
                    self.template(cluster, &about, false);
                }
            }
            for part in parts.into_iter().take(4) {
                self.template(program, &part, unchecked);
            }
        }
        let outward = frames::packet(&outcome.frame).unwrap_or_default().to_vec();
        let from = self.rng.pick(&[&plan.router, &plan.pods[0]]).clone();
        let about = error_about(&mut self.rng, &from, &outward);
        self.template(cluster, &about, false);
        // What the client got, had the endpoint answered.
        let whole = frames::frame(&reply, &[], unchecked);
        let back = self.run(cluster, &whole)?;
        if back.has(Reason::Replied) {
            let inward = frames::packet(&back.frame).unwrap_or_default().to_vec();
            let about = error_about(&mut self.rng, &ends.src, &inward);
            self.template(uplink, &about, false);
        }
        Ok(())
    }
}

fn epoch(world: &mut World, tally: &mut Tally, seed: u64) -> Result<usize, Failure> {
    let mut rng = Rng::new(seed);
    world.forget();
    let mut config = world.config();
    if rng.percent(20) {
        config.flags |= config::STRANGERS_PASS;
    }
    if rng.percent(20) {
        config.flags |= config::DENY_DROP;
    }
    if rng.percent(20) {
        config.flags |= config::ROUTED;
    }
    if rng.percent(20) {
        config.mss_clamp = if rng.percent(50) { config::MSS_AUTO } else { 536 + rng.below(900) as u32 };
    }
    if rng.percent(10) {
        config.icmp_rate = 1;
    }
    world.set_config(&config);
    let mut epoch = Epoch { world, rng, config, seen: Vec::new(), tally, templates: Vec::new() };
    for _ in 0..FLOWS {
        epoch.converse()?;
    }
    for _ in 0..4 {
        let plan = Plan::of(epoch.rng.percent(40));
        let packet = stray(&mut epoch.rng, &plan);
        let program = PROGRAMS[epoch.rng.below(5)];
        epoch.template(program, &packet, false);
    }
    for done in 0..EPOCH {
        if done == EPOCH * 3 / 4 && epoch.rng.percent(50) {
            epoch.world.replace_endpoints();
            let config = epoch.config;
            epoch.world.set_config(&config);
        }
        let at = epoch.rng.below(epoch.templates.len());
        let Template { mut program, mut frame } = epoch.templates[at].clone();
        if epoch.rng.percent(10) {
            program = PROGRAMS[epoch.rng.below(5)];
        }
        if epoch.rng.percent(92) {
            mutate::frame(&mut epoch.rng, &mut frame, &epoch.world.plans);
        }
        World::pad(program, &mut frame);
        epoch.run(program, &frame)?;
    }
    Ok(EPOCH)
}

#[test]
fn damaged_frames_are_carried_right_or_not_at_all() {
    if epoch::skip() {
        return;
    }
    let mut world = World::new();
    let mut tally = Tally::new();
    epoch::run("damaged_frames", USUAL, |seed| epoch(&mut world, &mut tally, seed));
    println!("{tally:?}");
    // All that the datapath can do was done, or the damage is too great to be interesting.
    let rare = [Reason::FlowTableFull, Reason::SnatExhausted, Reason::HelperFailed, Reason::AmbiguousChecksum];
    let seldom = [Reason::FlowRebuilt, Reason::Ipv6, Reason::NoRoom, Reason::DnsExpired];
    let queries = |reason: &Reason| reason.name().starts_with("dns");
    for reason in Reason::ALL.iter().filter(|r| !rare.contains(r) && !seldom.contains(r) && !queries(r)) {
        let least = if matches!(reason.class(), Class::Served) { 20 } else { 1 };
        let times = tally.get(reason.name()).copied().unwrap_or(0);
        assert!(times >= least || epoch::is_alone(), "{} happened {times} times: {tally:?}", reason.name());
    }
}
