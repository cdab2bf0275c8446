//! The cluster's own DNS: real CoreDNS, and the Service by which it is found.

use std::{fs, net::Ipv4Addr, path::PathBuf};

use anyhow::{Result, anyhow};
use serde_json::Value;

use super::{Cluster, PATIENCE, SERVER, lock};
use crate::{
    Node,
    netns::Namespace,
    process::{NotYet, Process, wait_for},
    topology::UPSTREAM,
};

/// Where CoreDNS answers, on the node `worker2`, port 53.
pub const COREDNS: Ipv4Addr = Ipv4Addr::new(10, 90, 2, 102);
/// The ClusterIP of `kube-system/kube-dns`.
pub const DNS_VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);

/// The Deployment and the Service of the cluster's DNS, as installers make them. The lab runs no containers: see [`Cluster::coredns_in`].
pub fn dns_deployment(replicas: usize) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: coredns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}\nspec:\n  \
         replicas: {replicas}\n  selector: {{matchLabels: {{k8s-app: kube-dns}}}}\n  template:\n    metadata: {{labels: {{k8s-app: kube-dns}}}}\n    \
         spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - name: coredns\n        image: lab/coredns\n        ports:\n        \
         - {{name: dns, containerPort: 53, protocol: UDP}}\n        - {{name: dns-tcp, containerPort: 53}}\n---\n\
         {}  selector: {{k8s-app: kube-dns}}\n",
        service("targetPort: dns", "targetPort: dns-tcp")
    )
}

fn service(udp: &str, tcp: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}\nspec:\n  \
         clusterIP: {DNS_VIP}\n  ports:\n  - {{name: dns, port: 53, protocol: UDP, {udp}}}\n  - {{name: dns-tcp, port: 53, {tcp}}}\n"
    )
}

impl Cluster<'_> {
    /// Starts CoreDNS on `worker2`: the cluster's zone by its kubernetes plugin, and the zone `corefile.test`, which only its Corefile
    /// knows; other names go to the lab's upstream.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn start_coredns(&self) -> Result<()> {
        let started = self.coredns_in(self.lab.node(Node::Worker2), COREDNS)?;
        *lock(&self.coredns) = Some(started);
        Ok(())
    }

    /// Starts CoreDNS like that in the namespace of a node or pod with this address. It ends with what is returned.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn coredns_in(&self, place: &Namespace, address: Ipv4Addr) -> Result<Process> {
        let file = self.corefile(address)?;
        let mut command = place.command(&self.program);
        command.args(["coredns", "-conf"]).arg(&file).env("HOME", &self.dir);
        let mut coredns = Process::start("coredns", command, &self.dir.join(format!("coredns-{address}.log")))?;
        wait_for("CoreDNS", PATIENCE, || {
            if let Some(status) = coredns.ended() {
                return Err(NotYet::Never(anyhow!("coredns ended: {status}: {}", coredns.said())));
            }
            let ready = place.enter(|| crate::clients::http_get((address, 8181).into(), "/ready"))?;
            match ready.status {
                200 => Ok(()),
                status => Err(NotYet::Later(anyhow!("/ready: {status}"))),
            }
        })?;
        Ok(coredns)
    }

    fn corefile(&self, address: Ipv4Addr) -> Result<PathBuf> {
        let kubeconfig = self.kubeconfig("coredns", SERVER, &self.by_certificate("admin"))?;
        let corefile = format!(
            "wild.corefile.test:53 {{\n    errors\n    template IN A {{\n        answer \"{{{{ .Name }}}} 30 IN A 192.0.2.77\"\n    }}\n}}\n\
             alias.corefile.test:53 {{\n    errors\n    template IN ANY {{\n        \
             answer \"{{{{ .Name }}}} 30 IN CNAME web.shop.svc.cluster.local.\"\n    }}\n}}\n\
             .:53 {{\n    errors\n    ready {address}:8181\n    kubernetes cluster.local in-addr.arpa ip6.arpa {{\n        \
             kubeconfig {} lab\n        pods verified\n        fallthrough in-addr.arpa ip6.arpa\n        ttl 30\n    }}\n    \
             hosts {{\n        192.0.2.99 only.corefile.test\n        fallthrough\n    }}\n    forward . {UPSTREAM}\n    loadbalance\n}}\n",
            kubeconfig.display()
        );
        let file = self.dir.join(format!("Corefile-{address}"));
        fs::write(&file, corefile)?;
        Ok(file)
    }

    /// Makes `kube-system/kube-dns`, as a Service without selector, of CoreDNS on nodes with these addresses.
    ///
    /// # Errors
    /// What the API server says.
    pub fn dns_service(&self, servers: &[Ipv4Addr]) -> Result<()> {
        let endpoints: String = servers.iter().map(|ip| format!("- {{addresses: [{ip}]}}\n")).collect();
        self.apply_yaml(&format!(
            "{}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: kube-dns-1\n  namespace: kube-system\n  \
             labels: {{kubernetes.io/service-name: kube-dns}}\naddressType: IPv4\nports:\n- {{name: dns, port: 53, protocol: UDP}}\n\
             - {{name: dns-tcp, port: 53, protocol: TCP}}\nendpoints:\n{endpoints}",
            service("targetPort: 53", "targetPort: 53")
        ))
    }

    /// Addresses of the ready endpoints of a Service.
    ///
    /// # Errors
    /// What the API server says.
    pub fn endpoints(&self, namespace: &str, service: &str) -> Result<Vec<Ipv4Addr>> {
        let label = format!("kubernetes.io/service-name={service}");
        let text = self.kubectl(&["get", "endpointslices", "-n", namespace, "-l", &label, "-o", "json"])?;
        let list: Value = serde_json::from_str(&text)?;
        let slices = list["items"].as_array().into_iter().flatten();
        let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        let mut found: Vec<Ipv4Addr> =
            ready.filter_map(|endpoint| endpoint["addresses"][0].as_str()?.parse().ok()).collect();
        found.sort_unstable();
        Ok(found)
    }
}
