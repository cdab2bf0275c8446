//! Devices whose packets have no link-layer header: a VPN as uplink, a tunnel to pods.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use super::{
    Row, endpoint, name,
    net::{Namespace, skip},
    plan, settings,
};
use crate::{
    kernel::{Mode, Settings},
    model::Protocol,
};

/// `TUNSETIFF`, and a tun without packet information, from linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const IFF_TUN_NO_PI: i16 = 0x1001;
const PATIENCE: Duration = Duration::from_secs(5);

/// A device `tun0` of that namespace, up, with this address.
fn tun(namespace: &Namespace, addr: &str) -> io::Result<File> {
    let file = namespace.run(|| -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: all zero is a valid value of this struct of integers, arrays and pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (slot, byte) in request.ifr_name.iter_mut().zip(*b"tun0") {
            *slot = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = IFF_TUN_NO_PI;
        // SAFETY: `request` has a name that ends with a zero byte, and the kernel writes no more than the struct holds.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(file)
    })?;
    namespace.ip("link set tun0 up");
    namespace.ip(&format!("addr add {addr} dev tun0"));
    Ok(file)
}

/// Carries packets from one device to the other, until the namespaces are gone.
fn carry(mut from: File, mut to: File) {
    thread::spawn(move || {
        let mut packet = vec![0; 70_000];
        while let Ok(len) = from.read(&mut packet) {
            // A device that is down takes none.
            let _taken = to.write(&packet[..len]);
        }
    });
}

/// A tunnel between two namespaces; `None`, and it says so, where the machine has no such devices.
fn tunnel(one: (&Namespace, &str), other: (&Namespace, &str)) -> Option<()> {
    match (tun(one.0, one.1), tun(other.0, other.1)) {
        (Ok(a), Ok(b)) => {
            carry(a.try_clone().unwrap(), b.try_clone().unwrap());
            carry(b, a);
            Some(())
        }
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("skipped: no tun devices here: {error}");
            None
        }
    }
}

/// Answers each connection, and each datagram, with its peer's address.
fn serve(namespace: &Namespace, addr: &'static str) {
    let (tcp, udp) = namespace.run(move || (TcpListener::bind(addr).unwrap(), UdpSocket::bind(addr).unwrap()));
    thread::spawn(move || {
        for mut stream in tcp.incoming().take(20).flatten() {
            let peer = stream.peer_addr().unwrap();
            write!(stream, "{addr} to {}", peer.ip()).unwrap();
        }
    });
    udp.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            udp.send_to(format!("{addr} to {}", from.ip()).as_bytes(), from).unwrap();
        }
    });
}

/// What a server says over TCP, and over UDP, to a client in that namespace.
fn ask(client: &Namespace, vip: &str) -> [String; 2] {
    let vip: SocketAddr = vip.parse().unwrap();
    client.run(move || {
        let mut stream = TcpStream::connect_timeout(&vip, PATIENCE).unwrap_or_else(|e| panic!("{vip}: {e}"));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut tcp = String::new();
        stream.read_to_string(&mut tcp).unwrap();
        let socket = UdpSocket::bind((if vip.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(vip).unwrap();
        socket.send(b"?").unwrap();
        let mut buffer = [0; 100];
        let len = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{vip}, UDP: {e}"));
        [tcp, String::from_utf8_lossy(&buffer[..len]).into_owned()]
    })
}

/// Clients that come through a tun, endpoints behind one, and this node's own sockets, in both directions and with what the gateway
/// answers itself.
#[test]
fn devices_without_a_link_layer_carry_clients_and_endpoints() {
    if skip() {
        return;
    }
    let row = Row::new();
    let far = Namespace::new();
    if tunnel((&row.node, "10.90.7.1/24"), (&far, "10.90.7.2/24")).is_none() {
        return;
    }
    far.ip("route add default dev tun0");
    for (namespace, addr) in [(&row.server, "10.90.3.2:80"), (&far, "10.90.7.2:80"), (&row.node, "10.90.3.1:80")] {
        serve(namespace, addr);
    }
    let settings = Settings {
        uplinks: vec!["up0".into(), "tun0".into()],
        views: vec![vec!["10.90.1.0/24".parse().unwrap(), "10.90.7.0/24".parse().unwrap()]],
        ..settings(Mode::Auto)
    };
    let kernel = Arc::new(row.load(settings).unwrap());
    let inside = Arc::clone(&kernel);
    row.node.run(move || {
        for (service, vip, addr) in
            [("server", "10.1.0.1", "10.90.3.2"), ("far", "10.1.0.2", "10.90.7.2"), ("own", "10.1.0.3", "10.90.3.1")]
        {
            let mut both = plan(vip, 80, Protocol::Tcp, &[endpoint(addr, 80)]);
            both.frontends.extend(plan(vip, 80, Protocol::Udp, &[endpoint(addr, 80)]).frontends);
            inside.apply(&name(service), Some(&both)).unwrap();
        }
        inside.attach().unwrap();
    });
    for (client, from, vip, says) in [
        (&far, "through the tun", "10.1.0.1:80", "10.90.3.2:80 to 10.90.1.1"),
        (&row.client, "to a pod behind the tun", "10.1.0.2:80", "10.90.7.2:80 to 10.90.1.1"),
        (&far, "through the tun and back", "10.1.0.2:80", "10.90.7.2:80 to 10.90.1.1"),
        (&far, "to the node's own socket", "10.1.0.3:80", "10.90.3.1:80 to 10.90.7.2"),
    ] {
        // Twice: a flow's first packet and one of a known flow take different ways.
        for _ in 0..2 {
            assert_eq!(ask(client, vip), [says, says], "{from}");
        }
    }
    let refused = far.run(|| TcpStream::connect_timeout(&"10.1.0.1:81".parse().unwrap(), PATIENCE).unwrap_err().kind());
    assert_eq!(refused, io::ErrorKind::ConnectionRefused, "what the gateway answers itself");
    let pinged = far.run(|| Command::new("ping").args(["-c1", "-W5", "10.1.0.1"]).output().unwrap().status.success());
    assert!(pinged, "an echo reply by the tun");
    let node = far.run(|| Command::new("ping").args(["-c1", "-W5", "10.90.3.1"]).output().unwrap().status.success());
    assert!(node, "what is the node's passes");
    row.node.run(move || kernel.detach().unwrap());
}
