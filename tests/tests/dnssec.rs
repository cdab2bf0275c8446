//! A signed zone outside, served by a real authoritative server (BIND) and reached by a zone rule: what validates in front of the
//! gateway finds everything that it needs behind it. Issue 4, "What it must show", 3.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use gateway_lab::{
    Gateway, GatewayConfig, Lab, Topology,
    names::{Answer, dig},
    netns::Namespace,
    process::{NotYet, Process, wait_for},
    testing,
    topology::{GATEWAY, UPSTREAM},
};

/// Where the signed zones are served: the lab's own upstream has port 53.
const SIGNED: &str = "5354";
/// Where the validating forwarders listen, on the client's loopback.
const FRONT: &str = "5300";
const TOOLS: [&str; 7] = ["dig", "delv", "unbound", "named", "dnssec-keygen", "dnssec-signzone", "nsenter"];

/// Keys, zone and signatures in `dir`; gives the key that is to be trusted, as `DNSKEY` data.
fn sign(dir: &Path, zone: &str, nsec3: bool) -> String {
    let records = (0..14).map(|part| format!("huge TXT \"{part:02}{}\"\n", "x".repeat(200))).collect::<String>();
    let text = format!(
        "$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A {UPSTREAM}\nwww A 192.0.2.80\nwww AAAA 2001:db8::80\n\
         alias CNAME www\nmail MX 10 www\n*.wild A 192.0.2.9\nsub NS ns.sub\nns.sub A 192.0.2.53\nd DNAME wild\n{records}"
    );
    fs::write(dir.join(format!("{zone}.plain")), text).expect("the zone");
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).current_dir(dir).args(args).output().expect("it runs");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let key = run("dnssec-keygen", &["-q", "-a", "ECDSAP256SHA256", "-f", "KSK", zone]);
    run("dnssec-keygen", &["-q", "-a", "ECDSAP256SHA256", zone]);
    let (signed, plain) = (format!("{zone}.signed"), format!("{zone}.plain"));
    let mut args = vec!["-S", "-o", zone, "-f", &signed];
    args.extend(if nsec3 { &["-3", "-"][..] } else { &[] });
    args.push(&plain);
    run("dnssec-signzone", &args);
    let text = fs::read_to_string(dir.join(format!("{key}.key"))).expect("the key");
    let data = text.lines().find_map(|line| line.split_once("DNSKEY ")).expect("a DNSKEY").1;
    data.to_owned()
}

/// A zone whose address was changed after it was signed.
fn tamper(dir: &Path, zone: &str) {
    let file = dir.join(format!("{zone}.signed"));
    let text = fs::read_to_string(&file).expect("the signed zone");
    assert!(text.contains("192.0.2.80"));
    fs::write(&file, text.replace("192.0.2.80", "192.0.2.66")).expect("the signed zone");
}

fn named(node: &Namespace, dir: &Path, name: &str, config: &str, ready: &[&str]) -> Process {
    let file = dir.join(format!("{name}.conf"));
    fs::write(&file, config).expect("a config");
    let mut command = node.command("named");
    command.args(["-g", "-n", "1", "-c"]).arg(&file);
    answering(Process::start(name, command, &dir.join(format!("{name}.log"))).expect("it starts"), node, ready)
}

/// Waits until a server answers this question.
fn answering(mut process: Process, node: &Namespace, ready: &[&str]) -> Process {
    wait_for(&process.name.clone(), Duration::from_secs(30), || {
        if let Some(status) = process.ended() {
            return Err(NotYet::Never(anyhow::anyhow!("it ended: {status}: {}", process.said())));
        }
        let answer = dig(node, ready[0], &ready[1..])?;
        if answer.status == "NOERROR" { Ok(()) } else { Err(NotYet::Later(anyhow::anyhow!("{answer:?}"))) }
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", process.said()));
    process
}

/// Answer and authority section as sets, without TTLs.
fn sections(answer: &Answer) -> [BTreeSet<String>; 2] {
    [&answer.answers, &answer.authorities].map(|records| {
        let line = |r: &gateway_lab::names::Record| format!("{} {} {}", r.name, r.rtype, r.data).to_lowercase();
        records.iter().map(line).collect()
    })
}

const QUESTIONS: [(&str, &str, &str); 12] = [
    ("www.signed.test", "A", "NOERROR"),
    ("www.signed.test", "AAAA", "NOERROR"),
    ("alias.signed.test", "A", "NOERROR"),
    ("mail.signed.test", "MX", "NOERROR"),
    ("x.wild.signed.test", "A", "NOERROR"),
    ("x.d.signed.test", "A", "NOERROR"),
    ("signed.test", "DNSKEY", "NOERROR"),
    ("signed.test", "NSEC", "NOERROR"),
    ("sub.signed.test", "DS", "NOERROR"),
    ("www.signed.test", "MX", "NOERROR"),
    ("nobody.signed.test", "A", "NXDOMAIN"),
    ("huge.signed.test", "TXT", "NOERROR"),
];

/// What the gateway says is what the zone's server says: with DO its signatures, without none; cut where it is large.
fn as_the_server_says(lab: &Lab, gateway: &Gateway<'_>) {
    let (client, upstream) = (lab.client(), lab.namespace("upstream"));
    for (name, rtype, status) in QUESTIONS {
        let direct = dig(upstream, &UPSTREAM.to_string(), &["-p", SIGNED, "+dnssec", name, rtype]).expect("dig");
        assert_eq!(direct.status, status, "{name} {rtype}");
        for flags in [&["+dnssec"][..], &["+dnssec", "+cd"], &["+dnssec", "+ad"], &["+dnssec", "+tcp"]] {
            for time in 0..2 {
                let ours = dig(client, &GATEWAY.to_string(), &[flags, &[name, rtype]].concat()).expect("dig");
                let about = format!("{name} {rtype} {flags:?}, time {time}: {ours:?}");
                assert_eq!(ours.status, status, "{about}");
                assert_eq!(sections(&ours)[0], sections(&direct)[0], "{about}");
                if ours.answers.is_empty() || name.starts_with("x.") {
                    // The proof of what is not there. Else the authority section only names servers.
                    assert_eq!(sections(&ours)[1], sections(&direct)[1], "{about}");
                }
                assert!(!ours.flag("ad"), "nobody here has validated it: {about}");
                assert_eq!(ours.flag("cd"), flags.contains(&"+cd"), "{about}");
            }
        }
        let plain = dig(client, &GATEWAY.to_string(), &[name, rtype]).expect("dig");
        let signatures = plain.answers.iter().chain(&plain.authorities).filter(|r| r.rtype == "RRSIG").count();
        assert_eq!((plain.status.as_str(), signatures), (status, 0), "{name} {rtype} without DO: {plain:?}");
    }
    let small = dig(client, &GATEWAY.to_string(), &["+dnssec", "+bufsize=1232", "+ignore", "huge.signed.test", "TXT"]);
    assert!(small.expect("dig").flag("tc"), "more than a datagram holds");
    let before = gateway.counters().expect("counters").dns();
    let asked = ["+dnssec", "www.signed.test", "A"];
    assert_eq!(dig(client, &GATEWAY.to_string(), &asked).expect("dig").answers.len(), 2);
    assert_eq!(gateway.counters().expect("counters").dns() - before, 1, "signatures are in the kernel, too");
}

/// What a validator in front of the gateway finds: all that is signed is proven, what was changed is refused.
fn validated(client: &Namespace, program: &str) {
    let ask = |args: &[&str]| dig(client, "127.0.0.1", &[&["-p", FRONT, "+time=5"], args].concat()).expect("dig");
    for (name, rtype, status) in QUESTIONS.into_iter().filter(|(_, rtype, _)| *rtype != "NSEC") {
        for zone in ["signed.test", "three.test"] {
            let name = name.replace("signed.test", zone);
            let answer = ask(&["+dnssec", &name, rtype]);
            assert_eq!(answer.status, status, "{program}: {name} {rtype}: {answer:?}");
            // Below NSEC3 without opt-out everything is proven as well.
            assert!(answer.flag("ad"), "{program}: {name} {rtype} is not proven: {answer:?}");
        }
    }
    let bogus = ask(&["+dnssec", "www.bogus.test", "A"]);
    assert_eq!((bogus.status.as_str(), bogus.answers.len()), ("SERVFAIL", 0), "{program}: {bogus:?}");
    let unchecked = ask(&["+dnssec", "+cd", "www.bogus.test", "A"]);
    assert_eq!(unchecked.data("A"), ["192.0.2.66"], "{program}: who checks himself gets it: {unchecked:?}");
    let unsigned = ask(&["+dnssec", "www.example.test", "A"]);
    assert_eq!((unsigned.data("A"), unsigned.flag("ad")), (vec!["192.0.2.80"], false), "{program}: {unsigned:?}");
}

#[test]
fn validators_in_front_of_the_gateway_prove_what_a_signed_zone_behind_it_says() {
    let Some(_turn) = testing::turn(&TOOLS) else { return };
    let lab = Lab::build(Topology { upstream: true, ..Topology::with_pods(&[]) }).expect("the lab");
    let dir = lab.dir();
    let keys: Vec<(&str, String)> = [("signed.test", false), ("three.test", true), ("bogus.test", false)]
        .map(|(zone, nsec3)| (zone, sign(dir, zone, nsec3)))
        .into();
    tamper(dir, "bogus.test");
    let zones: String = keys
        .iter()
        .map(|(zone, _)| format!("zone \"{zone}\" {{ type primary; file \"{}/{zone}.signed\"; }};\n", dir.display()))
        .collect();
    let common = format!(
        "directory \"{}\"; listen-on-v6 {{ none; }}; pid-file none; session-keyfile none; empty-zones-enable no;",
        dir.display()
    );
    let _server = named(
        lab.namespace("upstream"),
        dir,
        "authoritative",
        &format!(
            "options {{ {common} listen-on port {SIGNED} {{ {UPSTREAM}; }}; recursion no; check-integrity no; \
             minimal-responses yes; }};\ncontrols {{ }};\n{zones}"
        ),
        &[&UPSTREAM.to_string(), "-p", SIGNED, "www.signed.test", "A"],
    );
    let mut config = GatewayConfig::default().with_upstream();
    config.forward_zones = keys.iter().map(|(zone, _)| ((*zone).to_owned(), format!("{UPSTREAM}:{SIGNED}"))).collect();
    let gateway = lab.gateway(&config).expect("the gateway");
    as_the_server_says(&lab, &gateway);

    let client = lab.client();
    let anchors: String = keys.iter().map(|(zone, key)| format!("{zone}. 300 IN DNSKEY {key}\n")).collect();
    fs::write(dir.join("anchors"), anchors).expect("the anchors");
    let text = format!(
        "server:\n  interface: 127.0.0.1\n  port: {FRONT}\n  do-daemonize: no\n  chroot: \"\"\n  username: \"\"\n  directory: \
         \"{0}\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  num-threads: 1\n  do-ip6: no\n  module-config: \"validator \
         iterator\"\n  trust-anchor-file: \"{0}/anchors\"\n  local-zone: \"test.\" nodefault\nforward-zone:\n  name: \".\"\n  \
         forward-addr: {GATEWAY}\nremote-control:\n  control-enable: no\n",
        dir.display()
    );
    fs::write(dir.join("validator.conf"), text).expect("a config");
    let mut command = client.command("unbound");
    command.arg("-d").arg("-c").arg(dir.join("validator.conf"));
    let process = Process::start("validating-unbound", command, &dir.join("validator.log")).expect("it starts");
    let ready = ["127.0.0.1", "-p", FRONT, "www.example.test", "A"];
    let mut unbound = answering(process, client, &ready);
    validated(client, "unbound");
    unbound.stop(nix::sys::signal::Signal::SIGTERM, Duration::from_secs(20)).expect("it ends");

    let anchors: String = keys
        .iter()
        .map(|(zone, key)| {
            let mut fields = key.split_whitespace();
            let numbers: Vec<&str> = fields.by_ref().take(3).collect();
            format!("\"{zone}\" static-key {} \"{}\"; ", numbers.join(" "), fields.collect::<String>())
        })
        .collect();
    let bind = named(
        client,
        dir,
        "validating-bind",
        &format!(
            "options {{ {common} listen-on port {FRONT} {{ 127.0.0.1; }}; recursion yes; dnssec-validation yes; forwarders {{ \
             {GATEWAY}; }}; forward only; }};\ncontrols {{ }};\ntrust-anchors {{ {anchors}}};\n"
        ),
        &ready,
    );
    validated(client, "named");
    drop(bind);

    // One that asks the gateway itself, question by question.
    fs::write(dir.join("delv.keys"), format!("trust-anchors {{ {anchors}}};\n")).expect("the anchors");
    let keys = dir.join("delv.keys").display().to_string();
    for (name, expected) in [("www.signed.test", "; fully validated"), ("www.three.test", "; fully validated")] {
        let at = format!("@{GATEWAY}");
        let said = client.run("delv", &[&at, "-a", &keys, &format!("+root={}", &name[4..]), name, "A"]).expect("delv");
        assert!(said.contains(expected) && said.contains("192.0.2.80"), "{name}: {said}");
    }
    gateway.stop().expect("a clean end");
}
