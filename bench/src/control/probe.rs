//! The agent as its surroundings see it: the maps that it fills, the answers that a client gets, the memory and time that it takes.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData};
use gateway_common::maps::{Service, ServiceKey};

type Key = [u8; size_of::<ServiceKey<[u8; 4]>>()];
type Value = [u8; size_of::<Service>()];

/// `SERVICES4` of one agent.
pub struct Services(HashMap<MapData, Key, Value>);

impl Services {
    /// The map of the agent with this process id; others may run on this machine.
    ///
    /// # Errors
    /// When it has none.
    pub fn of(pid: u32) -> Result<Self> {
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            let info = fs::read_to_string(entry?.path()).unwrap_or_default();
            let id = info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok());
            let Some(data) = id.and_then(|id| MapData::from_id(id).ok()) else { continue };
            if data.info()?.name_as_str() == Some("SERVICES4") {
                return Ok(Self(Map::HashMap(data).try_into()?));
            }
        }
        bail!("the agent has no map SERVICES4")
    }

    /// Where the Maglev table of a Service's port 80 stands: it moves with every change of its endpoints.
    ///
    /// # Errors
    /// When the Service is not in the map.
    pub fn table(&self, vip: Ipv4Addr) -> Result<u32> {
        let key = ServiceKey { addr: vip.octets(), port: 80_u16.to_be_bytes(), proto: 6, pad: 0 };
        let value = self.0.get(&bytemuck::cast(key), 0).with_context(|| format!("{vip}:80 in SERVICES4"))?;
        Ok(bytemuck::cast::<_, Service>(value).slots)
    }
}

/// A process's memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Most that ever was.
    pub peak: u64,
}

impl Memory {
    /// Of a process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
        };
        let (resident, peak) = field("VmRSS").zip(field("VmHWM")).context("/proc/PID/status: no VmRSS")?;
        Ok(Self { resident, peak })
    }
}

/// Time that a process has spent on a CPU.
///
/// # Errors
/// When it has ended.
pub fn cpu(pid: u32) -> Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))? {
        // A thread may end meanwhile.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|spent| spent.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// A client that asks for addresses.
pub struct Asker {
    socket: UdpSocket,
    id: u16,
}

impl Asker {
    /// Call it inside the client's namespace.
    ///
    /// # Errors
    /// When there is no route to the server.
    pub fn new(server: Ipv4Addr) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddr::from((server, 53)))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self { socket, id: 0 })
    }

    /// The last address of the answer; none when there is no address, or no answer in time.
    ///
    /// # Errors
    /// What the socket says.
    pub fn ask(&mut self, name: &str) -> Result<Option<Ipv4Addr>> {
        self.id = self.id.wrapping_add(1);
        let mut message = Vec::with_capacity(64);
        message.extend(self.id.to_be_bytes());
        message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        for label in name.split('.') {
            message.push(u8::try_from(label.len())?);
            message.extend(label.as_bytes());
        }
        message.extend([0, 0, 1, 0, 1]);
        self.socket.send(&message)?;
        let mut answer = [0; 1232];
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {
            let len = match self.socket.recv(&mut answer) {
                Ok(len) => len,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) => return Err(error.into()),
            };
            if len > 12 && answer[..2] == self.id.to_be_bytes() {
                let has_answer = answer[6..8] != [0, 0];
                let last: Option<[u8; 4]> = answer[..len].last_chunk().copied();
                return Ok(last.filter(|_| has_answer).map(Ipv4Addr::from));
            }
        }
        Ok(None)
    }
}

/// Sorted times, read by their shares.
#[derive(Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Of these.
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    /// Those of several rounds together.
    pub fn of_all(rounds: &[Self]) -> Self {
        Self::new(rounds.iter().flat_map(|round| round.0.iter().copied()).collect())
    }

    /// The time that this share of them does not exceed, in milliseconds.
    pub fn at(&self, share: f64) -> f64 {
        let index = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(index.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
