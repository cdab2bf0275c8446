//! Promises about what a later agent finds pinned.

use std::{fs, path::PathBuf, sync::Arc};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Row, dual_settings, endpoint, name, net::skip, plan};
use crate::{
    kernel::{Kernel, Mode, Settings, table::map_data},
    model::Protocol,
};

/// A BPF file system of its own, gone with the test.
struct Bpffs(PathBuf);

impl Bpffs {
    fn new() -> Self {
        let bpffs = Self(tempfile::tempdir().unwrap().keep());
        mount(Some("bpf"), &bpffs.0, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        bpffs
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap_or(());
        fs::remove_dir(&self.0).unwrap_or(());
    }
}

fn records(kernel: &Kernel) -> [u32; 2] {
    let state = kernel.shared.state();
    ["FLOWS4", "FLOWS6"].map(|name| map_data(state.ebpf.map(name).unwrap()).unwrap().info().unwrap().max_entries())
}

#[test]
fn the_first_ipv6_clients_get_a_flow_table_and_ids_of_both_families_are_taken_over() {
    if skip() {
        return;
    }
    let row = Row::dual();
    let bpffs = Bpffs::new();
    let pin = Some(bpffs.0.join("gateway"));
    let both = Settings { pin: pin.clone(), ..dual_settings(Mode::Tc) };
    let four = Settings { views: vec![vec!["10.90.1.0/24".parse().unwrap()]], ..both.clone() };
    let mut first = None;
    for (settings, expected) in [(four, [8192, 64]), (both.clone(), [8192, 8192]), (both, [8192, 8192])] {
        let kernel = Arc::new(row.load(settings).unwrap());
        assert_eq!(records(&kernel), expected);
        let inside = Arc::clone(&kernel);
        let mut told = row.node.run(move || {
            let web = plan("10.1.0.1", 80, Protocol::Tcp, &[endpoint("10.90.3.2", 8080)]);
            let six = plan("fd00:10::1", 80, Protocol::Tcp, &[endpoint("fd90:3::2", 8080)]);
            inside.apply(&name("web"), Some(&web)).unwrap();
            inside.apply(&name("six"), Some(&six)).unwrap();
            inside.attach().unwrap();
            let told: Vec<_> = inside.services().iter().map(|s| (s.vip, s.id, s.endpoints[0].generation)).collect();
            inside.detach().unwrap();
            told
        });
        told.sort_unstable();
        assert_eq!(*first.get_or_insert_with(|| told.clone()), told, "an agent's successor goes on with its numbers");
    }
    row.node.run(move || Kernel::detach_all(pin.as_deref()).unwrap());
}
