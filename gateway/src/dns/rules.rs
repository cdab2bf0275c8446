//! `dns.forward`: what happens to a name outside the cluster, for a client of some view; the longest zone decides.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
};

use super::{
    DnsError, ForwardRule, Target, name,
    upstream::{Server, Upstream, tls::Trust},
    zone::ALL_VIEWS,
};

/// What a rule does with a name.
#[derive(Debug)]
pub enum Action {
    /// These servers are asked.
    Forward(Arc<[Arc<Server>]>),
    /// The client gets REFUSED.
    Refuse,
    /// The name has these addresses and nothing else.
    Addresses(Vec<IpAddr>),
    /// The name is an alias of this one, in wire format.
    Alias(Box<[u8]>),
}

/// One rule.
#[derive(Debug)]
pub struct Route {
    /// Its number, which stays the same while a rule for the same zone and views asks the same servers.
    pub id: u32,
    /// The zone, in wire format.
    pub zone: Box<[u8]>,
    /// The views that it is for; bit = view number.
    pub views: u64,
    /// What it does.
    pub action: Action,
    /// Questions are asked in random case, which the answer must have too.
    pub mixed_case: bool,
}

impl Route {
    /// Servers to ask; none when the rule does something else.
    pub fn servers(&self) -> &[Arc<Server>] {
        match &self.action {
            Action::Forward(servers) => servers,
            _ => &[],
        }
    }

    /// Whether what one has learnt holds for the other: they have a server in common.
    fn agrees(&self, other: &Self) -> bool {
        self.servers().iter().any(|here| other.servers().iter().any(|there| there.upstream() == here.upstream()))
    }

    fn is_same(&self, other: &Self) -> bool {
        let all = |route: &Self| route.servers().iter().map(|server| server.upstream().clone()).collect::<Vec<_>>();
        self.zone == other.zone && self.views == other.views && !self.servers().is_empty() && all(self) == all(other)
    }
}

/// The rules, by zone.
#[derive(Debug, Default)]
pub struct Rules {
    /// For each zone the rules for some views first, then the one for all.
    zones: HashMap<Box<[u8]>, Vec<Arc<Route>>>,
    by_id: HashMap<u32, Arc<Route>>,
    /// The views that some rule names.
    named: u64,
    next: u32,
    servers: Vec<Arc<Server>>,
    trust: Trust,
}

impl Rules {
    /// From the config. A server that several rules name is one server: its health is known once. Servers of `before` stay what they
    /// are, with their health and their sessions.
    ///
    /// # Errors
    /// Names that are none, two rules for one zone and view, the gateway as its own server, TLS without what it needs.
    pub fn new(
        rules: &[ForwardRule],
        trust: Trust,
        listen: &[SocketAddr],
        before: Option<&Self>,
    ) -> Result<Self, DnsError> {
        let mut all = Self { next: before.map_or(1, |before| before.next), ..Self::default() };
        let mut known: HashMap<&Upstream, Arc<Server>> = HashMap::new();
        let kept = |to: &Upstream| {
            let before = before.filter(|before| to.tls.is_none() || before.trust == trust)?;
            before.servers.iter().find(|server| server.upstream() == to).cloned()
        };
        for (index, rule) in rules.iter().enumerate() {
            let bad = |key: &str, name: &str| DnsError::Name {
                key: format!("dns.forward[{index}].{key}"),
                name: name.to_owned(),
            };
            let zone = name::from_text(&rule.zone).ok_or_else(|| bad("zone", &rule.zone))?;
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
            let action = match &rule.redirect[..] {
                [] if servers.is_empty() => Action::Refuse,
                [] => Action::Forward(servers.into()),
                [Target::Name(target), ..] => {
                    Action::Alias(name::from_text(target).ok_or_else(|| bad("redirect", target))?)
                }
                targets => Action::Addresses(targets.iter().filter_map(Target::address).collect()),
            };
            let mut route = Route { id: 0, zone, views: rule.views, action, mixed_case: rule.mixed_case };
            let same = before.and_then(|before| before.zones.get(&route.zone)?.iter().find(|old| old.is_same(&route)));
            route.id = same.map_or_else(|| all.number(), |old| old.id);
            if !all.add(route) {
                return Err(DnsError::DuplicateZone { index, zone: rule.zone.clone() });
            }
        }
        all.trust = trust;
        Ok(all)
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Says whether there was room: no other rule for the same zone and view.
    fn add(&mut self, route: Route) -> bool {
        let route = Arc::new(route);
        let routes = self.zones.entry(route.zone.clone()).or_default();
        let general = route.views == ALL_VIEWS;
        if routes.iter().any(|other| (other.views == ALL_VIEWS) == general && other.views & route.views != 0) {
            return false;
        }
        self.by_id.insert(route.id, Arc::clone(&route));
        if general {
            routes.push(route);
        } else {
            self.named |= route.views;
            routes.insert(0, route);
        }
        true
    }

    /// The rule for a name that a client of that view asks for; `None`: no rule lets it out.
    pub fn route(&self, name: &[u8], view: u8) -> Option<&Arc<Route>> {
        let sees = |route: &&Arc<Route>| route.views.checked_shr(view.into()).unwrap_or(0) & 1 != 0;
        name::upwards(name).find_map(|zone| self.zones.get(zone)?.iter().find(sees))
    }

    /// The rule of that number.
    pub fn by_id(&self, id: u32) -> Option<&Arc<Route>> {
        self.by_id.get(&id)
    }

    /// The views whose clients get the same for that name by that rule.
    pub fn views_of(&self, name: &[u8], id: u32) -> u64 {
        let by = |view: u8| self.route(name, view).is_some_and(|route| route.id == id);
        representatives(self.named).filter(|(view, _)| by(*view)).fold(0, |views, (_, all)| views | all)
    }

    /// The number and the views under which something learnt is known by other rules: those who got it still ask one of the servers
    /// that it may be from. `None`: it is to be forgotten.
    pub fn carried(&self, after: &Self, name: &[u8], id: u32) -> Option<(u32, u64)> {
        let before = self.by_id(id)?;
        let views = self.views_of(name, id);
        let mut routes = representatives(self.named | after.named)
            .filter(|(view, _)| views >> view & 1 != 0)
            .map(|(view, _)| after.route(name, view));
        let first = routes.next()??;
        let stays = first.agrees(before) && routes.all(|route| route.is_some_and(|route| route.id == first.id));
        stays.then(|| (first.id, after.views_of(name, first.id)))
    }

    /// Every server, in the order of the config.
    pub fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }
}

/// Each view that some rule names, and one for all others, with the views that it stands for.
fn representatives(named: u64) -> impl Iterator<Item = (u8, u64)> {
    let other = (!named != 0).then(|| ((!named).trailing_zeros() as u8, !named));
    (0..64).filter(move |view| named >> view & 1 != 0).map(|view| (view, 1 << view)).chain(other)
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
            ..ForwardRule::default()
        }
    }

    fn addresses(rules: &Rules, name: &str) -> Vec<String> {
        let name = name::from_text(name).expect("name");
        let route = rules.route(&name, 0);
        route.map_or_else(Vec::new, |route| route.servers().iter().map(|s| s.upstream().to_string()).collect())
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

    #[test]
    fn a_rule_for_some_views_goes_before_the_one_for_all_and_a_longer_zone_before_both() {
        let of = |zone, to: &[&str], views| ForwardRule { views, ..rule(zone, to) };
        let all = ALL_VIEWS;
        let rules = [
            of(".", &["192.0.2.1:53"], all),
            of("example.org", &["192.0.2.2:53"], all),
            of("example.org", &[], 0b10),
            of("www.example.org", &["192.0.2.3:53"], 0b100),
        ];
        let new = |rules: &[ForwardRule], before| Rules::new(rules, Trust::default(), &[], before).expect("rules");
        let before = new(&rules, None);
        let name = |text| name::from_text(text).expect("name");
        let www = name("www.example.org");
        let route = |rules: &Rules, view| rules.route(&www, view).map(|route| route.id).expect("a route");
        let servers = |view| {
            let route = before.route(&www, view).expect("a route");
            route.servers().iter().map(|server| server.upstream().addr.ip().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            (servers(0), servers(2), servers(63)),
            (vec!["192.0.2.2".into()], vec!["192.0.2.3".into()], servers(0))
        );
        assert!(servers(1).is_empty() && matches!(before.route(&www, 1).expect("route").action, Action::Refuse));
        assert_eq!(before.views_of(&www, route(&before, 0)), !0b110);
        assert_eq!(before.views_of(&www, route(&before, 2)), 0b100);
        assert_eq!(before.views_of(&name("org"), route(&before, 0)), 0);

        // The rule for view 1 goes: what the others learnt is theirs too. The one of view 2 asks somebody else: it is forgotten.
        let mut changed = vec![rules[0].clone(), rules[1].clone(), of("www.example.org", &["192.0.2.4:53"], 0b100)];
        let after = new(&changed, Some(&before));
        assert_eq!(before.carried(&after, &www, route(&before, 0)), Some((route(&before, 0), !0b100)));
        assert_eq!(before.carried(&after, &www, route(&before, 2)), None);
        // A rule for one more view takes it away from those that had it in common.
        changed.push(of("www.example.org", &["192.0.2.2:53"], 0b1));
        let split = new(&changed, Some(&after));
        assert_eq!(after.carried(&split, &www, route(&after, 1)), None);
        assert!(Rules::new(&[of("a", &[], 0b11), of("a", &[], 0b10)], Trust::default(), &[], None).is_err());
    }
}
