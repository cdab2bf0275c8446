//! Who takes part in the small cluster, in either family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
pub const POD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 3];

/// Tags of the clients' VLAN, outer one first; so many of them are used as a test says.
pub const CLIENT_TAGS: [[u8; 2]; 2] = [[0, 5], [1, 6]];
/// Tags of the pods' VLAN.
pub const POD_TAGS: [[u8; 2]; 2] = [[0, 15], [2, 16]];

/// The addresses of one family.
#[derive(Clone, Copy)]
pub struct Cast {
    /// It is IPv6.
    pub v6: bool,
    /// Sees everything.
    pub client: IpAddr,
    /// Sees what is for guests.
    pub guest: IpAddr,
    /// Of no view.
    pub stranger: IpAddr,
    /// The gateway's.
    pub own: IpAddr,
    /// The gateway's second source address.
    pub second: IpAddr,
    /// A VIP.
    pub web: IpAddr,
    /// An address of the service CIDR that is no VIP.
    pub unused: IpAddr,
    /// An address of the service CIDR that is the node's own.
    pub spared: IpAddr,
    /// No Service address.
    pub away: IpAddr,
    pub pod: IpAddr,
    pub pod2: IpAddr,
    /// A router on the way, of no view.
    pub router: IpAddr,
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(a: u16, b: u16, c: u16, d: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0xbeef, 0, d))
}

pub const V4: Cast = Cast {
    v6: false,
    client: v4(10, 90, 1, 100),
    guest: v4(10, 90, 3, 7),
    stranger: v4(192, 0, 2, 9),
    own: v4(10, 90, 2, 100),
    second: v4(10, 90, 2, 101),
    web: v4(10, 1, 0, 7),
    unused: v4(10, 1, 9, 9),
    spared: v4(10, 1, 9, 10),
    away: v4(192, 0, 2, 1),
    pod: v4(10, 2, 1, 10),
    pod2: v4(10, 2, 2, 20),
    router: v4(198, 51, 100, 3),
};

pub const V6: Cast = Cast {
    v6: true,
    client: v6(0xfd90, 0, 1, 100),
    guest: v6(0xfd90, 0, 3, 7),
    stranger: v6(0x2001, 0xdb8, 0, 9),
    own: v6(0xfd90, 0, 2, 100),
    second: v6(0xfd90, 0, 2, 101),
    web: v6(0xfd01, 0, 0, 7),
    unused: v6(0xfd01, 0, 0, 99),
    spared: v6(0xfd01, 0, 0, 98),
    away: v6(0x2001, 0xdb8, 0, 1),
    pod: v6(0xfd02, 0, 1, 10),
    pod2: v6(0xfd02, 0, 2, 20),
    router: v6(0x2001, 0xdb8, 9, 3),
};

impl Cast {
    /// Bytes of an IP header without options.
    pub const fn header(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }
    /// Where the transport header of an untagged frame begins.
    pub const fn l4(&self) -> usize {
        14 + self.header()
    }
    /// ICMP's protocol number.
    pub const fn icmp(&self) -> u8 {
        if self.v6 { 58 } else { 1 }
    }
    /// Another client of the same view.
    pub fn neighbour(&self, last: u16) -> IpAddr {
        if self.v6 { v6(0xfd90, 0, 1, last) } else { v4(10, 90, 1, last as u8) }
    }
    /// Another address of the service CIDR.
    pub fn vip(&self, last: u16) -> IpAddr {
        if self.v6 { v6(0xfd01, 0, 0, last) } else { v4(10, 1, 0, last as u8) }
    }
}

/// Ports of [`Cast::web`], each with something of its own.
pub mod port {
    pub const HTTP: u16 = 80;
    pub const ECHO_UDP: u16 = 7;
    pub const EMPTY: u16 = 81;
    pub const LOCAL: u16 = 82;
    pub const UNRESOLVED: u16 = 83;
    pub const NO_ROUTE: u16 = 84;
    pub const NARROW: u16 = 85;
    pub const TWO: u16 = 86;
    pub const UNKNOWN_HOP: u16 = 87;
    pub const STICKY: u16 = 88;
    pub const GUESTS: u16 = 89;
    pub const LOCAL_UDP: u16 = 90;
    pub const NARROW_UDP: u16 = 91;
    pub const BARE: u16 = 92;
}

/// Next hops by index.
pub mod hop {
    pub const POD: u32 = 1;
    pub const UNRESOLVED: u32 = 2;
    pub const UNUSABLE: u32 = 3;
    pub const NARROW: u32 = 4;
    pub const CLIENT: u32 = 5;
    pub const POD2: u32 = 6;
    pub const BARE: u32 = 7;
}

/// Endpoints by index.
pub mod ep {
    pub const HTTP: u32 = 1;
    pub const ECHO: u32 = 2;
    pub const LOCAL: u32 = 3;
    pub const UNRESOLVED: u32 = 4;
    pub const NO_ROUTE: u32 = 5;
    pub const NARROW: u32 = 6;
    pub const TWO_A: u32 = 7;
    pub const TWO_B: u32 = 8;
    pub const UNKNOWN_HOP: u32 = 9;
    pub const STICKY: u32 = 10;
    pub const GUESTS: u32 = 12;
    pub const LOCAL_UDP: u32 = 13;
    pub const NARROW_UDP: u32 = 14;
    pub const BARE: u32 = 15;
}

/// MTU of the narrow way: the least that a link may have.
pub const fn narrow_mtu(cast: &Cast) -> u16 {
    if cast.v6 { 1280 } else { 600 }
}
