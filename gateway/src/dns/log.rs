//! The query log: one JSON line for each query that the forwarder or the kernel answered. A thread of its own writes it; a disk that is slower than
//! the queries costs lines, never answers.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, SystemTime},
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use serde::Serialize;

use super::{
    name,
    stats::{Source, Transport},
};

/// Lines that wait for the disk.
const QUEUE: usize = 8192;
/// [`LogConfig::per_million`] of a complete log.
pub const EVERY: u32 = 1_000_000;

/// `dns.log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The file; older ones have `.1`, `.2` behind their name.
    pub file: PathBuf,
    /// How many of a million queries are logged.
    pub per_million: u32,
    /// The file is put aside before it is longer than this, in bytes.
    pub max_size: u64,
    /// Older files kept.
    pub keep: u32,
}

/// What is known about an answered query.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it came.
    pub time: SystemTime,
    /// Who asked.
    pub client: IpAddr,
    /// The client's view.
    pub view: u8,
    /// How.
    pub transport: Transport,
    /// The name in wire format; empty: the query could not be read.
    pub name: Box<[u8]>,
    /// The type.
    pub qtype: u16,
    /// The answer's code.
    pub rcode: u16,
    /// Where the answer came from.
    pub source: Source,
    /// How long it took.
    pub took: Duration,
}

enum Order {
    Write(Entry),
    Reopen,
}

/// The log.
#[derive(Debug)]
pub struct QueryLog {
    orders: SyncSender<Order>,
    per_million: u32,
    lost: AtomicU64,
}

impl QueryLog {
    /// Opens the file; `views` are the views' names, by number.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(config: &LogConfig, views: Vec<String>) -> io::Result<Self> {
        let mut writer = Writer { out: Out::open(&config.file)?, config: config.clone(), views, failing: false };
        let (orders, given) = sync_channel(QUEUE);
        std::thread::Builder::new().name("query-log".to_owned()).spawn(move || writer.run(&given))?;
        Ok(Self { orders, per_million: config.per_million, lost: AtomicU64::new(0) })
    }

    /// Whether the next query is one that is logged.
    pub fn samples(&self) -> bool {
        self.per_million >= EVERY || rand::random_range(0..EVERY) < self.per_million
    }

    /// Logs a query, unless the disk is too far behind.
    pub fn write(&self, entry: Entry) {
        if self.orders.try_send(Order::Write(entry)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file anew: another program has put it aside.
    pub fn reopen(&self) {
        if self.orders.try_send(Order::Reopen).is_err() {
            tracing::warn!("dns.log: too busy to open the file anew; send SIGHUP again");
        }
    }

    /// Lines that were not written because the disk was too slow.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

struct Out {
    file: BufWriter<File>,
    len: u64,
}

impl Out {
    fn open(path: &Path) -> io::Result<Self> {
        // Who asked for what is not for everybody's eyes.
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file: BufWriter::new(file), len })
    }
}

struct Writer {
    out: Out,
    config: LogConfig,
    views: Vec<String>,
    failing: bool,
}

impl Writer {
    /// Until nobody logs any more. What came in a burst is written at its end.
    fn run(&mut self, orders: &Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            let mut result = self.obey(first);
            for order in orders.try_iter() {
                result = result.and(self.obey(order));
            }
            let result = result.and(self.out.file.flush());
            self.tell(result);
        }
    }

    fn tell(&mut self, result: io::Result<()>) {
        if let Err(error) = &result
            && !self.failing
        {
            tracing::warn!("dns.log: {}: queries are not logged: {error}", self.config.file.display());
        }
        self.failing = result.is_err();
    }

    fn obey(&mut self, order: Order) -> io::Result<()> {
        match order {
            Order::Write(entry) => self.write(&entry),
            Order::Reopen => {
                self.out.file.flush()?;
                self.out = Out::open(&self.config.file)?;
                Ok(())
            }
        }
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Line::new(entry, &self.views))?;
        line.push(b'\n');
        let len = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.out.len > 0 && self.out.len.saturating_add(len) > self.config.max_size {
            self.rotate()?;
        }
        self.out.file.write_all(&line)?;
        self.out.len += len;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.out.file.flush()?;
        let aged = |age: u32| {
            let mut path = self.config.file.clone().into_os_string();
            path.push(format!(".{age}"));
            PathBuf::from(path)
        };
        for age in (1..self.config.keep).rev() {
            absent_is_fine(fs::rename(aged(age), aged(age + 1)))?;
        }
        if self.config.keep > 0 {
            absent_is_fine(fs::rename(&self.config.file, aged(1)))?;
        } else {
            absent_is_fine(fs::remove_file(&self.config.file))?;
        }
        self.out = Out::open(&self.config.file)?;
        Ok(())
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    client: IpAddr,
    view: &'a str,
    transport: &'static str,
    name: Option<String>,
    #[serde(rename = "type")]
    rtype: Option<String>,
    rcode: String,
    source: &'static str,
    us: u64,
}

impl<'a> Line<'a> {
    fn new(entry: &Entry, views: &'a [String]) -> Self {
        let readable = !entry.name.is_empty();
        let refused = entry.source == Source::Local && entry.rcode == u16::from(ResponseCode::Refused);
        Self {
            time: rfc3339(entry.time),
            client: entry.client.to_canonical(),
            view: views.get(usize::from(entry.view)).map_or("", String::as_str),
            transport: entry.transport.label(),
            name: readable.then(|| name::to_text(&entry.name)),
            rtype: readable.then(|| RecordType::from(entry.qtype).to_string()),
            rcode: rcode(entry.rcode),
            source: if refused { "refused" } else { entry.source.label() },
            us: u64::try_from(entry.took.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

fn rcode(code: u16) -> String {
    const NAMES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
    match NAMES.get(usize::from(code)) {
        Some(name) => (*name).to_owned(),
        None if code == u16::from(ResponseCode::BADVERS) => "BADVERS".to_owned(),
        None => format!("RCODE{code}"),
    }
}

/// `2026-01-31T12:00:00.000001Z`.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // The calendar repeats every 400 years of 146,097 days; years are counted from March, so that a leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + u64::from(month >= 10), if month < 10 { month + 3 } else { month - 9 });
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_calendars_have_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_full_file_is_put_aside_and_only_so_many_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("queries.log");
        let config = LogConfig { file: file.clone(), per_million: EVERY, max_size: 400, keep: 2 };
        let mut writer = Writer {
            out: Out::open(&file).expect("a file"),
            config,
            views: vec!["developers".to_owned()],
            failing: false,
        };
        let entry = Entry {
            time: SystemTime::UNIX_EPOCH,
            client: [10, 90, 1, 7].into(),
            view: 0,
            transport: Transport::Udp,
            name: name::from_text("www.example.org").expect("name"),
            qtype: 28,
            rcode: 3,
            source: Source::Upstream,
            took: Duration::from_micros(1234),
        };
        for _ in 0..20 {
            writer.write(&entry).expect("a line");
        }
        writer.out.file.flush().expect("written");
        let mut files: Vec<String> = fs::read_dir(dir.path())
            .expect("readable")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        files.sort();
        assert_eq!(files, ["queries.log", "queries.log.1", "queries.log.2"]);
        let text = fs::read_to_string(dir.path().join("queries.log.1")).expect("readable");
        assert!(text.len() <= 400 && text.lines().count() == 2, "{text}");
        let line: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        let expected = serde_json::json!({
            "time": "1970-01-01T00:00:00.000000Z", "client": "10.90.1.7", "view": "developers", "transport": "udp",
            "name": "www.example.org", "type": "AAAA", "rcode": "NXDOMAIN", "source": "upstream", "us": 1234
        });
        assert_eq!(line, expected);
    }
}
