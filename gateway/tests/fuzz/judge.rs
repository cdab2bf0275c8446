//! What may become of a frame, whatever it was.

use gateway_common::{
    Reason,
    maps::{Config, config},
    reason::Class,
};

use crate::{
    oracle::{Facts, Sum, add, fold, word},
    queries,
    world::{Action, Outcome, Plan},
};

type Check = Result<(), String>;

fn that(true_: bool, what: impl Fn() -> String) -> Check {
    if true_ { Ok(()) } else { Err(what()) }
}

/// One frame, what a program did with it, and the world it came into.
pub struct Case<'a> {
    pub program: &'a str,
    pub config: &'a Config,
    pub plans: &'a [Plan; 2],
    pub before: &'a [u8],
    pub outcome: &'a Outcome,
}

/// Counted beside what became of the packet.
const BESIDE: [Reason; 4] = [Reason::FlowCreated, Reason::FlowRebuilt, Reason::FlowMoved, Reason::Fragmented];
const LEFT: [Reason; 3] = [Reason::DnsMiss, Reason::DnsExpired, Reason::DnsUnsupported];
const DNS: [Reason; 4] = [Reason::DnsAnswered, Reason::DnsNoData, Reason::DnsNxDomain, Reason::DnsTruncated];

impl Case<'_> {
    fn after(&self) -> &[u8] {
        &self.outcome.frame
    }
    fn has(&self, reason: Reason) -> bool {
        self.outcome.has(reason)
    }
    fn uplink(&self) -> bool {
        self.program.ends_with("uplink")
    }
    fn xdp(&self) -> bool {
        self.program.starts_with("xdp")
    }
    fn same(&self) -> Check {
        that(self.before == self.after(), || "it passes, but not as it came".into())
    }

    /// Everything.
    pub fn judge(&self) -> Check {
        let mut finals: Vec<Reason> =
            self.outcome.counted.iter().map(|(reason, _)| *reason).filter(|reason| !BESIDE.contains(reason)).collect();
        // A query to the DNS Service that is not answered here goes on as any other packet.
        if finals.len() > 1
            && let Some(at) = finals.iter().position(|reason| LEFT.contains(reason))
        {
            finals.remove(at);
        }
        for (reason, times) in &self.outcome.counted {
            that(*times == 1, || format!("{} counted {times} times", reason.name()))?;
        }
        let class = |class| finals.iter().filter(|reason| reason.class() == class).count();
        match self.outcome.action {
            Action::Other(code) => return Err(format!("verdict {code}")),
            Action::Drop => {
                // A reset is not answered by a reset, but its flow is at its end all the same.
                that(class(Class::Dropped) + class(Class::Rejected) == 1 && finals.len() == 1, || {
                    format!("dropped, but counted as {finals:?}")
                })?;
            }
            Action::Pass if self.has(Reason::Local) || (self.has(Reason::Replied) && self.program == "tc_egress") => {
                self.translated(true)?;
            }
            Action::Pass if self.has(Reason::IcmpRelayed) => self.relayed(true)?,
            Action::Pass => {
                that(class(Class::Passed) == finals.len() && finals.len() <= 1, || {
                    format!("passed, but counted as {finals:?}")
                })?;
                that(finals.len() == 1 || !self.uplink(), || "passed, and nothing counted".into())?;
                self.same()?;
            }
            Action::Redirect => {
                that(finals.len() == 1, || format!("sent, but counted as {finals:?}"))?;
                match finals[0] {
                    Reason::Forwarded | Reason::Replied if self.has(Reason::Fragmented) => self.cut()?,
                    Reason::Forwarded | Reason::Replied => self.translated(false)?,
                    Reason::IcmpRelayed => self.relayed(false)?,
                    Reason::Echo => self.echoed()?,
                    Reason::EndpointGone => self.reset()?,
                    reason if DNS.contains(&reason) => self.answered()?,
                    reason if reason.class() == Class::Rejected => self.refused()?,
                    reason => return Err(format!("sent, but counted as {}", reason.name())),
                }
            }
        }
        self.ours()
    }

    /// What is nobody's business passes; what is the gateway's does not.
    fn ours(&self) -> Check {
        let passed = self.outcome.action == Action::Pass;
        let untouched = || passed && self.before == self.after();
        let group = self.before[0] & 1 != 0;
        let Some(facts) = Facts::of(self.before) else {
            // Options and bad lengths may be dropped where their destination is claimed, never sent.
            return that(self.outcome.action != Action::Redirect, || "no whole packet, but sent".into());
        };
        let plan = &self.plans[usize::from(facts.version == 6)];
        let dst = facts.dst(self.before);
        // Replies, and errors, go to the client itself where it keeps its address.
        let routed = self.config.flags & config::ROUTED != 0 || self.program == "tc_egress";
        let mine = plan.is_claimed(dst) || dst == plan.own || (routed && plan.is_client(dst));
        if group || !mine || (facts.tags > 0 && !self.xdp()) {
            return that(untouched(), || "not the gateway's business, but not left alone".into());
        }
        if self.program == "tc_uplink" && plan.is_claimed(dst) && passed {
            let left = self.config.flags & config::STRANGERS_PASS != 0 && self.has(Reason::StrangerPassed);
            let short = self.has(Reason::Unparsed);
            let local = self.has(Reason::Local) || self.has(Reason::IcmpRelayed);
            return that(left || short || local, || "to a Service address, but left to the node".into());
        }
        Ok(())
    }

    fn facts(&self) -> Result<(Facts, Facts), String> {
        let before = Facts::of(self.before).ok_or("no whole packet came in")?;
        let after = Facts::of(self.after()).ok_or("no whole packet goes out")?;
        that(before.version == after.version, || "another family".into())?;
        Ok((before, after))
    }

    /// Checksums that were right still are.
    fn sums(&self, old: &Facts, new: &Facts) -> Check {
        that(!old.header_right || new.header_right, || "IPv4's checksum became wrong".into())?;
        that(old.sum != Sum::Right || new.sum == Sum::Right, || format!("the checksum was right, now {:?}", new.sum))?;
        that((old.sum == Sum::Absent) == (new.sum == Sum::Absent), || {
            format!("UDP's checksum: {:?} {:?}", old.sum, new.sum)
        })
    }

    /// Addresses, ports, TTL and checksums are another's; all else is as it was.
    fn translated(&self, local: bool) -> Check {
        let (old, new) = self.facts()?;
        let (before, after) = (&self.before[old.l3..], &self.after()[new.l3..]);
        that(before.len() == after.len(), || format!("{} bytes, {} before", after.len(), before.len()))?;
        that(old.fragment == new.fragment && old.proto == new.proto, || "another fragment or protocol".into())?;
        let hops = u8::from(!local);
        that(new.ttl == old.ttl.wrapping_sub(hops) && (local || old.ttl > 1), || {
            format!("TTL {} of {}", new.ttl, old.ttl)
        })?;
        self.sums(&old, &new)?;
        let first = old.fragment.is_none_or(|(offset, _)| offset == 0);
        // Sums of what makes the checksum up: the same, right or wrong, whole or not.
        if first && !(old.proto == 17 && before[old.l4 - old.l3 + 6..][..2] == [0, 0]) {
            let sum = |facts: &Facts, frame: &[u8]| fold(facts.pseudo(frame, 0) + add(&frame[facts.l4..facts.end]));
            that(sum(&old, self.before) == sum(&new, self.after()), || {
                "the checksum's change is not that of the headers".into()
            })?;
        }
        let clamped = self.config.mss_clamp != 0 && old.proto == 6;
        let (mut a, mut b) = (before.to_vec(), after.to_vec());
        for packet in [&mut a, &mut b] {
            blank(packet, &old, first);
            if clamped {
                let l4 = old.l4 - old.l3;
                let end = packet.len().min(l4 + 60);
                if let Some(options) = packet.get_mut(l4 + 20..end) {
                    options.fill(0);
                }
            }
        }
        that(a == b, || "more than the translation's fields has changed".into())?;
        let plan = &self.plans[usize::from(old.version == 6)];
        let (src, dst) = (new.src(self.after()), new.dst(self.after()));
        if self.has(Reason::Forwarded) {
            let client = old.src(self.before);
            that(plan.is_client(client), || "carried for somebody who is no client".into())?;
            that(plan.is_claimed(old.dst(self.before)), || "carried to what is no Service".into())?;
            let kept = local || self.config.flags & config::ROUTED != 0;
            that(if kept { src == client } else { src == plan.own }, || format!("source {src:02x?}"))?;
            that(if local { dst == plan.own } else { plan.is_pod(dst) }, || format!("destination {dst:02x?}"))
        } else {
            that(plan.is_claimed(src) && plan.is_client(dst), || format!("a reply from {src:02x?} to {dst:02x?}"))
        }
    }

    /// Cut into fragments, of which this is the last one.
    fn cut(&self) -> Check {
        let (old, new) = self.facts()?;
        let (a, b) = (self.before, self.after());
        that(old.version == 4 && a[old.l3 + 6] & 0x40 == 0 && !self.xdp(), || "cut where it may not be".into())?;
        that(!old.header_right || new.header_right, || "IPv4's checksum became wrong".into())?;
        that(new.ttl == old.ttl.wrapping_sub(1) && new.end == b.len(), || format!("{new:?} of {old:?}"))?;
        let (first, more) = old.fragment.unwrap_or((0, false));
        let Some((offset, last)) = new.fragment else { return Err("not a fragment".into()) };
        that(last == more && offset > first, || format!("the fragment at {offset} of one at {first}"))?;
        let from = old.l4 + offset - first;
        that(offset - first >= 20 && a.get(from..old.end) == Some(&b[new.l4..]), || "another payload".into())?;
        let plan = &self.plans[0];
        let (src, dst) = (new.src(b), new.dst(b));
        let forth = plan.is_pod(dst) && plan.is_client(old.src(a));
        let back = plan.is_client(dst) && plan.is_claimed(src);
        that(forth || back, || format!("from {src:02x?} to {dst:02x?}"))
    }

    /// An error about a flow.
    fn relayed(&self, local: bool) -> Check {
        let (old, new) = self.facts()?;
        let (before, after) = (&self.before[old.l3..], &self.after()[new.l3..]);
        that(before.len() == after.len(), || format!("{} bytes, {} before", after.len(), before.len()))?;
        that(new.ttl == old.ttl.wrapping_sub(u8::from(!local)), || format!("TTL {} of {}", new.ttl, old.ttl))?;
        self.sums(&old, &new)?;
        let inner = |facts: &Facts, frame: &[u8]| {
            let l3 = facts.l4 + 8;
            let mut l4 = l3 + if facts.version == 4 { 20 } else { 40 };
            let mut proto = frame[l3 + if facts.version == 4 { 9 } else { 6 }];
            if facts.version == 6 && proto == 44 && frame.len() > l4 {
                // The first fragment of a datagram.
                (proto, l4) = (frame[l4], l4 + 8);
            }
            let header_right = facts.version == 6 || fold(add(&frame[l3..l3 + 20])) == 0;
            (
                Facts { l3, l4, proto, header_right, sum: Sum::Unknown, fragment: None, tags: 0, ..*facts },
                Facts::at(frame, l3, facts.version, facts.end),
            )
        };
        let ((quoted, whole), (requoted, rewhole)) = (inner(&old, self.before), inner(&new, self.after()));
        that(!quoted.header_right || requoted.header_right, || "the quoted header's checksum became wrong".into())?;
        if let (Some(whole), Some(rewhole)) = (whole, rewhole) {
            self.sums(&whole, &rewhole).map_err(|what| format!("quoted: {what}"))?;
        }
        let (mut a, mut b) = (before.to_vec(), after.to_vec());
        for packet in [&mut a, &mut b] {
            blank(packet, &old, false);
            let icmp = old.l4 - old.l3;
            packet[icmp + 2..icmp + 4].fill(0);
            let at = Facts { l3: 0, l4: quoted.l4 - quoted.l3, end: old.end - quoted.l3, ..quoted };
            blank(&mut packet[icmp + 8..], &at, true);
            // Only the translation's part of the quoted header: its TTL is not touched.
        }
        let ttl = |frame: &[u8], at: &Facts| frame[at.l3 + if at.version == 4 { 8 } else { 7 }];
        that(ttl(self.before, &quoted) == ttl(self.after(), &requoted), || "the quoted TTL has changed".into())?;
        that(a == b, || "more than the translation's fields has changed".into())
    }

    /// Turned round: whom it is from and to.
    fn turned(&self, old: &Facts, new: &Facts) -> Check {
        let (a, b) = (self.before, self.after());
        that(a[..6] == b[6..12] && a[6..12] == b[..6], || "MACs".into())?;
        that(a[12..old.l3] == b[12..new.l3], || "tags".into())?;
        that(new.dst(b) == old.src(a), || "not to its sender".into())
    }

    fn echoed(&self) -> Check {
        let (old, new) = self.facts()?;
        self.turned(&old, &new)?;
        self.sums(&old, &new)?;
        let (a, b) = (self.before, self.after());
        that(new.src(b) == old.dst(a) && a.len() == b.len() && new.ttl == 64, || "no reply of the VIP's".into())?;
        let first = old.fragment.is_none_or(|(offset, _)| offset == 0);
        let data = if first { 4 } else { 0 };
        that(a[old.l4 + data..] == b[new.l4 + data..], || "another payload".into())?;
        let kinds = if old.version == 4 { (8, 0) } else { (128, 129) };
        that(!first || (a[old.l4], b[new.l4]) == kinds, || "not an echo and its reply".into())
    }

    /// Of the gateway's own making: nothing in it is wrong.
    fn made(&self, new: &Facts) -> Check {
        that(new.header_right && new.sum == Sum::Right, || format!("made with a wrong checksum: {new:?}"))?;
        that(new.end == self.after().len(), || format!("{} bytes behind the packet", self.after().len() - new.end))
    }

    fn refused(&self) -> Check {
        let (old, new) = self.facts()?;
        self.turned(&old, &new)?;
        self.made(&new)?;
        let (a, b) = (self.before, self.after());
        that(new.proto == new.icmp() && new.fragment.is_none(), || "not ICMP".into())?;
        that(old.fragment.is_none_or(|(offset, _)| offset == 0), || "about a later fragment".into())?;
        let error = |facts: &Facts, kind: u8| {
            facts.proto == facts.icmp()
                && if facts.version == 4 { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind < 128 }
        };
        that(error(&new, b[new.l4]), || format!("type {}", b[new.l4]))?;
        let kind = a.get(old.l4).copied().unwrap_or(0);
        that(old.fragment.is_some() || old.end <= old.l4 || !error(&old, kind), || "an error about an error".into())?;
        let plan = &self.plans[usize::from(old.version == 6)];
        let src = new.src(b);
        that(src == plan.own || src == old.dst(a), || format!("from {src:02x?}"))?;
        let most = if old.version == 4 { 548 } else { 1232 };
        let quote = &a[old.l3..old.end.min(old.l3 + most)];
        that(&b[new.l4 + 8..] == quote, || "the quote is not the packet".into())
    }

    fn reset(&self) -> Check {
        let (old, new) = self.facts()?;
        self.turned(&old, &new)?;
        self.made(&new)?;
        let (a, b) = (self.before, self.after());
        that(new.src(b) == old.dst(a) && new.proto == 6 && new.end == new.l4 + 20, || "no reset".into())?;
        let (flags, said) = (b[new.l4 + 13], a[old.l4 + 13]);
        that(flags & 4 != 0 && said & 4 == 0, || format!("flags {flags:#x} to {said:#x}"))?;
        let ports = |frame: &[u8], at: usize| (word(frame, at), word(frame, at + 2));
        let (there, back) = (ports(a, old.l4), ports(b, new.l4));
        that(there == (back.1, back.0), || "ports".into())
    }

    fn answered(&self) -> Check {
        let (old, new) = self.facts()?;
        self.turned(&old, &new)?;
        self.made(&new)?;
        let (a, b) = (self.before, self.after());
        that(new.src(b) == old.dst(a) && new.proto == 17 && old.proto == 17, || "no answer".into())?;
        that(usize::from(word(b, new.l4 + 4)) == new.end - new.l4, || "UDP's length".into())?;
        queries::answer(queries::message(&a[old.l4..old.end]), queries::message(&b[new.l4..new.end]))
    }
}

/// Blanks what a translation may change of a packet with its IP header at `facts.l3` of the frame (here at 0): addresses, TTL, header
/// checksum, and with `ports` the ports and the transport checksum as far as they are there.
fn blank(packet: &mut [u8], facts: &Facts, ports: bool) {
    if facts.version == 4 {
        packet[8] = 0;
        packet[10..20].fill(0);
    } else {
        packet[7] = 0;
        packet[8..40].fill(0);
    }
    if ports {
        let (l4, end) = (facts.l4 - facts.l3, (facts.end - facts.l3).min(packet.len()));
        packet[l4..(l4 + 4).min(end)].fill(0);
        if let Some(at) = facts.check_at().map(|at| at - facts.l3)
            && at + 2 <= end
        {
            packet[at..at + 2].fill(0);
        }
    }
}
