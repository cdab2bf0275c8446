//! What the process takes in memory, and what the allocator keeps for later.

/// Resident memory in bytes; `None` where the system does not tell.
pub(super) fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(field.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// Gives the system back what was freed. glibc keeps it, in an arena for each thread, and the first state of a large cluster leaves much.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_has_some_memory() {
        assert!(super::resident().is_some_and(|bytes| bytes > 1 << 20));
    }
}
