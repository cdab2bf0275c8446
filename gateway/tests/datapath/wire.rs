//! Real sockets over a real veth: what a test run cannot show. Checksums here are the kernel's own business, half done
//! while a packet is on its way, and segments come by the dozen in one buffer.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode, tc};

use crate::world::{Tier, World, ep, port, skip};

const WAIT: Duration = Duration::from_secs(5);

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

type Job = Box<dyn FnOnce() + Send>;

/// A machine of its own: a thread in another network namespace, at the far end of the uplink.
struct Client(mpsc::Sender<Job>);

impl Client {
    fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (tell, tid) = mpsc::channel();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
            tell.send(nix::unistd::gettid()).expect("the test waits");
            inbox.into_iter().for_each(|job| job());
        });
        run(&format!("ip link set up1 netns {}", tid.recv().expect("the client's thread")));
        let client = Self(jobs);
        client.call(|| {
            for command in [
                "ip link set lo up",
                "ip addr add 10.90.1.100/16 dev up1",
                "ip link set up1 up",
                "ip route add 10.1.0.0/16 via 10.90.2.100",
            ] {
                run(command);
            }
        });
        client
    }

    fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, answer) = mpsc::channel();
        self.0.send(Box::new(move || drop(tell.send(job())))).expect("the client's thread");
        answer.recv_timeout(WAIT * 6).expect("the client's answer")
    }
}

/// A gateway with a client, the programs attached. `offload`: the uplink may leave checksums to its peer.
fn wire(mode: Option<XdpMode>, offload: bool) -> (World, Client) {
    let mut world = World::new(Tier::Tc);
    if !offload {
        run("ethtool -K up0 tx off");
    }
    let client = Client::new();
    for (name, hook) in [("tc_uplink", TcAttachType::Ingress), ("tc_egress", TcAttachType::Egress)] {
        let program: &mut SchedClassifier = world.ebpf.program_mut(name).expect(name).try_into().expect(name);
        let _ = tc::qdisc_add_clsact("up0");
        program.attach("up0", hook).expect(name);
    }
    if let Some(mode) = mode {
        let program: &mut Xdp = world.ebpf.program_mut("xdp_uplink").expect("it").try_into().expect("it");
        program.attach("up0", mode).expect("xdp_uplink");
    }
    (world, client)
}

fn every_way(test: fn(&mut World, &Client, &str)) {
    if skip() {
        return;
    }
    for mode in [None, Some(XdpMode::Skb), Some(XdpMode::Driver)] {
        for offload in [true, false] {
            let (mut world, client) = wire(mode, offload);
            let name = format!("{mode:?}, checksum offload {offload}");
            test(&mut world, &client, &name);
        }
    }
}

#[test]
fn a_clients_sockets_learn_at_once_that_nobody_is_there() {
    every_way(|world, client, way| {
        for len in [1, 9, 600, 1400] {
            let kind = client.call(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                socket.set_read_timeout(Some(WAIT)).expect("a timeout");
                socket.connect("10.1.0.7:9999").expect("connected");
                socket.send(&vec![7; len]).expect("sent");
                socket.recv(&mut [0; 10]).map_err(|e| e.kind())
            });
            assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{way}: {len} bytes, {:?}", world.counters());
        }
        let kind = client.call(|| {
            let to = "10.1.0.7:9999".parse().expect("an address");
            TcpStream::connect_timeout(&to, WAIT).map(drop).map_err(|e| e.kind())
        });
        assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{way}: {:?}", world.counters());
        let kind = client.call(|| {
            let to = "10.1.9.9:80".parse().expect("an address");
            TcpStream::connect_timeout(&to, WAIT).map(drop).map_err(|e| e.kind())
        });
        assert_eq!(kind, Err(ErrorKind::HostUnreachable), "{way}: {:?}", world.counters());
    });
}

#[test]
fn a_socket_of_the_gateways_node_serves_clients_and_its_loss_resets_them() {
    every_way(|world, client, way| {
        let listener = TcpListener::bind("10.90.2.100:6443").expect("a listener");
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
        let (stream, echoed) = client.call(|| {
            let to = format!("10.1.0.7:{}", port::LOCAL).parse().expect("an address");
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
        assert_eq!(peer.ip().to_string(), "10.90.1.100", "{way}: the client's own address");

        let mut endpoint = world.endpoint(ep::LOCAL);
        endpoint.generation += 1;
        world.set_endpoint(ep::LOCAL, endpoint);
        let kind = client.call(move || {
            let mut stream = stream;
            stream.write_all(b"anybody there?").expect("sent");
            stream.read(&mut [0; 10]).map_err(|e| e.kind())
        });
        assert_eq!(kind, Err(ErrorKind::ConnectionReset), "{way}: {:?}", world.counters());
    });
}
