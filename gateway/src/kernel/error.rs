//! What can go wrong in the kernel room: each says what failed, where, and what to do.

use std::{io, path::PathBuf};

use aya::{EbpfError, programs::ProgramError};

/// Errors of the kernel room.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not allowed to load or attach.
    #[error("no permission to {what}: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission {
        /// What was tried.
        what: String,
    },
    /// The kernel has no type information.
    #[error(
        "this kernel has no BTF (/sys/kernel/btf/vmlinux is missing): use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf,
    /// `datapath.mode` is `off`.
    #[error("datapath.mode is off: there is no datapath to load")]
    Off,
    /// An interface that the config names is not there.
    #[error("{key}: interface {name} does not exist; there are: {known}")]
    NoInterface {
        /// Config key.
        key: &'static str,
        /// The name.
        name: String,
        /// What exists, separated by commas.
        known: String,
    },
    /// The loopback device as an uplink or cluster interface.
    #[error("{key}: {name} is the loopback device, which the gateway never attaches to; name another interface")]
    Loopback {
        /// Config key.
        key: &'static str,
        /// The name.
        name: String,
    },
    /// No uplink is named and there is no default route.
    #[error("uplinks is empty and there is no default route to find them by: set uplinks")]
    NoUplink,
    /// The source address is to be found on the uplink, which has none.
    #[error("snat.addresses is empty and uplink {interface} has no global {family} address: set one of the two")]
    NoAddress {
        /// The first uplink.
        interface: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// More addresses than there is room for.
    #[error("{key}: {count} addresses of one family, at most {most} are possible")]
    TooMany {
        /// Config key.
        key: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// The BPF object as a whole.
    #[error("the BPF object cannot be loaded: {0}")]
    Object(#[from] Box<EbpfError>),
    /// A program of the object.
    #[error("BPF program {name} cannot be loaded: {source}")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why, with the verifier's last words.
        source: Box<ProgramError>,
    },
    /// Attaching.
    #[error("cannot attach {what} to {interface}: {why}")]
    Attach {
        /// Interface.
        interface: String,
        /// `native XDP`, `generic XDP`, `TC`.
        what: &'static str,
        /// Why, and what to do.
        why: String,
    },
    /// A map operation.
    #[error("BPF map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A map has no room left.
    #[error("BPF map {map} is full: restart the agent, which sizes it by what the cluster has then")]
    Full {
        /// Its name.
        map: &'static str,
    },
    /// A question to rtnetlink.
    #[error("netlink: {what}: {source}")]
    Netlink {
        /// What was asked.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A sysctl.
    #[error("{}: {source}", path.display())]
    Sysctl {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread or descriptor of the agent's own.
    #[error("{what}: {source}")]
    Os {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// `datapath.pin` is not where it can be.
    #[error(
        "datapath.pin: {} is not on a BPF file system: mount one there (`mount -t bpf bpf /sys/fs/bpf`), or leave the key out",
        path.display()
    )]
    NotBpffs {
        /// The directory.
        path: PathBuf,
    },
    /// `datapath.pin` on a kernel whose TC programs cannot be pinned.
    #[error("datapath.pin: this kernel cannot pin TC programs: use Linux 6.6 or later, or leave the key out")]
    PinTcx,
    /// A pin.
    #[error("datapath.pin: {}: {source}; `gateway detach` takes all pins away", path.display())]
    Pin {
        /// It.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl KernelError {
    /// An error of aya's loader, with the cases told apart that a person can do something about.
    pub(super) fn object(error: EbpfError) -> Self {
        if denied(&error) {
            return Self::Permission { what: "load BPF maps and programs".into() };
        }
        Self::Object(Box::new(error))
    }

    /// An error when loading a program.
    pub(super) fn program(name: &'static str, error: ProgramError) -> Self {
        if denied(&error) {
            return Self::Permission { what: format!("load BPF program {name}") };
        }
        Self::Program { name, source: Box::new(error) }
    }
}

/// Whether the cause of an error, however deep, is a lack of permission.
pub(super) fn denied(error: &(dyn std::error::Error + 'static)) -> bool {
    errno(error).is_some_and(|e| e == libc::EPERM || e == libc::EACCES && !verifier(error))
}

/// The verifier says `EACCES` too, and then it says why.
fn verifier(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |e| e.source())
        .any(|e| matches!(e.downcast_ref::<ProgramError>(), Some(ProgramError::LoadError { verifier_log, .. }) if !verifier_log.to_string().is_empty()))
}

/// The error number at the bottom of a chain of errors.
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    std::iter::successors(Some(error), |e| e.source())
        .filter_map(|e| e.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error))
        .last()
}
