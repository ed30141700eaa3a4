//! A consumer group: of members that come, go, fall silent and speak again, only the one that owns a partition commits, and finds
//! what was committed last.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use flowmesh_engine::Timer;
use flowmesh_model::group::{
    GroupCommand, GroupReply, Heartbeat, HeartbeatReply, MemberRef, NewOffset, PartitionRange, ranges,
};
use flowmesh_model::{Batch, Command, GroupEpoch, Lsn, Offset, PartitionRef, Reply, ResourceId, ShardId};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::{Known, Site, Workload};

/// What must be so.
#[derive(Default)]
pub(crate) struct Model {
    /// By partition: the largest offset that is known to be committed, and that may be.
    committed: BTreeMap<PartitionRef, (u64, u64)>,
    members: u64,
}

/// A group whose members share a stream.
#[derive(Clone)]
pub(crate) struct Readers {
    pub site: Site,
    pub group: ResourceId,
    pub shard: ShardId,
    pub stream: ResourceId,
    pub partitions: u32,
    pub model: Rc<RefCell<Model>>,
}

/// After so long nobody of those before is a member any more.
const LONG: Duration = Duration::from_secs(5);

/// A member, as it knows itself.
struct Member {
    who: MemberRef,
    known: Lsn,
    assigned: Vec<PartitionRange>,
    /// What it knows to be committed of what it owns.
    at: BTreeMap<PartitionRef, u64>,
}

impl Member {
    fn take(&mut self, reply: HeartbeatReply) {
        (self.who.id, self.who.epoch) = (reply.member, reply.epoch);
        (self.known, self.assigned) = (reply.version, reply.assigned);
        let owned: Vec<PartitionRef> = self.owned().collect();
        self.at.retain(|at, _| owned.contains(at));
    }

    fn owned(&self) -> impl Iterator<Item = PartitionRef> {
        self.assigned.iter().copied().flat_map(PartitionRange::iter)
    }
}

impl Readers {
    async fn ask(&self, who: &str, command: GroupCommand) -> Option<GroupReply> {
        match self.site.call(who, self.shard, Command::Group(self.group, command)).await {
            Known::Done(Reply::Group(reply)) => Some(*reply),
            Known::Done(other) => panic!("a group answers {other:?}"),
            Known::Not | Known::Unknown => None,
        }
    }

    async fn go_on(self) {
        loop {
            self.be_a_member().await;
            self.site.pause().await;
        }
    }

    async fn heartbeat(&self, member: &mut Member, joins: bool) -> bool {
        let heartbeat = Heartbeat {
            member: member.who.clone(),
            client: "sim".into(),
            host: "here".into(),
            known: member.known,
            subscribed: joins.then(|| vec![self.stream]),
            owned: (!joins).then(|| ranges(member.owned())),
            wait_until: None,
        };
        let Some(reply) = self.ask("heartbeat", GroupCommand::Heartbeat(Box::new(heartbeat))).await else {
            return false;
        };
        let GroupReply::Heartbeat(reply) = reply else { panic!("a heartbeat is answered with {reply:?}") };
        member.take(reply);
        true
    }

    async fn join(&self) -> Option<Member> {
        let id = {
            let model = &mut *self.model.borrow_mut();
            model.members += 1;
            format!("member-{}", model.members)
        };
        let who = MemberRef { id: id.as_str().into(), epoch: GroupEpoch(0), instance: None };
        let mut member = Member { who, known: Lsn(0), assigned: Vec::new(), at: BTreeMap::new() };
        self.heartbeat(&mut member, true).await.then_some(member)
    }

    /// Joins, works for a while, and leaves or falls silent. Where an answer does not come, it is nobody any more: what it said
    /// last may still be heard.
    async fn be_a_member(&self) {
        let Some(mut member) = self.join().await else { return };
        for _ in 0..self.site.shared.below(20) {
            for at in member.owned().collect::<Vec<_>>() {
                if self.site.shared.below(2) == 0 && !self.commit(&mut member, at).await {
                    return;
                }
            }
            if self.site.shared.below(8) == 0 {
                self.site.shared.delay(2_500_000).await;
            } else {
                self.site.pause().await;
            }
            if self.site.shared.below(3) > 0 && !self.heartbeat(&mut member, false).await {
                return;
            }
        }
        if self.site.shared.below(2) == 0 {
            self.ask("leave", GroupCommand::Leave { member: member.who, keep_place: false }).await;
        }
    }

    /// Finds out what is committed of a partition, as a member or as nobody.
    async fn fetch(&self, who: Option<&MemberRef>, at: PartitionRef) -> Option<u64> {
        let least = self.known(at).0;
        let of = Some(ranges([at]));
        let reply = self.ask("fetch", GroupCommand::FetchOffsets { member: who.cloned(), of }).await?;
        let GroupReply::Offsets(offsets) = reply else { panic!("a fetch is answered with {reply:?}") };
        let found = offsets.first().map_or(0, |(_, committed)| committed.offset.0);
        let most = self.known(at).1;
        assert!(found >= least, "{least} was committed of {at}, and {found} is found");
        assert!(found <= most, "{found} of {at} was never committed, {most} at most");
        Some(found)
    }

    fn known(&self, at: PartitionRef) -> (u64, u64) {
        self.model.borrow().committed.get(&at).copied().unwrap_or_default()
    }

    /// Commits what follows what is committed. False if it is not known what came of it, or was refused.
    async fn commit(&self, member: &mut Member, at: PartitionRef) -> bool {
        let before = match member.at.get(&at) {
            Some(before) => *before,
            None => match self.fetch(Some(&member.who), at).await {
                Some(found) => found,
                None => return false,
            },
        };
        let offset = before + 1 + self.site.shared.below(5);
        let (_, most) = self.known(at);
        self.model.borrow_mut().committed.entry(at).or_default().1 = most.max(offset);
        let new = NewOffset { at, offset: Offset(offset), metadata: Bytes::new() };
        let commit =
            GroupCommand::Commit { member: Some(member.who.clone()), offsets: Batch::from_iter([new]) };
        let Some(reply) = self.ask("commit", commit).await else { return false };
        let GroupReply::Committed(outcomes) = reply else { panic!("a commit is answered with {reply:?}") };
        let Ok(committed) = &outcomes[0] else { return false };
        let previous = committed.previous.map_or(0, |offset| offset.0);
        assert_eq!(previous, before, "another one committed of {at}, which {:?} owns", member.who);
        let known = &mut *self.model.borrow_mut();
        let (least, _) = known.committed.entry(at).or_default();
        assert!(offset > *least, "{offset} of {at} is good, and {least} was already");
        *least = offset;
        member.at.insert(at, offset);
        true
    }

    /// All members are gone, what they committed is there, and a new one gets it all.
    async fn check_all(self) -> bool {
        self.site.shared.clock.sleep(LONG).await;
        let all = (0..self.partitions).map(|partition| PartitionRef { resource: self.stream, partition });
        for at in all {
            if self.fetch(None, at).await.is_none() {
                return false;
            }
        }
        let Some(mut member) = self.join().await else { return false };
        while member.owned().count() < self.partitions as usize {
            self.site.shared.delay(200_000).await;
            if !self.heartbeat(&mut member, false).await {
                return false;
            }
        }
        for at in member.owned().collect::<Vec<_>>() {
            if !self.commit(&mut member, at).await {
                return false;
            }
        }
        true
    }
}

impl Workload for Readers {
    fn use_it(&self, _client: u64) -> LocalBoxFuture<'static, ()> {
        self.clone().go_on().boxed_local()
    }

    fn check(&self, site: Site) -> LocalBoxFuture<'static, bool> {
        Self { site, ..self.clone() }.check_all().boxed_local()
    }
}
