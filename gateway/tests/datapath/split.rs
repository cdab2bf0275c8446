//! What is too big for its way and may be fragmented. A run of one frame shows the last piece, which leaves as the program ends.

use crate::{
    cast::{GATEWAY_MAC, V4, port},
    packets::{Ends, may_fragment, udp, with_ip},
    world::{Action, Tier, in_turn, skip},
};

/// Where the transport header begins.
const L4: usize = 34;

#[test]
fn what_is_too_big_and_may_be_fragmented_is_cut_in_tc() {
    if skip() {
        return;
    }
    in_turn(|world| {
        let ends = Ends::new(V4.client, 30, V4.web, port::NARROW_UDP);
        let payload: Vec<u8> = (0..1400_u32).map(|i| (i % 251) as u8).collect();
        let frame = may_fragment(udp(ends, &payload));
        world.begin(Tier::Xdp, false, (0, 0));
        let outcome = world.uplink(&frame);
        let left = [("flow_created", 1), ("too_big_tc", 1)].into();
        assert_eq!((outcome.action, outcome.counted), (Action::Pass, left), "for TC");
        assert_eq!(outcome.frame, frame, "as it is");

        world.begin(Tier::Tc, false, (0, 0));
        let outcome = world.uplink(&frame);
        let sent = [("flow_created", 1), ("forwarded", 1), ("fragmented", 1)].into();
        assert_eq!((outcome.action, outcome.counted), (Action::Redirect, sent));
        // 1,408 bytes in pieces of 576.
        let last = outcome.frame;
        assert_eq!((&last[6..12], last.len() - L4), (&GATEWAY_MAC[..], 1408 - 2 * 576));
        assert_eq!(last[20..22], [0, 144], "its offset, and no more behind it");
        assert_eq!(last[L4..], payload[2 * 576 - 8..], "its part of the datagram");
        assert_eq!(with_ip(last.clone(), |_| {}), last, "the header's checksum");

        // A fragment of a larger datagram keeps its place, and "more".
        let first = with_ip(frame.clone(), |ip| ip[6] = 0x20);
        assert_eq!(world.uplink(&first).action, Action::Redirect);
        let second = with_ip(frame.clone(), |ip| [ip[6], ip[7]] = [0x20, 176]);
        let outcome = world.uplink(&second);
        assert_eq!((outcome.action, outcome.counted), (Action::Redirect, [("forwarded", 1), ("fragmented", 1)].into()));
        assert_eq!(outcome.frame[20..22], [0x21, 64], "176 and 144");
        assert_eq!(outcome.frame[L4..], second[L4 + 2 * 576..]);

        // With "don't fragment", as before.
        let outcome = world.uplink(&udp(ends, &payload));
        assert_eq!((outcome.action, outcome.counted), (Action::Redirect, [("too_big", 1)].into()));
    });
}
