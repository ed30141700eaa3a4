//! What members do: join, heartbeat, take over a place.

use std::collections::BTreeSet;

use flowmesh_model::group::fact::{GroupFact, NewMember};
use flowmesh_model::group::{
    GroupReply, GroupState, Heartbeat, HeartbeatReply, MemberRef, Name, PartitionRange, ranges,
};
use flowmesh_model::limits::{GROUP_MEMBERS_MAX, GROUP_PARTITIONS_MAX, GROUP_STREAMS_MAX, NAME_BYTES_MAX};
use flowmesh_model::settings::within;
use flowmesh_model::{
    Batch, CatalogVersion, Fact, GroupEpoch, Kind, MemberNumber, PartitionRef, Reject, Reply, ResourceId,
    Settings,
};

use super::NOBODY;
use super::decide::Asked;
use super::member::Member;
use super::plan::{Plan, Subscription};
use crate::decision::{Decision, WaitKey};
use crate::limit::size;

/// A member as it will be once the facts so far are true.
struct Outlook {
    number: MemberNumber,
    id: Name,
    epoch: GroupEpoch,
    owned: BTreeSet<PartitionRef>,
    target: BTreeSet<PartitionRef>,
    facts: Vec<GroupFact>,
    /// Whether its epoch, what it owns or what it must let go of changes.
    changed: bool,
}

impl Outlook {
    fn of(number: MemberNumber, member: &Member) -> Self {
        Self {
            number,
            id: member.id.clone(),
            epoch: member.epoch,
            owned: member.owned.clone(),
            target: member.target.clone(),
            facts: Vec::new(),
            changed: false,
        }
    }

    /// Adds what the plan means for this member.
    fn follow(&mut self, plan: &mut Plan) {
        self.facts.append(&mut plan.facts);
        let revoking_before: Vec<PartitionRef> = self.owned.difference(&self.target).copied().collect();
        self.target.retain(|at| {
            !plan.unwatched.contains(&at.resource) && plan.moves.get(at).is_none_or(|to| *to == self.number)
        });
        self.target.extend(plan.moves.iter().filter(|(_, to)| **to == self.number).map(|(at, _)| *at));
        self.changed |= !self.owned.difference(&self.target).eq(&revoking_before);
    }

    /// The member owns these no more.
    fn release(&mut self, released: &BTreeSet<PartitionRef>) {
        if !released.is_empty() {
            self.owned.retain(|at| !released.contains(at));
            self.facts.push(GroupFact::PartitionsReleased(self.number, ranges(released.iter().copied())));
            self.changed = true;
        }
    }

    /// The member gets the group's epoch, and what is meant for it and free, if it has let go of all it must.
    fn catch_up(&mut self, group_epoch: GroupEpoch, shown: GroupEpoch, free: impl Fn(PartitionRef) -> bool) {
        if !self.owned.is_subset(&self.target) {
            return;
        }
        if self.epoch != group_epoch {
            self.epoch = group_epoch;
            let oldest = if shown == GroupEpoch(0) { group_epoch } else { shown };
            self.facts.push(GroupFact::MemberEpoch { member: self.number, epoch: group_epoch, oldest });
            self.changed = true;
        }
        let given: Vec<PartitionRef> =
            self.target.difference(&self.owned).copied().filter(|at| free(*at)).collect();
        if !given.is_empty() {
            self.facts.push(GroupFact::PartitionsGiven(self.number, ranges(given.iter().copied())));
            self.owned.extend(given);
            self.changed = true;
        }
    }
}

impl Asked<'_> {
    pub(super) fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<Decision, Reject> {
        size("member_id", heartbeat.member.id.as_bytes(), NAME_BYTES_MAX)?;
        let instance = heartbeat.member.instance.as_deref().unwrap_or_default();
        size("instance_id", instance.as_bytes(), NAME_BYTES_MAX)?;
        size("client", heartbeat.client.as_bytes(), NAME_BYTES_MAX)?;
        size("host", heartbeat.host.as_bytes(), NAME_BYTES_MAX)?;
        if heartbeat.member.epoch == GroupEpoch(0) { self.join(heartbeat) } else { self.beat(heartbeat) }
    }

    /// The member that speaks, in whatever epoch.
    pub(super) fn speaker(&self, who: &MemberRef) -> Result<(MemberNumber, &Member), Reject> {
        let unknown = || Reject::UnknownMember { member: who.id.to_string() };
        if let Some(instance) = &who.instance {
            let number = self.group.by_instance.get(instance).ok_or_else(unknown)?;
            if self.group.member(*number).is_none_or(|member| member.id != who.id) {
                return Err(Reject::FencedInstance { instance: instance.to_string() });
            }
        }
        let number = *self.group.by_id.get(&who.id).ok_or_else(unknown)?;
        let member = self.group.member(number).filter(|member| !member.away).ok_or_else(unknown)?;
        Ok((number, member))
    }

    /// The member that speaks, in an epoch that it may speak in.
    pub(super) fn fenced(&self, who: &MemberRef) -> Result<(MemberNumber, &Member), Reject> {
        let (number, member) = self.speaker(who)?;
        if who.epoch < member.oldest || who.epoch > member.epoch {
            let (given, current) = (who.epoch, member.epoch);
            return Err(Reject::StaleMemberEpoch { member: who.id.to_string(), given, current });
        }
        Ok((number, member))
    }

    /// A heartbeat of a member that is there.
    fn beat(&self, heartbeat: &Heartbeat) -> Result<Decision, Reject> {
        let (number, member) = self.fenced(&heartbeat.member)?;
        let wait_ms = heartbeat.wait_until.map_or(0, |until| until.since(self.now));
        within("wait_ms", wait_ms, 0, self.settings.session_timeout_ms / 2)?;
        let subscribed = heartbeat.subscribed.as_deref().map(|streams| self.streams(streams)).transpose()?;
        member.heard.set(Some(self.now));
        let mut outlook = Outlook::of(number, member);
        let mut plan = self.resubscribe(number, member, subscribed.as_deref(), &mut outlook)?;
        outlook.follow(&mut plan);
        if let Some(owned) = &heartbeat.owned {
            let released: BTreeSet<PartitionRef> = outlook
                .owned
                .difference(&outlook.target)
                .copied()
                .filter(|at| !names(owned, *at))
                .filter(|at| {
                    let asked = self.group.places.get(at).map(|place| place.asked);
                    asked.is_some_and(|asked| asked.0 > 0 && asked <= heartbeat.known)
                })
                .collect();
            outlook.release(&released);
        }
        outlook.catch_up(plan.epoch, heartbeat.member.epoch, |at| self.is_free(at));
        if outlook.facts.is_empty()
            && heartbeat.known == member.version
            && heartbeat.wait_until.is_some_and(|until| until > self.now)
        {
            return Ok(Decision::Wait(WaitKey::Group(self.id)));
        }
        Ok(self.told(outlook, &plan, member.version))
    }

    /// A member joins, anew or in a place that is there.
    fn join(&self, heartbeat: &Heartbeat) -> Result<Decision, Reject> {
        let who = &heartbeat.member;
        let by_instance = who.instance.as_ref().and_then(|instance| self.group.by_instance.get(instance));
        let by_id = self.group.by_id.get(&who.id).filter(|_| !who.id.is_empty());
        let number = match (by_instance, by_id) {
            (Some(place), Some(other)) if place != other => return Err(taken(who)),
            (None, Some(number))
                if who.instance != self.group.member(*number).and_then(|m| m.instance.clone()) =>
            {
                return Err(taken(who));
            }
            (Some(number), _) | (None, Some(number)) => Some(*number),
            (None, None) => None,
        };
        match number.and_then(|number| Some((number, self.group.member(number)?))) {
            Some((number, member)) => self.replace(heartbeat, number, member),
            None => self.join_anew(heartbeat),
        }
    }

    fn join_anew(&self, heartbeat: &Heartbeat) -> Result<Decision, Reject> {
        let members = self.group.members.len();
        if members >= GROUP_MEMBERS_MAX {
            let (size, max) = (members as u64 + 1, GROUP_MEMBERS_MAX as u64);
            return Err(Reject::TooLarge { what: "members of the group", size, max });
        }
        let Some(subscribed) = &heartbeat.subscribed else {
            return Err(Reject::invalid("streams", "must be given when joining"));
        };
        let subscribed = self.streams(subscribed)?;
        let number = MemberNumber(self.group.last_member.0 + 1);
        let id = self.id_for(&heartbeat.member.id);
        let new = NewMember {
            id: id.clone(),
            instance: heartbeat.member.instance.clone(),
            client: heartbeat.client.clone(),
            host: heartbeat.host.clone(),
            subscribed: subscribed.iter().map(|(stream, _)| *stream).collect(),
        };
        let name: &str = new.instance.as_deref().unwrap_or(&id);
        let change = Subscription { member: number, before: &[], after: &subscribed, name };
        let mut plan = self.checked_plan(&change)?;
        let mut outlook = Outlook {
            number,
            id: id.clone(),
            epoch: GroupEpoch(0),
            owned: BTreeSet::new(),
            target: BTreeSet::new(),
            facts: vec![GroupFact::MemberJoined(number, Box::new(new))],
            changed: true,
        };
        outlook.follow(&mut plan);
        outlook.catch_up(plan.epoch, GroupEpoch(0), |at| self.is_free(at));
        Ok(self.told(outlook, &plan, self.lsn))
    }

    /// Another process, or the same one that lost its memory, takes a member's place: it owns nothing yet, and is given
    /// what is free of what is meant for the place, which is all that the place owned and keeps.
    fn replace(
        &self,
        heartbeat: &Heartbeat,
        number: MemberNumber,
        member: &Member,
    ) -> Result<Decision, Reject> {
        let subscribed = heartbeat.subscribed.as_deref().map(|streams| self.streams(streams)).transpose()?;
        let given = &heartbeat.member.id;
        let same = *given == member.id;
        let id = if same { member.id.clone() } else { self.id_for(given) };
        let new = NewMember {
            id: id.clone(),
            instance: None,
            client: heartbeat.client.clone(),
            host: heartbeat.host.clone(),
            subscribed: Vec::new(),
        };
        let mut outlook = Outlook::of(number, member);
        (outlook.id, outlook.changed) = (id, true);
        outlook.facts.push(GroupFact::MemberReplaced(number, Box::new(new)));
        let owned = outlook.owned.clone();
        outlook.release(&owned);
        let mut plan = self.resubscribe(number, member, subscribed.as_deref(), &mut outlook)?;
        // What the place said under the same id before must not count any more: only the epoch tells them apart.
        if same && plan.epoch == self.group.epoch {
            plan.epoch = GroupEpoch(self.group.epoch.0 + 1);
            plan.facts.push(GroupFact::Assigned(plan.epoch, Vec::new()));
        }
        outlook.follow(&mut plan);
        outlook.catch_up(plan.epoch, GroupEpoch(0), |at| self.is_free(at) || owned.contains(&at));
        Ok(self.told(outlook, &plan, self.lsn))
    }

    /// What follows from the member's new subscription, if it has one.
    fn resubscribe(
        &self,
        number: MemberNumber,
        member: &Member,
        subscribed: Option<&[(ResourceId, u32)]>,
        outlook: &mut Outlook,
    ) -> Result<Plan, Reject> {
        let Some(after) = subscribed else { return Ok(Plan::none(self.group)) };
        let streams: Vec<ResourceId> = after.iter().map(|(stream, _)| *stream).collect();
        if streams == member.subscribed {
            return Ok(Plan::none(self.group));
        }
        let change = Subscription { member: number, before: &member.subscribed, after, name: "" };
        let plan = self.checked_plan(&change)?;
        outlook.facts.push(GroupFact::Subscribed(number, streams));
        Ok(plan)
    }

    fn checked_plan(&self, change: &Subscription<'_>) -> Result<Plan, Reject> {
        let known = |stream: &ResourceId| self.group.watched.contains_key(stream);
        let new = change.after.iter().filter(|(stream, _)| !known(stream));
        let more: usize = new.map(|(_, partitions)| *partitions as usize).sum();
        let size = self.group.places.len() + more;
        if more > 0 && size > GROUP_PARTITIONS_MAX {
            let (size, max) = (size as u64, GROUP_PARTITIONS_MAX as u64);
            return Err(Reject::TooLarge { what: "partitions of the group", size, max });
        }
        Ok(self.group.plan(self.settings.assignor, Some(change)))
    }

    /// The answer, and whatever becomes true with it.
    fn told(&self, outlook: Outlook, plan: &Plan, version: flowmesh_model::Lsn) -> Decision {
        let reply = HeartbeatReply {
            member: outlook.id.clone(),
            epoch: outlook.epoch,
            version: if outlook.changed { self.lsn } else { version },
            assigned: ranges(outlook.owned.intersection(&outlook.target).copied()),
            revoking: ranges(outlook.owned.difference(&outlook.target).copied()),
            pending: ranges(outlook.target.difference(&outlook.owned).copied()),
            group_epoch: plan.epoch,
            state: if outlook.facts.is_empty() { self.group.state() } else { GroupState::Reconciling },
            heartbeat_interval_ms: self.settings.heartbeat_interval_ms(),
            session_timeout_ms: self.settings.session_timeout_ms,
        };
        let reply = Reply::Group(Box::new(GroupReply::Heartbeat(reply)));
        if outlook.facts.is_empty() {
            return Decision::Answer { reply, seen: self.group.last_lsn };
        }
        let facts: Batch<Fact> = outlook.facts.into_iter().map(|fact| Fact::Group(self.id, fact)).collect();
        Decision::Change { facts, reply }
    }

    fn is_free(&self, at: PartitionRef) -> bool {
        self.group.places.get(&at).is_none_or(|place| place.owner == NOBODY)
    }

    /// The id as given, or one that no member has.
    fn id_for(&self, given: &Name) -> Name {
        if !given.is_empty() {
            return given.clone();
        }
        let mut id = format!("member-{}", self.lsn);
        while self.group.by_id.contains_key(id.as_str()) {
            id.push('-');
        }
        id.into()
    }

    /// Streams to subscribe to: each once, in order, with its number of partitions.
    fn streams(&self, streams: &[ResourceId]) -> Result<Vec<(ResourceId, u32)>, Reject> {
        if streams.len() > GROUP_STREAMS_MAX {
            let (size, max) = (streams.len() as u64, GROUP_STREAMS_MAX as u64);
            return Err(Reject::TooLarge { what: "streams", size, max });
        }
        let once: BTreeSet<ResourceId> = streams.iter().copied().collect();
        once.into_iter().map(|stream| Ok((stream, self.partitions_of(stream)?))).collect()
    }

    /// How many partitions a stream has.
    pub(super) fn partitions_of(&self, stream: ResourceId) -> Result<u32, Reject> {
        match self.catalog.and_then(|catalog| catalog.get(stream)) {
            Some(info) => match &info.settings {
                Settings::Stream(settings) => Ok(settings.partitions),
                other => Err(Reject::WrongKind {
                    path: info.path.to_string(),
                    expected: Kind::Stream,
                    actual: other.kind(),
                }),
            },
            None => Err(self.missing(stream)),
        }
    }

    /// A stream that this shard's catalog does not have: deleted, or so new that it has not come here.
    fn missing(&self, stream: ResourceId) -> Reject {
        let known = self.catalog.map_or(CatalogVersion(0), flowmesh_model::Catalog::version);
        if self.catalog.is_none_or(|catalog| stream > catalog.last_id()) {
            return Reject::CatalogBehind { known, wanted: CatalogVersion(known.0 + 1) };
        }
        Reject::ResourceNotFound { path: format!("number {stream}") }
    }
}

fn taken(who: &MemberRef) -> Reject {
    Reject::invalid("member_id", format!("{} is another member's", who.id))
}

fn names(ranges: &[PartitionRange], at: PartitionRef) -> bool {
    ranges.iter().any(|range| {
        range.stream == at.resource && at.partition.checked_sub(range.first).is_some_and(|n| n < range.count)
    })
}
