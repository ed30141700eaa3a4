//! Programs under measurement: started, waited for, looked at, ended.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use flowmesh_proto::v1;

use crate::http2::UnaryClient;
use crate::load::ops::paths;
use crate::meter::{self, CpuSample, Memory};

/// How long a server may take to become ready; a replay of a large log counts.
const READY_DEADLINE: Duration = Duration::from_mins(2);
/// Between two looks at whether it is ready.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long a server is looked at to see whether it is quiet, and how much of a core it may take then.
const LOOK_AT_CPU: Duration = Duration::from_secs(1);
const QUIET_SHARE: f64 = 0.05;

/// A program that ends with us, and that is ended when this is dropped.
#[derive(Debug)]
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> anyhow::Result<Self> {
        // SAFETY: prctl is async-signal-safe, and nothing else is done between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let program = command.get_program().to_string_lossy().into_owned();
        command.spawn().map(Self).with_context(|| format!("cannot start {program}"))
    }

    /// As a crash would.
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a server is started.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The program, and what comes before `serve`.
    pub program: PathBuf,
    /// The data directory.
    pub dir: PathBuf,
    /// How many shards.
    pub shards: usize,
    /// The first shard's core; the others follow.
    pub first_cpu: usize,
    /// More arguments.
    pub args: Vec<String>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    running: Running,
    /// Where every core listens.
    pub grpc: SocketAddr,
    /// Where each shard's core listens alone.
    pub cores: Vec<SocketAddr>,
    http: SocketAddr,
    /// From starting the program to ready.
    pub ready_after: Duration,
    log: PathBuf,
}

impl Server {
    /// Starts a server and waits until it is ready.
    ///
    /// # Errors
    /// It could not be started, ended, or was not ready in time; with the end of its log.
    pub fn start(options: &ServerOptions) -> anyhow::Result<Self> {
        fs::create_dir_all(&options.dir)?;
        let ports = free_ports(2 + options.shards)?;
        let address = |at: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, ports + at as u16));
        let log = options.dir.with_extension("log");
        let output = File::create(&log)?;
        let cpus: Vec<String> = (0..options.shards)
            .map(|shard| ((options.first_cpu + shard) % meter::cores()).to_string())
            .collect();
        let mut command = Command::new(&options.program);
        command
            .arg("serve")
            .args(["--shards", &options.shards.to_string(), "--cpus", &cpus.join(",")])
            .args(["--durability", "always", "--auto-create", "--log-format", "json"])
            .arg("--data-dir")
            .arg(&options.dir)
            .args(["--grpc-addr", &address(0).to_string(), "--http-addr", &address(1).to_string()])
            .args(["--core-ports", &address(2).port().to_string()])
            .args(&options.args)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let began = Instant::now();
        let mut server = Self {
            running: Running::start(command)?,
            grpc: address(0),
            cores: (0..options.shards).map(|shard| address(2 + shard)).collect(),
            http: address(1),
            ready_after: Duration::ZERO,
            log,
        };
        server.wait_ready(began)?;
        Ok(server)
    }

    fn wait_ready(&mut self, began: Instant) -> anyhow::Result<()> {
        loop {
            if let Ok((200, _)) = http_get(self.http, "/ready") {
                self.ready_after = began.elapsed();
                return Ok(());
            }
            let ended = self.running.0.try_wait()?;
            if ended.is_some() || began.elapsed() > READY_DEADLINE {
                let what = ended
                    .map_or_else(|| "was not ready in time".to_owned(), |status| format!("ended: {status}"));
                anyhow::bail!("the server {what}\n{}", self.log_end());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.running.0.id()
    }

    /// Its memory.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        Ok(meter::memory_of(self.pid())?)
    }

    /// What its shards replayed from their logs when it started.
    pub fn recovered(&self) -> Recovered {
        recovered_in(&fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// A connection for single calls.
    pub fn client(&self) -> anyhow::Result<UnaryClient> {
        UnaryClient::connect(
            self.grpc,
            &[paths::CREATE, paths::SET, paths::APPEND, paths::STREAM_STATUS, paths::QUEUE_STATUS],
        )
    }

    /// Makes a stream, queue or store with default settings.
    pub fn create(&self, kind: v1::Kind, name: &str) -> anyhow::Result<()> {
        let request = v1::CreateResourceRequest {
            kind: kind.into(),
            name: name.to_owned(),
            or_existing: true,
            ..Default::default()
        };
        self.client()?.call::<v1::CreateResourceResponse>(paths::CREATE, &request)?;
        Ok(())
    }

    /// The offset that the next record of a stream with one partition will get.
    pub fn next_offset(&self, stream: &str) -> anyhow::Result<u64> {
        let request = v1::StreamStatusRequest { stream: stream.to_owned(), ..Default::default() };
        let answer: v1::StreamStatusResponse = self.client()?.call(paths::STREAM_STATUS, &request)?;
        Ok(answer.partitions.first().map_or(0, |partition| partition.next_offset))
    }

    /// The sum of a metric's samples; 0 if there is none.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, body) = http_get(self.http, "/metrics")?;
        let samples = body
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.split_once(' '))
            .filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'));
        Ok(samples.filter_map(|(_, value)| value.trim().parse::<f64>().ok()).sum())
    }

    /// Returns once checkpoints have taken in all that was written before this call, and the server is quiet after them.
    ///
    /// # Errors
    /// It is not so in time.
    pub fn settle(&self) -> anyhow::Result<()> {
        let (began, written) = (Instant::now(), self.metric("flowmesh_log_entries_total")?);
        loop {
            let before = CpuSample::of(self.pid())?;
            std::thread::sleep(LOOK_AT_CPU);
            let used_s = before.until(&CpuSample::of(self.pid())?).total_s();
            let taken = self.metric("flowmesh_checkpoint_lsn")?;
            if taken >= written && used_s < QUIET_SHARE * LOOK_AT_CPU.as_secs_f64() {
                return Ok(());
            }
            anyhow::ensure!(
                began.elapsed() < READY_DEADLINE,
                "checkpoints are at entry {taken} of {written} and the server used {used_s:.2} s of a second"
            );
        }
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) {
        self.running.kill();
    }
}

/// The bare echo as a process of its own.
#[derive(Debug)]
pub struct Echo {
    running: Running,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Echo {
    /// Starts it on a core.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(cpu: usize) -> anyhow::Result<Self> {
        let mut command = own_program()?;
        command.args(["echo-server", "--cpu", &cpu.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut running = Running::start(command)?;
        let stdout = running.0.stdout.take().context("the echo has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().with_context(|| format!("the echo did not start: {line:?}"))?;
        Ok(Self { running, address })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.running.0.id()
    }
}

/// This program: `flowmesh bench …`, or `flowmesh-perf …`.
fn own_program() -> anyhow::Result<Command> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(&program);
    if program.file_stem().is_some_and(|name| name != "flowmesh-perf") {
        command.arg("bench");
    }
    Ok(command)
}

/// Another generator, which does its work where the one that measures leaves time for it: what it does is in nobody's
/// latencies but through the server.
#[derive(Debug)]
pub struct Beside {
    running: Running,
}

impl Beside {
    /// Puts load on a server until it is dropped or ended.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(server: SocketAddr, cpu: usize, args: &[&str]) -> anyhow::Result<Self> {
        let mut command = own_program()?;
        command
            .args(["load", "--addr", &server.to_string(), "--cpus", &cpu.to_string(), "--output", "json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        // SAFETY: setpriority is async-signal-safe, and nothing else is done between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setpriority(libc::PRIO_PROCESS, 0, LEAST_PRIORITY);
                Ok(())
            });
        }
        Ok(Self { running: Running::start(command)? })
    }

    /// Waits for its end; what it counted.
    ///
    /// # Errors
    /// It failed, or said something else.
    pub fn ended(mut self) -> anyhow::Result<serde_json::Value> {
        let stdout = self.running.0.stdout.take().context("the other generator has no output")?;
        let counted =
            serde_json::from_reader(BufReader::new(stdout)).context("the other generator failed")?;
        self.running.0.wait()?;
        Ok(counted)
    }
}

/// As `nice -n 19`.
const LEAST_PRIORITY: libc::c_int = 19;

/// The first of so many consecutive ports that nobody listens on now.
fn free_ports(count: usize) -> anyhow::Result<u16> {
    for _ in 0..100 {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if first.checked_add(count as u16).is_some() && (first..first + count as u16).all(free) {
            return Ok(first);
        }
    }
    anyhow::bail!("no {count} consecutive free ports")
}

/// The status and body of a GET.
fn http_get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let status =
        answer.split_ascii_whitespace().nth(1).and_then(|status| status.parse().ok()).context("no HTTP")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// What shards replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Facts of all shards.
    pub facts: u64,
    /// Milliseconds of the slowest.
    pub ms: u64,
}

/// Adds up the lines that say `recovered`, in either of the server's log formats.
fn recovered_in(log: &str) -> Recovered {
    let lines = log.lines().map(without_colours).filter(|line| line.contains("recovered"));
    lines.fold(Recovered::default(), |sum, line| Recovered {
        facts: sum.facts + number_after(&line, "facts"),
        ms: sum.ms.max(number_after(&line, "replay_ms")),
    })
}

/// The number of a field, written `name=1` or `"name":1`; 0 if there is none.
fn number_after(line: &str, name: &str) -> u64 {
    let mut numbers = line.split([' ', ',', '{', '}']).filter_map(|field| {
        let (key, value) = field.split_once(['=', ':'])?;
        (key.trim_matches('"') == name).then(|| value.trim_matches('"').parse().ok())?
    });
    numbers.next_back().unwrap_or(0)
}

/// A line without terminal colours (ESC `[` … `m`).
fn without_colours(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

/// Removes a data directory and the log beside it.
pub fn remove_data(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    let _ = fs::remove_file(dir.with_extension("log"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recovered_is_read_in_both_formats() {
        let human = "\u{1b}[2m2026\u{1b}[0m \u{1b}[32m INFO\u{1b}[0m boot::core: recovered \u{1b}[3mshard\u{1b}[0m\u{1b}[2m=\u{1b}[0m0 \
                     \u{1b}[3mfacts\u{1b}[0m\u{1b}[2m=\u{1b}[0m70 \u{1b}[3mreplay_ms\u{1b}[0m\u{1b}[2m=\u{1b}[0m533\nother facts=9 replay_ms=9999";
        assert_eq!(recovered_in(human), Recovered { facts: 70, ms: 533 });
        let json = "{\"level\":\"INFO\",\"fields\":{\"message\":\"recovered\",\"shard\":\"0\",\"facts\":5,\"replay_ms\":3}}\n\
                    {\"level\":\"INFO\",\"fields\":{\"message\":\"recovered\",\"shard\":\"1\",\"facts\":6,\"replay_ms\":2}}";
        assert_eq!(recovered_in(json), Recovered { facts: 11, ms: 3 });
    }

    #[test]
    fn free_ports_are_consecutive_and_free() {
        let first = free_ports(3).unwrap();
        for port in first..first + 3 {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }
}
