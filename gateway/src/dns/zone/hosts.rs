//! Endpoints' own names and the pointers back to them: `10-42-0-7.web.shop.svc.cluster.local` has the address that it says, and
//! `7.0.42.10.in-addr.arpa` leads to it. Both follow from the address and the name above, and a large cluster has hundreds of thousands: so
//! these two are kept, and the records are made when somebody asks.

use std::{collections::HashMap, net::IpAddr};

use super::{
    pods,
    tree::{Data, Held, Holders, Name},
};
use crate::{dns::name, plan};

/// What an address is an endpoint of: the name above its own, and who has it. Almost always one.
#[derive(Debug)]
enum Parents {
    One(Name, Holders),
    Several(Vec<(Name, Holders)>),
}

impl Parents {
    fn as_list(&self) -> Vec<(&Name, &Holders)> {
        match self {
            Self::One(name, held) => vec![(name, held)],
            Self::Several(list) => list.iter().map(|(name, held)| (name, held)).collect(),
        }
    }

    fn held(&mut self, record: &Held) -> Option<&mut Holders> {
        match self {
            Self::One(name, held) => (*name == record.name && held.is_of(record)).then_some(held),
            Self::Several(list) => {
                list.iter_mut().find(|(name, held)| *name == record.name && held.is_of(record)).map(|(_, held)| held)
            }
        }
    }

    fn push(&mut self, record: &Held) {
        let new = (record.name.clone(), Holders::of(record));
        match self {
            Self::One(name, held) => *self = Self::Several(vec![(name.clone(), *held), new]),
            Self::Several(list) => list.push(new),
        }
    }
}

/// The endpoints, by address.
#[derive(Debug, Default)]
pub struct Hosts(HashMap<IpAddr, Parents>);

impl Hosts {
    /// Adds one owner's endpoint: `record` has the name above, `addr` is in its data.
    pub fn add(&mut self, addr: IpAddr, record: &Held) {
        match self.0.get_mut(&addr) {
            None => {
                self.0.insert(addr, Parents::One(record.name.clone(), Holders::of(record)));
            }
            Some(parents) => match parents.held(record) {
                Some(held) => held.owners += 1,
                None => parents.push(record),
            },
        }
    }

    /// Takes one owner's endpoint away.
    pub fn remove(&mut self, addr: IpAddr, record: &Held) {
        let Some(parents) = self.0.get_mut(&addr) else { return };
        let Some(held) = parents.held(record) else { return };
        held.owners -= 1;
        if held.owners > 0 {
            return;
        }
        let last = match parents {
            Parents::One(..) => true,
            Parents::Several(list) => {
                list.retain(|(_, held)| held.owners > 0);
                if let [(name, held)] = &**list {
                    *parents = Parents::One(name.clone(), *held);
                }
                false
            }
        };
        if last {
            self.0.remove(&addr);
        }
    }

    /// Whether a name has records here.
    pub fn has(&self, wire: &[u8]) -> bool {
        if let Some((addr, above)) = parse(wire) {
            return self
                .0
                .get(&addr)
                .is_some_and(|parents| parents.as_list().iter().any(|(name, _)| ***name == *above));
        }
        pointer(wire).is_some_and(|addr| self.0.contains_key(&addr))
    }

    /// The records at a name.
    pub fn at(&self, wire: &[u8]) -> Vec<Held> {
        let records = |addr: IpAddr, data: &dyn Fn(&Name) -> Option<Data>| {
            let parents = self.0.get(&addr).map(Parents::as_list).unwrap_or_default();
            let record = |(above, held): (&Name, &Holders)| {
                Some(Held { name: wire.into(), data: data(above)?, ttl: held.ttl, views: held.views })
            };
            parents.into_iter().filter_map(record).collect()
        };
        if let Some((addr, above)) = parse(wire) {
            return records(addr, &|name| (**name == *above).then_some(Data::Address(addr)));
        }
        pointer(wire).map(|addr| records(addr, &|above| Some(Data::Ptr(own_name(addr, above))))).unwrap_or_default()
    }
}

/// Sorted records, of which each pair of an endpoint's own name and the pointer back becomes one; what they share is said by `shared`.
pub fn fold(records: &[Held], domain: &[u8], shared: impl Fn(&[u8]) -> Name) -> Vec<Held> {
    let mut known: HashMap<&[u8], Name> = HashMap::new();
    let mut made = Vec::new();
    let mut kept = vec![true; records.len()];
    for (index, back) in records.iter().enumerate() {
        let Data::Ptr(own) = &back.data else { continue };
        let said =
            parse(own).filter(|(addr, above)| name::is_within(above, domain) && pointer_name(*addr) == back.name);
        let Some((addr, above)) = said else { continue };
        let forth = Held { name: own.clone(), data: Data::Address(addr), ..back.clone() };
        if let Ok(forth) = records.binary_search(&forth) {
            (kept[index], kept[forth]) = (false, false);
            let name = known.entry(above).or_insert_with(|| shared(above)).clone();
            made.push(Held { name, data: Data::Host(addr), ..*back });
        }
    }
    let mut folded = Vec::with_capacity(records.len() - made.len());
    folded.extend(records.iter().zip(kept).filter(|(_, kept)| *kept).map(|(record, _)| record.clone()));
    folded.append(&mut made);
    folded.sort_unstable();
    folded
}

/// An endpoint's own name.
pub fn own_name(addr: IpAddr, above: &[u8]) -> Name {
    let label = plan::host_label(addr);
    // At most 39 characters.
    let length = u8::try_from(label.len()).unwrap_or_default();
    [&[length], label.as_bytes(), above].concat().into()
}

/// The name that the pointer of an address is at.
pub fn pointer_name(addr: IpAddr) -> Name {
    name::from_text(&plan::reverse_name(addr)).unwrap_or_default().into()
}

/// The address that a name says, spelt as an endpoint's own name spells it, and the name above.
pub fn parse(wire: &[u8]) -> Option<(IpAddr, &[u8])> {
    let (label, above) = label(wire)?;
    let text = std::str::from_utf8(label).ok()?;
    let addr = pods::address(text)?;
    (plan::host_label(addr) == text).then_some((addr, above))
}

/// The address whose pointer is at a name.
fn pointer(wire: &[u8]) -> Option<IpAddr> {
    let (v4, v6) = (b"\x07in-addr\x04arpa\x00", b"\x03ip6\x04arpa\x00");
    let (count, radix) = if wire.ends_with(v4) {
        (4, 10)
    } else if wire.ends_with(v6) {
        (32, 16)
    } else {
        return None;
    };
    let mut rest = wire;
    let mut numbers = [0; 32];
    for number in numbers[..count].iter_mut().rev() {
        let (text, above) = label(rest)?;
        *number = u8::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()?;
        rest = above;
    }
    let addr = if count == 4 {
        IpAddr::from([numbers[0], numbers[1], numbers[2], numbers[3]])
    } else {
        IpAddr::from(std::array::from_fn::<u8, 16, _>(|byte| numbers[2 * byte] << 4 | numbers[2 * byte + 1] & 0xf))
    };
    // A number may be spelt in other ways than the name of the pointer does.
    (*pointer_name(addr) == *wire).then_some(addr)
}

fn label(wire: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&len, rest) = wire.split_first()?;
    rest.split_at_checked(len.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(text: &str) -> Name {
        name::from_text(text).expect("name").into()
    }

    #[test]
    fn what_a_name_says_is_found_in_the_one_spelling_that_plans_use() {
        for (text, expected) in [
            ("10-42-0-7.web.shop.svc.cluster.local", Some("10.42.0.7")),
            ("fd00-42--7.web.shop.svc.cluster.local", Some("fd00:42::7")),
            ("fd00--0.web.shop.svc.cluster.local", Some("fd00::")),
            ("fd00-0--7.web.shop.svc.cluster.local", None),
            ("--ffff-10-1-2-3.web.shop.svc.cluster.local", Some("::ffff:10:1:2:3")),
            ("web.shop.svc.cluster.local", None),
            (".", None),
        ] {
            let wire = wire(text);
            let found = parse(&wire);
            assert_eq!(found.map(|(addr, _)| addr.to_string()).as_deref(), expected, "{text}");
            if let Some((addr, above)) = found {
                assert_eq!(
                    (name::to_text(above).as_str(), own_name(addr, above)),
                    ("web.shop.svc.cluster.local", wire)
                );
            }
        }
    }

    #[test]
    fn a_pointers_name_is_its_address_and_no_other_spelling() {
        for addr in ["10.42.0.7", "0.0.0.0", "fd00:42::7", "2001:db8:1:2:3:4:5:6"] {
            let addr: IpAddr = addr.parse().expect("address");
            assert_eq!(pointer(&pointer_name(addr)), Some(addr));
        }
        for text in [
            "07.0.42.10.in-addr.arpa",
            "0.42.10.in-addr.arpa",
            "1.7.0.42.10.in-addr.arpa",
            "256.0.42.10.in-addr.arpa",
            "+7.0.42.10.in-addr.arpa",
        ] {
            assert_eq!(pointer(&wire(text)), None, "{text}");
        }
    }

    #[test]
    fn an_address_of_several_services_points_to_each_as_long_as_it_has_an_owner() {
        let addr: IpAddr = "10.42.0.7".parse().expect("address");
        let endpoint = |above: &str, views| Held { name: wire(above), data: Data::Host(addr), ttl: 30, views };
        let (a, b) = (endpoint("a.cluster.local", 1), endpoint("b.cluster.local", 3));
        let mut hosts = Hosts::default();
        for record in [&a, &b, &b] {
            hosts.add(addr, record);
        }
        let seen = |hosts: &Hosts| {
            let pointers = hosts.at(&pointer_name(addr));
            let own = ["a", "b"].map(|name| hosts.at(&wire(&format!("10-42-0-7.{name}.cluster.local"))).len());
            assert_eq!(hosts.has(&pointer_name(addr)), !pointers.is_empty());
            (pointers.len(), own)
        };
        assert_eq!(seen(&hosts), (2, [1, 1]));
        for (record, expected) in [(&b, (2, [1, 1])), (&b, (1, [1, 0])), (&b, (1, [1, 0])), (&a, (0, [0, 0]))] {
            hosts.remove(addr, record);
            assert_eq!(seen(&hosts), expected);
        }
        assert!(hosts.0.is_empty(), "nothing is left behind");
    }
}
