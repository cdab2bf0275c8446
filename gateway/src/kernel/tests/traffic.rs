//! Real sockets through the loaded and attached datapath.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{
    Row, endpoint, name,
    net::{Namespace, eventually, no_vlans, skip},
    plan, settings,
};
use crate::{
    kernel::{Kernel, Mode, Settings},
    model::Protocol,
};

/// A TCP server that says its own name and the client's address to each connection.
fn serve_tcp(namespace: &Namespace, addr: &'static str) {
    let listener = namespace.run(move || TcpListener::bind(addr).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().take(100) {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().unwrap();
            write!(stream, "{addr} {peer}").unwrap();
        }
    });
}

/// A UDP server that echoes with its own name in front.
fn serve_udp(namespace: &Namespace, addr: &'static str) {
    let socket = namespace.run(move || UdpSocket::bind(addr).unwrap());
    // Programs of several tests are verified at once before anything arrives.
    socket.set_read_timeout(Some(Duration::from_secs(300))).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let answer = [addr.as_bytes(), b" ", &buffer[..n]].concat();
            socket.send_to(&answer, from).unwrap();
        }
    });
}

fn get(client: &Namespace, addr: &str) -> std::io::Result<String> {
    let addr: SocketAddr = addr.parse().unwrap();
    client.run(move || {
        let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

fn started(row: &Row, mode: Mode) -> Arc<Kernel> {
    started_with(row, settings(mode))
}

fn started_with(row: &Row, settings: Settings) -> Arc<Kernel> {
    let kernel = Arc::new(row.load(settings).unwrap());
    let web = plan("10.1.0.1", 80, Protocol::Tcp, &[endpoint("10.90.3.2", 8080), endpoint("10.90.3.3", 8080)]);
    let echo = plan("10.1.0.2", 7, Protocol::Udp, &[endpoint("10.90.3.2", 7)]);
    let inside = Arc::clone(&kernel);
    row.node.run(move || {
        inside.apply(&name("web"), Some(&web)).unwrap();
        inside.apply(&name("echo"), Some(&echo)).unwrap();
        inside.attach().unwrap();
    });
    kernel
}

/// The kernel room is dropped where it was loaded, so that it puts back that namespace's sysctls.
fn end(row: &Row, kernel: Arc<Kernel>) {
    row.node.run(move || kernel.detach().unwrap());
}

fn clients_reach_endpoints(mode: Mode) {
    if skip() {
        return;
    }
    let row = Row::new();
    if mode == Mode::Native {
        // FACTS of a veth lab: whole checksums from sockets, and GRO for XDP_REDIRECT into the peer.
        for namespace in [&row.client, &row.server] {
            namespace.command("ethtool", "-K eth0 tx off gro on");
        }
    }
    serve_tcp(&row.server, "10.90.3.2:8080");
    serve_tcp(&row.server, "10.90.3.3:8080");
    serve_udp(&row.server, "10.90.3.2:7");
    let kernel = started(&row, mode);

    let mut names = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let text = get(&row.client, "10.1.0.1:80").unwrap();
        let (server, peer) = text.split_once(' ').unwrap();
        let peer: SocketAddr = peer.parse().unwrap();
        assert_eq!(peer.ip().to_string(), "10.90.1.1", "the server sees the gateway");
        assert!((20000..=29999).contains(&peer.port()), "from the reserved range: {peer}");
        names.insert(server.to_owned());
    }
    assert_eq!(names.len(), 2, "both endpoints get connections: {names:?}");

    let echoed = row.client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.connect("10.1.0.2:7").unwrap();
        let mut buffer = [0; 100];
        (0..10).map(|_| socket.send(b"hello").and_then(|_| socket.recv(&mut buffer)).unwrap()).sum::<usize>()
    });
    assert_eq!(echoed, 10 * "10.90.3.2:7 hello".len());

    let flows = kernel.flows(100).unwrap();
    let udp = flows.iter().find(|f| f.protocol == "udp").expect("the UDP flow is listed");
    assert_eq!((udp.vip.as_str(), udp.endpoint.as_str()), ("10.1.0.2:7", "10.90.3.2:7"));
    assert_eq!((udp.packets_out, udp.packets_in), (10, 10));
    assert!(udp.client.starts_with("10.90.1.100:") && udp.source.starts_with("10.90.1.1:"), "{udp:?}");
    let tcp = flows.iter().find(|f| f.protocol == "tcp").expect("TCP flows are listed");
    assert!(["fin", "rst"].contains(&tcp.state), "the connections are over: {tcp:?}");
    let counters = kernel.counters();
    assert_eq!(counters["flow_created"], 21);

    // From the sweep on, replies do not look the client up.
    let sweeping = Arc::clone(&kernel);
    eventually("the client has a next hop", || {
        let hop = sweeping.shared.state().client_hop([10, 90, 1, 100].into());
        hop.is_some_and(|h| h != 0)
    });
    end(&row, kernel);
}

#[test]
fn clients_reach_endpoints_in_tc() {
    clients_reach_endpoints(Mode::Auto);
}

#[test]
fn clients_reach_endpoints_in_native_xdp() {
    clients_reach_endpoints(Mode::Native);
}

#[test]
fn clients_reach_endpoints_in_generic_xdp() {
    clients_reach_endpoints(Mode::Generic);
}

fn ipv6_clients_reach_endpoints(mode: Mode) {
    if skip() {
        return;
    }
    let row = Row::dual();
    if mode == Mode::Native {
        for namespace in [&row.client, &row.server] {
            namespace.command("ethtool", "-K eth0 tx off gro on");
        }
    }
    serve_tcp(&row.server, "[fd90:3::2]:8080");
    serve_tcp(&row.server, "[fd90:3::3]:8080");
    serve_udp(&row.server, "[fd90:3::2]:7");
    serve_tcp(&row.node, "[fd90:3::1]:6443");
    let kernel = Arc::new(row.load(super::dual_settings(mode)).unwrap());
    let inside = Arc::clone(&kernel);
    row.node.run(move || {
        let endpoints = [endpoint("fd90:3::2", 8080), endpoint("fd90:3::3", 8080)];
        inside.apply(&name("web"), Some(&plan("fd00:10::1", 80, Protocol::Tcp, &endpoints))).unwrap();
        inside.apply(&name("echo"), Some(&plan("fd00:10::2", 7, Protocol::Udp, &[endpoint("fd90:3::2", 7)]))).unwrap();
        inside
            .apply(&name("api"), Some(&plan("fd00:10::3", 443, Protocol::Tcp, &[endpoint("fd90:3::1", 6443)])))
            .unwrap();
        inside.attach().unwrap();
    });
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let text = get(&row.client, "[fd00:10::1]:80").unwrap();
        let (server, peer) = text.split_once(' ').unwrap();
        let peer: SocketAddr = peer.parse().unwrap();
        assert_eq!(peer.ip().to_string(), "fd90:1::1", "the server sees the gateway");
        assert!((20000..=29999).contains(&peer.port()), "from the reserved range: {peer}");
        names.insert(server.to_owned());
    }
    assert_eq!(names.len(), 2, "both endpoints get connections: {names:?}");
    let echoed = row.client.run(|| {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.connect("[fd00:10::2]:7").unwrap();
        let mut buffer = [0; 100];
        (0..10).map(|_| socket.send(b"hello").and_then(|_| socket.recv(&mut buffer)).unwrap()).sum::<usize>()
    });
    assert_eq!(echoed, 10 * "[fd90:3::2]:7 hello".len());
    let text = get(&row.client, "[fd00:10::3]:443").unwrap();
    assert!(text.contains("[fd90:3::1]:6443 [fd90:1::100]:"), "a node's own server sees the client itself: {text}");
    let flows = kernel.flows(100).unwrap();
    let udp = flows.iter().find(|f| f.protocol == "udp").expect("the UDP flow is listed");
    assert_eq!((udp.vip.as_str(), udp.packets_out, udp.packets_in), ("[fd00:10::2]:7", 10, 10));
    eventually("the client has a next hop", || {
        let hop = kernel.shared.state().client_hop("fd90:1::100".parse().unwrap());
        hop.is_some_and(|h| h != 0)
    });
    end(&row, kernel);
}

#[test]
fn ipv6_clients_reach_endpoints_in_tc() {
    ipv6_clients_reach_endpoints(Mode::Auto);
}

#[test]
fn ipv6_clients_reach_endpoints_in_native_xdp() {
    ipv6_clients_reach_endpoints(Mode::Native);
}

#[test]
fn ipv6_clients_reach_endpoints_in_generic_xdp() {
    ipv6_clients_reach_endpoints(Mode::Generic);
}

#[test]
fn clients_behind_one_and_two_vlan_tags_reach_endpoints() {
    if skip() {
        return;
    }
    for device in ["up0.5", "up0.5.300"] {
        let row = Row::new();
        if no_vlans(&row.node) {
            return;
        }
        let tagged = |namespace: &Namespace, dev: &str, addr: &str| {
            namespace.ip(&format!("addr del {addr} dev {dev}"));
            namespace.ip(&format!("link add link {dev} name {dev}.5 type vlan id 5"));
            namespace.ip(&format!("link add link {dev}.5 name {dev}.5.300 type vlan id 300"));
            namespace.ip(&format!("link set {dev}.5 up"));
            namespace.ip(&format!("link set {dev}.5.300 up"));
            let top = device.replacen("up0", dev, 1);
            namespace.ip(&format!("addr add {addr} dev {top}"));
        };
        tagged(&row.node, "up0", "10.90.1.1/24");
        tagged(&row.client, "eth0", "10.90.1.100/24");
        row.client.ip("route add default via 10.90.1.1");
        serve_tcp(&row.server, "10.90.3.2:8080");
        serve_tcp(&row.server, "10.90.3.3:8080");
        let kernel = started_with(&row, Settings { uplinks: vec![device.into()], ..settings(Mode::Auto) });
        let uplink = kernel.attachments().into_iter().find(|a| a.role == "uplink").unwrap();
        assert_eq!((uplink.interface.as_str(), uplink.xdp, uplink.tc), (device, None, true));
        let text = get(&row.client, "10.1.0.1:80").unwrap();
        assert!(text.contains(" 10.90.1.1:"), "{device}: {text}");
        let hop = |state: &crate::kernel::state::State| {
            let hop = state.client_hop([10, 90, 1, 100].into()).filter(|hop| *hop != 0)?;
            state.next_hops().get(&hop).unwrap()
        };
        eventually("the client's next hop", || hop(&kernel.shared.state()).is_some());
        let hop = hop(&kernel.shared.state()).unwrap();
        let inner = if device == "up0.5" { [0, 0] } else { [1, 44] };
        assert_eq!(hop.tags, [[0, 5], inner]);
        assert_ne!(hop.xdp_ifindex, hop.ifindex, "XDP would have to send below, with the tags");
        end(&row, kernel);
    }
}

#[test]
fn a_deleted_service_is_refused_at_once() {
    if skip() {
        return;
    }
    let row = Row::new();
    serve_tcp(&row.server, "10.90.3.2:8080");
    serve_tcp(&row.server, "10.90.3.3:8080");
    let kernel = started(&row, Mode::Tc);
    get(&row.client, "10.1.0.1:80").unwrap();
    kernel.apply(&name("web"), None).unwrap();
    let error = get(&row.client, "10.1.0.1:80").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "no such VIP: {error}");
    end(&row, kernel);
}

#[test]
fn with_routed_return_the_server_sees_the_client() {
    if skip() {
        return;
    }
    let row = Row::new();
    serve_tcp(&row.server, "10.90.3.2:8080");
    serve_tcp(&row.server, "10.90.3.3:8080");
    let kernel = started_with(&row, Settings { routed: true, ..settings(Mode::Tc) });
    let text = get(&row.client, "10.1.0.1:80").unwrap();
    assert!(text.contains(" 10.90.1.100:"), "{text}");
    end(&row, kernel);
}

#[test]
fn an_endpoint_on_the_gateway_node_itself_is_reached() {
    if skip() {
        return;
    }
    for mode in [Mode::Tc, Mode::Native] {
        let row = Row::new();
        if mode == Mode::Native {
            row.client.command("ethtool", "-K eth0 tx off gro on");
        }
        serve_tcp(&row.node, "10.90.3.1:6443");
        let kernel = started(&row, mode);
        let api = plan("10.1.0.3", 443, Protocol::Tcp, &[endpoint("10.90.3.1", 6443)]);
        kernel.apply(&name("api"), Some(&api)).unwrap();
        let text = get(&row.client, "10.1.0.3:443").unwrap();
        assert!(text.contains("10.90.3.1:6443 10.90.1.100:"), "a node's own server sees the client itself: {text}");
        end(&row, kernel);
    }
}

#[test]
fn a_change_of_the_clients_route_reaches_the_flows_it_has() {
    if skip() {
        return;
    }
    let row = Row::new();
    serve_udp(&row.server, "10.90.3.2:7");
    // A client that is not on the uplink's own net, behind one of the client's two addresses.
    row.client.ip("addr add 10.90.1.101/24 dev eth0");
    row.client.ip("addr add 10.99.0.9/32 dev lo");
    row.node.ip("route add 10.99.0.9/32 via 10.90.1.100");
    let open = Settings { views: vec![vec!["10.99.0.0/24".parse().unwrap()]], ..settings(Mode::Tc) };
    let kernel = started_with(&row, open);
    let socket = row.client.run(|| UdpSocket::bind("10.99.0.9:0").unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.connect("10.1.0.2:7").unwrap();
    let mut buffer = [0; 100];
    let mut ask = || socket.send(b"hello").and_then(|_| socket.recv(&mut buffer)).unwrap();
    ask();
    let shared = Arc::clone(&kernel.shared);
    let via = || {
        let state = shared.state();
        let hop = state.client_hop([10, 99, 0, 9].into())?;
        Some(state.next_hops().get(&hop).unwrap().unwrap().via[..4].to_vec())
    };
    eventually("the client has a next hop", || via() == Some(vec![10, 90, 1, 100]));
    ask();
    row.node.ip("route replace 10.99.0.9/32 via 10.90.1.101");
    eventually("the client's other next hop", || via() == Some(vec![10, 90, 1, 101]));
    ask();
    end(&row, kernel);
}
