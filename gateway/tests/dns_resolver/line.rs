//! Upstreams behind lines that are slow and lossy: a relay before a real Unbound, which delays and loses datagrams. And for how long
//! what was known goes on being answered.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

use crate::{
    programs::Unbound,
    support::{DEVELOPER, Lab, addresses, config, forward, query_edns, udp},
};

const GOOD: [&str; 1] = ["192.0.2.80"];

/// A way to a server. Datagrams take `delay` there and back together, and of each `lost.1` of them `lost.0` in a row get lost; TCP is
/// delayed when it connects.
struct Line {
    addr: SocketAddr,
    datagrams: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Line {
    async fn to(server: SocketAddr, delay: Duration, lost: (usize, usize)) -> Self {
        let (addr, front, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let addr = udp.local_addr().expect("address");
            if let Ok(tcp) = TcpListener::bind(addr).await {
                break (addr, Arc::new(udp), tcp);
            }
        };
        let datagrams = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let count = Arc::clone(&datagrams);
        tasks.spawn(async move {
            let mut ways = JoinSet::new();
            let mut buffer = vec![0; 4096];
            loop {
                let Ok((len, client)) = front.recv_from(&mut buffer).await else { return };
                if count.fetch_add(1, Ordering::SeqCst) % lost.1 < lost.0 {
                    continue;
                }
                let (query, front) = (buffer[..len].to_vec(), Arc::clone(&front));
                ways.spawn(async move {
                    let back = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
                    back.connect(server).await.expect("connect");
                    back.send(&query).await.expect("send");
                    let mut answer = vec![0; 4096];
                    let Ok(Ok(len)) = tokio::time::timeout(Duration::from_secs(5), back.recv(&mut answer)).await else {
                        return;
                    };
                    tokio::time::sleep(delay).await;
                    // Who asked may not wait any more.
                    let _ = front.send_to(&answer[..len], client).await;
                });
            }
        });
        tasks.spawn(async move {
            let mut ways = JoinSet::new();
            loop {
                let Ok((mut client, _)) = tcp.accept().await else { return };
                ways.spawn(async move {
                    tokio::time::sleep(delay).await;
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { addr, datagrams, _tasks: tasks }
    }
}

async fn lab(upstreams: &[SocketAddr]) -> Lab {
    let mut config = config();
    config.cache.max_ttl = 1;
    config.forward = vec![forward(".", upstreams)];
    Lab::synced(config).await
}

/// Asks for names that nobody has asked for, some at a time, and says how long the slowest took.
async fn new_names(lab: &Lab, count: usize, at_once: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for batch in 0..count / at_once {
        let mut asking = JoinSet::new();
        for number in 0..at_once {
            let packet = query_edns(&format!("n{batch}-{number}.example.org"), RecordType::A, 1232, false);
            let server = lab.addr;
            asking.spawn(async move {
                let began = Instant::now();
                let answer = udp(server, DEVELOPER, &packet).await.expect("an answer");
                // There are no such names: that is what the server says, and not that it failed.
                assert_eq!(answer[3] & 0xf, u8::try_from(u16::from(ResponseCode::NXDomain)).expect("a code"));
                began.elapsed()
            });
        }
        slowest = asking.join_all().await.into_iter().fold(slowest, Duration::max);
    }
    slowest
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_server_well_nobody_fails_for_a_line_that_is_slow_or_loses_datagrams() {
    let Some(unbound) = Unbound::start().await else { return };
    for (delay, lost) in [(400, (0, 1)), (2500, (0, 1)), (50, (3, 4)), (0, (1, 2))] {
        let line = Line::to(unbound.addr, Duration::from_millis(delay), lost).await;
        let lab = lab(&[line.addr, unbound.addr]).await;
        let slowest = new_names(&lab, 24, 8).await;
        println!("{delay} ms, {}/{} lost: the slowest of 24 took {slowest:?}", lost.0, lost.1);
        assert!(line.datagrams.load(Ordering::SeqCst) > 0, "the line was asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_a_slow_line_costs_its_delay_and_a_lossy_one_another_try() {
    let Some(unbound) = Unbound::start().await else { return };
    for (delay, lost) in [(600, (0, 1)), (2500, (0, 1)), (0, (1, 3))] {
        let line = Line::to(unbound.addr, Duration::from_millis(delay), lost).await;
        let lab = lab(&[line.addr]).await;
        let slowest = new_names(&lab, 4, if delay > 1000 { 4 } else { 1 }).await;
        println!("{delay} ms, {}/{} lost: the slowest took {slowest:?}", lost.0, lost.1);
        if delay > 1000 {
            continue;
        }
        // What a datagram cannot hold comes over TCP by the same line.
        let many = lab.ask("many.example.org", RecordType::A).await;
        assert!(many.metadata.truncation && many.metadata.response_code == ResponseCode::NoError);
    }
}

#[tokio::test]
async fn what_was_known_is_answered_for_as_long_as_the_config_says_and_then_not_any_more() {
    let Some(mut only) = Unbound::start().await else { return };
    let mut config = config();
    (config.cache.max_ttl, config.cache.stale) = (1, 3);
    config.forward = vec![forward(".", &[only.addr])];
    let lab = Lab::synced(config).await;
    lab.ask("www.example.org", RecordType::A).await;
    let learnt = Instant::now();
    only.end();
    // Its own second, then three.
    loop {
        let before = learnt.elapsed();
        let got = lab.ask("www.example.org", RecordType::A).await;
        let after = learnt.elapsed();
        if before > Duration::from_millis(4500) {
            assert_eq!((got.metadata.response_code, got.answers.len()), (ResponseCode::ServFail, 0), "{before:?}");
            break;
        }
        if after < Duration::from_millis(3800) {
            assert_eq!(addresses(&got), GOOD, "{after:?}");
            let stale = got.answers[0].ttl == 30;
            assert!(stale || before < Duration::from_millis(1100), "{before:?}: TTL {}", got.answers[0].ttl);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
