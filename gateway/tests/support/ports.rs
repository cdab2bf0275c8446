//! Ports for servers that tests start.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the ports that the kernel gives to sockets which name none: no other test's client takes one before its server is up.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;

/// A port of the loopback address that nobody uses now, by UDP or TCP, and that no other test of this process gets.
pub fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Other processes begin elsewhere.
    let begin = (std::process::id() % u32::from(COUNT)) as u16;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (begin.wrapping_mul(37) % COUNT + step % COUNT) % COUNT;
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok() {
            return at;
        }
    }
}
