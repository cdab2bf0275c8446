//! The cluster as the gateway reads it: a directory of manifests as `kubectl get -o yaml` prints them. A file appears,
//! changes and goes as a whole.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::topology::{ECHO_PORT, HTTP_PORT, Pod, ipv6};

/// The directory.
#[derive(Debug)]
pub struct Manifests {
    /// Where it is.
    pub dir: PathBuf,
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// On the VIP.
    pub port: u16,
    /// On the pods.
    pub target: u16,
}

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Name of its pod.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it is on its way out, serving what it has.
    pub terminating: bool,
    /// Zones that it is meant for, as the endpoint slice controller hints; empty: no hints.
    pub zones: Vec<&'static str>,
}

impl From<&Pod> for Endpoint {
    fn from(pod: &Pod) -> Self {
        Self {
            pod: pod.name.clone(),
            node: pod.node.name().into(),
            address: pod.address,
            ready: true,
            terminating: false,
            zones: Vec::new(),
        }
    }
}

/// A Service with its EndpointSlice.
#[derive(Clone, Debug)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// ClusterIP of IPv4; without any ClusterIP it is headless.
    pub vip: Option<Ipv4Addr>,
    /// ClusterIP of IPv6: with it, endpoints have the IPv6 address beside their own, too.
    pub vip6: Option<Ipv6Addr>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<Ipv4Addr>,
    /// `status.loadBalancer.ingress[].ip`.
    pub ingress: Vec<Ipv4Addr>,
    /// Seconds of `sessionAffinity: ClientIP`; none: no affinity.
    pub affinity: Option<u32>,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
}

impl Service {
    /// A Service without ports and endpoints.
    pub fn new(namespace: &str, name: &str, vip: impl Into<Option<Ipv4Addr>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            vip: vip.into(),
            vip6: None,
            ports: Vec::new(),
            endpoints: Vec::new(),
            external_ips: Vec::new(),
            ingress: Vec::new(),
            affinity: None,
            internal_local: false,
        }
    }

    /// HTTP on port 80 and echo on port 7, TCP and UDP: what every pod of a lab serves.
    pub fn of_pods<'a>(namespace: &str, name: &str, vip: Ipv4Addr, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        Self::new(namespace, name, vip)
            .port("http", "TCP", 80, HTTP_PORT)
            .port("echo", "TCP", 7, ECHO_PORT)
            .port("echo-udp", "UDP", 7, ECHO_PORT)
            .endpoints(pods)
    }

    /// Adds the ClusterIP of IPv6 that belongs to that of IPv4 ([`ipv6`]).
    #[must_use]
    pub fn dual_stack(mut self) -> Self {
        self.vip6 = self.vip.map(ipv6);
        self
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, name: &'static str, protocol: &'static str, port: u16, target: u16) -> Self {
        self.ports.push(Port { name, protocol, port, target });
        self
    }

    /// Replaces all endpoints.
    #[must_use]
    pub fn endpoints<'a>(mut self, pods: impl IntoIterator<Item = &'a Pod>) -> Self {
        self.endpoints = pods.into_iter().map(Endpoint::from).collect();
        self
    }

    /// Its name in the cluster's zone.
    pub fn fqdn(&self) -> String {
        format!("{}.{}.svc.cluster.local", self.name, self.namespace)
    }

    /// The fields of `spec` that say who gets what.
    fn policies(&self, out: &mut String) {
        let policy = if self.internal_local { "Local" } else { "Cluster" };
        let _ = writeln!(out, "  internalTrafficPolicy: {policy}");
        let _ = match self.affinity {
            Some(seconds) => writeln!(
                out,
                "  sessionAffinity: ClientIP\n  sessionAffinityConfig:\n    clientIP:\n      timeoutSeconds: {seconds}"
            ),
            None => writeln!(out, "  sessionAffinity: None"),
        };
        let external: String = self.external_ips.iter().map(|ip| format!("  - {ip}\n")).collect();
        if !external.is_empty() {
            let _ = write!(out, "  externalIPs:\n{external}");
        }
    }

    /// As `kubectl get -o yaml` prints it.
    pub fn yaml(&self) -> String {
        let Self { namespace, name, .. } = self;
        let vips: Vec<IpAddr> = self.vip.map(IpAddr::from).into_iter().chain(self.vip6.map(IpAddr::from)).collect();
        let vip = vips.first().map_or("None".to_owned(), IpAddr::to_string);
        let mut out = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  type: ClusterIP\n  \
             clusterIP: {vip}\n  clusterIPs:\n"
        );
        if vips.is_empty() {
            out.push_str("  - None\n");
        }
        for vip in &vips {
            let _ = writeln!(out, "  - {vip}");
        }
        out.push_str("  ipFamilies:\n");
        let families: Vec<&str> = match (self.vip, self.vip6) {
            (Some(_), Some(_)) => vec!["IPv4", "IPv6"],
            (None, Some(_)) => vec!["IPv6"],
            (_, None) => vec!["IPv4"],
        };
        for family in &families {
            let _ = writeln!(out, "  - {family}");
        }
        let policy = if families.len() == 2 { "PreferDualStack" } else { "SingleStack" };
        let _ = writeln!(out, "  ipFamilyPolicy: {policy}");
        self.policies(&mut out);
        if !self.ports.is_empty() {
            out.push_str("  ports:\n");
            for Port { name, protocol, port, target } in &self.ports {
                let _ = write!(
                    out,
                    "  - name: {name}\n    port: {port}\n    protocol: {protocol}\n    targetPort: {target}\n"
                );
            }
        }
        let ingress: String = self.ingress.iter().map(|ip| format!("    - ip: {ip}\n")).collect();
        if !ingress.is_empty() {
            let _ = write!(out, "status:\n  loadBalancer:\n    ingress:\n{ingress}");
        }
        for family in families {
            self.slice(family, &mut out);
        }
        out
    }

    /// The EndpointSlice of a family.
    fn slice(&self, family: &str, out: &mut String) {
        let Self { namespace, name, .. } = self;
        let suffix = if family == "IPv4" { "" } else { "6" };
        let _ = write!(
            out,
            "---\naddressType: {family}\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-lab{suffix}\n  \
             namespace: {namespace}\n  labels:\n    kubernetes.io/service-name: {name}\n"
        );
        if self.endpoints.is_empty() {
            out.push_str("endpoints: []\n");
        } else {
            out.push_str("endpoints:\n");
        }
        for Endpoint { pod, node, address, ready, terminating, zones } in &self.endpoints {
            let serving = *ready || *terminating;
            let address: IpAddr = if family == "IPv4" { (*address).into() } else { ipv6(*address).into() };
            let _ = write!(
                out,
                "- addresses:\n  - {address}\n  conditions:\n    ready: {ready}\n    serving: {serving}\n    terminating: {terminating}\n  \
                 nodeName: {node}\n  targetRef:\n    kind: Pod\n    name: {pod}\n    namespace: {namespace}\n"
            );
            let hints: String = zones.iter().map(|zone| format!("    - name: {zone}\n")).collect();
            if !hints.is_empty() {
                let _ = write!(out, "  hints:\n    forZones:\n{hints}");
            }
        }
        if self.ports.is_empty() {
            out.push_str("ports: []\n");
        } else {
            out.push_str("ports:\n");
            for Port { name, protocol, target, .. } in &self.ports {
                let _ = write!(out, "- name: {name}\n  port: {target}\n  protocol: {protocol}\n");
            }
        }
    }
}

impl Manifests {
    /// Makes the directory, empty.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Creates or replaces a Service's file.
    ///
    /// # Errors
    /// When the directory is not writable.
    pub fn put(&self, service: &Service) -> Result<()> {
        self.write(&Self::file(service), &service.yaml())
    }

    /// Removes a Service's file.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, service: &Service) -> Result<()> {
        let path = self.dir.join(Self::file(service));
        fs::remove_file(&path).with_context(|| format!("{}: cannot be removed", path.display()))
    }

    /// Writes any file, at once as a whole.
    ///
    /// # Errors
    /// When the directory is not writable.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let temporary = self.dir.join(format!(".{name}.new"));
        fs::write(&temporary, text).with_context(|| format!("{}: cannot be written", temporary.display()))?;
        fs::rename(&temporary, self.dir.join(name))?;
        Ok(())
    }

    fn file(service: &Service) -> String {
        format!("{}-{}.yaml", service.namespace, service.name)
    }
}
