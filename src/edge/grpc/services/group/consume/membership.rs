//! A consumer's place in its group: one heartbeat is always under way, waiting on the group's shard for news; when this is
//! dropped, the member leaves.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flowmesh_engine::SinkFn;
use flowmesh_model::group::{GroupReply, Heartbeat, HeartbeatReply, MemberRef, Name, PartitionRange, ranges};
use flowmesh_model::{
    Command, GroupCommand, GroupEpoch, Lsn, Millis, PartitionRef, Reject, Reply, ResourceId, ResourceInfo,
    Settings, ShardId,
};
use flowmesh_proto::v1;
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::replayed::Door;
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::wrong_reply;
use crate::edge::grpc::services::group::group_shard;
use crate::edge::grpc::services::group::names::{client_name, some_name};

/// A heartbeat that brought no news is not repeated sooner.
const PAUSE_MIN: Duration = Duration::from_millis(50);

type Beat = LocalBoxFuture<'static, Result<Reply, Reject>>;

/// One member of a group.
pub struct Membership<B: Backend> {
    edge: Rc<Edge<B>>,
    group: Arc<ResourceInfo>,
    shard: ShardId,
    door: Door,
    member: MemberRef,
    client: Name,
    /// Told until the first answer has come.
    subscribed: Option<Vec<ResourceId>>,
    /// The version of the last answer.
    known: Lsn,
    assigned: BTreeSet<PartitionRef>,
    revoking: BTreeSet<PartitionRef>,
    /// Something was let go of that the group has not been told of.
    released: bool,
    beat: Option<Beat>,
    asked_at: Millis,
    pause: Option<LocalBoxFuture<'static, ()>>,
    /// The group was asked to take the member in.
    asked_in: bool,
    /// The group says that it is none of its members.
    thrown_out: bool,
}

impl<B: Backend> Membership<B> {
    /// A member that has not joined yet.
    ///
    /// # Errors
    /// Its name is too long.
    pub fn new(
        edge: &Rc<Edge<B>>,
        group: Arc<ResourceInfo>,
        door: Door,
        hello: &v1::ConsumeHello,
        streams: Vec<ResourceId>,
    ) -> Result<Self, Reject> {
        // Known before it joins, so that it can leave whatever becomes of the answer.
        let id = some_name(&hello.member_id).unwrap_or_else(new_id);
        Ok(Self {
            shard: group_shard(edge, &group),
            edge: Rc::clone(edge),
            group,
            door,
            member: MemberRef { id, epoch: GroupEpoch(0), instance: some_name(&hello.instance_id) },
            client: client_name(&hello.name)?,
            subscribed: Some(streams),
            known: Lsn(0),
            assigned: BTreeSet::new(),
            revoking: BTreeSet::new(),
            released: false,
            beat: None,
            asked_at: Millis(0),
            pause: None,
            asked_in: false,
            thrown_out: false,
        })
    }

    /// The group.
    pub fn group(&self) -> &Arc<ResourceInfo> {
        &self.group
    }

    /// Its shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Who this is, for commits and fetches.
    pub fn member(&self) -> MemberRef {
        self.member.clone()
    }

    /// What the member owns and keeps.
    pub fn assigned(&self) -> &BTreeSet<PartitionRef> {
        &self.assigned
    }

    /// What the member owns and must let go of.
    pub fn revoking(&self) -> &BTreeSet<PartitionRef> {
        &self.revoking
    }

    /// The member has let go of a partition that it had to let go of. The group is told with the next heartbeat, which is
    /// sent at once.
    pub fn release(&mut self, at: PartitionRef) {
        if self.revoking.remove(&at) {
            self.released = true;
            // An answer that is lost with it comes again: `known` still says what was seen.
            self.beat = None;
            self.pause = None;
        }
    }

    /// The next answer that has news; an error if the member is thrown out, or the group is no more.
    pub fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<Result<HeartbeatReply, Reject>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let beat = if let Some(beat) = &mut self.beat {
                beat
            } else {
                let command = self.heartbeat();
                self.asked_at = self.edge.backend.now();
                self.asked_in = true;
                self.beat.insert(self.edge.backend.call(self.shard, command).boxed_local())
            };
            let outcome = ready!(Pin::new(beat).poll(cx));
            self.beat = None;
            match outcome {
                Ok(Reply::Group(reply)) => {
                    let GroupReply::Heartbeat(reply) = *reply else { return Poll::Ready(Err(wrong_reply())) };
                    if self.take(&reply) {
                        return Poll::Ready(Ok(reply));
                    }
                }
                Ok(_) => return Poll::Ready(Err(wrong_reply())),
                Err(reject) => self.take_refusal(reject)?,
            }
        }
    }

    fn heartbeat(&self) -> Command {
        let owned = || ranges(self.assigned.union(&self.revoking).copied());
        let heartbeat = Heartbeat {
            member: self.member.clone(),
            client: Name::clone(&self.client),
            host: Name::from(""),
            known: self.known,
            subscribed: self.subscribed.clone(),
            owned: self.released.then(owned),
            wait_until: Some(self.edge.backend.now().plus(self.wait_ms())),
        };
        self.door.command(GroupCommand::Heartbeat(Box::new(heartbeat)))
    }

    /// How long a heartbeat waits for news: three of them in a session.
    fn wait_ms(&self) -> u64 {
        let catalog = self.edge.backend.catalog();
        let group = catalog.get(self.group.id).unwrap_or(&self.group);
        match &group.settings {
            Settings::Group(settings) => settings.session_timeout_ms / 3,
            _ => 0,
        }
    }

    /// Takes note of an answer; says whether it has news.
    fn take(&mut self, reply: &HeartbeatReply) -> bool {
        let is_news = self.subscribed.take().is_some() || reply.version != self.known;
        self.released = false;
        self.known = reply.version;
        self.member.epoch = reply.epoch;
        self.member.id = Name::clone(&reply.member);
        self.assigned = partitions(&reply.assigned);
        self.revoking = partitions(&reply.revoking);
        let waited = self.edge.backend.now().since(self.asked_at);
        if !is_news && waited < PAUSE_MIN.as_millis() as u64 {
            self.pause = Some(self.edge.backend.sleep(PAUSE_MIN));
        }
        is_news
    }

    /// What passes is tried again; what does not is the end.
    fn take_refusal(&mut self, reject: Reject) -> Result<(), Reject> {
        if let Some(ms) = reject.retry_after_ms() {
            self.pause = Some(self.edge.backend.sleep(PAUSE_MIN.max(Duration::from_millis(ms))));
            return Ok(());
        }
        self.thrown_out = is_thrown_out(&reject);
        Err(reject)
    }
}

/// Whether the group says that the one who asks is none of its members, or not any more.
fn is_thrown_out(reject: &Reject) -> bool {
    matches!(
        reject,
        Reject::UnknownMember { .. }
            | Reject::StaleMemberEpoch { .. }
            | Reject::FencedInstance { .. }
            | Reject::ResourceNotFound { .. }
    )
}

impl<B: Backend> Drop for Membership<B> {
    /// The member leaves, or keeps its place if it may come back.
    fn drop(&mut self) {
        self.beat = None;
        if self.asked_in && !self.thrown_out {
            let keep_place = self.member.instance.is_some();
            let leave = GroupCommand::Leave { member: self.member.clone(), keep_place };
            // Nobody is left to tell; if it does not get there, the session runs out.
            let sink = Box::new(SinkFn(|_| {}));
            self.edge.backend.dispatch(self.shard, self.door.command(leave), sink);
        }
    }
}

fn partitions(all: &[PartitionRange]) -> BTreeSet<PartitionRef> {
    all.iter().flat_map(|range| range.iter()).collect()
}

/// A name that nobody else has: 128 random bits.
fn new_id() -> Name {
    let random = || RandomState::new().hash_one(std::process::id());
    Name::from(format!("{:016x}{:016x}", random(), random()))
}
