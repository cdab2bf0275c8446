//! The part of the demonstration that needs a real control plane.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};

use super::{NAME, Show, VIP};
use crate::{
    GatewayConfig, Lab,
    cluster::{COREDNS, Cluster, deployment},
    process::{NotYet, wait_for},
};

/// A change comes through real controllers, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the control plane and CoreDNS, and turns the config to them.
pub(super) fn start<'lab>(lab: &'lab Lab, config: &mut GatewayConfig) -> Result<Cluster<'lab>> {
    println!("\nThe control plane on worker1: etcd, kube-apiserver, kube-controller-manager; CoreDNS on worker2.");
    let cluster = Cluster::start(lab)?;
    cluster.start_coredns()?;
    cluster.apply_yaml(crate::cluster::RBAC)?;
    config.kubeconfig = Some(cluster.account("gateway-system", "gateway")?);
    // Found through its Service, as in any cluster.
    cluster.dns_service(&[COREDNS])?;
    config.forward_zones = vec![("corefile.test".into(), "cluster".into())];
    print!("{}", indent(&cluster.kubectl(&["version"])?, 4));
    Ok(cluster)
}

fn indent(text: &str, lines: usize) -> String {
    text.lines().take(lines).map(|line| format!("     {line}\n")).collect()
}

impl Show<'_> {
    /// Types a kubectl command and shows what it says.
    fn kubectl(&self, cluster: &Cluster<'_>, args: &str, input: &str, lines: usize) -> Result<()> {
        println!("   cluster$ kubectl {args}");
        print!("{}", indent(&cluster.kubectl_with(&args.split(' ').collect::<Vec<_>>(), input)?, lines));
        Ok(())
    }

    pub(super) fn deploy(&mut self, cluster: &Cluster<'_>) -> Result<()> {
        self.title("A Deployment and its Service, made by kubectl; pods, slices and the gateway's tables follow")?;
        let pods = self.lab.topology.pods.len();
        self.kubectl(cluster, "apply -f -", &deployment("shop", "web", pods, Some(VIP)), 4)?;
        cluster.wait_endpoints("shop", "web", pods)?;
        self.kubectl(cluster, "get pods,endpointslices -n shop -o wide", "", 12)?;
        self.endpoints(pods)
    }

    /// Waits until the gateway has so many endpoints behind the web port.
    fn endpoints(&self, count: usize) -> Result<()> {
        wait_for(&format!("{count} endpoints in the gateway"), PATIENCE, || {
            let all = self.gateway.json("services")?;
            let has = all.to_string().matches(":8080").count();
            let (ports, text) = (has, all.to_string());
            if ports == count { Ok(()) } else { Err(NotYet::Later(anyhow!("{text}"))) }
        })
    }

    pub(super) fn coredns(&mut self) -> Result<()> {
        self.title("A name that only CoreDNS knows, from its Corefile: `cluster` in a zone rule asks the endpoints of kube-system/kube-dns once, then the kernel answers")?;
        for from_kernel in [0, 1] {
            let before = self.gateway.counters()?;
            let output = self.client("kdig only.corefile.test A", 1)?;
            ensure!(output.contains("192.0.2.99"), "kdig said:\n{output}");
            let kernel = self.counted(&before, &["dns_answered", "dns_miss"])?[0];
            ensure!(kernel == from_kernel, "the kernel answered {kernel} times");
        }
        Ok(())
    }

    pub(super) fn scale_deployment(&mut self, cluster: &Cluster<'_>) -> Result<()> {
        self.title("The Deployment is scaled down to one pod, and up again")?;
        for replicas in [1, self.lab.topology.pods.len()] {
            self.kubectl(cluster, &format!("scale deployment/web -n shop --replicas={replicas}"), "", 1)?;
            cluster.wait_endpoints("shop", "web", replicas)?;
            self.endpoints(replicas)?;
            let output =
                self.client(&format!("for i in $(seq 20); do curl -sS http://{NAME}/; done | sort | uniq -c"), 3)?;
            let pods = output.lines().filter(|line| line.contains(" serves ")).count();
            ensure!(pods == replicas, "{pods} pods answered:\n{output}");
        }
        Ok(())
    }
}
