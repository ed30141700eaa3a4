//! One thread of the generator: its connections, its virtual clients, its part of the schedule.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::random::Random;
use super::schedule::Schedule;
use super::stats::{OpId, Recorder};
use super::workload::{Io, Progress, Workload};
use crate::http2::{Event, Peer, Poll, Readiness};

/// How long answers may take to come in after the run's end.
const GRACE_NS: u64 = 15_000_000_000;
/// A run with so many failures says nothing more by going on.
const FAILURES_MAX: u64 = 100_000;
/// The longest sleep: the phases must be noticed.
const SLEEP_NS_MAX: u64 = 50_000_000;
/// What a sleep may take longer than it should, on a machine that is doing something else: the last bit before a due
/// request is spent looking.
const SLEEP_SLACK_NS: u64 = 60_000;

/// When things happen, in nanoseconds since the run began.
#[derive(Clone, Copy, Debug)]
pub struct Phases {
    /// Measuring starts.
    pub measure_from: u64,
    /// Nothing new begins.
    pub end: u64,
}

/// What a thread does for one group of clients.
pub struct ThreadGroup {
    /// Their work.
    pub workload: Box<dyn Workload>,
    /// The lane (connection) of each client.
    pub lane_of: Vec<usize>,
    /// When their requests are due; without one they ask as soon as they were answered.
    pub schedule: Option<Schedule>,
    /// Where the group's failures count that no call knows of.
    pub first_op: OpId,
}

/// One connection and the group its clients belong to.
#[derive(Debug)]
pub struct Lane {
    /// The connection.
    pub peer: Peer,
    /// The group, by its place.
    pub group: usize,
}

struct GroupState {
    group: ThreadGroup,
    idle: VecDeque<u32>,
    backlog: VecDeque<u64>,
    working: usize,
}

/// One thread's run.
pub struct Worker {
    poll: Poll,
    lanes: Vec<Lane>,
    groups: Vec<GroupState>,
    recorder: Recorder,
    random: Random,
    phases: Phases,
    spin: bool,
    epoch: Instant,
    now: u64,
    stopping: bool,
}

impl Worker {
    /// A thread with these connections and groups. `spin`: look for answers all the time instead of sleeping.
    pub fn new(
        lanes: Vec<Lane>,
        groups: Vec<ThreadGroup>,
        recorder: Recorder,
        seed: u64,
        spin: bool,
    ) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        for (token, lane) in lanes.iter().enumerate() {
            poll.add(&lane.peer, token)?;
        }
        let groups = groups
            .into_iter()
            .map(|group| {
                let idle = (0..group.lane_of.len() as u32).collect();
                GroupState { group, idle, backlog: VecDeque::new(), working: 0 }
            })
            .collect();
        Ok(Self {
            poll,
            lanes,
            groups,
            recorder,
            random: Random::new(seed),
            phases: Phases { measure_from: 0, end: 0 },
            spin,
            epoch: Instant::now(),
            now: 0,
            stopping: false,
        })
    }

    /// Runs from `epoch` until all phases are over, and returns what was counted.
    pub fn run(mut self, epoch: Instant, phases: Phases) -> anyhow::Result<Recorder> {
        (self.epoch, self.phases) = (epoch, phases);
        let (mut ready, mut buffer): (Vec<Readiness>, Vec<u8>) = (Vec::new(), Vec::new());
        loop {
            self.now = self.clock();
            self.enter_phase();
            anyhow::ensure!(self.recorder.failures() < FAILURES_MAX, self.recorder.describe_failures());
            if self.stopping && self.is_drained() {
                return Ok(self.recorder);
            }
            self.begin_due();
            self.flush_all()?;
            self.poll.wait(self.timeout(), &mut ready)?;
            for readiness in &ready {
                if readiness.readable {
                    self.drive(readiness.token, &mut buffer)?;
                }
                self.flush(readiness.token)?;
            }
        }
    }

    fn clock(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn enter_phase(&mut self) {
        self.recorder.measuring = (self.phases.measure_from..self.phases.end).contains(&self.now);
        if self.now >= self.phases.end && !self.stopping {
            self.stopping = true;
            for group in 0..self.groups.len() {
                self.stop_group(group);
            }
        }
    }

    fn stop_group(&mut self, group: usize) {
        let Some(state) = self.groups.get_mut(group) else { return };
        state.backlog.clear();
        let busy: Vec<u32> =
            (0..state.group.lane_of.len() as u32).filter(|client| !state.idle.contains(client)).collect();
        for client in busy {
            if self.with_io(group, client, |workload, io| workload.stop(io)) == Some(Progress::Idle) {
                self.on_idle(group, client);
            }
        }
    }

    /// Whether every client is done; after the grace those that are not count as failed.
    fn is_drained(&mut self) -> bool {
        let late = self.now > self.phases.end + GRACE_NS;
        for state in self.groups.iter().filter(|state| late && state.working > 0) {
            for _ in 0..state.working {
                self.recorder.failed(state.group.first_op, "no answer at all".to_owned());
            }
        }
        late || self.groups.iter().all(|state| state.working == 0)
    }

    /// Begins what is due: in a closed loop everything that is idle, in an open one what the schedule says.
    fn begin_due(&mut self) {
        if self.stopping {
            return;
        }
        for group in 0..self.groups.len() {
            let Some(state) = self.groups.get_mut(group) else { return };
            match &mut state.group.schedule {
                Some(schedule) => {
                    while let Some(due) = schedule.take_due(self.now) {
                        state.backlog.push_back(due);
                    }
                }
                None => state.backlog.extend(std::iter::repeat_n(self.now, state.idle.len())),
            }
            while self.begin_one(group) {}
        }
    }

    /// Gives the oldest due request to an idle client; whether there were both.
    fn begin_one(&mut self, group: usize) -> bool {
        let Some(state) = self.groups.get_mut(group) else { return false };
        let (Some(&due), Some(&client)) = (state.backlog.front(), state.idle.front()) else { return false };
        state.backlog.pop_front();
        state.idle.pop_front();
        state.working += 1;
        self.with_io(group, client, |workload, io| workload.begin(io, due));
        true
    }

    fn on_idle(&mut self, group: usize, client: u32) {
        let Some(state) = self.groups.get_mut(group) else { return };
        state.working -= 1;
        state.idle.push_back(client);
        if self.stopping {
            return;
        }
        if state.group.schedule.is_none() {
            state.backlog.push_back(self.now);
        }
        self.begin_one(group);
    }

    fn with_io<T>(
        &mut self,
        group: usize,
        client: u32,
        act: impl FnOnce(&mut dyn Workload, &mut Io<'_>) -> T,
    ) -> Option<T> {
        let state = self.groups.get_mut(group)?;
        let lane = self.lanes.get_mut(*state.group.lane_of.get(client as usize)?)?;
        let mut io = Io {
            connection: &mut lane.peer.connection,
            now: self.now,
            recorder: &mut self.recorder,
            random: &mut self.random,
            client,
            stopping: self.stopping,
        };
        Some(act(&mut *state.group.workload, &mut io))
    }

    /// Reads once from a connection and handles all that came.
    fn drive(&mut self, token: usize, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
        let Some(lane) = self.lanes.get_mut(token) else { return Ok(()) };
        let group = lane.group;
        let mut input = lane.peer.receive(buffer).context("reading an answer")?;
        self.now = self.clock();
        self.recorder.measuring = (self.phases.measure_from..self.phases.end).contains(&self.now);
        loop {
            let Some(lane) = self.lanes.get_mut(token) else { return Ok(()) };
            let Some(event) = lane.peer.connection.next_event(&mut input)? else {
                lane.peer.keep(input);
                return Ok(());
            };
            self.handle(group, &event);
        }
    }

    #[inline]
    fn handle(&mut self, group: usize, event: &Event<'_>) {
        let (client, progress) = match *event {
            Event::Data { tag, bytes, end } => {
                let progress = self.with_io(group, tag, |workload, io| {
                    let progress = workload.on_data(io, bytes);
                    // An end without trailers is one without a status.
                    if end { workload.on_reset(io, 0) } else { progress }
                });
                (tag, progress)
            }
            Event::Headers { tag, answer, end } => {
                (tag, self.with_io(group, tag, |workload, io| workload.on_headers(io, answer, end)))
            }
            Event::Reset { tag, code } => {
                (tag, self.with_io(group, tag, |workload, io| workload.on_reset(io, code)))
            }
        };
        if progress == Some(Progress::Idle) {
            self.on_idle(group, client);
        }
    }

    fn flush(&mut self, token: usize) -> anyhow::Result<()> {
        match self.lanes.get_mut(token) {
            Some(lane) => lane.peer.flush(&self.poll, token).context("sending a request"),
            None => Ok(()),
        }
    }

    fn flush_all(&mut self) -> anyhow::Result<()> {
        for (token, lane) in self.lanes.iter_mut().enumerate() {
            if !lane.peer.is_blocked() {
                lane.peer.flush(&self.poll, token).context("sending a request")?;
            }
        }
        Ok(())
    }

    /// How long there is nothing to do but to wait for answers.
    fn timeout(&self) -> Duration {
        if self.spin {
            return Duration::ZERO;
        }
        let phase =
            if self.now < self.phases.measure_from { self.phases.measure_from } else { self.phases.end };
        let due =
            self.groups.iter().filter_map(|state| Some(state.group.schedule.as_ref()?.next_due())).min();
        let until_due = due.map_or(SLEEP_NS_MAX, |due| due.saturating_sub(self.now + SLEEP_SLACK_NS));
        let until_phase = phase.saturating_sub(self.now).max(1_000_000);
        Duration::from_nanos(until_due.min(until_phase).min(SLEEP_NS_MAX))
    }
}
