//! The same conversations through the gateway and through the kernel's own nftables: what arrives is the same but for what the two may
//! choose.
//!
//! | may differ | why |
//! |---|---|
//! | the source port towards the endpoint | each chooses its own; replies and errors are written for each with its own |
//! | IP identification, type of service and "don't fragment" of errors that the two write themselves | an atomic datagram needs no identification (RFC 6864); the kernel copies the offender's type of service beneath the precedence |
//! | source of "time exceeded" | the kernel's translation makes it the VIP's; a router on the way, the gateway among them, keeps its own address here: traceroute shows it |
//! | source of a router's errors | as above |
//! | IPv4 packets wider than the way out, "don't fragment" not set | the gateway cuts them with a helper whose packets a test run does not show; they are left out here, and are a test of their own (`datapath/split.rs`) |

use std::collections::BTreeMap;

use gateway_common::Reason;

use crate::{
    epoch::{self, Failure, Rng},
    frames::{self, Ends, Look},
    nft::{Router, Rule, Side},
    oracle::{Facts, Sum, word},
    world::{Action, Plan, World},
};

/// Packets in `cargo xtask test`.
const USUAL: usize = 100_000;
/// Conversations of an epoch.
const FLOWS: usize = 40;

/// The Services of both: protocol, port, behind a narrow way.
const SERVICES: [(u8, u16, bool); 6] =
    [(6, 1080, false), (17, 1053, false), (6, 1443, false), (17, 5000, false), (6, 1600, true), (17, 1601, true)];

fn rules(plans: &[Plan; 2]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for plan in plans {
        for (at, (proto, port, narrow)) in SERVICES.into_iter().enumerate() {
            let mut endpoint = plan.pods[0].clone();
            // A subnet of its own is behind the narrow way.
            let net = if plan.v6 { 5 } else { 2 };
            endpoint[net] = if narrow { 3 } else { 1 };
            *endpoint.last_mut().expect("an address") = 20 + at as u8;
            rules.push(Rule { proto, vip: plan.vip.clone(), port, endpoint, target: 6000 + port });
        }
    }
    rules
}

/// What came out of one of the two: the packets, and where.
type Out = Vec<(Side, Vec<u8>)>;

/// What came out of the kernel's translation: what, of which family, to whom.
type Tally = BTreeMap<(&'static str, u8, Side), u64>;

/// Both of them, and what went in.
struct Pair<'a> {
    world: &'a mut World,
    router: &'a Router,
    sent: usize,
    tally: &'a mut Tally,
    /// Why the gateway last dropped a packet.
    dropped: Vec<&'static str>,
    seen: Vec<Vec<u8>>,
}

/// The ports that a flow has towards its endpoint.
#[derive(Clone, Copy, Default)]
struct Chosen {
    gateway: u16,
    kernel: u16,
}

impl Pair<'_> {
    /// Through the gateway: in XDP, then, where XDP leaves it, in TC.
    fn gateway(&mut self, tc: bool, from: Side, packet: &[u8]) -> Result<Out, String> {
        let frame = frames::frame(packet, &[], true);
        let programs: &[&str] = match (tc, from) {
            (true, Side::Client) => &["tc_uplink"],
            (true, Side::Pod) => &["tc_cluster"],
            (false, Side::Client) => &["xdp_uplink", "tc_uplink"],
            (false, Side::Pod) => &["xdp_cluster", "tc_cluster"],
        };
        for program in programs {
            let outcome = self.world.run(program, &frame);
            match outcome.action {
                Action::Drop => {
                    self.dropped = outcome.counted.iter().map(|(reason, _)| reason.name()).collect();
                    return Ok(Vec::new());
                }
                Action::Redirect => {
                    let out = frames::packet(&outcome.frame).ok_or_else(|| format!("{program}: no packet"))?;
                    let forth = outcome.has(Reason::Forwarded) || outcome.has(Reason::Replied);
                    let across = forth || outcome.has(Reason::IcmpRelayed);
                    let other = if from == Side::Client { Side::Pod } else { Side::Client };
                    return Ok(vec![(if across { other } else { from }, out.to_vec())]);
                }
                Action::Pass if outcome.frame == frame => {}
                action => return Err(format!("{program}: {action:?}")),
            }
        }
        Err(format!("left to the node: {}", show(&vec![(from, packet.to_vec())])))
    }

    /// The same packets through both; `ours` and `theirs` differ in nothing but the chosen port.
    fn both(&mut self, tc: bool, from: Side, ours: &[Vec<u8>], theirs: &[Vec<u8>]) -> Result<(Out, Out), String> {
        self.sent += ours.len();
        let mut gateway = Vec::new();
        for packet in ours {
            self.seen.push(frames::frame(packet, &[], true));
            gateway.extend(self.gateway(tc, from, packet)?);
        }
        let packets: Vec<&[u8]> = theirs.iter().map(Vec::as_slice).collect();
        let kernel = self.router.pass(from, &packets)?;
        for (side, packet) in &kernel {
            let (version, proto) = if packet[0] >> 4 == 4 { (4, packet[9]) } else { (6, packet[6]) };
            let cut = proto == 44 || (version == 4 && word(packet, 6) & 0x3fff != 0);
            let what = match proto {
                _ if cut => "fragments",
                6 => "TCP",
                17 => "UDP",
                _ => "errors",
            };
            *self.tally.entry((what, version, *side)).or_default() += 1;
        }
        if kernel.is_empty() {
            *self.tally.entry(("nothing", 0, from)).or_default() += 1;
        }
        Ok((gateway, kernel))
    }
}

/// A packet as both should have it: the source port blank where it is chosen, checksums as whether they are right, and what the two
/// may choose blank too.
fn common(side: Side, packet: &[u8], chosen: u16) -> Result<Vec<u8>, String> {
    let frame = frames::frame_of(packet);
    let facts = Facts::of(&frame).ok_or("no whole packet")?;
    if !facts.header_right || facts.sum == Sum::Wrong {
        return Err(format!("a wrong checksum: {facts:?}"));
    }
    let mut out = packet.to_vec();
    let l4 = facts.l4 - facts.l3;
    if side == Side::Pod && matches!(facts.proto, 6 | 17) {
        if word(&out, l4) != chosen {
            return Err(format!("source port {}, before it was {chosen}", word(&out, l4)));
        }
        out[l4..l4 + 2].fill(0);
        let check = facts.check_at().unwrap_or(0) - facts.l3;
        let absent = facts.sum == Sum::Absent;
        out[check..check + 2].copy_from_slice(&[0, u8::from(absent)]);
    }
    Ok(out)
}

/// Errors as both should have them.
fn common_error(side: Side, packet: &[u8], chosen: u16, keeps_source: bool) -> Result<Vec<u8>, String> {
    let frame = frames::frame_of(packet);
    let facts = Facts::of(&frame).ok_or("no whole packet")?;
    if !facts.header_right || facts.sum != Sum::Right || facts.proto != facts.icmp() {
        return Err(format!("no error with right checksums: {facts:?}"));
    }
    let mut out = packet.to_vec();
    let l4 = facts.l4 - facts.l3;
    out[l4 + 2..l4 + 4].fill(0);
    if facts.version == 4 {
        out[1] = 0;
        out[4..8].fill(0);
        out[10..12].fill(0);
    } else {
        out[0..4].fill(0);
    }
    if !keeps_source {
        let source = if facts.version == 4 { 12..16 } else { 8..24 };
        out[source].fill(0);
    }
    // The quoted packet: as its sender sent it, from the pod's side with the chosen port as destination.
    let inner = l4 + 8;
    let (head, proto) = if facts.version == 4 { (20, 9) } else { (40, 6) };
    if side == Side::Pod && out.len() >= inner + head + 4 {
        let at = inner + head;
        let proto = out[inner + proto];
        if word(&out, at + 2) != chosen {
            return Err(format!("quotes port {}, not {chosen}", word(&out, at + 2)));
        }
        let check = at + if proto == 6 { 16 } else { 6 };
        if out.len() >= check + 2 && (proto == 6 || word(&out, check) != 0) {
            let sum = crate::oracle::fold(u64::from(word(&out, check)) + u64::from(chosen));
            out[check..check + 2].copy_from_slice(&sum.to_be_bytes());
        }
        out[at + 2..at + 4].fill(0);
    }
    Ok(out)
}

/// A datagram from its fragments, or the one packet that there is.
fn whole(out: &Out) -> Result<Out, String> {
    let Some((side, first)) = out.first() else { return Ok(Vec::new()) };
    let mut parts = Vec::new();
    for (at, packet) in out {
        let frame = frames::frame_of(packet);
        let facts = Facts::of(&frame).ok_or("a fragment that is no packet")?;
        if !facts.header_right || at != side {
            return Err(format!("a fragment to {at:?} with header checksum right: {}", facts.header_right));
        }
        let Some((offset, more)) = facts.fragment else {
            return if out.len() == 1 { Ok(out.clone()) } else { Err(format!("{} whole packets", out.len())) };
        };
        parts.push((offset, more, frame[facts.l4..facts.end].to_vec(), facts));
    }
    parts.sort_by_key(|(offset, ..)| *offset);
    let mut body: Vec<u8> = Vec::new();
    for (at, (offset, more, part, _)) in parts.iter().enumerate() {
        if *offset != body.len() || *more != (at + 1 < parts.len()) {
            return Err(format!("the fragment at {offset} does not follow {} bytes", body.len()));
        }
        body.extend(part);
    }
    let facts = parts[0].3;
    let mut packet = first[..if facts.version == 4 { 20 } else { 40 }].to_vec();
    if facts.version == 4 {
        packet[2..4].copy_from_slice(&(20 + body.len() as u16).to_be_bytes());
        packet[6..8].fill(0);
    } else {
        packet[4..6].copy_from_slice(&(body.len() as u16).to_be_bytes());
        packet[6] = facts.proto;
    }
    packet.extend(body);
    let mut frame = frames::frame_of(&packet);
    let facts = Facts::of(&frame).ok_or("no packet of its fragments")?;
    facts.mend_header(&mut frame);
    Ok(vec![(*side, frame[facts.l3..].to_vec())])
}

/// The heads of packets; the pcap has the rest.
fn show(out: &Out) -> String {
    out.iter()
        .map(|(side, packet)| format!("{side:?}: {:02x?} of {}; ", &packet[..packet.len().min(100)], packet.len()))
        .collect()
}

/// Whether both did the same. `keeps`: an error that the gateway itself did not write comes from whom the kernel says.
fn same(gateway: &Out, kernel: &Out, chosen: Chosen, keeps: bool) -> Result<(), String> {
    let differ = |what: &str| Err(format!("{what}\ngateway {}\n kernel {}", show(gateway), show(kernel)));
    let (ours, theirs) = (whole(gateway)?, whole(kernel)?);
    if ours.len() != theirs.len() {
        return differ("not as many packets");
    }
    for ((side, a), (other, b)) in ours.iter().zip(&theirs) {
        if side != other {
            return differ("to another side");
        }
        let proto = |packet: &[u8]| packet[if packet[0] >> 4 == 4 { 9 } else { 6 }];
        let read = |packet: &[u8], port| {
            if matches!(proto(packet), 1 | 58) {
                let time =
                    packet[if packet[0] >> 4 == 4 { 20 } else { 40 }] == if packet[0] >> 4 == 4 { 11 } else { 3 };
                common_error(*side, packet, port, keeps && !time)
            } else {
                common(*side, packet, port)
            }
        };
        let (a, b) = match (read(a, chosen.gateway), read(b, chosen.kernel)) {
            (Ok(a), Ok(b)) => (a, b),
            (a, b) => return differ(&format!("gateway {:?}, kernel {:?}", a.err(), b.err())),
        };
        if a != b {
            return differ(&format!(
                "not the same to {side:?}: they differ at {:?}",
                a.iter().zip(&b).position(|(a, b)| a != b)
            ));
        }
    }
    Ok(())
}

/// A conversation: who with whom, how far it is, and what was last seen of it on the other side.
struct Talk {
    ends: Ends,
    proto: u8,
    endpoint: (Vec<u8>, u16),
    narrow: bool,
    tc: bool,
    chosen: Chosen,
    /// The last packet on the pod's side as each of both wrote it, and on the client's.
    outward: Option<(Vec<u8>, Vec<u8>)>,
    inward: Option<Vec<u8>>,
    seq: [u32; 2],
}

fn look(rng: &mut Rng) -> Look {
    let mut look = Look::any(rng);
    look.ttl = rng.pick(&[64, 64, 64, 255, 128, 2, 1]);
    look
}

fn payload(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.below(10) {
        0..5 => rng.below(64),
        5..7 => rng.below(700),
        _ => rng.below(1420),
    };
    rng.bytes(len)
}

impl Talk {
    /// A packet of the client's (0) or the endpoint's (1), which sees the client at `port`.
    fn packet(&mut self, own: &[u8], who: usize, port: u16, tcp: (u8, &[u8]), look: Look, payload: &[u8]) -> Vec<u8> {
        let ends = if who == 0 {
            self.ends.clone()
        } else {
            Ends { src: self.endpoint.0.clone(), dst: own.to_vec(), sport: self.endpoint.1, dport: port }
        };
        if self.proto == 6 {
            frames::tcp(&ends, look, tcp.0, tcp.1, payload, (self.seq[who], self.seq[1 - who]))
        } else {
            frames::udp(&ends, look, payload)
        }
    }

    /// Whole checksums, and the UDP checksum left out where it may be.
    fn checked(packet: &[u8], unchecked: bool) -> Vec<u8> {
        let frame = frames::frame(packet, &[], unchecked && packet[0] >> 4 == 4);
        frames::packet(&frame).unwrap_or(packet).to_vec()
    }

    /// One packet of either end through both.
    fn say(&mut self, pair: &mut Pair<'_>, rng: &mut Rng, who: usize, flags: u8, plain: bool) -> Result<(), String> {
        let own = pair.world.plans[usize::from(self.ends.is_v6())].own.clone();
        let mut look = look(rng);
        if plain {
            (look.ttl, look.tos) = (64, 0);
        }
        look.dont_fragment |= self.narrow;
        let options: &[u8] = match flags & 2 {
            2 => &[2, 4, 5, 0xb4, 1, 3, 3, 7],
            _ => rng.pick(&[
                &[][..],
                &[],
                &[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
                &[1, 1, 5, 10, 0, 0, 1, 0, 0, 0, 2, 0],
            ]),
        };
        let data = match (self.proto, plain) {
            (6, true) => Vec::new(),
            (_, true) => rng.bytes(7),
            _ => payload(rng),
        };
        let unchecked = rng.percent(10);
        let make = |talk: &mut Self, port| {
            let packet = talk.packet(&own, who, port, (flags, options), look, &data);
            Self::checked(&packet, unchecked)
        };
        let ours = make(self, self.chosen.gateway);
        let theirs = make(self, self.chosen.kernel);
        let from = if who == 0 { Side::Client } else { Side::Pod };
        let (gateway, kernel) = pair.both(self.tc, from, std::slice::from_ref(&ours), &[theirs])?;
        if self.chosen.gateway == 0
            && let ([(Side::Pod, a)], [(Side::Pod, b)]) = (gateway.as_slice(), kernel.as_slice())
        {
            let port = |packet: &[u8]| word(packet, if packet[0] >> 4 == 4 { 20 } else { 40 });
            self.chosen = Chosen { gateway: port(a), kernel: port(b) };
        }
        same(&gateway, &kernel, self.chosen, true)
            .map_err(|what| format!("{}: {what}", show(&vec![(from, ours.clone())])))?;
        match (gateway.as_slice(), kernel.as_slice()) {
            ([(Side::Pod, a)], [(Side::Pod, b)]) if who == 0 => self.outward = Some((a.clone(), b.clone())),
            ([(Side::Client, a)], _) if who == 1 => self.inward = Some(a.clone()),
            _ => {}
        }
        self.seq[who] = self.seq[who].wrapping_add(data.len() as u32 + u32::from(flags & 2 != 0));
        Ok(())
    }

    /// A datagram in fragments: the first one first, the others in any order.
    fn cut(&mut self, pair: &mut Pair<'_>, rng: &mut Rng, who: usize) -> Result<(), String> {
        let own = pair.world.plans[usize::from(self.ends.is_v6())].own.clone();
        let look = Look { ttl: 64, tos: 0, id: rng.number() as u16, dont_fragment: false };
        let len = 1500 + rng.below(8000);
        let data = rng.bytes(len);
        let size = 8 * if self.ends.is_v6() { 154 + rng.below(26) } else { 20 + rng.below(165) };
        let id = rng.number() as u32;
        let order = rng.number();
        let make = |talk: &mut Self, port| {
            let packet = Self::checked(&talk.packet(&own, who, port, (0, &[]), look, &data), false);
            let mut parts = frames::fragments(&packet, size, id);
            let mut shuffle = Rng::new(order);
            for i in (2..parts.len()).rev() {
                let other = 1 + shuffle.below(i);
                parts.swap(i, other);
            }
            // Header checksums.
            parts.iter().map(|part| Self::checked(part, false)).collect::<Vec<_>>()
        };
        let ours = make(self, self.chosen.gateway);
        let theirs = make(self, self.chosen.kernel);
        let from = if who == 0 { Side::Client } else { Side::Pod };
        let (gateway, kernel) = pair.both(self.tc, from, &ours, &theirs)?;
        same(&gateway, &kernel, self.chosen, true).map_err(|what| format!("{len} bytes in parts of {size}: {what}"))
    }

    /// An error about the last packet.
    fn complain(&mut self, pair: &mut Pair<'_>, rng: &mut Rng, from: Side) -> Result<(), String> {
        let plan = &pair.world.plans[usize::from(self.ends.is_v6())];
        let router = rng.percent(40);
        let kinds: &[(u8, u8)] = if plan.v6 {
            &[(1, 4), (1, 0), (2, 0), (3, 0), (4, 1)]
        } else {
            &[(3, 3), (3, 1), (3, 4), (11, 0), (12, 0)]
        };
        let kind = rng.pick(kinds);
        let look = Look { ttl: 60, tos: 0, id: rng.number() as u16, dont_fragment: false };
        let head = if plan.v6 { 40 } else { 20 };
        let most = rng.pick(&[8usize, 20, 64, 1200]);
        let (source, quotes) = match (from, &self.outward, &self.inward) {
            (Side::Pod, Some((a, b)), _) => {
                (if router { plan.router.clone() } else { self.endpoint.0.clone() }, [a.clone(), b.clone()])
            }
            (Side::Client, _, Some(a)) => {
                let mut source = self.ends.src.clone();
                if router {
                    *source.last_mut().expect("an address") = 254;
                }
                (source, [a.clone(), a.clone()])
            }
            _ => return Ok(()),
        };
        let [ours, theirs] = quotes.map(|quote| {
            let to = if plan.v6 { &quote[8..24] } else { &quote[12..16] };
            let limit = if plan.v6 { 1232 } else { 548 };
            let quoted = &quote[..quote.len().min(head + most).min(limit)];
            Self::checked(&frames::error(&source, to, look, kind, [0, 0, 5, 0xdc], quoted), false)
        });
        let (gateway, kernel) = pair.both(self.tc, from, std::slice::from_ref(&ours), &[theirs])?;
        // From the pod the quoted source port is chosen; here it is undone.
        same(&gateway, &kernel, self.chosen, !router)
            .map_err(|what| format!("an error {}: {what}", show(&vec![(from, ours.clone())])))
    }
}

fn converse(pair: &mut Pair<'_>, rng: &mut Rng, rules: &[Rule], number: u64) -> Result<(), String> {
    let at = rng.below(rules.len());
    let rule = &rules[at];
    let plan = &pair.world.plans[usize::from(rule.vip.len() == 16)];
    let mut src = plan.clients[0].clone();
    *src.last_mut().expect("an address") = 1 + (number / 60_000 % 250) as u8;
    pair.world.client_hop(&src);
    let mut talk = Talk {
        ends: Ends { src, dst: rule.vip.clone(), sport: 1024 + (number % 60_000) as u16, dport: rule.port },
        proto: rule.proto,
        endpoint: (rule.endpoint.clone(), rule.target),
        narrow: SERVICES[at % SERVICES.len()].2,
        tc: rng.percent(50),
        chosen: Chosen::default(),
        outward: None,
        inward: None,
        seq: [rng.number() as u32, rng.number() as u32],
    };
    let tcp = rule.proto == 6;
    talk.say(pair, rng, 0, if tcp { 2 } else { 0 }, true)?;
    talk.say(pair, rng, 1, if tcp { 0x12 } else { 0 }, true)?;
    talk.say(pair, rng, 0, if tcp { 0x10 } else { 0 }, true)?;
    for _ in 0..rng.below(30) {
        let flags = if tcp { 0x10 | rng.pick(&[0, 8, 0x20, 0x40, 0x80, 0xc8]) } else { 0 };
        match rng.below(100) {
            0..45 => talk.say(pair, rng, 0, flags, false)?,
            45..80 => talk.say(pair, rng, 1, flags, false)?,
            80..88 if !tcp && !talk.narrow => talk.cut(pair, rng, 0)?,
            88..92 if !tcp && !talk.narrow => talk.cut(pair, rng, 1)?,
            80..96 => talk.complain(pair, rng, Side::Pod)?,
            _ => talk.complain(pair, rng, Side::Client)?,
        }
    }
    if tcp && rng.percent(60) {
        if rng.percent(30) {
            return talk.say(pair, rng, 0, 0x14, true);
        }
        talk.say(pair, rng, 0, 0x11, true)?;
        talk.say(pair, rng, 1, 0x11, true)?;
        talk.say(pair, rng, 0, 0x10, true)?;
    }
    Ok(())
}

#[test]
fn conversations_are_as_the_kernels_own_translation_has_them() {
    if epoch::skip() {
        return;
    }
    if let Err(error) = std::process::Command::new("nft").arg("--version").output() {
        println!("SKIP: the kernel's translation is set up by nft: {error}");
        return;
    }
    // All that is on its way stays on one CPU, in order.
    let mut cpus = nix::sched::CpuSet::new();
    let cpu = nix::sched::sched_getcpu().expect("a CPU");
    cpus.set(cpu).expect("a CPU's number");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus).expect("a thread on one CPU");
    let mut world = World::new();
    let rules = rules(&world.plans);
    for (at, rule) in rules.iter().enumerate() {
        world.service(at as u32, rule, SERVICES[at % SERVICES.len()].2);
    }
    let own = world.plans.each_ref().map(|plan| plan.own.clone());
    let router = Router::new(&rules, own.each_ref().map(Vec::as_slice)).unwrap_or_else(|e| panic!("the router: {e}"));
    let mut tally = Tally::new();
    epoch::run("conversations", USUAL, |seed| {
        let mut rng = Rng::new(seed);
        world.forget();
        let mut pair = Pair {
            world: &mut world,
            router: &router,
            sent: 0,
            tally: &mut tally,
            dropped: Vec::new(),
            seen: Vec::new(),
        };
        for flow in 0..FLOWS as u64 {
            let number = (seed & 0xf_ffff) * FLOWS as u64 + flow;
            if let Err(what) = converse(&mut pair, &mut rng, &rules, number) {
                let what = format!("{what}\nlast dropped as {:?}", pair.dropped);
                return Err(Failure { what, frames: pair.seen });
            }
        }
        Ok(pair.sent)
    });
    println!("{tally:?}");
    for what in ["TCP", "UDP", "errors", "fragments"] {
        for (version, side) in [(4, Side::Client), (4, Side::Pod), (6, Side::Client), (6, Side::Pod)] {
            let times = tally.get(&(what, version, side)).copied().unwrap_or(0);
            assert!(times > 100 || epoch::is_alone(), "{what} of IPv{version} to {side:?}: {times} times");
        }
    }
}
