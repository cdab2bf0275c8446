//! Real programs on both sides: Unbound upstream, dig and kdig as clients. Skipped, and said so, where they are not installed.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use gateway::dns::clock;
use hickory_proto::{op::ResponseCode, rr::RecordType};

use crate::{
    ports::free,
    support::{BOTH, DEVELOPER, Lab, a, addresses, config, forward, query_edns, udp},
};

const WEB: &str = "web.shop.svc.cluster.local";

pub fn installed(program: &str) -> Option<PathBuf> {
    let found = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join(program));
    let found = found.into_iter().find(|path| path.exists());
    if found.is_none() {
        eprintln!("skipped: {program} is not installed (apt-get install unbound dnsutils knot-dnsutils)");
    }
    found
}

/// Types that are passed on as they are, and a record of each.
const ODD: [(RecordType, &str); 6] = [
    (RecordType::HTTPS, "www.example.org. 300 HTTPS 1 . alpn=h2,h3 ipv4hint=192.0.2.80 ipv6hint=2001:db8::80"),
    (RecordType::SVCB, "_dns.example.org. 300 SVCB 2 www.example.org. alpn=dot port=853 key65280=x"),
    (RecordType::CAA, "www.example.org. 300 CAA 0 issue \"ca.example\""),
    (RecordType::NAPTR, "www.example.org. 300 NAPTR 10 20 \"S\" \"SIP+D2U\" \"\" _sip._udp.example.org."),
    (
        RecordType::TLSA,
        "www.example.org. 300 TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
    (
        RecordType::SSHFP,
        "www.example.org. 300 SSHFP 4 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ),
];

/// Unbound as the server of example.org, ended with the test.
pub struct Unbound {
    child: Child,
    pub addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Unbound {
    pub async fn start() -> Option<Self> {
        Self::start_with(free(), "").await
    }

    /// With more lines in its `server:` section.
    pub async fn start_with(addr: SocketAddr, more: &str) -> Option<Self> {
        let program = installed("unbound")?;
        let dir = tempfile::tempdir().expect("a directory");
        let many: String =
            (1..=120).map(|i| format!("  local-data: \"many.example.org. 300 A 192.0.2.{i}\"\n")).collect();
        let odd: String = ODD.iter().map(|(_, line)| format!("  local-data: '{line}'\n")).collect();
        let text = format!(
            "server:\n  interface: 127.0.0.1\n  port: {}\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  \
             directory: \"{dir}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  access-control: 127.0.0.0/8 allow\n  \
             local-zone: \"example.org.\" static\n  local-data: \"example.org. 300 SOA ns.example.org. root.example.org. 1 \
             2 3 4 20\"\n  local-data: \"www.example.org. 300 A 192.0.2.80\"\n  local-data: \"www.example.org. 300 AAAA \
             2001:db8::80\"\n  local-data: \"www.example.org. 300 TXT 'one' 'two'\"\n  local-data: \"example.org. 300 MX 10 \
             mail.example.org.\"\n  local-data: \"_x._tcp.example.org. 300 SRV 1 2 3 www.example.org.\"\n  local-data: \
             \"www.example.org. 300 TYPE65400 \\# 4 01020304\"\n{odd}{many}{more}remote-control:\n  control-enable: no\n",
            addr.port(),
            dir = dir.path().display(),
        );
        let file = dir.path().join("unbound.conf");
        std::fs::write(&file, text).expect("write");
        let child = Command::new(program)
            .args(["-d", "-c"])
            .arg(&file)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("unbound starts");
        let server = Self { child, addr, _dir: dir };
        let packet = query_edns("www.example.org", RecordType::A, 1232, false);
        for _ in 0..50 {
            if crate::support::udp_within(addr, DEVELOPER, &packet, Duration::from_millis(200)).await.is_some() {
                return Some(server);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("unbound does not answer on {addr}");
    }

    /// It is there and says nothing.
    pub fn stop(&self) {
        self.signal(nix::sys::signal::Signal::SIGSTOP);
    }

    /// It says again what it is asked.
    pub fn go_on(&self) {
        self.signal(nix::sys::signal::Signal::SIGCONT);
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process number"));
        nix::sys::signal::kill(pid, signal).expect("its own child");
    }

    /// It is gone.
    pub fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        self.end();
    }
}

async fn lab(unbound: &Unbound) -> Lab {
    let mut config = config();
    config.forward = vec![forward(".", &[unbound.addr])];
    let lab = Lab::synced(config).await;
    lab.service("web", &[(WEB, BOTH, a("10.1.0.10"))]);
    lab
}

#[tokio::test]
async fn what_unbound_says_is_what_clients_get_from_forwarder_and_kernel() {
    let Some(unbound) = Unbound::start().await else { return };
    let lab = lab(&unbound).await;
    assert_eq!(addresses(&lab.ask("www.example.org", RecordType::A).await), ["192.0.2.80"]);
    assert_eq!(addresses(&lab.ask("www.example.org", RecordType::AAAA).await), ["2001:db8::80"]);
    let no = lab.ask("no.example.org", RecordType::A).await;
    assert_eq!((no.metadata.response_code, no.authorities.len()), (ResponseCode::NXDomain, 1));
    assert_eq!(no.authorities[0].ttl, 20, "the SOA's minimum");
    let nodata = lab.ask("www.example.org", RecordType::MX).await;
    assert_eq!((nodata.metadata.response_code, nodata.authorities.len()), (ResponseCode::NoError, 1));
    for (name, qtype) in [
        ("www.example.org", RecordType::A),
        ("www.example.org", RecordType::TXT),
        ("example.org", RecordType::MX),
        ("_x._tcp.example.org", RecordType::SRV),
        ("www.example.org", RecordType::Unknown(65_400)),
        ("no.example.org", RecordType::A),
        ("www.example.org", RecordType::MX),
    ] {
        let packet = query_edns(name, qtype, 1232, false);
        let ours = udp(lab.addr, DEVELOPER, &packet).await.expect("an answer");
        assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), Some(ours), "{name} {qtype}");
    }
    for (qtype, line) in ODD {
        let name = line.split('.').next().map(|host| format!("{host}.example.org")).expect("a name");
        let packet = query_edns(&name, qtype, 1232, false);
        let (ours, direct) = (udp(lab.addr, DEVELOPER, &packet).await, udp(unbound.addr, DEVELOPER, &packet).await);
        let records = |message: &Option<Vec<u8>>| {
            let message = hickory_proto::op::Message::from_vec(message.as_ref().expect("an answer")).expect("readable");
            message.answers.iter().map(|record| (record.record_type(), record.data.to_string())).collect::<Vec<_>>()
        };
        assert_eq!((records(&ours), records(&direct).len()), (records(&direct), 1), "{line}");
        assert_eq!(lab.kernel.answer(&packet, 0, clock::now()), ours, "{line}: in the kernel");
    }
    let many = lab.ask("many.example.org", RecordType::A).await;
    assert!(many.metadata.truncation, "fetched over TCP, and cut for this client");
    let whole = crate::support::tcp(lab.addr, &query_edns("many.example.org", RecordType::A, 1232, false)).await;
    let whole = hickory_proto::op::Message::from_vec(&whole).expect("answer");
    assert_eq!(addresses(&whole).len(), 120);
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_and_kdig_read_the_answers() {
    let Some(unbound) = Unbound::start().await else { return };
    let lab = lab(&unbound).await;
    let port = lab.addr.port().to_string();
    for program in ["dig", "kdig"] {
        let Some(path) = installed(program) else { continue };
        let run = |args: &[&str]| {
            let output = Command::new(&path).args(["@127.0.0.1", "-p", &port]).args(args).output().expect("it runs");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert_eq!(run(&["+short", WEB, "A"]).trim(), "10.1.0.10", "{program}");
        assert_eq!(run(&["+short", "+tcp", WEB, "A"]).trim(), "10.1.0.10", "{program}");
        assert_eq!(run(&["+short", "www.example.org", "A"]).trim(), "192.0.2.80", "{program}");
        assert_eq!(run(&["+short", "many.example.org", "A"]).lines().filter(|l| l.starts_with("192.")).count(), 120);
        let no = run(&["no.shop.svc.cluster.local", "A"]);
        assert!(no.contains("NXDOMAIN") && no.contains("SOA"), "{program}: {no}");
        let plain = run(&["+noedns", WEB, "A"]);
        assert!(plain.contains("NOERROR") && !plain.contains("EDNS"), "{program}: {plain}");
        let chaos = run(&["CH", "TXT", "version.bind"]);
        assert!(chaos.contains("REFUSED"), "{program}: {chaos}");
        for complaint in ["malformed", "extra bytes", "mismatch", "bad packet", "recursion requested but not available"]
        {
            assert!(!no.contains(complaint) && !plain.contains(complaint), "{program}: {no}{plain}");
        }
    }
    let Some(dig) = installed("dig") else { return };
    let badvers = Command::new(dig)
        .args(["@127.0.0.1", "-p", &port, "+edns=1", "+noednsnegotiation", WEB, "A"])
        .output()
        .expect("dig runs");
    assert!(String::from_utf8_lossy(&badvers.stdout).contains("BADVERS"));
}
