//! What the allocator keeps for later.

/// Gives the system back what was freed. glibc keeps it, in an arena for each thread, and the first state of a large cluster leaves much.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
