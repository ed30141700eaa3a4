//! How facts change a group. Whatever contradicts the state is a bug, or another machine's log.

use bytes::Bytes;
use flowmesh_model::codec::detached;
use flowmesh_model::group::fact::{GroupFact, Move, NewMember};
use flowmesh_model::group::{CommittedOffset, NewOffset, PartitionRange};
use flowmesh_model::replay::fact::ReplayFact;
use flowmesh_model::{GroupEpoch, Lsn, MemberNumber, Millis, Offset, PartitionRef, ResourceId, Space};

use super::member::{self, Member};
use super::place::{self, Place};
use super::{Group, Item, NOBODY, WATCHED_BYTES, Watched};
use crate::changes::{Mark, Touch, image};
use crate::held::Apply;
use crate::replay::Session;

impl Group {
    /// Makes a fact true. Returns whether it may be news to a member that waits for some.
    pub fn apply(&mut self, cx: &mut Apply<'_>, fact: GroupFact) -> bool {
        if self.members.is_empty() && self.empty_since.is_none() {
            self.empty_since = Some(cx.at.time);
        }
        self.last_lsn = cx.at.lsn;
        match fact {
            GroupFact::MemberJoined(number, new) => self.joined(cx, number, *new),
            GroupFact::MemberReplaced(number, new) => {
                self.replaced(cx, number, *new);
                return true;
            }
            GroupFact::MemberLeft(number, _) => {
                self.left(cx, number);
                return true;
            }
            GroupFact::MemberAway(number) => self.change_member(cx, number, |member| member.away = true),
            GroupFact::Subscribed(number, streams) => self.subscribed(cx, number, streams),
            GroupFact::StreamWatched(stream, partitions) => {
                self.watch(cx, stream, partitions);
                return true;
            }
            GroupFact::StreamForgotten(stream) => {
                self.forget_stream(cx, stream);
                return true;
            }
            GroupFact::Assigned(epoch, moves) => {
                self.reassign(cx, epoch, &moves);
                return true;
            }
            GroupFact::PartitionsGiven(number, ranges) => self.given(cx, number, &ranges),
            GroupFact::PartitionsReleased(number, ranges) => {
                self.released(cx, number, &ranges);
                return true;
            }
            GroupFact::MemberEpoch { member, epoch, oldest } => self.moved_up(cx, member, epoch, oldest),
            GroupFact::OffsetsCommitted(offsets) => {
                self.count_passed(&offsets);
                self.commit(cx, offsets);
            }
            GroupFact::OffsetsForgotten(ranges) => {
                for at in ranges.iter().flat_map(|range| range.iter()) {
                    self.change_place(cx, at, |place| place.committed = None);
                }
            }
        }
        false
    }

    /// Makes a fact of its replay session true.
    pub fn apply_replay(&mut self, cx: &mut Apply<'_>, fact: ReplayFact) {
        if self.members.is_empty() && self.empty_since.is_none() {
            self.empty_since = Some(cx.at.time);
        }
        self.last_lsn = cx.at.lsn;
        self.memory_bytes -= self.replay.as_ref().map_or(0, |session| session.memory_bytes());
        if let ReplayFact::Begun { speed, .. } = &fact {
            assert!(self.replay.is_none(), "a replay session begins once");
            self.replay = Some(Box::new(Session::begun(cx.at, *speed)));
        } else if let Some(session) = &mut self.replay {
            session.take(cx.at, &fact);
        } else {
            panic!("a fact about a replay session that has not begun");
        }
        self.memory_bytes += self.replay.as_ref().map_or(0, |session| session.memory_bytes());
        match fact {
            ReplayFact::Begun { positions, .. } | ReplayFact::Sought { positions, .. } => {
                self.commit(cx, at_positions(positions));
            }
            ReplayFact::Stepped { positions } => {
                let offsets = at_positions(positions);
                self.count_passed(&offsets);
                self.commit(cx, offsets);
            }
            ReplayFact::Started { .. }
            | ReplayFact::Paused
            | ReplayFact::Resumed { .. }
            | ReplayFact::Stopped
            | ReplayFact::SpeedSet { .. }
            | ReplayFact::Failed { .. }
            | ReplayFact::Completed => {}
        }
    }

    /// A replay session counts the records that it goes past.
    fn count_passed(&mut self, offsets: &[NewOffset]) {
        let Some(mut session) = self.replay.take() else { return };
        let before = |new: &NewOffset| self.places.get(&new.at)?.committed.as_ref().map(|is| is.offset);
        let passed = |new: &NewOffset| new.offset.0.saturating_sub(before(new).unwrap_or(new.offset).0);
        session.records_total += offsets.iter().map(passed).sum::<u64>();
        self.replay = Some(session);
    }

    /// Something may be due now that was not: the next tick looks.
    fn look(&mut self, now: Millis) {
        self.due = Some(self.due.map_or(now, |due| due.min(now)));
    }

    fn joined(&mut self, cx: &mut Apply<'_>, number: MemberNumber, new: NewMember) {
        assert!(number > self.last_member, "numbers of members only grow");
        self.last_member = number;
        self.empty_since = None;
        self.count_subscribers(&new.subscribed, true);
        self.by_id.insert(new.id.clone(), number);
        if let Some(instance) = &new.instance {
            self.by_instance.insert(instance.clone(), number);
        }
        let mut member = Member::new(new, cx.at.time);
        self.current += usize::from(member.epoch == self.epoch);
        self.memory_bytes += member.memory_bytes();
        let touch = cx.seals.touch(&mut member.mark);
        self.members.insert(number, Box::new(member));
        if touch != Touch::Known {
            self.list(Item::Member(number));
        }
        self.look(cx.at.time);
    }

    fn replaced(&mut self, cx: &mut Apply<'_>, number: MemberNumber, new: NewMember) {
        let (now, lsn) = (cx.at.time, cx.at.lsn);
        let before = self.members.get(&number).map(|member| member.id.clone());
        let before = before.unwrap_or_else(|| panic!("no such member: {number}"));
        self.by_id.remove(&before);
        self.by_id.insert(new.id.clone(), number);
        self.change_member(cx, number, |member| {
            (member.id, member.client, member.host) = (new.id, new.client, new.host);
            (member.joined_at, member.version) = (now, lsn);
            member.away = false;
            member.heard.set(Some(now));
        });
        self.look(now);
    }

    fn left(&mut self, cx: &mut Apply<'_>, number: MemberNumber) {
        let Some(member) = self.members.get(&number) else { panic!("no such member: {number}") };
        let (owned, target) = (member.owned.clone(), member.target.clone());
        for at in owned {
            self.disown(cx, at);
        }
        for at in target {
            self.retarget(cx, at, NOBODY);
        }
        let mut member = self.members.remove(&number).unwrap_or_else(|| panic!("no such member: {number}"));
        if cx.seals.touch(&mut member.mark) == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Groups, cx.home.member_key(number), member::encode(&member)));
        }
        if member.mark.in_index() {
            self.changes.list_gone(Item::Member(number));
        }
        self.count_subscribers(&member.subscribed, false);
        self.current -= usize::from(member.epoch == self.epoch);
        self.memory_bytes -= member.memory_bytes();
        self.by_id.remove(&member.id);
        if let Some(instance) = &member.instance {
            self.by_instance.remove(instance);
        }
        if self.members.is_empty() {
            self.empty_since = Some(cx.at.time);
        }
        self.look(cx.at.time);
    }

    fn subscribed(&mut self, cx: &mut Apply<'_>, number: MemberNumber, streams: Vec<ResourceId>) {
        self.count_subscribers(&streams, true);
        let mut before = Vec::new();
        self.change_member(cx, number, |member| before = std::mem::replace(&mut member.subscribed, streams));
        self.count_subscribers(&before, false);
        self.look(cx.at.time);
    }

    fn count_subscribers(&mut self, streams: &[ResourceId], more: bool) {
        for stream in streams {
            if let Some(watched) = self.watched.get_mut(stream) {
                let count = &mut watched.subscribers;
                *count = if more { *count + 1 } else { *count - 1 };
            }
        }
    }

    fn watch(&mut self, cx: &mut Apply<'_>, stream: ResourceId, partitions: u32) {
        let watched_before = self.watched.remove(&stream);
        self.memory_bytes -= watched_before.map_or(0, |_| WATCHED_BYTES);
        if partitions > 0 {
            let subscribers = watched_before.map_or_else(
                || self.members.values().filter(|member| member.subscribes(stream)).count() as u32,
                |watched| watched.subscribers,
            );
            self.watched.insert(stream, Watched { partitions, subscribers });
            self.memory_bytes += WATCHED_BYTES;
        }
        let known: Vec<u32> = self.places_of(stream).map(|(at, _)| at.partition).collect();
        for partition in known.into_iter().filter(|partition| *partition >= partitions) {
            self.retarget(cx, PartitionRef { resource: stream, partition }, NOBODY);
        }
        for partition in 0..partitions {
            let at = PartitionRef { resource: stream, partition };
            if !self.places.contains_key(&at) {
                self.change_place(cx, at, |_| {});
            }
        }
        self.look(cx.at.time);
    }

    fn forget_stream(&mut self, cx: &mut Apply<'_>, stream: ResourceId) {
        self.memory_bytes -= self.watched.remove(&stream).map_or(0, |_| WATCHED_BYTES);
        let subscribers = self.members.iter().filter(|(_, member)| member.subscribes(stream));
        for number in subscribers.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.change_member(cx, number, |member| member.subscribed.retain(|other| *other != stream));
        }
        for at in self.places_of(stream).map(|(at, _)| *at).collect::<Vec<_>>() {
            self.retarget(cx, at, NOBODY);
            self.disown(cx, at);
            // Without an offset nothing holds the place any more.
            if self.places.contains_key(&at) {
                self.change_place(cx, at, |place| place.committed = None);
            }
        }
        self.look(cx.at.time);
    }

    fn reassign(&mut self, cx: &mut Apply<'_>, epoch: GroupEpoch, moves: &[Move]) {
        assert!(epoch > self.epoch, "epochs only grow");
        self.epoch = epoch;
        self.current = 0;
        for step in moves {
            for at in step.partitions.iter() {
                self.retarget(cx, at, step.to);
            }
        }
        self.look(cx.at.time);
    }

    /// Whose a partition shall be. Its owner, if another, must let go of it.
    fn retarget(&mut self, cx: &mut Apply<'_>, at: PartitionRef, to: MemberNumber) {
        let Some(place) = self.places.get(&at) else { panic!("no such place: {at}") };
        let (from, owner, asked) = (place.target, place.owner, place.asked);
        if from != to {
            if let Some(member) = self.members.get_mut(&from) {
                member.target.remove(&at);
            }
            if let Some(member) = self.members.get_mut(&to) {
                member.target.insert(at);
            }
        }
        let revoked = owner != NOBODY && owner != to;
        if revoked != (asked != Lsn(0)) {
            self.revoke(cx, owner, revoked);
        }
        let asked = match (revoked, asked) {
            (false, _) => Lsn(0),
            (true, Lsn(0)) => cx.at.lsn,
            (true, since) => since,
        };
        self.change_place(cx, at, |place| (place.target, place.asked) = (to, asked));
    }

    /// The member must let go of one more partition, or of one less. Its time begins with the first one, and again with
    /// each that it lets go of.
    fn revoke(&mut self, cx: &mut Apply<'_>, owner: MemberNumber, more: bool) {
        let (now, lsn) = (cx.at.time, cx.at.lsn);
        self.change_member(cx, owner, |member| {
            member.revoking = if more { member.revoking + 1 } else { member.revoking - 1 };
            member.version = lsn;
            if member.revoking == 0 {
                member.revoking_since = None;
            } else if member.revoking_since.is_none() || !more {
                member.revoking_since = Some(now);
            }
        });
        self.look(now);
    }

    fn given(&mut self, cx: &mut Apply<'_>, number: MemberNumber, ranges: &[PartitionRange]) {
        let lsn = cx.at.lsn;
        let mut epoch = GroupEpoch(0);
        self.change_member(cx, number, |member| {
            epoch = member.epoch;
            member.version = lsn;
            member.owned.extend(ranges.iter().flat_map(|range| range.iter()));
        });
        for at in ranges.iter().flat_map(|range| range.iter()) {
            self.change_place(cx, at, |place| {
                assert!(place.owner == NOBODY, "a partition is given that has an owner");
                assert_eq!(place.target, number, "a partition is given to whom it is meant for");
                (place.owner, place.since) = (number, epoch);
            });
        }
    }

    fn released(&mut self, cx: &mut Apply<'_>, number: MemberNumber, ranges: &[PartitionRange]) {
        for at in ranges.iter().flat_map(|range| range.iter()) {
            assert!(
                self.places.get(&at).is_some_and(|place| place.owner == number),
                "a member lets go of what it owns"
            );
            self.disown(cx, at);
        }
    }

    /// Nobody owns the partition any more.
    fn disown(&mut self, cx: &mut Apply<'_>, at: PartitionRef) {
        let Some(place) = self.places.get(&at).filter(|place| place.owner != NOBODY) else { return };
        let (owner, asked, lsn) = (place.owner, place.asked, cx.at.lsn);
        if asked != Lsn(0) {
            self.revoke(cx, owner, false);
        }
        self.change_member(cx, owner, |member| {
            member.version = lsn;
            member.owned.remove(&at);
        });
        self.change_place(cx, at, |place| {
            (place.owner, place.asked, place.since) = (NOBODY, Lsn(0), GroupEpoch(0));
        });
    }

    fn moved_up(&mut self, cx: &mut Apply<'_>, number: MemberNumber, epoch: GroupEpoch, oldest: GroupEpoch) {
        let lsn = cx.at.lsn;
        let was_current = self.member(number).is_some_and(|member| member.epoch == self.epoch);
        self.change_member(cx, number, |member| {
            assert!(epoch >= member.epoch && oldest <= epoch, "a member's epoch only grows");
            (member.epoch, member.oldest, member.version) = (epoch, oldest, lsn);
        });
        self.current = self.current + usize::from(epoch == self.epoch) - usize::from(was_current);
    }

    fn commit(&mut self, cx: &mut Apply<'_>, offsets: Vec<NewOffset>) {
        let committed_at = cx.at.time;
        for NewOffset { at, offset, metadata } in offsets {
            let metadata = detached(&metadata);
            self.change_place(cx, at, |place| {
                place.committed = Some(Box::new(CommittedOffset { offset, committed_at, metadata }));
            });
        }
        if self.due.is_none() {
            self.look(committed_at);
        }
    }

    /// Changes a member.
    fn change_member(&mut self, cx: &mut Apply<'_>, number: MemberNumber, change: impl FnOnce(&mut Member)) {
        let member = self.members.get_mut(&number).unwrap_or_else(|| panic!("no such member: {number}"));
        let touch = cx.seals.touch(&mut member.mark);
        if touch == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Groups, cx.home.member_key(number), member::encode(member)));
        }
        let before = member.memory_bytes();
        change(member);
        self.memory_bytes = self.memory_bytes + member.memory_bytes() - before;
        if touch != Touch::Known {
            self.list(Item::Member(number));
        }
    }

    /// Changes a place, which is there as long as something holds it.
    fn change_place(&mut self, cx: &mut Apply<'_>, at: PartitionRef, change: impl FnOnce(&mut Place)) {
        let mut place = match self.places.remove(&at) {
            Some(place) => {
                self.uncount(&place);
                place
            }
            None => Place { mark: Mark::new(self.changes.is_back(&Item::Place(at))), ..Place::default() },
        };
        let touch = cx.seals.touch(&mut place.mark);
        if touch == Touch::CaptureAndList {
            cx.seals.capture(image(Space::Groups, cx.home.place_key(at), place::encode(&place)));
        }
        change(&mut place);
        let watched = self.watched.get(&at.resource).is_some_and(|watched| at.partition < watched.partitions);
        if watched || place.owner != NOBODY || place.committed.is_some() {
            self.count(&place);
            self.places.insert(at, place);
            if touch != Touch::Known {
                self.list(Item::Place(at));
            }
        } else {
            debug_assert!(place.target == NOBODY, "nobody is meant to own what nobody subscribes to");
            if place.mark.in_index() {
                self.changes.list_gone(Item::Place(at));
            }
        }
    }

    /// Lists a change of an item that is there: of one that is not, thinning out would forget it.
    fn list(&mut self, item: Item) {
        self.changes.list(item);
        if self.changes.is_stale(self.members.len() + self.places.len()) {
            self.changes.thin(|item| match item {
                Item::Member(number) => self.members.contains_key(number),
                Item::Place(at) => self.places.contains_key(at),
            });
        }
    }
}

fn at_positions(positions: Vec<(PartitionRef, Offset)>) -> Vec<NewOffset> {
    let offset = |(at, offset)| NewOffset { at, offset, metadata: Bytes::new() };
    positions.into_iter().map(offset).collect()
}
