//! A run: who asks for what, from where, for how long.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::calls::Calls;
use super::consumer::{Consumers, Follow};
use super::jobs::{JobOps, Jobs};
use super::keys::KeySpace;
use super::ops::{OpSpec, Operation};
use super::producer::Producers;
use super::result::{LoadResult, ThreadRun};
use super::schedule::Schedule;
use super::stats::{OpId, Recorder};
use super::worker::{Lane, Phases, ThreadGroup, Worker};
use super::workers::{Stamped, WorkOps, Workers};
use super::workload::Workload;
use crate::http2::{Methods, Peer};
use crate::meter::{self, CpuSample};

/// What the clients of a group do.
#[derive(Clone, Debug)]
pub enum Work {
    /// Unary calls, chosen by weight.
    Calls(Vec<OpSpec>),
    /// Jobs through their whole life: enqueue, reserve, acknowledge.
    Jobs {
        /// Jobs in each call.
        batch: u32,
        /// Bytes of each payload.
        value_bytes: u32,
    },
    /// Workers that get jobs through one long call each, and acknowledge them. In the queue's name `#` stands for the
    /// worker's number.
    Work {
        /// Jobs ahead of their acknowledgements.
        credit: u32,
        /// Bytes of each payload; at least 8, which say since when the job is waited for.
        value_bytes: u32,
    },
    /// Enqueues of jobs that say when they were sent.
    Stamped {
        /// Jobs in each call.
        batch: u32,
        /// Bytes of each payload, at least 8.
        value_bytes: u32,
    },
    /// Appends through one long call a client.
    Produce {
        /// Records in each append.
        batch: u32,
        /// Bytes of each value.
        value_bytes: u32,
        /// Appends ahead of their acknowledgements.
        window: u32,
    },
    /// Subscriptions.
    Consume {
        /// To which records.
        follow: Follow,
        /// Bytes of each value.
        value_bytes: u32,
    },
}

/// A group of clients.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// What they do.
    pub work: Work,
    /// The stream, queue or store.
    pub resource: String,
    /// Where connections go, in turn.
    pub targets: Vec<SocketAddr>,
    /// How many connections, over all threads.
    pub connections: usize,
    /// Clients on each of them.
    pub streams: usize,
    /// Calls a second of the whole group; none: as fast as answers come.
    pub rate: Option<f64>,
    /// Which keys.
    pub keys: KeySpace,
    /// Whether every key was written before, so that a missing one is an error.
    pub filled: bool,
}

/// A run.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// What it is called in results.
    pub name: String,
    /// Who asks for what.
    pub groups: Vec<GroupSpec>,
    /// Load before measuring.
    pub warmup: Duration,
    /// How long is measured.
    pub duration: Duration,
    /// The cores of the generator's threads, one thread each.
    pub cpus: Vec<usize>,
    /// Look for answers all the time instead of sleeping: no wake-up in the latencies, one core burnt.
    pub spin: bool,
    /// The server's process, if it runs here, for its processor time.
    pub server: Option<u32>,
    /// Makes two runs ask for the same keys.
    pub seed: u64,
}

impl Work {
    /// The operations it counts, the ones that sum up to the whole work first; and how many those are.
    fn ops(&self) -> (Vec<String>, usize) {
        match self {
            Self::Calls(specs) => (specs.iter().map(ToString::to_string).collect(), specs.len()),
            Self::Jobs { batch, value_bytes } => {
                let names = ["jobs", "jobs.enqueue", "jobs.reserve", "jobs.ack"];
                (names.iter().map(|name| format!("{name}*{batch}/{value_bytes}")).collect(), 1)
            }
            Self::Work { value_bytes, .. } => {
                (["work", "work.delivery"].map(|name| format!("{name}/{value_bytes}")).into(), 1)
            }
            // The worker's delivery is what counts; this is how its jobs come about.
            Self::Stamped { batch, value_bytes } => {
                (vec![format!("enqueue.stamped*{batch}/{value_bytes}")], 0)
            }
            Self::Produce { batch, value_bytes, .. } => {
                (vec![format!("append-stream*{batch}/{value_bytes}")], 1)
            }
            Self::Consume { value_bytes, .. } => (vec![format!("subscribe/{value_bytes}")], 1),
        }
    }
}

impl GroupSpec {
    /// Clients of the group, over all threads.
    pub fn clients(&self) -> usize {
        self.connections * self.streams
    }

    fn workload(&self, first: OpId, methods: &mut Methods, clients: usize) -> Box<dyn Workload> {
        let resource = self.resource.as_str();
        match &self.work {
            Work::Calls(specs) => {
                let operations = specs.iter().map(|spec| Operation::new(*spec, resource, methods)).collect();
                Box::new(Calls::new(operations, first, self.keys.clone(), self.filled, clients))
            }
            Work::Jobs { batch, value_bytes } => {
                let op = |at| OpId(first.0 + at);
                let ops = JobOps { whole: op(0), enqueue: op(1), reserve: op(2), ack: op(3) };
                Box::new(Jobs::new(resource, *batch, *value_bytes, ops, methods, clients))
            }
            Work::Work { credit, value_bytes } => {
                let ops = WorkOps { acked: first, delivery: OpId(first.0 + 1) };
                Box::new(Workers::new(resource, *credit, *value_bytes, ops, methods, clients))
            }
            Work::Stamped { batch, value_bytes } => {
                Box::new(Stamped::new(resource, (*batch, *value_bytes), first, methods, clients))
            }
            Work::Produce { batch, value_bytes, window } => {
                Box::new(Producers::new(resource, (*batch, *value_bytes), *window, first, methods, clients))
            }
            Work::Consume { follow, value_bytes } => {
                Box::new(Consumers::new(resource, *value_bytes, *follow, first, methods, clients))
            }
        }
    }
}

/// What a thread needs beside the spec: its place among all threads.
#[derive(Clone, Copy, Debug)]
struct Share {
    thread: usize,
    threads: usize,
}

impl LoadSpec {
    /// The names of all operations, and which of them sum up to the whole work.
    fn ops(&self) -> (Vec<String>, Vec<bool>) {
        let (mut names, mut primary) = (Vec::new(), Vec::new());
        for group in &self.groups {
            let (ops, primaries) = group.work.ops();
            primary.extend((0..ops.len()).map(|at| at < primaries));
            names.extend(ops);
        }
        (names, primary)
    }

    /// Connects, makes the load, and measures.
    ///
    /// # Errors
    /// A connection failed, or the load could not be made. Calls that failed are counted in the result instead.
    pub fn run(&self) -> anyhow::Result<LoadResult> {
        anyhow::ensure!(!self.cpus.is_empty(), "the generator needs a core");
        let (names, primary) = self.ops();
        let (ready_tx, ready_rx) = mpsc::channel();
        let threads = self.cpus.len();
        std::thread::scope(|scope| {
            let mut handles = Vec::with_capacity(threads);
            for (thread, cpu) in self.cpus.iter().enumerate() {
                let (go_tx, go_rx) = mpsc::channel();
                let (ready_tx, ops) = (ready_tx.clone(), names.len());
                let share = Share { thread, threads };
                let run = move || self.thread(*cpu, share, ops, &ready_tx, &go_rx);
                handles.push((
                    std::thread::Builder::new().name(format!("load-{thread}")).spawn_scoped(scope, run)?,
                    go_tx,
                ));
            }
            drop(ready_tx);
            // Every thread says when it is connected; one that fails hangs up instead.
            let connected = ready_rx.iter().take(threads).count();
            let epoch = Instant::now();
            if connected == threads {
                for (_, go) in &handles {
                    let _ = go.send(epoch);
                }
            }
            let (mut server, mut measured) = (None, 0.0);
            if connected == threads {
                (server, measured) = self.watch(epoch);
            }
            let mut runs = Vec::with_capacity(threads);
            for (handle, go) in handles {
                drop(go);
                let run = handle.join().map_err(|_| anyhow::anyhow!("a load thread panicked"))?;
                runs.push(run.with_context(|| format!("run {:?}", self.name))?);
            }
            Ok(LoadResult::new(self, names, &primary, runs, server, measured))
        })
    }

    /// Takes the server's processor time at both ends of the measured time; returns it and the seconds between.
    fn watch(&self, epoch: Instant) -> (Option<meter::CpuUse>, f64) {
        let sample = || self.server.and_then(|process| CpuSample::of(process).ok());
        sleep_until(epoch + self.warmup);
        let (before, from) = (sample(), Instant::now());
        sleep_until(epoch + self.warmup + self.duration);
        let (after, seconds) = (sample(), from.elapsed().as_secs_f64());
        let used = before.zip(after).map(|(before, after)| before.until(&after));
        (used, seconds)
    }

    fn thread(
        &self,
        cpu: usize,
        share: Share,
        ops: usize,
        ready: &mpsc::Sender<()>,
        go: &mpsc::Receiver<Instant>,
    ) -> anyhow::Result<ThreadRun> {
        meter::pin_to(cpu).with_context(|| format!("core {cpu}"))?;
        let worker = self.worker(share, ops)?;
        let _ = ready.send(());
        let epoch = go.recv().context("another load thread could not connect")?;
        let cpu_before = meter::own_thread_ns();
        let phases = Phases {
            measure_from: self.warmup.as_nanos() as u64,
            end: (self.warmup + self.duration).as_nanos() as u64,
        };
        let recorder = worker.run(epoch, phases)?;
        let busy_s = (meter::own_thread_ns() - cpu_before) as f64 / 1e9;
        Ok(ThreadRun { cpu, busy_s, wall_s: epoch.elapsed().as_secs_f64(), recorder })
    }

    fn worker(&self, share: Share, ops: usize) -> anyhow::Result<Worker> {
        let (mut lanes, mut groups, mut methods) = (Vec::new(), Vec::new(), Methods::default());
        let mut first = 0;
        for group in &self.groups {
            let mine = (0..group.connections).filter(|at| at % share.threads == share.thread).count();
            let workload = group.workload(OpId(first), &mut methods, mine * group.streams);
            let share_of_rate = group
                .rate
                .filter(|_| mine > 0)
                .map(|rate| Schedule::new(rate, share.thread as u64, share.threads as u64));
            groups.push(ThreadGroup {
                workload,
                lane_of: Vec::new(),
                schedule: share_of_rate,
                first_op: OpId(first),
            });
            first += group.work.ops().0.len();
        }
        for (at, (group, state)) in self.groups.iter().zip(&mut groups).enumerate() {
            let mine = (0..group.connections).filter(|at| at % share.threads == share.thread);
            for (number, connection) in mine.enumerate() {
                let target =
                    group.targets.get(connection % group.targets.len().max(1)).context("no target")?;
                let peer = Peer::connect(*target, &methods, group.streams)
                    .with_context(|| format!("connection {connection} to {target}"))?;
                lanes.push(Lane { peer, group: at });
                // Interleaved, so that an open loop spreads over all connections.
                debug_assert!(number < group.connections);
            }
            let lanes_of_group: Vec<usize> = lanes
                .iter()
                .enumerate()
                .filter(|(_, lane)| lane.group == at)
                .map(|(token, _)| token)
                .collect();
            for _ in 0..group.streams {
                state.lane_of.extend_from_slice(&lanes_of_group);
            }
        }
        let seed = self.seed.wrapping_mul(1000) + share.thread as u64;
        Worker::new(lanes, groups, Recorder::new(ops), seed, self.spin)
    }
}

fn sleep_until(time: Instant) {
    std::thread::sleep(time.saturating_duration_since(Instant::now()));
}
