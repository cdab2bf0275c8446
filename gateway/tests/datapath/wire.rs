//! Real sockets over a real veth: what a test run cannot show. Checksums here are the kernel's own business, half done
//! while a packet is on its way, and segments come by the dozen in one buffer.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode, tc};

use crate::{
    cast::{CLIENT_TAGS, V4, V6, ep, port},
    packets::{Ends, SYN, tagged, tcp},
    world::{Tier, World, in_turn, skip},
};

const WAIT: Duration = Duration::from_secs(5);

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// How clients reach the gateway.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// XDP on the uplink, before TC.
    xdp: Option<XdpMode>,
    /// The uplink may leave checksums to its peer.
    offload: bool,
    /// A VLAN, or one within another; TC's programs are on every device of them.
    tags: usize,
    v6: bool,
}

impl Way {
    /// The gateway's device, or the client's, with what is below it.
    fn devices(self, lowest: &str) -> Vec<String> {
        (0..=self.tags).map(|tags| if tags == 0 { lowest.into() } else { format!("{lowest}v{tags}") }).collect()
    }

    /// Makes the VLANs and gives the topmost device its addresses.
    fn prepare(self, lowest: &str, addr4: &str, addr6: IpAddr) {
        let devices = self.devices(lowest);
        run("ip link set lo up");
        run(&format!("ip link set {lowest} up"));
        for (below, id) in devices.windows(2).zip([5, 262]) {
            run(&format!("ip link add link {} name {} type vlan id {id}", below[0], below[1]));
            run(&format!("ip link set {} up", below[1]));
        }
        let top = &devices[self.tags];
        run(&format!("ip addr add {addr4}/16 dev {top}"));
        run(&format!("ip addr add {addr6}/32 dev {top} nodad"));
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A machine of its own: a thread in another network namespace, at the far end of the uplink.
struct Client {
    jobs: mpsc::Sender<Job>,
    v6: bool,
}

impl Client {
    fn new(way: Way) -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (tell, tid) = mpsc::channel();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(nix::unistd::gettid()).expect("the test waits");
            inbox.into_iter().for_each(|job| job());
        });
        run(&format!("ip link set up1 netns {}", tid.recv().expect("the client's thread")));
        let client = Self { jobs, v6: way.v6 };
        client.call(move || {
            way.prepare("up1", "10.90.1.100", V6.client);
            run("ip route add 10.1.0.0/16 via 10.90.2.100");
            run(&format!("ip route add fd01::/64 via {}", V6.own));
        });
        client
    }

    fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, answer) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(tell.send(job())))).expect("the client's thread");
        answer.recv_timeout(WAIT * 6).expect("the client's answer")
    }

    /// A VIP's port, in the family that is spoken.
    fn web(&self, port: u16) -> SocketAddr {
        SocketAddr::new(if self.v6 { V6.web } else { V4.web }, port)
    }
}

/// A gateway with a client, the programs attached; in this thread's own network namespace, gone with it.
fn wire(world: &mut World, way: Way) -> Client {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    world.begin(Tier::Tc, way.v6, (0, 0));
    run("ip link add up0 type veth peer name up1");
    way.prepare("up0", "10.90.2.100", V6.own);
    if !way.offload {
        run("ethtool -K up0 tx off");
    }
    let client = Client::new(way);
    for device in way.devices("up0") {
        for (name, hook) in [("tc_uplink", TcAttachType::Ingress), ("tc_egress", TcAttachType::Egress)] {
            let program: &mut SchedClassifier = world.ebpf.program_mut(name).expect(name).try_into().expect(name);
            let _ = tc::qdisc_add_clsact(&device);
            program.attach(&device, hook).expect(name);
        }
    }
    if let Some(mode) = way.xdp {
        let program: &mut Xdp = world.ebpf.program_mut("xdp_uplink").expect("it").try_into().expect("it");
        program.attach("up0", mode).expect("xdp_uplink");
    }
    client
}

/// Whether the kernel has VLAN devices; says so when not.
fn has_vlans() -> bool {
    let made = thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        let mut ip = Command::new("ip");
        ip.args(["link", "add", "link", "lo", "name", "v1", "type", "vlan", "id", "5"]);
        let output = ip.output().expect("ip");
        // The loopback device takes no VLAN, so even a kernel that has them refuses; for another reason.
        !String::from_utf8_lossy(&output.stderr).contains("Unknown device type")
    });
    let has = made.join().expect("asked");
    if !has {
        eprintln!("SKIP: sockets behind VLAN devices, which this kernel does not have (CONFIG_VLAN_8021Q)");
    }
    has
}

fn every_way(test: fn(&mut World, &Client, &str)) {
    if skip() {
        return;
    }
    let vlans = has_vlans();
    let mut ways = Vec::new();
    for v6 in [false, true] {
        for offload in [true, false] {
            for xdp in [None, Some(XdpMode::Skb), Some(XdpMode::Driver)] {
                ways.push(Way { xdp, offload, tags: 0, v6 });
            }
            if vlans {
                ways.extend([1, 2].map(|tags| Way { xdp: None, offload, tags, v6 }));
            }
        }
    }
    for way in ways {
        in_turn(|world| {
            thread::scope(|scope| {
                let way_of = scope.spawn(move || {
                    let client = wire(world, way);
                    test(world, &client, &format!("{way:?}"));
                });
                way_of.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        });
    }
}

#[test]
fn a_clients_sockets_learn_at_once_that_nobody_is_there() {
    every_way(|world, client, way| {
        for len in [1, 9, 600, 1400] {
            let to = client.web(9999);
            let kind = client.call(move || {
                let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(any).expect("a socket");
                socket.set_read_timeout(Some(WAIT)).expect("a timeout");
                socket.connect(to).expect("connected");
                socket.send(&vec![7; len]).expect("sent");
                socket.recv(&mut [0; 10]).map_err(|e| e.kind())
            });
            assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{way}: {len} bytes, {:?}", world.counters());
        }
        let to = client.web(9999);
        let kind = client.call(move || TcpStream::connect_timeout(&to, WAIT).map(drop).map_err(|e| e.kind()));
        assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{way}: {:?}", world.counters());
        let to = SocketAddr::new(world.cast.unused, 80);
        let kind = client.call(move || TcpStream::connect_timeout(&to, WAIT).map(drop).map_err(|e| e.kind()));
        assert_eq!(kind, Err(ErrorKind::HostUnreachable), "{way}: {:?}", world.counters());
    });
}

#[test]
fn a_socket_of_the_gateways_node_serves_clients_and_its_loss_resets_them() {
    every_way(|world, client, way| {
        let listener = TcpListener::bind(SocketAddr::new(world.cast.own, 6443)).expect("a listener");
        let server = thread::spawn(move || {
            let (mut stream, peer) = listener.accept().expect("a client");
            let mut buffer = vec![0; 1 << 16];
            let mut total = 0;
            while total < SIZE {
                let n = stream.read(&mut buffer).expect("data");
                assert_ne!(n, 0, "closed after {total}");
                stream.write_all(&buffer[..n]).expect("echoed");
                total += n;
            }
            (stream, peer)
        });
        const SIZE: usize = 3_000_000;
        let to = client.web(port::LOCAL);
        let (stream, echoed) = client.call(move || {
            let mut stream = TcpStream::connect_timeout(&to, WAIT).expect("connected");
            stream.set_read_timeout(Some(WAIT)).expect("a timeout");
            let mut writer = stream.try_clone().expect("a second handle");
            let sent: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
            let copy = sent.clone();
            let writer = thread::spawn(move || writer.write_all(&sent).expect("sent"));
            let mut echoed = vec![0; SIZE];
            stream.read_exact(&mut echoed).expect("echoed");
            writer.join().expect("the writer");
            (stream, echoed == copy)
        });
        assert!(echoed, "{way}: the echo differs");
        let (_open, peer) = server.join().expect("the server");
        assert_eq!(peer.ip(), world.cast.client, "{way}: the client's own address");

        world.lose_endpoint(ep::LOCAL);
        let kind = client.call(move || {
            let mut stream = stream;
            stream.write_all(b"anybody there?").expect("sent");
            stream.read(&mut [0; 10]).map_err(|e| e.kind())
        });
        assert_eq!(kind, Err(ErrorKind::ConnectionReset), "{way}: {:?}", world.counters());
    });
}

/// Sends a frame as it is out of an interface of this thread's namespace.
fn send_raw(device: &str, frame: &[u8]) {
    let index = nix::net::if_::if_nametoindex(device).expect(device);
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: all zero is a value of the struct, which is plain integers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (to.sll_family, to.sll_ifindex, to.sll_halen) = (libc::AF_PACKET as u16, index as i32, 6);
    // SAFETY: the frame and the address are valid for the lengths that are told.
    let sent =
        unsafe { libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), len) };
    assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
}

/// The kernel takes a tag into the buffer's metadata before TC's programs run, whoever the frame is for.
#[test]
fn on_the_lower_device_tagged_frames_are_left_to_their_vlan() {
    if skip() {
        return;
    }
    for v6 in [false, true] {
        in_turn(|world| {
            thread::scope(|scope| {
                let run = scope.spawn(move || {
                    let client = wire(world, Way { xdp: None, offload: true, tags: 0, v6 });
                    let c = world.cast;
                    let frame = tcp(Ends::new(c.client, 1, c.web, 9999), SYN, b"");
                    let refused = world.counters()["unknown_port"];
                    for tags in [1, 2, 0] {
                        let frame = tagged(&frame, &CLIENT_TAGS[..tags]);
                        client.call(move || send_raw("up1", &frame));
                    }
                    // The last one, which is nobody's VLAN, is answered, and those before it were seen by then.
                    let end = Instant::now() + WAIT;
                    while world.counters()["unknown_port"] == refused && Instant::now() < end {
                        thread::sleep(Duration::from_millis(10));
                    }
                    assert_eq!(world.counters()["unknown_port"], refused + 1);
                });
                run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            });
        });
    }
}
