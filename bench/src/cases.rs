//! What is measured: frames, and the map entries that they meet.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};
use bytemuck::{Pod, Zeroable as _};
use gateway_common::{
    dns::{
        build::{EntryBuilder, Record, Soa, key as answer_key, zone},
        hash::Keys,
        name::to_wire,
        wire,
    },
    maps::{Config, Endpoint, Flow, FlowKey, NextHop, View, ViewList, ViewPrefix, config, flow, nexthop},
    net::{
        checksum::{finish, sum},
        family::{Family, V4, V6},
        translate,
    },
};

/// Bytes of `BENCH_FRAME`: the length in one byte, then the frame.
pub const FRAME: usize = 256;

const CLIENT: [u8; 4] = [10, 90, 1, 100];
const GATEWAY: [u8; 4] = [10, 90, 2, 100];
const VIP: [u8; 4] = [10, 1, 0, 80];
const POD: [u8; 4] = [10, 244, 1, 2];
const CLIENT6: [u8; 16] = [0xfd, 0x90, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const GATEWAY6: [u8; 16] = [0xfd, 0x90, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const VIP6: [u8; 16] = [0xfd, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80];
const POD6: [u8; 16] = [0xfd, 0x44, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const UDP: u8 = 17;
const TCP: u8 = 6;
const XDP_TX_LIKE: u32 = 4; // XDP_REDIRECT
/// Most times an empty program that a packet of a known flow may cost, that an answer may, and how much more over IPv6.
const LIMIT: f64 = 4.0;
const LIMIT_DNS: f64 = 7.0;
const LIMIT6: f64 = 1.3;
/// 38 characters, 40 bytes on the wire.
const NAME: &str = "frontend-web.staging.svc.cluster.local";
const LEARNT: &str = "static-content.cdn.provider.example.te";
const MISSING: &str = "frontend-not.staging.svc.cluster.local";

/// One row of the table.
pub struct Case {
    /// What it is.
    pub name: &'static str,
    /// The frame.
    pub frame: Vec<u8>,
    /// What the program must return.
    pub action: u32,
    /// Most times an empty program that it may cost.
    pub limit: Option<f64>,
}

impl Case {
    /// The frame as `BENCH_FRAME` holds it.
    pub fn stored(&self) -> [u8; FRAME] {
        let mut value = [0; FRAME];
        value[0] = u8::try_from(self.frame.len()).unwrap_or(0);
        value[1..=self.frame.len()].copy_from_slice(&self.frame);
        value
    }
}

/// Aya asks for its own marker on keys and values; these types are plain bytes.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);
// SAFETY: a transparent wrapper of a type that bytemuck has found to be plain old data.
unsafe impl<T: Pod> aya::Pod for Plain<T> {}

fn array<'a, V: Pod>(ebpf: &'a mut Ebpf, name: &str) -> Result<Array<&'a mut MapData, Plain<V>>> {
    let map = ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
    Ok(map.try_into()?)
}

fn hash<'a, K: Pod, V: Pod>(ebpf: &'a mut Ebpf, name: &str) -> Result<HashMap<&'a mut MapData, Plain<K>, Plain<V>>> {
    let map = ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))?;
    Ok(map.try_into()?)
}

/// Fills the maps and makes the frames.
pub fn prepare(ebpf: &mut Ebpf) -> Result<Vec<Case>> {
    let mut settings = Config::zeroed();
    settings.flags = config::DNS;
    settings.hz = 250;
    settings.snat_port = 10_000;
    settings.snat_ports = 20_000;
    settings.snat4_len = 1;
    settings.snat4[0] = GATEWAY;
    settings.dns4_len = 1;
    settings.dns4[0] = GATEWAY;
    settings.own4 = GATEWAY;
    settings.snat6_len = 1;
    settings.snat6[0] = GATEWAY6;
    settings.dns6_len = 1;
    settings.dns6[0] = GATEWAY6;
    settings.own6 = GATEWAY6;
    array(ebpf, "CONFIG")?.set(0, Plain(settings), 0)?;

    let mut list = ViewList::zeroed();
    list.len = 4;
    for (slot, third) in list.prefixes.iter_mut().zip(1..5) {
        let [addr, mask] = [[10, 90, third, 0], [255, 255, 255, 0]].map(u32::from_ne_bytes);
        *slot = ViewPrefix { addr, mask, id: 0 };
    }
    array(ebpf, "VIEW_LIST4")?.set(0, Plain(list), 0)?;
    let views = ebpf.map_mut("VIEWS4").context("the object has no map VIEWS4")?;
    let mut views: LpmTrie<_, [u8; 4], Plain<View>> = views.try_into()?;
    for third in 1..5 {
        views.insert(&Key::new(24, [10, 90, third, 0]), Plain(View { id: 0, flags: 0 }), 0)?;
    }

    let views = ebpf.map_mut("VIEWS6").context("the object has no map VIEWS6")?;
    let mut views: LpmTrie<_, [u8; 16], Plain<View>> = views.try_into()?;
    for third in 1..5 {
        let mut prefix = CLIENT6;
        prefix[3] = third;
        prefix[14] = 0;
        views.insert(&Key::new(64, prefix), Plain(View { id: 0, flags: 0 }), 0)?;
    }

    let mut addr = [0; 16];
    addr[..4].copy_from_slice(&POD);
    let pod = Endpoint { addr, port: 8080u16.to_be_bytes(), flags: 0, generation: 1, nexthop: 1, service: 1 };
    array(ebpf, "ENDPOINTS")?.set(1, Plain(pod), 0)?;
    let flags = nexthop::RESOLVED | nexthop::XDP;
    let hop = NextHop {
        ifindex: 1,
        flags,
        mtu: 1500,
        dst: [2; 6],
        src: [4; 6],
        via: addr,
        xdp_ifindex: 1,
        tags: [[0; 2]; 2],
    };
    let mut hops = array(ebpf, "NEXTHOPS")?;
    hops.set(1, Plain(hop), 0)?;
    hops.set(2, Plain(hop), 0)?;

    let mut cases = Vec::new();
    for (proto, ways) in [
        (UDP, ["known flow, UDP, client to endpoint", "known flow, UDP, endpoint to client"]),
        (TCP, ["known flow, TCP, client to endpoint", "known flow, TCP, endpoint to client"]),
    ] {
        cases.extend(flows::<V4>(ebpf, proto, [CLIENT, GATEWAY, VIP, POD], ways, LIMIT)?);
    }
    cases.extend(queries(ebpf)?);
    for (proto, ways) in [
        (UDP, ["IPv6: known flow, UDP, client to endpoint", "IPv6: known flow, UDP, endpoint to client"]),
        (TCP, ["IPv6: known flow, TCP, client to endpoint", "IPv6: known flow, TCP, endpoint to client"]),
    ] {
        cases.extend(flows::<V6>(ebpf, proto, [CLIENT6, GATEWAY6, VIP6, POD6], ways, LIMIT * LIMIT6)?);
    }
    Ok(cases)
}

/// Both directions of a flow that the kernel knows, among many others.
fn flows<N: Net>(
    ebpf: &mut Ebpf,
    proto: u8,
    [client, gateway, vip, pod]: [N::Addr; 4],
    names: [&'static str; 2],
    limit: f64,
) -> Result<[Case; 2]>
where
    FlowKey<N::Addr>: Pod,
    Flow<N::Addr>: Pod,
{
    let key = FlowKey::new(client, vip, 40_000u16.to_be_bytes(), 80u16.to_be_bytes(), proto);
    let to = FlowKey::new(gateway, pod, 12_345u16.to_be_bytes(), 8080u16.to_be_bytes(), proto);
    let mut out = translate::record_of::<N>(&key, &to);
    (out.endpoint, out.generation, out.service, out.flags) = (1, 1, 1, flow::FORWARD);
    let mut back = translate::twin_of::<N>(&key, &out);
    back.nexthop = 2;
    let back_key = out.twin(proto);
    let mut flows = hash::<FlowKey<N::Addr>, Flow<N::Addr>>(ebpf, N::FLOWS)?;
    flows.insert(Plain(key), Plain(out), 0)?;
    flows.insert(Plain(back_key), Plain(back), 0)?;
    // Many neighbours, so that the hash is not a table of four.
    for port in 1..2000u16 {
        let key = FlowKey::new(pod, vip, port.to_be_bytes(), 80u16.to_be_bytes(), UDP);
        flows.insert(Plain(key), Plain(Flow::<N::Addr>::zeroed()), 0)?;
    }
    let [out, back] = [(names[0], key), (names[1], back_key)].map(|(name, key)| Case {
        name,
        frame: N::packet(&key, b"payload"),
        action: XDP_TX_LIKE,
        limit: Some(limit),
    });
    Ok([out, back])
}

fn queries(ebpf: &mut Ebpf) -> Result<Vec<Case>> {
    let soa = Soa {
        mname: &to_wire("ns.dns.cluster.local")?,
        rname: &to_wire("hostmaster.cluster.local")?,
        serial: 1,
        refresh: 7200,
        retry: 1800,
        expire: 86_400,
        minimum: 30,
    };
    let cluster = zone(&to_wire("cluster.local")?, &soa, 30, true)?;
    array(ebpf, "ZONES")?.set(0, Plain(cluster), 0)?;

    let name = to_wire(NAME)?;
    let learnt_name = to_wire(LEARNT)?;
    let from_zone =
        EntryBuilder::zone(&name, u64::MAX)?.answer(Record::new(&name, wire::A, 30, &VIP))?.clone().build()?;
    let now = monotonic();
    let learnt = EntryBuilder::learnt(&learnt_name, u64::MAX, now, now + 3_600_000_000_000)?
        .answer(Record::new(&learnt_name, wire::A, 3600, &[192, 0, 2, 1]))?
        .clone()
        .build()?;
    let mut answers = hash(ebpf, "ANSWERS")?;
    for (name, answer) in [(&name, &from_zone), (&learnt_name, &learnt)] {
        let key = answer_key(name, wire::A, 0).context("a name that the kernel does not hold")?;
        let (entry, _) = answer.to_kernel(0).context("an answer that the kernel does not hold")?;
        answers.insert(Plain(Keys::DEFAULT.hash(&key)), Plain(entry.of_key(&key)), 0)?;
    }
    let case = |title, text: &str, limit| -> Result<Case> {
        Ok(Case { name: title, frame: query::<V4>(CLIENT, GATEWAY, &to_wire(text)?), action: XDP_TX_LIKE, limit })
    };
    Ok(vec![
        case("zone answer, 38-byte name", NAME, Some(LIMIT_DNS))?,
        case("learnt answer, 38-byte name, TTL aged", LEARNT, Some(LIMIT_DNS))?,
        case("no such name in the zone, with SOA", MISSING, None)?,
        Case {
            name: "IPv6: zone answer, 38-byte name",
            frame: query::<V6>(CLIENT6, GATEWAY6, &to_wire(NAME)?),
            action: XDP_TX_LIKE,
            limit: Some(LIMIT_DNS * LIMIT6),
        },
    ])
}

fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// A query for an address record, with EDNS, as resolvers send it.
fn query<N: Net>(client: N::Addr, server: N::Addr, name: &[u8]) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    message.extend_from_slice(name);
    message.extend_from_slice(&[0, 1, 0, 1]);
    message.extend_from_slice(&[0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    N::packet(&FlowKey::new(client, server, 40_001u16.to_be_bytes(), 53u16.to_be_bytes(), UDP), &message)
}

/// A family's map of flows, and its frames.
trait Net: Family {
    const FLOWS: &'static str;
    /// EtherType and IP header, whole checksum included.
    fn header(key: &FlowKey<Self::Addr>, len: usize) -> Vec<u8>;

    /// A whole frame with whole checksums.
    fn packet(key: &FlowKey<Self::Addr>, payload: &[u8]) -> Vec<u8> {
        let mut l4 = [key.sport, key.dport].concat();
        let check_at = if key.proto == UDP {
            l4.extend_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
            l4.extend_from_slice(&[0, 0]);
            6
        } else {
            l4.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
            16
        };
        l4.extend_from_slice(payload);
        let mut pseudo = [bytemuck::bytes_of(&key.src), bytemuck::bytes_of(&key.dst)].concat();
        pseudo.extend_from_slice(&[0, key.proto]);
        pseudo.extend_from_slice(&(l4.len() as u16).to_be_bytes());
        let check = finish(sum(&pseudo) + sum(&l4));
        l4[check_at..check_at + 2].copy_from_slice(&check);
        let mut frame = vec![4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2];
        frame.extend(Self::header(key, l4.len()));
        frame.extend(l4);
        frame
    }
}

impl Net for V4 {
    const FLOWS: &'static str = "FLOWS4";
    fn header(key: &FlowKey<Self::Addr>, len: usize) -> Vec<u8> {
        let mut ip = vec![0x45, 0];
        ip.extend_from_slice(&((20 + len) as u16).to_be_bytes());
        ip.extend_from_slice(&[0, 1, 0x40, 0, 64, key.proto, 0, 0]);
        ip.extend_from_slice(&key.src);
        ip.extend_from_slice(&key.dst);
        let check = finish(sum(&ip));
        ip[10..12].copy_from_slice(&check);
        [vec![8, 0], ip].concat()
    }
}

impl Net for V6 {
    const FLOWS: &'static str = "FLOWS6";
    fn header(key: &FlowKey<Self::Addr>, len: usize) -> Vec<u8> {
        let mut ip = vec![0x86, 0xdd, 0x60, 0, 0, 0];
        ip.extend_from_slice(&(len as u16).to_be_bytes());
        ip.extend_from_slice(&[key.proto, 64]);
        ip.extend_from_slice(&key.src);
        ip.extend_from_slice(&key.dst);
        ip
    }
}
