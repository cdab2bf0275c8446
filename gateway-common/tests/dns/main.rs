//! The DNS code that kernel and forwarder share, with hickory as its oracle: what it reads, and what its answers say.

mod million;
mod properties;
mod tables;

use gateway_common::dns::{name::to_wire, wire};

/// A wire name.
fn name(text: &str) -> Vec<u8> {
    to_wire(text).expect(text)
}

/// A query without EDNS, RD set.
fn query(text: &str, qtype: u16) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(name(text));
    message.extend(qtype.to_be_bytes());
    message.extend(wire::IN.to_be_bytes());
    message
}

/// The query with OPT.
fn with_opt(mut message: Vec<u8>, size: u16, dnssec: bool, options: &[u8]) -> Vec<u8> {
    message[11] += 1;
    message.push(0);
    message.extend(wire::OPT_TYPE.to_be_bytes());
    message.extend(size.to_be_bytes());
    message.extend([0, 0, if dnssec { 0x80 } else { 0 }, 0]);
    message.extend((options.len() as u16).to_be_bytes());
    message.extend(options);
    message
}
