//! What a server sends: from its bytes to the answer that clients and the kernel get.

use gateway::dns::{
    CacheConfig,
    learn::learn,
    upstream::{Ask, match_answer},
};
use gateway_common::dns::{
    build::is_wire_name,
    emit::{Request, Sending},
    name::fold,
};
use hickory_proto::{op::Message, rr::Name};

/// Any bytes as the answer to the question in them: nothing panics, what is learnt can be written again, and hickory reads it.
pub fn upstream(data: &[u8]) {
    let Some(header) = data.first_chunk::<12>() else { return };
    let mut end = 12;
    while let Some(&len) = data.get(end) {
        end += 1 + usize::from(len);
        if len == 0 {
            break;
        }
    }
    let Some(name) = data.get(12..end).filter(|name| is_wire_name(name)) else { return };
    let Some(&[high, low]) = data.get(end..end + 2) else { return };
    let id = u16::from_be_bytes([header[0], header[1]]);
    let ask = Ask { name: fold(name).into(), qtype: u16::from_be_bytes([high, low]), flags: header[3] & 1, via: 0 };
    let Some(message) = match_answer(id, &ask, data) else { return };
    let config = CacheConfig::default();
    let own = Name::from_ascii("cluster.local.").unwrap_or_default();
    let Ok(learnt) = learn(&ask, &message, &config, &own) else { return };
    assert!(learnt.ttl <= config.max_ttl || learnt.answers.is_empty(), "kept for {} s", learnt.ttl);
    assert!(learnt.answers.iter().all(|record| record.ttl <= config.max_ttl));
    let Ok(answer) = learnt.build(&ask.name, 1_000_000_000) else { return };
    let mut query = vec![header[0], header[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend_from_slice(name);
    query.extend([high, low, 0, 1]);
    let Ok(request) = Request::parse(&query) else { return };
    let reply = request.emit(&answer, &Sending::tcp(0, 0));
    let read = Message::from_vec(&reply);
    assert!(read.is_ok(), "{read:?}: {reply:02x?} of {data:02x?}");
    let reply = request.emit(&answer, &Sending::udp(&request.query, 0, 1));
    assert!(reply.len() <= request.query.limit() && Message::from_vec(&reply).is_ok());
}
