//! VLAN devices: which tags their frames have on the device below, and whether XDP there can see them.
//!
//! TC programs attach to the VLAN device itself, where the kernel has taken the tag off and writes it. XDP has to attach below, where
//! frames still have their tags, unless they hide: a card may strip them (`rx-vlan-offload`), and a veth carries them beside the frame.

use std::{
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use gateway_common::maps::VlanKey;

use super::netlink::{Kind, Link};

/// Where the frames of a VLAN device are on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Below {
    /// The lowest device.
    pub(super) lowest: Link,
    /// VLAN IDs, outer one first; zero: no second one. Priority 0, so they are the tags, too.
    pub(super) vids: [[u8; 2]; 2],
}

impl Below {
    /// Of a VLAN device with one or two 802.1Q tags; `None` for any other.
    pub(super) fn of<'l>(link: &Link, find: impl Fn(u32) -> Option<&'l Link>) -> Option<Self> {
        let (parent, inner) = link.vlan?;
        let middle = find(parent)?;
        let Some((parent, outer)) = middle.vlan else {
            let lowest = (middle.kind != Kind::Vlan).then(|| middle.clone())?;
            return Some(Self { lowest, vids: [inner.to_be_bytes(), [0; 2]] });
        };
        let lowest = find(parent).filter(|l| l.kind != Kind::Vlan)?.clone();
        Some(Self { lowest, vids: [outer.to_be_bytes(), inner.to_be_bytes()] })
    }

    /// Its key in `VLANS`.
    pub(super) const fn key(&self) -> VlanKey {
        VlanKey { ifindex: self.lowest.index, vids: self.vids }
    }

    /// Why XDP on the lowest device would not see the tags.
    pub(super) fn hidden(&self) -> Option<String> {
        let name = &self.lowest.name;
        match self.lowest.kind {
            Kind::Nic | Kind::Bond if !strips_tags(name) => None,
            Kind::Nic | Kind::Bond => {
                Some(format!("{name} takes VLAN tags off before XDP sees them: `ethtool -K {name} rxvlan off`"))
            }
            Kind::Veth => Some(format!("{name} is a veth, whose frames carry VLAN tags where XDP does not see them")),
            _ => Some(format!("{name} below it is no network card")),
        }
    }
}

/// Whether a device hands frames up without their tags. One that does not say is believed to.
pub(super) fn strips_tags(name: &str) -> bool {
    flags(name).map_or(true, |flags| flags & RXVLAN != 0)
}

/// `ETH_FLAG_RXVLAN` and `ETHTOOL_GFLAGS` of linux/ethtool.h.
const RXVLAN: u32 = 1 << 8;
const GFLAGS: u32 = 0x25;
/// From linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

fn flags(name: &str) -> io::Result<u32> {
    #[repr(C)]
    struct Value {
        cmd: u32,
        data: u32,
    }
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut value = Value { cmd: GFLAGS, data: 0 };
    // SAFETY: all zero is a valid value of this struct of integers, arrays and pointers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` has a name that ends with a zero byte and points to a `Value`, which the kernel reads and writes.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: Kind, vlan: Option<(u32, u16)>) -> Link {
        Link { index, name: format!("dev{index}"), kind, mtu: 1500, mac: Some([2; 6]), up: true, vlan }
    }

    #[test]
    fn tags_are_read_from_the_lowest_device_up() {
        let links = [
            link(1, Kind::Nic, None),
            link(2, Kind::Vlan, Some((1, 5))),
            link(3, Kind::Vlan, Some((2, 300))),
            link(4, Kind::Vlan, Some((3, 7))),
            // 802.1ad, or of another network namespace.
            link(5, Kind::Vlan, None),
            link(6, Kind::Vlan, Some((5, 8))),
        ];
        let below = |n: usize| Below::of(&links[n], |index| links.iter().find(|l| l.index == index));
        assert_eq!(below(0), None);
        let one = below(1).unwrap();
        assert_eq!((one.lowest.index, one.vids), (1, [[0, 5], [0, 0]]));
        let two = below(2).unwrap();
        assert_eq!((two.lowest.index, two.vids), (1, [[0, 5], [1, 44]]));
        assert_eq!((below(3), below(4), below(5)), (None, None, None), "three tags, another protocol");
    }
}
