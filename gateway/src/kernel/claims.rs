//! What the gateway claims: the service CIDRs, VIPs outside them, and not the node's own addresses, which stay the node's.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use gateway_common::maps::{Claim, PrefixKey};
use ipnet::IpNet;

use super::{
    KernelError,
    family::{self, Pair},
};

/// `CLAIMS4/6`.
pub(super) type Tries = Pair<PrefixKey<[u8; 4]>, PrefixKey<[u8; 16]>, Claim>;

/// See the module.
#[derive(Debug)]
pub(super) struct Claims {
    tries: Tries,
    cidrs: Vec<IpNet>,
    vips: HashSet<IpAddr>,
    /// Addresses of the node's own.
    own: HashSet<IpAddr>,
    /// What the tries say.
    written: HashMap<IpNet, Claim>,
}

impl Claims {
    /// Nothing claimed.
    pub(super) fn new(tries: Tries) -> Self {
        let (cidrs, vips, own, written) = Default::default();
        Self { tries, cidrs, vips, own, written }
    }

    /// The service CIDRs, whole.
    pub(super) fn set_cidrs(&mut self, cidrs: &[IpNet]) -> Result<(), KernelError> {
        self.cidrs = cidrs.iter().map(IpNet::trunc).collect();
        self.settle_all()
    }

    /// The node's own addresses, whole.
    pub(super) fn set_own(&mut self, own: impl IntoIterator<Item = IpAddr>) -> Result<(), KernelError> {
        let own: HashSet<IpAddr> = own.into_iter().collect();
        if own == self.own {
            return Ok(());
        }
        self.own = own;
        self.settle_all()
    }

    /// Whether an address is a Service's.
    pub(super) fn set_vip(&mut self, vip: IpAddr, is: bool) -> Result<(), KernelError> {
        if is {
            self.vips.insert(vip);
        } else {
            self.vips.remove(&vip);
        }
        self.settle(vip.into())
    }

    /// Addresses of the node's own that a service CIDR contains, with that CIDR, sorted.
    pub(super) fn spared(&self) -> Vec<(IpAddr, IpNet)> {
        let spared = self.written.iter().filter(|(_, claim)| !claim.is_ours()).map(|(net, _)| net.addr());
        let with_cidr = |addr| Some((addr, *self.cidrs.iter().find(|cidr| cidr.contains(&addr))?));
        let mut spared: Vec<_> = spared.filter_map(with_cidr).collect();
        spared.sort_unstable();
        spared
    }

    /// What the tries have to say of that very prefix. An address of the node's own that is a Service's is the Service's: kube-proxy's
    /// IPVS mode gives the node every VIP, NodeLocal DNSCache that of the cluster's DNS.
    fn wanted(&self, net: IpNet) -> Option<Claim> {
        let addr = net.addr();
        let host = net.prefix_len() == net.max_prefix_len();
        let inside = host && self.cidrs.iter().any(|cidr| cidr.contains(&addr));
        let vip = host && self.vips.contains(&addr);
        if inside && !vip && self.own.contains(&addr) {
            return Some(Claim::SPARED);
        }
        (self.cidrs.contains(&net) || (vip && !inside)).then_some(Claim::OURS)
    }

    fn settle_all(&mut self) -> Result<(), KernelError> {
        let hosts = self.vips.iter().chain(&self.own).map(|addr| IpNet::from(*addr));
        let nets: HashSet<IpNet> =
            hosts.chain(self.cidrs.iter().copied()).chain(self.written.keys().copied()).collect();
        // Exceptions come before what they are exceptions to, and go after it: the node is not cut off for a moment.
        let coming = nets.iter().filter_map(|net| Some((self.wanted(*net)?.kind, *net)));
        let mut coming: Vec<(u32, IpNet)> = coming.collect();
        coming.sort_unstable();
        let mut going: Vec<IpNet> = nets.into_iter().filter(|net| self.wanted(*net).is_none()).collect();
        going.sort_unstable_by_key(|net| Reverse(self.written.get(net).map_or(0, |claim| claim.kind)));
        coming.into_iter().map(|(_, net)| net).chain(going).try_for_each(|net| self.settle(net))
    }

    /// Makes the tries say what they have to of that very prefix.
    fn settle(&mut self, net: IpNet) -> Result<(), KernelError> {
        match self.wanted(net) {
            Some(claim) if self.written.get(&net) != Some(&claim) => {
                self.tries.put(&family::prefix(net), &claim)?;
                self.written.insert(net, claim);
            }
            None if self.written.remove(&net).is_some() => {
                self.tries.remove(&family::prefix(net))?;
            }
            _ => {}
        }
        Ok(())
    }
}
