//! What a consumer's call knows and does: news of the group become starts and ends of partitions, requests become
//! commits and releases.
//!
//! ```text
//! assigned ─► starting (where?) ─► told to the consumer, flowing ── revoked ─► leaving, told ── released ─► the group is told
//! ```
//!
//! [`mod@replay`] is what a consumer of a replay session does differently.

mod replay;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use flowmesh_engine::SinkFn;
use flowmesh_model::group::{Committed, GroupReply, HeartbeatReply, NewOffset};
use flowmesh_model::{
    Batch, Command, GroupCommand, Kind, Offset, PartitionRef, Reject, Reply, ResourceId, ResourceInfo,
};
use flowmesh_proto::v1;
use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;

use super::flow::{Flows, ReadError};
use super::membership::Membership;
use super::replayed::{Door, Replayed};
use super::start::{Found, Place, Wanted, find_replay_starts, find_starts};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::services::check_items;
use crate::edge::grpc::services::group::offsets::{commit_checked, commit_outcome};
use crate::edge::grpc::services::outbox::{Outbox, Ticket};
use crate::edge::grpc::services::stream::{check_partition, chosen_partitions};

/// `ConsumeResponse.assigned`
const ASSIGNED: u8 = 2;
/// `ConsumeResponse.revoked`
const REVOKED: u8 = 3;
/// `ConsumeResponse.outcomes`
const OUTCOMES: u8 = 4;
/// `ConsumeResponse.membership`
const MEMBERSHIP: u8 = 5;

/// Records that may be pushed and are not yet, at most.
const CREDIT_MAX: u64 = 1_000_000;

/// What could not be done for a reason that passes is tried again after so long.
const RETRY: Duration = Duration::from_millis(50);

type Streams = BTreeMap<ResourceId, (Rc<str>, Arc<ResourceInfo>)>;

type Starting = LocalBoxFuture<'static, (u64, Wanted, Result<Vec<Found>, Reject>)>;

/// A consumer's call.
pub struct Session<B: Backend> {
    edge: Rc<Edge<B>>,
    start_at: v1::StartAt,
    /// What the consumer calls its streams.
    streams: Streams,
    /// Records that may be pushed.
    credit: u32,
    /// What waits to be sent, apart from records.
    pub outbox: Rc<Outbox>,
    /// The partitions the consumer has.
    flows: Flows<B>,
    /// Commits that are looked at before they are handed over.
    checks: FuturesUnordered<LocalBoxFuture<'static, ()>>,
    /// Partitions whose start is being looked for, each with the number of the search that counts.
    starting: BTreeMap<PartitionRef, u64>,
    starts: FuturesUnordered<Starting>,
    last_start: u64,
    /// Revoked, and the consumer has not said that it has let go.
    leaving: BTreeSet<PartitionRef>,
    /// Let go of by the consumer, once all commits before that are handed over.
    released: Vec<PartitionRef>,
    /// What makes it a consumer of a replay session.
    replay: Option<Replayed<B>>,
    /// Dropped last: leaving comes behind everything else.
    membership: Membership<B>,
}

impl<B: Backend> Session<B> {
    /// A consumer that joins `group`.
    ///
    /// # Errors
    /// A stream that there is not, or that is named twice; a name that is too long.
    pub fn new(
        edge: &Rc<Edge<B>>,
        group: Arc<ResourceInfo>,
        hello: &v1::ConsumeHello,
        flows: Flows<B>,
    ) -> Result<Self, Reject> {
        let mut streams = BTreeMap::new();
        for name in &hello.streams {
            let info = edge.backend.find(Kind::Stream, name).ok_or_else(|| missing(Kind::Stream, name))?;
            if streams.insert(info.id, (Rc::from(name.as_str()), info)).is_some() {
                return Err(Reject::invalid("streams", format!("has {name} twice")));
            }
        }
        let door = Door::Group(group.id);
        let membership = Membership::new(edge, group, door, hello, streams.keys().copied().collect())?;
        Ok(Self::with(edge, hello, streams, flows, membership))
    }

    fn with(
        edge: &Rc<Edge<B>>,
        hello: &v1::ConsumeHello,
        streams: Streams,
        flows: Flows<B>,
        membership: Membership<B>,
    ) -> Self {
        Self {
            edge: Rc::clone(edge),
            start_at: hello.start_at(),
            streams,
            credit: 0,
            outbox: Rc::default(),
            flows,
            checks: FuturesUnordered::new(),
            starting: BTreeMap::new(),
            starts: FuturesUnordered::new(),
            last_start: 0,
            leaving: BTreeSet::new(),
            released: Vec::new(),
            replay: None,
            membership,
        }
    }

    /// Does what can be done: commits, releases, news of the group, starts, reads.
    ///
    /// # Errors
    /// The member is thrown out, or the group or a stream is no more.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Result<(), Reject> {
        let _ = self.poll_checks(cx);
        if self.checks.is_empty() {
            for at in std::mem::take(&mut self.released) {
                self.release(at);
            }
        }
        while let Some(Poll::Ready(status)) = self.replay.as_mut().map(|replay| replay.poll_status(cx)) {
            self.take_status(&status?);
        }
        while let Poll::Ready(news) = self.membership.poll_news(cx) {
            self.take_news(&news?);
        }
        while let Poll::Ready(Some((number, wanted, found))) = self.starts.poll_next_unpin(cx) {
            self.take_starts(number, wanted, found)?;
        }
        while let Err(ReadError { at, reject }) = self.flows.poll_reads(cx, self.credit) {
            self.take_read_error(at, reject)?;
        }
        self.commit_passed();
        let _ = self.poll_checks(cx);
        Ok(())
    }

    /// Records to send, as far as there is credit.
    pub fn push(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        let messages = self.flows.push(&mut self.credit);
        if let Some(replay) = &mut self.replay {
            for (at, next) in self.flows.take_pushed() {
                replay.tracks.pushed(at, next);
            }
            replay.wake_at(cx, self.flows.due());
        }
        messages
    }

    /// Goes on with commits that are looked at; ready once there are none.
    pub fn poll_checks(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while ready!(self.checks.poll_next_unpin(cx)).is_some() {}
        Poll::Ready(())
    }

    /// Takes a request of that many bytes; its hello was taken before.
    ///
    /// # Errors
    /// Too much credit, or a stream or partition that there is not.
    pub fn take_request(&mut self, request: v1::ConsumeRequest, bytes: usize) -> Result<(), Reject> {
        let credit = u64::from(self.credit) + u64::from(request.credit);
        if credit > CREDIT_MAX {
            return Err(Reject::TooLarge { what: "credit", size: credit, max: CREDIT_MAX });
        }
        self.credit = credit as u32;
        if !request.commits.is_empty() {
            check_items("commits", request.commits.len())?;
            self.commit(request.commits, request.generation, bytes);
        }
        for at in self.named(&request.released)? {
            if self.leaving.remove(&at) {
                self.released.push(at);
            }
        }
        for (named, paused) in [(&request.pause, true), (&request.resume, false)] {
            for at in self.named(named)? {
                self.flows.pause(at, paused);
            }
        }
        for place in request.seek {
            let info = self.stream(&place.stream)?;
            check_partition(&info.1, place.partition)?;
            let at = PartitionRef { resource: info.1.id, partition: place.partition };
            if self.flows.has(at) && !self.leaving.contains(&at) {
                self.seek(at, Offset(place.offset));
            }
        }
        Ok(())
    }

    fn stream(&self, name: &str) -> Result<&(Rc<str>, Arc<ResourceInfo>), Reject> {
        let by_name = self.streams.values().find(|(known, _)| **known == *name);
        let found = by_name.or_else(|| self.streams.get(&self.edge.backend.find(Kind::Stream, name)?.id));
        found.ok_or_else(|| Reject::invalid("stream", format!("`{name}` is none that the hello names")))
    }

    fn named(&self, named: &[v1::StreamPartitions]) -> Result<Vec<PartitionRef>, Reject> {
        let mut all = Vec::new();
        for some in named {
            let (_, info) = self.stream(&some.stream)?;
            let resource = info.id;
            let partitions = chosen_partitions(info, &some.partitions)?;
            all.extend(partitions.into_iter().map(|partition| PartitionRef { resource, partition }));
        }
        Ok(all)
    }

    fn place(&self, at: PartitionRef) -> Option<Place> {
        let (stream, info) = self.streams.get(&at.resource)?;
        // The stream may have got more partitions since the call began.
        let info = self.edge.backend.catalog().get(at.resource).map_or_else(|| Arc::clone(info), Arc::clone);
        Some(Place { stream: Rc::clone(stream), info, at })
    }

    /// Hands commits over at once if they lie within what is known to be there, else looks first.
    fn commit(&mut self, commits: Vec<v1::GroupOffset>, generation: u64, bytes: usize) {
        let ticket = self.outbox.expect(bytes);
        if let Some(replay) = &self.replay {
            return self.commit_replayed(replay, commits, generation, ticket);
        }
        let known: Option<Batch<NewOffset>> =
            commits.iter().map(|commit| self.known_offset(commit)).collect();
        let group = Arc::clone(self.membership.group());
        let member = self.membership.member();
        if let Some(offsets) = known.filter(|_| self.checks.is_empty()) {
            let commit = GroupCommand::Commit { member: Some(member), offsets };
            let sink = SinkFn(move |outcome| put_outcomes(&ticket, commits, outcome));
            let command = Command::Group(group.id, commit);
            self.edge.backend.dispatch(self.membership.shard(), command, Box::new(sink));
            return;
        }
        let edge = Rc::clone(&self.edge);
        self.checks.push(Box::pin(async move {
            let outcomes = commit_checked(&edge, &group, Some(member), commits.clone()).await;
            let outcomes = outcomes.unwrap_or_else(|reject| refused(commits, &reject));
            push_outcomes(&ticket, &outcomes);
        }));
    }

    fn known_offset(&self, commit: &v1::GroupOffset) -> Option<NewOffset> {
        let (_, info) = self.stream(&commit.stream).ok()?;
        let at = PartitionRef { resource: info.id, partition: commit.partition };
        let offset = Offset(commit.offset);
        let end = self.flows.known_end(at)?;
        (offset <= end).then(|| NewOffset { at, offset, metadata: commit.metadata.clone() })
    }

    /// The consumer has let go of a partition. If it is to have it after all, it starts again.
    fn release(&mut self, at: PartitionRef) {
        self.flows.stop(at);
        if self.membership.assigned().contains(&at) {
            self.start_committed(vec![at]);
        } else {
            self.membership.release(at);
        }
    }

    fn take_news(&mut self, news: &HeartbeatReply) {
        let membership = v1::Membership {
            member_id: news.member.as_ref().to_owned(),
            member_epoch: news.epoch.get(),
            session_timeout_ms: news.session_timeout_ms,
        };
        self.outbox.push(MEMBERSHIP, &membership);
        let assigned = self.membership.assigned().clone();
        let new = assigned.iter().copied().filter(|at| {
            !self.flows.has(*at) && !self.starting.contains_key(at) && !self.leaving.contains(at)
        });
        let new: Vec<PartitionRef> = new.collect();
        let had: BTreeSet<PartitionRef> =
            self.flows.partitions().chain(self.starting.keys().copied()).collect();
        for at in had.into_iter().filter(|at| !assigned.contains(at)) {
            self.end(at);
        }
        if !new.is_empty() {
            self.start_committed(new);
        }
    }

    /// The consumer is to let go of a partition, unless it has not been told of it.
    fn end(&mut self, at: PartitionRef) {
        if self.starting.remove(&at).is_some() && !self.flows.has(at) {
            self.membership.release(at);
            return;
        }
        self.flows.stop(at);
        if self.membership.revoking().contains(&at) {
            self.leaving.insert(at);
        }
        if let Some(place) = self.place(at) {
            let revoked =
                v1::StreamPartitions { stream: place.stream.to_string(), partitions: vec![at.partition] };
            self.outbox.push(REVOKED, &revoked);
        }
    }

    fn start_committed(&mut self, partitions: Vec<PartitionRef>) {
        let places = partitions.into_iter().filter_map(|at| self.place(at)).collect();
        self.start(Wanted::Committed(places), None);
    }

    fn seek(&mut self, at: PartitionRef, offset: Offset) {
        if let Some(replay) = &self.replay {
            replay.tracks.sought(at, offset);
        }
        if let Some(place) = self.place(at) {
            self.start(Wanted::At(place, offset), None);
        }
    }

    fn start(&mut self, wanted: Wanted, after: Option<Duration>) {
        self.last_start += 1;
        let number = self.last_start;
        self.starting.extend(wanted.places().iter().map(|place| (place.at, number)));
        let (edge, group) = (Rc::clone(&self.edge), Arc::clone(self.membership.group()));
        let (member, end) = (self.membership.member(), self.start_at);
        let session = self.replay.as_ref().map(|replay| replay.session.clone());
        self.starts.push(Box::pin(async move {
            if let Some(span) = after {
                edge.backend.sleep(span).await;
            }
            let found = match session {
                None => find_starts(&edge, &group, member, end, &wanted).await,
                Some(session) => find_replay_starts(&edge, &session, &wanted).await,
            };
            (number, wanted, found)
        }));
    }

    /// Partitions whose start was found flow, unless that is no longer wanted.
    fn take_starts(
        &mut self,
        number: u64,
        mut wanted: Wanted,
        found: Result<Vec<Found>, Reject>,
    ) -> Result<(), Reject> {
        let found = match found {
            Ok(found) => found,
            Err(reject) if !passes(&reject) => return Err(reject),
            Err(_) => {
                let is_wanted = |place: &Place| self.starting.get(&place.at) == Some(&number);
                if let Wanted::Committed(places) = &mut wanted {
                    places.retain(is_wanted);
                }
                if wanted.places().iter().any(is_wanted) {
                    self.start(wanted, Some(RETRY));
                }
                return Ok(());
            }
        };
        for Found { start, metadata, committed } in found {
            if self.starting.get(&start.at) != Some(&number) {
                continue;
            }
            self.starting.remove(&start.at);
            // Who sought a place knows it, unless it is not there.
            if !matches!(&wanted, Wanted::At(_, offset) if *offset == start.offset) {
                let assigned = v1::GroupOffset {
                    stream: start.stream.to_string(),
                    partition: start.at.partition,
                    offset: start.offset.get(),
                    metadata,
                };
                self.outbox.push(ASSIGNED, &assigned);
            }
            if let Some(replay) = &self.replay {
                replay.tracks.begin(start.at, committed, matches!(wanted, Wanted::Committed(_)));
            }
            self.flows.start(start);
        }
        Ok(())
    }

    /// Records that are gone are passed over; what passes is tried again.
    fn take_read_error(&mut self, at: PartitionRef, reject: Reject) -> Result<(), Reject> {
        match reject {
            Reject::OffsetOutOfRange { .. } => {
                if let Some(place) = self.place(at) {
                    self.start(Wanted::AtEnd(place), None);
                }
                Ok(())
            }
            reject if passes(&reject) => {
                if let (Some(place), Some(next)) = (self.place(at), self.flows.next_offset(at)) {
                    self.start(Wanted::At(place, next), Some(RETRY));
                }
                Ok(())
            }
            reject => {
                if let Some(replay) = &self.replay {
                    replay.report(at, &reject);
                }
                Err(reject)
            }
        }
    }
}

/// Whether the same may go well a little later. What the group says of the member, its next heartbeat says for good.
fn passes(reject: &Reject) -> bool {
    reject.retry_after_ms().is_some()
        || matches!(
            reject,
            Reject::StaleMemberEpoch { .. } | Reject::UnknownMember { .. } | Reject::FencedInstance { .. }
        )
}

fn refused(commits: Vec<v1::GroupOffset>, reject: &Reject) -> Vec<v1::OffsetOutcome> {
    let outcome = |commit: v1::GroupOffset| {
        commit_outcome(commit.stream, commit.partition, commit.offset, Err(reject.clone()))
    };
    commits.into_iter().map(outcome).collect()
}

/// What became of each offset.
fn committed(outcome: Result<Reply, Reject>) -> Result<Batch<Result<Committed, Reject>>, Reject> {
    match outcome? {
        Reply::Group(reply) => match *reply {
            GroupReply::Committed(outcomes) => Ok(outcomes),
            _ => Err(wrong_reply()),
        },
        _ => Err(wrong_reply()),
    }
}

fn put_outcomes(ticket: &Ticket, commits: Vec<v1::GroupOffset>, outcome: Result<Reply, Reject>) {
    let outcomes: Vec<v1::OffsetOutcome> = match committed(outcome) {
        Ok(outcomes) => commits
            .into_iter()
            .zip(outcomes)
            .map(|(commit, outcome)| commit_outcome(commit.stream, commit.partition, commit.offset, outcome))
            .collect(),
        Err(reject) => refused(commits, &reject),
    };
    push_outcomes(ticket, &outcomes);
}

fn push_outcomes(ticket: &Ticket, outcomes: &[v1::OffsetOutcome]) {
    for outcome in outcomes {
        ticket.outbox().push(OUTCOMES, outcome);
    }
}
