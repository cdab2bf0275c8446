//! The families, as the stages see them: what is parsed, and the maps.

use gateway_common::{
    maps::Config,
    net::{
        family::{Family, V4, V6},
        inner::Quoted,
        parse::Parse,
    },
};

use crate::{flows, relay, services};

/// A family with all that a stage needs of it.
pub trait Net: Parse + Quoted + flows::Table + services::Table + relay::Memory {
    /// The source addresses for `snat`, and how many of them are used.
    fn snat(config: &Config) -> (&[Self::Addr; gateway_common::limits::MAX_SNAT_ADDRESSES], u32);
    /// The addresses on which the gateway is a name server, and how many of them are used.
    fn dns(config: &Config) -> (&[Self::Addr; gateway_common::limits::MAX_DNS_ADDRESSES], u32);
    /// The gateway's own address; zero: it has none.
    fn address(config: &Config) -> &Self::Addr;
    /// The address that is none.
    const ZERO: Self::Addr;
}

impl Net for V4 {
    const ZERO: [u8; 4] = [0; 4];
    #[inline(always)]
    fn snat(config: &Config) -> (&[[u8; 4]; gateway_common::limits::MAX_SNAT_ADDRESSES], u32) {
        (&config.snat4, config.snat4_len)
    }
    #[inline(always)]
    fn dns(config: &Config) -> (&[[u8; 4]; gateway_common::limits::MAX_DNS_ADDRESSES], u32) {
        (&config.dns4, config.dns4_len)
    }
    #[inline(always)]
    fn address(config: &Config) -> &[u8; 4] {
        &config.own4
    }
}

impl Net for V6 {
    const ZERO: [u8; 16] = [0; 16];
    #[inline(always)]
    fn snat(config: &Config) -> (&[[u8; 16]; gateway_common::limits::MAX_SNAT_ADDRESSES], u32) {
        (&config.snat6, config.snat6_len)
    }
    #[inline(always)]
    fn dns(config: &Config) -> (&[[u8; 16]; gateway_common::limits::MAX_DNS_ADDRESSES], u32) {
        (&config.dns6, config.dns6_len)
    }
    #[inline(always)]
    fn address(config: &Config) -> &[u8; 16] {
        &config.own6
    }
}

/// The bits of a prefix that is one address.
#[inline(always)]
pub const fn bits<N: Family>() -> u32 {
    if N::VERSION == 4 { 32 } else { 128 }
}
