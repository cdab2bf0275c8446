//! PolarDNS upstream: a server that answers wrongly in some hundred ways, each asked for by a name. Nothing of it harms a client: each
//! gets a readable answer in time, from the other server where there is one, and no record of a name that was not asked for is kept.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr as _,
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::task::JoinSet;

use crate::{
    fake::{Fake, answer, response},
    ports::free,
    support::{DEVELOPER, Lab, addresses, config, forward, query_edns, udp_within},
};

const DOMAIN: &str = "yourdomain.com";
/// Queries at one time.
const AT_ONCE: usize = 200;

/// Where `cargo xtask test` puts it.
fn package() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("gateway-lab/polardns-1.6.6/polardns")).filter(|dir| dir.join("polardns_real.py").exists())
}

/// The server, on a port of its own; ended with the test, with all its processes.
struct Polar {
    child: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Polar {
    async fn start(package: &Path) -> Self {
        let addr = free();
        let dir = tempfile::tempdir().expect("a directory");
        let own = dir.path().join("polardns");
        fs::create_dir(&own).expect("a directory");
        for entry in fs::read_dir(package).expect("the package").flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), own.join(entry.file_name())).expect("a copy");
        }
        let toml = fs::read_to_string(own.join("polardns.toml")).expect("its config");
        let listen = |line: &str| match line.starts_with("listen_addr") {
            true => format!("listen_addr = '{addr}'\n"),
            false => format!("{line}\n"),
        };
        fs::write(own.join("polardns.toml"), toml.lines().map(listen).collect::<String>()).expect("its config");
        let child = Command::new("python3")
            .arg(own.join("polardns_real.py"))
            .env("PYTHONPATH", dir.path())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 starts");
        let server = Self { child, addr, _dir: dir };
        let packet = query_edns(&format!("always.{DOMAIN}"), RecordType::A, 1232, false);
        for _ in 0..100 {
            if udp_within(addr, DEVELOPER, &packet, Duration::from_millis(200)).await.is_some() {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("polardns does not answer on {addr}");
    }
}

impl Drop for Polar {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // It has a second process, for TCP.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// The questions that its own documentation asks.
fn questions(package: &Path) -> Vec<(String, RecordType)> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(package.join("modules")).expect("its modules").flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for words in text.split("dig ").skip(1).filter_map(|rest| rest.split_once('@')).map(|(words, _)| words) {
            let mut rtype = RecordType::A;
            for word in words.split_whitespace() {
                if let Ok(known) = RecordType::from_str(word) {
                    rtype = known;
                } else if word.ends_with(DOMAIN)
                    && word.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_*".contains(&b))
                {
                    all.insert((word.to_ascii_lowercase(), rtype.to_string()));
                }
            }
        }
    }
    all.into_iter().filter_map(|(name, rtype)| Some((name, RecordType::from_str(&rtype).ok()?))).collect()
}

/// One that is well: addresses, and nothing else.
async fn good() -> Fake {
    Fake::start(|query, _| {
        if query.queries[0].query_type() == RecordType::A {
            vec![answer(query, 300)]
        } else {
            vec![response(query).to_vec().expect("answer")]
        }
    })
    .await
}

async fn ask(server: SocketAddr, name: &str, rtype: RecordType) -> Message {
    let packet = query_edns(name, rtype, 1232, false);
    let bytes = udp_within(server, DEVELOPER, &packet, Duration::from_secs(30)).await;
    let bytes = bytes.unwrap_or_else(|| panic!("{name} {rtype}: no answer"));
    assert!(bytes.len() <= 1232, "{name} {rtype}: {} bytes", bytes.len());
    let message = Message::from_vec(&bytes).unwrap_or_else(|error| panic!("{name} {rtype}: {error}"));
    let asked = message.queries[0].name().to_ascii().to_ascii_lowercase();
    assert_eq!(asked.trim_end_matches('.'), name, "{rtype}: the question comes back");
    message
}

/// Asks everything, some at a time; each of a resolver of its own with these upstreams, or all of `one`.
async fn ask_all(
    questions: &[(String, RecordType)],
    one: Option<SocketAddr>,
    upstreams: &[SocketAddr],
) -> Vec<Message> {
    let mut answers = Vec::new();
    for batch in questions.chunks(AT_ONCE) {
        let mut asking = JoinSet::new();
        for (name, rtype) in batch.iter().cloned() {
            let upstreams = upstreams.to_vec();
            asking.spawn(async move {
                if let Some(server) = one {
                    return ask(server, &name, rtype).await;
                }
                let mut config = config();
                config.forward = vec![forward(".", &upstreams)];
                let lab = Lab::synced(config).await;
                let message = ask(lab.addr, &name, rtype).await;
                lab.dns.shutdown().await;
                message
            });
        }
        answers.extend(asking.join_all().await);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_hostile_server_answers_clients_get_a_readable_answer_and_nothing_that_was_not_asked_for_is_kept() {
    let Some(package) = package() else {
        println!("SKIP: polardns is not installed: `cargo xtask test` installs it where pip and PyPI are there");
        return;
    };
    let questions = questions(&package);
    assert!(questions.len() > 250, "{} questions", questions.len());
    let (polar, well) = (Polar::start(&package).await, good().await);

    // Alone: an answer or a failure, in time, and the server is believed again.
    let mut config = config();
    config.forward = vec![forward(".", &[polar.addr]), forward("a3rdparty.net", &[well.addr])];
    let lab = Lab::synced(config).await;
    let alone = ask_all(&questions, Some(lab.addr), &[]).await;
    let failed = alone.iter().filter(|message| message.metadata.response_code == ResponseCode::ServFail).count();
    assert!(failed < alone.len() / 2, "{failed} of {} failed", alone.len());
    let known: BTreeSet<&str> = questions.iter().map(|(name, _)| name.as_str()).collect();
    let learnt: Vec<String> = lab.kernel.with(|tables| {
        tables.entries.keys().map(|key| gateway::dns::name::to_text(&key.name[..key.len.into()])).collect()
    });
    for name in learnt.iter().map(|name| name.trim_end_matches('.')).filter(|name| !name.ends_with("local")) {
        assert!(known.contains(name), "{name} was not asked for");
    }
    let injected = ask(lab.addr, "injected.a3rdparty.net", RecordType::A).await;
    assert_eq!(addresses(&injected), ["192.0.2.1"], "from its own servers, not from what came along");
    let after = ask(lab.addr, &format!("always77.{DOMAIN}"), RecordType::A).await;
    assert_eq!(addresses(&after), ["2.3.4.5"], "what it says well goes on being believed");

    // Beside a server that is well, whoever asks has an answer.
    let both = ask_all(&questions, None, &[polar.addr, well.addr]).await;
    for message in &both {
        let code = message.metadata.response_code;
        assert_ne!(code, ResponseCode::ServFail, "{}", message.queries[0]);
    }
    println!("{} questions: alone {failed} failed; beside a server that is well none", questions.len());
}
