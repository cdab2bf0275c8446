//! The small real servers of the pods: HTTP with keep-alive, and echo over UDP and TCP. A thread for each connection: a pod
//! serves a thousand of them at once and no more.

use std::{
    io::{BufRead, BufReader, Read, Result, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::sys::{
    signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    socket::{self, Backlog},
};

use crate::stream;

/// A datagram that asks who serves.
pub const WHO: &[u8] = b"who are you?";

/// Whether every answer is to be the last one of its connection.
static DRAINING: AtomicBool = AtomicBool::new(false);

/// From SIGTERM on, HTTP connections end with their next answer; new ones are still taken. So does a server that shuts down in good order.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn drain_on_sigterm() -> Result<()> {
    extern "C" fn drain(_: libc::c_int) {
        DRAINING.store(true, Ordering::Relaxed);
    }
    let action = SigAction::new(SigHandler::Handler(drain), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing but store to an atomic, which is allowed in a signal handler.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    Ok(())
}

/// Serves HTTP on a port of every address, for ever.
///
/// `/` tells the pod's name and the client's address as the pod sees it; `/bytes/N` is N bytes of the known stream.
///
/// # Errors
/// When the port is taken.
pub fn http(name: &str, port: u16) -> Result<()> {
    let listener = listen(port)?;
    let name: Arc<str> = name.into();
    spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = Arc::clone(&name);
            // A client that went away ends its thread and nothing else.
            spawn(move || drop(converse(&name, stream)));
        }
    });
    Ok(())
}

/// Listens for both families. The standard library's backlog of 128 makes a thousand clients at once wait for their second SYN.
fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    socket::listen(&listener, Backlog::new(4096)?)?;
    Ok(listener)
}

/// An IPv4 peer of a socket for both families, as IPv4.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// A thousand connections are a thousand threads: small stacks.
fn spawn(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().stack_size(256 << 10).spawn(work) {
        eprintln!("no thread for a connection: {error}");
    }
}

fn converse(name: &str, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let peer = canonical(stream.peer_addr()?);
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut close = request.trim_end().ends_with("HTTP/1.0");
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 {
                return Ok(());
            }
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            close |= header == "connection: close";
        }
        close |= DRAINING.load(Ordering::Relaxed);
        let path = request.split(' ').nth(1).unwrap_or_default();
        let connection = if close { "close" } else { "keep-alive" };
        let head = |status: &str, length: u64| {
            format!(
                "HTTP/1.1 {status}\r\nServer: {name}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
            )
        };
        if let Some(bytes) = path.strip_prefix("/bytes/").and_then(|bytes| bytes.parse().ok()) {
            writer.write_all(head("200 OK", bytes).as_bytes())?;
            stream::send(&mut writer, bytes)?;
        } else {
            let (status, body) = match path {
                "/" => ("200 OK", format!("{name} serves {}\n", peer.ip())),
                _ => ("404 Not Found", format!("{name} has no {path}\n")),
            };
            writer.write_all((head(status, body.len() as u64) + &body).as_bytes())?;
        }
        if close {
            return Ok(());
        }
    }
}

/// Echoes datagrams and TCP bytes on a port, for ever. [`WHO`] is answered with the pod's name and the client's address and port.
///
/// # Errors
/// When the port is taken.
pub fn echo(name: &str, port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let listener = listen(port)?;
    let udp_name = name.to_owned();
    spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            // An ICMP error about an earlier answer shows up here; it says nothing about the next datagram.
            let Ok((len, peer)) = socket.recv_from(&mut buffer) else { continue };
            let answer = if &buffer[..len] == WHO {
                format!("{udp_name} {}", canonical(peer)).into_bytes()
            } else {
                buffer[..len].to_vec()
            };
            let _ = socket.send_to(&answer, peer);
        }
    });
    let tcp_name = name.to_owned();
    spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let name = tcp_name.clone();
            spawn(move || {
                let Ok(peer) = stream.peer_addr().map(canonical) else { return };
                let mut buffer = vec![0; 64 << 10];
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    let who = format!("{name} {peer}");
                    let answer = if &buffer[..len] == WHO { who.as_bytes() } else { &buffer[..len] };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}
