//! Echo requests to VIPs, and what else ICMP may ask.

use super::{
    Row,
    checks::{HOST_UNREACHABLE, PROHIBITED, TIME_EXCEEDED, echoed, told, turned},
    dropped, pass, sent,
};
use crate::{
    cast::Cast,
    packets::{at, fragment, icmp, ping, with_len, with_ttl},
    world::World,
};

const ECHO: &[(&str, u64)] = &[("echo", 1)];

pub fn rows(cast: &Cast) -> Vec<Row> {
    let c = *cast;
    // The VIP has an endpoint.
    let serving = move |frame: Vec<u8>| {
        move |world: &mut World| {
            world.set_vip_endpoints(c.web, 1);
            frame.clone()
        }
    };
    let asked = move |data: &[u8]| ping(c.client, c.web, data);
    let (request, reply) = if c.v6 { (128, 129) } else { (8, 0) };
    let mut rows = Vec::new();
    for len in [0, 1, 2, 3, 7, 8, 56, 255, 999, 1400, 1500 - c.header() - 8] {
        let data: Vec<u8> = (0..len).map(|i| (i * 37 + len) as u8).collect();
        rows.push(Row::made(format!("an echo request of {len} bytes"), serving(asked(&data)), sent(ECHO, echoed)));
    }
    for (what, byte) in [("zeros", 0), ("ones", 0xff)] {
        rows.push(Row::made(format!("an echo request of {what}"), serving(asked(&[byte; 57])), sent(ECHO, echoed)));
    }
    // A checksum of all ones, and one that is zero: both are sums that carry all the way.
    for edge in [[0, 0], [0xff, 0xff]] {
        let bare = asked(&[0; 2]);
        let check = u16::from_be_bytes([bare[c.l4() + 2], bare[c.l4() + 3]]);
        let [high, low] = (if edge == [0, 0] { check } else { check.wrapping_sub(0x0800) }).to_be_bytes();
        rows.push(Row::made(
            format!("an echo request on the edge, {edge:?}"),
            serving(asked(&[high, low])),
            sent(ECHO, echoed),
        ));
    }
    let mut padded = asked(b"x");
    padded.resize(padded.len() + 18, 0);
    rows.push(Row::made("an echo request in a padded frame", serving(padded), sent(ECHO, echoed)));
    let whole = asked(&[0xa5; 600]);
    rows.extend([
        Row::made(
            "the first part of an echo request",
            serving(fragment(&whole, 0, 400)),
            sent(ECHO, move |case| {
                // Type and checksum are the only difference of what it carries.
                let mut mended = case.after.frame.clone();
                let l4 = c.l4() + if c.v6 { 8 } else { 0 };
                if mended[l4] != reply {
                    return Err(format!("type {}", mended[l4]));
                }
                mended[l4..l4 + 4].copy_from_slice(&case.before[l4..l4 + 4]);
                let outcome = crate::world::Outcome {
                    action: case.after.action,
                    frame: mended,
                    tags: case.after.tags.clone(),
                    same: false,
                    counted: Default::default(),
                };
                turned(&super::Case { after: &outcome, back: case.back.clone(), on: case.on.clone(), ..*case })
            }),
        ),
        Row::made("the middle of an echo request", serving(fragment(&whole, 200, 408)), sent(ECHO, turned)),
        Row::made("the end of an echo request", serving(fragment(&whole, 400, 608)), sent(ECHO, turned)),
        Row::new(
            "an echo request to a VIP without endpoints",
            asked(b"?"),
            sent(&[("no_endpoint", 1)], told(HOST_UNREACHABLE)),
        ),
        Row::new("the end of one", fragment(&whole, 400, 608), dropped(&[("no_endpoint", 1)])),
        Row::made(
            "an echo request to an unused address",
            serving(ping(c.client, c.unused, b"?")),
            sent(&[("unknown_vip", 1)], told(HOST_UNREACHABLE)),
        ),
        Row::made(
            "an echo request of a guest, who may not see it",
            serving(ping(c.guest, c.web, b"?")),
            sent(&[("view_denied", 1)], told(PROHIBITED)),
        ),
        Row::made(
            "an echo request that ends here",
            serving(with_ttl(asked(b"?"), 1)),
            sent(&[("ttl_exceeded", 1)], told(TIME_EXCEEDED)),
        ),
        Row::made("an echo request of a stranger", serving(ping(c.stranger, c.web, b"?")), dropped(&[("stranger", 1)])),
        Row::made("an echo request to the node", serving(ping(c.client, c.own, b"?")), pass(&[("not_ours", 1)])),
        Row::made("an echo request to somebody else", serving(ping(c.client, c.away, b"?")), pass(&[("not_ours", 1)])),
        Row::made("an echo request from the cluster side", serving(asked(b"?")), pass(&[("not_ours", 1)]))
            .at(crate::world::Role::Cluster),
        Row::made(
            "no more echoes than the rate allows",
            move |world| {
                world.set_vip_endpoints(c.web, 1);
                world.configure(|config| config.icmp_rate = 0);
                asked(b"?")
            },
            dropped(&[("rate_limited", 1)]),
        ),
        Row::made(
            "an echo reply to a VIP",
            serving(icmp(c.client, c.web, reply, 0, [0, 7, 0, 1], b"!")),
            dropped(&[("icmp_ignored", 1)]),
        ),
        Row::made(
            "another question to a VIP",
            serving(icmp(c.client, c.web, if c.v6 { 139 } else { 13 }, 0, [0; 4], &[0; 12])),
            dropped(&[("icmp_ignored", 1)]),
        ),
        Row::made(
            "a redirect to a VIP",
            serving(icmp(c.client, c.web, if c.v6 { 137 } else { 5 }, 1, [0; 4], &[0; 32])),
            dropped(&[("icmp_ignored", 1)]),
        ),
        Row::made(
            "an echo request cut short",
            serving(with_len(ping(c.client, c.web, b""), 7)),
            dropped(&[("malformed", 1)]),
        ),
        Row::made(
            "ICMP of nothing",
            serving(with_len(at(ping(c.client, c.away, b""), c.l4(), request), 3)),
            pass(&[("unparsed", 1)]),
        ),
    ]);
    rows
}
