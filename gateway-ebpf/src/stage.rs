//! The stages that are functions of their own for the verifier: looked at once, whoever calls them, and each with little on the stack.
//! They take the program's context and numbers, and read everything else from the frame again.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use gateway_common::{
    Reason,
    net::{
        family::{V4, V6},
        headers::ETH_LEN,
    },
};

use crate::{
    dns,
    frame::{Frame, Tc, Xdp, bounded},
    mss,
    net::Net,
    path::{self, Role, Verdict},
    reject, relay, send, split,
};

/// Highest offset of an IP header: behind two tags. The lowest is 0: see [`crate::bare`].
const MAX_L3: usize = 22;

/// What a tier's programs call.
pub trait Stages: Frame {
    /// A frame of that family, from its flow on: the second family and tagged frames.
    fn known<N: Net>(&mut self, l3: usize, role: Role) -> Verdict;
    /// An untagged frame of IPv4, from its flow on.
    fn plain(&mut self, role: Role) -> Verdict;
    /// An untagged frame of IPv4 that may be a query.
    fn ask(&mut self) -> Verdict;
    /// An untagged frame of IPv6, from its flow on.
    fn plain6(&mut self, role: Role) -> Verdict;
    /// An untagged frame of IPv6 that may be a query.
    fn ask6(&mut self) -> Verdict;
    /// A tagged frame.
    fn tagged(&mut self, role: Role) -> Verdict;
    /// Everything but packets of known flows that just go on.
    fn slow<N: Net>(&mut self, l3: usize, role: Role) -> Verdict;
    /// Everything that is neither a whole TCP segment nor a whole UDP datagram.
    fn other<N: Net>(&mut self, l3: usize, role: Role) -> Verdict;
    /// A fragment of a TCP segment or UDP datagram.
    fn cut<N: Net>(&mut self, l3: usize, role: Role) -> Verdict;
    /// A packet without a record.
    fn lost<N: Net>(&mut self, l3: usize, role: Role) -> Verdict;
    /// A client's packet to port 53.
    fn question<N: Net>(&mut self, l3: usize) -> Verdict;
    /// A packet that begins a flow.
    fn begin<N: Net>(&mut self, l3: usize) -> Verdict;
    /// An ICMP error about a flow.
    fn relay<N: Net>(&mut self, l3: usize, role: Role) -> Verdict;
    /// An ICMP error to the sender.
    fn reject<N: Net>(&mut self, l3: usize) -> Verdict;
    /// A translated packet of IPv4 that is too big for its way, and may be cut. TC only.
    fn split(&mut self) -> Verdict;
    /// The fragment of that number of such a packet: see [`split::piece`].
    fn piece(&mut self, number: u32) -> u32;
    /// A smaller maximum segment size in a SYN whose header of `header` bytes is at `l4`.
    fn clamp(&mut self, l4: usize, header: u32, most: u16);
    /// The Ethernet header and tags for the next hop at that index.
    fn leave(&mut self, l3: usize, hop: u32, version: u8) -> Result<(), Reason>;
}

#[inline(always)]
fn l3(offset: u32) -> Option<usize> {
    let offset = bounded(offset, 32);
    if offset > MAX_L3 { None } else { Some(offset) }
}

/// [`Stages::plain`] in TC, where calls matter less and stacks are deeper.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_tc_plain(ctx: *mut __sk_buff, role: u32) -> u32 {
    path::hot::<Tc<false>, V4, false>(&mut Tc::<false>::new(ctx), Role::from_code(role), ETH_LEN).code()
}

/// [`Stages::plain6`] in XDP: offsets are constants.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_xdp_plain6(ctx: *mut xdp_md, role: u32) -> u32 {
    path::hot::<Xdp<false>, V6, false>(&mut Xdp::<false>::new(ctx), Role::from_code(role), ETH_LEN).code()
}

/// [`dns::usual::answer4`]; [`Verdict::Query`]: [`gateway_xdp_ask`] is next.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_xdp_usual4(ctx: *mut xdp_md) -> u32 {
    dns::usual::answer4(ctx).unwrap_or(Verdict::Query).code()
}

/// [`dns::usual::answer6`]; [`Verdict::Query`]: [`gateway_xdp_ask6`] is next.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_xdp_usual6(ctx: *mut xdp_md) -> u32 {
    dns::usual::answer6(ctx).unwrap_or(Verdict::Query).code()
}

/// [`path::missed`] of IPv4.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_xdp_missed4(ctx: *mut xdp_md) -> u32 {
    path::missed::<Xdp<false>, V4>(&mut Xdp::<false>::new(ctx)).code()
}

/// [`path::missed`] of IPv6.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_xdp_missed6(ctx: *mut xdp_md) -> u32 {
    path::missed::<Xdp<false>, V6>(&mut Xdp::<false>::new(ctx)).code()
}

/// [`Stages::ask6`] in XDP.
#[doc(hidden)]
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn gateway_xdp_ask6(ctx: *mut xdp_md) -> u32 {
    path::question::<Xdp<false>, V6, true>(&mut Xdp::<false>::new(ctx), ETH_LEN).code()
}

macro_rules! stages {
    ($tier:ident, $ctx:ty, $ask:ident,
     $known4:ident, $known6:ident, $tagged:ident, $slow4:ident, $slow6:ident, $other4:ident, $other6:ident,
     $cut4:ident, $cut6:ident, $lost4:ident, $lost6:ident, $begin4:ident, $begin6:ident, $question4:ident, $question6:ident, $relay4:ident, $relay6:ident, $reject4:ident, $reject6:ident, $split:ident, $piece:ident, $clamp:ident, $leave:ident) => {
        stages!(@way $tier, $ctx, $known4, V4, path::hot, true);
        stages!(@way $tier, $ctx, $known6, V6, path::hot, true);
        stages!(@way $tier, $ctx, $slow4, V4, path::slow);
        stages!(@way $tier, $ctx, $slow6, V6, path::slow);
        stages!(@way $tier, $ctx, $other4, V4, path::other);
        stages!(@way $tier, $ctx, $other6, V6, path::other);
        stages!(@way $tier, $ctx, $cut4, V4, path::cut);
        stages!(@way $tier, $ctx, $cut6, V6, path::cut);
        stages!(@way $tier, $ctx, $lost4, V4, path::lost);
        stages!(@way $tier, $ctx, $lost6, V6, path::lost);
        stages!(@alone $tier, $ctx, $question4, V4, path::question, false);
        stages!(@alone $tier, $ctx, $question6, V6, path::question, false);
        stages!(@alone $tier, $ctx, $begin4, V4, path::begin);
        stages!(@alone $tier, $ctx, $begin6, V6, path::begin);
        stages!(@way $tier, $ctx, $relay4, V4, relay::stage);
        stages!(@way $tier, $ctx, $relay6, V6, relay::stage);
        stages!(@alone $tier, $ctx, $reject4, V4, reject::stage);
        stages!(@alone $tier, $ctx, $reject6, V6, reject::stage);

        /// Offsets are constants here.
        #[doc(hidden)]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $ask(ctx: *mut $ctx) -> u32 {
            path::question::<$tier<false>, V4, true>(&mut $tier::<false>::new(ctx), ETH_LEN).code()
        }

        #[doc(hidden)]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $tagged(ctx: *mut $ctx, role: u32) -> u32 {
            path::tagged(&mut $tier::<true>::new(ctx), Role::from_code(role)).code()
        }

        #[doc(hidden)]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $split(ctx: *mut $ctx) -> u32 {
            split::stage(&mut $tier::<true>::new(ctx)).code()
        }

        #[doc(hidden)]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $piece(ctx: *mut $ctx, number: u32) -> u32 {
            split::piece(&mut $tier::<true>::new(ctx), number)
        }

        #[doc(hidden)]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $clamp(ctx: *mut $ctx, l4: u32, header: u32, most: u32) -> u32 {
            mss::clamp(&mut $tier::<true>::new(ctx), bounded(l4, 128), bounded(header, 64), most as u16);
            0
        }

        #[doc(hidden)]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $leave(ctx: *mut $ctx, offset: u32, hop: u32, version: u32) -> u32 {
            let Some(offset) = l3(offset) else { return 1 };
            u32::from(send::leave_tagged(&mut $tier::<true>::new(ctx), offset, hop, version as u8).is_err())
        }

        impl<const FAR: bool> Stages for $tier<FAR> {
            #[inline(always)]
            fn known<N: Net>(&mut self, l3: usize, role: Role) -> Verdict {
                let (ctx, l3, role) = (self.context().cast(), l3 as u32, role as u32);
                Verdict::from_code(if N::VERSION == 4 { $known4(ctx, l3, role) } else { $known6(ctx, l3, role) })
            }
            #[inline(always)]
            fn plain(&mut self, role: Role) -> Verdict {
                if !Self::XDP {
                    return Verdict::from_code(gateway_tc_plain(self.context().cast(), role as u32));
                }
                // Part of the program itself, and with constant offsets: this is the way of most packets.
                path::hot::<$tier<false>, V4, false>(&mut $tier::<false>::new(self.context().cast()), role, ETH_LEN)
            }
            #[inline(always)]
            fn ask(&mut self) -> Verdict {
                let usual = if Self::XDP { gateway_xdp_usual4(self.context().cast()) } else { Verdict::Query.code() };
                match Verdict::from_code(usual) {
                    Verdict::Query => Verdict::from_code($ask(self.context().cast())),
                    Verdict::Missed => Verdict::from_code(gateway_xdp_missed4(self.context().cast())),
                    verdict => verdict,
                }
            }
            #[inline(always)]
            fn plain6(&mut self, role: Role) -> Verdict {
                if Self::XDP {
                    Verdict::from_code(gateway_xdp_plain6(self.context().cast(), role as u32))
                } else {
                    self.known::<V6>(ETH_LEN, role)
                }
            }
            #[inline(always)]
            fn ask6(&mut self) -> Verdict {
                if Self::XDP {
                    let ctx = self.context().cast();
                    match Verdict::from_code(gateway_xdp_usual6(ctx)) {
                        Verdict::Query => Verdict::from_code(gateway_xdp_ask6(ctx)),
                        Verdict::Missed => Verdict::from_code(gateway_xdp_missed6(ctx)),
                        verdict => verdict,
                    }
                } else {
                    self.question::<V6>(ETH_LEN)
                }
            }
            #[inline(always)]
            fn tagged(&mut self, role: Role) -> Verdict {
                Verdict::from_code($tagged(self.context().cast(), role as u32))
            }
            #[inline(always)]
            fn slow<N: Net>(&mut self, l3: usize, role: Role) -> Verdict {
                let (ctx, l3, role) = (self.context().cast(), l3 as u32, role as u32);
                Verdict::from_code(if N::VERSION == 4 { $slow4(ctx, l3, role) } else { $slow6(ctx, l3, role) })
            }
            #[inline(always)]
            fn other<N: Net>(&mut self, l3: usize, role: Role) -> Verdict {
                let (ctx, l3, role) = (self.context().cast(), l3 as u32, role as u32);
                Verdict::from_code(if N::VERSION == 4 { $other4(ctx, l3, role) } else { $other6(ctx, l3, role) })
            }
            #[inline(always)]
            fn cut<N: Net>(&mut self, l3: usize, role: Role) -> Verdict {
                let (ctx, l3, role) = (self.context().cast(), l3 as u32, role as u32);
                Verdict::from_code(if N::VERSION == 4 { $cut4(ctx, l3, role) } else { $cut6(ctx, l3, role) })
            }
            #[inline(always)]
            fn lost<N: Net>(&mut self, l3: usize, role: Role) -> Verdict {
                let (ctx, l3, role) = (self.context().cast(), l3 as u32, role as u32);
                Verdict::from_code(if N::VERSION == 4 { $lost4(ctx, l3, role) } else { $lost6(ctx, l3, role) })
            }
            #[inline(always)]
            fn question<N: Net>(&mut self, l3: usize) -> Verdict {
                let (ctx, l3) = (self.context().cast(), l3 as u32);
                Verdict::from_code(if N::VERSION == 4 { $question4(ctx, l3) } else { $question6(ctx, l3) })
            }
            #[inline(always)]
            fn begin<N: Net>(&mut self, l3: usize) -> Verdict {
                let (ctx, l3) = (self.context().cast(), l3 as u32);
                Verdict::from_code(if N::VERSION == 4 { $begin4(ctx, l3) } else { $begin6(ctx, l3) })
            }
            #[inline(always)]
            fn relay<N: Net>(&mut self, l3: usize, role: Role) -> Verdict {
                let (ctx, l3, role) = (self.context().cast(), l3 as u32, role as u32);
                Verdict::from_code(if N::VERSION == 4 { $relay4(ctx, l3, role) } else { $relay6(ctx, l3, role) })
            }
            #[inline(always)]
            fn reject<N: Net>(&mut self, l3: usize) -> Verdict {
                let (ctx, l3) = (self.context().cast(), l3 as u32);
                Verdict::from_code(if N::VERSION == 4 { $reject4(ctx, l3) } else { $reject6(ctx, l3) })
            }
            #[inline(always)]
            fn split(&mut self) -> Verdict {
                Verdict::from_code($split(self.context().cast()))
            }
            #[inline(always)]
            fn piece(&mut self, number: u32) -> u32 {
                $piece(self.context().cast(), number)
            }
            #[inline(always)]
            fn clamp(&mut self, l4: usize, header: u32, most: u16) {
                $clamp(self.context().cast(), l4 as u32, header, u32::from(most));
            }
            #[inline(always)]
            fn leave(&mut self, l3: usize, hop: u32, version: u8) -> Result<(), Reason> {
                if $leave(self.context().cast(), l3 as u32, hop, u32::from(version)) == 0 {
                    Ok(())
                } else {
                    Err(Reason::HelperFailed)
                }
            }
        }
    };
    (@alone $tier:ident, $ctx:ty, $name:ident, $family:ident, $($to:ident)::+ $(, $known:literal)?) => {
        #[doc(hidden)]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(ctx: *mut $ctx, offset: u32) -> u32 {
            let Some(offset) = l3(offset) else { return Verdict::Pass.code() };
            $($to)::+::<$tier<true>, $family $(, $known)?>(&mut $tier::<true>::new(ctx), offset).code()
        }
    };
    (@way $tier:ident, $ctx:ty, $name:ident, $family:ident, $($to:ident)::+ $(, $known:literal)?) => {
        #[doc(hidden)]
        #[inline(never)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(ctx: *mut $ctx, offset: u32, role: u32) -> u32 {
            let Some(offset) = l3(offset) else { return Verdict::Pass.code() };
            $($to)::+::<$tier<true>, $family $(, $known)?>(&mut $tier::<true>::new(ctx), Role::from_code(role), offset).code()
        }
    };
}

stages!(
    Xdp,
    xdp_md,
    gateway_xdp_ask,
    gateway_xdp_known4,
    gateway_xdp_known6,
    gateway_xdp_tagged,
    gateway_xdp_slow4,
    gateway_xdp_slow6,
    gateway_xdp_other4,
    gateway_xdp_other6,
    gateway_xdp_cut4,
    gateway_xdp_cut6,
    gateway_xdp_lost4,
    gateway_xdp_lost6,
    gateway_xdp_begin4,
    gateway_xdp_begin6,
    gateway_xdp_question4,
    gateway_xdp_question6,
    gateway_xdp_relay4,
    gateway_xdp_relay6,
    gateway_xdp_reject4,
    gateway_xdp_reject6,
    gateway_xdp_split,
    gateway_xdp_piece,
    gateway_xdp_clamp,
    gateway_xdp_leave
);
stages!(
    Tc,
    __sk_buff,
    gateway_tc_ask,
    gateway_tc_known4,
    gateway_tc_known6,
    gateway_tc_tagged,
    gateway_tc_slow4,
    gateway_tc_slow6,
    gateway_tc_other4,
    gateway_tc_other6,
    gateway_tc_cut4,
    gateway_tc_cut6,
    gateway_tc_lost4,
    gateway_tc_lost6,
    gateway_tc_begin4,
    gateway_tc_begin6,
    gateway_tc_question4,
    gateway_tc_question6,
    gateway_tc_relay4,
    gateway_tc_relay6,
    gateway_tc_reject4,
    gateway_tc_reject6,
    gateway_tc_split,
    gateway_tc_piece,
    gateway_tc_clamp,
    gateway_tc_leave
);
