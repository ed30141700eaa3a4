//! `Replay.Step`: the next records of a session, the oldest first whatever their partition.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::compression::Codecs;
use flowmesh_model::filter::RecordFilter;
use flowmesh_model::limits::{REPLAY_STEP_LOOKED_BYTES_MAX, REPLAY_STEP_RECORDS_MAX};
use flowmesh_model::record::RecordSlices;
use flowmesh_model::replay::{ReplayProgress, ReplayStatus, StepMove};
use flowmesh_model::reply::{RecordRun, RecordRuns};
use flowmesh_model::settings::within;
use flowmesh_model::{
    Command, Millis, Offset, PartitionRef, Reject, ReplayCommand, Reply, ResourceInfo, StreamCommand,
};
use flowmesh_proto::v1;
use prost::Message;

use super::Session;
use super::describe::session_message;
use super::marked::Mark;
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::services::group::answer_later;
use crate::edge::grpc::services::stream::or_default;
use crate::edge::grpc::services::unpack::readable;
use crate::edge::grpc::services::{attempt, decode};
use crate::edge::grpc::shared::CallFuture;

/// Bytes of one read.
const READ_BYTES: u32 = 256 * 1024;

/// A step that somebody else was faster than is read anew so often.
const TRIES: usize = 4;

/// `Replay.Step`
pub fn step<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::StepReplayRequest = attempt!(responder, decode(message));
    attempt!(responder, within("count", request.count.into(), 0, REPLAY_STEP_RECORDS_MAX.into()));
    let count = or_default(request.count, 1) as usize;
    let session = attempt!(responder, Session::find(edge, &request.session));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let mut tries = 1;
        loop {
            match step_once(&edge, &session, count).await {
                Err(Reject::ReplayMoved { .. }) if tries < TRIES => tries += 1,
                outcome => return outcome,
            }
        }
    }))
}

async fn step_once<B: Backend>(
    edge: &Edge<B>,
    session: &Session,
    count: usize,
) -> Result<v1::StepReplayResponse, Reject> {
    let status = session.status(edge).await?;
    status.state.check(flowmesh_model::replay::ReplayAction::Step)?;
    let mut search = Search::new(session, &status)?;
    let mut records = Vec::new();
    while records.len() < count {
        search.look(edge, count).await?;
        let Some(record) = search.next() else { break };
        records.push(record);
    }
    let step = ReplayCommand::Step { moves: search.moves() };
    let status = session.ask(edge, step).await?;
    Ok(v1::StepReplayResponse { records, session: Some(session_message(session, &status)) })
}

/// One partition and what was found there and not shown yet.
struct Cursor {
    began: ReplayProgress,
    /// Everything before was looked at.
    next: Offset,
    found: VecDeque<(Offset, Millis, Bytes)>,
    at_end: bool,
}

/// The next records of all partitions.
struct Search {
    stream: Arc<ResourceInfo>,
    filter: RecordFilter,
    mark: Mark,
    cursors: Vec<Cursor>,
    looked_bytes: usize,
}

impl Search {
    fn new(session: &Session, status: &ReplayStatus) -> Result<Self, Reject> {
        let cursor = |began: &ReplayProgress| Cursor {
            began: *began,
            next: began.position,
            found: VecDeque::new(),
            at_end: began.is_done(),
        };
        Ok(Self {
            stream: Arc::clone(session.stream()?),
            filter: RecordFilter::new(session.settings.filter.iter().cloned())?,
            mark: Mark::of(session.info.path.name()),
            cursors: status.partitions.iter().map(cursor).collect(),
            looked_bytes: 0,
        })
    }

    /// Reads on where nothing is found yet, within what a step may look at.
    async fn look<B: Backend>(&mut self, edge: &Edge<B>, count: usize) -> Result<(), Reject> {
        for cursor in &mut self.cursors {
            while cursor.found.is_empty()
                && !cursor.at_end
                && self.looked_bytes < REPLAY_STEP_LOOKED_BYTES_MAX
            {
                let records = cursor.read(edge, &self.stream, count).await?;
                self.looked_bytes += records.runs.iter().map(|run| run.records.len()).sum::<usize>();
                cursor.take(&self.filter, &records);
                edge.backend.yield_if_needed().await;
            }
        }
        Ok(())
    }

    /// The oldest record that was found; none if that cannot be told without looking further.
    fn next(&mut self) -> Option<v1::ReplayRecord> {
        if self.cursors.iter().any(|cursor| cursor.found.is_empty() && !cursor.at_end) {
            return None;
        }
        let cursor =
            self.cursors.iter_mut().filter(|cursor| !cursor.found.is_empty()).min_by_key(|cursor| {
                cursor.found.front().map(|(_, at, _)| (*at, cursor.began.range.partition))
            })?;
        let (offset, appended_at, record) = cursor.found.pop_front()?;
        // It was checked when it was appended.
        let mut record = v1::Record::decode(record).unwrap_or_default();
        record.headers.extend(self.mark.headers());
        Some(v1::ReplayRecord {
            partition: cursor.began.range.partition,
            offset: offset.get(),
            appended_at_ms: appended_at.get(),
            record: Some(record),
        })
    }

    /// Where partitions go: behind what was shown, and behind what nobody wants.
    fn moves(&self) -> Vec<StepMove> {
        let one = |cursor: &Cursor| {
            let (partition, from) = (cursor.began.range.partition, cursor.began.position);
            let to = cursor.found.front().map_or(cursor.next, |(offset, ..)| *offset);
            (to > from).then_some(StepMove { partition, from, to })
        };
        self.cursors.iter().filter_map(one).collect()
    }
}

impl Cursor {
    async fn read<B: Backend>(
        &self,
        edge: &Edge<B>,
        stream: &Arc<ResourceInfo>,
        count: usize,
    ) -> Result<RecordRuns, Reject> {
        let at = PartitionRef { resource: stream.id, partition: self.began.range.partition };
        let read = |from| StreamCommand::Read {
            from,
            records_max: count as u32,
            bytes_max: READ_BYTES,
            bytes_min: 0,
            wait_until: None,
        };
        let shard = edge.backend.shard_of_partition(stream, at.partition);
        let call = |from| edge.backend.call(shard, Command::Stream(at, read(from)));
        let reply = match call(ReadFrom::Offset(self.next)).await {
            // What came next is gone.
            Err(Reject::OffsetOutOfRange { requested, earliest, .. }) if requested < earliest => {
                call(ReadFrom::Offset(earliest)).await?
            }
            reply => reply?,
        };
        match reply {
            Reply::Records(records) => readable(records, Codecs::default(), READ_BYTES as usize),
            _ => Err(wrong_reply()),
        }
    }

    fn take(&mut self, filter: &RecordFilter, records: &RecordRuns) {
        let until = self.began.range.until.unwrap_or(Offset(u64::MAX));
        for run in &records.runs {
            self.take_run(filter, run, until);
        }
        self.next = records.next.min(until).max(self.next);
        self.at_end = self.next >= until || self.next >= records.high_watermark;
    }

    fn take_run(&mut self, filter: &RecordFilter, run: &RecordRun, until: Offset) {
        for (place, record) in (0u64..).zip(RecordSlices::new(&run.records).flatten()) {
            let offset = run.base.plus(place);
            if offset >= until {
                return;
            }
            if filter.matches(record) {
                self.found.push_back((offset, run.appended_at, Bytes::copy_from_slice(record)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::filter::Condition;
    use flowmesh_model::path::{Kind, ResourcePath};
    use flowmesh_model::record::{RecordPacker, RecordView};
    use flowmesh_model::replay::ReplayRange;
    use flowmesh_model::{ResourceId, Settings};

    fn cursor(partition: u32, from: u64, until: Option<u64>) -> Cursor {
        let range = ReplayRange { partition, from: Offset(from), until: until.map(Offset) };
        let began = ReplayProgress { range, position: Offset(from) };
        Cursor { began, next: Offset(from), found: VecDeque::new(), at_end: began.is_done() }
    }

    /// Records with these keys from `base` on.
    fn records(base: u64, at: u64, keys: &[&str], high_watermark: u64) -> RecordRuns {
        let mut packer = RecordPacker::default();
        for key in keys {
            packer.push(&RecordView { key: Some(key.as_bytes()), ..RecordView::default() });
        }
        let count = keys.len() as u32;
        let run = RecordRun { base: Offset(base), count, appended_at: Millis(at), records: packer.finish() };
        RecordRuns {
            runs: vec![run],
            next: Offset(base + u64::from(count)),
            earliest: Offset(0),
            high_watermark: Offset(high_watermark),
        }
    }

    fn search(cursors: Vec<Cursor>) -> Search {
        let path = ResourcePath::parse(Kind::Stream, "s").unwrap();
        let settings = Settings::default_for(Kind::Stream);
        let stream = Arc::new(ResourceInfo::new(ResourceId(1), path, settings, Millis(0)));
        let filter = RecordFilter::new([Condition::KeyEquals(Bytes::from_static(b"yes"))]).unwrap();
        Search { stream, filter, mark: Mark::of("late"), cursors, looked_bytes: 0 }
    }

    #[test]
    fn a_partition_is_looked_at_up_to_its_end_and_gives_what_matches() {
        let mut cursor = cursor(0, 2, Some(6));
        let filter = search(vec![]).filter;
        cursor.take(&filter, &records(2, 5, &["no", "yes"], 100));
        assert_eq!((cursor.next, cursor.found.len(), cursor.at_end), (Offset(4), 1, false));
        cursor.take(&filter, &records(4, 6, &["yes", "no", "yes", "yes"], 100));
        assert_eq!((cursor.next, cursor.found.len(), cursor.at_end), (Offset(6), 2, true));
    }

    #[test]
    fn nothing_is_shown_before_it_is_known_to_be_the_oldest() {
        let mut search = search(vec![cursor(0, 0, Some(9)), cursor(1, 0, None), cursor(2, 7, Some(7))]);
        let filter = search.filter.clone();
        search.cursors[0].take(&filter, &records(0, 20, &["no", "yes", "yes"], 9));
        assert_eq!(search.next(), None);
        search.cursors[1].take(&filter, &records(0, 10, &["yes"], 1));
        let shown: Vec<_> =
            std::iter::from_fn(|| search.next()).map(|at| (at.partition, at.offset)).collect();
        // Then partition 0 has more that was not looked at.
        assert_eq!(shown, [(1, 0), (0, 1), (0, 2)]);
        let moves: Vec<_> = search.moves().iter().map(|step| (step.partition, step.to.get())).collect();
        assert_eq!(moves, [(0, 3), (1, 1)]);
    }

    #[test]
    fn a_session_moves_up_to_the_first_record_that_was_not_shown() {
        let mut search = search(vec![cursor(0, 0, Some(9))]);
        let filter = search.filter.clone();
        search.cursors[0].take(&filter, &records(0, 20, &["no", "yes", "no", "no", "yes"], 9));
        assert!(search.next().is_some());
        assert_eq!(search.moves()[0].to, Offset(4));
    }
}
