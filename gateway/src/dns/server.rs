//! The listeners: one of each transport for every address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    DnsError, Limits,
    connections::{Activity, Busy, Connections},
    forwarder::{Forwarder, Step},
    places::Places,
    stats::{Dropped, Transport},
    udp::{Peer, Socket},
};

/// Queries are small; what is longer is cut by the socket and refused by the parser.
const UDP_BUFFER: usize = 4096;
/// More tasks than this on one socket wait for each other.
const MAX_READERS: usize = 4;
/// Tries to find a port that is free for both transports when the config says 0.
const PORT_TRIES: usize = 16;
/// After an error of the socket itself (out of buffers, of descriptors), before it is tried again.
const BACK_OFF: Duration = Duration::from_millis(50);

/// Bound sockets of one address.
pub struct Listener {
    addr: SocketAddr,
    udp: Socket,
    tcp: TcpListener,
}

impl Listener {
    /// Binds both transports.
    ///
    /// # Errors
    /// When the port is taken, or the address is not this machine's.
    pub async fn bind(addr: SocketAddr) -> Result<Self, DnsError> {
        let mut tries = if addr.port() == 0 { PORT_TRIES } else { 1 };
        loop {
            let udp = Socket::bind(addr).await.map_err(|error| failed(addr, "udp", error))?;
            let addr = udp.addr().map_err(|error| failed(addr, "udp", error))?;
            tries -= 1;
            // Tokio sets SO_REUSEADDR here, which for TCP only passes over connections of a listener that has gone.
            match TcpListener::bind(addr).await {
                Ok(tcp) => return Ok(Self { addr, udp, tcp }),
                Err(error) if tries == 0 => return Err(failed(addr, "tcp", error)),
                Err(_) => {}
            }
        }
    }

    /// The address, with its real port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until cancelled.
    pub fn serve(self, server: &Arc<Server>) {
        let socket = Arc::new(self.udp);
        for _ in 0..server.readers {
            server.tasks.spawn(udp(Arc::clone(&socket), Arc::clone(server)));
        }
        server.tasks.spawn(tcp(self.tcp, Arc::clone(server)));
    }
}

fn failed(addr: SocketAddr, transport: &'static str, source: io::Error) -> DnsError {
    match source.kind() {
        io::ErrorKind::AddrInUse => DnsError::InUse { addr, transport },
        _ => DnsError::Listen { addr, transport, source },
    }
}

/// What all listeners share.
pub struct Server {
    forwarder: Arc<Forwarder>,
    limits: Limits,
    /// Tasks that read one UDP socket: what the zone and the cache answer is answered by the reader itself.
    readers: usize,
    /// Of queries that wait for upstreams.
    waiting: Arc<Places>,
    connections: Arc<Connections>,
    /// Cancelled: everything ends.
    pub cancel: CancellationToken,
    /// Everything that runs.
    pub tasks: TaskTracker,
}

impl Server {
    /// With nothing to listen on yet.
    pub fn new(forwarder: Arc<Forwarder>, limits: Limits) -> Self {
        Self {
            forwarder,
            limits,
            readers: std::thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS),
            waiting: Places::new(limits.waiting, limits.waiting_per_client),
            connections: Connections::new(limits.tcp_connections, limits.tcp_per_source),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }
}

async fn udp(socket: Arc<Socket>, server: Arc<Server>) {
    let mut buffer = vec![0; UDP_BUFFER];
    loop {
        let received = tokio::select! {
            received = socket.receive(&mut buffer) => received,
            () = server.cancel.cancelled() => return,
        };
        let (len, peer) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!("receiving DNS queries: {error}");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        match server.forwarder.begin(&buffer[..len], peer.addr.ip(), Transport::Udp) {
            Step::Drop => {}
            Step::Reply(message) => send(&socket, &message, &peer).await,
            Step::Wait(waiting) => {
                let Some(place) = server.waiting.take(peer.addr.ip()) else {
                    server.forwarder.stats.dropped(Dropped::Overload);
                    continue;
                };
                let (socket, server) = (Arc::clone(&socket), Arc::clone(&server));
                server.tasks.clone().spawn(async move {
                    tokio::select! {
                        step = server.forwarder.finish(&waiting) => {
                            if let Step::Reply(message) = step {
                                send(&socket, &message, &peer).await;
                            }
                        }
                        () = server.cancel.cancelled() => {}
                    }
                    drop(place);
                });
            }
        }
    }
}

/// An answer that cannot be sent (no route back, no buffer) is lost like any datagram: the client asks again.
async fn send(socket: &Socket, message: &[u8], to: &Peer) {
    if let Err(error) = socket.send(message, to).await {
        tracing::debug!("answering {}: {error}", to.addr);
    }
}

async fn tcp(listener: TcpListener, server: Arc<Server>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = server.cancel.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!("accepting a DNS connection: {error}");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        if server.forwarder.view_of(peer.ip()).is_none() {
            server.forwarder.stats.dropped(Dropped::Stranger);
            continue;
        }
        let Some(admitted) = server.connections.admit(peer.ip()) else {
            server.forwarder.stats.dropped(Dropped::Overload);
            continue;
        };
        let server = Arc::clone(&server);
        server.tasks.clone().spawn(async move {
            tokio::select! {
                () = connection(stream, peer.ip(), &admitted.activity, &server) => {}
                () = admitted.end.cancelled() => tracing::debug!("{}: an idle connection made place for another", peer.ip()),
                () = server.cancel.cancelled() => {}
            }
            drop(admitted);
        });
    }
}

/// One connection: queries in any number at a time, answers as they come (RFC 7766).
async fn connection(stream: TcpStream, source: IpAddr, activity: &Activity, server: &Arc<Server>) {
    // Without it answers are only later.
    drop(stream.set_nodelay(true));
    let (mut read, mut write) = stream.into_split();
    let (sender, mut answers) = mpsc::channel::<Vec<u8>>(server.limits.tcp_pipeline.max(1));
    let idle = server.limits.tcp_idle;
    let writer = async move {
        while let Some(message) = answers.recv().await {
            let Ok(len) = u16::try_from(message.len()) else { return };
            let framed = [&len.to_be_bytes()[..], &message].concat();
            // A client that does not read is not waited for longer than one that does not write.
            if !matches!(timeout(idle, write.write_all(&framed)).await, Ok(Ok(()))) {
                return;
            }
        }
    };
    let reader = async {
        let pipeline = Arc::new(Semaphore::new(server.limits.tcp_pipeline.max(1)));
        let sender = sender;
        let places = server.limits.tcp_pipeline;
        while let Some((packet, busy)) = next_query(&mut read, idle, activity, &pipeline, places).await {
            match server.forwarder.begin(&packet, source, Transport::Tcp) {
                // RFC 7766 section 6.2.4: what is not a query ends the connection.
                Step::Drop => return,
                Step::Reply(message) => {
                    if sender.send(message).await.is_err() {
                        return;
                    }
                }
                Step::Wait(waiting) => {
                    let Ok(permit) = Arc::clone(&pipeline).acquire_owned().await else { return };
                    let Some(place) = server.waiting.take(source) else {
                        server.forwarder.stats.dropped(Dropped::Overload);
                        if let Step::Reply(message) = server.forwarder.overloaded(&waiting)
                            && sender.send(message).await.is_err()
                        {
                            return;
                        }
                        continue;
                    };
                    let (sender, server) = (sender.clone(), Arc::clone(server));
                    server.tasks.clone().spawn(async move {
                        tokio::select! {
                            step = server.forwarder.finish(&waiting) => {
                                if let Step::Reply(message) = step {
                                    // A client that hung up meanwhile needs no answer.
                                    drop(sender.send(message).await);
                                }
                            }
                            () = server.cancel.cancelled() => {}
                        }
                        drop((permit, place, busy));
                    });
                }
            }
        }
    };
    tokio::join!(reader, writer);
}

/// The next query; `None` when the client closed, or was idle too long with nothing in work.
async fn next_query(
    read: &mut OwnedReadHalf,
    idle: Duration,
    activity: &Activity,
    pipeline: &Semaphore,
    places: usize,
) -> Option<(Vec<u8>, Busy)> {
    let mut len = [0; 2];
    let mut have = 0;
    let mut busy = None;
    while have < 2 {
        match timeout(idle, read.read(&mut len[have..])).await {
            Ok(Ok(0) | Err(_)) => return None,
            Ok(Ok(more)) => {
                have += more;
                busy.get_or_insert_with(|| activity.begin());
            }
            Err(_) if have == 0 && pipeline.available_permits() < places => {}
            Err(_) => return None,
        }
    }
    let mut packet = vec![0; u16::from_be_bytes(len).into()];
    timeout(idle, read.read_exact(&mut packet)).await.ok()?.ok()?;
    Some((packet, busy?))
}
