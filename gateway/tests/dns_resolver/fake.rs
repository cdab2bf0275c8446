//! A server upstream that does what the test says, over UDP and TCP on one port.

use std::{
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, SOA},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Udp,
    Tcp,
}

type Behaviour = dyn Fn(&Message, Via) -> Vec<Vec<u8>> + Send + Sync;

pub struct Fake {
    pub addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    behaviour: Arc<Mutex<Arc<Behaviour>>>,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub async fn start(behaviour: impl Fn(&Message, Via) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        // Another test may have the same port over TCP.
        let (addr, udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let addr = udp.local_addr().expect("address");
            if let Ok(tcp) = TcpListener::bind(addr).await {
                break (addr, udp, tcp);
            }
        };
        let asked = Arc::new(AtomicUsize::new(0));
        let behaviour: Arc<Mutex<Arc<Behaviour>>> = Arc::new(Mutex::new(Arc::new(behaviour)));
        let mut tasks = JoinSet::new();
        let (count, what) = (Arc::clone(&asked), Arc::clone(&behaviour));
        tasks.spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let Ok((len, from)) = udp.recv_from(&mut buffer).await else { return };
                count.fetch_add(1, Ordering::SeqCst);
                let behaviour = Arc::clone(&what.lock().expect("lock"));
                for answer in behaviour(&Message::from_vec(&buffer[..len]).expect("a good query"), Via::Udp) {
                    udp.send_to(&answer, from).await.expect("send");
                }
            }
        });
        let what = Arc::clone(&behaviour);
        tasks.spawn(async move {
            loop {
                let Ok((mut stream, _)) = tcp.accept().await else { return };
                let len = stream.read_u16().await.expect("length");
                let mut query = vec![0; len.into()];
                stream.read_exact(&mut query).await.expect("query");
                let behaviour = Arc::clone(&what.lock().expect("lock"));
                for answer in behaviour(&Message::from_vec(&query).expect("a good query"), Via::Tcp) {
                    let len = u16::try_from(answer.len()).expect("length").to_be_bytes();
                    stream.write_all(&[&len[..], &answer].concat()).await.expect("write");
                }
            }
        });
        Self { addr, asked, behaviour, _tasks: tasks }
    }

    /// One that answers A with 192.0.2.1 and this TTL.
    pub async fn good(ttl: u32) -> Self {
        Self::start(move |query, _| vec![answer(query, ttl)]).await
    }

    pub fn becomes(&self, behaviour: impl Fn(&Message, Via) -> Vec<Vec<u8>> + Send + Sync + 'static) {
        *self.behaviour.lock().expect("lock") = Arc::new(behaviour);
    }

    /// Questions over UDP so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

pub fn response(query: &Message) -> Message {
    let mut message = query.clone().into_response();
    message.metadata.recursion_available = true;
    message.edns = query.edns.clone();
    message
}

pub fn answer(query: &Message, ttl: u32) -> Vec<u8> {
    let mut message = response(query);
    message.add_answer(Record::from_rdata(query.queries[0].name().clone(), ttl, RData::A(A::new(192, 0, 2, 1))));
    message.to_vec().expect("answer")
}

pub fn rcode(query: &Message, code: ResponseCode) -> Vec<u8> {
    let mut message = response(query);
    message.metadata.response_code = code;
    message.to_vec().expect("answer")
}

pub fn nxdomain(query: &Message, ttl: u32, minimum: u32) -> Vec<u8> {
    let mut message = response(query);
    message.metadata.response_code = ResponseCode::NXDomain;
    let name = |text| Name::from_str(text).expect("name");
    let soa = SOA::new(name("ns.example.org."), name("root.example.org."), 1, 2, 3, 4, minimum);
    message.add_authority(Record::from_rdata(name("example.org."), ttl, RData::SOA(soa)));
    message.to_vec().expect("answer")
}
