//! The token bucket that limits errors to one source.

use crate::maps::Bucket;

/// Price of one error, in the bucket's thousandths.
const TOKEN: u64 = 1000;

/// A bucket after one request at `now`, and whether the request is granted. `rate` a second, twice that at once; `hz`
/// is ticks a second.
#[inline(always)]
pub const fn take(old: Option<Bucket>, now: u64, hz: u32, rate: u32) -> (Bucket, bool) {
    let burst = rate as u64 * 2 * TOKEN;
    let tokens = match old {
        None => burst,
        Some(b) => {
            // Ten seconds fill any bucket; the cap keeps the product small.
            let ticks = now.saturating_sub(b.at);
            let most = hz as u64 * 10;
            let ticks = if ticks > most { most } else { ticks };
            let filled = b.tokens + ticks * rate as u64 * TOKEN / if hz == 0 { 1 } else { hz as u64 };
            if filled > burst { burst } else { filled }
        }
    };
    if tokens >= TOKEN {
        (Bucket { at: now, tokens: tokens - TOKEN }, true)
    } else {
        (Bucket { at: now, tokens }, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_gets_its_burst_then_its_rate() {
        let (mut bucket, mut granted) = (None, 0);
        for _ in 0..100 {
            let (b, ok) = take(bucket, 1000, 250, 10);
            (bucket, granted) = (Some(b), granted + u32::from(ok));
        }
        assert_eq!(granted, 20);
        for tick in 0..2500u64 {
            let (b, ok) = take(bucket, 1000 + tick, 250, 10);
            (bucket, granted) = (Some(b), granted + u32::from(ok));
        }
        assert!((119..=121).contains(&granted), "{granted} after ten seconds at ten a second");
    }

    #[test]
    fn a_rate_of_zero_grants_nothing_and_a_clock_that_jumps_breaks_nothing() {
        assert!(!take(None, 5, 250, 0).1);
        let (bucket, _) = take(None, u64::MAX, 1000, 10);
        assert!(take(Some(bucket), 0, 1000, 10).1);
        assert!(take(Some(Bucket { at: 0, tokens: 0 }), u64::MAX, 0, u32::MAX).0.tokens <= u64::from(u32::MAX) * 2000);
    }
}
