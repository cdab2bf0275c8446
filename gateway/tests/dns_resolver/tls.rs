//! DNS over TLS against a real Unbound, with certificates that a test authority made with `openssl`.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use gateway::dns::{DnsConfig, DnsError, ForwardRule, Resolver, Upstream, upstream::ServerInfo};
use hickory_proto::{op::ResponseCode, rr::RecordType};

use crate::{
    ports::free,
    programs::{Unbound, installed},
    support::{Lab, addresses, config},
};

const SERVER: &str = "dns.example.net";
const WEB: &str = "www.example.org";

/// An authority and a certificate for [`SERVER`] and 127.0.0.1.
struct Certificates {
    dir: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Option<Self> {
        let openssl = installed("openssl")?;
        let dir = tempfile::tempdir().expect("a directory");
        let run = |args: &str| {
            let output =
                Command::new(&openssl).args(args.split(' ')).current_dir(dir.path()).output().expect("openssl");
            assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca"));
        run(&format!(
            "req -x509 {key} -keyout key.pem -out cert.pem -subj /CN=server -CA ca.pem -CAkey ca.key \
             -addext subjectAltName=DNS:{SERVER},IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
        ));
        Some(Self { dir })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Unbound that speaks TLS at `addr`.
async fn unbound(addr: SocketAddr, certificates: &Certificates, more: &str) -> Option<Unbound> {
    let more = format!(
        "  interface: 127.0.0.1@{port}\n  tls-port: {port}\n  tls-service-key: \"{}\"\n  tls-service-pem: \"{}\"\n{more}",
        certificates.file("key.pem").display(),
        certificates.file("cert.pem").display(),
        port = addr.port(),
    );
    Unbound::start_with(free(), &more).await
}

fn over_tls(addr: SocketAddr, name: &str) -> Upstream {
    Upstream { addr, tls: Some(name.into()) }
}

fn config_for(to: Vec<Upstream>, ca: Option<&Path>) -> DnsConfig {
    let forward = vec![ForwardRule { to: to.into_iter().map(Into::into).collect(), ..ForwardRule::default() }];
    DnsConfig { forward, ca_file: ca.map(Path::to_owned), ..config() }
}

async fn lab(to: Vec<Upstream>, certificates: &Certificates) -> Lab {
    Lab::synced(config_for(to, Some(&certificates.file("ca.pem")))).await
}

fn server(lab: &Lab) -> ServerInfo {
    lab.dns.snapshot(0).upstreams[0].clone()
}

#[tokio::test]
async fn many_questions_share_one_session() {
    let Some(certificates) = Certificates::new() else { return };
    let addr = free();
    let Some(_unbound) = unbound(addr, &certificates, "").await else { return };
    for name in [SERVER, "127.0.0.1"] {
        let lab = lab(vec![over_tls(addr, name)], &certificates).await;
        assert_eq!(addresses(&lab.ask(WEB, RecordType::A).await), ["192.0.2.80"], "{name}");
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..200 {
            let (addr, query) = (lab.addr, crate::support::query(&format!("n{client}.example.org"), RecordType::A));
            clients.spawn(async move { crate::support::udp(addr, crate::support::DEVELOPER, &query).await });
        }
        for answer in clients.join_all().await {
            let answer = hickory_proto::op::Message::from_vec(&answer.expect("an answer")).expect("readable");
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        }
        let server = server(&lab);
        assert_eq!((server.sessions, server.queries, server.failures), (1, 201, 0), "{server:?}");
        lab.dns.shutdown().await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_the_one_meant_is_not_believed() {
    let Some(certificates) = Certificates::new() else { return };
    let addr = free();
    let Some(_unbound) = unbound(addr, &certificates, "").await else { return };
    let lab = lab(vec![over_tls(addr, "dns.example.com")], &certificates).await;
    assert_eq!(lab.rcode(WEB, RecordType::A).await, ResponseCode::ServFail);
    let error = server(&lab).error.expect("why");
    assert!(error.contains("dns.example.com") && error.contains("not valid for name"), "{error}");

    // The system's authorities have not signed it.
    let other = Certificates::new().expect("openssl is there");
    let lab = Lab::synced(config_for(vec![over_tls(addr, SERVER)], Some(&other.file("ca.pem")))).await;
    assert_eq!(lab.rcode(WEB, RecordType::A).await, ResponseCode::ServFail);
    let error = server(&lab).error.expect("why");
    assert!(error.contains("certificate"), "{error}");
    assert_eq!(server(&lab).queries, 1, "a wrong certificate is not tried again at once");
}

#[tokio::test]
async fn a_session_that_the_server_closed_is_begun_anew_without_the_client_noticing() {
    let Some(certificates) = Certificates::new() else { return };
    let addr = free();
    let Some(_unbound) = unbound(addr, &certificates, "  tcp-idle-timeout: 300\n").await else { return };
    let lab = lab(vec![over_tls(addr, SERVER)], &certificates).await;
    for client in 0..3 {
        let name = format!("n{client}.example.org");
        assert_eq!(lab.rcode(&name, RecordType::A).await, ResponseCode::NXDomain);
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    let server = server(&lab);
    assert_eq!((server.sessions, server.failures), (3, 0), "{server:?}");
}

#[tokio::test]
async fn a_server_that_went_is_back_when_it_is_back() {
    let Some(certificates) = Certificates::new() else { return };
    let addr = free();
    let Some(first) = unbound(addr, &certificates, "").await else { return };
    let lab = lab(vec![over_tls(addr, SERVER)], &certificates).await;
    assert_eq!(lab.rcode("a.example.org", RecordType::A).await, ResponseCode::NXDomain);
    drop(first);
    assert_eq!(lab.rcode("b.example.org", RecordType::A).await, ResponseCode::ServFail);
    assert!(!server(&lab).healthy && server(&lab).error.is_some());
    let _second = unbound(addr, &certificates, "").await;
    assert_eq!(lab.rcode("c.example.org", RecordType::A).await, ResponseCode::NXDomain);
    assert!(server(&lab).healthy && server(&lab).error.is_none());
}

#[tokio::test]
async fn a_server_that_never_shakes_hands_costs_its_patience_once() {
    let Some(certificates) = Certificates::new() else { return };
    let addr = free();
    let Some(_unbound) = unbound(addr, &certificates, "").await else { return };
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let to = vec![over_tls(silent.local_addr().expect("address"), SERVER), over_tls(addr, SERVER)];
    let lab = lab(to, &certificates).await;
    let began = Instant::now();
    assert_eq!(addresses(&lab.ask(WEB, RecordType::A).await), ["192.0.2.80"]);
    // Its patience is 2 s.
    assert!(began.elapsed() < Duration::from_millis(3900), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(lab.rcode("a.example.org", RecordType::A).await, ResponseCode::NXDomain);
    assert!(began.elapsed() < Duration::from_millis(1900), "the good one is asked first now: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_file_of_authorities_that_cannot_be_used_is_named_at_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "no certificate\n").expect("write");
    for (path, why) in [(empty, "no certificate"), (dir.path().join("missing.pem"), "cannot be read")] {
        let config = config_for(vec![over_tls(free(), SERVER)], Some(&path));
        let kernel = std::sync::Arc::new(crate::recorder::Recorder::default());
        let Err(error) = Resolver::start(config, kernel).await else { panic!("accepted {}", path.display()) };
        assert!(matches!(error, DnsError::Tls(_)), "{error}");
        let line = error.to_string();
        assert!(line.contains("dns.tls.caFile") && line.contains(why), "{line}");
    }
}
