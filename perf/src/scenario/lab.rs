//! What every scenario works with: where servers come from, which cores are whose, how long and how often to measure.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::process::{Echo, Server, ServerOptions, remove_data};
use super::row::Round;
use crate::baseline::{calls, echo_spec};
use crate::cli::LabArgs;
use crate::load::{GroupSpec, KeySpace, LoadResult, LoadSpec, OpSpec, Work};
use crate::meter;

/// Load before each measurement, so that caches and windows are warm.
const WARMUP: Duration = Duration::from_millis(500);

/// What every scenario works with.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The server's program.
    pub server: PathBuf,
    /// More arguments for it.
    pub server_args: Vec<String>,
    /// Where servers keep data.
    pub dir: PathBuf,
    /// The first shard's core.
    pub server_cpu: usize,
    /// The generator's core.
    pub client_cpu: usize,
    /// How often to measure.
    pub rounds: u32,
    /// How long each time.
    pub duration: Duration,
    /// Whether the generator spins.
    pub spin: bool,
}

/// A server in a directory of its own, which goes when this is dropped.
#[derive(Debug)]
pub struct Guest {
    /// The server.
    pub server: Option<Server>,
    options: ServerOptions,
    /// Arguments that every server of the lab has.
    lab_args: usize,
}

impl Guest {
    /// The running server.
    ///
    /// # Errors
    /// It was killed and not started again.
    pub fn server(&self) -> anyhow::Result<&Server> {
        self.server.as_ref().context("the server was killed")
    }

    /// Its data directory.
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts it again on the same data, with other arguments than at first.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart_with(&mut self, args: &[&str]) -> anyhow::Result<&Server> {
        self.options.args.truncate(self.lab_args);
        self.options.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.restart()
    }

    /// Starts it again on the same data.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn restart(&mut self) -> anyhow::Result<&Server> {
        self.kill();
        Ok(self.server.insert(Server::start(&self.options)?))
    }
}

/// Removes the data of runs that were ended from outside: a directory is named after the process that made it.
fn remove_stale(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("data-")?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            remove_data(&entry.path());
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        remove_data(&self.options.dir);
    }
}

impl Lab {
    /// The lab that the arguments describe.
    ///
    /// # Errors
    /// There is no server program.
    pub fn new(args: &LabArgs) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let server = args.server.clone().unwrap_or_else(|| own.with_file_name("flowmesh"));
        anyhow::ensure!(server.is_file(), "no server at {}: build it, or say --server", server.display());
        std::fs::create_dir_all(&args.dir)?;
        remove_stale(&args.dir);
        Ok(Self {
            server,
            server_args: args.server_arg.clone(),
            dir: args.dir.canonicalize()?,
            server_cpu: args.server_cpu,
            client_cpu: args.client_cpu.unwrap_or_else(|| meter::cores() - 1),
            rounds: args.rounds,
            duration: args.duration,
            spin: args.spin,
        })
    }

    /// A fresh server.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start(&self, shards: usize, args: &[&str]) -> anyhow::Result<Guest> {
        let dir = self.dir.join(format!("data-{}", std::process::id()));
        remove_data(&dir);
        let options = ServerOptions {
            program: self.server.clone(),
            dir,
            shards,
            first_cpu: self.server_cpu,
            args: self.server_args.iter().cloned().chain(args.iter().map(|arg| (*arg).to_owned())).collect(),
        };
        let server = Server::start(&options)?;
        Ok(Guest { server: Some(server), options, lab_args: self.server_args.len() })
    }

    /// The bare echo on the server's core.
    ///
    /// # Errors
    /// As [`Echo::start`].
    pub fn echo(&self) -> anyhow::Result<Echo> {
        Echo::start(self.server_cpu)
    }

    /// A run of load on a server.
    pub fn spec(&self, name: &str, groups: Vec<GroupSpec>, server: Option<u32>) -> LoadSpec {
        LoadSpec {
            name: name.to_owned(),
            groups,
            warmup: WARMUP,
            duration: self.duration,
            cpus: vec![self.client_cpu],
            spin: self.spin,
            server,
            seed: 1,
        }
    }

    /// The same bytes to the echo as `op` sends to the server.
    pub fn echo_spec(&self, echo: &Echo, op: OpSpec, shape: (usize, usize)) -> LoadSpec {
        let spec = echo_spec(echo, op, shape, self.client_cpu);
        LoadSpec { warmup: WARMUP, duration: self.duration, spin: self.spin, ..spec }
    }

    /// A closed loop of unary calls to a server.
    pub fn calls(op: OpSpec, target: SocketAddr, resource: &str, shape: (usize, usize)) -> GroupSpec {
        GroupSpec { resource: resource.to_owned(), ..calls(vec![op], target, shape) }
    }

    /// A group of one connection each for `clients` clients of a kind.
    pub fn group(
        work: Work,
        target: SocketAddr,
        resource: &str,
        (connections, streams): (usize, usize),
    ) -> GroupSpec {
        GroupSpec {
            work,
            resource: resource.to_owned(),
            targets: vec![target],
            connections,
            streams,
            rate: None,
            keys: KeySpace::new(1, None),
            filled: true,
        }
    }

    /// Measures the machine and the server in turn, as often as the lab says.
    ///
    /// # Errors
    /// As the measurements.
    pub fn rounds(
        &self,
        mut bare: impl FnMut() -> anyhow::Result<f64>,
        mut measured: impl FnMut() -> anyhow::Result<f64>,
    ) -> anyhow::Result<Vec<Round>> {
        (0..self.rounds)
            .map(|_| {
                let bare = bare()?;
                Ok(Round { bare: Some(bare), measured: measured()? })
            })
            .collect()
    }

    /// Runs a spec as often as the lab says; returns a figure of each and all results.
    ///
    /// # Errors
    /// As [`LoadSpec::run`].
    pub fn repeat(
        &self,
        spec: &LoadSpec,
        figure: impl Fn(&LoadResult) -> f64,
    ) -> anyhow::Result<(Vec<Round>, Vec<LoadResult>)> {
        let mut results = Vec::new();
        for _ in 0..self.rounds {
            results.push(spec.run()?);
        }
        let rounds = results.iter().map(|result| Round { bare: None, measured: figure(result) }).collect();
        Ok((rounds, results))
    }

    /// Of several ways to make the same load the best, by a short run of each.
    ///
    /// # Errors
    /// As [`LoadSpec::run`].
    pub fn best(
        &self,
        specs: Vec<LoadSpec>,
        figure: impl Fn(&LoadResult) -> f64,
    ) -> anyhow::Result<LoadSpec> {
        let mut best: Option<(f64, LoadSpec)> = None;
        for spec in specs {
            let trial = LoadSpec { duration: self.duration.min(Duration::from_secs(1)), ..spec.clone() };
            let reached = figure(&trial.run()?);
            if best.as_ref().is_none_or(|(most, _)| reached > *most) {
                best = Some((reached, spec));
            }
        }
        best.map(|(_, spec)| spec).context("nothing to choose from")
    }

    /// The directory that disks are measured in.
    pub fn scratch(&self) -> &Path {
        &self.dir
    }
}
