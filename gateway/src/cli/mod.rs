//! What a person types.

mod ask;
mod check;
mod client;
mod table;

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::{agent, config::Config};

/// An eBPF/XDP gateway to Kubernetes Services for machines outside the cluster.
#[derive(Debug, Parser)]
#[command(name = "gateway", version, about, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load and attach the datapath, answer names, and serve until SIGTERM or SIGINT
    Run {
        /// Config file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say what this node lacks to run the gateway, and what to do about it; exit 1 when it cannot run
    Check {
        /// Config file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// How the running agent is: interfaces, source, views, counts, problems
    Status(Ask),
    /// Services with their addresses, ports and endpoints
    Services(Ask),
    /// Conversations of clients with endpoints
    Flows {
        #[command(flatten)]
        ask: Ask,
        /// Most flows to show
        #[arg(long, default_value_t = crate::http::FLOWS)]
        limit: usize,
    },
    /// Zone, cache, upstreams and query counts of the resolver
    Dns(Ask),
    /// Packets by what the datapath did with them, and why
    Drops(Ask),
    /// What the datapath would do with a packet or query, and why
    Explain {
        /// Client address
        #[arg(long, value_name = "IP")]
        from: IpAddr,
        /// Destination address
        #[arg(long, value_name = "IP", required_unless_present = "name", requires = "proto")]
        to: Option<IpAddr>,
        /// Protocol; icmp is an echo request
        #[arg(long, value_name = "tcp|udp|icmp", conflicts_with = "name")]
        proto: Option<Transport>,
        /// Destination port; not for icmp
        #[arg(long, value_name = "N", conflicts_with = "name", required_if_eq_any = [("proto", "tcp"), ("proto", "udp")])]
        port: Option<u16>,
        /// Source port: with it the very endpoint is told
        #[arg(long, value_name = "N", conflicts_with = "name")]
        sport: Option<u16>,
        /// Name asked for
        #[arg(long, value_name = "NAME", conflicts_with = "to")]
        name: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// The route and resolver commands for a client, with this cluster's values
    SetupClient {
        /// The client's system
        #[arg(long)]
        os: client::System,
        #[command(flatten)]
        at: At,
        /// The gateway's address as clients reach it; default: the first uplink's
        #[arg(long, value_name = "IP")]
        gateway: Option<IpAddr>,
    },
    /// Take everything off this node: programs, pins and sysctls that the gateway set
    Detach {
        /// Config file; its `datapath.pin` is cleared too
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
    Icmp,
}

/// Where the running agent is.
#[derive(Debug, Args)]
struct At {
    /// The agent's HTTP address [default: key `http` of --config, else http://127.0.0.1:9153]
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// Config file of the agent
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Ask {
    #[command(flatten)]
    at: At,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

impl At {
    fn url(&self) -> Result<String> {
        match (&self.api, &self.config) {
            (Some(api), _) => Ok(api.clone()),
            (None, Some(path)) => Ok(format!("http://{}", Config::http_of(path)?)),
            (None, None) => Ok("http://127.0.0.1:9153".to_owned()),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// What failed, where, and what to do; meant to be printed on one line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run { config } => {
            let loaded = Config::load(&config)?;
            crate::log::init(&loaded.log);
            runtime(true)?.block_on(agent::run(loaded, config))?;
        }
        Command::Check { config } => {
            if !check::run(config.as_deref()) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Status(ask) => show(&ask, "status", table::status)?,
        Command::Services(ask) => show(&ask, "services", table::services)?,
        Command::Flows { ask, limit } => show(&ask, &format!("flows?limit={limit}"), table::flows)?,
        Command::Dns(ask) => show(&ask, "dns", table::dns)?,
        Command::Drops(ask) => show(&ask, "drops", table::drops)?,
        Command::Explain { from, to, proto, port, sport, name, ask } => {
            if matches!(proto, Some(Transport::Icmp)) && port.or(sport).is_some() {
                let said = "an echo request has no ports: leave --port and --sport out with --proto icmp";
                Cli::command().error(clap::error::ErrorKind::ArgumentConflict, said).exit();
            }
            let mut path = format!("explain?from={from}");
            for (key, value) in [
                ("to", to.map(|to| to.to_string())),
                ("proto", proto.map(|proto| format!("{proto:?}").to_lowercase())),
                ("port", port.map(|port| port.to_string())),
                ("sport", sport.map(|sport| sport.to_string())),
                ("name", name.as_deref().map(escaped)),
            ] {
                path.extend(value.map(|value| format!("&{key}={value}")));
            }
            show(&ask, &path, table::explain)?;
        }
        Command::SetupClient { os, at, gateway } => {
            let values = client::Values::find(&at, gateway)?;
            print_out(&client::commands(os, &values))?;
        }
        Command::Detach { config: path } => {
            let config = path.as_deref().map(Config::load).transpose()?;
            let at = At { api: None, config: path };
            if get(&at, "status").is_ok() {
                bail!("{}: an agent is running there: stop it with SIGTERM, then it takes itself off", at.url()?);
            }
            crate::log::init(config.as_ref().map_or("info", |config| &config.log));
            agent::detach(config.as_ref())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime(threads: bool) -> Result<tokio::runtime::Runtime> {
    let mut builder = if threads {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.enable_all().build().context("the async runtime does not start")
}

fn get(at: &At, path: &str) -> Result<serde_json::Value> {
    Ok(runtime(false)?.block_on(ask::get(&at.url()?, path))?)
}

fn show(ask: &Ask, path: &str, table: fn(&serde_json::Value) -> String) -> Result<()> {
    let answer = get(&ask.at, path)?;
    match ask.output {
        Output::Table => print_out(&table(&answer)),
        Output::Json => print_out(&format!("{answer:#}\n")),
    }
}

/// A name inside a URL (RFC 3986 section 2.1).
fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Unlike `print!`, survives a reader that has gone, like `head`.
fn print_out(text: &str) -> Result<()> {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("stdout cannot be written"),
        Ok(()) | Err(_) => Ok(()),
    }
}
