//! A small cluster of both families in real BPF maps, and the programs run on single frames.

use std::{collections::HashMap as Map, os::fd::RawFd};

use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    programs::{Program, SchedClassifier, TestRun as _, Xdp},
};
use bytemuck::{Pod, Zeroable as _};
use gateway_common::{
    Reason,
    dns::{
        build::{Answer, key},
        hash::Keys,
    },
    maps::{Config, Endpoint, NextHop, Service, View, Vlan, VlanKey, Zone, config, endpoint, nexthop, service, vlan},
};

use crate::{
    bpf::{self, Counters},
    nft::Rule,
};

pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
/// VLAN IDs of the tagged uplink.
pub const TAGS: [[u8; 2]; 2] = [[0, 100], [0, 200]];

/// The programs, and whether they see a client's packets first.
pub const PROGRAMS: [&str; 5] = ["xdp_uplink", "tc_uplink", "xdp_cluster", "tc_cluster", "tc_egress"];

/// Addresses of a family.
pub struct Plan {
    pub v6: bool,
    /// Of view 0, of view 1, of none.
    pub clients: [Vec<u8>; 3],
    pub own: Vec<u8>,
    pub vip: Vec<u8>,
    pub dns: Vec<u8>,
    pub pods: [Vec<u8>; 2],
    pub router: Vec<u8>,
    /// In the service CIDR, and no VIP.
    pub nobody: Vec<u8>,
}

fn v6(group: u16, net: u16, host: u16) -> Vec<u8> {
    [0xfd00, group, net, 0, 0, 0, 0, host].iter().flat_map(|word: &u16| word.to_be_bytes()).collect()
}

impl Plan {
    pub fn of(is_v6: bool) -> Self {
        if is_v6 {
            Self {
                v6: true,
                clients: [v6(0x90, 1, 0x100), v6(0x90, 3, 7), v6(0x99, 0, 9)],
                own: v6(0x90, 2, 0x100),
                vip: v6(1, 0, 7),
                dns: v6(1, 0, 10),
                pods: [v6(2, 1, 0x10), v6(2, 2, 0x20)],
                router: v6(2, 0xff, 1),
                nobody: v6(1, 0, 0x999),
            }
        } else {
            Self {
                v6: false,
                clients: [vec![10, 90, 1, 100], vec![10, 90, 3, 7], vec![192, 0, 2, 9]],
                own: vec![10, 90, 2, 100],
                vip: vec![10, 1, 0, 7],
                dns: vec![10, 1, 0, 10],
                pods: [vec![10, 2, 1, 10], vec![10, 2, 2, 20]],
                router: vec![10, 2, 255, 1],
                nobody: vec![10, 1, 9, 9],
            }
        }
    }
    /// What every Service address begins with, and every address in view 0, in view 1, of a pod.
    pub fn prefixes(&self) -> [&[u8]; 4] {
        let (cidr, view, pod) = if self.v6 { (4, 6, 4) } else { (2, 3, 2) };
        [&self.vip[..cidr], &self.clients[0][..view], &self.clients[1][..view], &self.pods[0][..pod]]
    }
    pub fn is_claimed(&self, addr: &[u8]) -> bool {
        addr.starts_with(self.prefixes()[0])
    }
    pub fn is_client(&self, addr: &[u8]) -> bool {
        addr.starts_with(self.prefixes()[1]) || addr.starts_with(self.prefixes()[2])
    }
    pub fn is_pod(&self, addr: &[u8]) -> bool {
        addr.starts_with(self.prefixes()[3])
    }
}

/// Ports of the VIP: protocol, port, endpoints, next hop, and what is odd about it.
pub struct Port {
    pub proto: u8,
    pub port: u16,
    endpoints: usize,
    hop: u32,
    flags: u16,
    affinity: u32,
    views: u64,
    service: u32,
}

const fn plain(proto: u8, port: u16, endpoints: usize, hop: u32) -> Port {
    Port { proto, port, endpoints, hop, flags: 0, affinity: 0, views: 3, service: 0 }
}

mod hop {
    pub const POD: u32 = 1;
    pub const UNRESOLVED: u32 = 2;
    pub const UNUSABLE: u32 = 3;
    pub const NARROW4: u32 = 4;
    pub const NARROW6: u32 = 5;
    pub const CLIENT: u32 = 6;
    pub const TAGGED: u32 = 7;
    pub const TWICE: u32 = 8;
    pub const BARE: u32 = 9;
}

pub const PORTS: [Port; 17] = [
    plain(6, 80, 1, hop::POD),
    plain(17, 7, 1, hop::POD),
    plain(6, 81, 0, 0),
    Port { flags: endpoint::LOCAL, ..plain(6, 82, 1, 0) },
    Port { flags: endpoint::LOCAL, ..plain(17, 82, 1, 0) },
    plain(6, 83, 1, hop::UNRESOLVED),
    plain(6, 84, 1, hop::UNUSABLE),
    plain(6, 85, 1, hop::NARROW4),
    plain(17, 85, 1, hop::NARROW4),
    plain(17, 86, 2, hop::POD),
    plain(6, 87, 1, 0),
    Port { affinity: 600, ..plain(6, 88, 2, hop::POD) },
    Port { views: 2, ..plain(6, 89, 1, hop::POD) },
    plain(17, 90, 1, hop::TAGGED),
    plain(17, 91, 1, hop::TWICE),
    plain(6, 92, 1, hop::BARE),
    Port { service: service::DNS, ..plain(17, 53, 1, hop::POD) },
];

/// What a program did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    Redirect,
    Other(u32),
}

pub struct Outcome {
    pub action: Action,
    pub frame: Vec<u8>,
    /// What was counted, and how often.
    pub counted: Vec<(Reason, u64)>,
}

impl Outcome {
    pub fn has(&self, reason: Reason) -> bool {
        self.counted.iter().any(|(counted, _)| *counted == reason)
    }
}

pub struct World {
    ebpf: Ebpf,
    maps: Map<&'static str, RawFd>,
    counters: Counters,
    before: Vec<u64>,
    after: Vec<u64>,
    generation: u32,
    /// The next key of `LARGE`.
    large: u32,
    pub plans: [Plan; 2],
}

const FLOWS: u32 = 512;

impl World {
    /// Loads the object, in a network namespace of this thread's own with routes for what has no next hop.
    pub fn new() -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for args in [
            "link set lo up",
            "link add up0 type veth peer name up1",
            "link set up1 up",
            "link set up0 up",
            "addr add 10.90.2.100/16 dev up0",
            "route add 10.2.0.0/16 via 10.90.2.11",
            "addr add fd00:90:2::100/32 dev up0 nodad",
            "-6 route add fd00:2::/32 via fd00:90:2::11",
        ] {
            let status = std::process::Command::new("ip").args(args.split(' ')).status().expect("ip");
            assert!(status.success(), "ip {args}");
        }
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{switch}"), "1").expect(switch);
        }
        let mut loader = EbpfLoader::new();
        for name in ["FLOWS4", "FLOWS6"] {
            loader.map_max_entries(name, FLOWS);
        }
        for (name, entries) in [("MAGLEV", 1024), ("ENDPOINTS", 128), ("NEXTHOPS", 64)] {
            loader.map_max_entries(name, entries);
        }
        for (name, entries) in [("SERVICES4", 256), ("SERVICES6", 256), ("ANSWERS", 1024), ("LARGE", 64)] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(gateway::kernel::OBJECT).expect("the object loads");
        for name in PROGRAMS {
            let program = ebpf.program_mut(name).expect(name);
            if name.starts_with("xdp") {
                <&mut Xdp>::try_from(program).expect(name).load().unwrap_or_else(|e| panic!("{name}: {e}"));
            } else {
                <&mut SchedClassifier>::try_from(program).expect(name).load().unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
        let names = [
            "CONFIG",
            "COUNTERS",
            "VIEWS4",
            "VIEWS6",
            "CLAIMS4",
            "CLAIMS6",
            "SERVICES4",
            "SERVICES6",
            "MAGLEV",
            "ENDPOINTS",
            "NEXTHOPS",
            "CLIENT_HOPS4",
            "CLIENT_HOPS6",
            "FLOWS4",
            "FLOWS6",
            "VLANS",
            "AFFINITY",
            "FRAGMENTS",
            "ANSWERS",
            "LARGE",
            "ZONES",
            "RATES",
        ];
        let maps: Map<_, _> = names.into_iter().map(|name| (name, bpf::descriptor(&ebpf, name))).collect();
        let count = Reason::COUNT as usize;
        let counters = Counters::new(maps["COUNTERS"], count);
        let mut world = Self {
            ebpf,
            maps,
            counters,
            before: vec![0; count],
            after: vec![0; count],
            generation: 1,
            large: 1,
            plans: [Plan::of(false), Plan::of(true)],
        };
        world.populate();
        let World { counters, before, .. } = &mut world;
        counters.read(before);
        world
    }

    pub fn put<T: Pod>(&mut self, map: &str, key: &[u8], value: &T) {
        bpf::put(self.maps[map], key, bytemuck::bytes_of(value)).unwrap_or_else(|e| panic!("{map}: {e}"));
    }

    fn prefix<T: Pod>(&mut self, map: &str, addr: &[u8], bits: u32, value: &T) {
        self.put(map, &[&bits.to_ne_bytes()[..], addr].concat(), value);
    }

    /// The usual settings.
    pub fn config(&self) -> Config {
        let mut config = Config::zeroed();
        config.flags = config::DNS;
        (config.snat_port, config.snat_ports) = (10_000, 20_000);
        (config.snat4_len, config.snat6_len, config.dns4_len, config.dns6_len) = (1, 1, 1, 1);
        (config.hz, config.icmp_rate) = (250, 1_000_000);
        let own4 = self.plans[0].own.as_slice().try_into().expect("four");
        let own6 = self.plans[1].own.as_slice().try_into().expect("sixteen");
        (config.snat4[0], config.dns4[0], config.own4) = (own4, own4, own4);
        (config.snat6[0], config.dns6[0], config.own6) = (own6, own6, own6);
        config
    }

    pub fn set_config(&mut self, config: &Config) {
        self.put("CONFIG", &[0; 4], config);
    }

    /// No flow, no fragment, no memory of anybody.
    pub fn forget(&mut self) {
        for (map, key, value) in [
            ("FLOWS4", 16, 80),
            ("FLOWS6", 40, 104),
            ("RATES", 16, 16),
            ("FRAGMENTS", 40, size_of::<gateway_common::maps::Fragments>()),
            ("AFFINITY", 20, 16),
        ] {
            bpf::clear(self.maps[map], key, value).unwrap_or_else(|e| panic!("{map}: {e}"));
        }
    }

    fn populate(&mut self) {
        let config = self.config();
        self.set_config(&config);
        let ready = nexthop::RESOLVED | nexthop::XDP;
        let hop = |flags, mtu, dst| NextHop {
            ifindex: 1,
            flags,
            mtu,
            dst,
            src: GATEWAY_MAC,
            via: [0; 16],
            xdp_ifindex: 1,
            tags: [[0; 2]; 2],
        };
        for (index, value) in [
            (hop::POD, hop(ready, 1500, POD_MAC)),
            (hop::UNRESOLVED, hop(nexthop::XDP, 1500, [0; 6])),
            (hop::UNUSABLE, NextHop { ifindex: 0, ..hop(0, 0, [0; 6]) }),
            (hop::NARROW4, hop(ready, 600, POD_MAC)),
            (hop::NARROW6, hop(ready, 1280, POD_MAC)),
            (hop::CLIENT, hop(ready, 1500, PEER_MAC)),
            (hop::TAGGED, NextHop { tags: [TAGS[0], [0; 2]], ..hop(ready, 1500, POD_MAC) }),
            (hop::TWICE, NextHop { tags: TAGS, ..hop(ready | nexthop::SERVICE_TAG, 1500, POD_MAC) }),
            (hop::BARE, hop(ready | nexthop::NO_L2, 1400, [0; 6])),
        ] {
            self.put("NEXTHOPS", &index.to_ne_bytes(), &value);
        }
        for (index, vids) in [[TAGS[0], [0; 2]], TAGS].into_iter().enumerate() {
            let key = VlanKey { ifindex: 1, vids };
            self.put("VLANS", bytemuck::bytes_of(&key), &Vlan { ifindex: 9 + index as u32, role: vlan::UPLINK });
        }
        let mut index = 1u32;
        let mut slot = 0u32;
        for family in 0..2 {
            let plan = Plan::of(family == 1);
            let name = |map: &str| format!("{map}{}", if plan.v6 { 6 } else { 4 });
            let (cidr, view) = if plan.v6 { (32, 48) } else { (16, 24) };
            self.prefix(&name("CLAIMS"), &plan.vip, cidr, &1u32);
            self.prefix(&name("VIEWS"), &plan.clients[0], view, &View { id: 0, flags: 0 });
            self.prefix(&name("VIEWS"), &plan.clients[1], view, &View { id: 1, flags: 0 });
            for client in &plan.clients[..2] {
                self.put(&name("CLIENT_HOPS"), client, &hop::CLIENT);
            }
            let service = |views, id, flags, slots, count, affinity, endpoints| Service {
                views,
                id,
                flags,
                slots,
                slot_count: count,
                affinity,
                endpoints,
            };
            for vip in [&plan.vip, &plan.dns] {
                let key = [&vip[..], &[0; 4]].concat();
                self.put(&name("SERVICES"), &key, &service(3, 1, 0, 0, 0, 0, 3));
            }
            for port in &PORTS {
                let id = index + 1000;
                let first = slot;
                for number in 0..port.endpoints {
                    let local = port.flags & endpoint::LOCAL != 0;
                    let to = if local { &plan.own } else { &plan.pods[number % 2] };
                    let mut addr = [0; 16];
                    addr[..to.len()].copy_from_slice(to);
                    let value = Endpoint {
                        addr,
                        port: (7000 + port.port).to_be_bytes(),
                        flags: port.flags | if plan.v6 { endpoint::V6 } else { 0 },
                        generation: self.generation,
                        nexthop: if plan.v6 && port.hop == hop::NARROW4 { hop::NARROW6 } else { port.hop },
                        service: id,
                    };
                    self.put("ENDPOINTS", &index.to_ne_bytes(), &value);
                    self.put("MAGLEV", &slot.to_ne_bytes(), &index);
                    (index, slot) = (index + 1, slot + 1);
                }
                let vip = if port.service == 0 { &plan.vip } else { &plan.dns };
                let key = [&vip[..], &port.port.to_be_bytes(), &[port.proto, 0]].concat();
                let count = port.endpoints as u32;
                let value = service(port.views, id, port.service, first, count, port.affinity, count);
                self.put(&name("SERVICES"), &key, &value);
                index += 1;
            }
        }
    }

    /// An answer under the hash of its key, and its body beside it when it is long.
    pub fn put_answer(&mut self, name: &[u8], qtype: u16, bits: u8, answer: &Answer) {
        let (Some(key), Some((entry, large))) = (key(name, qtype, bits), answer.to_kernel(self.large)) else { return };
        if let Some(large) = large {
            self.put("LARGE", &self.large.to_ne_bytes(), &large);
            self.large += 1;
        }
        self.put("ANSWERS", bytemuck::bytes_of(&Keys::DEFAULT.hash(&key)), &entry.of_key(&key));
    }

    pub fn put_zone(&mut self, index: u32, zone: &Zone) {
        self.put("ZONES", &index.to_ne_bytes(), zone);
    }

    /// The next hop of a client.
    pub fn client_hop(&mut self, client: &[u8]) {
        let map = if client.len() == 4 { "CLIENT_HOPS4" } else { "CLIENT_HOPS6" };
        self.put(map, client, &hop::CLIENT);
    }

    /// A Service port with one endpoint, behind what [`Self::new`] has: the one of that number.
    pub fn service(&mut self, number: u32, rule: &Rule, narrow: bool) {
        let v6 = rule.vip.len() == 16;
        let (index, slot, id) = (100 + number, 500 + number, 5000 + number);
        let mut addr = [0; 16];
        addr[..rule.endpoint.len()].copy_from_slice(&rule.endpoint);
        let nexthop = match (narrow, v6) {
            (true, true) => hop::NARROW6,
            (true, false) => hop::NARROW4,
            _ => hop::POD,
        };
        let value = Endpoint {
            addr,
            port: rule.target.to_be_bytes(),
            flags: if v6 { endpoint::V6 } else { 0 },
            generation: self.generation,
            nexthop,
            service: id,
        };
        self.put("ENDPOINTS", &index.to_ne_bytes(), &value);
        self.put("MAGLEV", &slot.to_ne_bytes(), &index);
        let key = [&rule.vip[..], &rule.port.to_be_bytes(), &[rule.proto, 0]].concat();
        let value = Service { views: 3, id, flags: 0, slots: slot, slot_count: 1, affinity: 0, endpoints: 1 };
        self.put(if v6 { "SERVICES6" } else { "SERVICES4" }, &key, &value);
    }

    /// Every endpoint has gone and somebody else has its place: flows have lost theirs.
    pub fn replace_endpoints(&mut self) {
        self.generation += 1;
        self.populate();
    }

    /// Makes a frame as long as the kernel wants it for a test run: TC's buffers have the IP header that their EtherType promises.
    pub fn pad(name: &str, frame: &mut Vec<u8>) {
        let least = match frame.get(12..14) {
            Some([0x08, 0x00]) if name.starts_with("tc") => 34,
            Some([0x86, 0xdd]) if name.starts_with("tc") => 54,
            _ => 15,
        };
        frame.resize(frame.len().max(least), 0);
    }

    /// Runs a program on a frame.
    pub fn run(&mut self, name: &str, frame: &[u8]) -> Outcome {
        let mut out = vec![0; frame.len() + 1600];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), repeat: 1, ..Default::default() };
        let result = match self.ebpf.program(name).expect(name) {
            Program::Xdp(program) => program.test_run(options),
            Program::SchedClassifier(program) => program.test_run(options),
            _ => panic!("{name} is neither XDP nor TC"),
        }
        .unwrap_or_else(|e| panic!("{name}: {e} for {} bytes: {frame:02x?}", frame.len()));
        out.truncate(result.data_size_out as usize);
        let Self { counters, before, after, .. } = self;
        counters.read(after);
        let counted = Reason::ALL
            .iter()
            .zip(before.iter().zip(after.iter()))
            .filter(|(_, (before, after))| before != after)
            .map(|(reason, (before, after))| (*reason, after - before))
            .collect();
        std::mem::swap(before, after);
        let action = match (name.starts_with("xdp"), result.return_value as i32) {
            (true, 1) | (false, 2) => Action::Drop,
            (true, 2) | (false, -1) => Action::Pass,
            (true, 4) | (false, 7) => Action::Redirect,
            (_, other) => Action::Other(other as u32),
        };
        Outcome { action, frame: out, counted }
    }
}
