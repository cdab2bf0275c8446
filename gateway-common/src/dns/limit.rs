//! Response rate limiting: how many answers over UDP a source prefix gets, and what becomes of those above.
//!
//! A UDP source can be forged, and then answers hit who never asked. Of the answers above the rate each [`Limit::slip`]th is sent with TC and
//! without records, no longer than the query was: a real client comes back over TCP, which is not limited, and a forged one gets nothing
//! out of it. The kernel and the forwarder count each for itself, by this code.

use bytemuck::{Pod, Zeroable};

/// How many answers, and to whom. The agent gives it to the programs when it loads them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Limit {
    /// Bit n: clients of view n are not limited.
    pub exempt: u64,
    /// Answers a second and prefix, at most [`Limit::MOST`]; as many at once. 0: no limit.
    pub rate: u32,
    /// Each so manieth answer above the rate is sent with TC; 0: none is.
    pub slip: u32,
    /// Mask of IPv6 prefixes, network order.
    pub mask6: [u32; 4],
    /// Mask of IPv4 prefixes, network order.
    pub mask4: u32,
    /// Zero.
    pub pad: u32,
}

/// The meter of one prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Meter {
    /// Tick of the last refill.
    pub at: u64,
    /// What is left, in ticks: an answer costs a second's ticks, and each tick brings [`Limit::rate`].
    pub left: u32,
    /// Answers above the rate since the last one that slipped.
    pub over: u32,
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is sent.
    Send,
    /// TC and no records are sent instead.
    Slip,
    /// Nothing is sent.
    Drop,
}

/// Third word of an IPv4 address among IPv6 ones (RFC 4291 section 2.5.5.2), network order.
const MAPPED: u32 = 0xffffu32.to_be();

/// An IPv4 address (network order) among IPv6 ones.
#[inline(always)]
pub const fn mapped(addr: u32) -> [u32; 4] {
    [0, 0, MAPPED, addr]
}

impl Limit {
    /// No limit.
    pub const OFF: Self = Self { exempt: 0, rate: 0, slip: 0, mask6: [0; 4], mask4: 0, pad: 0 };
    /// Highest rate: a full meter of the fastest clock, a thousand ticks a second, is a `u32`.
    pub const MOST: u32 = 1_000_000;

    /// With prefixes of so many bits, at most 32 and 128.
    #[must_use]
    pub const fn prefixes(mut self, bits4: u8, bits6: u8) -> Self {
        self.mask4 = mask(bits4);
        let mut i = 0;
        while i < 4 {
            self.mask6[i] = mask(bits6.saturating_sub(32 * i as u8));
            i += 1;
        }
        self
    }

    /// The prefix that a source (as [`mapped`] has IPv4) is counted with.
    #[inline(always)]
    pub const fn prefix(&self, source: [u32; 4]) -> [u32; 4] {
        let [a, b, c, d] = source;
        if a | b == 0 && c == MAPPED {
            return [0, 0, MAPPED, d & self.mask4];
        }
        [a & self.mask6[0], b & self.mask6[1], c & self.mask6[2], d & self.mask6[3]]
    }

    /// Whether answers to clients of that view are counted.
    #[inline(always)]
    pub const fn counts(&self, view: u32) -> bool {
        self.rate != 0 && self.exempt >> (view & 63) & 1 == 0
    }

    /// A new prefix's meter.
    #[inline(always)]
    pub const fn full(&self, now: u64, hz: u32) -> Meter {
        Meter { at: now, left: self.rate.saturating_mul(hz), over: 0 }
    }

    /// Takes an answer from the meter at tick `now` of a clock with `hz` ticks a second.
    #[inline(always)]
    pub const fn take(&self, meter: &mut Meter, now: u64, hz: u32) -> Verdict {
        let most = self.rate as u64 * hz as u64;
        // A second fills any meter; the cap keeps the product small.
        let ticks = now.saturating_sub(meter.at);
        let ticks = if ticks > hz as u64 { hz as u64 } else { ticks };
        let filled = meter.left as u64 + ticks * self.rate as u64;
        let left = if filled > most { most } else { filled };
        meter.at = now;
        if left >= hz as u64 {
            meter.left = (left - hz as u64) as u32;
            return Verdict::Send;
        }
        meter.left = left as u32;
        meter.over = meter.over.saturating_add(1);
        if self.slip != 0 && meter.over >= self.slip {
            meter.over = 0;
            return Verdict::Slip;
        }
        Verdict::Drop
    }

    /// Gives an answer back to the meter that was taken and not sent.
    #[inline(always)]
    pub const fn give_back(&self, meter: &mut Meter, hz: u32) {
        let most = self.rate.saturating_mul(hz);
        let left = meter.left.saturating_add(hz);
        meter.left = if left > most { most } else { left };
    }
}

/// The first `bits` of 32, network order.
const fn mask(bits: u8) -> u32 {
    match bits {
        0 => 0,
        1..=31 => (u32::MAX << (32 - bits)).to_be(),
        _ => u32::MAX,
    }
}

const _: () = assert!(size_of::<Limit>() == 40 && size_of::<Meter>() == 16);

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use proptest::prelude::*;

    use super::{Verdict::*, *};

    fn words(addr: &str) -> [u32; 4] {
        let v6 = match addr.parse::<IpAddr>().expect("an address") {
            IpAddr::V4(v4) => return mapped(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => v6,
        };
        bytemuck::cast(v6.octets())
    }

    fn text(prefix: [u32; 4]) -> String {
        let octets: [u8; 16] = bytemuck::cast(prefix);
        IpAddr::from(Ipv6Addr::from(octets)).to_canonical().to_string()
    }

    fn limit(rate: u32, slip: u32) -> Limit {
        Limit { rate, slip, ..Limit::OFF }.prefixes(24, 56)
    }

    #[test]
    fn sources_are_counted_by_their_prefix() {
        for (bits4, bits6, source, prefix) in [
            (24, 56, "10.90.1.100", "10.90.1.0"),
            (32, 56, "10.90.1.100", "10.90.1.100"),
            (0, 56, "10.90.1.100", "0.0.0.0"),
            (9, 56, "10.255.1.100", "10.128.0.0"),
            (24, 56, "fd00:1:2:3ff:4:5:6:7", "fd00:1:2:300::"),
            (24, 64, "fd00:1:2:3ff:4:5:6:7", "fd00:1:2:3ff::"),
            (24, 128, "fd00:1:2:3ff:4:5:6:7", "fd00:1:2:3ff:4:5:6:7"),
            (24, 97, "fd00:1:2:3ff:4:5:ffff:7", "fd00:1:2:3ff:4:5:8000:0"),
            (24, 0, "fd00:1:2:3ff:4:5:6:7", "::"),
        ] {
            let limit = Limit::OFF.prefixes(bits4, bits6);
            assert_eq!(text(limit.prefix(words(source))), prefix, "{source}/{bits4}/{bits6}");
        }
        let limit = limit(1, 1);
        assert_ne!(limit.prefix(words("0.0.0.0")), limit.prefix(words("::")), "families do not share meters");
    }

    #[test]
    fn above_the_rate_each_nth_answer_slips() {
        for (slip, expected) in [
            (0, [Send, Send, Drop, Drop, Drop, Drop, Drop]),
            (1, [Send, Send, Slip, Slip, Slip, Slip, Slip]),
            (2, [Send, Send, Drop, Slip, Drop, Slip, Drop]),
            (3, [Send, Send, Drop, Drop, Slip, Drop, Drop]),
        ] {
            let limit = limit(2, slip);
            let mut meter = limit.full(7, 250);
            assert_eq!(expected.map(|_| limit.take(&mut meter, 7, 250)), expected, "slip {slip}");
            // Half a second brings one answer, and a pause never more than a second's.
            assert_eq!([0, 0].map(|_| limit.take(&mut meter, 132, 250) == Send), [true, false]);
            assert_eq!([0; 3].map(|_| limit.take(&mut meter, 1_000_000, 250) == Send), [true, true, false]);
        }
    }

    #[test]
    fn some_views_are_exempt_and_no_rate_is_no_limit() {
        let limit = Limit { exempt: 1 << 1 | 1 << 63, ..limit(1, 1) };
        assert_eq!([0, 1, 2, 63].map(|view| limit.counts(view)), [true, false, true, false]);
        assert!(!Limit::OFF.counts(0));
    }

    #[test]
    fn what_was_not_sent_is_given_back() {
        let limit = limit(2, 0);
        let mut meter = limit.full(0, 100);
        for _ in 0..10 {
            assert_eq!(limit.take(&mut meter, 0, 100), Send);
            limit.give_back(&mut meter, 100);
        }
        assert_eq!(meter, limit.full(0, 100), "and never more than that");
        limit.give_back(&mut meter, 100);
        assert_eq!(meter.left, limit.full(0, 100).left);
    }

    proptest! {
        /// Whatever the clock, the rate and the pauses: in any time, a prefix gets what it brings and a second's worth at once, and as much of
        /// that as it asks for; of the others exactly each nth slips.
        #[test]
        fn a_prefix_gets_its_rate(
            rate in 1..=Limit::MOST,
            slip in 0..5u32,
            hz in prop_oneof![Just(100u32), Just(250), Just(300), Just(1000)],
            start in any::<u64>().prop_map(|start| start >> 1),
            pauses in proptest::collection::vec(0..400u64, 1..300),
        ) {
            let limit = limit(rate, slip);
            let mut meter = limit.full(start, hz);
            let (mut now, mut sent, mut over, mut slipped) = (start, 0u64, 0u64, 0u64);
            for pause in pauses {
                now += pause;
                match limit.take(&mut meter, now, hz) {
                    Send => sent += 1,
                    Slip => (over, slipped) = (over + 1, slipped + 1),
                    Drop => over += 1,
                }
                // In units of an answer's price, without rounding.
                let brought = u64::from(rate) * (now - start + u64::from(hz));
                prop_assert!(sent * u64::from(hz) <= brought);
                prop_assert!(u64::from(meter.left) <= u64::from(rate) * u64::from(hz));
            }
            prop_assert_eq!(slipped, if slip == 0 { 0 } else { over / u64::from(slip) });
        }

        #[test]
        fn a_clock_that_jumps_breaks_nothing(rate in 0..=Limit::MOST, ticks in proptest::collection::vec(any::<u64>(), 1..20)) {
            let limit = limit(rate, 2);
            let mut meter = limit.full(ticks[0], 1000);
            for now in ticks {
                let _ = limit.take(&mut meter, now, 1000);
                prop_assert!(meter.left <= rate * 1000);
            }
        }
    }
}
