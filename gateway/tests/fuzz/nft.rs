//! A router that translates with the kernel's own nftables, in a network namespace, between two wires that end in raw sockets of ours.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::world::{PEER_MAC, POD_MAC};

/// Where a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Client,
    Pod,
}

/// Something that is translated: protocol, VIP and port, endpoint and port.
pub struct Rule {
    pub proto: u8,
    pub vip: Vec<u8>,
    pub port: u16,
    pub endpoint: Vec<u8>,
    pub target: u16,
}

pub fn text(addr: &[u8]) -> String {
    match addr.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(addr).expect("four")).to_string(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(addr).expect("sixteen")).to_string(),
    }
}

fn run(command: &str, input: Option<&str>) -> Result<(), String> {
    let mut words = command.split(' ');
    let mut cmd = Command::new(words.next().expect("a program"));
    cmd.args(words).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = cmd.spawn().map_err(|e| format!("{command}: {e}"))?;
    if let (Some(mut pipe), Some(text)) = (child.stdin.take(), input) {
        io::Write::write_all(&mut pipe, text.as_bytes()).map_err(|e| format!("{command}: {e}"))?;
    }
    let out = child.wait_with_output().map_err(|e| format!("{command}: {e}"))?;
    if out.status.success() { Ok(()) } else { Err(format!("{command}: {}", String::from_utf8_lossy(&out.stderr))) }
}

/// One end of a wire: every frame of a device, sent and received.
struct Wire(OwnedFd);

impl Wire {
    fn new(device: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(device)?;
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: a plain call; what it returns is checked and owned below.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zero is a value of this struct of integers.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = all;
        addr.sll_ifindex = index as i32;
        // SAFETY: the address is a live struct of the size that is passed.
        let ret = unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), size_of_val(&addr) as u32) };
        if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(fd)) }
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the frame is readable for its length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent == frame.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The next frame that is there, if any.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 2048];
        // SAFETY: the buffer is writable for its length.
        let got = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), libc::MSG_DONTWAIT) };
        frame.truncate(usize::try_from(got).ok()?);
        Some(frame)
    }
}

/// The router, and our ends of its two wires.
pub struct Router {
    client: Wire,
    pod: Wire,
    marker: Vec<u8>,
    /// Keeps the router's namespace alive.
    _stay: mpsc::Sender<()>,
}

impl Router {
    /// In a namespace of its own; the wires end in this thread's. `own` are the addresses it translates to; the prefix of `narrow`
    /// endpoints is behind a way of 600 bytes (IPv6: 1,280).
    pub fn new(rules: &[Rule], own: [&[u8]; 2]) -> Result<Self, String> {
        let (stay, leave) = mpsc::channel::<()>();
        let (tell, tid) = mpsc::channel();
        let (ready, wait) = mpsc::channel::<()>();
        let (done, result) = mpsc::channel();
        let script = script(rules, own);
        let [own4, own6] = own.map(text);
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let _ = tell.send(nix::unistd::gettid());
            let _ = wait.recv();
            let _ = done.send(set_up(&script, &own4, &own6));
            // Until the router is not needed any more.
            let _ = leave.recv();
        });
        let tid = tid.recv().map_err(|e| e.to_string())?;
        for (ours, theirs) in [("cl0", "cl1"), ("pod0", "pod1")] {
            run(&format!("ip link add {ours} type veth peer name {theirs}"), None)?;
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{ours}/disable_ipv6"), "1").map_err(|e| e.to_string())?;
            run(&format!("ip link set {ours} up arp off"), None)?;
            run(&format!("ip link set {theirs} netns {tid}"), None)?;
        }
        ready.send(()).map_err(|e| e.to_string())?;
        result.recv().map_err(|e| e.to_string())??;
        let wire = |device| Wire::new(device).map_err(|e| format!("{device}: {e}"));
        let mut router = Self { client: wire("cl0")?, pod: wire("pod0")?, marker: Vec::new(), _stay: stay };
        let ends = crate::frames::Ends { src: vec![10, 90, 1, 1], dst: vec![10, 2, 200, 200], sport: 0, dport: 0 };
        let look = crate::frames::Look { ttl: 64, tos: 0, id: 1, dont_fragment: true };
        router.marker =
            crate::frames::frame(&crate::frames::ip(&ends, 253, look, b"all before me is through"), &[], false);
        let first = router.pass(Side::Client, &[])?;
        if first.is_empty() { Ok(router) } else { Err(format!("{} stray packets", first.len())) }
    }

    fn wire(&self, side: Side) -> &Wire {
        if side == Side::Client { &self.client } else { &self.pod }
    }

    /// Sends packets from a side, and tells what came out where, in order. A marker follows the packets on the same CPU's queue: when
    /// it arrives, everything before it is through.
    pub fn pass(&self, from: Side, packets: &[&[u8]]) -> Result<Vec<(Side, Vec<u8>)>, String> {
        for packet in packets {
            let frame = crate::frames::frame(packet, &[], true);
            self.wire(from).send(&frame).map_err(|e| format!("{} bytes to {from:?}: {e}", frame.len()))?;
        }
        self.client.send(&self.marker).map_err(|e| e.to_string())?;
        let mut out = Vec::new();
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            match self.pod.receive() {
                Some(frame) if frame.len() > 24 && frame[12..14] == [8, 0] && frame[23] == 253 => break,
                Some(frame) => out.extend(interesting(&frame).map(|packet| (Side::Pod, packet))),
                None if Instant::now() > limit => return Err("the marker does not arrive".into()),
                None => thread::yield_now(),
            }
        }
        while let Some(frame) = self.client.receive() {
            out.extend(interesting(&frame).map(|packet| (Side::Client, packet)));
        }
        Ok(out)
    }
}

/// The IP packet of a frame; not what IPv6 says by itself.
fn interesting(frame: &[u8]) -> Option<Vec<u8>> {
    let facts = crate::oracle::Facts::of(frame)?;
    let discovery = facts.version == 6 && facts.proto == 58 && matches!(frame[facts.l4], 130..=137 | 143);
    let reports = facts.version == 6 && facts.proto == 0;
    (!discovery && !reports).then(|| frame[facts.l3..facts.end].to_vec())
}

fn script(rules: &[Rule], own: [&[u8]; 2]) -> String {
    let mut out = String::new();
    for (family, len, own) in [("ip", 4, own[0]), ("ip6", 16, own[1])] {
        let bracket = |addr: &[u8]| if len == 4 { text(addr) } else { format!("[{}]", text(addr)) };
        out += &format!("table {family} nat {{\n chain pre {{ type nat hook prerouting priority -100;\n");
        for rule in rules.iter().filter(|rule| rule.vip.len() == len) {
            let proto = if rule.proto == 6 { "tcp" } else { "udp" };
            let (vip, to) = (text(&rule.vip), bracket(&rule.endpoint));
            out += &format!("  {family} daddr {vip} {proto} dport {} dnat to {to}:{}\n", rule.port, rule.target);
        }
        out += &format!(
            " }}\n chain post {{ type nat hook postrouting priority 100;\n  ct status dnat meta l4proto {{ tcp, udp }} snat to \
             {}:10000-29999\n }}\n}}\n",
            bracket(own)
        );
    }
    out
}

fn set_up(script: &str, own4: &str, own6: &str) -> Result<(), String> {
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let (client, pod, ours) = (mac(PEER_MAC), mac(POD_MAC), mac(crate::world::GATEWAY_MAC));
    for (switch, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
    ] {
        std::fs::write(format!("/proc/sys/net/{switch}"), value).map_err(|e| format!("{switch}: {e}"))?;
    }
    // Absent in older kernels, where the limit is the whole machine's.
    let _ = std::fs::write("/proc/sys/net/ipv4/icmp_msgs_per_sec", "1000000");
    let _ = std::fs::write("/proc/sys/net/ipv4/icmp_msgs_burst", "1000000");
    for command in [
        "ip link set lo up".to_owned(),
        format!("ip link set cl1 address {ours} up"),
        format!("ip link set pod1 address {ours} up"),
        format!("ip addr add {own4}/32 dev cl1"),
        format!("ip addr add {own6}/128 dev cl1 nodad"),
        format!("ip neigh add 10.90.1.254 lladdr {client} dev cl1"),
        format!("ip neigh add 10.2.255.254 lladdr {pod} dev pod1"),
        format!("ip neigh add fe80::1 lladdr {client} dev cl1"),
        format!("ip neigh add fe80::2 lladdr {pod} dev pod1"),
        "ip route add 10.90.1.0/24 via 10.90.1.254 dev cl1 onlink".into(),
        "ip route add 10.2.0.0/16 via 10.2.255.254 dev pod1 onlink".into(),
        "ip route add 10.2.3.0/24 via 10.2.255.254 dev pod1 onlink mtu lock 600".into(),
        "ip -6 route add fd00:90:1::/48 via fe80::1 dev cl1".into(),
        "ip -6 route add fd00:2::/32 via fe80::2 dev pod1".into(),
        "ip -6 route add fd00:2:3::/48 via fe80::2 dev pod1 mtu lock 1280".into(),
    ] {
        run(&command, None)?;
    }
    run("nft -f -", Some(script))?;
    // They are there once the rules need them.
    for (switch, value) in [("nf_conntrack_tcp_be_liberal", "1"), ("nf_conntrack_tcp_loose", "1")] {
        std::fs::write(format!("/proc/sys/net/netfilter/{switch}"), value).map_err(|e| format!("{switch}: {e}"))?;
    }
    Ok(())
}
