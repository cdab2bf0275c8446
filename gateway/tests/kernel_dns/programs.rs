//! The programs under test: loaded from the binary's own object, given frames by `BPF_PROG_TEST_RUN`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, PerCpuArray, RingBuf, lpm_trie::Key, lpm_trie::LpmTrie},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
};
use bytemuck::{Pod, Zeroable as _};
use gateway_common::{
    Reason,
    dns::{
        build::{Answer, key},
        emit::Request,
        hash::Keys,
        limit::Limit,
        log::{Asked, NONE},
        table::Table,
    },
    maps::{Config, DnsEntry, DnsHash, DnsLarge, View, Vlan, VlanKey, Zone, config, vlan},
};

use crate::frames::{checked, frame};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 90, 1, 100);
/// A client of view 1; [`CLIENT`] is in view 0.
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 90, 3, 7);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 90, 2, 100);
/// Of view 0.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd90, 1, 0, 0, 0, 0, 0, 0x100);
/// Of view 1.
pub const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd90, 3, 0, 0, 0, 0, 0, 7);
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd90, 2, 0, 0, 0, 0, 0, 0x100);
/// VLAN IDs whose frames XDP on the device below takes.
pub const VLANS: [&[u16]; 2] = [&[100], &[200, 300]];
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;
const TC_UNSPEC: u32 = u32::MAX;
const TC_SHOT: u32 = 2;
const TC_REDIRECT: u32 = 7;
/// Bytes of the log's ring.
pub const RING: u32 = 4096;

const KEY: usize = size_of::<DnsHash>();
const ENTRY: usize = size_of::<DnsEntry>();
const LARGE: usize = size_of::<DnsLarge>();
const ZONE: usize = size_of::<Zone>();
const CONFIG: usize = size_of::<Config>();
const VIEW: usize = size_of::<View>();

fn bytes<T: Pod, const N: usize>(value: &T) -> [u8; N] {
    bytemuck::bytes_of(value).try_into().expect("the size of the type")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Xdp,
    Tc,
}

pub const TIERS: [Tier; 2] = [Tier::Xdp, Tier::Tc];

/// What a program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// The DNS message that goes back, its frame checked.
    Answered(Vec<u8>),
    /// The frame goes on, unchanged.
    Passed,
    /// The frame is gone.
    Dropped,
}

impl Did {
    pub fn answer(self) -> Vec<u8> {
        match self {
            Self::Answered(message) => message,
            other => panic!("{other:?}, where the kernel should have answered"),
        }
    }
}

/// The loaded object, and the host's table of what its maps hold.
pub struct Bench {
    ebpf: Ebpf,
    pub table: Table,
    next_large: u32,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(&Limit::OFF, NONE)
    }

    /// With a limit on answers, and a log of that share of them.
    pub fn with(limit: &Limit, share: u32) -> Self {
        let mut ebpf = aya::EbpfLoader::new()
            .override_global("DNS_LIMIT", bytemuck::bytes_of(limit), true)
            .override_global("DNS_LOG_SHARE", &share, true)
            .map_max_entries("DNS_LOG", RING)
            .load(gateway::kernel::OBJECT)
            .expect("the object loads (as root)");
        let mut config = Config::zeroed();
        config.flags = config::DNS;
        config.dns4_len = 1;
        config.dns4[0] = SERVER.octets();
        config.dns6_len = 1;
        config.dns6[0] = SERVER6.octets();
        let mut map: Array<_, [u8; CONFIG]> = map(&mut ebpf, "CONFIG");
        map.set(0, bytes(&config), 0).expect("CONFIG");
        let mut views: LpmTrie<_, [u8; 4], [u8; VIEW]> = self::map(&mut ebpf, "VIEWS4");
        for (id, client) in [CLIENT, OTHER].into_iter().enumerate() {
            let view = View { id: id as u32, flags: 0 };
            let [a, b, c, _] = client.octets();
            views.insert(&Key::new(24, [a, b, c, 0]), bytes(&view), 0).expect("VIEWS4");
        }
        let mut views: LpmTrie<_, [u8; 16], [u8; VIEW]> = self::map(&mut ebpf, "VIEWS6");
        for (id, client) in [CLIENT6, OTHER6].into_iter().enumerate() {
            let view = View { id: id as u32, flags: 0 };
            views.insert(&Key::new(128, client.octets()), bytes(&view), 0).expect("VIEWS6");
        }
        let mut vlans: HashMap<_, [u8; 8], [u8; 8]> = self::map(&mut ebpf, "VLANS");
        for ids in VLANS {
            let mut vids = [[0; 2]; 2];
            vids.iter_mut().zip(ids).for_each(|(vid, id)| *vid = id.to_be_bytes());
            // Test runs come in through the first interface.
            let (key, value) = (VlanKey { ifindex: 1, vids }, Vlan { ifindex: 1, role: vlan::UPLINK });
            vlans.insert(bytes::<_, 8>(&key), bytes::<_, 8>(&value), 0).expect("VLANS");
        }
        for name in ["xdp_uplink", "empty"] {
            let program: &mut Xdp = ebpf.program_mut(name).expect(name).try_into().expect("an XDP program");
            program.load().unwrap_or_else(|e| panic!("{name}: {}", refusal(&e)));
        }
        let program: &mut SchedClassifier =
            ebpf.program_mut("tc_uplink").expect("tc_uplink").try_into().expect("a TC program");
        program.load().unwrap_or_else(|e| panic!("tc_uplink: {}", refusal(&e)));
        Self { ebpf, table: Table::default(), next_large: 1 }
    }

    /// Takes every answer out of the maps and the table.
    pub fn clear(&mut self) {
        let mut answers: HashMap<_, [u8; KEY], [u8; ENTRY]> = map(&mut self.ebpf, "ANSWERS");
        let keys: Vec<_> = answers.keys().map(|key| key.expect("ANSWERS")).collect();
        keys.iter().for_each(|key| answers.remove(key).expect("ANSWERS"));
        let mut large: HashMap<_, u32, [u8; LARGE]> = map(&mut self.ebpf, "LARGE");
        let keys: Vec<_> = large.keys().map(|key| key.expect("LARGE")).collect();
        keys.iter().for_each(|key| large.remove(key).expect("LARGE"));
        self.table = Table::default();
    }

    /// Into the maps and the table.
    pub fn put(&mut self, name: &[u8], qtype: u16, bits: u8, answer: Answer) {
        if let Some(key) = key(name, qtype, bits)
            && let Some((entry, large)) = answer.to_kernel(self.next_large)
        {
            if let Some(large) = large {
                let mut map: HashMap<_, u32, [u8; LARGE]> = map(&mut self.ebpf, "LARGE");
                map.insert(self.next_large, bytes::<_, LARGE>(&large), 0).expect("LARGE");
                self.next_large += 1;
            }
            let mut map: HashMap<_, [u8; KEY], [u8; ENTRY]> = map(&mut self.ebpf, "ANSWERS");
            let hash = Keys::DEFAULT.hash(&key);
            map.insert(bytes::<_, KEY>(&hash), bytes::<_, ENTRY>(&entry.of_key(&key)), 0).expect("ANSWERS");
        }
        self.table.put(name, qtype, bits, answer.into());
    }

    pub fn set_zone(&mut self, index: usize, zone: Zone) {
        let mut map: Array<_, [u8; ZONE]> = map(&mut self.ebpf, "ZONES");
        map.set(index as u32, bytes::<_, ZONE>(&zone), 0).expect("ZONES");
        self.table.set_zone(index, zone);
    }

    /// Times the kernel has served an entry.
    pub fn hits(&mut self, request: &Request, bits: u8) -> u64 {
        let Some(key) = key(request.name(), request.query.qtype, bits) else { return 0 };
        let map: HashMap<_, [u8; KEY], [u8; ENTRY]> = map(&mut self.ebpf, "ANSWERS");
        let entry: Option<DnsEntry> = map
            .get(&bytes::<_, KEY>(&Keys::DEFAULT.hash(&key)), 0)
            .ok()
            .map(|entry| bytemuck::pod_read_unaligned(&entry));
        entry.map_or(0, |entry| entry.hits)
    }

    pub fn count(&mut self, reason: Reason) -> u64 {
        let map: PerCpuArray<_, u64> = map(&mut self.ebpf, "COUNTERS");
        map.get(&(reason as u32), 0).expect("COUNTERS").iter().sum()
    }

    /// What is in the log's ring, oldest first; it is empty then.
    pub fn logged(&mut self) -> Vec<Asked> {
        let mut ring = RingBuf::try_from(self.ebpf.map_mut("DNS_LOG").expect("DNS_LOG")).expect("a ring");
        std::iter::from_fn(|| ring.next().map(|item| bytemuck::pod_read_unaligned(&item))).collect()
    }

    /// Gives a query of `client` to a program, and checks everything of the answer's frame that is not DNS.
    pub fn ask(&mut self, tier: Tier, client: impl Into<IpAddr>, message: &[u8]) -> Did {
        self.ask_tagged(tier, client, &[], message)
    }

    /// The same behind VLAN tags with these IDs.
    pub fn ask_tagged(&mut self, tier: Tier, client: impl Into<IpAddr>, tags: &[u16], message: &[u8]) -> Did {
        let client = client.into();
        let query = frame(client, tags, message);
        let (verdict, answer) = self.run(tier, &query);
        match (tier, verdict) {
            (Tier::Xdp, XDP_DROP) | (Tier::Tc, TC_SHOT) => Did::Dropped,
            (Tier::Xdp, XDP_PASS) | (Tier::Tc, TC_UNSPEC) => {
                assert_eq!(answer, query, "a frame that passes is unchanged");
                Did::Passed
            }
            (Tier::Xdp, XDP_REDIRECT) | (Tier::Tc, TC_REDIRECT) => Did::Answered(checked(client, tags, &answer)),
            (_, verdict) => panic!("{tier:?} verdict {verdict}"),
        }
    }

    /// Runs a program once on a frame.
    pub fn run(&self, tier: Tier, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; 4096];
        let mut options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..Default::default() };
        options.repeat = 1;
        let result = match tier {
            Tier::Xdp => self.xdp("xdp_uplink").test_run(options),
            Tier::Tc => {
                let program: &SchedClassifier =
                    self.ebpf.program("tc_uplink").expect("tc_uplink").try_into().expect("a TC program");
                program.test_run(options)
            }
        };
        let result = result.expect("BPF_PROG_TEST_RUN");
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Time of one run of an XDP program.
    pub fn time(&self, program: &str, frame: &[u8]) -> Duration {
        let options = TestRunOptions { data_in: Some(frame), ..Default::default() };
        self.xdp(program).test_run(options).expect("BPF_PROG_TEST_RUN").duration
    }

    /// Instructions that the verifier went through for the uplink programs.
    pub fn verified(&self) -> [Option<u32>; 2] {
        ["xdp_uplink", "tc_uplink"].map(|name| {
            let info = self.ebpf.program(name).expect(name).info().expect("the program's info");
            info.verified_instruction_count()
        })
    }

    fn xdp(&self, name: &str) -> &Xdp {
        self.ebpf.program(name).expect(name).try_into().expect("an XDP program")
    }
}

fn map<'a, M>(ebpf: &'a mut Ebpf, name: &str) -> M
where
    M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
{
    ebpf.map_mut(name).expect(name).try_into().expect(name)
}

fn refusal(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { verifier_log, .. } => {
            let log = verifier_log.to_string();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            tail.into_iter().rev().collect::<Vec<_>>().join("\n")
        }
        other => other.to_string(),
    }
}

/// `CLOCK_MONOTONIC` in ns.
pub fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}
