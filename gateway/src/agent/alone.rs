//! One datapath a node: two agents would both answer, reserve ports, and put sysctls back under each other.

use std::{
    io::ErrorKind,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
};

use anyhow::{Context as _, Result, bail};

/// Name of the socket: abstract ones belong to the network namespace, as the datapath does, and end with their process.
const NAME: &str = "gateway-datapath";

/// Holds the place of this node's only datapath until it is dropped.
#[derive(Debug)]
pub(super) struct Alone {
    _socket: UnixListener,
}

impl Alone {
    /// Takes the place.
    ///
    /// # Errors
    /// When another agent has it.
    pub fn take() -> Result<Self> {
        let address = SocketAddr::from_abstract_name(NAME).context("the name of the agent's socket")?;
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
                "datapath: another gateway agent runs on this node (`ss -xlp | grep @{NAME}` names it): stop it first, or set datapath.mode: off"
            ),
            Err(error) => Err(error).context("the agent's socket"),
        }
    }
}
