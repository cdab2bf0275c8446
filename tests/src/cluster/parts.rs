//! Where the cluster's program is: etcd, kube-apiserver, kube-controller-manager, kubectl and CoreDNS in one file, built from
//! `tests/cluster` and kept outside the tree, so that it is built once a machine. Also compiled into xtask, which builds it.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

/// What decides what is built.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];
/// A directory of Python packages in the cache: the validator of manifests and what it needs, of this version.
pub const VALIDATOR: &str = "kubernetes-validate-1.37.0";
/// The program's name.
pub const PROGRAM: &str = "gateway-lab-cluster";

/// Kubernetes' version, like `v1.34.4`, from the module's `go.mod`.
pub fn version(module: &Path) -> Option<String> {
    let text = fs::read_to_string(module.join("go.mod")).ok()?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))?;
    Some(line.split_whitespace().next()?.to_owned())
}

/// Where the program is kept once it is built: `GATEWAY_LAB_CLUSTER`, else below `$XDG_CACHE_HOME` or `~/.cache`, by version and sources.
/// None: the module cannot be read, or there is no home.
pub fn place(module: &Path) -> Option<PathBuf> {
    if let Some(path) = env::var_os("GATEWAY_LAB_CLUSTER") {
        return Some(path.into());
    }
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        fs::read(module.join(source)).ok()?.hash(&mut hasher);
    }
    let id = format!("{}-{:08x}", version(module)?, hasher.finish() >> 32);
    Some(cache()?.join(id).join(PROGRAM))
}

/// The directory of what is made once a machine. None: there is no home.
pub fn cache() -> Option<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME")?).join(".cache"),
    };
    Some(cache.join("gateway-lab"))
}
