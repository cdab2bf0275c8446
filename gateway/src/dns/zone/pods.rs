//! Names of pods, which say their address themselves: `10-42-0-7.shop.pod.cluster.local`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::dns::name;

/// The name of a pod: the address in it, and the namespace's name above it; `None` when it is none, or not right below a namespace of
/// `zone`, which is `pod` and the cluster's domain.
pub fn parse<'n>(name: &'n [u8], zone: &[u8]) -> Option<(IpAddr, &'n [u8])> {
    let mut above = name::upwards(name).skip(1);
    let namespace = above.next()?;
    if above.next()? != zone {
        return None;
    }
    let (&len, rest) = name.split_first()?;
    Some((address(std::str::from_utf8(rest.get(..len.into())?).ok()?)?, namespace))
}

/// Dashes stand for dots where there are three of them, one by one, and for colons elsewhere: CoreDNS' rule.
pub fn address(label: &str) -> Option<IpAddr> {
    if label.matches('-').count() == 3 && !label.contains("--") {
        return label.replace('-', ".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    label.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_name_is_its_address_below_its_namespace() {
        let zone = name::from_text("pod.cluster.local").expect("name");
        for (text, expected) in [
            ("10-42-0-7.shop.pod.cluster.local", Some("10.42.0.7")),
            ("fd00-42--7.shop.pod.cluster.local", Some("fd00:42::7")),
            ("1-2-3-4-5-6-7-8.shop.pod.cluster.local", Some("1:2:3:4:5:6:7:8")),
            ("1--2-3.shop.pod.cluster.local", Some("1::2:3")),
            ("10-42-0-256.shop.pod.cluster.local", None),
            ("010-42-0-7.shop.pod.cluster.local", None),
            ("10-42-0.shop.pod.cluster.local", None),
            ("10.42.0.7.shop.pod.cluster.local", None),
            ("web.shop.pod.cluster.local", None),
            ("x.10-42-0-7.shop.pod.cluster.local", None),
            ("10-42-0-7.pod.cluster.local", None),
            ("10-42-0-7.shop.svc.cluster.local", None),
            ("shop.pod.cluster.local", None),
            ("pod.cluster.local", None),
        ] {
            let wire = name::from_text(text).expect("name");
            let found = parse(&wire, &zone).map(|(addr, _)| addr.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
            if let Some((_, namespace)) = parse(&wire, &zone) {
                assert_eq!(name::to_text(namespace), "shop.pod.cluster.local");
            }
        }
    }
}
