//! The frame a program was given: the one difference between XDP and TC that the stages see.
//!
//! A reference into the frame borrows it; whatever may move the frame's memory takes it mutably. So the borrow checker
//! keeps stale packet pointers out, as the verifier would.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, xdp_md},
    helpers::{
        bpf_clone_redirect, bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_store_bytes, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_load_bytes,
        bpf_xdp_store_bytes,
    },
};
use bytemuck::Pod;
use gateway_common::{
    Reason,
    maps::Flow,
    net::{
        Bytes,
        checksum::{delta2, fold, update},
        family::Family,
        headers::{ETH_LEN, FRAGMENT_LEN, IPV6_LEN, TCP_LEN, UDP},
        parse::Packet,
        translate::transport_check,
    },
};

/// Directly readable bytes that parsing needs: Ethernet, IPv6 with a fragment header, and TCP without options.
const HEADERS: usize = ETH_LEN + IPV6_LEN + FRAGMENT_LEN + TCP_LEN;

/// `bpf_l4_csum_replace`: the pseudo-header is IPv6's, whose addresses no header checksum makes up for. Since Linux 6.16
/// (kernel commit ead7f9b8de65); older ones refuse it.
const BPF_F_IPV6: u32 = 1 << 7;

/// The kernel said no; the packet cannot be carried.
pub const REFUSED: Reason = Reason::HelperFailed;

/// A frame, with what its tier can do to it. Offsets count from the frame's first byte.
pub trait Frame: Bytes {
    /// XDP: what cannot be done here passes on to TC, unchanged.
    const XDP: bool;
    /// The interface the frame came in by (or, at egress, leaves by).
    fn ifindex(&self) -> u32;
    /// The context, for helpers that both tiers have.
    fn context(&self) -> *mut c_void;
    /// The value at `offset`, to be written; `None` beyond the directly accessible part.
    fn at<T: Pod>(&mut self, offset: usize) -> Option<&mut T>;
    /// Copies `len` bytes at `offset` out, those that are not directly accessible included.
    ///
    /// # Safety
    /// `to` must be writable for `len` bytes.
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> Result<(), Reason>;
    /// Copies `len` bytes in at `offset`; checksums are the caller's.
    ///
    /// # Safety
    /// `from` must be readable for `len` bytes.
    unsafe fn store(&mut self, offset: u32, from: *const u8, len: u32) -> Result<(), Reason>;
    /// Makes the frame `len` bytes long, cutting or adding at its end.
    fn resize(&mut self, len: u32) -> Result<(), Reason>;
    /// Puts `len` bytes before the first one; what they hold is unspecified.
    fn prepend(&mut self, len: u32) -> Result<(), Reason>;
    /// Makes the first `len` bytes directly accessible, as far as the frame has them. False: they are not.
    fn linear(&mut self, len: usize) -> bool;
    /// The transport checksum of `packet` is only a pseudo-header's sum, and somebody still has to complete it. XDP cannot know
    /// and errs on that side.
    fn is_partial<N: Family>(&mut self, packet: &Packet<N::Addr>) -> bool;
    /// Updates the transport checksum for a translation by `flow`.
    fn fix_checksum<N: Family>(&mut self, packet: &Packet<N::Addr>, flow: &Flow<N::Addr>) -> Result<(), Reason>;
    /// Writes two bytes of a TCP header at `at` and updates the checksum at `check`.
    fn change_word(&mut self, check: usize, at: usize, new: [u8; 2]);
    /// Bytes of the largest IP packet that this one will be on the wire: segments count, not their sum.
    fn wire_len<A: gateway_common::maps::Address>(&self, packet: &Packet<A>) -> u32;
    /// The buffer holds several segments.
    fn is_gso(&self) -> bool;
    /// Moves the frame's first byte by so many bytes: room before it, or bytes less. XDP only.
    fn shift(&mut self, bytes: i32) -> Result<(), Reason>;

    /// Sends the frame as it is out of an interface, and keeps it. TC only.
    fn send_copy(&mut self, ifindex: u32) -> Result<(), Reason>;

    /// Parsing's headers are directly accessible, or not there.
    #[inline(always)]
    fn linear_headers(&mut self) -> bool {
        self.linear(HEADERS)
    }
}

#[inline(always)]
fn done(ret: i64) -> Result<(), Reason> {
    if ret == 0 { Ok(()) } else { Err(REFUSED) }
}

/// What writing two bytes of a header at `at` changes in its checksum at `check`.
#[inline(always)]
fn word_delta(frame: &impl Bytes, check: usize, at: usize, new: [u8; 2]) -> Option<u16> {
    let old = *frame.get::<[u8; 2]>(at)?;
    let delta = fold(delta2(old, new));
    Some(if (at ^ check) & 1 == 0 { delta } else { delta.swap_bytes() })
}

/// A pointer to `offset`, when a `T` fits there. `FAR`: the offset is no constant, and the compiler must not fold it into the check: the
/// verifier knows only of the very pointer that was compared.
#[inline(always)]
fn pointer<T, const FAR: bool>(data: u32, end: u32, offset: usize) -> Option<*mut T> {
    let mut at = data as usize + offset;
    if FAR {
        // SAFETY: a register moved to itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
    }
    if at + size_of::<T>() > end as usize { None } else { Some(at as *mut T) }
}

/// An offset below `most`, a power of two, in a register in which the verifier sees that.
#[inline(always)]
pub fn bounded(offset: u32, most: usize) -> usize {
    let mut at = offset as usize;
    // SAFETY: a register moved to itself: the compiler forgets what it knows of the offset and keeps the mask.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
    at & (most - 1)
}

/// A frame before the kernel has made a buffer of it. `FAR`: offsets are not constants.
pub struct Xdp<const FAR: bool>(*mut xdp_md);

impl<const FAR: bool> Xdp<FAR> {
    /// Of a program's context.
    #[inline(always)]
    pub const fn new(ctx: *mut xdp_md) -> Self {
        Self(ctx)
    }

    /// A pointer to `offset`, when a `T` fits there; whatever its alignment.
    #[inline(always)]
    pub fn pointer<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.0).data, (*self.0).data_end) };
        pointer::<T, FAR>(data, end, offset)
    }
}

impl<const FAR: bool> Bytes for Xdp<FAR> {
    #[inline(always)]
    fn get<T: Pod>(&self, offset: usize) -> Option<&T> {
        // SAFETY: the pointer was checked against the frame's end, any bytes are a T, and T has an alignment of one.
        self.pointer::<T>(offset).map(|p| unsafe { &*p })
    }
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).data_end - (*self.0).data }
    }
}

impl<const FAR: bool> Frame for Xdp<FAR> {
    const XDP: bool = true;

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).ingress_ifindex }
    }
    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.cast()
    }
    #[inline(always)]
    fn at<T: Pod>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as in `get`; the frame is borrowed mutably.
        self.pointer::<T>(offset).map(|p| unsafe { &mut *p })
    }
    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> Result<(), Reason> {
        // SAFETY: the caller vouches for `to`; the helper checks the frame's bounds.
        done(unsafe { bpf_xdp_load_bytes(self.0, offset, to.cast(), len) })
    }
    #[inline(always)]
    unsafe fn store(&mut self, offset: u32, from: *const u8, len: u32) -> Result<(), Reason> {
        // SAFETY: the caller vouches for `from`, which the helper only reads; it checks the frame's bounds.
        done(unsafe { bpf_xdp_store_bytes(self.0, offset, from.cast_mut().cast(), len) })
    }
    #[inline(always)]
    fn resize(&mut self, len: u32) -> Result<(), Reason> {
        // Behind the box, or the compiler subtracts the packet's end from the length, which the verifier refuses.
        let delta = len as i32 - core::hint::black_box(self.frame_len()) as i32;
        // SAFETY: the helper checks what it is asked for.
        done(unsafe { bpf_xdp_adjust_tail(self.0, delta) })
    }
    #[inline(always)]
    fn prepend(&mut self, len: u32) -> Result<(), Reason> {
        // SAFETY: as above.
        done(unsafe { bpf_xdp_adjust_head(self.0, -(len as i32)) })
    }
    #[inline(always)]
    fn linear(&mut self, _len: usize) -> bool {
        true
    }
    #[inline(always)]
    fn is_partial<N: Family>(&mut self, packet: &Packet<N::Addr>) -> bool {
        let len = (packet.total - (packet.l4 - packet.l3) as u32) as u16;
        let key = &packet.key;
        packet.check == N::pseudo(&key.src, &key.dst, key.proto, len).to_ne_bytes()
    }
    #[inline(always)]
    fn fix_checksum<N: Family>(&mut self, packet: &Packet<N::Addr>, flow: &Flow<N::Addr>) -> Result<(), Reason> {
        // As it is now: a segment size that was lowered has changed it since it was parsed.
        let Some(at) = self.at::<[u8; 2]>(packet.check_at()) else { return Err(Reason::Unparsed) };
        *at = transport_check(*at, packet.key.proto, flow);
        Ok(())
    }
    #[inline(always)]
    fn change_word(&mut self, check: usize, at: usize, new: [u8; 2]) {
        let Some(delta) = word_delta(self, check, at, new) else { return };
        let Some(field) = self.at::<[u8; 2]>(check) else { return };
        *field = update(*field, u32::from(delta));
        if let Some(word) = self.at::<[u8; 2]>(at) {
            *word = new;
        }
    }
    #[inline(always)]
    fn shift(&mut self, bytes: i32) -> Result<(), Reason> {
        // SAFETY: the helper checks what it is asked for.
        done(unsafe { bpf_xdp_adjust_head(self.0, bytes) })
    }
    #[inline(always)]
    fn send_copy(&mut self, _ifindex: u32) -> Result<(), Reason> {
        Err(REFUSED)
    }
    #[inline(always)]
    fn wire_len<A: gateway_common::maps::Address>(&self, packet: &Packet<A>) -> u32 {
        packet.total
    }
    #[inline(always)]
    fn is_gso(&self) -> bool {
        false
    }
}

/// A frame in a kernel buffer (`FAR` as in [`Xdp`]): possibly several segments, possibly with a checksum that is not complete yet.
pub struct Tc<const FAR: bool>(*mut __sk_buff);

impl<const FAR: bool> Tc<FAR> {
    /// Of a program's context.
    #[inline(always)]
    pub const fn new(ctx: *mut __sk_buff) -> Self {
        Self(ctx)
    }

    /// The frame carries a VLAN tag in its metadata, and not just a priority.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).vlan_present != 0 && (*self.0).vlan_tci & 0xfff != 0 }
    }

    #[inline(always)]
    fn pointer<T>(&self, offset: usize) -> Option<*mut T> {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.0).data, (*self.0).data_end) };
        pointer::<T, FAR>(data, end, offset)
    }

    /// EtherType of what the buffer holds.
    #[inline(always)]
    pub fn protocol(&self) -> [u8; 2] {
        // SAFETY: the context is valid while the program runs.
        (unsafe { (*self.0).protocol } as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn replace(&mut self, at: usize, delta: u16, flags: u32) -> Result<(), Reason> {
        // SAFETY: the helper checks the offset. With `from` and size zero, `to` is the delta itself.
        done(unsafe { bpf_l4_csum_replace(self.0, at as u32, 0, u64::from(delta), u64::from(flags)) })
    }
}

impl<const FAR: bool> Bytes for Tc<FAR> {
    #[inline(always)]
    fn get<T: Pod>(&self, offset: usize) -> Option<&T> {
        // SAFETY: the pointer was checked against the frame's end, any bytes are a T, and T has an alignment of one.
        self.pointer::<T>(offset).map(|p| unsafe { &*p })
    }
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).len }
    }
}

impl<const FAR: bool> Frame for Tc<FAR> {
    const XDP: bool = false;

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).ifindex }
    }
    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.0.cast()
    }
    #[inline(always)]
    fn at<T: Pod>(&mut self, offset: usize) -> Option<&mut T> {
        // SAFETY: as in `get`; the frame is borrowed mutably.
        self.pointer::<T>(offset).map(|p| unsafe { &mut *p })
    }
    #[inline(always)]
    unsafe fn load(&self, offset: u32, to: *mut u8, len: u32) -> Result<(), Reason> {
        // SAFETY: the caller vouches for `to`; the helper checks the frame's bounds.
        done(unsafe { bpf_skb_load_bytes(self.context(), offset, to.cast(), len) })
    }
    #[inline(always)]
    unsafe fn store(&mut self, offset: u32, from: *const u8, len: u32) -> Result<(), Reason> {
        // SAFETY: the caller vouches for `from`; the helper checks the frame's bounds.
        done(unsafe { bpf_skb_store_bytes(self.0, offset, from.cast(), len, 0) })
    }
    #[inline(always)]
    fn resize(&mut self, len: u32) -> Result<(), Reason> {
        // SAFETY: the helper checks what it is asked for.
        done(unsafe { bpf_skb_change_tail(self.0, len, 0) })
    }
    #[inline(always)]
    fn prepend(&mut self, len: u32) -> Result<(), Reason> {
        // SAFETY: as above.
        done(unsafe { bpf_skb_change_head(self.0, len, 0) })
    }
    #[inline(always)]
    fn linear(&mut self, len: usize) -> bool {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let all = self.frame_len();
        if data + len <= end || data + all as usize <= end {
            return true;
        }
        let len = if all < len as u32 { all } else { len as u32 };
        // SAFETY: the helper checks the length against the buffer's.
        unsafe { bpf_skb_pull_data(self.0, len) == 0 }
    }
    #[inline(always)]
    fn is_partial<N: Family>(&mut self, packet: &Packet<N::Addr>) -> bool {
        // Only the kernel knows, and it does not tell. But its helper leaves a partial checksum alone when something other than
        // the pseudo-header changes, and updates a whole one.
        let at = packet.check_at();
        if self.replace(at, 1, 0).is_err() {
            return false;
        }
        let Some(field) = self.at::<[u8; 2]>(at) else { return false };
        let partial = *field == packet.check;
        *field = packet.check;
        partial
    }
    #[inline(always)]
    fn fix_checksum<N: Family>(&mut self, packet: &Packet<N::Addr>, flow: &Flow<N::Addr>) -> Result<(), Reason> {
        let zero = if packet.key.proto == UDP { BPF_F_MARK_MANGLED_0 } else { 0 };
        let at = packet.check_at();
        let pseudo = BPF_F_PSEUDO_HDR | zero;
        if N::VERSION == 4 || self.replace(at, flow.l4_delta, pseudo | BPF_F_IPV6).is_err() {
            self.replace(at, flow.l4_delta, pseudo)?;
        }
        self.replace(at, flow.port_delta, zero)
    }
    #[inline(always)]
    fn change_word(&mut self, check: usize, at: usize, new: [u8; 2]) {
        let Some(delta) = word_delta(self, check, at, new) else { return };
        if self.replace(check, delta, 0).is_ok()
            && let Some(word) = self.at::<[u8; 2]>(at)
        {
            *word = new;
        }
    }
    #[inline(always)]
    fn shift(&mut self, _bytes: i32) -> Result<(), Reason> {
        Err(REFUSED)
    }
    #[inline(always)]
    fn send_copy(&mut self, ifindex: u32) -> Result<(), Reason> {
        // SAFETY: the helper checks the interface.
        done(unsafe { bpf_clone_redirect(self.0, ifindex, 0) })
    }
    #[inline(always)]
    fn wire_len<A: gateway_common::maps::Address>(&self, packet: &Packet<A>) -> u32 {
        // SAFETY: the context is valid while the program runs.
        let segment = unsafe { (*self.0).gso_size };
        if segment == 0 { packet.total } else { segment + packet.header + (packet.l4 - packet.l3) as u32 }
    }
    #[inline(always)]
    fn is_gso(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).gso_size != 0 }
    }
}
