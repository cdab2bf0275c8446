//! Names in wire format, folded to lower case, and the names above them.

pub use gateway_common::dns::name::to_text;

/// From text, with or without the last dot; `None` when it is no DNS name.
pub fn from_text(text: &str) -> Option<Box<[u8]>> {
    gateway_common::dns::name::to_wire(text).ok().map(Vec::into_boxed_slice)
}

/// The name itself, then each name above it, the root last.
pub fn upwards(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors((!wire.is_empty()).then_some(wire), |name| {
        let label = usize::from(*name.first()?);
        if label == 0 { None } else { name.get(1 + label..).filter(|rest| !rest.is_empty()) }
    })
}

/// Whether a name is in a zone: the zone's own name or below.
pub fn is_within(name: &[u8], zone: &[u8]) -> bool {
    name.ends_with(zone) && upwards(name).any(|suffix| suffix.len() == zone.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["a..b", &"x".repeat(64), &"abcdefg.".repeat(33)] {
            assert!(from_text(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_name_is_in_a_zone_by_whole_labels() {
        let wire = |text: &str| from_text(text).expect("name");
        let zone = wire("cluster.local");
        assert!(is_within(&wire("cluster.local"), &zone));
        assert!(is_within(&wire("a.Cluster.local."), &zone));
        assert!(!is_within(&wire("acluster.local"), &zone));
        assert!(!is_within(&wire("local"), &zone));
        assert!(is_within(&zone, &wire(".")));
        // A label may hold the bytes of a zone's first length byte.
        assert!(!is_within(b"\x0fx\x07cluster\x05local\x00", b"\x07cluster\x05local\x00"));
    }

    #[test]
    fn a_names_ancestors_end_at_the_root() {
        let name = from_text("a.b.c").expect("name");
        let names: Vec<String> = upwards(&name).map(to_text).collect();
        assert_eq!(names, ["a.b.c", "b.c", "c", "."]);
    }
}
