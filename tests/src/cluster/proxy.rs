//! A TCP proxy between a client and the API server, so that a test can break their connections and keep new ones off.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::netns::Namespace;

/// Ends with its handle, with every connection.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Where it listens.
    pub address: SocketAddr,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    closed: AtomicBool,
    accepted: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Begins on threads of its own inside `namespace`, on any port of its loopback.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn start(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        namespace.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0").context("the proxy cannot listen")?;
            listener.set_nonblocking(true)?;
            let (address, shared) = (listener.local_addr()?, Arc::new(Shared::default()));
            let of_thread = shared.clone();
            // Threads are born in the namespace of the one that begins them.
            let thread = thread::spawn(move || run(&listener, to, &of_thread));
            Ok(Self { shared, thread: Some(thread), address })
        })
    }

    /// Breaks every connection that there is. Says how many.
    pub fn cut(&self) -> usize {
        let open = std::mem::take(&mut *self.shared.open.lock().unwrap_or_else(PoisonError::into_inner));
        // Who has closed already is not there any more.
        open.iter().filter(|stream| stream.shutdown(Shutdown::Both).is_ok()).count()
    }

    /// Whether new connections are closed at once.
    pub fn close(&self, closed: bool) {
        self.shared.closed.store(closed, Ordering::SeqCst);
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.cut();
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

fn run(listener: &TcpListener, to: SocketAddr, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((client, _)) if !shared.closed.load(Ordering::SeqCst) => {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                // A server that is away is its client's business: the connection ends.
                let _ = join(client, to, shared);
            }
            Ok(_) => {}
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn join(client: TcpStream, to: SocketAddr, shared: &Shared) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    client.set_nonblocking(false)?;
    {
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.extend([client.try_clone()?, server.try_clone()?]);
    }
    for (mut from, mut into) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
        thread::spawn(move || {
            let mut piece = [0; 16 << 10];
            while let Ok(length) = from.read(&mut piece) {
                if length == 0 || into.write_all(&piece[..length]).is_err() {
                    break;
                }
            }
            // The other end hears of it; when it is gone already there is nothing to tell.
            let _ = into.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}
