//! A flood of names that do not exist, each asked for once. Issue 4, "What it must show", 7; its half outside the cluster's zone is a test of
//! the resolver's own.

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use gateway_lab::{GatewayConfig, Lab, Service, Topology, names::dig, testing, topology::GATEWAY};

const THREADS: usize = 2;
/// Questions on their way at one time, of each thread.
const WINDOW: usize = 64;

/// Names of the flood; `GATEWAY_LAB_FLOOD=1000000` for more.
fn names() -> usize {
    std::env::var("GATEWAY_LAB_FLOOD").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

/// A query for `xNUMBER.shop.svc.cluster.local`, A, with the number's last digits as its ID.
fn query(number: usize) -> Vec<u8> {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    packet[..2].copy_from_slice(&id(number).to_be_bytes());
    let random = format!("x{:x}", (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for label in [random.as_str(), "shop", "svc", "cluster", "local", ""] {
        packet.push(label.len() as u8);
        packet.extend(label.bytes());
    }
    packet.extend([0, 1, 0, 1]);
    packet
}

const fn id(number: usize) -> u16 {
    number as u16
}

/// Asks for `count` names from `first` on, and waits for every answer of a window before the next; what got lost is asked again. Gives how
/// many were asked again.
fn flood(first: usize, count: usize) -> usize {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect((GATEWAY, 53)).expect("connect");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a time-out");
    let (mut buffer, mut again) = ([0; 512], 0);
    for start in (first..first + count).step_by(WINDOW) {
        let mut open: Vec<usize> = (start..(start + WINDOW).min(first + count)).collect();
        for tries in 0.. {
            assert!(tries < 20, "{} of {WINDOW} have no answer", open.len());
            again += if tries > 0 { open.len() } else { 0 };
            for number in &open {
                socket.send(&query(*number)).expect("send");
            }
            while let Ok(len) = socket.recv(&mut buffer) {
                assert!(len > 12 && buffer[3] & 0xf == 3, "no such name: {:?}", &buffer[..len]);
                let answered = u16::from_be_bytes([buffer[0], buffer[1]]);
                open.retain(|number| id(*number) != answered);
                if open.is_empty() {
                    break;
                }
            }
            if open.is_empty() {
                break;
            }
        }
    }
    again
}

#[test]
fn a_flood_of_names_below_the_clusters_zone_is_answered_in_the_kernel_and_costs_the_forwarder_nothing() {
    let Some(_turn) = testing::turn(&["dig", "unbound"]) else { return };
    let lab = Lab::build(Topology { upstream: true, ..Topology::with_pods(&[]) }).expect("the lab");
    lab.manifests
        .put(&Service::new("shop", "web", Some([10, 1, 0, 80].into())).port("http", "TCP", 80, 80))
        .expect("web");
    let gateway = lab.gateway(&GatewayConfig::default().with_upstream()).expect("the gateway");
    dig(lab.client(), &GATEWAY.to_string(), &["web.shop.svc.cluster.local", "A"]).expect("dig");

    let queries = || gateway.json("dns").expect("gateway dns")["counters"]["queries"]["udp"].as_u64().expect("a count");
    let in_kernel = || gateway.counters().expect("counters").get("dns_nxdomain");
    let (asked, answered) = (queries(), in_kernel());
    // What it takes at rest, with what this test asks of it.
    let rest = gateway.processor_time().expect("the agent");
    std::thread::sleep(Duration::from_secs(1));
    let rest = gateway.processor_time().expect("the agent").saturating_sub(rest);

    let (names, began) = (names(), Instant::now());
    let before = gateway.processor_time().expect("the agent");
    let again: usize = std::thread::scope(|scope| {
        let (share, client) = (names / THREADS, lab.client());
        let threads: Vec<_> =
            (0..THREADS).map(|thread| scope.spawn(move || client.enter(|| flood(thread * share, share)))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the flood")).sum()
    });
    let (took, forwarder) = (began.elapsed(), gateway.processor_time().expect("the agent").saturating_sub(before));
    println!(
        "{names} names in {took:.1?}, {again} asked again: the agent took {forwarder:?} of processor time, at rest {rest:?} a second"
    );
    assert_eq!(queries(), asked, "none reached the forwarder");
    assert!(in_kernel() - answered >= names as u64, "each was answered in the kernel");
    let allowed = Duration::from_millis(100) + rest.mul_f64(2.0 * took.as_secs_f64()) + took / 20;
    assert!(forwarder <= allowed, "{forwarder:?} of {allowed:?}");
    gateway.stop().expect("a clean end");
}
