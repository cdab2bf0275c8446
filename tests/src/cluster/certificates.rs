//! Throw-away certificates: an authority, the API server's, an administrator's, and the key that signs service accounts' tokens.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

const KEY: [&str; 9] =
    ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
/// By the authority.
const SIGNED: [&str; 6] = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"];

/// Their directory; files are PEM.
#[derive(Clone, Debug)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Makes them, by `openssl`, valid for two days. `server` are the API server's names in the form of a `subjectAltName`.
    ///
    /// # Errors
    /// What openssl says.
    pub fn make(dir: &Path, server: &str) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
        let made = Self(dir.to_owned());
        let issue = |name: &str, subject: &str, more: &[&str]| {
            let (file, private) = (format!("{name}.crt"), format!("{name}.key"));
            let mut args = KEY.to_vec();
            args.extend(["-subj", subject, "-out", &file, "-keyout", &private]);
            args.extend(more);
            made.openssl(&args)
        };
        issue("ca", "/CN=gateway-lab", &[])?;
        let names = format!("subjectAltName={server}");
        issue("server", "/CN=kube-apiserver", &[&SIGNED[..], &["-addext", &names]].concat())?;
        made.client("admin", "/O=system:masters/CN=lab-admin")?;
        made.openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "accounts.key"])?;
        Ok(made)
    }

    /// Makes a client's certificate, `NAME.crt` and `NAME.key`, for a subject like `/O=group/CN=user`.
    ///
    /// # Errors
    /// What openssl says.
    pub fn client(&self, name: &str, subject: &str) -> Result<()> {
        let (file, private) = (format!("{name}.crt"), format!("{name}.key"));
        let mut args = KEY.to_vec();
        args.extend(["-subj", subject, "-out", &file, "-keyout", &private]);
        args.extend(SIGNED);
        args.extend(["-addext", "extendedKeyUsage=clientAuth"]);
        self.openssl(&args)
    }

    /// Path of one, like `ca.crt`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn openssl(&self, args: &[&str]) -> Result<()> {
        let output = Command::new("openssl")
            .args(args)
            .current_dir(&self.0)
            .output()
            .context("openssl: cannot start; install openssl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl {}: {}", args.join(" "), said.trim());
        Ok(())
    }
}
