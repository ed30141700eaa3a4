//! What makes a consumer one of a replay session: which commands it may use, news of the session, and how far the server
//! itself commits what a filter left out.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flowmesh_engine::SinkFn;
use flowmesh_model::group::{MemberRef, NewOffset};
use flowmesh_model::limits::REPLAY_ERROR_BYTES_MAX;
use flowmesh_model::replay::{ReplayRef, ReplayState, ReplayStatus};
use flowmesh_model::{
    Batch, Command, GroupCommand, Lsn, Millis, Offset, PartitionRef, Reject, ReplayCommand, Reply,
    ResourceId, ShardId,
};
use flowmesh_proto::v1;
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::services::next_round;
use crate::edge::grpc::services::replay::{Session, speed_number, state_number};

/// What passes is tried again after so long.
const RETRY: Duration = Duration::from_millis(50);

/// By which commands a consumer works with its group: a sandbox opens to its session alone.
#[derive(Clone, Copy, Debug)]
pub enum Door {
    /// Those of groups.
    Group(ResourceId),
    /// Those of a replay session.
    Replay(ReplayRef),
}

impl Door {
    /// What a member does, as a command.
    pub fn command(self, command: GroupCommand) -> Command {
        match self {
            Self::Group(group) => Command::Group(group, command),
            Self::Replay(at) => Command::Replay(at, ReplayCommand::Member(command)),
        }
    }
}

/// How far a partition is.
#[derive(Clone, Copy, Debug)]
struct Track {
    /// What is committed.
    committed: Offset,
    /// Everything before was pushed, or nobody wants it.
    pushed: Offset,
    /// The server commits this itself.
    asked: Offset,
}

/// How far all partitions of a consumer are. Shared with commits that are under way.
#[derive(Clone, Debug, Default)]
pub struct Tracks(Rc<RefCell<BTreeMap<PartitionRef, Track>>>);

impl Tracks {
    /// A partition begins where that is committed; or goes on, if it was begun and is not to begin anew.
    pub fn begin(&self, at: PartitionRef, committed: Offset, anew: bool) {
        let track = Track { committed, pushed: committed, asked: committed };
        let mut tracks = self.0.borrow_mut();
        if anew || !tracks.contains_key(&at) {
            tracks.insert(at, track);
        }
    }

    /// The consumer itself goes elsewhere: what it passes over so is not for the server to commit.
    pub fn sought(&self, at: PartitionRef, offset: Offset) {
        if let Some(track) = self.0.borrow_mut().get_mut(&at) {
            track.pushed = track.pushed.max(offset);
        }
    }

    /// Records up to there were pushed.
    pub fn pushed(&self, at: PartitionRef, upto: Offset) {
        if let Some(track) = self.0.borrow_mut().get_mut(&at) {
            track.pushed = upto;
        }
    }

    /// That is committed.
    pub fn committed(&self, at: PartitionRef, offset: Offset) {
        if let Some(track) = self.0.borrow_mut().get_mut(&at) {
            track.committed = offset;
        }
    }

    /// What to commit for a consumer that has committed all it got, where nobody wants anything before `looked`.
    pub fn passed(&self, at: PartitionRef, looked: Offset) -> Option<Offset> {
        let mut tracks = self.0.borrow_mut();
        let track = tracks.get_mut(&at)?;
        let is_due = track.committed >= track.pushed && looked > track.committed && looked > track.asked;
        is_due.then(|| {
            track.asked = looked;
            looked
        })
    }

    /// It was not committed after all: it is tried again.
    pub fn not_passed(&self, at: PartitionRef) {
        if let Some(track) = self.0.borrow_mut().get_mut(&at) {
            track.asked = track.committed;
        }
    }
}

type Asked = LocalBoxFuture<'static, Result<Reply, Reject>>;

/// The session as a consumer's call sees it: a question is always under way that waits for a change.
pub struct Replayed<B: Backend> {
    edge: Rc<Edge<B>>,
    /// Which session.
    pub session: Session,
    /// How far partitions are.
    pub tracks: Tracks,
    shard: ShardId,
    known: Option<Lsn>,
    generation: u64,
    state: ReplayState,
    asked: Option<Asked>,
    pause: Option<LocalBoxFuture<'static, ()>>,
    /// Wakes the call when the next records are due.
    alarm: Option<(Millis, LocalBoxFuture<'static, ()>)>,
}

impl<B: Backend> Replayed<B> {
    /// Nothing is known of the session yet, so nothing flows.
    pub fn new(edge: &Rc<Edge<B>>, session: Session, shard: ShardId) -> Self {
        Self {
            edge: Rc::clone(edge),
            session,
            tracks: Tracks::default(),
            shard,
            known: None,
            generation: 0,
            state: ReplayState::Created,
            asked: None,
            pause: None,
            alarm: None,
        }
    }

    /// Whether no more records will ever come.
    pub fn is_over(&self) -> bool {
        self.state.is_over()
    }

    /// A commit of a member, which counts only if the session was not moved since that generation, or since now.
    pub fn commit(&self, member: MemberRef, generation: Option<u64>, offsets: Batch<NewOffset>) -> Command {
        let generation = generation.unwrap_or(self.generation);
        Command::Replay(self.session.at(), ReplayCommand::Commit { generation, member, offsets })
    }

    /// The session's records cannot be read: that is kept with it, for whoever looks. If it does not get there, the
    /// consumer still knows.
    pub fn report(&self, at: PartitionRef, reject: &Reject) {
        let error = format!("partition {} cannot be read: {reject}", at.partition);
        let error = error.chars().take(REPLAY_ERROR_BYTES_MAX / 4).collect::<String>().into();
        let command = Command::Replay(self.session.at(), ReplayCommand::Fail { error });
        self.edge.backend.dispatch(self.shard, command, Box::new(SinkFn(|_| {})));
    }

    /// The session, whenever it has changed.
    pub fn poll_status(&mut self, cx: &mut Context<'_>) -> Poll<Result<ReplayStatus, Reject>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let asked = if let Some(asked) = &mut self.asked {
                asked
            } else {
                let wait_until = Some(next_round(self.edge.backend.now()));
                let command = ReplayCommand::Status { known: self.known, wait_until };
                let command = Command::Replay(self.session.at(), command);
                self.asked.insert(self.edge.backend.call(self.shard, command).boxed_local())
            };
            let outcome = ready!(Pin::new(asked).poll(cx));
            self.asked = None;
            match outcome {
                Ok(Reply::Replay(status)) => {
                    let is_news = self.known.replace(status.version) != Some(status.version);
                    if status.state.is_over() {
                        // Nothing changes any more; asking on would not wait.
                        self.asked = Some(futures::future::pending().boxed_local());
                    }
                    if is_news {
                        return Poll::Ready(Ok(*status));
                    }
                }
                Ok(_) => return Poll::Ready(Err(wrong_reply())),
                Err(reject) => match reject.retry_after_ms() {
                    Some(ms) => {
                        self.pause = Some(self.edge.backend.sleep(RETRY.max(Duration::from_millis(ms))));
                    }
                    None => return Poll::Ready(Err(reject)),
                },
            }
        }
    }

    /// Takes note of how the session is; says whether it was moved since it was last known.
    pub fn take(&mut self, status: &ReplayStatus) -> bool {
        let moved = self.generation != 0 && self.generation != status.generation;
        (self.generation, self.state) = (status.generation, status.state);
        self.alarm = None;
        moved
    }

    /// Wakes the task at that moment.
    pub fn wake_at(&mut self, cx: &mut Context<'_>, due: Option<Millis>) {
        let Some(due) = due else {
            self.alarm = None;
            return;
        };
        if self.alarm.as_ref().is_none_or(|(at, _)| *at != due) {
            // Never late by more than this, however far away it is: the clock may be set.
            let span = due.since(self.edge.backend.now()).clamp(1, 60_000);
            self.alarm = Some((due, self.edge.backend.sleep(Duration::from_millis(span))));
        }
        if let Some((_, alarm)) = &mut self.alarm
            && alarm.as_mut().poll(cx).is_ready()
        {
            self.alarm = None;
            cx.waker().wake_by_ref();
        }
    }
}

/// The session for its consumers.
pub fn update(status: &ReplayStatus) -> v1::ReplayUpdate {
    v1::ReplayUpdate {
        state: state_number(status.state),
        error: status.error.as_deref().unwrap_or_default().to_owned(),
        generation: status.generation,
        speed: speed_number(status.pace.speed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_wants_is_committed_once_all_before_it_was() {
        let at = PartitionRef { resource: ResourceId(1), partition: 0 };
        let tracks = Tracks::default();
        assert_eq!(tracks.passed(at, Offset(9)), None);
        tracks.begin(at, Offset(2), true);
        assert_eq!(tracks.passed(at, Offset(2)), None);
        // Records 2 and 3 nobody wants.
        assert_eq!(tracks.passed(at, Offset(4)), Some(Offset(4)));
        assert_eq!(tracks.passed(at, Offset(4)), None);
        tracks.not_passed(at);
        assert_eq!(tracks.passed(at, Offset(4)), Some(Offset(4)));
        tracks.committed(at, Offset(4));
        // Record 4 goes to the consumer, 5 to 8 nobody wants.
        tracks.pushed(at, Offset(5));
        assert_eq!(tracks.passed(at, Offset(9)), None);
        tracks.committed(at, Offset(5));
        assert_eq!(tracks.passed(at, Offset(9)), Some(Offset(9)));
    }

    #[test]
    fn what_a_consumer_has_and_has_not_committed_is_never_committed_for_it() {
        let at = PartitionRef { resource: ResourceId(1), partition: 0 };
        let tracks = Tracks::default();
        tracks.begin(at, Offset(2), true);
        tracks.pushed(at, Offset(5));
        // It is read on after something that passes.
        tracks.begin(at, Offset(2), false);
        assert_eq!(tracks.passed(at, Offset(9)), None);
        // It begins anew where it is committed: after a seek of the session.
        tracks.begin(at, Offset(2), true);
        tracks.sought(at, Offset(7));
        assert_eq!(tracks.passed(at, Offset(9)), None);
        tracks.committed(at, Offset(8));
        assert_eq!(tracks.passed(at, Offset(9)), Some(Offset(9)));
    }
}
