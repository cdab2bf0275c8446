//! Network namespaces: made by `ip`, entered by threads and by child processes, and recorded so that a run that was
//! killed leaves nothing for longer than until the next run.

use std::{
    fs::{self, File},
    io::Write,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// Where every lab of this machine keeps its record: one directory a lab.
const STATE: &str = "/run/gateway-lab";
const NETNS: &str = "/run/netns";

/// The record of one lab on disk: who owns it and which namespaces are its own. Dropping it deletes both.
#[derive(Debug)]
pub struct Record {
    /// Directory for the lab's files: manifests, configs, logs.
    pub dir: PathBuf,
    /// Prefix of the lab's namespaces.
    pub prefix: String,
}

impl Record {
    /// Begins a record, after having removed what dead owners left.
    ///
    /// # Errors
    /// When `/run` is not writable.
    pub fn begin() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep()?;
        let pid = std::process::id();
        let id = format!("{pid:x}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(STATE).join(&id);
        fs::create_dir_all(&dir).with_context(|| format!("{}: cannot make the lab's directory", dir.display()))?;
        let start = start_time(pid).context("/proc/self/stat: no start time")?;
        fs::write(dir.join("owner"), format!("{pid} {start}"))?;
        fs::write(dir.join("namespaces"), "")?;
        Ok(Self { dir, prefix: format!("gw{id}-") })
    }

    /// Makes namespaces, recorded before they exist.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn namespaces(&self, names: &[&str]) -> Result<Vec<Namespace>> {
        let full: Vec<String> = names.iter().map(|name| format!("{}{name}", self.prefix)).collect();
        let mut file = fs::OpenOptions::new().append(true).open(self.dir.join("namespaces"))?;
        for name in &full {
            writeln!(file, "{name}")?;
        }
        ip_batch(None, &full.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>())?;
        full.into_iter().map(Namespace::open).collect()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            eprintln!("gateway-lab: {}: {error:#}", self.dir.display());
        }
    }
}

/// Removes what labs left whose owner is dead, and nothing else. Returns how many there were.
///
/// # Errors
/// When a namespace cannot be removed.
pub fn sweep() -> Result<usize> {
    let Ok(labs) = fs::read_dir(STATE) else { return Ok(0) };
    let mut swept = 0;
    for lab in labs.filter_map(Result::ok).filter(|lab| lab.path().is_dir()) {
        let owner = fs::read_to_string(lab.path().join("owner")).unwrap_or_default();
        let alive = owner.split_once(' ').is_some_and(|(pid, start)| {
            pid.parse().ok().and_then(start_time).is_some_and(|now| now.to_string() == start)
        });
        // A lab that has not written its owner yet is being born.
        let newborn = owner.is_empty()
            && lab
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() < 60));
        if !alive && !newborn {
            remove(&lab.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// The namespaces that labs of living or dead owners have recorded and that exist.
pub fn recorded() -> Vec<String> {
    let Ok(labs) = fs::read_dir(STATE) else { return Vec::new() };
    labs.filter_map(Result::ok)
        .filter_map(|lab| fs::read_to_string(lab.path().join("namespaces")).ok())
        .flat_map(|names| names.lines().map(str::to_owned).collect::<Vec<_>>())
        .filter(|name| Path::new(NETNS).join(name).exists())
        .collect()
}

fn remove(dir: &Path) -> Result<()> {
    let names = fs::read_to_string(dir.join("namespaces")).unwrap_or_default();
    let lines: Vec<String> = names
        .lines()
        .filter(|name| name.starts_with("gw") && Path::new(NETNS).join(name).exists())
        .map(|name| format!("netns del {name}"))
        .collect();
    ip_batch(None, &lines)?;
    fs::remove_dir_all(dir)?;
    Ok(())
}

/// Start time of a process in clock ticks since boot: with the pid it names a process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything; field 22 is the 20th behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A network namespace.
#[derive(Debug)]
pub struct Namespace {
    /// Its full name, as `ip netns` lists it.
    pub name: String,
    file: File,
}

impl Namespace {
    fn open(name: String) -> Result<Self> {
        let path = Path::new(NETNS).join(&name);
        let file = File::open(&path).with_context(|| format!("{}: cannot open the namespace", path.display()))?;
        Ok(Self { name, file })
    }

    /// Path of the namespace's file, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS).join(&self.name)
    }

    /// Runs `ip` commands inside, in one process.
    ///
    /// # Errors
    /// The line that failed and what `ip` said.
    pub fn ip<S: AsRef<str>>(&self, lines: &[S]) -> Result<()> {
        ip_batch(Some(&self.name), lines)
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets it makes stay in there, and threads it begins are born in there.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `work` panics.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
                work()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A program inside the namespace, in a process group of its own. It is killed when the calling **thread** ends, so that nothing
    /// outlives a run that was killed.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.process_group(0);
        let fd = self.file.as_raw_fd();
        let parent = std::process::id();
        let enter = move || {
            // SAFETY: `fd` stays open while `self` lives, and the child has its own copy; setns, prctl and getppid are plain system calls.
            unsafe {
                if libc::setns(fd, libc::CLONE_NEWNET) != 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // The parent may have died before the signal was asked for.
                if libc::getppid().cast_unsigned() != parent {
                    return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes system calls; it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program inside to its end and gives its standard output.
    ///
    /// # Errors
    /// When it cannot be started or ends with another code than 0; with what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{program}: cannot start"))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "{program} {}: {}: {}{}",
                args.join(" "),
                output.status,
                stdout.trim(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(stdout)
    }

    /// Sets a sysctl of this namespace; `key` as a path below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| fs::write(format!("/proc/sys/{key}"), value))
            .with_context(|| format!("{key}: cannot be set to {value}"))
    }

    /// Reads a sysctl of this namespace.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let text = self
            .enter(|| fs::read_to_string(format!("/proc/sys/{key}")))
            .with_context(|| format!("{key}: no such sysctl"))?;
        Ok(text.trim().to_owned())
    }
}

/// Runs `ip` commands in one process, inside a namespace or in this one.
///
/// # Errors
/// The line that failed and what `ip` said.
pub fn ip_batch<S: AsRef<str>>(namespace: Option<&str>, lines: &[S]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(name) = namespace {
        command.args(["-n", name]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip: cannot start; install iproute2")?;
    let text: String = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect();
    child.stdin.take().context("ip: no standard input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // "Command failed -:3" names the line.
        let failed = said
            .rsplit_once(":")
            .and_then(|(_, number)| number.trim().parse::<usize>().ok())
            .and_then(|number| lines.get(number.saturating_sub(1)))
            .map_or("", |line| line.as_ref());
        bail!("ip {}: `{failed}`: {}", namespace.unwrap_or_default(), said.trim());
    }
    Ok(())
}
