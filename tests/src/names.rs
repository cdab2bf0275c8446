//! Names, asked by the programs that people use: dig, kdig, getent.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::netns::Namespace;

/// What dig or kdig printed, as far as tests look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// `NOERROR`, `NXDOMAIN` and so on.
    pub status: String,
    /// Flags as printed: `qr aa rd`.
    pub flags: Vec<String>,
    /// Whether there was an OPT record.
    pub edns: bool,
    /// The question's name as it came back.
    pub question: String,
    /// Answer section: name, TTL, type, data.
    pub answers: Vec<Record>,
    /// Authority section.
    pub authorities: Vec<Record>,
}

/// A resource record as printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner.
    pub name: String,
    /// TTL in seconds.
    pub ttl: u32,
    /// Type.
    pub rtype: String,
    /// Data.
    pub data: String,
}

impl Answer {
    /// The data of the answers of one type, sorted.
    pub fn data(&self, rtype: &str) -> Vec<&str> {
        let mut data: Vec<&str> =
            self.answers.iter().filter(|record| record.rtype == rtype).map(|record| record.data.as_str()).collect();
        data.sort_unstable();
        data
    }

    /// Whether a flag is set.
    pub fn flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|set| set == flag)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut answer = Self::default();
        let mut section = "";
        for line in text.lines().map(str::trim) {
            if let Some((_, rest)) = line.split_once("status: ") {
                answer.status = rest.split([',', ';']).next().unwrap_or_default().to_owned();
            }
            // dig: ";; flags: qr aa rd; QUERY: 1"; kdig: ";; Flags: qr aa rd; QUERY: 1".
            if let Some(rest) = line.strip_prefix(";; flags: ").or_else(|| line.strip_prefix(";; Flags: ")) {
                answer.flags =
                    rest.split(';').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
            }
            if line.to_ascii_uppercase().contains("EDNS") && line.contains("ersion: 0") {
                answer.edns = true;
            }
            if let Some(title) =
                line.strip_prefix(";; ").and_then(|line| line.strip_suffix(':').or(line.strip_suffix("SECTION:")))
            {
                section = match title.split_whitespace().next() {
                    Some("QUESTION") => "question",
                    Some("ANSWER") => "answer",
                    Some("AUTHORITY") => "authority",
                    _ => "",
                };
                continue;
            }
            if section == "question" && answer.question.is_empty() && line.starts_with(';') {
                let name = line.trim_start_matches(';').split_whitespace().next().unwrap_or_default();
                answer.question = name.to_owned();
                continue;
            }
            if line.starts_with(';') || line.is_empty() {
                continue;
            }
            let mut fields = line.split_whitespace();
            let (Some(name), Some(ttl), Some(_), Some(rtype)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let Ok(ttl) = ttl.parse() else { continue };
            let data = fields.collect::<Vec<_>>().join(" ");
            let record = Record { name: name.into(), ttl, rtype: rtype.into(), data };
            match section {
                "answer" => answer.answers.push(record),
                "authority" => answer.authorities.push(record),
                _ => {}
            }
        }
        if answer.status.is_empty() {
            bail!("no answer: {}", text.trim());
        }
        Ok(answer)
    }
}

/// Asks with `dig`; `args` as dig takes them, without the server's `@`.
///
/// # Errors
/// When no answer came.
pub fn dig(from: &Namespace, server: &str, args: &[&str]) -> Result<Answer> {
    let at = format!("@{server}");
    let mut all = vec!["-r", at.as_str(), "+time=2", "+tries=2", "+nocookie"];
    all.extend(args);
    Answer::parse(&from.run("dig", &all)?).with_context(|| format!("dig {}", all.join(" ")))
}

/// Asks with `kdig`.
///
/// # Errors
/// When no answer came.
pub fn kdig(from: &Namespace, server: &str, args: &[&str]) -> Result<Answer> {
    let at = format!("@{server}");
    let mut all = vec![at.as_str(), "+time=2", "+retry=1"];
    all.extend(args);
    Answer::parse(&from.run("kdig", &all)?).with_context(|| format!("kdig {}", all.join(" ")))
}

/// Runs a program in the namespace with an `/etc/resolv.conf` of its own: it sees a private mount of this text.
///
/// # Errors
/// When it ends with another code than 0.
pub fn with_resolver(from: &Namespace, dir: &Path, resolv: &str, program: &str, args: &[&str]) -> Result<String> {
    let file = dir.join("resolv.conf");
    fs::write(&file, resolv).with_context(|| format!("{}: cannot be written", file.display()))?;
    // Also without nscd and with "dns" for hosts, whatever the machine's own nsswitch.conf says.
    let switch = dir.join("nsswitch.conf");
    fs::write(&switch, "hosts: files dns\n")?;
    let script = "target=$(readlink -f /etc/resolv.conf) && mount --bind \"$1\" \"$target\" && \
                  { [ ! -e /etc/nsswitch.conf ] || mount --bind \"$2\" /etc/nsswitch.conf; } && shift 2 && exec \"$@\"";
    let (file, switch) = (file.to_string_lossy(), switch.to_string_lossy());
    let mut all = vec!["-m", "--propagation", "private", "sh", "-c", script, "sh", &file, &switch, program];
    all.extend(args);
    from.run("unshare", &all)
}
