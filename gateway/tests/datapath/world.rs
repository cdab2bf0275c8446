//! A small cluster in real BPF maps, and the real programs run on single frames.

use std::{
    collections::BTreeMap,
    fs::File,
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{Array, HashMap, MapData, PerCpuArray, lpm_trie},
    programs::{SchedClassifier, TestRun as _, Xdp},
};
use gateway_common::{
    Reason,
    maps::{
        Affinity, AffinityKey, Bucket, Claim, Config, Endpoint, Flow, FlowKey, FragmentKey, Fragments, NextHop,
        Service, ServiceKey, View, Vlan, VlanKey, endpoint, flow, nexthop, vlan,
    },
};

use crate::{
    cast::{CLIENT_MAC, CLIENT_TAGS, Cast, GATEWAY_MAC, POD_MAC, POD_TAGS, V4, V6, ep, hop, narrow_mtu, port},
    packets::{tagged, untagged},
};

/// A flow's key, of either family; IPv4 in the first four bytes.
pub type Key = FlowKey<[u8; 16]>;
/// A flow's record, of either family.
pub type Record = Flow<[u8; 16]>;

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

/// The program of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Uplink,
    Cluster,
    Egress,
}

#[derive(Debug)]
pub struct Outcome {
    pub action: Action,
    /// Without tags.
    pub frame: Vec<u8>,
    /// EtherType and tag, outer one first.
    pub tags: Vec<[u8; 4]>,
    /// Not a byte is different.
    pub same: bool,
    pub counted: BTreeMap<&'static str, u64>,
}

pub struct World {
    pub ebpf: Ebpf,
    pub tier: Tier,
    /// The family that is spoken.
    pub cast: Cast,
    /// Tags of the VLANs of clients and pods.
    pub tags: (usize, usize),
    /// Its network namespace.
    net: File,
}

fn bytes<T: bytemuck::Pod, const N: usize>(value: T) -> [u8; N] {
    bytemuck::cast(value)
}

/// In the first bytes of sixteen.
pub fn wide(addr: IpAddr) -> [u8; 16] {
    let mut out = [0; 16];
    match addr {
        IpAddr::V4(addr) => out[..4].copy_from_slice(&addr.octets()),
        IpAddr::V6(addr) => out = addr.octets(),
    }
    out
}

fn first4(addr: [u8; 16]) -> [u8; 4] {
    [addr[0], addr[1], addr[2], addr[3]]
}

fn widen(addr: [u8; 4]) -> [u8; 16] {
    wide(addr.into())
}

fn key_of<A, B>(key: FlowKey<A>, addr: impl Fn(A) -> B) -> FlowKey<B> {
    let FlowKey { src, dst, sport, dport, proto, pad } = key;
    FlowKey { src: addr(src), dst: addr(dst), sport, dport, proto, pad }
}

fn record_of<A: Copy, B>(of: &Flow<A>, addr: impl Fn(A) -> B) -> Flow<B> {
    Flow {
        seen: of.seen,
        checked: of.checked,
        created: of.created,
        packets: of.packets,
        bytes: of.bytes,
        endpoint: of.endpoint,
        generation: of.generation,
        nexthop: of.nexthop,
        service: of.service,
        l3_delta: of.l3_delta,
        l4_delta: of.l4_delta,
        port_delta: of.port_delta,
        flags: of.flags,
        new_sport: of.new_sport,
        new_dport: of.new_dport,
        tcp: of.tcp,
        view: of.view,
        pad: of.pad,
        new_src: addr(of.new_src),
        new_dst: addr(of.new_dst),
    }
}

impl World {
    /// As it was at the beginning: no flow, the usual config and endpoints.
    pub fn reset(&mut self) {
        self.clear::<16, 80>("FLOWS4");
        self.clear::<40, 104>("FLOWS6");
        self.clear::<8, 32>("SERVICES4");
        self.clear::<20, 32>("SERVICES6");
        self.clear::<4, 4>("CLIENT_HOPS4");
        self.clear::<16, 4>("CLIENT_HOPS6");
        self.clear::<{ size_of::<VlanKey>() }, { size_of::<Vlan>() }>("VLANS");
        self.clear::<16, { size_of::<Bucket>() }>("RATES");
        self.clear::<{ size_of::<AffinityKey>() }, { size_of::<Affinity>() }>("AFFINITY");
        self.clear::<{ size_of::<FragmentKey>() }, { size_of::<Fragments>() }>("FRAGMENTS");
        self.populate();
    }

    /// Loads the object, with room for so many records, and fills its maps with the small cluster.
    pub fn sized(flows: u32) -> Self {
        // A network namespace of this thread's own, gone with it: the routes and switches that TC asks for.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        for args in [
            "link set lo up",
            "link add up0 type veth peer name up1",
            "link set up1 up",
            "link set up0 up",
            "addr add 10.90.2.100/16 dev up0",
            "route add 10.2.0.0/16 via 10.90.2.11",
            "addr add fd90:0:2:0:0:beef:0:64/32 dev up0 nodad",
            "route add fd02::/32 via fd90:0:2:0:0:beef:0:b",
        ] {
            let status = std::process::Command::new("ip").args(args.split(' ')).status().expect("ip");
            assert!(status.success(), "ip {args}");
        }
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding in the namespace");
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("forwarding in the namespace");
        let ebpf = EbpfLoader::new()
            .map_max_entries("FLOWS4", flows)
            .map_max_entries("FLOWS6", flows)
            .map_max_entries("SERVICES4", 1024)
            .map_max_entries("SERVICES6", 1024)
            .map_max_entries("MAGLEV", 4096)
            .map_max_entries("ENDPOINTS", 64)
            .map_max_entries("NEXTHOPS", 64)
            .map_max_entries("CLIENT_HOPS4", 64)
            .map_max_entries("CLIENT_HOPS6", 64)
            .load(gateway::kernel::OBJECT)
            .expect("the object loads");
        let net = File::open("/proc/thread-self/ns/net").expect("the namespace");
        let mut world = Self { ebpf, tier: Tier::Xdp, cast: V4, tags: (0, 0), net };
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
        self.prefix("CLAIMS4", [10, 1, 0, 0], 16, bytes::<_, 4>(Claim::OURS));
        self.prefix("CLAIMS6", first(0xfd01, 0), 64, bytes::<_, 4>(Claim::OURS));
        for cast in [crate::cast::V4, crate::cast::V6] {
            match cast.spared {
                IpAddr::V4(addr) => self.prefix("CLAIMS4", addr.octets(), 32, bytes::<_, 4>(Claim::SPARED)),
                IpAddr::V6(addr) => self.prefix("CLAIMS6", addr.octets(), 128, bytes::<_, 4>(Claim::SPARED)),
            }
        }
        for (id, net) in [(0, 1), (1, 3)] {
            let view = View { id, flags: 0 };
            self.prefix("VIEWS4", [10, 90, net as u8, 0], 24, bytes::<_, 8>(view));
            self.prefix("VIEWS6", first(0xfd90, net), 48, bytes::<_, 8>(view));
        }
        for (role, tags, used) in [(vlan::UPLINK, CLIENT_TAGS, self.tags.0), (vlan::CLUSTER, POD_TAGS, self.tags.1)] {
            if used > 0 {
                self.set_vlan(some(tags, used), role);
            }
        }
        let cast = self.cast;
        let plain = nexthop::RESOLVED | nexthop::XDP;
        for (index, flags, mtu, mac, (tags, used)) in [
            (hop::POD, plain, 1500, POD_MAC, (POD_TAGS, self.tags.1)),
            (hop::POD2, plain, 1500, POD_MAC, (POD_TAGS, self.tags.1)),
            (hop::UNRESOLVED, nexthop::XDP, 1500, [0; 6], (POD_TAGS, self.tags.1)),
            (hop::NARROW, plain, narrow_mtu(&cast), POD_MAC, (POD_TAGS, self.tags.1)),
            (hop::CLIENT, plain, 1500, CLIENT_MAC, (CLIENT_TAGS, self.tags.0)),
            (hop::BARE, nexthop::RESOLVED | nexthop::NO_L2, 1420, [0; 6], (POD_TAGS, 0)),
        ] {
            self.set_hop(index, next_hop(flags, mtu, mac, some(tags, used)));
        }
        self.set_hop(hop::UNUSABLE, NextHop { ifindex: 0, ..next_hop(0, 0, [0; 6], [[0; 2]; 2]) });
        self.set_client_hop(cast.client, hop::CLIENT);
        self.service(cast.web, 0, 0, &[]);
        self.service(cast.web, port::HTTP, 6, &[(ep::HTTP, cast.pod, 8080, hop::POD)]);
        self.service(cast.web, port::ECHO_UDP, 17, &[(ep::ECHO, cast.pod, 7007, hop::POD)]);
        self.service(cast.web, port::EMPTY, 6, &[]);
        self.service(cast.web, port::EMPTY, 17, &[]);
        self.service(cast.web, port::LOCAL, 6, &[(ep::LOCAL, cast.own, 6443, 0)]);
        self.service(cast.web, port::LOCAL_UDP, 17, &[(ep::LOCAL_UDP, cast.own, 6443, 0)]);
        self.service(cast.web, port::UNRESOLVED, 6, &[(ep::UNRESOLVED, cast.pod, 9083, hop::UNRESOLVED)]);
        self.service(cast.web, port::NO_ROUTE, 6, &[(ep::NO_ROUTE, cast.pod, 9084, hop::UNUSABLE)]);
        self.service(cast.web, port::NARROW, 6, &[(ep::NARROW, cast.pod, 9085, hop::NARROW)]);
        self.service(cast.web, port::NARROW_UDP, 17, &[(ep::NARROW_UDP, cast.pod, 9085, hop::NARROW)]);
        self.service(cast.web, port::UNKNOWN_HOP, 6, &[(ep::UNKNOWN_HOP, cast.pod, 9087, 0)]);
        self.service(cast.web, port::BARE, 6, &[(ep::BARE, cast.pod, 9092, hop::BARE)]);
        let two = [(ep::TWO_A, cast.pod, 9086, hop::POD), (ep::TWO_B, cast.pod2, 9086, hop::POD2)];
        self.service(cast.web, port::TWO, 17, &two);
        self.service(cast.web, port::GUESTS, 6, &[(ep::GUESTS, cast.pod, 9089, hop::POD)]);
        let guests = self.service_value(port::GUESTS, 1);
        self.set_service(cast.web, port::GUESTS, 6, Service { views: 2, ..guests });
    }

    /// The one that tests take in turn: loading it takes longer than most of them. For programs run in its namespace.
    pub fn shared() -> MutexGuard<'static, Option<Self>> {
        static SHARED: Mutex<Option<World>> = Mutex::new(None);
        // What a test that failed has left behind is gone with the next one's beginning.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let world = shared.get_or_insert_with(|| Self::sized(1024));
        nix::sched::setns(&world.net, nix::sched::CloneFlags::CLONE_NEWNET).expect("the world's namespace");
        shared
    }

    /// Runs that tier's programs, in that family, with so many tags on the sides of clients and pods, and begins anew.
    pub fn begin(&mut self, tier: Tier, v6: bool, tags: (usize, usize)) {
        (self.tier, self.cast, self.tags) = (tier, if v6 { V6 } else { V4 }, tags);
        self.reset();
    }

    /// Frames with these VLAN IDs are an uplink's, or the cluster side's.
    pub fn set_vlan(&mut self, vids: [[u8; 2]; 2], role: u32) {
        let (key, value) = (VlanKey { ifindex: 1, vids }, Vlan { ifindex: 9, role });
        self.hash::<8, 8>("VLANS").insert(bytes::<_, 8>(key), bytes::<_, 8>(value), 0).expect("VLANS");
    }

    /// How many endpoints the ports of a VIP have, all together.
    pub fn set_vip_endpoints(&mut self, vip: IpAddr, endpoints: u32) {
        let value = Service { views: 1, id: 1, flags: 0, slots: 0, slot_count: 0, affinity: 0, endpoints };
        self.set_service(vip, 0, 0, value);
    }

    pub fn config() -> Config {
        let mut config: Config = bytemuck::Zeroable::zeroed();
        (config.snat_port, config.snat_ports, config.snat4_len, config.snat6_len) = (10_000, 20_000, 1, 1);
        (config.dns4_len, config.dns6_len, config.hz, config.icmp_rate) = (1, 1, 250, 1000);
        (config.own4, config.own6) = (first4(wide(V4.own)), wide(V6.own));
        (config.snat4[0], config.dns4[0]) = (config.own4, config.own4);
        (config.snat6[0], config.dns6[0]) = (config.own6, config.own6);
        (config.snat4[1], config.snat6[1]) = (first4(wide(V4.second)), wide(V6.second));
        config
    }

    pub fn set_config(&mut self, config: Config) {
        self.set::<{ size_of::<Config>() }>("CONFIG", 0, bytes(config));
    }

    /// The usual config but for that.
    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Self::config();
        change(&mut config);
        self.set_config(config);
    }

    pub fn set_hop(&mut self, index: u32, hop: NextHop) {
        self.set::<{ size_of::<NextHop>() }>("NEXTHOPS", index, bytes(hop));
    }

    pub fn hop(&mut self, index: u32) -> NextHop {
        bytemuck::cast(self.array::<{ size_of::<NextHop>() }>("NEXTHOPS").get(&index, 0).expect("hop"))
    }

    pub fn set_endpoint(&mut self, index: u32, endpoint: Endpoint) {
        self.set::<32>("ENDPOINTS", index, bytes(endpoint));
    }

    pub fn endpoint(&mut self, index: u32) -> Endpoint {
        bytemuck::cast(self.array::<32>("ENDPOINTS").get(&index, 0).expect("endpoint"))
    }

    /// The endpoint is gone, and its place given to nobody yet.
    pub fn lose_endpoint(&mut self, index: u32) {
        let mut endpoint = self.endpoint(index);
        endpoint.generation += 1;
        self.set_endpoint(index, endpoint);
    }

    /// The value of [`Self::service`].
    pub fn service_value(&self, port: u16, endpoints: usize) -> Service {
        Service {
            views: 1,
            id: u32::from(port) + 1,
            flags: 0,
            slots: u32::from(port) * 8,
            slot_count: endpoints as u32,
            affinity: 0,
            endpoints: endpoints as u32,
        }
    }

    /// A Service port (or, with port and protocol 0, a VIP) that view 0 sees, and its endpoints: index, address, port, next hop.
    pub fn service(&mut self, vip: IpAddr, port: u16, proto: u8, endpoints: &[(u32, IpAddr, u16, u32)]) {
        let value = self.service_value(port, endpoints.len());
        for (i, &(index, addr, port, nexthop)) in endpoints.iter().enumerate() {
            let local = if addr == self.cast.own { endpoint::LOCAL } else { 0 };
            let flags = local | if addr.is_ipv6() { endpoint::V6 } else { 0 };
            let (addr, port) = (wide(addr), port.to_be_bytes());
            self.set_endpoint(index, Endpoint { addr, port, flags, generation: 1, nexthop, service: value.id });
            self.set::<4>("MAGLEV", value.slots + i as u32, index.to_ne_bytes());
        }
        self.set_service(vip, port, proto, value);
    }

    pub fn set_service(&mut self, vip: IpAddr, port: u16, proto: u8, value: Service) {
        let value = bytes::<_, 32>(value);
        match vip {
            IpAddr::V4(vip) => {
                let key: [u8; 8] = bytes(ServiceKey::new(vip.octets(), port, proto));
                self.hash::<8, 32>("SERVICES4").insert(key, value, 0).expect("service");
            }
            IpAddr::V6(vip) => {
                let key: [u8; 20] = bytes(ServiceKey::new(vip.octets(), port, proto));
                self.hash::<20, 32>("SERVICES6").insert(key, value, 0).expect("service");
            }
        }
    }

    pub fn set_flow(&mut self, key: &Key, flow: &Record) {
        if self.cast.v6 {
            self.hash::<40, 104>("FLOWS6").insert(bytes::<_, 40>(*key), bytes::<_, 104>(*flow), 0).expect("flow");
        } else {
            let (key, flow) = (key_of(*key, first4), record_of(flow, first4));
            self.hash::<16, 80>("FLOWS4").insert(bytes::<_, 16>(key), bytes::<_, 80>(flow), 0).expect("flow");
        }
    }

    pub fn remove_flow(&mut self, key: &Key) {
        if self.cast.v6 {
            self.hash::<40, 104>("FLOWS6").remove(&bytes(*key)).expect("flow");
        } else {
            self.hash::<16, 80>("FLOWS4").remove(&bytes(key_of(*key, first4))).expect("flow");
        }
    }

    /// All records of the family.
    pub fn flows(&mut self) -> Vec<(Key, Record)> {
        if self.cast.v6 {
            let map = self.hash::<40, 104>("FLOWS6");
            let all = map.iter().map(|entry| entry.expect("flow"));
            return all.map(|(key, flow)| (bytemuck::cast(key), bytemuck::cast(flow))).collect();
        }
        let map = self.hash::<16, 80>("FLOWS4");
        let all = map.iter().map(|entry| entry.expect("flow"));
        all.map(|(key, flow)| (key_of(bytemuck::cast(key), widen), record_of(&bytemuck::cast(flow), widen))).collect()
    }

    /// Those of one direction, [`flow::FORWARD`] or [`flow::REVERSE`].
    pub fn records(&mut self, direction: u16) -> Vec<(Key, Record)> {
        self.flows().into_iter().filter(|(_, flow)| flow.flags & direction != 0).collect()
    }

    /// Makes records look as if their other halves had not been looked after for a second.
    pub fn age(&mut self, direction: u16) {
        for (key, mut record) in self.records(direction) {
            record.checked = 0;
            self.set_flow(&key, &record);
        }
    }

    pub fn set_client_hop(&mut self, client: IpAddr, index: u32) {
        let index = index.to_ne_bytes();
        match client {
            IpAddr::V4(a) => self.hash::<4, 4>("CLIENT_HOPS4").insert(a.octets(), index, 0),
            IpAddr::V6(a) => self.hash::<16, 4>("CLIENT_HOPS6").insert(a.octets(), index, 0),
        }
        .expect("client hop");
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

    fn clear<const K: usize, const V: usize>(&mut self, name: &str) {
        let mut map = self.hash::<K, V>(name);
        let keys: Vec<_> = map.keys().map(|key| key.expect(name)).collect();
        for key in keys {
            map.remove(&key).expect(name);
        }
    }

    fn array<const V: usize>(&mut self, name: &str) -> Array<&mut MapData, [u8; V]> {
        self.ebpf.map_mut(name).expect(name).try_into().expect(name)
    }

    fn set<const V: usize>(&mut self, name: &str, index: u32, value: [u8; V]) {
        self.array::<V>(name).set(index, value, 0).expect(name);
    }

    fn prefix<const A: usize, const V: usize>(&mut self, name: &str, addr: [u8; A], bits: u32, value: [u8; V]) {
        let mut map: lpm_trie::LpmTrie<_, [u8; A], [u8; V]> =
            self.ebpf.map_mut(name).expect(name).try_into().expect(name);
        map.insert(&lpm_trie::Key::new(bits, addr), value, 0).expect(name);
    }

    pub fn counters(&mut self) -> BTreeMap<&'static str, u64> {
        let map: PerCpuArray<_, u64> = self.ebpf.map_mut("COUNTERS").expect("COUNTERS").try_into().expect("COUNTERS");
        let sum = |reason: &Reason| map.get(&(*reason as u32), 0).expect("counter").iter().sum();
        Reason::ALL.iter().map(|reason| (reason.name(), sum(reason))).collect()
    }

    /// Runs the tier's uplink program on a client's frame.
    pub fn uplink(&mut self, frame: &[u8]) -> Outcome {
        self.run(Role::Uplink, frame)
    }

    /// Runs the tier's program of the cluster side on a pod's frame.
    pub fn cluster(&mut self, frame: &[u8]) -> Outcome {
        self.run(Role::Cluster, frame)
    }

    /// The tags of the side that a program looks at.
    pub fn tags_of(&self, role: Role) -> Vec<[u8; 4]> {
        let (tags, used) = match role {
            Role::Uplink => (CLIENT_TAGS, self.tags.0),
            Role::Cluster => (POD_TAGS, self.tags.1),
            Role::Egress => (CLIENT_TAGS, 0),
        };
        tags[..used].iter().map(|[high, low]| [0x81, 0, *high, *low]).collect()
    }

    /// Runs the tier's program on a frame that is given its side's tags.
    pub fn run(&mut self, role: Role, frame: &[u8]) -> Outcome {
        let name = match (self.tier, role) {
            (_, Role::Egress) => "tc_egress",
            (Tier::Xdp, Role::Uplink) => "xdp_uplink",
            (Tier::Xdp, Role::Cluster) => "xdp_cluster",
            (Tier::Tc, Role::Uplink) => "tc_uplink",
            (Tier::Tc, Role::Cluster) => "tc_cluster",
        };
        let tags: Vec<[u8; 2]> = self.tags_of(role).iter().map(|tag| [tag[2], tag[3]]).collect();
        let sent = tagged(frame, &tags);
        let before = self.counters();
        let (code, out, _) = self.run_program(name, &sent, 1);
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
        let same = out == sent;
        let (tags, frame) = untagged(&out);
        Outcome { action, frame, tags, same, counted }
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
        .unwrap_or_else(|e| panic!("{name}: {e}: {:?}, {frame:02x?}", std::error::Error::source(&e)));
        out.truncate(result.data_size_out as usize);
        (result.return_value, out, result.duration.as_nanos() as u64)
    }
}

/// The first bytes of an IPv6 prefix.
fn first(a: u16, c: u16) -> [u8; 16] {
    std::net::Ipv6Addr::new(a, 0, c, 0, 0, 0, 0, 0).octets()
}

/// The first tags; the others are none.
fn some(mut tags: [[u8; 2]; 2], used: usize) -> [[u8; 2]; 2] {
    tags[used..].fill([0; 2]);
    tags
}

fn next_hop(flags: u16, mtu: u16, dst: [u8; 6], tags: [[u8; 2]; 2]) -> NextHop {
    NextHop { ifindex: 1, flags, mtu, dst, src: GATEWAY_MAC, via: [0; 16], xdp_ifindex: 1, tags }
}

/// A client's direction, and the endpoint's.
pub const FORWARD: u16 = flow::FORWARD;
pub const REVERSE: u16 = flow::REVERSE;

/// Runs a test in both tiers and both families, in a world without flows.
pub fn everywhere(test: impl Fn(&mut World)) {
    if skip() {
        return;
    }
    in_turn(|world| {
        for (tier, v6) in [(Tier::Xdp, false), (Tier::Xdp, true), (Tier::Tc, false), (Tier::Tc, true)] {
            world.begin(tier, v6, (0, 0));
            test(world);
        }
    });
}

/// Runs a test in the shared world.
pub fn in_turn(test: impl FnOnce(&mut World)) {
    let mut shared = World::shared();
    test(shared.as_mut().expect("it was made"));
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
