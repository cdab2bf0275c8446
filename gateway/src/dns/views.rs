//! Which view a source address is in: the longest prefix decides, as in the datapath's LPM trie.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use ipnet::IpNet;

/// Prefixes and their view numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewTable {
    prefixes: HashMap<IpNet, u8>,
    lengths4: Vec<u8>,
    lengths6: Vec<u8>,
}

impl ViewTable {
    /// From the prefixes of each view; the index is the view's number.
    pub fn new(views: &[Vec<IpNet>]) -> Self {
        let mut table = Self::default();
        let (mut lengths4, mut lengths6) = (BTreeSet::new(), BTreeSet::new());
        for (id, prefixes) in (0..=u8::MAX).zip(views) {
            for prefix in prefixes {
                let lengths = if prefix.addr().is_ipv4() { &mut lengths4 } else { &mut lengths6 };
                lengths.insert(prefix.prefix_len());
                table.prefixes.insert(prefix.trunc(), id);
            }
        }
        table.lengths4 = lengths4.into_iter().rev().collect();
        table.lengths6 = lengths6.into_iter().rev().collect();
        table
    }

    /// The view of a source; `None` for a stranger.
    pub fn of(&self, source: IpAddr) -> Option<u8> {
        let source = source.to_canonical();
        let lengths = if source.is_ipv4() { &self.lengths4 } else { &self.lengths6 };
        lengths.iter().find_map(|&length| {
            let prefix = IpNet::new(source, length).ok()?.trunc();
            self.prefixes.get(&prefix).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(views: &[&[&str]]) -> ViewTable {
        let views: Vec<Vec<IpNet>> =
            views.iter().map(|view| view.iter().map(|p| p.parse().expect("prefix")).collect()).collect();
        ViewTable::new(&views)
    }

    #[test]
    fn the_longest_prefix_decides() {
        let table = table(&[&["10.0.0.0/8", "fd00::/8"], &["10.90.0.0/16"], &["10.90.1.7/32", "fd00:1::/32"]]);
        for (source, view) in [
            ("10.1.1.1", Some(0)),
            ("10.90.1.8", Some(1)),
            ("10.90.1.7", Some(2)),
            ("::ffff:10.90.1.7", Some(2)),
            ("192.0.2.1", None),
            ("fd00:2::1", Some(0)),
            ("fd00:1::1", Some(2)),
            ("2001:db8::1", None),
        ] {
            assert_eq!(table.of(source.parse().expect("address")), view, "{source}");
        }
    }

    #[test]
    fn a_default_route_takes_everyone_of_its_family() {
        let table = table(&[&["0.0.0.0/0"]]);
        assert_eq!(table.of("203.0.113.9".parse().expect("address")), Some(0));
        assert_eq!(table.of("::1".parse().expect("address")), None);
    }

    #[test]
    fn without_views_everyone_is_a_stranger() {
        assert_eq!(ViewTable::default().of("127.0.0.1".parse().expect("address")), None);
    }
}
