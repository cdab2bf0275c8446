//! The driver of `cargo xtask bench`: never attached. A program under test changes its frame, so a repeated run needs a fresh one.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_store_bytes},
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};

/// Bytes of a stored frame at most, with its length in the first.
const FRAME: usize = 256;

#[map]
static BENCH_FRAME: Array<[u8; FRAME]> = Array::with_max_entries(1, 0);
#[map]
static BENCH_NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Writes the stored frame over the one it is given and goes on with the program under test.
#[xdp]
pub fn bench_refill(ctx: XdpContext) -> u32 {
    let Some(stored) = BENCH_FRAME.get(0) else { return xdp_action::XDP_ABORTED };
    let len = u32::from(stored[0]);
    if len == 0 || len as usize >= FRAME {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the context is the program's own; the helpers check every length.
    unsafe {
        let now = bpf_xdp_get_buff_len(ctx.ctx) as i32;
        if bpf_xdp_adjust_tail(ctx.ctx, len as i32 - now) != 0 {
            return xdp_action::XDP_ABORTED;
        }
        if bpf_xdp_store_bytes(ctx.ctx, 0, stored[1..].as_ptr().cast_mut().cast(), len) != 0 {
            return xdp_action::XDP_ABORTED;
        }
        // Comes back only when there is no such program.
        let _ = BENCH_NEXT.tail_call(&ctx, 0);
    }
    xdp_action::XDP_ABORTED
}
