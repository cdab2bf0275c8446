//! A small cluster in real BPF maps, and the real programs run on single frames.

use std::{collections::BTreeMap, path::PathBuf};

use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray, lpm_trie},
    programs::{SchedClassifier, TestRun as _, Xdp},
};
use gateway_common::{
    Reason,
    maps::{Claim, Config, Endpoint, Flow, FlowKey, NextHop, Service, ServiceKey, View, endpoint, nexthop},
};

pub type Key4 = FlowKey<[u8; 4]>;
pub type Flow4 = Flow<[u8; 4]>;

pub const CLIENT: [u8; 4] = [10, 90, 1, 100];
pub const GUEST: [u8; 4] = [10, 90, 3, 7];
pub const STRANGER: [u8; 4] = [192, 0, 2, 9];
pub const OWN: [u8; 4] = [10, 90, 2, 100];
pub const WEB: [u8; 4] = [10, 1, 0, 7];
pub const POD: [u8; 4] = [10, 2, 1, 10];
pub const POD2: [u8; 4] = [10, 2, 2, 20];
pub const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];
pub const POD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 3];

/// Ports of [`WEB`], each with something of its own.
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
}

/// Next hops by index.
pub mod hop {
    pub const POD: u32 = 1;
    pub const UNRESOLVED: u32 = 2;
    pub const UNUSABLE: u32 = 3;
    pub const NARROW: u32 = 4;
    pub const CLIENT: u32 = 5;
    pub const POD2: u32 = 6;
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
}

/// What a program did with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    Redirect,
    Other(u32),
}

/// The tier whose programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Xdp,
    Tc,
}

pub struct Outcome {
    pub action: Action,
    pub frame: Vec<u8>,
    pub counted: BTreeMap<&'static str, u64>,
}

pub struct World {
    pub ebpf: Ebpf,
    pub tier: Tier,
}

fn bytes<T: bytemuck::Pod, const N: usize>(value: T) -> [u8; N] {
    bytemuck::cast(value)
}

impl World {
    /// As it was at the beginning: no flow, the usual config and endpoints.
    pub fn reset(&mut self) {
        for (key, _) in self.flows() {
            self.remove_flow(&key);
        }
        let rates: Vec<_> = self.hash::<16, 16>("RATES").keys().map(|key| key.expect("rate")).collect();
        for key in rates {
            self.hash::<16, 16>("RATES").remove(&key).expect("rate");
        }
        self.populate();
    }

    /// Loads the object and fills its maps with the small cluster.
    pub fn new(tier: Tier) -> Self {
        Self::sized(tier, 1024)
    }

    pub fn sized(tier: Tier, flows: u32) -> Self {
        // A network namespace of this thread's own, gone with it: the routes and switches that TC asks for.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for args in [
            "link set lo up",
            "link add up0 type veth peer name up1",
            "link set up1 up",
            "link set up0 up",
            "addr add 10.90.2.100/16 dev up0",
            "route add 10.2.0.0/16 via 10.90.2.11",
        ] {
            let status = std::process::Command::new("ip").args(args.split(' ')).status().expect("ip");
            assert!(status.success(), "ip {args}");
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding in the namespace");
        let ebpf = EbpfLoader::new()
            .map_max_entries("FLOWS4", flows)
            .map_max_entries("SERVICES4", 1024)
            .map_max_entries("MAGLEV", 4096)
            .map_max_entries("ENDPOINTS", 64)
            .map_max_entries("NEXTHOPS", 64)
            .map_max_entries("CLIENT_HOPS4", 64)
            .load(gateway::kernel::OBJECT)
            .expect("the object loads");
        let mut world = Self { ebpf, tier };
        for name in ["xdp_uplink", "xdp_cluster", "clock", "empty"] {
            let program: &mut Xdp = world.ebpf.program_mut(name).expect(name).try_into().expect(name);
            program.load().unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        for name in ["tc_uplink", "tc_cluster", "tc_egress"] {
            let program: &mut SchedClassifier = world.ebpf.program_mut(name).expect(name).try_into().expect(name);
            program.load().unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        world.populate();
        world
    }

    fn populate(&mut self) {
        self.set_config(Self::config());
        self.prefix("CLAIMS4", [10, 1, 0, 0], 16, bytes::<_, 4>(Claim { kind: 1 }));
        self.prefix("VIEWS4", [10, 90, 1, 0], 24, bytes::<_, 8>(View { id: 0, flags: 0 }));
        self.prefix("VIEWS4", [10, 90, 3, 0], 24, bytes::<_, 8>(View { id: 1, flags: 0 }));
        let plain = nexthop::RESOLVED | nexthop::XDP;
        self.set_hop(hop::POD, next_hop(1, plain, 1500, POD_MAC));
        self.set_hop(hop::POD2, next_hop(1, plain, 1500, POD_MAC));
        self.set_hop(hop::UNRESOLVED, next_hop(1, nexthop::XDP, 1500, [0; 6]));
        self.set_hop(hop::UNUSABLE, next_hop(0, 0, 0, [0; 6]));
        self.set_hop(hop::NARROW, next_hop(1, plain, 600, POD_MAC));
        self.set_hop(hop::CLIENT, next_hop(1, plain, 1500, CLIENT_MAC));
        self.service(WEB, 0, 0, &[]);
        self.service(WEB, port::HTTP, 6, &[(ep::HTTP, POD, 8080, hop::POD, 0)]);
        self.service(WEB, port::ECHO_UDP, 17, &[(ep::ECHO, POD, 7007, hop::POD, 0)]);
        self.service(WEB, port::EMPTY, 6, &[]);
        self.service(WEB, port::LOCAL, 6, &[(ep::LOCAL, OWN, 6443, 0, endpoint::LOCAL)]);
        self.service(WEB, port::UNRESOLVED, 6, &[(ep::UNRESOLVED, POD, 9083, hop::UNRESOLVED, 0)]);
        self.service(WEB, port::NO_ROUTE, 6, &[(ep::NO_ROUTE, POD, 9084, hop::UNUSABLE, 0)]);
        self.service(WEB, port::NARROW, 6, &[(ep::NARROW, POD, 9085, hop::NARROW, 0)]);
        self.service(WEB, port::UNKNOWN_HOP, 6, &[(ep::UNKNOWN_HOP, POD, 9087, 0, 0)]);
        let two = [(ep::TWO_A, POD, 9086, hop::POD, 0), (ep::TWO_B, POD2, 9086, hop::POD2, 0)];
        self.service(WEB, port::TWO, 17, &two);
    }

    /// The tier whose programs run.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Frames with these VLAN IDs are an uplink's.
    pub fn set_vlan(&mut self, vids: [[u8; 2]; 2]) {
        let key = gateway_common::maps::VlanKey { ifindex: 1, vids };
        let value = gateway_common::maps::Vlan { ifindex: 9, role: gateway_common::maps::vlan::UPLINK };
        self.hash::<8, 8>("VLANS").insert(bytes::<_, 8>(key), bytes::<_, 8>(value), 0).expect("VLANS");
    }

    /// How many endpoints the ports of a VIP have, all together.
    pub fn set_vip_endpoints(&mut self, vip: [u8; 4], endpoints: u32) {
        let value = Service { views: 1, id: 1, flags: 0, slots: 0, slot_count: 0, affinity: 0, endpoints };
        self.set_service(ServiceKey::vip(vip), value);
    }

    pub fn config() -> Config {
        let mut config: Config = bytemuck::Zeroable::zeroed();
        (config.snat_port, config.snat_ports, config.snat4_len) = (10_000, 20_000, 1);
        (config.dns4_len, config.hz, config.icmp_rate) = (1, 250, 1000);
        config.snat4[0] = OWN;
        config.dns4[0] = OWN;
        config.own4 = OWN;
        config
    }

    pub fn set_config(&mut self, config: Config) {
        self.set::<{ size_of::<Config>() }>("CONFIG", 0, bytes(config));
    }

    pub fn set_hop(&mut self, index: u32, hop: NextHop) {
        self.set::<{ size_of::<NextHop>() }>("NEXTHOPS", index, bytes(hop));
    }

    pub fn set_endpoint(&mut self, index: u32, endpoint: Endpoint) {
        self.set::<32>("ENDPOINTS", index, bytes(endpoint));
    }

    pub fn endpoint(&mut self, index: u32) -> Endpoint {
        bytemuck::cast(self.array::<32>("ENDPOINTS").get(&index, 0).expect("endpoint"))
    }

    /// A Service port (or, with port and protocol 0, a VIP) that view 0 sees, and its endpoints: index, address, port, next hop, flags.
    pub fn service(&mut self, vip: [u8; 4], port: u16, proto: u8, endpoints: &[(u32, [u8; 4], u16, u32, u16)]) {
        let id = u32::from(port) + 1;
        let slots = u32::from(port) * 8;
        for (i, &(index, addr, port, nexthop, flags)) in endpoints.iter().enumerate() {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&addr);
            let port = port.to_be_bytes();
            self.set_endpoint(index, Endpoint { addr: wide, port, flags, generation: 1, nexthop, service: id });
            self.set::<4>("MAGLEV", slots + i as u32, index.to_ne_bytes());
        }
        let value = Service {
            views: 1,
            id,
            flags: 0,
            slots,
            slot_count: endpoints.len() as u32,
            affinity: u32::from(port == port::STICKY) * 600,
            endpoints: endpoints.len() as u32,
        };
        self.set_service(ServiceKey::new(vip, port, proto), value);
    }

    pub fn set_service(&mut self, key: ServiceKey<[u8; 4]>, value: Service) {
        self.hash::<8, 32>("SERVICES4").insert(bytes::<_, 8>(key), bytes::<_, 32>(value), 0).expect("service");
    }

    pub fn flow(&mut self, key: &Key4) -> Option<Flow4> {
        self.hash::<16, 80>("FLOWS4").get(&bytes(*key), 0).ok().map(bytemuck::cast)
    }

    pub fn set_flow(&mut self, key: &Key4, flow: &Flow4) {
        self.hash::<16, 80>("FLOWS4").insert(bytes::<_, 16>(*key), bytes::<_, 80>(*flow), 0).expect("flow");
    }

    pub fn remove_flow(&mut self, key: &Key4) {
        self.hash::<16, 80>("FLOWS4").remove(&bytes(*key)).expect("flow");
    }

    pub fn flows(&mut self) -> Vec<(Key4, Flow4)> {
        let map = self.hash::<16, 80>("FLOWS4");
        map.iter().map(|entry| entry.expect("flow")).map(|(k, v)| (bytemuck::cast(k), bytemuck::cast(v))).collect()
    }

    pub fn set_client_hop(&mut self, client: [u8; 4], index: u32) {
        self.hash::<4, 4>("CLIENT_HOPS4").insert(client, index.to_ne_bytes(), 0).expect("client hop");
    }

    pub fn clock(&mut self) -> (u64, u64) {
        self.run_program("clock", &[0; 64], 1);
        let clock = self.array::<8>("CLOCK");
        let read = |i| u64::from_ne_bytes(clock.get(&i, 0).expect("clock"));
        (read(0), read(1))
    }

    fn hash<const K: usize, const V: usize>(&mut self, name: &str) -> HashMap<&mut MapData, [u8; K], [u8; V]> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }

    fn array<const V: usize>(&mut self, name: &str) -> Array<&mut MapData, [u8; V]> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }

    fn set<const V: usize>(&mut self, name: &str, index: u32, value: [u8; V]) {
        self.array::<V>(name).set(index, value, 0).expect(name);
    }

    pub fn prefix<const V: usize>(&mut self, name: &str, addr: [u8; 4], bits: u32, value: [u8; V]) {
        let mut map: lpm_trie::LpmTrie<_, [u8; 4], [u8; V]> =
            self.ebpf.map_mut(name).expect(name).try_into().expect(name);
        map.insert(&lpm_trie::Key::new(bits, addr), value, 0).expect(name);
    }

    pub fn counters(&mut self) -> BTreeMap<&'static str, u64> {
        let map: PerCpuArray<_, u64> = self.ebpf.map_mut("COUNTERS").expect("COUNTERS").try_into().expect("COUNTERS");
        let sum = |reason: &Reason| map.get(&(*reason as u32), 0).expect("counter").iter().sum();
        Reason::ALL.iter().map(|reason| (reason.name(), sum(reason))).collect()
    }

    /// Runs the tier's uplink program.
    pub fn uplink(&mut self, frame: &[u8]) -> Outcome {
        let name = if self.tier == Tier::Xdp { "xdp_uplink" } else { "tc_uplink" };
        self.run(name, frame)
    }

    /// Runs the tier's program of the cluster side.
    pub fn cluster(&mut self, frame: &[u8]) -> Outcome {
        let name = if self.tier == Tier::Xdp { "xdp_cluster" } else { "tc_cluster" };
        self.run(name, frame)
    }

    pub fn run(&mut self, name: &str, frame: &[u8]) -> Outcome {
        let before = self.counters();
        let (code, out, _) = self.run_program(name, frame, 1);
        let mut counted = self.counters();
        counted.retain(|name, after| {
            *after -= before[name];
            *after != 0
        });
        let action = match (name.starts_with("xdp"), code as i32) {
            (true, 1) | (false, 2) => Action::Drop,
            (true, 2) | (false, -1) => Action::Pass,
            (true, 4) | (false, 7) => Action::Redirect,
            _ => Action::Other(code),
        };
        Outcome { action, frame: out, counted }
    }

    /// Return value, frame out, and ns a run.
    pub fn run_program(&mut self, name: &str, frame: &[u8], repeat: u32) -> (u32, Vec<u8>, u64) {
        let mut out = vec![0; frame.len() + 256];

        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), repeat, ..Default::default() };
        let result = match self.ebpf.program(name).expect(name) {
            aya::programs::Program::Xdp(program) => program.test_run(options),
            aya::programs::Program::SchedClassifier(program) => program.test_run(options),
            _ => panic!("{name} is neither XDP nor TC"),
        }
        .unwrap_or_else(|e| panic!("{name}: {e}"));
        out.truncate(result.data_size_out as usize);
        (result.return_value, out, result.duration.as_nanos() as u64)
    }
}

pub fn next_hop(ifindex: u32, flags: u16, mtu: u16, dst: [u8; 6]) -> NextHop {
    NextHop { ifindex, flags, mtu, dst, src: GATEWAY_MAC, via: [0; 16], xdp_ifindex: ifindex, tags: [[0; 2]; 2] }
}

/// Writes frames that a test did not like, for a packet analyser.
pub fn save(name: &str, frames: &[&[u8]]) -> PathBuf {
    let mut pcap = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        pcap.extend(word.to_ne_bytes());
    }
    for frame in frames {
        let len = frame.len() as u32;
        for word in [0, 0, len, len] {
            pcap.extend(word.to_ne_bytes());
        }
        pcap.extend_from_slice(frame);
    }
    let path = std::env::temp_dir().join(format!("gateway-{}.pcap", name.replace(|c: char| !c.is_alphanumeric(), "-")));
    std::fs::write(&path, pcap).expect("a file in the temporary directory");
    path
}

/// Whether this process may load programs; says so when not.
pub fn skip() -> bool {
    let skip = !nix::unistd::Uid::effective().is_root();
    if skip {
        eprintln!("skipped: loading BPF programs needs root");
    }
    skip
}
