//! Facts, replies and rejections as one line of text each, for golden scripts.

use std::fmt::Write;

use bytes::Bytes;
use flowmesh_model::job::{JobCursor, JobView};
use flowmesh_model::record::{RecordSlices, RecordView, split_header};
use flowmesh_model::replay::{Pace, ReplayProgress, ReplayStatus};
use flowmesh_model::reply::{EntryValue, RecordRun};
use flowmesh_model::schedule::fact::ScheduleFact;
use flowmesh_model::schedule::{ScheduleSpec, ScheduleStatus, Timing};
use flowmesh_model::transfer::TransferReply;
use flowmesh_model::transfer::fact::TransferFact;
use flowmesh_model::worker::fact::{WorkerChange, WorkerFact};
use flowmesh_model::worker::{Registration, WorkCounts, WorkerStatus};
use flowmesh_model::{Fact, Millis, Reply, ScheduleReply, WorkerReply};
use flowmesh_proto::v1::KvChange;
use prost::Message;

use super::{Outcome, values};

fn text(bytes: &Bytes) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}

fn end(expires_at: Option<flowmesh_model::Millis>) -> String {
    expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string())
}

/// Changes that records of a feed have: key, kind, version, and what is given of the rest.
pub fn changes(runs: &[RecordRun]) -> String {
    let mut out = String::new();
    for run in runs {
        for record in RecordSlices::new(&run.plain().unwrap().records) {
            let record = RecordView::read(record.unwrap()).unwrap();
            let change = KvChange::decode(record.value).unwrap();
            let (key, kind) = (record.key.unwrap_or_default(), record.headers[0].1);
            write!(out, "* {} {} {}", key.escape_ascii(), kind.escape_ascii(), change.version).unwrap();
            named(&mut out, "type", (change.holds != 0).then(|| change.holds().as_str_name()));
            named(&mut out, "member", (!change.member.is_empty()).then(|| change.member.escape_ascii()));
            named(&mut out, "value", (!change.value.is_empty()).then(|| change.value.escape_ascii()));
            named(&mut out, "score", change.score);
            named(&mut out, "index", change.index);
            named(&mut out, "count", change.count);
            named(&mut out, "other", change.other.as_ref().map(|other| other.escape_ascii()));
            named(&mut out, "integer", change.integer);
            named(&mut out, "decimal", change.decimal);
            named(&mut out, "ends", change.expires_at_ms);
            for item in &change.items {
                write!(out, " [{}={}", item.member.escape_ascii(), item.value.escape_ascii()).unwrap();
                named(&mut out, "score", item.score);
                named(&mut out, "ends", item.expires_at_ms);
                out.push(']');
            }
            named(&mut out, "more", change.more.then_some(true));
            if let Some(old) = change.old {
                out.push_str(" was");
                named(&mut out, "type", old.holds.map(|_| old.holds().as_str_name()));
                named(&mut out, "value", old.value.as_ref().map(|value| value.escape_ascii()));
                named(&mut out, "score", old.score);
                named(&mut out, "items", old.items);
                for value in &old.values {
                    write!(out, " [{}]", value.escape_ascii()).unwrap();
                }
                named(&mut out, "ends", old.expires_at_ms);
            }
            out.push('\n');
        }
    }
    out
}

fn named(out: &mut String, name: &str, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        write!(out, " {name}={value}").unwrap();
    }
}

pub fn fact(fact: &Fact) -> String {
    match fact {
        Fact::ResourceCreated { id, path, settings } => {
            format!("ResourceCreated {id} {path} {}", serde_json::to_string(settings).unwrap())
        }
        Fact::ResourceUpdated { id, settings } => {
            format!("ResourceUpdated {id} {}", serde_json::to_string(settings).unwrap())
        }
        Fact::ResourceDeleted { id } => format!("ResourceDeleted {id}"),
        Fact::ResourceDropped { id } => format!("ResourceDropped {id}"),
        Fact::ResourceHeld { id, path } => format!("ResourceHeld {id} {path}"),
        Fact::FeedHeld { id, path } => format!("FeedHeld {id} {path}"),
        Fact::RecordsAppended { at, base, count, records } => {
            format!("RecordsAppended {at} base {base} count {count} bytes {}", records.len())
        }
        Fact::RecordsProduced { at, base, count, producer, records } => format!(
            "RecordsProduced {at} base {base} count {count} producer {} epoch {} sequence {} bytes {}",
            producer.id,
            producer.epoch,
            producer.sequence,
            records.len()
        ),
        Fact::ProducerInitialised { at, id, epoch, name } => {
            format!("ProducerInitialised {at} producer {id} epoch {epoch} name {}", text(name))
        }
        Fact::ProducerForgotten { at, id } => format!("ProducerForgotten {at} producer {id}"),
        Fact::SegmentRolled { at, base } => format!("SegmentRolled {at} base {base}"),
        Fact::SegmentsCompacted { at, base, end, bytes, first_time, last_time } => {
            format!("SegmentsCompacted {at} {base}..{end} bytes {bytes} times {first_time}..{last_time}")
        }
        Fact::PartitionCleaned { at, upto, tombstone } => {
            let tombstone = tombstone.map_or_else(|| "none".to_owned(), |offset| offset.to_string());
            format!("PartitionCleaned {at} upto {upto} tombstone {tombstone}")
        }
        Fact::RecordsTrimmed { at, earliest } => format!("RecordsTrimmed {at} earliest {earliest}"),
        Fact::JobEnqueued { queue, job, ready_at, max_attempts, priority, payload, options, .. } => format!(
            "JobEnqueued {queue} job {job} ready at {ready_at} attempts {max_attempts} priority {priority} {}{}",
            text(payload),
            options.as_ref().map_or_else(String::new, |options| format!(" {options:?}"))
        ),
        Fact::JobLeased { queue, job, token, until, worker } => {
            format!("JobLeased {queue} job {job} token {token} until {until} worker {}", text(worker))
        }
        Fact::LeaseExtended { queue, job, until } => format!("LeaseExtended {queue} job {job} until {until}"),
        Fact::JobDone { queue, job } => format!("JobDone {queue} job {job}"),
        Fact::JobReturned { queue, job, ready_at, cause, error } => {
            format!("JobReturned {queue} job {job} ready at {ready_at} {cause:?} {}", text(error))
        }
        Fact::JobDied { queue, job, cause, error } => {
            format!("JobDied {queue} job {job} {cause:?} {}", text(error))
        }
        Fact::KeySet { store, key, value, expires_at } => {
            format!("KeySet {store} {} = {} ends {}", text(key), text(value), end(*expires_at))
        }
        Fact::ValuePart { store, place, total, bytes } => {
            format!("ValuePart {store} {place} of {total} = {}", text(bytes))
        }
        Fact::KeySetOfParts { store, key, place, len, expires_at } => {
            format!("KeySetOfParts {store} {} at {place} of {len} ends {}", text(key), end(*expires_at))
        }
        Fact::KeyDeleted { store, key } => format!("KeyDeleted {store} {}", text(key)),
        Fact::KeyExpired { store, key } => format!("KeyExpired {store} {}", text(key)),
        Fact::Queue(id, fact) => format!("Queue {id} {fact:?}"),
        Fact::Group(id, fact) => format!("Group {id} {fact:?}"),
        Fact::Replay(id, fact) => format!("Replay {id} {fact:?}"),
        Fact::Schedule(id, fact) => format!("Schedule {id} {}", schedule_fact(fact)),
        Fact::Worker(WorkerFact { path, epoch, change }) => match change {
            WorkerChange::Registered(said) => {
                format!("Worker {path} epoch {epoch} Registered {}", registration(said))
            }
            change => format!("Worker {path} epoch {epoch} {change:?}"),
        },
        Fact::Transfer(id, fact) => format!("{} {id} {}", transfer_name(fact), transfer_fact(fact)),
        Fact::Kv(id, fact) => format!("Kv {id} {fact:?}"),
    }
}

fn value(value: &EntryValue) -> String {
    format!("{} version {} ends {}", text(&value.value), value.version, end(value.expires_at))
}

fn lines<T>(head: &str, items: impl IntoIterator<Item = T>, line: impl Fn(T) -> String) -> String {
    items.into_iter().fold(head.to_owned(), |out, item| format!("{out}\n  {}", line(item)))
}

pub fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Appended { base, count, appended_at, duplicate } => {
            let again = if *duplicate { ", again" } else { "" };
            format!("appended base {base} count {count} at {appended_at}{again}")
        }
        Reply::Kv(outcomes) => lines("kv", outcomes, |outcome| match outcome {
            Ok(outcome) => format!("version {} {:?}", outcome.version, outcome.result),
            Err(reject) => format!("{}: {reject}", reject.reason()),
        }),
        Reply::KvSnapshot(part) => format!("snapshot {part:?}"),
        Reply::KvVersions { versions, next } => format!("versions {versions:?} next {next:?}"),
        Reply::KvDiff { keys, next } => format!("diff {keys:?} next {next:?}"),
        Reply::KvStatus(status) => format!("{status:?}"),
        Reply::KvCleared { count, more } => format!("cleared {count}, more: {more}"),
        Reply::Producer { id, epoch } => format!("producer {id} epoch {epoch}"),
        Reply::Records(records) => {
            let head = format!(
                "records next {} earliest {} high watermark {}",
                records.next, records.earliest, records.high_watermark
            );
            lines(&head, &records.runs, |run| {
                let values: Vec<String> = values(std::slice::from_ref(run))
                    .iter()
                    .map(|value| String::from_utf8_lossy(value).into_owned())
                    .collect();
                format!("{} at {}: {}", run.base, run.appended_at, values.join(" "))
            })
        }
        Reply::StreamStatus { earliest, next, bytes, segments, oldest, newest, .. } => {
            let time = |time: &Option<Millis>| time.map_or_else(|| "-".to_owned(), |at| at.to_string());
            format!(
                "stream {earliest}..{next} bytes {bytes} segments {segments} times {}..{}",
                time(oldest),
                time(newest)
            )
        }
        Reply::OffsetFound { offset, appended_at } => match appended_at {
            Some(at) => format!("offset {offset} at {at}"),
            None => format!("offset {offset}, to come"),
        },
        Reply::Trimmed { earliest, next } => format!("trimmed {earliest}..{next}"),
        Reply::Enqueued(jobs) => {
            let words =
                jobs.iter().map(|new| format!("{}{}", new.job, if new.existing { " again" } else { "" }));
            format!("enqueued {}", words.collect::<Vec<_>>().join(" "))
        }
        Reply::Reserved(jobs) => lines("reserved", jobs, |job| {
            format!(
                "job {} token {} attempt {} priority {} until {} enqueued {} {}{}{}",
                job.job,
                job.token,
                job.attempt,
                job.priority,
                job.leased_until,
                job.enqueued_at,
                text(&job.payload),
                if job.group.is_empty() { String::new() } else { format!(" group {}", text(&job.group)) },
                if job.awaited.is_empty() { String::new() } else { format!(" awaited {:?}", job.awaited) },
            )
        }),
        Reply::Settled(outcomes) => lines("settled", outcomes, |outcome| match outcome {
            Ok(()) => "ok".to_owned(),
            Err(reject) => format!("{} {reject}", reject.reason()),
        }),
        Reply::Extended(outcomes) => lines("extended", outcomes, |outcome| match outcome {
            Ok(extended) if extended.cancel_requested => format!("until {}, cancelled", extended.until),
            Ok(extended) => format!("until {}", extended.until),
            Err(reject) => format!("{} {reject}", reject.reason()),
        }),
        Reply::QueueStatus(s, _) => {
            let more = [
                ("blocked", s.blocked),
                ("kept", s.done),
                ("retried", s.retried_total),
                ("died", s.died_total),
                ("expired", s.expired_total),
                ("cancelled", s.cancelled_total),
                ("dropped", s.dropped_total),
                ("purged", s.purged_total),
                ("moved", s.moved_total),
                ("copied", s.copied_total),
                ("failed", s.send_failed_total),
                ("outbox", s.outbox),
                ("paused", u64::from(s.paused)),
            ];
            let more = more.iter().filter(|(_, count)| *count > 0);
            let more = more.fold(String::new(), |out, (name, count)| format!("{out} {name} {count}"));
            format!(
                "queue ready {} delayed {} leased {} dead {} done {} enqueued {} oldest {} ms{more}",
                s.ready, s.delayed, s.leased, s.dead, s.done_total, s.enqueued_total, s.oldest_ready_ms
            )
        }
        Reply::Cancelled(outcomes) => lines("cancelled", outcomes, |outcome| match outcome {
            Ok(cancelled) => format!("{cancelled:?}"),
            Err(reject) => format!("{} {reject}", reject.reason()),
        }),
        Reply::Job(job) => self::job(job),
        Reply::Jobs { jobs, next } => lines(&format!("jobs{}", more(*next)), jobs, job),
        Reply::Swept { count, next } => format!("swept {count}{}", more(*next)),
        Reply::Written(outcomes) => lines("written", outcomes, |outcome| match outcome {
            Ok(version) => format!("version {version}"),
            Err(reject) => format!("{} {reject}", reject.reason()),
        }),
        Reply::Values(values) => {
            lines("values", values, |found| found.as_ref().map_or_else(|| "absent".to_owned(), value))
        }
        Reply::Flags(flags) => format!("flags {flags:?}"),
        Reply::Scanned { entries, next } => {
            let next = next.as_ref().map_or_else(String::new, |next| format!(", next {}", text(next)));
            lines(&format!("scanned{next}"), entries, |(key, found)| {
                format!("{} = {}", text(key), value(found))
            })
        }
        Reply::Group(reply) => format!("group {reply:?}"),
        Reply::Resource { info, changed, version } => format!(
            "resource {} {} created {} changed {changed} version {version}",
            info.id, info.path, info.created_at
        ),
        Reply::Replay(status) => replay(status),
        Reply::Schedule(reply) => schedule_reply(reply),
        Reply::Worker(WorkerReply::Status(status, changed)) => {
            format!("{} changed {changed}", worker(status))
        }
        Reply::Worker(WorkerReply::List { workers, next }) => {
            let more = next.as_ref().map_or_else(String::new, |next| format!(", more behind {next}"));
            lines(&format!("workers{more}"), workers, worker)
        }
        Reply::WorkerOnQueue(seen) => {
            let WorkCounts { acked, failed, lost, last_seen } = seen.counts;
            let (running, paused) = (seen.running, if seen.paused { " paused" } else { "" });
            let head = format!(
                "work acked {acked} failed {failed} lost {lost} last {last_seen} running {running}{paused}{}",
                more(seen.next)
            );
            lines(&head, &seen.jobs, |job| {
                format!("job {} since {} attempt {} until {}", job.job, job.since, job.attempt, job.until)
            })
        }
        Reply::Transfer(reply) => transfer_reply(reply),
    }
}

fn transfer_name(fact: &TransferFact) -> &'static str {
    match fact {
        TransferFact::Sending { .. } => "Sending",
        TransferFact::Sent { .. } => "Sent",
        TransferFact::SendFailed { .. } => "SendFailed",
        TransferFact::Received { .. } => "Received",
        TransferFact::ReceivedForgotten { .. } => "ReceivedForgotten",
    }
}

fn transfer_fact(fact: &TransferFact) -> String {
    match fact {
        TransferFact::Sending { sequence, job, to, mode, ready_at } => {
            format!("number {sequence} job {job} to {to} as {} ready at {ready_at}", mode.as_str())
        }
        TransferFact::Sent { sequence } => format!("number {sequence}"),
        TransferFact::SendFailed { sequence, error } => format!("number {sequence} {}", text(error)),
        TransferFact::Received { partition, source, sequence } => {
            format!("partition {partition} from {source} upto {sequence}")
        }
        TransferFact::ReceivedForgotten { source } => format!("from {source}"),
    }
}

fn transfer_reply(reply: &TransferReply) -> String {
    match reply {
        TransferReply::Next(jobs) => lines("next", jobs, |job| {
            let headers = RecordSlices::new(&job.headers).map(|header| {
                let (name, value) = split_header(header.unwrap()).unwrap();
                format!(" {}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
            });
            let headers: String = headers.collect();
            format!("{} {} job {} {}{headers}", job.sequence, job.mode.as_str(), job.job, text(&job.payload))
        }),
        TransferReply::Received { upto } => format!("received upto {upto}"),
        TransferReply::Outbox { lanes, failed } => {
            let failed = failed.as_ref().map_or_else(String::new, |failed| {
                format!(", failed job {} at {} {}", failed.job, failed.at, text(&failed.error))
            });
            lines(&format!("outbox{failed}"), lanes, |lane| {
                format!("to {} jobs {} since {} {}", lane.to, lane.jobs, lane.since, text(&lane.error))
            })
        }
    }
}

fn registration(said: &Registration) -> String {
    let Registration { queues, concurrency, host, process_id, labels, .. } = said;
    format!("{} x {concurrency} on {host}:{process_id} {labels:?}", queues.join(" "))
}

fn worker(status: &WorkerStatus) -> String {
    let WorkerStatus { path, epoch, registered_at, since, deaths, .. } = status;
    format!(
        "worker {path} epoch {epoch} {} since {since} registered {registered_at} deaths {deaths} until {} {}",
        status.state.as_str(),
        end(status.until),
        registration(&status.registration)
    )
}

fn schedule_fact(fact: &ScheduleFact) -> String {
    let name = fact.name();
    match fact {
        ScheduleFact::Created { paused, next_at, spec, .. } => {
            let paused = if *paused { " paused" } else { "" };
            format!("Created {name}{paused} next {} {}", end(*next_at), schedule_spec(spec))
        }
        ScheduleFact::Deleted { .. } => format!("Deleted {name}"),
        ScheduleFact::Paused { .. } => format!("Paused {name}"),
        ScheduleFact::Resumed { next_at, .. } => format!("Resumed {name} next {}", end(*next_at)),
        ScheduleFact::Fired { job, scheduled_for, next_at, .. } => {
            format!("Fired {name} job {job} for {scheduled_for} next {}", end(*next_at))
        }
        ScheduleFact::Updated { next_at, spec, .. } => {
            format!("Updated {name} next {} {}", end(*next_at), schedule_spec(spec))
        }
        ScheduleFact::Skipped { count, next_at, .. } => {
            format!("Skipped {name} count {count} next {}", end(*next_at))
        }
    }
}

fn schedule_spec(spec: &ScheduleSpec) -> String {
    let timing = match &spec.timing {
        Timing::Once(at) => format!("at {at}"),
        Timing::Cron { expression, time_zone } => format!("cron {expression} {time_zone}"),
    };
    let (ends, missed, priority) = (end(spec.end), spec.missed.as_str(), spec.job.priority);
    format!("{timing} ends {ends} missed {missed} priority {priority} {}", text(&spec.job.payload))
}

fn schedule_reply(reply: &ScheduleReply) -> String {
    match reply {
        ScheduleReply::Status(status, changed) => format!("{} changed {changed}", schedule(status)),
        ScheduleReply::Fired(job) => format!("fired {job}"),
        ScheduleReply::Times(times) => format!("times {times:?}"),
        ScheduleReply::List { schedules, more } => {
            lines(&format!("schedules more {more}"), schedules, schedule)
        }
    }
}

fn schedule(status: &ScheduleStatus) -> String {
    let ScheduleStatus { name, state, fired_total, skipped_total, last_fired, .. } = status;
    let (next, finished, spec) = (end(status.next_at), end(status.finished_at), schedule_spec(&status.spec));
    let held_back = if status.held_back { " held back" } else { "" };
    format!(
        "schedule {name} {state:?}{held_back} next {next} finished {finished} fired {fired_total} last {last_fired:?} \
         skipped {skipped_total}: {spec}"
    )
}

fn more(next: Option<JobCursor>) -> String {
    next.map_or_else(String::new, |next| format!(", more behind {}:{}", next.moment, next.job))
}

/// A job, with what it has of what most have not.
fn job(job: &JobView) -> String {
    let mut out = format!(
        "job {} {} {} priority {} attempts {}/{} enqueued {} {}",
        job.job,
        job.phase.as_str(),
        job.moment,
        job.priority,
        job.attempts,
        job.max_attempts,
        job.enqueued_at,
        text(&job.payload)
    );
    let mut add = |name: &str, value: String| out = format!("{out} {name} {value}");
    let texts = [
        ("worker", &job.worker),
        ("group", &job.group),
        ("progress", &job.progress),
        ("result", &job.result),
    ];
    texts.iter().filter(|(_, bytes)| !bytes.is_empty()).for_each(|(name, bytes)| add(name, text(bytes)));
    job.expires_at.iter().for_each(|at| add("expires", at.to_string()));
    job.key.iter().for_each(|key| add("key", text(key)));
    if job.cancel_requested {
        add("cancel", "requested".to_owned());
    }
    if !job.waits_for.is_empty() {
        add("waits for", format!("{:?}", job.waits_for));
    }
    for attempt in &job.history {
        let (end, error) = (attempt.end.as_str(), text(&attempt.error));
        add(
            "attempt",
            format!("{}-{} {end} {} {error}", attempt.began_at, attempt.ended_at, text(&attempt.worker)),
        );
    }
    out
}

/// A session, with how far it is in each partition.
fn replay(status: &ReplayStatus) -> String {
    let Pace { speed, wall, record } = status.pace;
    let head = format!(
        "replay {} since {} generation {} version {} speed {} from {record} at {wall} records {}{}",
        status.state.as_str(),
        status.since,
        status.generation,
        status.version,
        speed.0,
        status.records_total,
        status.error.as_ref().map_or_else(String::new, |error| format!(" error {error}")),
    );
    lines(&head, &status.partitions, |ReplayProgress { range, position }| {
        let until = range.until.map_or_else(|| "follows".to_owned(), |until| format!("until {until}"));
        format!("{} at {position} from {} {until}", range.partition, range.from)
    })
}

/// One line each.
pub fn facts(facts: &[Fact]) -> String {
    facts.iter().fold(String::new(), |out, known| format!("{out}+ {}\n", fact(known)))
}

pub fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Changed(shown, facts) => {
            let facts = self::facts(facts);
            format!("{facts}= {}\n", reply(shown))
        }
        Outcome::Answered(shown, seen) => format!("= {} (seen {seen})\n", reply(shown)),
        Outcome::Waits => "waits\n".to_owned(),
        Outcome::Finds(find) => {
            format!("looks in segment files from {} for {}\n", find.from, find.since)
        }
        Outcome::Cold(from) => format!("reads segment files from {from}\n"),
        Outcome::Rejected(reject) => format!("! {} {reject}\n", reject.reason()),
    }
}
