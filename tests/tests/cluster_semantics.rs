//! What Services and slices mean, from objects at a real dual-stack API server with its real controllers: asserted on what a client outside
//! reaches. Issue 5, "What it must show", 2.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, anyhow};
use gateway_lab::{
    Gateway, GatewayConfig, Lab, Node, Topology,
    clients::{Http, connections, tcp_refusal},
    cluster::{self, Cluster, deployment},
    names::dig,
    process::{NotYet, Process, wait_for},
    testing,
    topology::{ECHO_PORT, GATEWAY, HTTP_PORT, both},
};
use serde_json::{Value, json};

/// A change is seen by a client outside within this, on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);
const SECOND_PORT: u16 = 9090;

struct Scene<'l> {
    lab: &'l Lab,
    cluster: &'l Cluster<'l>,
    gateway: &'l Gateway<'l>,
}

/// A slice's endpoint: pod, ready, serving, terminating.
type Endpoint<'p> = (&'p str, bool, bool, bool);

const READY: (bool, bool, bool) = (true, true, false);

impl Scene<'_> {
    fn apply(&self, object: &Value) {
        self.cluster.apply(object).unwrap_or_else(|error| panic!("{object}: {error:#}"));
    }

    /// A Service of the namespace `rows`; `spec` as YAML has it, with the port 80 that is named `http` unless it says others.
    fn service(&self, name: &str, mut spec: Value) {
        if spec["ports"].is_null() && spec["type"] != "ExternalName" {
            spec["ports"] = json!([{"name": "http", "port": 80}]);
        }
        self.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "rows"}, "spec": spec}));
    }

    fn slice(&self, name: &str, service: &str, port: &Value, endpoints: &[Endpoint<'_>]) {
        let endpoint = |(pod, ready, serving, terminating): &Endpoint<'_>| {
            json!({"addresses": [self.lab.pod(pod).address],
                   "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        };
        self.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "rows", "labels": {"kubernetes.io/service-name": service}},
            "ports": port, "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        }));
    }

    fn delete(&self, kind: &str, name: &str) {
        self.cluster.kubectl(&["delete", kind, name, "-n", "rows", "--wait=false"]).expect("delete");
    }

    /// What the API server says of a Service.
    fn field(&self, name: &str, path: &str) -> String {
        let path = format!("jsonpath={{{path}}}");
        self.cluster.kubectl(&["get", "service", name, "-n", "rows", "-o", &path]).expect("the Service")
    }

    fn vips(&self, name: &str) -> Vec<IpAddr> {
        let ips: Vec<String> = serde_json::from_str(&self.field(name, ".spec.clusterIPs")).expect("clusterIPs");
        ips.iter().map(|ip| ip.parse().expect("an address")).collect()
    }

    /// Waits until exactly these pods answer new connections to `to`; none: it is refused.
    fn reaches(&self, to: IpAddr, port: u16, pods: &[&str]) {
        let (to, wanted) = (SocketAddr::new(to, port), pods.iter().copied().collect::<BTreeSet<_>>());
        let look = || -> Result<(), NotYet> {
            if wanted.is_empty() {
                let refusal = self.lab.client().enter(|| tcp_refusal(to, Duration::from_secs(2)));
                return match refusal.kind {
                    Some(std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::HostUnreachable) => Ok(()),
                    other => Err(NotYet::Later(anyhow!("{other:?}"))),
                };
            }
            let seen = self.lab.client().enter(|| connections(to, 12 * wanted.len()))?;
            let seen: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
            if seen == wanted { Ok(()) } else { Err(NotYet::Later(anyhow!("{seen:?} answer"))) }
        };
        wait_for(&format!("{pods:?} at {to}"), SOON, look).unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Waits until a name has exactly these records, as `TYPE data`; none: it does not exist.
    fn named(&self, name: &str, rtype: &str, wanted: &[String]) {
        let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
        wait_for(&format!("{name} {rtype}"), SOON, || {
            let answer = dig(self.lab.client(), &GATEWAY.to_string(), &[name, rtype])?;
            let data: BTreeSet<&str> = answer.answers.iter().map(|record| record.data.as_str()).collect();
            let status = if wanted.is_empty() { "NXDOMAIN" } else { "NOERROR" };
            if data == wanted && answer.status == status {
                return Ok(());
            }
            Err(NotYet::Later(anyhow!("{}: {data:?} and not {wanted:?}", answer.status)))
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    }

    fn fqdn(&self, name: &str) -> String {
        format!("{name}.rows.svc.cluster.local")
    }

    fn address(&self, pod: &str) -> String {
        self.lab.pod(pod).address.to_string()
    }
}

/// The credentials of the gateway's service account, told by a program, as clouds' clusters have it.
fn credentials(lab: &Lab, cluster: &Cluster<'_>) -> (PathBuf, PathBuf) {
    let token = cluster.token("gateway-system", "gateway").expect("a token");
    let (script, calls) = (lab.dir().join("credentials"), lab.dir().join("credentials.calls"));
    let told = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token, "expirationTimestamp": "@"},
    });
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = credentials ] && [ \"$GATEWAY_LAB\" = told ] || exit 1\necho called >>{}\n\
         until=$(date -u -d '+61 seconds' +%Y-%m-%dT%H:%M:%SZ)\nsed \"s/@/$until/\" <<'END'\n{told}\nEND\n",
        calls.display()
    );
    fs::write(&script, text).expect("the program");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a program that can be run");
    (cluster.by_program(&script).expect("a kubeconfig"), calls)
}

#[test]
fn services_and_slices_mean_what_they_mean_to_kube_proxy() {
    let Some(_turn) = testing::turn(&["dig", "curl", "openssl"]) else { return };
    if let Err(why) = cluster::program() {
        println!("SKIP: {why}");
        return;
    }
    let lab = Lab::build(Topology::with_pods(&[Node::Worker1, Node::Worker2, Node::Gateway])).expect("the lab");
    let cluster = Cluster::start(&lab).expect("the cluster");
    cluster.apply_yaml(cluster::RBAC).expect("deploy/rbac.yaml");
    cluster.kubectl(&["create", "namespace", "rows"]).expect("a namespace");
    let (kubeconfig, calls) = credentials(&lab, &cluster);
    let config = GatewayConfig { kubeconfig: Some(kubeconfig), ..GatewayConfig::default() };
    let gateway = lab.gateway(&config).expect("the gateway");
    assert!(fs::read_to_string(&calls).is_ok_and(|calls| !calls.is_empty()), "the kubeconfig's program was asked");
    let scene = Scene { lab: &lab, cluster: &cluster, gateway: &gateway };

    dual_stack(&scene);
    service_cidrs(&scene);
    types(&scene);
    reuse(&scene);
    slices(&scene);
    terminating(&scene);
    headless(&scene);
    gateway.stop().expect("a clean end");

    // Another identity, by a client certificate; it has no rights until it is bound to the gateway's.
    let kubeconfig = cluster.by_certificate_of("person").expect("a certificate");
    cluster
        .kubectl(&["create", "clusterrolebinding", "person", "--clusterrole=gateway", "--user=person"])
        .expect("a binding");
    let config = GatewayConfig { kubeconfig: Some(kubeconfig), ..GatewayConfig::default() };
    let gateway = lab.gateway(&config).expect("the gateway with a client certificate");
    assert_eq!(gateway.json("status").expect("gateway status")["degraded"], json!([]));
    gateway.stop().expect("a clean end");
}

/// A Deployment's Service with both families, from the real controllers: a slice for each family, a VIP of each.
fn dual_stack(scene: &Scene<'_>) {
    scene.cluster.apply_yaml(&deployment("shop", "web", 2, None)).expect("the deployment");
    let patch = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}}).to_string();
    scene
        .cluster
        .kubectl(&["patch", "service", "web", "-n", "shop", "--type=merge", "-p", &patch])
        .expect("dual-stack");
    // A slice of each family.
    scene.cluster.wait_endpoints("shop", "web", 4).expect("its endpoints");
    let text = scene.cluster.kubectl(&["get", "service", "web", "-n", "shop", "-o", "jsonpath={.spec.clusterIPs}"]);
    let vips: Vec<IpAddr> = serde_json::from_str(&text.expect("the Service")).expect("addresses");
    let [v4, v6] = vips[..] else { panic!("{vips:?}") };
    assert!(v4.is_ipv4() && v6.is_ipv6(), "{vips:?}");
    scene.named("web.shop.svc.cluster.local", "A", &[v4.to_string()]);
    scene.named("web.shop.svc.cluster.local", "AAAA", &[v6.to_string()]);
    let taken = scene.cluster.kubectl(&["get", "pods", "-n", "shop", "-o", "jsonpath={.items[*].status.podIP}"]);
    let taken = taken.expect("the pods");
    let pods: Vec<&str> = (scene.lab.topology.pods.iter())
        .filter(|pod| taken.split(' ').any(|ip| ip == pod.address.to_string()))
        .map(|pod| pod.name.as_str())
        .collect();
    assert_eq!(pods.len(), 2, "{taken}");
    scene.reaches(v4, 80, &pods);
    scene.reaches(v6, 80, &pods);
    // One family less.
    let patch =
        json!({"spec": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIPs": [v4]}}).to_string();
    scene
        .cluster
        .kubectl(&["patch", "service", "web", "-n", "shop", "--type=merge", "-p", &patch])
        .expect("single-stack");
    scene.reaches(v6, 80, &[]);
    scene.reaches(v4, 80, &pods);
    scene.cluster.kubectl(&["delete", "namespace", "shop", "--wait=false"]).expect("delete");
}

/// ServiceCIDRs of both families, added and removed while the gateway runs, with a Service in them.
fn service_cidrs(scene: &Scene<'_>) {
    let told = |expected: Value| {
        wait_for("the service CIDRs", SOON, || {
            let status = scene.gateway.json("status")?;
            if status["serviceCIDRs"] == expected { Ok(()) } else { Err(NotYet::Later(anyhow!("{status}"))) }
        })
        .expect("the service CIDRs");
    };
    told(json!(["10.1.0.0/16", "fd10:1::/112"]));
    let second = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "second"},
                        "spec": {"cidrs": ["10.2.0.0/24", "fd10:2::/112"]}});
    scene.apply(&second);
    told(json!(["10.1.0.0/16", "10.2.0.0/24", "fd10:1::/112", "fd10:2::/112"]));
    let [hop, hop6] = both(GATEWAY);
    let routes = [format!("route add 10.2.0.0/24 via {hop}"), format!("route add fd10:2::/112 via {hop6}")];
    scene.lab.client().ip(&routes).expect("the client's routes");
    let ips = json!(["10.2.0.10", "fd10:2::10"]);
    wait_for("a Service in the second range", SOON, || {
        // The allocator hears of the new range when it does.
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "second", "namespace": "rows"},
            "spec": {"ipFamilyPolicy": "RequireDualStack", "clusterIP": ips[0], "clusterIPs": ips,
                     "ports": [{"name": "http", "port": 80}]}});
        Ok(scene.cluster.apply(&service)?)
    })
    .expect("a Service in the second range");
    scene.slice("second-1", "second", &json!([{"name": "http", "port": HTTP_PORT}]), &[endpoint("web-0")]);
    scene.reaches("10.2.0.10".parse().expect("an address"), 80, &["web-0"]);
    scene.reaches("fd10:2::10".parse().expect("an address"), 80, &[]);
    scene.delete("service", "second");
    scene.delete("endpointslice", "second-1");
    scene.cluster.kubectl(&["delete", "servicecidr", "second", "--wait=false"]).expect("delete");
    told(json!(["10.1.0.0/16", "fd10:1::/112"]));
}

fn endpoint(pod: &str) -> Endpoint<'_> {
    (pod, READY.0, READY.1, READY.2)
}

fn http() -> Value {
    json!([{"name": "http", "port": HTTP_PORT}])
}

/// A Service that changes its type, and one without endpoints' ports.
fn types(scene: &Scene<'_>) {
    let name = scene.fqdn("typed");
    scene.service("typed", json!({}));
    let vip = scene.vips("typed")[0];
    scene.reaches(vip, 80, &[]);
    scene.slice("typed-1", "typed", &http(), &[endpoint("web-0"), endpoint("web-1")]);
    scene.reaches(vip, 80, &["web-0", "web-1"]);
    scene.service("typed", json!({"type": "NodePort"}));
    scene.reaches(vip, 80, &["web-0", "web-1"]);
    let patch = json!({"spec": {"type": "ExternalName", "externalName": "www.example.test", "clusterIP": "", "clusterIPs": null,
                                "ipFamilies": null, "ipFamilyPolicy": null}});
    scene
        .cluster
        .kubectl(&["patch", "service", "typed", "-n", "rows", "--type=merge", "-p", &patch.to_string()])
        .expect("an ExternalName");
    scene.named(&name, "CNAME", &["www.example.test.".to_owned()]);
    scene.reaches(vip, 80, &[]);
    let patch = json!({"spec": {"type": "ClusterIP", "externalName": null}});
    scene
        .cluster
        .kubectl(&["patch", "service", "typed", "-n", "rows", "--type=merge", "-p", &patch.to_string()])
        .expect("a ClusterIP again");
    let vip = scene.vips("typed")[0];
    scene.named(&name, "A", &[vip.to_string()]);
    scene.reaches(vip, 80, &["web-0", "web-1"]);
    // A port that no slice has, and one without a number: nothing to send to.
    scene.slice("typed-1", "typed", &json!([{"name": "other", "port": HTTP_PORT}]), &[endpoint("web-0")]);
    scene.reaches(vip, 80, &[]);
    scene.slice("typed-1", "typed", &json!([{"name": "http"}]), &[endpoint("web-0")]);
    scene.reaches(vip, 80, &[]);
    scene.delete("service", "typed");
    scene.named(&name, "A", &[]);
}

/// A ClusterIP goes from one Service to another in one batch of events.
fn reuse(scene: &Scene<'_>) {
    let ip = "10.1.200.9";
    let vip = ip.parse().expect("an address");
    scene.service("first", json!({"clusterIP": ip}));
    scene.slice("first-1", "first", &http(), &[endpoint("web-0")]);
    scene.slice("heir-1", "heir", &http(), &[endpoint("web-1")]);
    scene.reaches(vip, 80, &["web-0"]);
    for (from, to, pod) in [("first", "heir", "web-1"), ("heir", "first", "web-0")] {
        // While the gateway hears nothing both happens; then it hears both at once.
        scene.cluster.cut_off(true).expect("cut off");
        scene.delete("service", from);
        scene.service(to, json!({"clusterIP": ip}));
        scene.cluster.cut_off(false).expect("mended");
        scene.named(&scene.fqdn(from), "A", &[]);
        scene.named(&scene.fqdn(to), "A", &[ip.to_owned()]);
        scene.reaches(vip, 80, &[pod]);
    }
    scene.delete("service", "first");
}

/// No selector and slices of its own: two with the same endpoint, and ports by name that differ.
fn slices(scene: &Scene<'_>) {
    let namespace = scene.lab.namespace("web-1");
    let mut command = namespace.command(env!("CARGO_BIN_EXE_gateway-lab"));
    command.args(["serve", "--name", "web-1", "--http", &SECOND_PORT.to_string(), "--echo", "9007"]);
    let _second = Process::start("second", command, &scene.lab.dir().join("second.log")).expect("a second server");
    scene.service("own", json!({"ports": [{"name": "http", "port": 80}, {"name": "echo", "port": 7}]}));
    let vip = scene.vips("own")[0];
    scene.slice("own-1", "own", &http(), &[endpoint("web-0")]);
    scene.slice("own-2", "own", &http(), &[endpoint("web-0"), endpoint("web-2")]);
    scene.reaches(vip, 80, &["web-0", "web-2"]);
    // The port without slices is refused, the other goes on.
    scene.reaches(vip, 7, &[]);
    // The datapath has a change a moment before the agent tells of it.
    wait_for("an endpoint in two slices is one", SOON, || {
        let services = scene.gateway.json("services")?;
        let own = services.as_array().into_iter().flatten().find(|service| service["name"] == "own");
        let ports = own.and_then(|own| own["ports"].as_array()).into_iter().flatten();
        match ports.filter(|port| port["port"] == 80).map(|port| port["endpoints"].as_array().map(Vec::len)).next() {
            Some(Some(2)) => Ok(()),
            other => Err(NotYet::Later(anyhow!("{other:?} endpoints in {services}"))),
        }
    })
    .unwrap_or_else(|error| panic!("{error:#}"));
    // One pod listens elsewhere under the same name.
    scene.slice("own-3", "own", &json!([{"name": "http", "port": SECOND_PORT}]), &[endpoint("web-1")]);
    scene.reaches(vip, 80, &["web-0", "web-1", "web-2"]);
    // Out of one of its two slices it is still there.
    scene.delete("endpointslice", "own-1");
    scene.reaches(vip, 80, &["web-0", "web-1", "web-2"]);
    scene.delete("endpointslice", "own-2");
    scene.reaches(vip, 80, &["web-1"]);
    scene.slice("own-4", "own", &json!([{"name": "echo", "port": ECHO_PORT}]), &[endpoint("web-2")]);
    let to = SocketAddr::new(vip, 7);
    wait_for("the other port", SOON, || Ok(scene.lab.client().enter(|| gateway_lab::clients::echo(to, 1000))?))
        .expect("the other port");
    scene.delete("service", "own");
}

/// Endpoints that are leaving: of new connections they get none while another is ready; what they have goes on; when all are leaving
/// those that still serve are used.
fn terminating(scene: &Scene<'_>) {
    scene.service("leaving", json!({}));
    let vip = scene.vips("leaving")[0];
    scene.slice("leaving-1", "leaving", &http(), &[endpoint("web-1")]);
    scene.reaches(vip, 80, &["web-1"]);
    let to = SocketAddr::new(vip, 80);
    let mut kept = scene.lab.client().enter(|| Http::connect(to)).expect("a connection");
    assert_eq!(kept.get("/").expect("an answer").server, "web-1");
    scene.slice("leaving-1", "leaving", &http(), &[endpoint("web-0"), ("web-1", false, true, true)]);
    scene.reaches(vip, 80, &["web-0"]);
    assert_eq!(kept.get("/").expect("the connection goes on").server, "web-1");
    scene.slice("leaving-1", "leaving", &http(), &[("web-1", false, true, true), ("web-2", false, false, true)]);
    scene.reaches(vip, 80, &["web-1"]);
    assert_eq!(kept.get("/").expect("the connection goes on").server, "web-1");
    scene.slice("leaving-1", "leaving", &http(), &[("web-1", false, false, true)]);
    scene.reaches(vip, 80, &[]);
    scene.delete("service", "leaving");
}

/// A headless Service of real pods: their addresses, their own names and their ports; a pod that is leaving is not named.
fn headless(scene: &Scene<'_>) {
    scene.service(
        "db",
        json!({"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"name": "http", "port": HTTP_PORT}]}),
    );
    for pod in ["db-0", "db-1"] {
        scene.apply(&json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": "rows", "labels": {"app": "db"}},
            "spec": {"hostname": pod, "subdomain": "db", "terminationGracePeriodSeconds": 1,
                     "containers": [{"name": "db", "image": "lab/db"}]}}));
    }
    scene.cluster.wait_endpoints("rows", "db", 2).expect("its endpoints");
    let address = |pod: &str| {
        let args = ["get", "pod", pod, "-n", "rows", "-o", "jsonpath={.status.podIP}"];
        scene.cluster.kubectl(&args).expect("the pod")
    };
    let (first, second) = (address("db-0"), address("db-1"));
    let all: Vec<String> = scene.lab.topology.pods.iter().map(|pod| scene.address(&pod.name)).collect();
    assert!(all.contains(&first) && all.contains(&second) && first != second, "{first} {second}");
    scene.named(&scene.fqdn("db"), "A", &[first.clone(), second.clone()]);
    scene.named(&scene.fqdn("db-0.db"), "A", std::slice::from_ref(&first));
    scene.delete("pod", "db-1");
    scene.named(&scene.fqdn("db"), "A", std::slice::from_ref(&first));
    scene.named(&scene.fqdn("db-1.db"), "A", &[]);
}
