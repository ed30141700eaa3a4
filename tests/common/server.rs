//! The real binary as a process. A [`Home`] is a data directory with ports and settings; a [`Server`] is a process that
//! runs there. A home outlives its servers: kill one, start the next.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::wait::eventually_blocking;

/// The program: as built with these tests, or the one that `FLOWMESH_TEST_BINARY` names.
pub fn binary() -> PathBuf {
    std::env::var_os("FLOWMESH_TEST_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_flowmesh").into(), PathBuf::from)
}

/// Ports of one home: the shared one, one a core behind it, HTTP at the end.
const PORTS: u16 = 10;
/// Below the range from which the kernel takes ports of outgoing connections.
const PORT_FIRST: u16 = 15_000;
const PORT_LAST: u16 = 32_000;

/// A data directory with ports and settings.
pub struct Home {
    root: TempDir,
    data_dir: PathBuf,
    mode: &'static str,
    port: u16,
    settings: Vec<(String, String)>,
}

impl Home {
    /// One shard, resources made by their first write, small log segments.
    pub fn new() -> Self {
        let root = TempDir::with_prefix_in("e2e-", env!("CARGO_TARGET_TMPDIR")).unwrap();
        let data_dir = root.path().join("data");
        let home = Self { root, data_dir, mode: "dev", port: free_ports(), settings: Vec::new() };
        home.set("shards", "1").set("log_segment_bytes", "16MiB").set("log_level", "debug")
    }

    /// Without resources made by their first write.
    pub fn strict(mut self) -> Self {
        self.mode = "serve";
        self
    }

    /// So many shards.
    pub fn shards(self, shards: u16) -> Self {
        assert!(shards + 2 <= PORTS, "a home has {PORTS} ports");
        self.set("shards", &shards.to_string())
    }

    /// A setting, by its name in the settings file.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Listening for gRPC on every address of this machine.
    pub fn on_every_address(self) -> Self {
        let address = format!(":{}", self.port);
        self.set("grpc_addr", &address)
    }

    /// Another data directory.
    pub fn in_dir(mut self, data_dir: &Path) -> Self {
        data_dir.clone_into(&mut self.data_dir);
        self
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A directory for other files of the test.
    pub fn scratch(&self) -> &Path {
        self.root.path()
    }

    pub fn shard_dir(&self, shard: u16) -> PathBuf {
        self.data_dir.join(format!("shard-{shard:03}"))
    }

    /// The log segments of a shard, oldest first.
    pub fn log_files(&self, shard: u16) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.shard_dir(shard).join("log")) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        files.sort();
        files
    }

    fn log_path(&self) -> PathBuf {
        self.root.path().join("server.log")
    }

    /// The command that starts a server here.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        // Only what the test says counts.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"FLOWMESH_"))
        {
            command.env_remove(name);
        }
        let places = [
            ("grpc_addr", format!("127.0.0.1:{}", self.port)),
            ("http_addr", format!("127.0.0.1:{}", self.port + PORTS - 1)),
            ("data_dir", self.data_dir.display().to_string()),
        ];
        let unset = places.iter().filter(|(name, _)| self.settings.iter().all(|(set, _)| set != name));
        command
            .arg(self.mode)
            .args(unset.map(|(name, value)| format!("--{}={value}", name.replace('_', "-"))))
            .args(self.settings.iter().map(|(name, value)| format!("--{}={value}", name.replace('_', "-"))))
            .current_dir(self.root.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    fn spawn(&self) -> Child {
        let mut log = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        writeln!(log, "---- start").unwrap();
        self.command().stderr(log).spawn().unwrap()
    }

    /// Starts a server and waits until it is ready.
    pub fn start(&self) -> Server {
        let server = self.start_unready();
        server.wait_ready();
        server
    }

    /// Starts a server without waiting for it.
    pub fn start_unready(&self) -> Server {
        Server { child: Some(self.spawn()), port: self.port, log_path: self.log_path() }
    }

    /// Starts a server that must refuse to run; how it ended and what it said.
    pub fn start_refused(&self) -> (ExitStatus, String) {
        let before = fs::metadata(self.log_path()).map_or(0, |meta| meta.len());
        let mut server = self.start_unready();
        let mut child = server.child.take().unwrap();
        let status = wait_exit(&mut child);
        let log = fs::read(&server.log_path).unwrap();
        let said = String::from_utf8_lossy(log.get(usize::try_from(before).unwrap()..).unwrap()).into_owned();
        assert!(!status.success(), "it should have refused: {said}");
        (status, said)
    }
}

/// Waits for a process to end; kills it at the deadline.
pub fn wait_exit(child: &mut Child) -> ExitStatus {
    let pid = child.id();
    let mut guard = KillOnPanic(Some(pid));
    let status = eventually_blocking("the process ends", || child.try_wait().unwrap());
    guard.0 = None;
    status
}

struct KillOnPanic(Option<u32>);

impl Drop for KillOnPanic {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            signal(pid, libc::SIGKILL);
        }
    }
}

/// Sends a signal.
pub fn signal(pid: u32, signal: i32) {
    // SAFETY: no memory is involved; the process is a child that was not yet waited for.
    unsafe { libc::kill(pid.try_into().unwrap(), signal) };
}

/// A block of ports nobody listens on.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let blocks = (PORT_LAST - PORT_FIRST) / PORTS;
    let own = (std::process::id() % u32::from(blocks)) as u16;
    loop {
        let block = (own * 7 + NEXT.fetch_add(1, Ordering::Relaxed)) % blocks;
        let first = PORT_FIRST + block * PORTS;
        if (first..first + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
}

/// A running server. Killed when it is dropped; if the test failed, the end of its log is printed.
pub struct Server {
    child: Option<Child>,
    port: u16,
    log_path: PathBuf,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn grpc_port(&self) -> u16 {
        self.port
    }

    /// The port of one shard's core.
    pub fn core_port(&self, shard: u16) -> u16 {
        self.port + 1 + shard
    }

    pub fn http_port(&self) -> u16 {
        self.port + PORTS - 1
    }

    /// Waits until `/ready` says yes.
    pub fn wait_ready(&self) {
        eventually_blocking("the server is ready", || {
            self.assert_running();
            matches!(self.try_http("/ready"), Some((200, _))).then_some(())
        });
    }

    /// How the process ended, if it did: as `waitid` tells.
    fn end(&self) -> Option<String> {
        // SAFETY: `info` is plain memory that the call fills. WNOWAIT leaves the child to be waited for.
        let info = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            assert_eq!(libc::waitid(libc::P_PID, self.pid(), &raw mut info, options), 0);
            info
        };
        // SAFETY: the fields are those of SIGCHLD, which waitid fills; 0 means that nothing ended.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        let how = if info.si_code == libc::CLD_EXITED { "exit code" } else { "signal" };
        (pid != 0).then(|| format!("{how} {status}"))
    }

    /// Panics if the process has ended.
    #[track_caller]
    fn assert_running(&self) {
        if let Some(end) = self.end() {
            panic!("the server ended with {end}: {}", self.log_tail());
        }
    }

    /// The server is alive, takes calls and is not fenced.
    pub fn assert_healthy(&self) {
        self.assert_running();
        assert_eq!(self.http("/health").0, 200);
        assert_eq!(self.http("/ready").0, 200);
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(mut self) {
        let mut child = self.child.take().unwrap();
        signal(child.id(), libc::SIGKILL);
        child.wait().unwrap();
    }

    /// Asks it to stop, without waiting.
    pub fn terminate(&self) {
        signal(self.pid(), libc::SIGTERM);
    }

    /// A graceful stop.
    pub fn stop(mut self) {
        self.terminate();
        let status = wait_exit(self.child.as_mut().unwrap());
        assert!(status.success(), "a graceful stop ended with {status}: {}", self.log_tail());
        self.child = None;
    }

    /// Waits for the end of a server that was told to stop.
    pub fn wait_end(mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        wait_exit(&mut child)
    }

    /// Resident memory, in bytes.
    pub fn rss_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// A GET on the HTTP port: status and body.
    pub fn http(&self, path: &str) -> (u16, String) {
        self.try_http(path).unwrap_or_else(|| panic!("no answer to GET {path}"))
    }

    fn try_http(&self, path: &str) -> Option<(u16, String)> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.http_port())).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).ok()?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Some((status, body.to_owned()))
    }

    /// The value of a metric, summed over all its label sets that contain `labels`; `None` if it is not there.
    pub fn metric(&self, name: &str, labels: &str) -> Option<f64> {
        let (_, body) = self.http("/metrics");
        let values: Vec<f64> = body
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| line.contains(labels))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// All that the servers of this home have logged.
    pub fn log(&self) -> String {
        fs::read(&self.log_path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        const LINES: usize = 60;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let mut tail = String::new();
        for line in lines.iter().skip(lines.len().saturating_sub(LINES)) {
            let _ = write!(tail, "\n  {line}");
        }
        tail
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the server's log ended with:{}", self.log_tail());
        }
    }
}

/// Bytes of all files below a directory, by what they take on the disk.
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Changes one byte of a file.
pub fn flip_byte(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0xFF], offset).unwrap();
    file.sync_all().unwrap();
}
