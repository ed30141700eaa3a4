//! What a member of a group has got and not done yet, what it has done and not committed yet, and what it tells the
//! server next. Records are done one after the other; an offset is committed only once all before it are done.

use std::collections::{BTreeMap, VecDeque};

use flowmesh_proto::v1;

use super::compression::unpack;
use super::consume::{Commit, ConsumeArgs};
use super::filter::{next_offset, offsets};
use super::read::{json_of, row_of};
use crate::cli::args::ValueFormat;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{Out, note};

/// A partition of a stream.
pub type Place = (String, u32);

/// Records that the server may push ahead.
const CREDIT: u64 = 10_000;

/// The same where each is worked on by a command.
const CREDIT_EXEC: u64 = 100;

/// One record and where it stands.
#[derive(Debug)]
pub struct Record {
    /// Its partition.
    pub at: Place,
    /// Its offset.
    pub offset: u64,
    /// When it was appended.
    pub appended_at_ms: u64,
    /// The record.
    pub body: v1::Record,
    /// Where to go on behind it.
    next: u64,
    /// Whether a batch ends with it.
    ends_batch: bool,
}

/// One member.
#[derive(Debug)]
pub struct Consumer {
    group: String,
    /// What the server calls this member.
    member_id: String,
    commit: Commit,
    with_command: bool,
    with_stream: bool,
    format: ValueFormat,
    out: Out,
    waiting: VecDeque<Record>,
    /// The record that a command works on: its partition, its offset, where to go on, and whether a batch ends with it.
    current: Option<(Place, u64, u64, bool)>,
    /// Next offsets to commit.
    done: BTreeMap<Place, u64>,
    /// Those that are to be committed with the next message.
    due: BTreeMap<Place, u64>,
    /// Partitions to let go of, once nothing of them is being worked on.
    leaving: Vec<Place>,
    /// Records to go before the end.
    left: u64,
    /// Records that the server may push or has pushed, and that are not done.
    outstanding: u64,
    /// Records that are to be asked for at most at a time.
    credit: u64,
    /// Of a replay session: how often it was moved, and whether no more records come.
    generation: u64,
    is_over: bool,
}

impl Consumer {
    /// A member that has got nothing yet.
    pub fn new(args: &ConsumeArgs) -> Self {
        let left = args.max.unwrap_or(u64::MAX);
        Self {
            group: args.group.clone(),
            member_id: String::new(),
            commit: args.commit,
            with_command: args.exec.is_some(),
            with_stream: args.streams.len() > 1,
            format: args.output,
            out: Out::new(),
            waiting: VecDeque::new(),
            current: None,
            done: BTreeMap::new(),
            due: BTreeMap::new(),
            leaving: Vec::new(),
            left,
            outstanding: 0,
            credit: if args.exec.is_some() { CREDIT_EXEC } else { CREDIT },
            generation: 0,
            is_over: false,
        }
    }

    /// Whether all records that were asked for are done.
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Whether the replay session has no more records.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Who this was in the call before, if there was one.
    pub fn member_id(&self) -> &str {
        &self.member_id
    }

    /// The credit a call begins with.
    pub fn first_credit(&mut self) -> u32 {
        self.outstanding = self.credit.min(self.left);
        to_u32(self.outstanding)
    }

    /// The call is lost: what was not done comes again, to whoever has the partition then.
    pub fn lost(&mut self) {
        self.waiting.clear();
        self.current = None;
        self.done.clear();
        self.due.clear();
        self.leaving.clear();
    }

    /// Takes what the server sent.
    pub fn take(&mut self, message: v1::ConsumeResponse) -> Result<(), Failure> {
        if let Some(membership) = message.membership {
            self.member_id = membership.member_id;
        }
        for update in &message.replay {
            self.take_update(update);
        }
        for batch in message.batches {
            let stream = batch.stream;
            let mut batch = batch.batch.unwrap_or_default();
            unpack(&mut batch)?;
            let (count, behind) = (batch.records.len(), next_offset(&batch));
            if count == 0 {
                self.passed(&(stream, batch.partition), behind);
                continue;
            }
            let offsets: Vec<u64> = offsets(&batch).collect();
            let records = offsets.into_iter().zip(batch.records).enumerate();
            self.waiting.extend(records.map(|(index, (offset, body))| Record {
                at: (stream.clone(), batch.partition),
                offset,
                appended_at_ms: batch.appended_at_ms,
                body,
                next: if index + 1 == count { behind } else { offset + 1 },
                ends_batch: index + 1 == count,
            }));
        }
        for some in message.revoked {
            self.leaving.extend(some.partitions.iter().map(|&partition| (some.stream.clone(), partition)));
        }
        self.settle(&message.outcomes);
        Ok(())
    }

    /// There is nothing else for this member before `next`: that is committed as what comes before it is.
    fn passed(&mut self, at: &Place, next: u64) {
        if let Some(last) = self.waiting.iter_mut().rev().find(|record| record.at == *at) {
            last.next = next;
        } else if let Some((_, _, behind, _)) = self.current.as_mut().filter(|(current, ..)| current == at) {
            *behind = next;
        } else {
            self.reached(at.clone(), next, true);
        }
    }

    /// A replay session has changed. If it was moved, what is there of it counts no more.
    fn take_update(&mut self, update: &v1::ReplayUpdate) {
        if update.generation != self.generation {
            // A command that is running ends for nothing: its record comes again.
            let current = self.current.take().map_or(0, |_| 1);
            self.spend(self.waiting.len() as u64 + current);
            self.waiting.clear();
            self.done.clear();
            self.due.clear();
            self.generation = update.generation;
        }
        self.is_over = matches!(update.state(), v1::ReplayState::Completed | v1::ReplayState::Stopped);
        let why = match update.state() {
            v1::ReplayState::Paused => "paused".to_owned(),
            v1::ReplayState::Stopped => "stopped".to_owned(),
            v1::ReplayState::Error => format!("in error: {}", update.error),
            _ => return,
        };
        note(format_args!("flowmesh: {} is {why}", self.group));
    }

    /// Says which commits were refused.
    pub fn settle(&self, outcomes: &[v1::OffsetOutcome]) {
        for outcome in outcomes {
            if let Some(error) = &outcome.error {
                note(format_args!(
                    "flowmesh: group {}, {} partition {}: commit of {} refused: {}",
                    self.group,
                    outcome.stream,
                    outcome.partition,
                    outcome.offset,
                    Refusal::of_item(error)
                ));
            }
        }
    }

    /// Does what can be done at once; gives the record for which a command is to be run.
    pub fn next(&mut self) -> Result<Option<Record>, Failure> {
        let (waiting, leaving) = (self.waiting.len(), &self.leaving);
        if !leaving.is_empty() {
            self.waiting.retain(|record| !leaving.contains(&record.at));
            self.spend((waiting - self.waiting.len()) as u64);
        }
        if self.current.is_some() {
            return Ok(None);
        }
        while self.left > 0
            && let Some(record) = self.waiting.pop_front()
        {
            if self.with_command {
                self.current = Some((record.at.clone(), record.offset, record.next, record.ends_batch));
                return Ok(Some(record));
            }
            self.write(&record)?;
            self.finish(record.at, record.next, record.ends_batch);
        }
        self.out.flush()?;
        Ok(None)
    }

    /// The command of the current record ended.
    pub fn ran(&mut self, outcome: Result<(), String>) -> Result<(), Failure> {
        let Some((at, offset, next, ends_batch)) = self.current.take() else { return Ok(()) };
        if let Err(why) = outcome {
            let report = format!(
                "{} partition {} offset {offset}: the command failed: {why}; the record was not committed",
                at.0, at.1
            );
            return Err(Failure::Partly { report, code: 1 });
        }
        self.finish(at, next, ends_batch);
        Ok(())
    }

    fn finish(&mut self, at: Place, next: u64, ends_batch: bool) {
        self.left -= 1;
        self.spend(1);
        self.reached(at, next, ends_batch);
    }

    /// All before `next` is done.
    fn reached(&mut self, at: Place, next: u64, ends_batch: bool) {
        let is_due = self.commit == Commit::EveryBatch && ends_batch;
        if is_due {
            self.done.remove(&at);
            self.due.insert(at, next);
        } else {
            self.done.insert(at, next);
        }
    }

    fn spend(&mut self, records: u64) {
        self.outstanding = self.outstanding.saturating_sub(records);
    }

    /// New credit, once half of it or more is used up.
    fn more_credit(&mut self) -> u64 {
        let allowed = self.credit.min(self.left);
        let missing = allowed.saturating_sub(self.outstanding);
        let more = if missing * 2 >= allowed { missing } else { 0 };
        self.outstanding += more;
        more
    }

    /// Commits all that is done with the next message.
    pub fn commit_all(&mut self) {
        if self.commit != Commit::None {
            self.due.append(&mut self.done);
        }
    }

    /// No further record is worked on.
    pub fn end(&mut self) {
        self.current = None;
        self.waiting.clear();
        self.left = 0;
        self.commit_all();
    }

    /// What the server is to be told now, if anything: commits, what was let go of, new credit.
    pub fn request(&mut self) -> Option<v1::ConsumeRequest> {
        let mut released = Vec::new();
        if self.current.as_ref().is_none_or(|(at, ..)| !self.leaving.contains(at)) {
            for at in std::mem::take(&mut self.leaving) {
                if let Some(offset) = self.done.remove(&at)
                    && self.commit != Commit::None
                {
                    self.due.insert(at.clone(), offset);
                }
                released.push(v1::StreamPartitions { stream: at.0, partitions: vec![at.1] });
            }
        }
        let credit = self.more_credit();
        let commits: Vec<v1::GroupOffset> = std::mem::take(&mut self.due)
            .into_iter()
            .map(|((stream, partition), offset)| v1::GroupOffset {
                stream,
                partition,
                offset,
                ..Default::default()
            })
            .collect();
        if commits.is_empty() && released.is_empty() && credit == 0 {
            return None;
        }
        let generation = self.generation;
        Some(v1::ConsumeRequest {
            credit: to_u32(credit),
            commits,
            released,
            generation,
            ..Default::default()
        })
    }

    fn write(&mut self, record: &Record) -> Result<(), Failure> {
        let (partition, offset) = (record.at.1, record.offset);
        match self.format {
            ValueFormat::Value => self.out.line(&record.body.value),
            ValueFormat::Table => {
                let row = row_of(partition, record.appended_at_ms, offset, &record.body);
                let stream = if self.with_stream { format!("{:<20} ", record.at.0) } else { String::new() };
                self.out.line(format!("{stream}{row}").as_bytes())
            }
            ValueFormat::Json => {
                let json =
                    json_of(Some(&record.at.0), partition, record.appended_at_ms, offset, &record.body);
                self.out.json(&json)
            }
        }
    }

    /// Hands what was written to whoever reads.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush()
    }
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::args::Server;

    fn update(generation: u64) -> v1::ConsumeResponse {
        let state = v1::ReplayState::Active.into();
        let update = v1::ReplayUpdate { state, generation, ..Default::default() };
        v1::ConsumeResponse { replay: vec![update], ..Default::default() }
    }

    fn batch(base_offset: u64, deltas: &[u64]) -> v1::ConsumeResponse {
        let records = vec![v1::Record::default(); deltas.len()];
        let (count, offset_deltas) = (records.len() as u32, deltas.to_vec());
        let batch = v1::RecordBatch { base_offset, records, count, offset_deltas, ..Default::default() };
        let batch = v1::GroupBatch { stream: "logs".to_owned(), batch: Some(batch) };
        v1::ConsumeResponse { batches: vec![batch], ..Default::default() }
    }

    #[test]
    fn what_was_worked_on_when_a_replay_session_was_moved_is_not_committed() {
        let server = Server { addr: String::new(), timeout: Duration::ZERO };
        let exec = Some("true".to_owned());
        let format = ValueFormat::Value;
        let args = ConsumeArgs::of_replay("late".to_owned(), None, exec, None, None, format, server);
        let mut consumer = Consumer::new(&args);
        consumer.first_credit();
        consumer.take(update(1)).unwrap();
        consumer.take(batch(5, &[0, 7])).unwrap();
        assert_eq!(consumer.next().unwrap().unwrap().offset, 5);
        consumer.take(update(2)).unwrap();
        consumer.ran(Ok(())).unwrap();
        assert!(consumer.next().unwrap().is_none() && consumer.request().is_none());
        consumer.take(batch(2, &[0, 7])).unwrap();
        for offset in [2, 9] {
            assert_eq!(consumer.next().unwrap().unwrap().offset, offset);
            consumer.ran(Ok(())).unwrap();
        }
        let request = consumer.request().unwrap();
        assert_eq!((request.generation, request.commits[0].offset), (2, 10));
    }
}
