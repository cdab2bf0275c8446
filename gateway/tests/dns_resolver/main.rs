//! The resolver as its clients and the kernel see it: real sockets on loopback, a real Unbound and a hostile server upstream, and a
//! recording table in the kernel's place, which answers like the kernel from nothing but what was put into it.

mod cluster;
mod cluster_dns;
mod differential;
mod edns;
mod fake;
mod forward;
mod hostile;
mod limit;
mod line;
mod polar;
mod policy;
#[path = "../support/ports.rs"]
mod ports;
mod programs;
mod properties;
mod recorder;
mod support;
mod tls;
mod transport;
mod trouble;
mod upkeep;
mod zone;
