//! What stands in `ENDPOINTS`, by index, and which indices have which address: there are hundreds of thousands, nearly all with an address of
//! their own, so that the indices of one address are linked in place.

use std::{collections::HashMap, net::IpAddr};

use bytemuck::Zeroable as _;
use gateway_common::maps::Endpoint;

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Its generation is 0 while nobody has the index.
    value: Endpoint,
    /// The next index with the same address; 0, which is never used: there is none.
    next: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    slots: Vec<Slot>,
    first: HashMap<IpAddr, u32>,
    len: usize,
}

impl Mirror {
    /// Indices in use.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, index: u32) -> Option<&Endpoint> {
        self.slots.get(index as usize).map(|slot| &slot.value).filter(|value| value.generation != 0)
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Endpoint> {
        self.slots.get_mut(index as usize).map(|slot| &mut slot.value).filter(|value| value.generation != 0)
    }

    /// Puts an endpoint at an index that is not in use.
    pub(super) fn insert(&mut self, index: u32, addr: IpAddr, value: Endpoint) {
        let at = index as usize;
        if at >= self.slots.len() {
            self.slots.resize(at + 1, Slot { value: Endpoint::zeroed(), next: 0 });
        }
        let next = self.first.insert(addr, index).unwrap_or(0);
        self.slots[at] = Slot { value, next };
        self.len += 1;
    }

    /// Takes it away.
    pub(super) fn remove(&mut self, index: u32, addr: IpAddr) {
        let Some(&first) = self.first.get(&addr) else { return };
        let Some(next) = self.slots.get(index as usize).map(|slot| slot.next) else { return };
        if first == index {
            if next == 0 {
                self.first.remove(&addr);
            } else {
                self.first.insert(addr, next);
            }
        } else {
            let before = self.of(addr).find(|other| self.slots[*other as usize].next == index);
            let Some(before) = before else { return };
            self.slots[before as usize].next = next;
        }
        self.slots[index as usize] = Slot { value: Endpoint::zeroed(), next: 0 };
        self.len -= 1;
    }

    /// The indices with this address.
    pub(super) fn of(&self, addr: IpAddr) -> impl Iterator<Item = u32> {
        let next = |index: &u32| self.slots.get(*index as usize).map(|slot| slot.next).filter(|next| *next != 0);
        std::iter::successors(self.first.get(&addr).copied(), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_indices_whatever_goes_first() {
        let (a, b): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let value = |generation| Endpoint { generation, ..Endpoint::zeroed() };
        for order in [[1, 2, 5], [5, 2, 1], [2, 5, 1], [2, 1, 5]] {
            let mut mirror = Mirror::default();
            for index in [1, 2, 5] {
                mirror.insert(index, a, value(index));
            }
            mirror.insert(3, b, value(9));
            let mut left = vec![1, 2, 5];
            for index in order {
                mirror.remove(index, a);
                mirror.remove(index, b);
                left.retain(|other| *other != index);
                let mut found: Vec<u32> = mirror.of(a).collect();
                found.sort_unstable();
                assert_eq!(found, left, "{order:?}");
                assert!(mirror.get(index).is_none() && left.iter().all(|other| mirror.get(*other).is_some()));
            }
            assert_eq!((mirror.of(b).collect::<Vec<_>>(), mirror.len(), mirror.first.len()), (vec![3], 1, 1));
            assert!(mirror.get(0).is_none() && mirror.get_mut(99).is_none());
        }
    }
}
