//! `dns.forward`: which servers are asked for a name; the longest zone decides.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use super::{
    DnsError, ForwardRule, name,
    upstream::{Server, Upstream, tls::Trust},
};

/// The rules, by zone.
#[derive(Debug, Default)]
pub struct Rules {
    zones: HashMap<Box<[u8]>, Arc<[Arc<Server>]>>,
    servers: Vec<Arc<Server>>,
    trust: Trust,
}

impl Rules {
    /// From the config. A server that several rules name is one server: its health is known once. Servers of `before` stay what they
    /// are, with their health and their sessions.
    ///
    /// # Errors
    /// Names that are none, two rules for one zone, the gateway as its own server, TLS without what it needs.
    pub fn new(
        rules: &[ForwardRule],
        trust: Trust,
        listen: &[SocketAddr],
        before: Option<&Self>,
    ) -> Result<Self, DnsError> {
        let mut all = Self::default();
        let mut known: HashMap<&Upstream, Arc<Server>> = HashMap::new();
        let kept = |to: &Upstream| {
            let before = before.filter(|before| to.tls.is_none() || before.trust == trust)?;
            before.servers.iter().find(|server| server.upstream() == to).cloned()
        };
        for (index, rule) in rules.iter().enumerate() {
            let zone = name::from_text(&rule.zone)
                .ok_or_else(|| DnsError::Name { key: format!("dns.forward[{index}].zone"), name: rule.zone.clone() })?;
            if let Some(server) = rule.to.iter().find(|server| is_own(server.addr, listen)) {
                return Err(DnsError::Loop { index, server: server.clone() });
            }
            let mut servers = Vec::with_capacity(rule.to.len());
            for to in &rule.to {
                if !known.contains_key(to) {
                    let server = kept(to).map_or_else(|| Server::new(to.clone(), &trust).map(Arc::new), Ok)?;
                    all.servers.push(Arc::clone(&server));
                    known.insert(to, server);
                }
                servers.push(Arc::clone(&known[to]));
            }
            let servers = servers.into();
            if all.zones.insert(zone, servers).is_some() {
                return Err(DnsError::DuplicateZone { index, zone: rule.zone.clone() });
            }
        }
        all.trust = trust;
        Ok(all)
    }

    /// Whether what was learnt about a name under these rules holds under others: it is refused by both, or they have a server in
    /// common.
    pub fn agree(&self, other: &Self, name: &[u8]) -> bool {
        match (self.servers_for(name), other.servers_for(name)) {
            (Some(here), Some(there)) => {
                here.iter().any(|server| there.iter().any(|other| other.upstream() == server.upstream()))
            }
            (None, None) => true,
            _ => false,
        }
    }

    /// The servers for a name; `None` (or none in it): refused.
    pub fn servers_for(&self, name: &[u8]) -> Option<&Arc<[Arc<Server>]>> {
        name::upwards(name).find_map(|zone| self.zones.get(zone)).filter(|servers| !servers.is_empty())
    }

    /// The zone of the rule for a name.
    pub fn zone_of<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        name::upwards(name).find(|zone| self.zones.contains_key(*zone))
    }

    /// Every server, in the order of the config.
    pub fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }
}

/// Whether a question to that address would come back: it is listened on, by itself or as one of all addresses.
fn is_own(server: SocketAddr, listen: &[SocketAddr]) -> bool {
    listen.iter().any(|own| {
        own.port() == server.port()
            && (own.ip() == server.ip()
                || own.ip().is_unspecified() && own.is_ipv4() == server.is_ipv4() && is_local(server))
    })
}

/// Only this machine's addresses can be bound.
fn is_local(addr: SocketAddr) -> bool {
    UdpSocket::bind((addr.ip(), 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(zone: &str, to: &[&str]) -> ForwardRule {
        ForwardRule {
            zone: zone.to_owned(),
            to: to.iter().map(|a| a.parse::<SocketAddr>().expect("address").into()).collect(),
        }
    }

    fn addresses(rules: &Rules, name: &str) -> Vec<String> {
        let name = name::from_text(name).expect("name");
        rules
            .servers_for(&name)
            .map_or_else(Vec::new, |servers| servers.iter().map(|s| s.upstream().to_string()).collect())
    }

    #[test]
    fn the_longest_zone_decides_and_no_server_means_refused() {
        let rules = Rules::new(
            &[
                rule(".", &["192.0.2.1:53"]),
                rule("Example.ORG.", &["192.0.2.2:53", "192.0.2.1:53"]),
                rule("secret.example.org", &[]),
            ],
            Trust::default(),
            &[],
            None,
        )
        .expect("rules");
        assert_eq!(addresses(&rules, "www.example.org"), ["192.0.2.2:53", "192.0.2.1:53"]);
        assert_eq!(addresses(&rules, "example.org"), ["192.0.2.2:53", "192.0.2.1:53"]);
        assert_eq!(addresses(&rules, "anexample.org"), ["192.0.2.1:53"]);
        assert!(addresses(&rules, "x.secret.example.org").is_empty());
        assert_eq!(rules.servers().len(), 2, "one server, one health");
    }

    #[test]
    fn a_rule_that_cannot_be_is_named() {
        let error = |rules: &[ForwardRule], listen: &[&str]| {
            let listen: Vec<SocketAddr> = listen.iter().map(|a| a.parse().expect("address")).collect();
            Rules::new(rules, Trust::default(), &listen, None).expect_err("an error").to_string()
        };
        let twice = error(&[rule("a.org", &[]), rule("A.org.", &[])], &[]);
        assert!(twice.contains("dns.forward[1].zone") && twice.contains("A.org."), "{twice}");
        let bad = error(&[rule("a..org", &[])], &[]);
        assert!(bad.contains("dns.forward[0].zone") && bad.contains("a..org"), "{bad}");
        let circle = error(&[rule(".", &["127.0.0.1:5353"])], &["127.0.0.1:5353"]);
        assert!(circle.contains("dns.forward[0].to") && circle.contains("127.0.0.1:5353"), "{circle}");
        let circle = error(&[rule(".", &["127.0.0.1:5353"])], &["0.0.0.0:5353"]);
        assert!(circle.contains("in circles"), "{circle}");
        let elsewhere = [rule(".", &["192.0.2.1:53"])];
        let everywhere = ["0.0.0.0:53".parse().expect("address")];
        assert!(Rules::new(&elsewhere, Trust::default(), &everywhere, None).is_ok());
    }
}
