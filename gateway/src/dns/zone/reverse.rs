//! The reverse zones of address ranges.

use ipnet::IpNet;

use crate::dns::name;

/// The zones that hold the pointers of these ranges and of nothing else, as many whole ranges as `most` zones hold. A range that does
/// not end at a label's boundary is several zones; one that takes too many, or whose name the kernel does not hold, is left out: the
/// zone then has the pointers there are, and does not deny others.
pub fn zones(ranges: &[IpNet], most: usize) -> Vec<Box<[u8]>> {
    let mut zones: Vec<Box<[u8]>> = Vec::new();
    for range in IpNet::aggregate(&ranges.to_vec()) {
        let Some(names) = of_range(range, most - zones.len()) else {
            tracing::info!(%range, "no reverse zone as a whole: questions for addresses without a name go to the zone rules");
            continue;
        };
        zones.extend(names);
    }
    zones
}

fn of_range(range: IpNet, most: usize) -> Option<Vec<Box<[u8]>>> {
    let label = if range.addr().is_ipv4() { 8 } else { 4 };
    let whole = range.prefix_len().div_ceil(label) * label;
    // The root of all addresses is not a Service range, and two bits more are four zones.
    if range.prefix_len() == 0 || 1 << (whole - range.prefix_len()) > most {
        return None;
    }
    range.subnets(whole).ok()?.map(|zone| zone_name(&zone)).collect()
}

fn zone_name(range: &IpNet) -> Option<Box<[u8]>> {
    let len = usize::from(range.prefix_len());
    let text = match range {
        IpNet::V4(range) => {
            let octets = range.addr().octets();
            octets[..len / 8].iter().rev().map(|octet| format!("{octet}.")).collect::<String>() + "in-addr.arpa"
        }
        IpNet::V6(range) => {
            let octets = range.addr().octets();
            let nibbles: Vec<u8> = octets.iter().flat_map(|octet| [octet >> 4, octet & 0xf]).collect();
            nibbles[..len / 4].iter().rev().map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
    };
    name::from_text(&text).filter(|name| name.len() <= gateway_common::limits::DNS_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_the_zones_that_cover_them_and_nothing_else() {
        for (ranges, expected) in [
            (&["10.1.0.0/16"][..], &["1.10.in-addr.arpa"][..]),
            (&["10.0.0.0/8"], &["10.in-addr.arpa"]),
            (&["10.1.2.0/24"], &["2.1.10.in-addr.arpa"]),
            (&["10.1.2.0/23"], &["2.1.10.in-addr.arpa", "3.1.10.in-addr.arpa"]),
            (&["10.96.0.0/12"], &[]),
            (&["10.1.2.8/29"], &[]),
            (&["10.1.2.3/32"], &["3.2.1.10.in-addr.arpa"]),
            (&["0.0.0.0/0"], &[]),
            (&["10.1.0.0/16", "10.1.2.0/24"], &["1.10.in-addr.arpa"]),
            (&["10.2.0.0/16", "10.96.0.0/12", "fd00:1::/32"], &["2.10.in-addr.arpa", "1.0.0.0.0.0.d.f.ip6.arpa"]),
            (&["fd00:1::/31"], &["0.0.0.0.0.0.d.f.ip6.arpa", "1.0.0.0.0.0.d.f.ip6.arpa"]),
            (&["fd00:1::/108"], &["0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa"]),
            // Its name is longer than the kernel's limit.
            (&["fd00:1::/112"], &[]),
        ] {
            let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().expect("a range")).collect();
            let zones: Vec<String> = zones(&ranges, 7).iter().map(|zone| name::to_text(zone)).collect();
            assert_eq!(zones, expected, "{ranges:?}");
        }
    }

    #[test]
    fn there_are_never_more_zones_than_asked_for() {
        let ranges: Vec<IpNet> = (0..12).map(|n| format!("10.{}.0.0/16", 2 * n).parse().expect("a range")).collect();
        assert_eq!(zones(&ranges, 7).len(), 7);
        assert_eq!(zones(&ranges, 0).len(), 0);
    }
}
