//! The maximum segment size that SYNs announce, made smaller by config.

use gateway_common::maps::config;

use crate::{
    cast::{Cast, hop, narrow_mtu, port},
    packets::{ACK, Ends, SYN, Seen, look, tcp_with},
    world::{Action, World, everywhere},
};

const MSS_1460: [u8; 4] = [2, 4, 5, 180];

fn mss(value: u16) -> [u8; 4] {
    let [high, low] = value.to_be_bytes();
    [2, 4, high, low]
}

fn syn(c: Cast, dport: u16, flags: u8, options: &[u8]) -> Vec<u8> {
    tcp_with(Ends::new(c.client, 7, c.web, dport), flags, options, b"")
}

/// What becomes of a client's segment with those options; its checksum was verified.
fn there(world: &mut World, dport: u16, flags: u8, options: &[u8]) -> Seen {
    let outcome = world.uplink(&syn(world.cast, dport, flags, options));
    assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.counted);
    look(&outcome.frame).unwrap_or_else(|e| panic!("{e}, {options:02x?}"))
}

/// And of the endpoint's answer.
fn here(world: &mut World, back: Ends, flags: u8, options: &[u8]) -> Seen {
    let outcome = world.cluster(&tcp_with(back, flags, options, b""));
    assert_eq!(outcome.action, Action::Redirect, "{:?}", outcome.counted);
    look(&outcome.frame).unwrap_or_else(|e| panic!("{e}, {options:02x?}"))
}

#[test]
fn off_it_stays_as_the_hosts_say() {
    everywhere(|world| {
        world.configure(|config| config.mss_clamp = 0);
        let seen = there(world, port::HTTP, SYN, &mss(9000));
        assert_eq!(seen.options, mss(9000));
        assert_eq!(here(world, seen.back(), SYN | ACK, &mss(9000)).options, mss(9000));
    });
}

#[test]
fn a_number_is_the_most_in_both_directions() {
    everywhere(|world| {
        world.configure(|config| config.mss_clamp = 1200);
        for (said, becomes) in [(1460, 1200), (1201, 1200), (1200, 1200), (1199, 1199), (0, 0), (65_535, 1200)] {
            let seen = there(world, port::HTTP, SYN, &mss(said));
            assert_eq!(seen.options, mss(becomes), "{said}");
            assert_eq!(here(world, seen.back(), SYN | ACK, &mss(said)).options, mss(becomes), "{said}, back");
        }
    });
}

#[test]
fn auto_is_what_the_narrower_of_both_ways_takes() {
    everywhere(|world| {
        let c = world.cast;
        world.configure(|config| config.mss_clamp = config::MSS_AUTO);
        let segment = |mtu: u16| mtu - c.header() as u16 - 20;
        // Both ways of 1,500 bytes, then the endpoint's narrow, then the client's.
        let seen = there(world, port::HTTP, SYN, &mss(8960));
        assert_eq!(seen.options, mss(segment(1500)));
        let narrow = mss(segment(narrow_mtu(&c)));
        let seen = there(world, port::NARROW, SYN, &MSS_1460);
        assert_eq!(seen.options, narrow);
        assert_eq!(here(world, seen.back(), SYN | ACK, &MSS_1460).options, narrow, "the client is told of it too");
        world.set_client_hop(c.client, hop::NARROW);
        let ends = Ends::new(c.client, 8, c.web, port::HTTP);
        let outcome = world.uplink(&tcp_with(ends, SYN, &MSS_1460, b""));
        let back = look(&outcome.frame).expect("a good frame").back();
        assert_eq!(here(world, back, SYN | ACK, &MSS_1460).options, narrow);
    });
}

#[test]
fn only_segments_that_open_a_connection_are_looked_into() {
    everywhere(|world| {
        world.configure(|config| config.mss_clamp = 536);
        let seen = there(world, port::HTTP, ACK, &MSS_1460);
        assert_eq!(seen.options, MSS_1460);
    });
}

#[test]
fn the_option_is_found_wherever_it_stands() {
    everywhere(|world| {
        world.configure(|config| config.mss_clamp = 1000);
        let before: [&[u8]; 9] = [
            &[],
            &[1],
            &[1, 1],
            &[1, 1, 1],
            &[3, 3, 7],
            &[4, 2],
            &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0],
            &[4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
            // Up to the header's last byte.
            &[
                254, 36, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                0, 0, 0,
            ],
        ];
        for before in before {
            for value in [1460, 0x05ff, 0xff05, 1001] {
                let pad = |mut options: Vec<u8>| {
                    options.resize(options.len().next_multiple_of(4), 0);
                    options
                };
                let options = pad([before, &mss(value)].concat());
                let seen = there(world, port::HTTP, SYN, &options);
                assert_eq!(seen.options, pad([before, &mss(1000)].concat()), "behind {before:?}");
                let seen = here(world, seen.back(), SYN | ACK, &options);
                assert_eq!(seen.options, pad([before, &mss(1000)].concat()), "back, behind {before:?}");
            }
        }
    });
}

#[test]
fn options_that_make_no_sense_go_on_as_they_are() {
    everywhere(|world| {
        world.configure(|config| config.mss_clamp = 1000);
        let odd: [&[u8]; 11] = [
            &[0, 0, 0, 0],
            // Behind the end of options nothing counts.
            &[0, 1, 1, 1, 2, 4, 5, 180],
            &[2, 3, 5, 180],
            &[2, 5, 5, 180, 0, 0, 0, 0],
            &[2, 0, 5, 180],
            &[2, 1, 5, 180],
            // An option of no length, before a good one.
            &[8, 0, 0, 0, 2, 4, 5, 180],
            &[8, 1, 0, 0, 2, 4, 5, 180],
            // One that reaches beyond the header.
            &[8, 40, 0, 0, 0, 0, 0, 0],
            &[254, 255, 2, 4, 5, 180, 0, 0],
            // Half of it is missing.
            &[1, 1, 2, 4],
        ];
        for options in odd {
            let seen = there(world, port::HTTP, SYN, options);
            assert_eq!(seen.options, options);
            assert_eq!(here(world, seen.back(), SYN | ACK, options).options, options, "back");
        }
    });
}
