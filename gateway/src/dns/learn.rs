//! What a server's answer is worth: its records without compression, and for how long they hold (RFC 2308).

use gateway_common::{
    dns::{
        build::{Answer, BuildError, EntryBuilder, Record},
        wire,
    },
    limits::DNS_MAX_TTLS,
    maps::dns_key,
};
use hickory_proto::{
    ProtoError,
    op::{Message, ResponseCode},
    rr::{Name, RData, Record as HickoryRecord, RecordType},
    serialize::binary::{BinEncodable, BinEncoder, NameEncoding},
};

use super::{CacheConfig, clock, upstream::Ask, zone::ALL_VIEWS};

/// A record in wire format, nothing compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rr {
    /// Owner.
    pub owner: Vec<u8>,
    /// Type.
    pub rtype: u16,
    /// Class.
    pub class: u16,
    /// TTL in seconds.
    pub ttl: u32,
    /// Data.
    pub rdata: Vec<u8>,
}

impl Rr {
    /// For the builder.
    pub fn as_record(&self) -> Record<'_> {
        Record { owner: &self.owner, rtype: self.rtype, class: self.class, ttl: self.ttl, rdata: &self.rdata }
    }
}

/// A server's answer, ready to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// Response code.
    pub rcode: u16,
    /// Answer records.
    pub answers: Vec<Rr>,
    /// Authority records.
    pub authorities: Vec<Rr>,
    /// Additional records, without OPT.
    pub additionals: Vec<Rr>,
    /// Seconds for which it may be served again; 0: only to those who wait for it.
    pub ttl: u32,
    /// Its aliases end in this name of the cluster's, which must be asked for here.
    pub leads: Option<Box<[u8]>>,
}

/// Names that an answer's aliases are followed to.
const MAX_ALIASES: usize = 32;
const DNAME: u16 = 39;
/// DNAMEs have signatures of their own.
const RRSIG: u16 = 46;

/// Most records of an answer. Its bytes are bounded by the transports: 4,096 over UDP, 65,535 over TCP and TLS.
const MAX_RECORDS: usize = 2_000;

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// A record that cannot be written without compression.
    #[error("a record cannot be encoded: {0}")]
    Record(#[from] ProtoError),
    /// Too long without compression.
    #[error("{0}")]
    Build(BuildError),
    /// More than anybody has a use for.
    #[error("{0} records are too many: at most {MAX_RECORDS} are taken")]
    TooMany(usize),
}

/// What a server's message is worth.
///
/// Of the names in `own`, the cluster's domain, others have nothing to say: their records, and reverse names that point there, are left
/// out, whoever may see them; an alias that leads there is followed here.
///
/// AD is not taken over: nobody here has validated anything, and the way to the server is not protected.
///
/// # Errors
/// When its records are too many, or cannot be written without compression.
pub fn learn(ask: &Ask, message: &Message, config: &CacheConfig, own: &Name) -> Result<Learnt, LearnError> {
    let records = message.answers.len() + message.authorities.len() + message.additionals.len();
    if records > MAX_RECORDS {
        return Err(LearnError::TooMany(records));
    }
    let answers = belonging(message, own);
    let mut learnt = Learnt {
        rcode: u16::from(message.metadata.response_code) & wire::RCODE,
        answers: convert(answers.iter().copied(), config.max_ttl)?,
        ttl: u32::MAX,
        ..Learnt::default()
    };
    let wanted = RecordType::from(ask.qtype);
    let positive = message.metadata.response_code == ResponseCode::NoError
        && answers.iter().any(|record| record.record_type() == wanted);
    let dnssec_ok = ask.flags & dns_key::DO != 0;
    let alias = |record: &&HickoryRecord| match &record.data {
        RData::CNAME(target) if !positive && own.zone_of(&target.0) => Some(target.0.to_lowercase()),
        _ => None,
    };
    if let Some(target) = answers.iter().find_map(alias) {
        learnt.rcode = wire::NOERROR;
        learnt.leads = Some(target.to_bytes()?.into());
    } else if positive {
        // Without DO nobody needs the authority of an answer; with it, proofs of wildcards stand there.
        if dnssec_ok {
            learnt.authorities = convert(&message.authorities, config.max_ttl)?;
        }
        let others = message.additionals.iter().filter(|record| !own.zone_of(&record.name));
        learnt.additionals = convert(others, config.max_ttl)?;
        if learnt.answers.len() + learnt.authorities.len() + learnt.additionals.len() > DNS_MAX_TTLS {
            learnt.additionals.clear();
        }
    } else {
        let soa = message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(ttl_of(record).min(soa.minimum)),
            _ => None,
        });
        // Without SOA nobody says for how long it holds (RFC 2308 section 5), unless it was said and is left out.
        let left_out = message.answers.iter().any(|record| is_of(record, own));
        learnt.ttl =
            soa.unwrap_or(if left_out { config.negative_ttl } else { 0 }).min(config.negative_ttl).min(config.max_ttl);
        let kept = message.authorities.iter().filter(|record| dnssec_ok || record.record_type() == RecordType::SOA);
        learnt.authorities = convert(kept, learnt.ttl)?;
    }
    let records = learnt.answers.iter().chain(&learnt.authorities).chain(&learnt.additionals);
    learnt.ttl = records.fold(learnt.ttl, |ttl, record| ttl.min(record.ttl));
    Ok(learnt)
}

impl Learnt {
    /// The answer for questions for `name`, learnt at `now`.
    ///
    /// # Errors
    /// When it is too long for a message.
    pub fn build(&self, name: &[u8], now: u64) -> Result<Answer, LearnError> {
        let expires = now.saturating_add(clock::seconds(self.ttl));
        let builder = EntryBuilder::learnt(name, ALL_VIEWS, now, expires).map_err(LearnError::Build)?;
        self.fill(builder.rcode(self.rcode))
    }

    /// The answer for questions for `name` that the zone gives, after its aliases led elsewhere.
    ///
    /// # Errors
    /// When it is too long for a message.
    pub fn build_after(&self, name: &[u8], aliases: &[Rr]) -> Result<Answer, LearnError> {
        let mut builder = EntryBuilder::zone(name, ALL_VIEWS).map_err(LearnError::Build)?.rcode(self.rcode);
        for alias in aliases {
            builder.answer(alias.as_record()).map_err(LearnError::Build)?;
        }
        self.fill(builder)
    }

    fn fill(&self, mut builder: EntryBuilder) -> Result<Answer, LearnError> {
        let mut fill = || {
            for record in &self.answers {
                builder.answer(record.as_record())?;
            }
            for record in &self.authorities {
                builder.authority(record.as_record())?;
            }
            for record in &self.additionals {
                builder.additional(record.as_record())?;
            }
            Ok(())
        };
        fill().map_err(LearnError::Build)?;
        builder.build().map_err(LearnError::Build)
    }

    /// The records of a message of the gateway's own.
    ///
    /// # Errors
    /// When it is not one.
    pub fn of_message(message: &[u8]) -> Result<Self, LearnError> {
        let message = Message::from_vec(message).map_err(|error| LearnError::Record(error.into()))?;
        Ok(Self {
            rcode: u16::from(message.metadata.response_code) & wire::RCODE,
            answers: convert(&message.answers, u32::MAX)?,
            authorities: convert(&message.authorities, u32::MAX)?,
            additionals: convert(&message.additionals, u32::MAX)?,
            ttl: 0,
            leads: None,
        })
    }
}

fn convert<'a>(records: impl IntoIterator<Item = &'a HickoryRecord>, cap: u32) -> Result<Vec<Rr>, ProtoError> {
    records.into_iter().map(|record| convert_one(record, cap)).collect()
}

/// The records of the answer section that are about the question: of its name, of what aliases lead to, and DNAMEs above those. What a
/// server says of other names beside it is nothing that it was asked. Nothing of the names in `own`.
fn belonging<'m>(message: &'m Message, own: &Name) -> Vec<&'m HickoryRecord> {
    let Some(question) = message.queries.first() else { return Vec::new() };
    let mut names = vec![question.name()];
    // Aliases may come in any order; each round follows at least one, or is the last.
    while names.len() < MAX_ALIASES {
        let before = names.len();
        for record in &message.answers {
            if let RData::CNAME(target) = &record.data
                && names.contains(&&record.name)
                && !own.zone_of(&record.name)
                && !names.contains(&&target.0)
            {
                names.push(&target.0);
            }
        }
        if names.len() == before {
            break;
        }
    }
    let above = |record: &HickoryRecord| {
        [DNAME, RRSIG].contains(&u16::from(record.record_type())) && names.iter().any(|name| record.name.zone_of(name))
    };
    let about = |record: &&HickoryRecord| (names.contains(&&record.name) || above(record)) && !is_of(record, own);
    message.answers.iter().filter(about).collect()
}

/// A record of one of the names in `own`, or a reverse name that points there.
fn is_of(record: &HickoryRecord, own: &Name) -> bool {
    own.zone_of(&record.name) || matches!(&record.data, RData::PTR(target) if own.zone_of(&target.0))
}

/// A TTL with its highest bit set counts as zero (RFC 2181 section 8).
fn ttl_of(record: &HickoryRecord) -> u32 {
    if record.ttl > i32::MAX.unsigned_abs() { 0 } else { record.ttl }
}

fn convert_one(record: &HickoryRecord, cap: u32) -> Result<Rr, ProtoError> {
    let mut rdata = Vec::new();
    let mut encoder = BinEncoder::new(&mut rdata);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    record.data.emit(&mut encoder)?;
    Ok(Rr {
        owner: record.name.to_bytes()?,
        rtype: record.record_type().into(),
        class: record.dns_class.into(),
        ttl: ttl_of(record).min(cap),
        rdata,
    })
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::{
        op::{OpCode, Query},
        rr::rdata::{A, CNAME, PTR, SOA},
    };

    use super::*;
    use crate::dns::name;

    const CONFIG: CacheConfig =
        CacheConfig { entries: 10, memory: 1 << 20, max_ttl: 3600, negative_ttl: 60, stale: 0, failure_ttl: 2 };

    fn ask(text: &str, qtype: u16) -> Ask {
        Ask { name: name::from_text(text).expect("name"), qtype, flags: 0, via: 0 }
    }

    fn message(rcode: ResponseCode) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        message.metadata.response_code = rcode;
        message.add_query(Query::query(named("www.example."), RecordType::A));
        message
    }

    fn named(text: &str) -> Name {
        Name::from_str(text).expect("name")
    }

    fn own() -> Name {
        named("cluster.local.")
    }

    fn soa(ttl: u32, minimum: u32) -> HickoryRecord {
        let soa = SOA::new(named("ns.example."), named("root.example."), 1, 2, 3, 4, minimum);
        HickoryRecord::from_rdata(named("example."), ttl, RData::SOA(soa))
    }

    fn a(name: &str, ttl: u32) -> HickoryRecord {
        HickoryRecord::from_rdata(named(name), ttl, RData::A(A::new(192, 0, 2, 1)))
    }

    #[test]
    fn an_answer_holds_for_its_shortest_ttl_capped() {
        let mut message = message(ResponseCode::NoError);
        message.add_answer(HickoryRecord::from_rdata(
            named("www.example."),
            300,
            RData::CNAME(CNAME(named("Web.example."))),
        ));
        message.add_answer(a("Web.example.", 20));
        assert_eq!(learn(&ask("www.example", 1), &message, &CONFIG, &own()).expect("learnt").ttl, 20);
        message.answers[1].ttl = 1_000_000;
        message.answers[0].ttl = 1_000_000;
        let learnt = learn(&ask("www.example", 1), &message, &CONFIG, &own()).expect("learnt");
        assert_eq!(learnt.ttl, 3600);
        assert_eq!(learnt.answers[0].ttl, 3600, "what the client sees is capped too");
    }

    #[test]
    fn no_such_name_holds_for_the_smallest_of_soa_ttl_minimum_and_config() {
        for (ttl, minimum, expected) in [(300, 20, 20), (10, 900, 10), (900, 900, 60), (0, 900, 0)] {
            let mut message = message(ResponseCode::NXDomain);
            message.add_authority(soa(ttl, minimum));
            let learnt = learn(&ask("www.example", 1), &message, &CONFIG, &own()).expect("learnt");
            assert_eq!((learnt.ttl, learnt.rcode), (expected, 3), "{ttl} {minimum}");
        }
    }

    #[test]
    fn a_negative_answer_without_soa_is_not_kept() {
        let learnt = learn(&ask("www.example", 1), &message(ResponseCode::NXDomain), &CONFIG, &own()).expect("learnt");
        assert_eq!(learnt.ttl, 0);
        let learnt = learn(&ask("www.example", 1), &message(ResponseCode::NoError), &CONFIG, &own()).expect("learnt");
        assert_eq!(learnt.ttl, 0);
    }

    #[test]
    fn a_chain_that_ends_in_nothing_is_negative() {
        let mut message = message(ResponseCode::NoError);
        message.add_answer(HickoryRecord::from_rdata(
            named("www.example."),
            300,
            RData::CNAME(CNAME(named("web.example."))),
        ));
        message.add_authority(soa(300, 7));
        assert_eq!(learn(&ask("www.example", 1), &message, &CONFIG, &own()).expect("learnt").ttl, 7);
    }

    #[test]
    fn what_a_server_says_of_other_names_is_left_out() {
        let cname = |from: &str, to: &str| HickoryRecord::from_rdata(named(from), 300, RData::CNAME(CNAME(named(to))));
        let mut message = message(ResponseCode::NoError);
        // In no order, one of them in a circle, and beside them what nobody asked for.
        message.add_answer(a("end.example.", 300));
        message.add_answer(a("bank.example.", 300));
        message.add_answer(cname("Web.example.", "end.example."));
        message.add_answer(cname("other.example.", "bank.example."));
        message.add_answer(cname("www.example.", "web.example."));
        let learnt = learn(&ask("www.example", 1), &message, &CONFIG, &own()).expect("learnt");
        let owners: Vec<String> = learnt.answers.iter().map(|rr| name::to_text(&rr.owner).to_lowercase()).collect();
        assert_eq!(
            owners.iter().map(|name| name.trim_end_matches('.')).collect::<Vec<_>>(),
            ["end.example", "web.example", "www.example"]
        );
        message.answers.retain(|record| record.name == named("bank.example."));
        let learnt = learn(&ask("www.example", 1), &message, &CONFIG, &own()).expect("learnt");
        assert_eq!((learnt.answers.len(), learnt.ttl), (0, 0), "no answer, and not kept");
    }

    #[test]
    fn of_the_clusters_own_names_nobody_else_is_believed() {
        let cname = |from: &str, to: &str| HickoryRecord::from_rdata(named(from), 300, RData::CNAME(CNAME(named(to))));
        let mut message = message(ResponseCode::NoError);
        message.add_answer(cname("www.example.", "web.example."));
        message.add_answer(cname("web.example.", "Web.secret.svc.cluster.local."));
        message.add_answer(a("Web.secret.svc.cluster.local.", 30));
        message.add_additional(a("other.secret.svc.cluster.local.", 30));
        let learnt = learn(&ask("www.example", 1), &message, &CONFIG, &own()).expect("learnt");
        assert_eq!((learnt.answers.len(), learnt.additionals.len(), learnt.ttl), (2, 0, 300), "the aliases");
        assert_eq!(learnt.leads, name::from_text("web.secret.svc.cluster.local"));
        // Who asks for the alias itself has it.
        let learnt = learn(&ask("www.example", 5), &message, &CONFIG, &own()).expect("learnt");
        assert_eq!((learnt.answers.len(), learnt.leads), (2, None));

        let mut message = Message::response(1, OpCode::Query);
        message.add_query(Query::query(named("5.1.244.10.in-addr.arpa."), RecordType::PTR));
        for target in ["10-244-1-5.web.secret.svc.cluster.local.", "five.example."] {
            let data = RData::PTR(PTR(named(target)));
            message.add_answer(HickoryRecord::from_rdata(named("5.1.244.10.in-addr.arpa."), 300, data));
        }
        let learnt = learn(&ask("5.1.244.10.in-addr.arpa", 12), &message, &CONFIG, &own()).expect("learnt");
        assert_eq!(learnt.answers.iter().map(|rr| name::to_text(&rr.rdata)).collect::<Vec<_>>(), ["five.example"]);
        message.answers.truncate(1);
        let learnt = learn(&ask("5.1.244.10.in-addr.arpa", 12), &message, &CONFIG, &own()).expect("learnt");
        assert_eq!(
            (learnt.rcode, learnt.answers.len(), learnt.ttl),
            (0, 0, CONFIG.negative_ttl),
            "nobody asks for it each time"
        );
    }

    #[test]
    fn a_ttl_with_its_highest_bit_set_is_zero() {
        let mut message = message(ResponseCode::NoError);
        message.add_answer(a("www.example.", 0x8000_0001));
        assert_eq!(learn(&ask("www.example", 1), &message, &CONFIG, &own()).expect("learnt").ttl, 0);
    }
}
