//! The DNS server for names outside: Unbound with local data only, so that it asks nobody.

use std::{fs, net::UdpSocket, path::Path, time::Duration};

use anyhow::{Result, anyhow};

use crate::{
    netns::Namespace,
    process::{NotYet, Process, wait_for},
    topology::UPSTREAM,
};

/// A TTL that is long enough to be seen counting down.
pub const TTL: u32 = 300;

/// Names below `example.test`; `big` does not fit 512 bytes, `huge` fits no UDP answer.
fn config() -> String {
    let mut data = vec![
        format!("example.test. {TTL} IN SOA ns.example.test. hostmaster.example.test. 1 3600 600 86400 60"),
        format!("example.test. {TTL} IN NS ns.example.test."),
        format!("example.test. {TTL} IN MX 10 mail.example.test."),
        format!("ns.example.test. {TTL} IN A {UPSTREAM}"),
        format!("mail.example.test. {TTL} IN A 192.0.2.25"),
        format!("www.example.test. {TTL} IN A 192.0.2.80"),
        format!("www.example.test. {TTL} IN AAAA 2001:db8::80"),
        format!("text.example.test. {TTL} IN TXT \"two words\""),
        "short.example.test. 2 IN A 192.0.2.2".to_owned(),
    ];
    data.extend((1..=40).map(|host| format!("big.example.test. {TTL} IN A 192.0.2.{host}")));
    data.extend((0..24).map(|part| format!("huge.example.test. {TTL} IN TXT \"{part:03}{}\"", "x".repeat(197))));
    let data: String = data.iter().map(|record| format!("  local-data: '{record}'\n")).collect();
    format!(
        "server:\n  interface: {UPSTREAM}\n  port: 53\n  do-ip6: no\n  access-control: 0.0.0.0/0 allow\n  do-daemonize: no\n  \
         chroot: \"\"\n  username: \"\"\n  directory: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  log-queries: yes\n  verbosity: 0\n  \
         module-config: \"iterator\"\n  num-threads: 1\n  local-zone: \".\" static\n  local-zone: \"example.test.\" static\n{data}\
         remote-control:\n  control-enable: no\n"
    )
}

/// Starts it and waits until it answers.
///
/// # Errors
/// When Unbound is not installed or does not answer.
pub fn start(namespace: &Namespace, dir: &Path) -> Result<Process> {
    let file = dir.join("unbound.conf");
    fs::write(&file, config())?;
    let mut command = namespace.command("unbound");
    command.arg("-c").arg(&file);
    let mut process = Process::start("unbound", command, &dir.join("unbound.log"))?;
    // A query for the root's SOA.
    let query = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1];
    wait_for("the upstream DNS server", Duration::from_secs(10), || {
        if let Some(status) = process.ended() {
            return Err(NotYet::Never(anyhow!("unbound ended: {status}: {}", process.said())));
        }
        namespace.enter(|| -> Result<(), NotYet> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            socket.connect((UPSTREAM, 53))?;
            socket.send(&query)?;
            socket.recv(&mut [0; 512])?;
            Ok(())
        })
    })?;
    Ok(process)
}
