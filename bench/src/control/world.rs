//! The cluster that the figures are of: as many Services as asked for with ten endpoints each, in a tenth as many namespaces; headless
//! ones beside them, whose names follow their endpoints; and one with thousands of endpoints.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::api::Api;

/// Endpoints of an ordinary Service.
const ENDPOINTS: u32 = 10;
/// Most endpoints of one slice, as the controller makes them.
const SLICE: u32 = 100;
/// Headless Services, of one endpoint each.
pub const HEADLESS: u32 = 200;
/// Endpoints' addresses begin here; the lab routes them.
pub const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
/// Services' addresses begin here.
const VIPS: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 0);

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Services with ten endpoints each.
    pub services: u32,
    /// Endpoints of the one large Service.
    pub large: u32,
}

impl Size {
    /// Endpoints in all.
    pub const fn endpoints(self) -> u32 {
        self.services * ENDPOINTS + self.large + HEADLESS
    }
}

const fn plus(base: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(base.to_bits() + number)
}

/// The ClusterIP of an ordinary Service.
pub const fn vip(number: u32) -> Ipv4Addr {
    plus(VIPS, number)
}

fn namespace(number: u32) -> String {
    format!("team-{}", number / 10)
}

/// Metadata as an API server's, with what the agent has no use for.
fn metadata(namespace: &str, name: &str, labels: Value) -> Value {
    json!({
        "name": name, "namespace": namespace, "labels": labels, "uid": format!("6a5fbc2e-7b0c-4a58-9d6c-{:012}", name.len()),
        "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1,
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": format!("{{\"kind\":\"Service\",\"name\":\"{name}\"}}\n")},
        "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:ports": {}, "f:selector": {}}}}],
    })
}

fn service(namespace: &str, name: &str, cluster_ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(namespace, name, json!({"app": name})),
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "selector": {"app": name},
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {}},
    })
}

fn slice(namespace: &str, service: &str, part: u32, addresses: impl Iterator<Item = Ipv4Addr>) -> Value {
    let endpoint = |addr: Ipv4Addr| {
        let [.., c, d] = addr.octets();
        json!({
            "addresses": [addr.to_string()], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{:03}", addr.to_bits() % 250), "zone": format!("zone-{}", addr.to_bits() % 3),
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("{service}-{c:02x}{d:02x}"),
                "uid": "5f0c62b2-95b5-4f5a-9f6b-0d6a9a4a2f10"},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata(namespace, &format!("{service}-{part:05}"), json!({
            "kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        })),
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": addresses.map(endpoint).collect::<Vec<_>>(),
    })
}

/// The slice of an ordinary Service; `turn` decides the address of its last endpoint.
pub fn ordinary_slice(number: u32, turn: u32) -> Value {
    let first = number * (ENDPOINTS + 2);
    let last = first + ENDPOINTS - 1 + turn % 2;
    let addresses = (first..first + ENDPOINTS - 1).chain([last]).map(|host| plus(PODS, 256 + host));
    slice(&namespace(number), &format!("web-{number}"), 0, addresses)
}

/// A slice of the large Service; `turn` decides the address of its last endpoint.
pub fn large_slice(size: Size, part: u32, turn: u32) -> Value {
    let first = size.services * (ENDPOINTS + 2) + part * (SLICE + 2);
    let addresses =
        (first..first + SLICE - 1).chain([first + SLICE - 1 + turn % 2]).map(|host| plus(PODS, 4096 + host));
    slice("team-0", "large", part, addresses)
}

/// The ClusterIP of the large Service.
pub const fn large_vip(size: Size) -> Ipv4Addr {
    vip(size.services)
}

/// The slice of a headless Service; `turn` decides its address.
pub fn headless_slice(number: u32, turn: u32) -> (Value, Ipv4Addr) {
    let addr = plus(Ipv4Addr::new(10, 127, 0, 0), number * 256 + 1 + turn % 200);
    (slice("named", &headless(number), 0, std::iter::once(addr)), addr)
}

/// The name of a headless Service.
pub fn headless(number: u32) -> String {
    format!("stateful-{number}")
}

/// Every object, with the plural name of its kind.
pub fn objects(size: Size) -> impl Iterator<Item = (&'static str, Value)> {
    let named = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    let namespaces = (0..size.services.div_ceil(10)).map(|number| format!("team-{number}")).chain(["named".to_owned()]);
    let nodes = (0..250).map(move |number| {
        let mut node = named("Node", &format!("node-{number:03}"));
        node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": format!("zone-{}", number % 3)});
        node["status"] = json!({"addresses": [{"type": "InternalIP", "address": plus(Ipv4Addr::new(10, 91, 0, 0), number).to_string()}]});
        ("nodes", node)
    });
    let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.1.0.0/16"]}});
    let ordinary = (0..size.services).flat_map(|number| {
        let service = service(&namespace(number), &format!("web-{number}"), &vip(number).to_string());
        [("services", service), ("endpointslices", ordinary_slice(number, 0))]
    });
    let headless = (0..HEADLESS).flat_map(|number| {
        [("services", service("named", &headless(number), "None")), ("endpointslices", headless_slice(number, 0).0)]
    });
    let large = (size.large > 0).then(|| ("services", service("team-0", "large", &large_vip(size).to_string())));
    let parts = (0..size.large / SLICE).map(move |part| ("endpointslices", large_slice(size, part, 0)));
    (namespaces.map(move |name| ("namespaces", named("Namespace", &name))))
        .chain(nodes)
        .chain([("servicecidrs", cidr)])
        .chain(ordinary)
        .chain(headless)
        .chain(large)
        .chain(parts)
}

/// Puts the whole cluster into the stand-in.
pub fn fill(api: &Api, size: Size) {
    for (plural, object) in objects(size) {
        api.put(plural, object);
    }
    api.forget_history();
}
