//! What a consumer of a replay session does differently: it follows the session, and its commits count only as long as
//! that is not moved.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_engine::SinkFn;
use flowmesh_model::filter::RecordFilter;
use flowmesh_model::group::NewOffset;
use flowmesh_model::replay::{Pace, ReplayState, ReplayStatus};
use flowmesh_model::{Batch, Offset, PartitionRef, Reject, Reply};
use flowmesh_proto::v1;

use super::{RETRY, Session, committed, push_outcomes, put_outcomes, refused};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::services::group::consume::flow::{Flows, Replay};
use crate::edge::grpc::services::group::consume::membership::Membership;
use crate::edge::grpc::services::group::consume::replayed::{Door, Replayed, update};
use crate::edge::grpc::services::group::names::stream_name;
use crate::edge::grpc::services::outbox::Ticket;
use crate::edge::grpc::services::replay;
use crate::edge::grpc::services::replay::marked::Mark;
use crate::edge::grpc::services::stream::check_partition;

/// `ConsumeResponse.replay`
const REPLAY: u8 = 6;

impl<B: Backend> Session<B> {
    /// A consumer of a replay session.
    ///
    /// # Errors
    /// The session's stream is no more; a name that is too long.
    pub fn of_replay(
        edge: &Rc<Edge<B>>,
        session: replay::Session,
        hello: &v1::ConsumeHello,
        flows: Flows<B>,
    ) -> Result<Self, Reject> {
        let info = Arc::clone(session.stream()?);
        let name = stream_name(&edge.backend.catalog(), info.id);
        let streams = BTreeMap::from([(info.id, (Rc::from(name), info))]);
        let (door, group) = (Door::Replay(session.at()), Arc::clone(&session.group));
        let membership = Membership::new(edge, group, door, hello, streams.keys().copied().collect())?;
        let mut consumer = Self::with(edge, hello, streams, flows, membership);
        consumer.flows.set_replay(Replay {
            filter: RecordFilter::new(session.settings.filter.iter().cloned())?,
            mark: Mark::of(session.info.path.name()),
            is_active: false,
            pace: Pace::default(),
        });
        consumer.replay = Some(Replayed::new(edge, session, consumer.membership.shard()));
        Ok(consumer)
    }

    /// Whether no more records will ever come: of a replay session that is completed or stopped.
    pub fn is_over(&self) -> bool {
        self.replay.as_ref().is_some_and(Replayed::is_over)
    }

    /// A replay session has changed: records flow or not, at its pace. If it was moved, all partitions begin anew.
    pub(super) fn take_status(&mut self, status: &ReplayStatus) {
        let Some(replay) = &mut self.replay else { return };
        self.outbox.push(REPLAY, &update(status));
        self.flows.set_pace(status.state == ReplayState::Active, status.pace);
        if replay.take(status) {
            let has: BTreeSet<PartitionRef> =
                self.flows.partitions().chain(self.starting.keys().copied()).collect();
            for at in &has {
                self.flows.stop(*at);
            }
            self.start_committed(has.into_iter().collect());
        }
    }

    /// What nobody wants is committed once the consumer has committed all before it.
    pub(super) fn commit_passed(&mut self) {
        let Some(replay) = &self.replay else { return };
        let tracks = &replay.tracks;
        let passed: Vec<(PartitionRef, Offset)> = self
            .flows
            .looked()
            .filter(|(at, _)| !self.leaving.contains(at))
            .filter_map(|(at, looked)| Some((at, tracks.passed(at, looked)?)))
            .collect();
        if passed.is_empty() {
            return;
        }
        let new = |(at, offset): &(PartitionRef, Offset)| NewOffset {
            at: *at,
            offset: *offset,
            metadata: Bytes::new(),
        };
        let offsets = passed.iter().map(new).collect();
        let command = replay.commit(self.membership.member(), None, offsets);
        let call = self.edge.backend.call(self.membership.shard(), command);
        let (edge, tracks, ticket) = (Rc::clone(&self.edge), tracks.clone(), self.outbox.expect(0));
        self.checks.push(Box::pin(async move {
            let outcomes = committed(call.await).unwrap_or_default();
            let kept = |place| matches!(outcomes.get(place), Some(Ok(_)));
            let (kept, left): (Vec<_>, Vec<_>) =
                passed.into_iter().enumerate().partition(|(place, _)| kept(*place));
            for (_, (at, offset)) in kept {
                tracks.committed(at, offset);
            }
            drop(ticket);
            if !left.is_empty() {
                edge.backend.sleep(RETRY).await;
                for (_, (at, _)) in left {
                    tracks.not_passed(at);
                }
            }
        }));
    }

    /// Commits of a replay session: its shard knows where it begins and ends.
    pub(super) fn commit_replayed(
        &self,
        replay: &Replayed<B>,
        commits: Vec<v1::GroupOffset>,
        generation: u64,
        ticket: Ticket,
    ) {
        let new = |commit: &v1::GroupOffset| {
            let (_, info) = self.stream(&commit.stream)?;
            check_partition(info, commit.partition)?;
            let at = PartitionRef { resource: info.id, partition: commit.partition };
            Ok(NewOffset { at, offset: Offset(commit.offset), metadata: commit.metadata.clone() })
        };
        let offsets: Batch<NewOffset> = match commits.iter().map(new).collect::<Result<_, Reject>>() {
            Ok(offsets) => offsets,
            Err(reject) => return push_outcomes(&ticket, &refused(commits, &reject)),
        };
        let tracks = replay.tracks.clone();
        let generation = Some(generation).filter(|generation| *generation > 0);
        let command = replay.commit(self.membership.member(), generation, offsets.clone());
        let sink = SinkFn(move |outcome: Result<Reply, Reject>| {
            let outcomes = committed(outcome.clone()).unwrap_or_default();
            for (new, _) in offsets.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_ok()) {
                tracks.committed(new.at, new.offset);
            }
            put_outcomes(&ticket, commits, outcome);
        });
        self.edge.backend.dispatch(self.membership.shard(), command, Box::new(sink));
    }
}
