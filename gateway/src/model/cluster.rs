//! The index over the objects, and what a batch of events touched.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{Dirty, Event, Here, Identity, Node, ObjectName, Objects, Pod, Service, Slice, names::Names};

/// The objects, the slices of each Service, and the Services that claim each VIP.
#[derive(Debug, Default)]
pub struct Cluster {
    /// The objects.
    pub objects: Objects,
    /// Slices by Service. Maintained by [`Cluster::apply`].
    pub(super) slices_of: HashMap<ObjectName, Names>,
    /// Services by ClusterIP. More than one only while an address changes hands, or in wrong manifests.
    claims: HashMap<IpAddr, Names>,
    /// Services by external and load-balancer address. Several may share one, each with ports of its own.
    outer: HashMap<IpAddr, Names>,
    /// How many nodes have an address.
    node_addresses: HashMap<IpAddr, usize>,
    identity: Identity,
    here: Here,
}

impl Slice {
    /// The Service it belongs to.
    pub fn service_name(&self) -> ObjectName {
        ObjectName { namespace: self.name.namespace.clone(), name: self.service.clone() }
    }

    /// Whether any endpoint is meant for certain zones or nodes.
    fn has_hints(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.hints.is_some())
    }
}

impl Cluster {
    /// Empty, with what the gateway knows of its own node.
    pub fn seen_from(identity: Identity) -> Self {
        let here = identity.find(&BTreeMap::new());
        Self { identity, here, ..Self::default() }
    }

    /// The gateway's place in it.
    pub const fn here(&self) -> &Here {
        &self.here
    }

    /// Takes in a batch, in order, and says which Services must be planned anew. An event that changes nothing touches nothing.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Dirty {
        let mut dirty = Dirty::default();
        let mut nodes_changed = false;
        for event in events {
            match event {
                Event::Snapshot(objects) => {
                    nodes_changed = true;
                    self.replace(*objects, &mut dirty);
                }
                Event::Service(service) => self.put_service(service, &mut dirty),
                Event::ServiceGone(name) => self.remove_service(&name, &mut dirty),
                Event::Slice(slice) => self.put_slice(slice, &mut dirty),
                Event::SliceGone(name) => self.remove_slice(&name, &mut dirty),
                Event::Namespace(name) => {
                    if self.objects.namespaces.insert(name.clone()) {
                        dirty.namespaces.insert(name);
                    }
                }
                Event::NamespaceGone(name) => {
                    if self.objects.namespaces.remove(&name) {
                        dirty.namespaces.insert(name);
                    }
                }
                Event::Node(node) => nodes_changed |= self.put_node(node, &mut dirty),
                Event::NodeGone(name) => nodes_changed |= self.remove_node(&name, &mut dirty),
                Event::Pod(pod) => self.put_pod(pod, &mut dirty),
                Event::PodGone(name) => self.remove_pod(name, &mut dirty),
                Event::ServiceCidrs(cidrs) => self.set_cidrs(Some(cidrs), &mut dirty),
            }
        }
        if nodes_changed {
            self.look_around(&mut dirty);
        }
        dirty
    }

    /// The slices of a Service that count: the real ones or, when it has none, those made from Endpoints objects.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> {
        let all = || self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.objects.slices.get(name));
        let legacy = all().all(|slice| slice.legacy);
        all().filter(move |slice| slice.legacy == legacy)
    }

    /// Which Service an address belongs to. Of several that claim it, the first by name has it.
    pub fn owner(&self, vip: IpAddr) -> Option<&ObjectName> {
        self.claims.get(&vip)?.first()
    }

    /// The Services with this external or load-balancer address, by name.
    pub fn sharers(&self, vip: IpAddr) -> impl Iterator<Item = &Service> {
        self.outer.get(&vip).into_iter().flatten().filter_map(|name| self.objects.services.get(name))
    }

    /// Whether it is an address of one of the nodes.
    pub fn is_node(&self, addr: IpAddr) -> bool {
        self.node_addresses.contains_key(&addr)
    }

    /// The difference between what there is and a whole new state, as if it had come as single events.
    fn replace(&mut self, new: Objects, dirty: &mut Dirty) {
        let Objects { services, slices, namespaces, nodes, pods, service_cidrs } = new;
        for name in absent(&self.objects.services, &services) {
            self.remove_service(&name, dirty);
        }
        for name in absent(&self.objects.slices, &slices) {
            self.remove_slice(&name, dirty);
        }
        for service in services.into_values() {
            self.put_service(service, dirty);
        }
        for slice in slices.into_values() {
            self.put_slice(slice, dirty);
        }
        dirty.namespaces.extend(self.objects.namespaces.symmetric_difference(&namespaces).cloned());
        self.objects.namespaces = namespaces;
        let gone: Vec<String> = self.objects.nodes.keys().filter(|n| !nodes.contains_key(*n)).cloned().collect();
        for name in gone {
            self.remove_node(&name, dirty);
        }
        for node in nodes.into_values() {
            self.put_node(node, dirty);
        }
        for name in absent(&self.objects.pods, &pods) {
            self.remove_pod(name, dirty);
        }
        for pod in pods.into_values() {
            self.put_pod(pod, dirty);
        }
        self.set_cidrs(service_cidrs, dirty);
    }

    fn put_service(&mut self, service: Service, dirty: &mut Dirty) {
        let name = service.name.clone();
        let old = self.objects.services.get(&name);
        if old == Some(&service) {
            return;
        }
        let (gone, left) = old.map(addresses).unwrap_or_default();
        let (come, joined) = addresses(&service);
        // Whoever shares one of its addresses may win or lose a port by any change of it, be it of ports alone.
        self.objects.services.insert(name.clone(), service);
        self.reclaim(&name, &gone, &come, dirty);
        self.rejoin(&name, &left, &joined, dirty);
        dirty.services.insert(name);
    }

    fn remove_service(&mut self, name: &ObjectName, dirty: &mut Dirty) {
        if let Some(old) = self.objects.services.remove(name) {
            let (gone, left) = addresses(&old);
            self.reclaim(name, &gone, &[], dirty);
            self.rejoin(name, &left, &[], dirty);
            dirty.services.insert(name.clone());
        }
    }

    /// Moves a Service's claims. Whoever else claims one of those addresses may have won or lost it, and is planned anew.
    fn reclaim(&mut self, name: &ObjectName, gone: &[IpAddr], come: &[IpAddr], dirty: &mut Dirty) {
        for vip in gone.iter().filter(|vip| !come.contains(vip)) {
            if let Some(claimants) = self.claims.get_mut(vip) {
                claimants.remove(name);
                dirty.services.extend(claimants.iter().cloned());
                if claimants.is_empty() {
                    self.claims.remove(vip);
                }
            }
            dirty.services.extend(self.outer.get(vip).into_iter().flatten().cloned());
        }
        for vip in come.iter().filter(|vip| !gone.contains(vip)) {
            let claimants = self.claims.entry(*vip).or_default();
            dirty.services.extend(claimants.iter().cloned());
            claimants.insert(name.clone());
            dirty.services.extend(self.outer.get(vip).into_iter().flatten().cloned());
        }
    }

    /// As [`Self::reclaim`], for addresses that Services may share.
    fn rejoin(&mut self, name: &ObjectName, left: &[IpAddr], joined: &[IpAddr], dirty: &mut Dirty) {
        for vip in left.iter().chain(joined) {
            let sharers = self.outer.entry(*vip).or_default();
            if joined.contains(vip) {
                sharers.insert(name.clone());
            } else {
                sharers.remove(name);
            }
            dirty.services.extend(sharers.iter().cloned());
            if sharers.is_empty() {
                self.outer.remove(vip);
            }
        }
    }

    /// Whether it changed anything.
    fn put_node(&mut self, node: Node, dirty: &mut Dirty) -> bool {
        if self.objects.nodes.get(&node.name) == Some(&node) {
            return false;
        }
        self.remove_node(&node.name, dirty);
        for addr in &node.addresses {
            *self.node_addresses.entry(*addr).or_default() += 1;
            self.of_machine(addr, dirty);
        }
        self.objects.nodes.insert(node.name.clone(), node);
        true
    }

    /// An address became a machine's own or ceases to be: whoever wants it as a VIP is planned anew.
    fn of_machine(&self, addr: &IpAddr, dirty: &mut Dirty) {
        for wanted in [&self.outer, &self.claims] {
            dirty.services.extend(wanted.get(addr).into_iter().flatten().cloned());
        }
    }

    fn remove_node(&mut self, name: &str, dirty: &mut Dirty) -> bool {
        let Some(old) = self.objects.nodes.remove(name) else { return false };
        for addr in &old.addresses {
            if let Some(count) = self.node_addresses.get_mut(addr) {
                *count -= 1;
                if *count == 0 {
                    self.node_addresses.remove(addr);
                }
            }
            self.of_machine(addr, dirty);
        }
        true
    }

    fn put_pod(&mut self, pod: Pod, dirty: &mut Dirty) {
        if self.objects.pods.get(&pod.name) != Some(&pod) {
            dirty.pods.insert(pod.name.clone());
            self.objects.pods.insert(pod.name.clone(), pod);
        }
    }

    fn remove_pod(&mut self, name: ObjectName, dirty: &mut Dirty) {
        if self.objects.pods.remove(&name).is_some() {
            dirty.pods.insert(name);
        }
    }

    /// The gateway's own place anew; when it is another one, the Services that ask for near endpoints are planned anew.
    fn look_around(&mut self, dirty: &mut Dirty) {
        let here = self.identity.find(&self.objects.nodes);
        if here == self.here {
            return;
        }
        self.here = here;
        let near = |service: &&Service| service.internal_local || self.slices(&service.name).any(Slice::has_hints);
        dirty.services.extend(self.objects.services.values().filter(near).map(|service| service.name.clone()));
    }

    fn put_slice(&mut self, slice: Slice, dirty: &mut Dirty) {
        match self.objects.slices.get(&slice.name) {
            Some(old) if *old == slice => return,
            Some(old) if old.service != slice.service => {
                let name = slice.name.clone();
                self.remove_slice(&name, dirty);
            }
            _ => {}
        }
        let service = slice.service_name();
        self.slices_of.entry(service.clone()).or_default().insert(slice.name.clone());
        self.objects.slices.insert(slice.name.clone(), slice);
        dirty.services.insert(service);
    }

    fn remove_slice(&mut self, name: &ObjectName, dirty: &mut Dirty) {
        let Some(old) = self.objects.slices.remove(name) else { return };
        let service = old.service_name();
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        dirty.services.insert(service);
    }

    fn set_cidrs(&mut self, cidrs: Option<Vec<ipnet::IpNet>>, dirty: &mut Dirty) {
        if self.objects.service_cidrs != cidrs {
            self.objects.service_cidrs = cidrs;
            dirty.cidrs = true;
        }
    }
}

/// A Service's ClusterIPs, and its other addresses.
fn addresses(service: &Service) -> (Vec<IpAddr>, Vec<IpAddr>) {
    (service.cluster_ips().to_vec(), service.outer_ips().collect())
}

fn absent<V, W>(old: &BTreeMap<ObjectName, V>, new: &BTreeMap<ObjectName, W>) -> Vec<ObjectName> {
    old.keys().filter(|name| !new.contains_key(name)).cloned().collect()
}

impl Objects {
    /// Adds what came as a single event; used by sources that gather an initial list.
    pub fn insert_service(&mut self, service: Service) {
        self.services.insert(service.name.clone(), service);
    }
    /// As above.
    pub fn insert_slice(&mut self, slice: Slice) {
        self.slices.insert(slice.name.clone(), slice);
    }
    /// As above.
    pub fn insert_node(&mut self, node: Node) {
        self.nodes.insert(node.name.clone(), node);
    }
    /// As above.
    pub fn insert_pod(&mut self, pod: Pod) {
        self.pods.insert(pod.name.clone(), pod);
    }

    /// The single events that lead from `self` to `new`: removals first, so that what changed its name is never there twice.
    pub fn difference(&self, new: &Self) -> Vec<Event> {
        let mut events = Vec::new();
        events.extend(absent(&self.services, &new.services).into_iter().map(Event::ServiceGone));
        events.extend(absent(&self.slices, &new.slices).into_iter().map(Event::SliceGone));
        events.extend(self.namespaces.difference(&new.namespaces).cloned().map(Event::NamespaceGone));
        events.extend(self.nodes.keys().filter(|n| !new.nodes.contains_key(*n)).cloned().map(Event::NodeGone));
        events.extend(absent(&self.pods, &new.pods).into_iter().map(Event::PodGone));
        events.extend(changed(&self.services, &new.services).map(Event::Service));
        events.extend(changed(&self.slices, &new.slices).map(Event::Slice));
        events.extend(new.namespaces.difference(&self.namespaces).cloned().map(Event::Namespace));
        events.extend(changed(&self.nodes, &new.nodes).map(Event::Node));
        events.extend(changed(&self.pods, &new.pods).map(Event::Pod));
        if self.service_cidrs != new.service_cidrs {
            events.push(Event::ServiceCidrs(new.service_cidrs.clone().unwrap_or_default()));
        }
        events
    }
}

fn changed<K: Ord, V: Clone + PartialEq>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> impl Iterator<Item = V> {
    new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(_, value)| value.clone())
}
