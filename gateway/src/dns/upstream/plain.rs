//! Over UDP from a fresh port each, and over TCP when the answer was cut.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use gateway_common::dns::wire::HEADER;
use hickory_proto::op::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};

use super::{
    Ask, ExchangeError, Late, TCP_PATIENCE, UDP_PATIENCE, Upstream,
    message::{Opt, encode, match_answer, mix_case},
};

/// Largest answer over UDP; the question allows less.
const LARGEST: usize = 4096;

/// One question and its answer. When that takes long, it may still come to `late`.
pub(super) async fn exchange(
    server: &Upstream,
    ask: &Ask,
    opt: Opt,
    mixed_case: bool,
    end: Instant,
    late: &mut Late,
) -> Result<Message, ExchangeError> {
    let network = |error: io::Error| ExchangeError::Network(server.clone(), error.to_string());
    let id = rand::random();
    let query = encode(id, ask, opt);
    let deadline = end.min(Instant::now() + UDP_PATIENCE);
    let mut asking = Box::pin(over_udp(server.addr, id, ask.clone(), query.clone(), mixed_case));
    let answer = match timeout_at(deadline, &mut asking).await {
        Ok(answer) => answer.map_err(network)?,
        Err(_) => {
            late.push(asking);
            return Err(ExchangeError::Timeout(server.clone()));
        }
    };
    if let Some(answer) = answer.filter(|answer| !answer.metadata.truncation) {
        return Ok(answer);
    }
    let deadline = end.max(Instant::now() + UDP_PATIENCE).min(Instant::now() + TCP_PATIENCE);
    match timeout_at(deadline, over_tcp(server.addr, &query)).await {
        Ok(Ok(bytes)) => match_answer(id, ask, &bytes).ok_or_else(|| ExchangeError::Mismatch(server.clone())),
        Ok(Err(error)) => Err(network(error)),
        Err(_) => Err(ExchangeError::Timeout(server.clone())),
    }
}

/// A socket of its own for each question: the port is as unpredictable as the ID, and only the server can be heard. `None`: the answer
/// has not the question's case, so that it is a guess, or from a server that does not keep it: TCP tells.
async fn over_udp(
    server: SocketAddr,
    id: u16,
    ask: Ask,
    mut query: Vec<u8>,
    mixed_case: bool,
) -> io::Result<Option<Message>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let question = mixed_case.then(|| mix_case(&mut query, ask.name.len()));
    socket.send(&query).await?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let len = socket.recv(&mut buffer).await?;
        let answer = &mut buffer[..len];
        if match_answer(id, &ask, answer).is_none() {
            continue;
        }
        let Some(question) = &question else { return Ok(match_answer(id, &ask, answer)) };
        match answer.get_mut(HEADER..HEADER + question.len()) {
            Some(echoed) if echoed == &question[..] => {
                // Names that the answer only points to are in the question's case.
                echoed[..ask.name.len()].copy_from_slice(&ask.name);
                return Ok(match_answer(id, &ask, answer));
            }
            _ => return Ok(None),
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let len = u16::try_from(query.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&[&len.to_be_bytes(), query].concat()).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
