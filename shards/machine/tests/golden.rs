//! Golden scripts: `testdata/*.script`. A block is one or more commands, a rule, and what they must come to:
//!
//! ```text
//! enqueue mail hello priority=5
//! ----
//! + JobEnqueued …        a fact
//! = enqueued 1           the reply; `(seen 3)` says which entry an answer without facts waits for
//! ! JOB_NOT_FOUND …      a rejection
//! ```
//!
//! `UPDATE_GOLDEN=1 cargo test -p flowmesh-machine --test golden` writes what is there now; read the diff like code.
//!
//! Names stand for resources of the command's kind, `#7` for a bare number. Options are `name=value`; several jobs or
//! entries in one command are separated by `|`.

// A test fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;
use common::{Outcome, World, pack, text};
use flowmesh_model::command::{Ack, KeyScan, LeaseRef, Nack, NewJob, ReadFrom, SetEntry, SetIf, SetTtl};
use flowmesh_model::group::Name;
use flowmesh_model::job::{
    Backoff, JobCursor, JobFilter, JobKey, JobOptions, JobPhase, JobRef, NackKind, RetryPolicy, Which,
};
use flowmesh_model::replay::{ReplayRef, Speed, StepMove};
use flowmesh_model::schedule::{MissedPolicy, ScheduleChanges, ScheduleSpec, Timing};
use flowmesh_model::transfer::Arrival;
use flowmesh_model::worker::{Registration, WorkerFilter, WorkerState};
use flowmesh_model::{
    Batch, CatalogCommand, Command, JobId, Kind, KvCommand, LeaseToken, Lsn, Millis, Offset, PartitionRef,
    ProducerId, ProducerStamp, QueueCommand, ReplayCommand, Reply, ResourceId, ResourcePath, ScheduleCommand,
    Settings, StreamCommand, TransferCommand, TransferReply, WorkerCommand, WorkerPath,
};

/// The words of a command: plain ones in order, and options.
struct Words<'a> {
    plain: Vec<&'a str>,
    options: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        let (options, plain) = line.split_whitespace().partition::<Vec<_>, _>(|word| word.contains('='));
        let options = options.into_iter().map(|word| word.split_once('=').unwrap()).collect();
        Self { plain, options }
    }

    fn option(&self, name: &str) -> Option<&'a str> {
        self.options.iter().find(|(option, _)| *option == name).map(|(_, value)| *value)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.option(name).map(|value| value.parse().unwrap())
    }
}

fn bytes(word: &str) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}

fn lease(word: &str) -> LeaseRef {
    let (job, token) = word.split_once(':').unwrap();
    LeaseRef { job: JobId(job.parse().unwrap()), token: LeaseToken(token.parse().unwrap()) }
}

/// `id:epoch:sequence`
fn stamp(word: &str) -> ProducerStamp {
    let mut numbers = word.split(':').map(|number| number.parse::<u64>().unwrap());
    let mut next = || numbers.next().unwrap();
    ProducerStamp { id: ProducerId(next()), epoch: next() as u32, sequence: next() }
}

struct Script {
    world: World,
}

impl Script {
    fn id(&self, kind: Kind, name: &str) -> ResourceId {
        if let Some(number) = name.strip_prefix('#') {
            return ResourceId(number.parse().unwrap());
        }
        let catalog = self.world.machine.catalog_snapshot();
        catalog.find(kind, name).unwrap_or_else(|| panic!("no {kind} {name}")).id
    }

    /// A queue's name, or a stream's with a partition.
    fn target(&self, word: &str) -> PartitionRef {
        if word.contains('/') {
            return self.partition(word);
        }
        PartitionRef { resource: self.id(Kind::Queue, word), partition: 0 }
    }

    /// Sends what is next to a target; what the target says of it is not told to the source.
    fn carry(&mut self, queue: &str, to: &str, most: usize) -> String {
        let (source, to) = (self.id(Kind::Queue, queue), self.target(to));
        let next = Command::Queue(source, QueueCommand::Transfer(TransferCommand::Next { to }));
        let jobs = match self.world.run(&next) {
            Outcome::Answered(Reply::Transfer(TransferReply::Next(jobs)), _) => jobs,
            other => return text::outcome(&other),
        };
        let arrival = Arrival { source, jobs: jobs.into_iter().take(most).collect() };
        let kind = self.world.machine.catalog_snapshot().get(to.resource).map(|info| info.path.kind());
        let command = match kind {
            Some(Kind::Stream) => Command::Stream(to, StreamCommand::Receive(arrival)),
            _ => Command::Queue(to.resource, QueueCommand::Transfer(TransferCommand::Receive(arrival))),
        };
        let outcome = self.world.run(&command);
        self.world.machine.check_all();
        text::outcome(&outcome)
    }

    /// The changes that a feed has from there on.
    fn feed(&mut self, place: &str, from: Offset) -> String {
        let from = ReadFrom::Offset(from);
        let read = StreamCommand::Read {
            from,
            records_max: 100,
            bytes_max: 1 << 20,
            bytes_min: 0,
            wait_until: None,
        };
        match self.world.run(&Command::Stream(self.partition(place), read)) {
            Outcome::Answered(Reply::Records(records), _) => text::changes(&records.runs),
            other => text::outcome(&other),
        }
    }

    fn replay(&self, name: &str) -> ReplayRef {
        let session = self.id(Kind::Replay, name);
        let catalog = self.world.machine.catalog_snapshot();
        let Some(Settings::Replay(settings)) = catalog.get(session).map(|info| &info.settings) else {
            panic!("no replay {name}")
        };
        ReplayRef { session, group: self.id(Kind::Group, &settings.group) }
    }

    fn partition(&self, word: &str) -> PartitionRef {
        let (name, partition) = word.split_once('/').unwrap();
        PartitionRef { resource: self.id(Kind::Stream, name), partition: partition.parse().unwrap() }
    }

    fn run(&mut self, line: &str) -> String {
        let words = Words::of(line);
        match words.plain.as_slice() {
            ["at", time] => {
                self.world.now = Millis(time.parse().unwrap());
                String::new()
            }
            ["tick"] => {
                let facts = self.world.tick(2);
                text::facts(&facts)
            }
            ["due"] => format!("due {:?}\n", self.world.machine.next_due().map(Millis::get)),
            ["carry", queue, to, most @ ..] => {
                let most = most.first().map_or(usize::MAX, |most| most.parse().unwrap());
                self.carry(queue, to, most)
            }
            ["feed", place, from] => self.feed(place, Offset(from.parse().unwrap())),
            ["lanes"] => format!("lanes {:?}\n", self.world.machine.take_outgoing()),
            ["woken"] => {
                let mut out = String::new();
                while let Some(key) = self.world.machine.take_woken() {
                    writeln!(out, "woken {key:?}").unwrap();
                }
                out
            }
            ["checkpoint"] => {
                self.world.seal();
                self.world.write();
                String::new()
            }
            ["restart"] => {
                self.world.crash();
                String::new()
            }
            ["evict"] => {
                self.world.machine.evict_tails(0, usize::MAX);
                self.world.evict_bodies(usize::MAX);
                String::new()
            }
            _ => {
                let command = self.command(line);
                let outcome = self.world.run(&command);
                self.world.machine.check_all();
                text::outcome(&outcome)
            }
        }
    }

    fn command(&self, line: &str) -> Command {
        let words = Words::of(line);
        let plain = words.plain.as_slice();
        match plain {
            [
                verb @ ("create" | "update" | "delete"),
                kind @ ("stream" | "queue" | "kv" | "group" | "replay"),
                name,
                flags @ ..,
            ] => {
                let path = ResourcePath::parse(Kind::parse(kind).unwrap(), name).unwrap();
                let settings = settings(kind, &words);
                Command::Catalog(match *verb {
                    "create" => {
                        CatalogCommand::Create { path, settings, or_existing: flags.contains(&"or-existing") }
                    }
                    "update" => CatalogCommand::Update { path, settings },
                    _ => CatalogCommand::Delete { path },
                })
            }
            [
                "append" | "read" | "stream-status" | "find-offset" | "trim" | "init-producer"
                | "fence-producer",
                place,
                rest @ ..,
            ] => {
                Command::Stream(self.partition(place), stream_command(plain[0], rest, &words, self.world.now))
            }
            ["replay", session, verb, rest @ ..] => {
                Command::Replay(self.replay(session), replay_command(verb, rest, &words, self.world.now))
            }
            ["next" | "sent" | "failed", queue, to, rest @ ..] => {
                let command = lane_command(plain[0], self.target(to), rest, &words);
                Command::Queue(self.id(Kind::Queue, queue), QueueCommand::Transfer(command))
            }
            ["move" | "replay-jobs", queue, to, jobs @ ..] => {
                let command = send_command(plain[0], self.target(to).resource, jobs, &words);
                Command::Queue(self.id(Kind::Queue, queue), QueueCommand::Transfer(command))
            }
            ["schedule", queue, verb, rest @ ..] => Command::Queue(
                self.id(Kind::Queue, queue),
                QueueCommand::Schedule(schedule_command(verb, rest, &words)),
            ),
            ["worker", verb, rest @ ..] => Command::Worker(worker_command(verb, rest, &words)),
            ["run", store, ..] => {
                let operations = line.splitn(3, ' ').nth(2).unwrap_or_default();
                Command::Kv(self.id(Kind::Kv, store), common::operations::command(operations))
            }
            ["set" | "get" | "del" | "exists" | "scan", store, rest @ ..] => {
                Command::Kv(self.id(Kind::Kv, store), kv_command(plain[0], rest, &words, line))
            }
            [verb, queue, rest @ ..] => {
                let command = queue_command(verb, rest, &words, line, self.world.now);
                Command::Queue(self.id(Kind::Queue, queue), command)
            }
            _ => panic!("what is `{line}`?"),
        }
    }
}

fn lane_command(verb: &str, to: PartitionRef, rest: &[&str], words: &Words<'_>) -> TransferCommand {
    let upto = || rest[0].parse().unwrap();
    match verb {
        "next" => TransferCommand::Next { to },
        "sent" => TransferCommand::Sent { to, upto: upto() },
        _ => TransferCommand::Failed {
            to,
            upto: upto(),
            error: bytes(words.option("error").unwrap_or("gone")),
        },
    }
}

fn send_command(verb: &str, to: ResourceId, jobs: &[&str], words: &Words<'_>) -> TransferCommand {
    let which = match jobs {
        [] => Which::Matching(filter(words), JobCursor::default()),
        _ => Which::Jobs(jobs.iter().map(|word| JobId(word.parse().unwrap())).collect()),
    };
    if verb == "move" {
        let per_second = words.number("per_second").map(|rate| rate as u32);
        return TransferCommand::Move { which, to, per_second, delay_ms: words.number("delay").unwrap_or(0) };
    }
    let word = words.option("phase").unwrap_or("done");
    let phase = JobPhase::ALL.into_iter().find(|phase| phase.as_str() == word).unwrap();
    TransferCommand::Replay { which, phase, to }
}

fn settings(kind: &str, words: &Words<'_>) -> Settings {
    let mut json = serde_json::Map::new();
    json.insert("kind".into(), words.option("settings").unwrap_or(kind).into());
    for (name, value) in words.options.iter().filter(|(name, _)| *name != "settings") {
        json.insert((*name).into(), serde_json::from_str(value).unwrap_or_else(|_| (*value).into()));
    }
    serde_json::from_value(json.into()).unwrap()
}

/// Places are `partition:offset`; a step's are `partition:from:to`.
fn replay_command(verb: &str, rest: &[&str], words: &Words<'_>, now: Millis) -> ReplayCommand {
    let numbers = |word: &str| word.split(':').map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>();
    let record_time = words.number("time").map(Millis);
    match verb {
        "begin" => ReplayCommand::Begin,
        "start" => ReplayCommand::Start { record_time },
        "pause" => ReplayCommand::Pause,
        "resume" => ReplayCommand::Resume { record_time },
        "stop" => ReplayCommand::Stop,
        "speed" => ReplayCommand::SetSpeed { speed: Speed(rest[0].parse().unwrap()), record_time },
        "fail" => ReplayCommand::Fail { error: rest.join(" ").into() },
        "seek" => {
            let place = |word: &&str| (numbers(word)[0] as u32, Offset(numbers(word)[1]));
            ReplayCommand::Seek { to: rest.iter().map(place).collect(), record_time }
        }
        "step" => {
            let step = |word: &&str| {
                let numbers = numbers(word);
                let (from, to) = (Offset(numbers[1]), Offset(numbers[2]));
                StepMove { partition: numbers[0] as u32, from, to }
            };
            ReplayCommand::Step { moves: rest.iter().map(step).collect() }
        }
        "status" => ReplayCommand::Status {
            known: words.number("known").map(Lsn),
            wait_until: words.number("wait").map(|ms| now.plus(ms)),
        },
        _ => panic!("what is `{verb}`?"),
    }
}

fn stream_command(verb: &str, rest: &[&str], words: &Words<'_>, now: Millis) -> StreamCommand {
    match (verb, rest) {
        ("append", values) => {
            let values: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
            StreamCommand::Append {
                records: pack(&values),
                producer: words.option("producer").map(stamp),
                expected_offset: words.number("expect").map(Offset),
            }
        }
        ("read", [from]) => StreamCommand::Read {
            from: read_from(from),
            bytes_min: words.number("bytes_min").unwrap_or(0) as u32,
            records_max: words.number("records_max").unwrap_or(100) as u32,
            bytes_max: words.number("bytes_max").unwrap_or(1000) as u32,
            wait_until: words.number("wait").map(|ms| now.plus(ms)),
        },
        ("init-producer", name) => {
            StreamCommand::InitProducer { name: name.first().map_or_else(Bytes::new, |name| bytes(name)) }
        }
        ("fence-producer", [producer]) => {
            let (id, epoch) = producer.split_once(':').unwrap();
            StreamCommand::FenceProducer {
                id: ProducerId(id.parse().unwrap()),
                epoch: epoch.parse().unwrap(),
            }
        }
        ("find-offset", [from]) => StreamCommand::FindOffset { from: read_from(from) },
        ("trim", [upto]) => StreamCommand::Trim { upto: Offset(upto.parse().unwrap()) },
        _ => StreamCommand::Status,
    }
}

/// `earliest`, `latest`, `@time` or an offset.
fn read_from(word: &str) -> ReadFrom {
    match (word, word.strip_prefix('@')) {
        ("earliest", _) => ReadFrom::Earliest,
        ("latest", _) => ReadFrom::Latest,
        (_, Some(time)) => ReadFrom::Timestamp(Millis(time.parse().unwrap())),
        (offset, None) => ReadFrom::Offset(Offset(offset.parse().unwrap())),
    }
}

fn queue_command(verb: &str, rest: &[&str], words: &Words<'_>, line: &str, now: Millis) -> QueueCommand {
    let leases = || rest.iter().map(|word| lease(word)).collect::<Batch<_>>();
    let jobs = || rest.iter().map(|word| JobId(word.parse().unwrap())).collect::<Batch<_>>();
    let jobs_max = || rest.first().map_or(100, |jobs| jobs.parse().unwrap());
    let phase = || {
        let word = words.option("phase")?;
        JobPhase::ALL.into_iter().find(|phase| phase.as_str() == word)
    };
    let which = || match rest {
        [] => Which::Matching(filter(words), JobCursor::default()),
        _ => Which::Jobs(jobs()),
    };
    match verb {
        "enqueue" => {
            let jobs = line.split_once(char::is_whitespace).unwrap().1;
            let jobs = jobs.split_once(char::is_whitespace).map_or("", |(_, jobs)| jobs);
            let jobs =
                jobs.split('|').filter(|job| !job.trim().is_empty() && !job.trim().starts_with("wait="));
            QueueCommand::Enqueue {
                jobs: jobs.map(new_job).collect(),
                wait_until: words.number("wait").map(|ms| now.plus(ms)),
            }
        }
        "reserve" => QueueCommand::Reserve {
            jobs_max: rest.first().map_or(1, |jobs| jobs.parse().unwrap()),
            visibility_timeout_ms: words.number("timeout"),
            worker: bytes(words.option("worker").unwrap_or("w")),
            wait_until: words.number("wait").map(|ms| now.plus(ms)),
        },
        "ack" => QueueCommand::Ack {
            acks: leases()
                .into_iter()
                .map(|lease| Ack { lease, result: bytes(words.option("result").unwrap_or("")) })
                .collect(),
        },
        "nack" => QueueCommand::Nack {
            nacks: leases()
                .into_iter()
                .map(|lease| Nack {
                    lease,
                    kind: match words.option("kind") {
                        Some("final") => NackKind::Final,
                        Some("released") => NackKind::Released,
                        _ => NackKind::Failed,
                    },
                    delay_ms: words.number("delay"),
                    error: bytes(words.option("error").unwrap_or("")),
                })
                .collect(),
        },
        "extend" => QueueCommand::Extend { leases: leases(), visibility_timeout_ms: words.number("timeout") },
        "status" => QueueCommand::Status,
        "progress" => QueueCommand::Progress { lease: lease(rest[0]), progress: bytes(rest[1]) },
        "cancel" => QueueCommand::Cancel { jobs: jobs() },
        "change" => QueueCommand::Change {
            job: jobs()[0],
            priority: words.number("priority").map(|priority| priority as u8),
            ready_at: words.number("ready_at").map(Millis),
        },
        "redrive" => QueueCommand::Redrive {
            which: which(),
            per_second: words.number("per_second").map(|rate| rate as u32),
            delay_ms: words.number("delay").unwrap_or(0),
        },
        "purge" => QueueCommand::Purge { which: which(), phase: phase().unwrap_or(JobPhase::Dead) },
        "work-of" => QueueCommand::Worker {
            worker: bytes(rest[0]),
            after: JobCursor {
                moment: Millis(words.number("until").unwrap_or(0)),
                job: JobId(words.number("after").unwrap_or(0)),
            },
            jobs_max: words.number("jobs_max").unwrap_or(100) as u32,
        },
        "outbox" => QueueCommand::Transfer(TransferCommand::Outbox),
        "pause" => QueueCommand::Pause(true),
        "resume" => QueueCommand::Pause(false),
        "job" => {
            QueueCommand::Get { job: jobs()[0], wait_until: words.number("wait").map(|ms| now.plus(ms)) }
        }
        "peek" => QueueCommand::Peek { jobs_max: jobs_max() },
        "list" => QueueCommand::List {
            phase: phase(),
            filter: filter(words),
            after: JobCursor { moment: Millis(0), job: JobId(words.number("after").unwrap_or(0)) },
            jobs_max: jobs_max(),
            with_bodies: words.option("bodies") != Some("no"),
        },
        _ => panic!("what is `{line}`?"),
    }
}

fn new_job(text: &str) -> NewJob {
    let words = Words::of(text);
    NewJob {
        payload: bytes(words.plain.first().copied().unwrap_or("")),
        headers: Bytes::new(),
        priority: words.number("priority").unwrap_or(0) as u8,
        delay_ms: words.number("delay").unwrap_or(0),
        max_attempts: words.number("attempts").map(|attempts| attempts as u32),
        options: job_options(&words),
    }
}

/// `after` names jobs: places of the batch, or numbers after a `#`.
fn job_options(words: &Words<'_>) -> Option<Box<JobOptions>> {
    let key = words.option("key").map(|key| JobKey { key: bytes(key), window_ms: words.number("window") });
    let after = words.option("after").into_iter().flat_map(|after| after.split(','));
    let retry = words.number("fixed").map(|ms| RetryPolicy {
        backoff: Backoff::Fixed,
        initial_ms: ms,
        max_ms: ms,
        jitter_percent: 0,
    });
    let options = JobOptions {
        run_at: words.number("run_at").map(Millis),
        ttl_ms: words.number("ttl"),
        retry,
        key,
        group: bytes(words.option("group").unwrap_or("")),
        after: after
            .map(|of| match of.strip_prefix('#') {
                Some(job) => JobRef::Job(JobId(job.parse().unwrap())),
                None => JobRef::InBatch(of.parse().unwrap()),
            })
            .collect(),
        after_any_end: words.option("any_end").is_some(),
    };
    (options != JobOptions::default()).then(|| Box::new(options))
}

fn filter(words: &Words<'_>) -> JobFilter {
    JobFilter {
        error: bytes(words.option("error").unwrap_or("")),
        header: words.option("header").map(|header| {
            let (name, value) = header.split_once(':').unwrap();
            (bytes(name), bytes(value))
        }),
        since: words.number("since").map(Millis),
        before: words.number("before").map(Millis),
        group: bytes(words.option("group").unwrap_or("")),
    }
}

fn kv_command(verb: &str, rest: &[&str], words: &Words<'_>, line: &str) -> KvCommand {
    let keys = || rest.iter().map(|word| bytes(word)).collect::<Batch<_>>();
    match verb {
        "set" => {
            let entries = line.splitn(3, char::is_whitespace).nth(2).unwrap_or_default();
            KvCommand::Set {
                entries: entries.split('|').filter(|entry| !entry.is_empty()).map(set_entry).collect(),
            }
        }
        "get" => KvCommand::Get { keys: keys() },
        "del" => KvCommand::Delete { keys: keys(), if_version: words.number("version").map(Lsn) },
        "exists" => KvCommand::Exists { keys: keys() },
        _ => KvCommand::Scan(KeyScan {
            prefix: bytes(rest.first().copied().filter(|prefix| *prefix != "*").unwrap_or("")),
            start: words.option("start").map(bytes),
            end: words.option("end").map(bytes),
            glob: words.option("glob").map(bytes),
            reverse: words.option("order") == Some("back"),
            after: words.option("after").map(bytes),
            keys_max: words.number("keys_max").unwrap_or(100) as u32,
            with_values: words.option("values") != Some("no"),
        }),
    }
}

fn set_entry(text: &str) -> SetEntry {
    let words = Words::of(text);
    SetEntry {
        key: words.plain.first().map_or_else(Bytes::new, |key| bytes(key)),
        value: words.plain.get(1).map_or_else(Bytes::new, |value| bytes(value)),
        ttl: match words.option("ttl") {
            None => SetTtl::Default,
            Some("keep") => SetTtl::Keep,
            Some(ms) => SetTtl::Millis(ms.parse().unwrap()),
        },
        condition: match words.option("if") {
            None => SetIf::Always,
            Some("absent") => SetIf::Absent,
            Some("present") => SetIf::Present,
            Some(version) => SetIf::Version(Lsn(version.parse().unwrap())),
        },
    }
}

/// In a cron expression `_` stands for a space.
fn schedule_command(verb: &str, rest: &[&str], words: &Words<'_>) -> ScheduleCommand {
    let name = Name::from(*rest.first().unwrap());
    match verb {
        "create" => ScheduleCommand::Create { name, spec: schedule_spec(words), paused: false },
        "update" => ScheduleCommand::Update { name, changes: Box::new(schedule_changes(words)) },
        "delete" => ScheduleCommand::Delete(name),
        "pause" => ScheduleCommand::Pause(name),
        "resume" => ScheduleCommand::Resume(name),
        "run-now" => ScheduleCommand::RunNow(name),
        "describe" => ScheduleCommand::Describe(name),
        "next" => ScheduleCommand::Next { name, times_max: rest[1].parse().unwrap() },
        "list" => ScheduleCommand::List { after: None, schedules_max: rest[0].parse().unwrap() },
        _ => panic!("what is schedule {verb}?"),
    }
}

/// `end=none` takes the end away.
fn schedule_changes(words: &Words<'_>) -> ScheduleChanges {
    let missed = |word: &str| MissedPolicy::ALL.into_iter().find(|policy| policy.as_str() == word);
    ScheduleChanges {
        cron: words.option("cron").map(|expression| expression.replace('_', " ").into()),
        at: words.number("at").map(Millis),
        time_zone: words.option("zone").map(Into::into),
        end: words.option("end").map(|end| end.parse().ok().map(Millis)),
        missed: words.option("missed").and_then(missed),
        job: words.option("payload").map(|payload| NewJob { payload: bytes(payload), ..NewJob::default() }),
    }
}

fn schedule_spec(words: &Words<'_>) -> ScheduleSpec {
    let cron = |expression: &str| Timing::Cron {
        expression: expression.replace('_', " ").into(),
        time_zone: words.option("zone").unwrap_or_default().into(),
    };
    let once = || Timing::Once(Millis(words.number("at").unwrap()));
    let missed = words.option("missed").unwrap_or("once");
    ScheduleSpec {
        timing: words.option("cron").map_or_else(once, cron),
        end: words.number("end").map(Millis),
        missed: MissedPolicy::ALL.into_iter().find(|policy| policy.as_str() == missed).unwrap(),
        job: NewJob {
            payload: bytes(words.option("payload").unwrap_or_default()),
            priority: words.number("priority").unwrap_or(0) as u8,
            ..NewJob::default()
        },
    }
}

/// Queues are separated by commas.
fn worker_command(verb: &str, rest: &[&str], words: &Words<'_>) -> WorkerCommand {
    let path = || WorkerPath::parse(rest[0]).unwrap();
    let epoch = || Lsn(rest[1].parse().unwrap());
    let queue = |name: &str| Name::from(ResourcePath::parse(Kind::Queue, name).unwrap().as_str());
    match verb {
        "register" => {
            let queues = words.option("queues").unwrap_or("mail").split(',').filter(|name| !name.is_empty());
            let labels = words.option("label").into_iter().map(|label| label.split_once(':').unwrap());
            let registration = Registration {
                queues: queues.map(queue).collect(),
                concurrency: words.number("concurrency").unwrap_or(1) as u32,
                host: words.option("host").unwrap_or("h").into(),
                process_id: words.number("process").unwrap_or(1) as u32,
                labels: labels.map(|(name, value)| (name.into(), value.into())).collect(),
                session_timeout_ms: words.number("session").unwrap_or(10_000),
                retention_ms: words.number("retention").unwrap_or(60_000),
            };
            WorkerCommand::Register { path: path(), registration: Box::new(registration) }
        }
        "heartbeat" => WorkerCommand::Heartbeat { path: path(), epoch: epoch() },
        "leave" => WorkerCommand::Leave { path: path(), epoch: epoch() },
        "stop" => WorkerCommand::Stop(path()),
        "forget" => WorkerCommand::Forget(path()),
        "describe" => WorkerCommand::Describe(path()),
        "list" => {
            let states = words.option("states").into_iter().flat_map(|states| states.split(','));
            let filter = WorkerFilter {
                states: states
                    .map(|word| WorkerState::ALL.into_iter().find(|state| state.as_str() == word).unwrap())
                    .collect(),
                queue: words.option("queue").map(queue),
                prefix: words.option("prefix").unwrap_or_default().into(),
            };
            WorkerCommand::List {
                after: words.option("after").map(|after| WorkerPath::parse(after).unwrap()),
                filter,
                workers_max: words.number("max").unwrap_or(100) as u32,
            }
        }
        _ => panic!("what is worker {verb}?"),
    }
}

/// Runs the commands of a script and returns it with what they came to.
fn played(script: &str) -> String {
    let (mut out, mut state) = (String::new(), Script { world: World::default() });
    for block in script.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let commands = block.split("----").next().unwrap().trim();
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(commands);
        out.push('\n');
        let lines: Vec<&str> = commands.lines().filter(|line| !line.starts_with('#')).collect();
        if lines.is_empty() {
            continue;
        }
        out.push_str("----\n");
        for line in lines {
            out.push_str(&state.run(line));
        }
    }
    let recovered = state.world.recovered();
    assert_eq!(recovered.dump(), state.world.machine.dump(), "what was played is recovered");
    out
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    let script = std::fs::read_to_string(&path).unwrap();
    let played = played(&script);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &played).unwrap();
    } else {
        assert!(played == script, "{name} differs; UPDATE_GOLDEN=1 rewrites it. Now:\n{played}");
    }
}

#[test]
fn stream() {
    check("stream.script");
}

#[test]
fn producers() {
    check("producers.script");
}

#[test]
fn queue() {
    check("queue.script");
}

#[test]
fn jobs() {
    check("jobs.script");
}

#[test]
fn kv() {
    check("kv.script");
}

#[test]
fn kv_types() {
    check("kv_types.script");
}

#[test]
fn feed() {
    check("feed.script");
}

#[test]
fn catalog() {
    check("catalog.script");
}

#[test]
fn segments() {
    check("segments.script");
}

#[test]
fn schedule() {
    check("schedule.script");
}

#[test]
fn worker() {
    check("worker.script");
}

#[test]
fn replay() {
    check("replay.script");
}

#[test]
fn transfer() {
    check("transfer.script");
}
