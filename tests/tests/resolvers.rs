//! Resolvers in front of the gateway, each with its own habits: Unbound, BIND, dnsmasq and systemd-resolved as forwarders, Go's, Node's
//! and musl's own resolvers in programs. Names resolve, and what is asked again stays in the kernel.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Service, Topology,
    names::{dig, with_resolver},
    netns::Namespace,
    process::{NotYet, Process, wait_for},
    testing,
    topology::{GATEWAY, Offloads},
};

const WEB: &str = "web.shop.svc.cluster.local";
const PORT: &str = "5300";

/// A question and the data of its answer; none: no such name.
const NAMES: [(&str, &str, &[&str]); 9] = [
    (WEB, "A", &["10.1.0.80"]),
    ("nodes.shop.svc.cluster.local", "A", &["10.244.0.10", "10.244.1.10"]),
    ("_http._tcp.web.shop.svc.cluster.local", "SRV", &["0 100 80 web.shop.svc.cluster.local."]),
    ("80.0.1.10.in-addr.arpa", "PTR", &["web.shop.svc.cluster.local."]),
    ("dns-version.cluster.local", "TXT", &["\"1.1.0\""]),
    ("nobody.shop.svc.cluster.local", "A", &[]),
    ("www.example.test", "A", &["192.0.2.80"]),
    ("example.test", "MX", &["10 mail.example.test."]),
    ("nobody.example.test", "A", &[]),
];

fn lab() -> Lab {
    let topology =
        Topology { upstream: true, offloads: Offloads::Kernel, ..Topology::with_pods(&[Node::Worker1, Node::Gateway]) };
    let lab = Lab::build(topology).expect("the lab");
    let pods = &lab.topology.pods;
    for service in [
        Service::of_pods("shop", "web", Ipv4Addr::new(10, 1, 0, 80), pods),
        Service::new("shop", "nodes", None).port("http", "TCP", 8080, 8080).endpoints(pods),
    ] {
        lab.manifests.put(&service).expect("a manifest");
    }
    lab
}

fn start(lab: &Lab) -> Gateway<'_> {
    lab.gateway(&GatewayConfig::default().with_upstream()).expect("the gateway")
}

fn in_kernel(gateway: &Gateway<'_>) -> u64 {
    gateway.counters().expect("counters").dns()
}

/// Starts a forwarder in the client's namespace and waits until it answers; `at` is the server and dig's arguments to reach it.
fn forwarder(client: &Namespace, dir: &Path, program: &str, args: &[&str], at: (&str, &[&str])) -> Process {
    let mut command = client.command(program);
    command.args(args);
    let mut process = Process::start(program, command, &dir.join(format!("{program}.log"))).expect("it starts");
    wait_for(program, Duration::from_secs(30), || {
        if let Some(status) = process.ended() {
            return Err(NotYet::Never(anyhow::anyhow!("{program} ended: {status}: {}", process.said())));
        }
        let answer = dig(client, at.0, &[at.1, &["+time=1", "+tries=1", WEB, "A"]].concat())?;
        if answer.status == "NOERROR" { Ok(()) } else { Err(NotYet::Later(anyhow::anyhow!("{answer:?}"))) }
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", process.said()));
    process
}

fn resolves(program: &str, args: impl Fn(&Path) -> Vec<String>) {
    resolves_at(program, ("127.0.0.1", &["-p", PORT]), args);
}

/// Asks a forwarder, ended and begun anew for a second time: then its cache is empty and the kernel answers everything.
fn resolves_at(program: &str, at: (&str, &[&str]), args: impl Fn(&Path) -> Vec<String>) {
    let Some(_turn) = testing::turn(&["dig", "unbound", program]) else { return };
    let lab = lab();
    let gateway = start(&lab);
    let args = args(lab.dir());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    for round in 0..2 {
        let mut process = forwarder(lab.client(), lab.dir(), program, &args, at);
        let (before, asked) = (in_kernel(&gateway), lab.upstream_log().lines().count());
        for (name, rtype, data) in NAMES {
            let answer = dig(lab.client(), at.0, &[at.1, &["+time=5", name, rtype]].concat()).expect("dig");
            let status = if data.is_empty() { "NXDOMAIN" } else { "NOERROR" };
            assert_eq!(answer.status, status, "{program}: {name} {rtype}: {answer:?}\n{}", process.said());
            assert_eq!(answer.data(rtype), data, "{program}: {name} {rtype}");
        }
        let kernel = in_kernel(&gateway) - before;
        if round == 1 {
            // The name that the start waited for is in the forwarder's cache.
            assert!(kernel >= NAMES.len() as u64 - 1, "{program}: {kernel} answers from the kernel");
            assert_eq!(lab.upstream_log().lines().count(), asked, "{program}: the upstream was asked again");
        }
        process.stop(nix::sys::signal::Signal::SIGTERM, Duration::from_secs(20)).expect("it ends");
    }
    gateway.stop().expect("a clean end");
}

fn written(dir: &Path, name: &str, text: &str) -> String {
    let file = dir.join(name);
    fs::write(&file, text).expect("a config");
    file.display().to_string()
}

#[test]
fn unbound_with_random_case_and_dnssec_bits_resolves_through_the_gateway() {
    resolves("unbound", |dir| {
        let text = format!(
            "server:\n  interface: 127.0.0.1\n  port: {PORT}\n  do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  \
             directory: \"{}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  num-threads: 1\n  do-ip6: no\n  \
             module-config: \"iterator\"\n  use-caps-for-id: yes\n  qname-minimisation: yes\n  unblock-lan-zones: yes\n  \
             insecure-lan-zones: yes\n  local-zone: \"test.\" nodefault\n  local-zone: \"10.in-addr.arpa.\" nodefault\n\
             forward-zone:\n  name: \".\"\n  forward-addr: {GATEWAY}\nremote-control:\n  control-enable: no\n",
            dir.display()
        );
        vec!["-d".to_owned(), "-c".to_owned(), written(dir, "front-unbound.conf", &text)]
    });
}

#[test]
fn bind_with_cookies_and_minimised_names_resolves_through_the_gateway() {
    resolves("named", |dir| {
        let text = format!(
            "options {{ directory \"{}\"; listen-on port {PORT} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; forwarders {{ \
             {GATEWAY}; }}; forward only; dnssec-validation no; recursion yes; qname-minimization strict; pid-file none; \
             session-keyfile none; empty-zones-enable no; send-cookie yes; }};\ncontrols {{ }};\n",
            dir.display()
        );
        ["-g", "-n", "1", "-c"].map(str::to_owned).into_iter().chain([written(dir, "named.conf", &text)]).collect()
    });
}

#[test]
fn dnsmasq_resolves_through_the_gateway() {
    resolves("dnsmasq", |_| {
        [
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            "--bind-interfaces",
            "--listen-address=127.0.0.1",
            "--log-facility=-",
            &format!("--port={PORT}"),
            &format!("--server={GATEWAY}"),
        ]
        .map(str::to_owned)
        .to_vec()
    });
}

/// systemd-resolved: the machine's own, or the one that `cargo xtask test` keeps aside; with its libraries' directories. Installing the
/// package would make it this machine's resolver.
fn resolved() -> Option<(PathBuf, String)> {
    let own = Path::new("/lib/systemd/systemd-resolved");
    if own.exists() {
        return Some((own.into(), String::new()));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let root = cache.join("gateway-lab/systemd-resolved");
    let program = root.join("lib/systemd/systemd-resolved");
    let libraries = fs::read_dir(root.join("usr/lib")).ok()?.flatten().map(|entry| entry.path());
    let path: Vec<String> =
        libraries.flat_map(|dir| [dir.join("systemd"), dir]).map(|dir| dir.display().to_string()).collect();
    program.exists().then(|| (program, path.join(":")))
}

#[test]
fn systemd_resolved_resolves_through_the_gateway_what_setup_client_routes_to_it() {
    let Some((program, libraries)) = resolved() else {
        println!("SKIP: no systemd-resolved: `cargo xtask test` fetches it where apt-get has it");
        return;
    };
    // Without systemd around it: it needs its account, its directory and nobody's bus.
    let script = r#"set -e
{ cat /etc/passwd; echo 'systemd-resolve:x:993:993::/:/usr/sbin/nologin'; } > "$1/passwd"
{ cat /etc/group; echo 'systemd-resolve:x:993:'; } > "$1/group"
getent passwd systemd-resolve > /dev/null || { mount --bind "$1/passwd" /etc/passwd; mount --bind "$1/group" /etc/group; }
config=$(cat "$1/resolved.conf")
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/resolve /run/systemd/resolved.conf.d
echo "$config" > /run/systemd/resolved.conf.d/lab.conf
chown systemd-resolve:systemd-resolve /run/systemd/resolve
LD_LIBRARY_PATH="$3" exec "$2""#;
    resolves_at("unshare", ("127.0.0.53", &[]), |dir| {
        let config = format!(
            "[Resolve]\nDNS={GATEWAY}\nDomains=~cluster.local ~.\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\nDNSStubListener=yes\n"
        );
        written(dir, "resolved.conf", &config);
        let (dir, program) = (dir.display().to_string(), program.display().to_string());
        ["-m", "--propagation", "private", "sh", "-c", script, "sh", &dir, &program, &libraries]
            .map(str::to_owned)
            .to_vec()
    });
}

/// Runs a program twice with the gateway as its only name server: it prints the addresses of [`WEB`] by its short name, what `_http`
/// of it is, its pointer, and an address outside.
fn program_resolves(tool: &str, prepare: impl FnOnce(&Lab) -> Vec<String>) {
    let Some(_turn) = testing::turn(&["dig", "unbound", "unshare", tool]) else { return };
    let lab = lab();
    let gateway = start(&lab);
    let command = prepare(&lab);
    let args: Vec<&str> = command[1..].iter().map(String::as_str).collect();
    let resolv = format!(
        "nameserver {GATEWAY}\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    );
    for round in 0..2 {
        let (before, asked) = (in_kernel(&gateway), lab.upstream_log().lines().count());
        let out = with_resolver(lab.client(), lab.dir(), &resolv, &command[0], &args).expect("it runs");
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(
            lines,
            ["10.1.0.80", "80 web.shop.svc.cluster.local", "web.shop.svc.cluster.local", "192.0.2.80"],
            "{tool}"
        );
        let kernel = in_kernel(&gateway) - before;
        assert!(kernel >= 3, "{tool}: {kernel} answers from the kernel");
        if round == 1 {
            assert_eq!(lab.upstream_log().lines().count(), asked, "{tool}: the upstream was asked again");
        }
    }
    gateway.stop().expect("a clean end");
}

#[test]
fn gos_own_resolver_finds_names_by_its_search_list() {
    const PROGRAM: &str = r#"package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
)

func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func main() {
	r, ctx := &net.Resolver{PreferGo: true}, context.Background()
	web, err := r.LookupHost(ctx, "web")
	check(err)
	fmt.Println(strings.Join(web, " "))
	_, srv, err := r.LookupSRV(ctx, "http", "tcp", "web.shop.svc.cluster.local")
	check(err)
	fmt.Println(srv[0].Port, strings.TrimSuffix(srv[0].Target, "."))
	ptr, err := r.LookupAddr(ctx, "10.1.0.80")
	check(err)
	fmt.Println(strings.TrimSuffix(ptr[0], "."))
	out, err := r.LookupIP(ctx, "ip4", "www.example.test")
	check(err)
	fmt.Println(out[0])
}
"#;
    program_resolves("go", |lab| {
        let source = written(lab.dir(), "main.go", PROGRAM);
        let binary = lab.dir().join("resolve");
        let built = std::process::Command::new("go")
            .env("CGO_ENABLED", "0")
            .current_dir(lab.dir())
            .args(["build", "-o"])
            .arg(&binary)
            .arg(source)
            .output()
            .expect("go runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        vec![binary.display().to_string()]
    });
}

#[test]
fn nodes_own_resolver_finds_names() {
    const PROGRAM: &str = r"
const dns = require('dns').promises;
(async () => {
  const web = 'web.shop.svc.cluster.local';
  console.log((await dns.resolve4(web)).join(' '));
  const [srv] = await dns.resolveSrv('_http._tcp.' + web);
  console.log(srv.port, srv.name);
  console.log((await dns.reverse('10.1.0.80'))[0]);
  console.log((await dns.resolve4('www.example.test'))[0]);
})().catch(error => { console.log(error); process.exit(1); });
";
    program_resolves("node", |lab| vec!["node".to_owned(), written(lab.dir(), "resolve.js", PROGRAM)]);
}

#[test]
fn musls_resolver_which_asks_for_both_families_at_once_finds_names_by_its_search_list() {
    const PROGRAM: &str = r#"#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, int code) {
	printf("%s: %s\n", what, gai_strerror(code));
	exit(1);
}

static int address(const char *name, int family, char *text) {
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *all, *one;
	int code = getaddrinfo(name, NULL, &hints, &all), found = 0;
	if (code) fail(name, code);
	for (one = all; one; one = one->ai_next)
		if (one->ai_family == family) {
			code = getnameinfo(one->ai_addr, one->ai_addrlen, text, 64, NULL, 0, NI_NUMERICHOST);
			found = !code;
		}
	freeaddrinfo(all);
	return found;
}

int main(void) {
	char text[256];
	unsigned char answer[4096];
	if (!address("web", AF_INET, text)) fail("web", EAI_NONAME);
	puts(text);
	ns_msg message;
	ns_rr record;
	int len = res_query("_http._tcp.web.shop.svc.cluster.local", ns_c_in, ns_t_srv, answer, sizeof answer);
	if (len < 0 || ns_initparse(answer, len, &message) || ns_parserr(&message, ns_s_an, 0, &record)) fail("SRV", EAI_FAIL);
	dn_expand(answer, answer + len, ns_rr_rdata(record) + 6, text, sizeof text);
	printf("%d %s\n", ns_get16(ns_rr_rdata(record) + 4), text);
	struct sockaddr_in web = {.sin_family = AF_INET};
	inet_pton(AF_INET, "10.1.0.80", &web.sin_addr);
	int code = getnameinfo((struct sockaddr *)&web, sizeof web, text, sizeof text, NULL, 0, NI_NAMEREQD);
	if (code) fail("10.1.0.80", code);
	puts(text);
	if (!address("www.example.test", AF_INET6, text) || strcmp(text, "2001:db8::80")) fail("AAAA", EAI_NONAME);
	if (!address("www.example.test", AF_INET, text)) fail("A", EAI_NONAME);
	puts(text);
}
"#;
    program_resolves("musl-gcc", |lab| {
        let source = written(lab.dir(), "resolve.c", PROGRAM);
        let binary = lab.dir().join("resolve-musl");
        let built = std::process::Command::new("musl-gcc").args(["-static", "-o"]).arg(&binary).arg(source).output();
        let built = built.expect("musl-gcc runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        vec![binary.display().to_string()]
    });
}
