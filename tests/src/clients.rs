//! What clients do: HTTP, downloads, datagrams, many connections. Everything is bounded in count and time, and meant to be run inside a
//! client's namespace ([`crate::netns::Namespace::enter`]).

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{servers::WHO, stream};

/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// An HTTP response, read to its end.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Name of the pod that served it, from the header `Server`.
    pub server: String,
    /// Body.
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection that is kept alive between requests.
#[derive(Debug)]
pub struct Http {
    reader: BufReader<TcpStream>,
    to: SocketAddr,
}

impl Http {
    /// Connects.
    ///
    /// # Errors
    /// As TCP says.
    pub fn connect(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::with_capacity(64 << 10, stream), to })
    }

    /// Sends a request and reads the head of the answer: status, server, length of the body if it is known.
    fn ask(&mut self, path: &str) -> Result<(u16, String, Option<u64>)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.to);
        self.reader.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("no HTTP status in {line:?}"))?;
        let (mut server, mut length) = (String::new(), None);
        loop {
            line.clear();
            ensure!(self.reader.read_line(&mut line)? > 0, "the head of the answer ends in the middle");
            let Some((key, value)) = line.trim().split_once(": ") else { break };
            match key.to_ascii_lowercase().as_str() {
                "server" => server = value.to_owned(),
                "content-length" => length = Some(value.parse().context("Content-Length")?),
                _ => {}
            }
        }
        Ok((status, server, length))
    }

    /// Asks for a path and reads all of the answer.
    ///
    /// # Errors
    /// When the connection breaks or the answer is not HTTP.
    pub fn get(&mut self, path: &str) -> Result<Response> {
        let (status, server, length) = self.ask(path)?;
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(usize::try_from(length)?, 0);
                self.reader.read_exact(&mut body)?;
            }
            None => drop(self.reader.read_to_end(&mut body)?),
        }
        Ok(Response { status, server, body })
    }

    /// Downloads `bytes` of the known stream, comparing every one. Gives the pod's name.
    ///
    /// # Errors
    /// Where the first difference is, or how much is missing.
    pub fn download(&mut self, bytes: u64) -> Result<String> {
        let (status, server, length) = self.ask(&format!("/bytes/{bytes}"))?;
        ensure!(status == 200 && length == Some(bytes), "HTTP {status}, {length:?} bytes announced");
        compare(&mut self.reader, bytes)?;
        Ok(server)
    }
}

/// One request on a connection of its own.
///
/// # Errors
/// When it cannot connect or the answer is not HTTP.
pub fn http_get(to: SocketAddr, path: &str) -> Result<Response> {
    Http::connect(to).with_context(|| format!("connect to {to}"))?.get(path)
}

/// Opens that many TCP connections, has all of them open at once, sends a request on each, and closes them. Gives how many each pod
/// answered.
///
/// # Errors
/// The first connection that was not answered.
pub fn connections(to: SocketAddr, count: usize) -> Result<BTreeMap<String, usize>> {
    const THREADS: usize = 50;
    let all_open = Barrier::new(THREADS);
    let share = |thread: usize| count / THREADS + usize::from(thread < count % THREADS);
    let work = |thread: usize| {
        let open: std::io::Result<Vec<Http>> = (0..share(thread)).map(|_| Http::connect(to)).collect();
        all_open.wait();
        open.context("connect")?.iter_mut().map(|http| Ok(http.get("/")?.server)).collect()
    };
    let work = &work;
    let answered: Vec<Result<Vec<String>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut pods = BTreeMap::new();
    for pod in answered.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
        *pods.entry(pod).or_default() += 1;
    }
    Ok(pods)
}

/// Sends `bytes` of the known stream to an echo server over TCP while reading and comparing what comes back.
///
/// # Errors
/// Where the first difference is, or how much is missing.
pub fn echo(to: SocketAddr, bytes: u64) -> Result<()> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| stream::send(&mut &stream, bytes));
        let compared = compare(&mut &stream, bytes);
        let sent = sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        compared.and(sent.context("sending"))
    })
}

/// Reads `bytes` of the known stream and compares every one.
fn compare(reader: &mut impl Read, bytes: u64) -> Result<()> {
    let mut got = vec![0; 64 << 10];
    let mut want = got.clone();
    let mut at = 0;
    while at < bytes {
        let piece = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(got.len());
        reader.read_exact(&mut got[..piece]).with_context(|| format!("after {at} of {bytes} bytes"))?;
        stream::fill(at, &mut want[..piece]);
        if got[..piece] != want[..piece] {
            let wrong = got.iter().zip(&want).position(|(a, b)| a != b).unwrap_or(0);
            bail!("byte {} is not the one that was sent", at + wrong as u64);
        }
        at += piece as u64;
    }
    Ok(())
}

/// A UDP socket with patience, connected, so that ICMP errors reach it.
///
/// # Errors
/// When there is no route.
pub fn udp(to: SocketAddr, patience: Duration) -> std::io::Result<UdpSocket> {
    let socket = match to {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// Sends `count` datagrams of every size from 1 to `largest` in turn, each after the answer to the one before, over `sockets` sockets, and
/// compares the echoes.
///
/// # Errors
/// The first one that was lost or changed.
pub fn datagrams(to: SocketAddr, count: usize, largest: usize, sockets: usize) -> Result<()> {
    let sockets: Vec<UdpSocket> =
        (0..sockets).map(|_| udp(to, Duration::from_secs(3))).collect::<std::io::Result<_>>()?;
    let mut buffer = vec![0; largest + 1];
    for number in 0..count {
        let size = 1 + number % largest;
        let payload = stream::datagram(number as u64, size);
        let socket = &sockets[number % sockets.len()];
        socket.send(&payload).with_context(|| format!("datagram {number} of {size} bytes"))?;
        let len = socket.recv(&mut buffer).with_context(|| format!("echo of datagram {number}, {size} bytes"))?;
        ensure!(
            buffer[..len] == payload[..],
            "echo of datagram {number}: {len} bytes instead of {size}, or changed on the way"
        );
    }
    Ok(())
}

/// Asks the echo server who it is and whom it sees.
///
/// # Errors
/// When no answer comes, or an ICMP error does.
pub fn who(socket: &UdpSocket) -> Result<(String, SocketAddr)> {
    socket.send(WHO)?;
    let mut buffer = [0; 256];
    let len = socket.recv(&mut buffer)?;
    let text = std::str::from_utf8(&buffer[..len])?;
    let (pod, seen) = text.split_once(' ').with_context(|| format!("{text:?} is no answer to who"))?;
    Ok((pod.to_owned(), seen.parse()?))
}

/// How an attempt ended that was not to succeed, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error, or none: there was an answer.
    pub kind: Option<ErrorKind>,
    /// Time until it was known.
    pub after: Duration,
}

/// Connects by TCP and says how that failed.
pub fn tcp_refusal(to: SocketAddr, patience: Duration) -> Refusal {
    let began = Instant::now();
    let kind = TcpStream::connect_timeout(&to, patience).err().map(|error| error.kind());
    Refusal { kind, after: began.elapsed() }
}

/// Sends a datagram and says how waiting for its answer failed.
pub fn udp_refusal(to: SocketAddr, patience: Duration) -> Refusal {
    let began = Instant::now();
    let attempt = || {
        let socket = udp(to, patience)?;
        socket.send(WHO)?;
        socket.recv(&mut [0; 256])
    };
    let kind = attempt().err().map(|error| match error.kind() {
        // Linux says "try again" when the patience of a socket is at its end.
        ErrorKind::WouldBlock => ErrorKind::TimedOut,
        kind => kind,
    });
    Refusal { kind, after: began.elapsed() }
}

/// A counter of the calling thread's network namespace, as `/proc/net/snmp` has it: `("Tcp", "RetransSegs")`.
///
/// # Errors
/// When there is none of that name.
pub fn snmp(protocol: &str, name: &str) -> Result<u64> {
    // `/proc/net` is that of the process, not of the thread.
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
    let (names, values) = lines.next().zip(lines.next()).with_context(|| format!("no {protocol} in /proc/net/snmp"))?;
    let found = names.split(' ').zip(values.split(' ')).find(|(known, _)| *known == name);
    found.with_context(|| format!("no {name} of {protocol}"))?.1.parse().context("a counter")
}
