//! Builds the lab's control plane: a Go program of the real etcd, kube-apiserver, kube-controller-manager, kubectl and CoreDNS.

#[path = "../../tests/src/cluster/parts.rs"]
mod parts;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{root, say};

/// It takes eight minutes of one core. What takes much longer is not waited for: the tests that need it are skipped.
const LIMIT: Duration = Duration::from_secs(25 * 60);
/// Between two lines of progress.
const TELL: Duration = Duration::from_secs(15);

/// Makes sure that the program is there, and gives its path.
///
/// # Errors
/// When Go is missing, or the build fails or takes too long.
pub fn ensure() -> Result<PathBuf> {
    let module = root().join("tests/cluster");
    let place = parts::place(&module).context("no place for the cluster's program: set HOME or XDG_CACHE_HOME")?;
    if place.exists() {
        return Ok(place);
    }
    let version = parts::version(&module).context("tests/cluster/go.mod names no k8s.io/kubernetes")?;
    ensure!(
        Command::new("go").arg("version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()),
        "the lab's control plane is built with Go: install Go 1.24 or later"
    );
    say::step(&format!("building Kubernetes {version}, etcd and CoreDNS, once for this machine: {}", place.display()));
    let began = Instant::now();
    build(&module, &version, &place)?;
    say::done(&format!("{} ({})", parts::PROGRAM, say::took(began)));
    Ok(place)
}

/// As [`ensure`], while something else goes on. The validator of manifests is fetched, too; the test that wants it says when it is not there.
pub fn ensure_meanwhile() -> JoinHandle<Result<PathBuf>> {
    thread::spawn(|| {
        if let Err(error) = ensure_validator() {
            eprintln!("no validator of manifests: {error:#}");
        }
        ensure()
    })
}

/// `kubernetes-validate`, by pip, into a directory of its own.
fn ensure_validator() -> Result<()> {
    let place = parts::cache().context("no place for it: set HOME or XDG_CACHE_HOME")?.join(parts::VALIDATOR);
    if place.exists() {
        return Ok(());
    }
    let unfinished = place.with_extension(std::process::id().to_string());
    let package = parts::VALIDATOR.replace("validate-", "validate==");
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
        .arg(&unfinished)
        .arg(&package)
        .output()
        .context("python3 cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pip install {package}: {}", said.trim().lines().last().unwrap_or_default());
    // Another run may have been faster.
    fs::rename(&unfinished, &place).or_else(|_| fs::remove_dir_all(&unfinished)).context("its directory")
}

fn build(module: &Path, version: &str, place: &Path) -> Result<()> {
    let dir = place.parent().context("a path without a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
    // Another run may be building the same: each has a file of its own, and the last one stays.
    let unfinished = dir.join(format!(".{}.{}", parts::PROGRAM, std::process::id()));
    let number = |part: usize| version.trim_start_matches('v').split('.').nth(part).unwrap_or_default().to_owned();
    let flags = format!(
        "-s -w -X k8s.io/component-base/version.gitVersion={version} -X k8s.io/component-base/version.gitMajor={} \
         -X k8s.io/component-base/version.gitMinor={} -X k8s.io/client-go/pkg/version.gitVersion={version}",
        number(0),
        number(1)
    );
    let mut go = Command::new("nice");
    go.args(["go", "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]).arg(&unfinished).arg(".");
    let child = go.current_dir(module).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let ended = watch(child.context("could not start nice go build")?);
    if ended.is_ok() {
        fs::rename(&unfinished, place).with_context(|| format!("could not make {}", place.display()))?;
    } else {
        // It may not exist: what matters is why the build failed.
        let _ = fs::remove_file(&unfinished);
    }
    ended
}

/// Shows how the build goes, and ends it when it takes too long.
fn watch(mut child: Child) -> Result<()> {
    let stderr = child.stderr.take().context("go build has no output")?;
    let reader = thread::spawn(move || {
        let (mut packages, mut said, mut last) = (0_u32, Vec::new(), Instant::now());
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // With -v: the path of each package that is compiled, and among them whatever else there is to say.
            if line.contains(' ') {
                said.push(line);
                continue;
            }
            packages += 1;
            if last.elapsed() > TELL {
                last = Instant::now();
                eprintln!("    {packages} packages compiled, {line}");
            }
        }
        said
    });
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("go build was lost")? {
            break status;
        }
        if began.elapsed() > LIMIT {
            child.kill().context("go build does not end")?;
            child.wait().context("go build was lost")?;
            bail!("go build took longer than {} minutes", LIMIT.as_secs() / 60);
        }
        thread::sleep(Duration::from_millis(200));
    };
    let said = reader.join().unwrap_or_default();
    ensure!(status.success(), "go build ended with {status}: {}", said.join("; "));
    Ok(())
}
