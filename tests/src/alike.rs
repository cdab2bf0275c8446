//! Whether the gateway answers as CoreDNS does: every name that a cluster's objects imply, in every type and EDNS variant, asked of both.
//!
//! Code, flags and records (as sets, section by section) are compared. What may differ is [`Known`], and docs/dns.md says why.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    str::FromStr as _,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{Name, RData, Record, RecordType},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::netns::Namespace;

/// The types that are asked for.
pub const TYPES: [RecordType; 11] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::SRV,
    RecordType::PTR,
    RecordType::TXT,
    RecordType::CNAME,
    RecordType::MX,
    RecordType::NS,
    RecordType::SOA,
    RecordType::ANY,
    RecordType::HTTPS,
];
/// EDNS size and DO; none: no EDNS.
pub const EDNS: [Option<(u16, bool)>; 5] =
    [None, Some((512, false)), Some((1232, false)), Some((4096, false)), Some((1232, true))];

/// What a name is, as far as a known difference depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The zone itself.
    Apex,
    /// `dns-version`.
    Version,
    /// There for the names below it: `svc`, a namespace, `_tcp.web.shop.svc`.
    Above,
    /// A Service with or without a ClusterIP.
    Service,
    /// `_http._tcp.web.shop.svc`.
    Port,
    /// An endpoint's own name.
    Endpoint,
    /// An ExternalName Service; with `true`, its target is an IP literal.
    External(bool),
    /// `10-42-0-7.shop.pod`.
    Pod,
    /// The reverse name of an address.
    Pointer,
    /// No such name.
    Nothing,
}

/// The differences that are meant: rows of docs/dns.md's table, which begin with [`Known::row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Known {
    /// Names above names, and `dns-version` for other types, exist.
    Exists,
    /// TXT and SOA of a name that does not exist.
    TextOfNothing,
    /// Addresses of a port's name.
    PortAddress,
    /// SRV of an endpoint's or pod's own name.
    EndpointService,
    /// Names below a pod's.
    BelowPod,
    /// Any type of an alias.
    AliasType,
    /// An alias whose target has no such address.
    AliasWithout,
    /// An alias to an IP literal.
    Literal,
    /// An IPv6 address with zeros at its end.
    EndingZeros,
    /// ANY.
    Any,
    /// The zone's name server.
    NameServer,
    /// Addresses beside service records that do not fit.
    Additional,
    /// Reverse names: other types, and addresses without a pointer.
    Reverse,
}

impl Known {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Exists,
        Self::TextOfNothing,
        Self::PortAddress,
        Self::EndpointService,
        Self::BelowPod,
        Self::AliasType,
        Self::AliasWithout,
        Self::Literal,
        Self::EndingZeros,
        Self::Any,
        Self::NameServer,
        Self::Additional,
        Self::Reverse,
    ];

    /// How its row in docs/dns.md begins.
    pub const fn row(self) -> &'static str {
        match self {
            Self::Exists => "`_tcp.web.shop.svc`, `dns` and every type but TXT of `dns-version`",
            Self::TextOfNothing => "TXT and SOA of a name that does not exist",
            Self::PortAddress => "A and AAAA of `_http._tcp.web.shop.svc`",
            Self::EndpointService => "SRV of an endpoint's own name, of a pod's name",
            Self::BelowPod => "`x.10-42-0-7.shop.pod`",
            Self::AliasType => "any type of an ExternalName",
            Self::AliasWithout => "an alias whose target has no address",
            Self::Literal => "an ExternalName that is an IP literal",
            Self::EndingZeros => "an endpoint's address that ends with `::`",
            Self::Any => "ANY",
            Self::NameServer => "NS",
            Self::Additional => "addresses beside service records",
            Self::Reverse => "reverse names: other types than PTR, and addresses that have none",
        }
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Absolute, without the last dot.
    pub name: String,
    /// What the name is.
    pub kind: Kind,
    /// Its type.
    pub rtype: RecordType,
    /// EDNS size and DO.
    pub edns: Option<(u16, bool)>,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({:?}", self.name, self.rtype, self.kind)?;
        match self.edns {
            None => write!(f, ")"),
            Some((size, dnssec_ok)) => write!(f, ", EDNS {size}{})", if dnssec_ok { " DO" } else { "" }),
        }
    }
}

/// What a server said: all but TTLs, the order of records, SRV weights, the SOA's numbers and the EDNS size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// NOERROR, NXDOMAIN and so on, as hickory spells them.
    pub code: String,
    /// AA, RD, AD, CD, and whether there was EDNS and DO in it. A cut answer is asked again over TCP.
    pub flags: [(&'static str, bool); 6],
    /// Answer, authority, additional (without OPT).
    pub sections: [BTreeSet<String>; 3],
}

/// Answers that are not alike.
#[derive(Clone, Debug)]
pub struct Difference {
    /// What was asked.
    pub question: Question,
    /// The gateway's answer.
    pub ours: Said,
    /// CoreDNS'.
    pub theirs: Said,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  gateway: {:?}\n  CoreDNS: {:?}", self.question, self.ours, self.theirs)
    }
}

/// What came of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Questions.
    pub asked: usize,
    /// Questions whose answers differ as they should.
    pub known: BTreeMap<Known, usize>,
    /// The others that differ.
    pub unknown: Vec<Difference>,
}

/// Every name that these objects imply, names above, below and beside them, and their addresses' pointers.
pub fn names<'o>(
    services: impl IntoIterator<Item = &'o Service>,
    slices: impl IntoIterator<Item = &'o EndpointSlice>,
    pods: impl IntoIterator<Item = (&'o str, IpAddr)>,
) -> BTreeMap<String, Kind> {
    let mut names = Names(BTreeMap::new());
    let slices: Vec<&EndpointSlice> = slices.into_iter().collect();
    for (name, kind) in [
        ("", Kind::Apex),
        ("no", Kind::Nothing),
        ("svc", Kind::Above),
        ("pod", Kind::Above),
        ("dns", Kind::Above),
        ("dns-version", Kind::Version),
        ("no.no.svc", Kind::Nothing),
        ("no.svc", Kind::Nothing),
    ] {
        names.add(name, kind);
    }
    for service in services {
        names.service(service, &slices);
    }
    for (namespace, address) in pods {
        let dashed = address.to_string().replace(['.', ':'], "-");
        names.add(&format!("{dashed}.{namespace}.pod"), Kind::Pod);
        names.add(&format!("x.{dashed}.{namespace}.pod"), Kind::Nothing);
        names.add(&format!("192-0-2-1.{namespace}.pod"), Kind::Nothing);
    }
    names.0
}

struct Names(BTreeMap<String, Kind>);

impl Names {
    /// A name below the cluster's domain. What is there stays, but for what was thought to be nothing.
    fn add(&mut self, name: &str, kind: Kind) {
        let absolute = if name.is_empty() { "cluster.local".to_owned() } else { format!("{name}.cluster.local") };
        self.put(absolute, kind);
    }

    fn put(&mut self, name: String, kind: Kind) {
        let place = self.0.entry(name).or_insert(kind);
        if *place == Kind::Nothing {
            *place = kind;
        }
    }

    fn service(&mut self, service: &Service, slices: &[&EndpointSlice]) {
        let (Some(name), Some(namespace)) = (&service.metadata.name, &service.metadata.namespace) else { return };
        let Some(spec) = &service.spec else { return };
        let own = format!("{name}.{namespace}.svc");
        self.add(&format!("{namespace}.svc"), Kind::Above);
        for beside in
            [format!("no.{namespace}.svc"), format!("*.{namespace}.svc"), format!("no.{own}"), format!("*.{own}")]
        {
            self.add(&beside, Kind::Nothing);
        }
        if let Some(target) = spec.external_name.as_ref().filter(|_| spec.type_.as_deref() == Some("ExternalName")) {
            self.add(&own, Kind::External(target.parse::<IpAddr>().is_ok()));
            return;
        }
        let headless = spec.cluster_ip.as_deref() == Some("None");
        let slices = slices.iter().filter(|slice| {
            let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
            slice.metadata.namespace.as_ref() == Some(namespace) && label == Some(name)
        });
        let mut ready = false;
        let mut ports = BTreeSet::new();
        for slice in slices {
            for endpoint in slice.endpoints.iter().flatten() {
                let unready = endpoint.conditions.as_ref().is_some_and(|conditions| conditions.ready == Some(false));
                let counts = !unready || spec.publish_not_ready_addresses == Some(true);
                let Some(address) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) else {
                    continue;
                };
                let dashed = address.to_string().replace(['.', ':'], "-");
                let label = endpoint.hostname.clone().filter(|hostname| !hostname.is_empty()).unwrap_or(dashed);
                // Of what is not ready somebody else may have made a name.
                self.add(&format!("{label}.{own}"), if counts { Kind::Endpoint } else { Kind::Nothing });
                self.put(reverse(address), Kind::Pointer);
                if counts {
                    ready = true;
                    ports.extend(slice.ports.iter().flatten().filter_map(|port| port.name.clone()));
                }
            }
        }
        let kind = |kind| if headless && !ready { Kind::Nothing } else { kind };
        self.add(&own, kind(Kind::Service));
        for ip in spec.cluster_ips.iter().flatten().filter_map(|text| text.parse().ok()) {
            self.put(reverse(ip), Kind::Pointer);
        }
        for port in spec.ports.iter().flatten() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            self.add(&format!("_no._{protocol}.{own}"), Kind::Nothing);
            if let Some(name) = port.name.as_ref().filter(|name| !name.is_empty()) {
                // A headless Service has the ports of its endpoints.
                if headless && !ports.contains(name) {
                    self.add(&format!("_{name}._{protocol}.{own}"), Kind::Nothing);
                    continue;
                }
                self.add(&format!("_{name}._{protocol}.{own}"), Kind::Port);
                self.add(&format!("_{protocol}.{own}"), Kind::Above);
            }
        }
    }
}

/// The name that an address' pointer is at.
pub fn reverse(address: IpAddr) -> String {
    Name::from(address).to_ascii().trim_end_matches('.').to_owned()
}

/// Each name in every type and EDNS variant.
pub fn questions(names: &BTreeMap<String, Kind>) -> Vec<Question> {
    let mut all = Vec::with_capacity(names.len() * TYPES.len() * EDNS.len());
    for (name, kind) in names {
        for rtype in TYPES {
            all.extend(EDNS.map(|edns| Question { name: name.clone(), kind: *kind, rtype, edns }));
        }
    }
    all
}

/// Asks both servers, from that namespace.
///
/// # Errors
/// When one of them does not answer.
pub fn compare(from: &Namespace, gateway: SocketAddr, coredns: SocketAddr, questions: &[Question]) -> Result<Report> {
    from.enter(|| {
        let (mut ours, mut theirs) = (Client::new(gateway)?, Client::new(coredns)?);
        let mut report = Report { asked: questions.len(), ..Report::default() };
        for question in questions {
            let (ours, theirs) = (ours.ask(question)?, theirs.ask(question)?);
            if ours == theirs {
                continue;
            }
            match known(question, &ours, &theirs) {
                Some(known) => *report.known.entry(known).or_default() += 1,
                None => report.unknown.push(Difference { question: question.clone(), ours, theirs }),
            }
        }
        Ok(report)
    })
}

/// Which known difference it is, if it is one.
fn known(question: &Question, ours: &Said, theirs: &Said) -> Option<Known> {
    use RecordType::{A, AAAA, ANY, CNAME, NS, PTR, SOA, SRV, TXT};
    let (exists, theirs_exists) = (ours.code == "NoError", theirs.code == "NoError");
    let (empty, theirs_empty) = (ours.sections[0].is_empty(), theirs.sections[0].is_empty());
    let rtype = question.rtype;
    let is = |holds: bool, known| holds.then_some(known);
    if rtype == ANY {
        return Some(Known::Any);
    }
    match question.kind {
        Kind::Nothing if question.name.contains(".pod.") && theirs_exists && rtype != SOA && rtype != TXT => {
            is(!exists, Known::BelowPod)
        }
        Kind::Nothing => {
            is(matches!(rtype, TXT | SOA) && !exists && theirs_exists && theirs_empty, Known::TextOfNothing)
        }
        Kind::Apex if rtype == NS => is(ours.sections[0] == theirs.sections[0], Known::NameServer),
        Kind::Apex | Kind::Above | Kind::Version => is(exists && empty && !theirs_exists, Known::Exists),
        Kind::Port if matches!(rtype, A | AAAA) => is(exists && empty && !theirs_empty, Known::PortAddress),
        Kind::Port | Kind::Service if rtype == SRV => {
            let fewer = ours.sections[2].is_subset(&theirs.sections[2]);
            is(fewer && ours.code == theirs.code && ours.sections[0] == theirs.sections[0], Known::Additional)
        }
        Kind::Port | Kind::Service => None,
        Kind::Endpoint if question.name.split('.').next().is_some_and(|label| label.ends_with('-')) => {
            is(!exists, Known::EndingZeros)
        }
        Kind::Endpoint | Kind::Pod => is(rtype == SRV && exists && empty && !theirs_empty, Known::EndpointService),
        Kind::External(true) => is(exists && !theirs_exists, Known::Literal),
        Kind::External(false) if matches!(rtype, A | AAAA | CNAME) => {
            is(!empty && ours.sections[0].is_superset(&theirs.sections[0]), Known::AliasWithout)
        }
        Kind::External(false) => is(!empty && theirs_empty, Known::AliasType),
        Kind::Pointer => is(empty && theirs_empty && (rtype != PTR || ours.code == theirs.code), Known::Reverse),
    }
}

struct Client {
    server: SocketAddr,
    udp: UdpSocket,
    number: u16,
    buffer: Vec<u8>,
}

impl Client {
    const TRIES: usize = 4;

    fn new(server: SocketAddr) -> Result<Self> {
        let udp = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        udp.connect(server)?;
        udp.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(Self { server, udp, number: 0, buffer: vec![0; 65_535] })
    }

    fn ask(&mut self, question: &Question) -> Result<Said> {
        let mut message = Message::query();
        self.number = self.number.wrapping_add(1);
        message.metadata.id = self.number;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_str(&question.name)?, question.rtype));
        if let Some((size, dnssec_ok)) = question.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(size).set_dnssec_ok(dnssec_ok);
            message.set_edns(edns);
        }
        let packet = message.to_vec()?;
        let answer = self.over_udp(&packet).with_context(|| format!("{}: {question}", self.server))?;
        if answer.metadata.truncation {
            return self
                .over_tcp(&packet)
                .map(|answer| said(&answer))
                .with_context(|| format!("{}/tcp: {question}", self.server));
        }
        Ok(said(&answer))
    }

    fn over_udp(&mut self, packet: &[u8]) -> Result<Message> {
        for _ in 0..Self::TRIES {
            self.udp.send(packet)?;
            // Late answers to earlier tries may wait in front of it.
            while let Ok(len) = self.udp.recv(&mut self.buffer) {
                if self.buffer[..len].starts_with(&packet[..2]) {
                    return Message::from_vec(&self.buffer[..len]).map_err(|error| anyhow!("unreadable: {error}"));
                }
            }
        }
        bail!("no answer")
    }

    fn over_tcp(&self, packet: &[u8]) -> Result<Message> {
        let mut stream = TcpStream::connect_timeout(&self.server, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(&[&u16::try_from(packet.len())?.to_be_bytes()[..], packet].concat())?;
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut answer = vec![0; u16::from_be_bytes(len).into()];
        stream.read_exact(&mut answer)?;
        Ok(Message::from_vec(&answer)?)
    }
}

fn said(message: &Message) -> Said {
    let meta = &message.metadata;
    let edns = message.edns.as_ref();
    Said {
        code: format!("{:?}", meta.response_code),
        flags: [
            ("aa", meta.authoritative),
            ("rd", meta.recursion_desired),
            ("ad", meta.authentic_data),
            ("cd", meta.checking_disabled),
            ("edns", edns.is_some()),
            ("do", edns.is_some_and(|edns| edns.flags().dnssec_ok)),
        ],
        sections: [&message.answers, &message.authorities, &message.additionals]
            .map(|records| records.iter().map(line).collect()),
    }
}

fn line(record: &Record) -> String {
    let data = match &record.data {
        // Whose zone it is counts, not its numbers.
        RData::SOA(_) => String::new(),
        // A share of a hundred; the number of shares is among the known differences.
        RData::SRV(srv) => format!("{} {} {}", srv.priority, srv.port, srv.target),
        data => data.to_string(),
    };
    format!("{} {} {data}", record.name, record.record_type()).trim_end().to_ascii_lowercase()
}
