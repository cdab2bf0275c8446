//! Ping and the tracing programs, to a ClusterIP as to a machine. Issue 3, "What it must show", 2.

use std::net::{IpAddr, Ipv4Addr};

use gateway_lab::{
    GatewayConfig, Lab, Node, Service, Topology, testing,
    topology::{Access, GATEWAY, Offloads, ROUTER_OFFICE, TRANSIT_LAN, both},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 80);
const EMPTY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 99);
const UNUSED: Ipv4Addr = Ipv4Addr::new(10, 1, 77, 77);

fn lab() -> Lab {
    let access = Access::Routers { mtu: 1500 };
    let topology = Topology { access, offloads: Offloads::Wire, ..Topology::with_pods(&[Node::Worker1]) };
    let lab = Lab::build(topology).expect("the lab");
    lab.manifests.put(&Service::of_pods("shop", "web", VIP, &lab.topology.pods).dual_stack()).expect("a manifest");
    lab.manifests.put(&Service::of_pods("shop", "empty", EMPTY, []).dual_stack()).expect("a manifest");
    lab
}

fn ping(lab: &Lab, to: IpAddr, args: &[&str]) -> anyhow::Result<String> {
    let to = to.to_string();
    let args: Vec<&str> = ["-n", "-c2", "-i0.2", "-W2"].iter().chain(args).copied().chain([to.as_str()]).collect();
    lab.client().run("ping", &args)
}

fn pings(family: usize) {
    let Some(_turn) = testing::turn(&["ping"]) else { return };
    let lab = lab();
    let header = [28, 48][family];
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        for size in [16, 56, 57, 1000, 1500 - header] {
            ping(&lab, both(VIP)[family], &["-s", &size.to_string(), "-Mdo"])
                .unwrap_or_else(|error| panic!("{mode}: {size} bytes: {error:#}"));
        }
        // No endpoint, and no Service.
        for address in [EMPTY, UNUSED] {
            let said = format!("{:#}", ping(&lab, both(address)[family], &[]).expect_err("nobody is there"));
            assert!(said.contains("nreachable"), "{mode}, {address}: {said}");
        }
        gateway.stop().expect("a clean end");
    }
}

#[test]
fn a_cluster_ip_answers_ping_when_it_has_endpoints() {
    pings(0);
}

#[test]
fn a_cluster_ip_of_ipv6_answers_ping_when_it_has_endpoints() {
    pings(1);
}

fn traces(family: usize) {
    let Some(_turn) = testing::turn(&["traceroute", "tracepath", "mtr"]) else { return };
    let lab = lab();
    let vip = both(VIP)[family].to_string();
    let hops = [ROUTER_OFFICE, TRANSIT_LAN, GATEWAY].map(|hop| both(hop)[family].to_string());
    for mode in ["native", "tc"] {
        let gateway = lab.gateway(&GatewayConfig::mode(mode)).expect("the gateway");
        let ways: [&[&str]; 5] = [
            &["traceroute", "-n", "-w2", "-q1", "-m8", "-N1", "-U", "-p7"],
            &["traceroute", "-n", "-w2", "-q1", "-m8", "-N1", "-I"],
            &["traceroute", "-n", "-w2", "-q1", "-m8", "-N1", "-T", "-p80"],
            &["mtr", "-n", "--report", "-c2"],
            &["tracepath", "-n", "-m8"],
        ];
        for way in ways {
            let args: Vec<&str> = way[1..].iter().copied().chain([vip.as_str()]).collect();
            let said = lab.client().run(way[0], &args).unwrap_or_else(|error| panic!("{mode}: {error:#}"));
            for hop in &hops {
                assert!(said.contains(hop.as_str()), "{mode}: {way:?} does not show {hop}:\n{said}");
            }
            // In the first line it is what was asked for.
            if way[0] != "tracepath" {
                assert!(
                    said.lines().skip(1).any(|line| line.contains(&vip)),
                    "{mode}: {way:?} does not arrive:\n{said}"
                );
            }
        }
        gateway.stop().expect("a clean end");
    }
}

#[test]
fn traceroute_mtr_and_tracepath_show_the_gateway_and_arrive() {
    traces(0);
}

#[test]
fn traceroute_mtr_and_tracepath_show_the_gateway_and_arrive_over_ipv6() {
    traces(1);
}
