//! A UDP socket that answers from the address that was asked, also when it listens on all of them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use nix::{
    libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use tokio::{io::Interest, net::UdpSocket};

/// Room for bursts while the forwarder is busy.
const BUFFER: usize = 4 << 20;

/// A bound socket.
pub struct Socket {
    socket: UdpSocket,
    /// It listens on every address: each datagram says which one it was sent to.
    any: bool,
}

/// Where a query came from, and to which address of a socket that listens on all.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The client.
    pub addr: SocketAddr,
    asked: Option<IpAddr>,
}

impl Socket {
    /// Binds.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(addr: SocketAddr) -> io::Result<Self> {
        // No SO_REUSEADDR for UDP: with it, a second program would take the port without a word.
        let socket = UdpSocket::bind(addr).await?;
        // A smaller buffer is no reason not to serve.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
        let any = addr.ip().is_unspecified();
        if any && addr.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else if any {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(Self { socket, any })
    }

    /// The address with its real port.
    ///
    /// # Errors
    /// What the system says.
    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next datagram.
    ///
    /// # Errors
    /// What the system says.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
        if self.any {
            return self.socket.async_io(Interest::READABLE, || self.receive_any(buffer)).await;
        }
        let (len, addr) = self.socket.recv_from(buffer).await?;
        Ok((len, Peer { addr, asked: None }))
    }

    /// Answers from the address that was asked.
    ///
    /// # Errors
    /// What the system says.
    pub async fn send(&self, message: &[u8], to: &Peer) -> io::Result<()> {
        match to.asked {
            Some(from) => self.socket.async_io(Interest::WRITABLE, || self.send_from(message, to.addr, from)).await,
            None => self.socket.send_to(message, to.addr).await.map(drop),
        }
    }

    fn receive_any(&self, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
        let mut space = nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
        let asked = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(IpAddr::from(u32::from_be(info.ipi_spec_dst.s_addr).to_be_bytes()))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(IpAddr::from(info.ipi6_addr.s6_addr)),
            _ => None,
        });
        let addr = message.address.as_ref().and_then(to_std).ok_or(io::ErrorKind::InvalidData)?;
        Ok((message.bytes, Peer { addr, asked }))
    }

    fn send_from(&self, message: &[u8], to: SocketAddr, from: IpAddr) -> io::Result<()> {
        let slices = [IoSlice::new(message)];
        let to = SockaddrStorage::from(to);
        let send = |control: ControlMessage<'_>| {
            sendmsg(self.socket.as_raw_fd(), &slices, &[control], MsgFlags::MSG_DONTWAIT, Some(&to))
        };
        // Interface 0: the route decides.
        match from {
            IpAddr::V4(from) => send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            })),
            IpAddr::V6(from) => send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: from.octets() },
                ipi6_ifindex: 0,
            })),
        }?;
        Ok(())
    }
}

fn to_std(addr: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = addr.as_sockaddr_in().map(|addr| SocketAddr::from((addr.ip(), addr.port())));
    v4.or_else(|| addr.as_sockaddr_in6().map(|addr| SocketAddr::from((addr.ip(), addr.port()))))
}
