//! `dns.forward`: what happens to a name outside the cluster, for a client of some view; the longest zone decides.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    ClusterDns, DnsError, ForwardRule, Target, To, name,
    upstream::{Server, ServerInfo, Upstream, tls::Trust},
    zone::ALL_VIEWS,
};

/// What a rule does with a name.
#[derive(Debug)]
pub enum Action {
    /// These are asked.
    Forward(Box<[Asked]>),
    /// The client gets REFUSED.
    Refuse,
    /// The name has these addresses and nothing else.
    Addresses(Vec<IpAddr>),
    /// The name is an alias of this one, in wire format.
    Alias(Box<[u8]>),
}

/// Whom a rule asks.
#[derive(Clone, Debug)]
pub enum Asked {
    /// This server.
    Server(Arc<Server>),
    /// The servers that the cluster's DNS has at the time.
    Cluster(Arc<ClusterServers>),
}

impl Asked {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Server(one), Self::Server(other)) => one.upstream() == other.upstream(),
            (Self::Cluster(one), Self::Cluster(other)) => one.configured == other.configured,
            _ => false,
        }
    }

    /// They have a server in common, or are the cluster's DNS both.
    fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Server(server), Self::Cluster(cluster)) | (Self::Cluster(cluster), Self::Server(server)) => {
                cluster.now().iter().any(|one| one.upstream() == server.upstream())
            }
            _ => self.is_same(other),
        }
    }
}

/// The servers of the cluster's DNS, exchanged under the rules that ask them: questions on their way see the new ones, too.
#[derive(Debug, Default)]
pub struct ClusterServers {
    configured: Vec<SocketAddr>,
    now: RwLock<Arc<[Arc<Server>]>>,
    turn: AtomicUsize,
}

impl ClusterServers {
    fn now(&self) -> Arc<[Arc<Server>]> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// In the order of one question: they are one another's like, so each of those of the first one's family has its turn to be first.
    fn turned(&self) -> Vec<Arc<Server>> {
        let mut servers = self.now().to_vec();
        let v4 = servers.first().is_some_and(|server| server.upstream().addr.is_ipv4());
        let alike = servers.iter().take_while(|server| server.upstream().addr.is_ipv4() == v4).count();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(alike).unwrap_or(0);
        if let Some(alike) = servers.get_mut(..alike) {
            alike.rotate_left(turn);
        }
        servers
    }

    fn set(&self, servers: Vec<Arc<Server>>) {
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = servers.into();
    }
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
    fn asked(&self) -> &[Asked] {
        match &self.action {
            Action::Forward(asked) => asked,
            _ => &[],
        }
    }

    /// Servers to ask now, each once, in order; none when the rule does something else, or the cluster's DNS has none.
    pub fn servers(&self) -> Vec<Arc<Server>> {
        let mut servers: Vec<Arc<Server>> = Vec::new();
        for asked in self.asked() {
            match asked {
                Asked::Server(server) => add(&mut servers, server),
                Asked::Cluster(cluster) => cluster.turned().iter().for_each(|server| add(&mut servers, server)),
            }
        }
        servers
    }

    /// Whether it asks the cluster's DNS.
    pub fn asks_cluster(&self) -> bool {
        self.asked().iter().any(|asked| matches!(asked, Asked::Cluster(_)))
    }

    /// Whether what one has learnt holds for the other.
    fn agrees(&self, other: &Self) -> bool {
        self.asked().iter().any(|here| other.asked().iter().any(|there| there.agrees(here)))
    }

    fn is_same(&self, other: &Self) -> bool {
        let (own, others) = (self.asked(), other.asked());
        let same = own.len() == others.len() && own.iter().zip(others).all(|(own, other)| own.is_same(other));
        self.zone == other.zone && self.views == other.views && !own.is_empty() && same
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
    /// Those that the rules name.
    servers: Vec<Arc<Server>>,
    cluster: Arc<ClusterServers>,
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
        cluster: &ClusterDns,
        before: Option<&Self>,
    ) -> Result<Self, DnsError> {
        let same = before.map(|before| &before.cluster).filter(|before| before.configured == cluster.configured);
        let shared = same.cloned().unwrap_or_else(|| {
            Arc::new(ClusterServers { configured: cluster.configured.clone(), ..ClusterServers::default() })
        });
        let mut all =
            Self { next: before.map_or(1, |before| before.next), cluster: Arc::clone(&shared), ..Self::default() };
        let mut known: HashMap<&Upstream, Arc<Server>> = HashMap::new();
        let kept = |to: &Upstream| {
            let before = before.filter(|before| to.tls.is_none() || before.trust == trust)?;
            before.servers().into_iter().find(|server| server.upstream() == to)
        };
        for (index, rule) in rules.iter().enumerate() {
            let bad = |key: &str, name: &str| DnsError::Name {
                key: format!("dns.forward[{index}].{key}"),
                name: name.to_owned(),
            };
            let zone = name::from_text(&rule.zone).ok_or_else(|| bad("zone", &rule.zone))?;
            let mut asked = Vec::with_capacity(rule.to.len());
            for to in &rule.to {
                let To::Server(to) = to else {
                    asked.push(Asked::Cluster(Arc::clone(&shared)));
                    continue;
                };
                if is_own(to.addr, listen) {
                    return Err(DnsError::Loop { index, server: to.clone() });
                }
                if !known.contains_key(to) {
                    let server = kept(to).map_or_else(|| Server::new(to.clone(), &trust).map(Arc::new), Ok)?;
                    all.servers.push(Arc::clone(&server));
                    known.insert(to, server);
                }
                asked.push(Asked::Server(Arc::clone(&known[to])));
            }
            let action = match &rule.redirect[..] {
                [] if asked.is_empty() => Action::Refuse,
                [] => Action::Forward(asked.into()),
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
        // Only now: nothing changes for rules that are wrong.
        shared.set(all.find_cluster(&cluster.servers, before));
        Ok(all)
    }

    /// Replaces the servers of the cluster's DNS; those that stay keep their health. The rules stay, and so does what was learnt.
    pub fn set_cluster(&self, servers: &[SocketAddr]) {
        self.cluster.set(self.find_cluster(servers, None));
    }

    /// A server that rules name, too, is one server.
    fn find_cluster(&self, servers: &[SocketAddr], before: Option<&Self>) -> Vec<Arc<Server>> {
        let known: Vec<_> = self.servers().into_iter().chain(before.into_iter().flat_map(Self::servers)).collect();
        let one = |addr: &SocketAddr| {
            let to = Upstream::from(*addr);
            let known = known.iter().find(|server| *server.upstream() == to).cloned();
            known.unwrap_or_else(|| Arc::new(Server::at(*addr)))
        };
        servers.iter().map(one).collect()
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

    /// Every server: in the order of the config, and then the cluster's DNS.
    pub fn servers(&self) -> Vec<Arc<Server>> {
        let mut all = self.servers.clone();
        self.cluster.now().iter().for_each(|server| add(&mut all, server));
        all
    }

    /// What is done with a name that a client of that view asks for, in words.
    pub fn explain(&self, name: &[u8], view: u8) -> String {
        let Some(route) = self.route(name, view) else {
            return "no rule of dns.forward is for it: the forwarder refuses it".to_owned();
        };
        let rule = format!("the rule for `{}` of dns.forward", name::to_text(&route.zone));
        match &route.action {
            Action::Refuse => format!("{rule} refuses it"),
            Action::Addresses(all) => {
                let all: Vec<_> = all.iter().map(ToString::to_string).collect();
                format!("{rule} leads it to {}", all.join(", "))
            }
            Action::Alias(target) => format!("{rule} makes it an alias of {}", name::to_text(target)),
            Action::Forward(_) => {
                let state = |server: &Arc<Server>| if server.is_well() { "" } else { " (fails)" };
                let mut servers: Vec<String> =
                    route.servers().iter().map(|server| format!("{}{}", server.upstream(), state(server))).collect();
                servers.sort();
                let whom = if route.asks_cluster() { "the cluster's DNS: " } else { "" };
                match servers.is_empty() {
                    true => format!("{rule} asks the cluster's DNS, which has no endpoint: SERVFAIL"),
                    false => format!("{rule} asks {whom}{}", servers.join(", ")),
                }
            }
        }
    }

    /// Every server's health, for people.
    pub fn infos(&self) -> Vec<ServerInfo> {
        let named = self.servers.len();
        let info = |(index, server): (usize, &Arc<Server>)| ServerInfo { cluster: index >= named, ..server.info() };
        self.servers().iter().enumerate().map(info).collect()
    }
}

fn add(servers: &mut Vec<Arc<Server>>, server: &Arc<Server>) {
    if !servers.iter().any(|one| Arc::ptr_eq(one, server)) {
        servers.push(Arc::clone(server));
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
            &ClusterDns::default(),
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
            Rules::new(rules, Trust::default(), &listen, &ClusterDns::default(), None)
                .expect_err("an error")
                .to_string()
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
        assert!(Rules::new(&elsewhere, Trust::default(), &everywhere, &ClusterDns::default(), None).is_ok());
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
        let new = |rules: &[ForwardRule], before| {
            Rules::new(rules, Trust::default(), &[], &ClusterDns::default(), before).expect("rules")
        };
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
        assert!(
            Rules::new(&[of("a", &[], 0b11), of("a", &[], 0b10)], Trust::default(), &[], &ClusterDns::default(), None)
                .is_err()
        );
    }
}
