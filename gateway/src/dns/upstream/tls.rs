//! DNS over TLS (RFC 7858): one session per server, many questions in it at a time, answers in whatever order they come.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hickory_proto::op::Message;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::{
    Ask, ExchangeError, Upstream,
    message::{Opt, encode, match_answer},
};

/// A session without a question for so long is closed: servers close theirs sooner or later, and a new one costs two round trips.
const IDLE: Duration = Duration::from_secs(15);
/// How long connecting and the handshake may take. A question waits for less.
const CONNECT: Duration = Duration::from_secs(4);
/// Questions that wait to be written.
const QUEUE: usize = 256;

/// Why a server cannot be spoken to over TLS.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file of certificates.
    #[error("dns.tls.caFile: {}: {why}: give a PEM file with the certificates of your own authorities", path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing to check certificates against.
    #[error(
        "{server}: no certificate authorities on this node: install the package ca-certificates, or give dns.tls.caFile"
    )]
    NoRoots {
        /// The server.
        server: String,
    },
    /// What its certificate must be for.
    #[error("{server}: `{name}` is neither a host name nor an address: write one like tls://9.9.9.9#dns.quad9.net")]
    Name {
        /// The server.
        server: SocketAddr,
        /// The name.
        name: String,
    },
    /// The library refused its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Library(#[from] tokio_rustls::rustls::Error),
}

/// Whose certificates are believed: the system's authorities, read when the first server needs them, and those of a file.
#[derive(Debug, Default)]
pub struct Trust {
    ca_file: Option<(PathBuf, Vec<u8>)>,
    config: OnceLock<Arc<ClientConfig>>,
}

/// Of the same file with the same certificates in it.
impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.ca_file == other.ca_file
    }
}

impl Trust {
    /// The system's authorities and those in `ca_file`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(ca_file: Option<&Path>) -> Result<Self, TrustError> {
        let read = |path: &Path| match std::fs::read(path) {
            Ok(text) => Ok((path.to_owned(), text)),
            Err(error) => Err(TrustError::CaFile { path: path.to_owned(), why: format!("cannot be read: {error}") }),
        };
        Ok(Self { ca_file: ca_file.map(read).transpose()?, config: OnceLock::new() })
    }

    fn config(&self, server: &str) -> Result<Arc<ClientConfig>, TrustError> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let mut roots = RootCertStore::empty();
        // Some of a system's certificates are always too odd for the library.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some((path, text)) = &self.ca_file {
            add_file(&mut roots, path, text)?;
        }
        if roots.is_empty() {
            return Err(TrustError::NoRoots { server: server.to_owned() });
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"dot".to_vec()];
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

fn add_file(roots: &mut RootCertStore, path: &Path, text: &[u8]) -> Result<(), TrustError> {
    let wrong = |why: String| TrustError::CaFile { path: path.to_owned(), why };
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(text) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        found += 1;
    }
    if found == 0 { Err(wrong("has no certificate".to_owned())) } else { Ok(()) }
}

/// The way to one server: a session that is there, or will be when somebody asks.
pub struct Channel {
    to: Arc<Destination>,
    session: Mutex<Option<Arc<Session>>>,
    sessions: AtomicU64,
}

struct Destination {
    addr: SocketAddr,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("addr", &self.to.addr).field("name", &self.to.name).finish_non_exhaustive()
    }
}

/// A session as those who ask see it.
struct Session {
    questions: mpsc::Sender<Question>,
    fate: Arc<Fate>,
}

/// What became of a session.
#[derive(Default)]
struct Fate {
    /// Messages received: a session that says nothing any more is given up.
    received: AtomicU64,
    /// Why it ended.
    error: OnceLock<String>,
}

struct Question {
    ask: Ask,
    opt: Opt,
    answer: oneshot::Sender<Message>,
}

/// Questions that were written and wait for their answers, by ID.
type Waiting = Mutex<HashMap<u16, Question>>;

impl Channel {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// When certificates cannot be checked: no authorities, or `name` is none.
    pub fn new(addr: SocketAddr, name: &str, trust: &Trust) -> Result<Self, TrustError> {
        let server_name = ServerName::try_from(name.to_owned())
            .map_err(|_error| TrustError::Name { server: addr, name: name.to_owned() })?;
        let connector = TlsConnector::from(trust.config(&format!("tls://{addr}#{name}"))?);
        let to = Arc::new(Destination { addr, name: server_name, connector });
        Ok(Self { to, session: Mutex::default(), sessions: AtomicU64::new(0) })
    }

    /// Sessions begun so far.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// One question. A session that ends with the question in it may have been ended by the server for being old: the question is
    /// asked once more, in a new one.
    pub(super) async fn ask(
        &self,
        server: &Upstream,
        ask: &Ask,
        opt: Opt,
        deadline: Instant,
    ) -> Result<Message, ExchangeError> {
        loop {
            let (session, fresh) = self.session();
            let heard = session.fate.received.load(Ordering::Relaxed);
            match timeout_at(deadline, session.ask(ask, opt)).await {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {
                    self.forget(&session);
                    if fresh || heard == 0 {
                        let why = session.fate.error.get().cloned();
                        let why = why.unwrap_or_else(|| "the server closed the session".to_owned());
                        return Err(ExchangeError::Network(server.clone(), why));
                    }
                }
                Err(_) => {
                    if session.fate.received.load(Ordering::Relaxed) == heard {
                        self.forget(&session);
                    }
                    return Err(ExchangeError::Timeout(server.clone()));
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Session>>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session, and whether it was begun just now.
    fn session(&self) -> (Arc<Session>, bool) {
        let mut current = self.lock();
        if let Some(session) = current.as_ref().filter(|session| !session.questions.is_closed()) {
            return (Arc::clone(session), false);
        }
        self.sessions.fetch_add(1, Ordering::Relaxed);
        let (questions, asked) = mpsc::channel(QUEUE);
        let fate = Arc::new(Fate::default());
        let session = Arc::new(Session { questions, fate: Arc::clone(&fate) });
        tokio::spawn(run(Arc::clone(&self.to), asked, fate));
        *current = Some(Arc::clone(&session));
        (session, true)
    }

    /// Gives a session up, if it still is the current one. It ends with its last question.
    fn forget(&self, session: &Arc<Session>) {
        let mut current = self.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            *current = None;
        }
    }
}

impl Session {
    /// `None`: the session ended first.
    async fn ask(&self, ask: &Ask, opt: Opt) -> Option<Message> {
        let (answer, answered) = oneshot::channel();
        self.questions.send(Question { ask: ask.clone(), opt, answer }).await.ok()?;
        answered.await.ok()
    }
}

/// A session from its handshake to its end. What waits when it ends learns so by its channel being dropped.
async fn run(to: Arc<Destination>, asked: mpsc::Receiver<Question>, fate: Arc<Fate>) {
    let stream = match timeout(CONNECT, connect(&to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let _first = fate.error.set(error.to_string());
            return;
        }
        Err(_) => {
            let _first = fate.error.set("no TLS session in time".to_owned());
            return;
        }
    };
    let (mut read, mut write) = tokio::io::split(stream);
    let waiting = Waiting::default();
    let ended = tokio::select! {
        result = listen(&mut read, &waiting, &fate) => result,
        result = speak(&mut write, asked, &waiting) => result,
    };
    if let Err(error) = ended {
        tracing::debug!(server = %to.addr, "a TLS session ended: {error}");
        let _first = fate.error.set(error.to_string());
    }
    // The server may be gone; it then finds out by itself.
    drop(timeout(Duration::from_secs(1), write.shutdown()).await);
}

async fn connect(to: &Destination) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to.addr).await?;
    stream.set_nodelay(true)?;
    to.connector.connect(to.name.clone(), stream).await
}

/// Reads answers until the server closes.
async fn listen(read: &mut (impl AsyncRead + Unpin), waiting: &Waiting, fate: &Fate) -> io::Result<()> {
    loop {
        let mut answer = vec![0; usize::from(read.read_u16().await?)];
        read.read_exact(&mut answer).await?;
        fate.received.fetch_add(1, Ordering::Relaxed);
        let Some(id) = answer.first_chunk().map(|id| u16::from_be_bytes(*id)) else { continue };
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(message) = waiting.get(&id).and_then(|question| match_answer(id, &question.ask, &answer)) else {
            continue;
        };
        if let Some(question) = waiting.remove(&id) {
            // Whoever asked may have gone.
            drop(question.answer.send(message));
        }
    }
}

/// Writes questions until nobody asks any more.
async fn speak(
    write: &mut (impl AsyncWrite + Unpin),
    mut asked: mpsc::Receiver<Question>,
    waiting: &Waiting,
) -> io::Result<()> {
    loop {
        let question = match timeout(IDLE, asked.recv()).await {
            Ok(Some(question)) => question,
            // Given up, and nobody waits: whoever does holds the channel.
            Ok(None) => return Ok(()),
            Err(_) if prune(waiting) == 0 => return Ok(()),
            Err(_) => continue,
        };
        let query = {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= QUEUE {
                waiting.retain(|_, question| !question.answer.is_closed());
            }
            // At most half of the numbers are taken: the answers of a server that is far behind are of no use.
            if waiting.len() > usize::from(u16::MAX / 2) {
                return Err(io::Error::other("too many questions without an answer"));
            }
            let id = std::iter::repeat_with(rand::random).find(|id| !waiting.contains_key(id)).unwrap_or_default();
            let query = encode(id, &question.ask, question.opt);
            waiting.insert(id, question);
            query
        };
        let len = u16::try_from(query.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        write.write_all(&[&len.to_be_bytes()[..], &query].concat()).await?;
        write.flush().await?;
    }
}

/// Forgets questions for which nobody waits any more; how many are left.
fn prune(waiting: &Waiting) -> usize {
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.retain(|_, question| !question.answer.is_closed());
    waiting.len()
}
