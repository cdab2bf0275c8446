//! How many answers over UDP a source prefix gets from the forwarder: the kernel's own code over a table of its own.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use gateway_common::{
    dns::limit::{Limit, Meter, Verdict, mapped},
    limits::capacity,
};

/// Ticks a second of the meters' clock.
const HZ: u32 = 1000;

/// `dns.rateLimit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Answers a second and prefix; 0: no limit.
    pub rate: u32,
    /// Each so manieth answer above the rate is sent with TC; 0: none is.
    pub slip: u32,
    /// Length of IPv4 prefixes.
    pub prefix4: u8,
    /// Length of IPv6 prefixes.
    pub prefix6: u8,
    /// Bit n: clients of view n are not limited.
    pub exempt: u64,
}

/// Off; the rest is as BIND and Knot have it.
impl Default for RateLimit {
    fn default() -> Self {
        Self { rate: 0, slip: 2, prefix4: 24, prefix6: 56, exempt: 0 }
    }
}

impl RateLimit {
    /// As the kernel and [`Limiter`] use it.
    pub fn limit(&self) -> Limit {
        let limit = Limit { exempt: self.exempt, rate: self.rate.min(Limit::MOST), slip: self.slip, ..Limit::OFF };
        limit.prefixes(self.prefix4, self.prefix6)
    }
}

/// The meters.
#[derive(Debug)]
pub struct Limiter {
    limit: Limit,
    began: Instant,
    meters: Mutex<HashMap<[u32; 4], Meter>>,
}

impl Limiter {
    /// With no meters yet; `None` when nothing is limited.
    pub fn new(config: &RateLimit) -> Option<Self> {
        let limit = config.limit();
        (limit.rate > 0).then(|| Self { limit, began: Instant::now(), meters: Mutex::default() })
    }

    /// Takes an answer from the meter of this source, a client of that view.
    pub fn take(&self, source: IpAddr, view: u8) -> Verdict {
        self.take_at(source, view, u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn take_at(&self, source: IpAddr, view: u8, now: u64) -> Verdict {
        if !self.limit.counts(view.into()) {
            return Verdict::Send;
        }
        let prefix = self.limit.prefix(words(source));
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if meters.len() >= capacity::DNS_METERS as usize && !meters.contains_key(&prefix) {
            make_room(&mut meters, now);
        }
        let meter = meters.entry(prefix).or_insert_with(|| self.limit.full(now, HZ));
        self.limit.take(meter, now, HZ)
    }
}

/// Takes meters out that are full again. When most are in use all go, rather than look at all of them for every new one.
fn make_room(meters: &mut HashMap<[u32; 4], Meter>, now: u64) {
    meters.retain(|_, meter| now.saturating_sub(meter.at) < u64::from(HZ));
    if meters.len() > capacity::DNS_METERS as usize / 2 {
        meters.clear();
    }
}

fn words(source: IpAddr) -> [u32; 4] {
    match source.to_canonical() {
        IpAddr::V4(addr) => mapped(u32::from_ne_bytes(addr.octets())),
        IpAddr::V6(addr) => bytemuck::cast(addr.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        Limiter::new(&RateLimit { rate: 2, exempt: 0b10, ..RateLimit::default() }).expect("a limit")
    }

    fn take(limiter: &Limiter, source: &str, view: u8, now: u64) -> Verdict {
        limiter.take_at(source.parse().expect("an address"), view, now)
    }

    #[test]
    fn neighbours_share_a_rate_and_others_do_not() {
        let limiter = limiter();
        for (source, view, verdict) in [
            ("10.90.1.7", 0, Verdict::Send),
            ("::ffff:10.90.1.8", 0, Verdict::Send),
            ("10.90.1.7", 0, Verdict::Drop),
            ("10.90.1.9", 0, Verdict::Slip),
            ("10.90.2.7", 0, Verdict::Send),
            ("10.90.1.7", 1, Verdict::Send),
            ("fd00::1", 0, Verdict::Send),
            ("fd00:0:0:ff::1", 0, Verdict::Send),
            ("fd00::2", 0, Verdict::Drop),
            ("fd00:0:0:100::1", 0, Verdict::Send),
        ] {
            assert_eq!(take(&limiter, source, view, 0), verdict, "{source} view {view}");
        }
        assert_eq!(take(&limiter, "10.90.1.7", 0, 500), Verdict::Send, "half a second brings one");
        assert!(Limiter::new(&RateLimit::default()).is_none(), "off unless asked for");
    }

    #[test]
    fn a_flood_of_prefixes_takes_bounded_memory() {
        let limiter = limiter();
        for i in 0..3 * capacity::DNS_METERS {
            limiter.take_at(IpAddr::from((i << 8).to_be_bytes()), 0, u64::from(i / 100));
        }
        let meters = limiter.meters.lock().expect("meters");
        assert!(meters.len() <= capacity::DNS_METERS as usize, "{}", meters.len());
    }
}
