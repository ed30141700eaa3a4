//! A group's invariants, and its state as text.

use std::collections::BTreeSet;
use std::fmt::Write;

use flowmesh_model::group::GroupState;
use flowmesh_model::{Lsn, PartitionRef};

use super::member::Member;
use super::place::Place;
use super::{Group, Item, NOBODY, WATCHED_BYTES};
use crate::changes::Seals;

impl Group {
    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        let mut memory_bytes = WATCHED_BYTES * self.watched.len() as u64;
        if let Some(session) = &self.replay {
            memory_bytes += session.memory_bytes();
            session.check();
            assert!(session.version <= self.last_lsn);
        }
        for (number, member) in &self.members {
            assert!(*number > NOBODY && *number <= self.last_member);
            memory_bytes += member.memory_bytes();
            self.check_member(member);
            assert_eq!(self.by_id.get(&member.id), Some(number));
            let by_instance = member.instance.as_ref().and_then(|instance| self.by_instance.get(instance));
            assert_eq!(by_instance.is_some(), member.instance.is_some());
            assert!(by_instance.is_none_or(|other| other == number));
            let (owned, target): (BTreeSet<PartitionRef>, BTreeSet<PartitionRef>) = (
                self.places.iter().filter(|(_, p)| p.owner == *number).map(|(at, _)| *at).collect(),
                self.places.iter().filter(|(_, p)| p.target == *number).map(|(at, _)| *at).collect(),
            );
            assert_eq!((&member.owned, &member.target), (&owned, &target));
            if seals.is_listed(member.mark) && seals.are_made() {
                assert!(self.changes.has_listed(&Item::Member(*number)), "a member is marked but not listed");
            }
        }
        assert_eq!(self.by_id.len(), self.members.len());
        let instances = self.members.values().filter(|member| member.instance.is_some()).count();
        assert_eq!(self.by_instance.len(), instances);
        for (at, place) in &self.places {
            memory_bytes += place.memory_bytes();
            self.check_place(*at, place);
            if seals.is_listed(place.mark) && seals.are_made() {
                assert!(self.changes.has_listed(&Item::Place(*at)), "place {at} is marked but not listed");
            }
        }
        assert_eq!(self.memory_bytes, memory_bytes);
        assert_eq!(self.empty_since.is_none(), !self.members.is_empty());
        self.check_counts();
    }

    fn check_member(&self, member: &Member) {
        assert!(member.oldest <= member.epoch && member.epoch <= self.epoch);
        assert!(member.subscribed.is_sorted());
        let revoking = member.owned.difference(&member.target).count();
        assert_eq!(member.revoking, revoking);
        assert!(member.version <= self.last_lsn);
        assert!(
            member
                .owned
                .iter()
                .all(|at| self.places.get(at).is_some_and(|place| place.since <= member.epoch)),
            "what a member owns it was given in an epoch it had"
        );
    }

    fn check_place(&self, at: PartitionRef, place: &Place) {
        let watched = self.watched.get(&at.resource).is_some_and(|watched| at.partition < watched.partitions);
        assert!(watched || place.owner != NOBODY || place.committed.is_some(), "nothing holds place {at}");
        assert!(place.target == NOBODY || watched, "a partition that nobody shares is meant for somebody");
        let target = self.member(place.target);
        assert!(target.is_none_or(|member| member.subscribes(at.resource)), "meant for a subscriber");
        assert_eq!(target.is_some(), place.target != NOBODY);
        assert_eq!(self.member(place.owner).is_some(), place.owner != NOBODY);
        let revoked = place.owner != NOBODY && place.owner != place.target;
        assert_eq!(revoked, place.asked != Lsn(0), "an owner is asked to let go of what it must and no more");
    }

    fn check_counts(&self) {
        let count = |of: fn(&Place) -> bool| self.places.values().filter(|place| of(place)).count();
        assert_eq!(self.offsets, count(|place| place.committed.is_some()));
        assert_eq!(self.targeted, count(|place| place.target != NOBODY));
        assert_eq!(self.assigned, count(Place::is_assigned));
        assert_eq!(self.unsettled, count(|place| !place.is_settled()));
        assert_eq!(self.metadata_bytes, self.places.values().map(Place::metadata_bytes).sum::<usize>());
        assert_eq!(self.current, self.members.values().filter(|member| member.epoch == self.epoch).count());
        for (stream, watched) in &self.watched {
            assert!(watched.partitions > 0);
            assert_eq!(
                self.places_of(*stream).filter(|(at, _)| at.partition < watched.partitions).count(),
                watched.partitions as usize
            );
            let subscribers = self.members.values().filter(|member| member.subscribes(*stream)).count();
            assert_eq!(watched.subscribers as usize, subscribers);
        }
        if self.state() == GroupState::Stable {
            assert!(self.places.values().all(Place::is_settled));
        }
    }

    /// The state as text.
    pub fn dump(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "  epoch {} last member {} empty since {:?} lsn {}",
            self.epoch, self.last_member, self.empty_since, self.last_lsn
        );
        if let Some(session) = &self.replay {
            let _ = writeln!(out, "  {session:?}");
        }
        for (stream, watched) in &self.watched {
            let _ = writeln!(out, "  stream {stream} partitions {}", watched.partitions);
        }
        for (number, m) in &self.members {
            let _ = writeln!(
                out,
                "  member {number} {:?} instance {:?} client {:?} host {:?} joined {} subscribed {:?} epoch {} oldest {} \
                 version {} away {}",
                m.id,
                m.instance,
                m.client,
                m.host,
                m.joined_at,
                m.subscribed,
                m.epoch,
                m.oldest,
                m.version,
                m.away
            );
        }
        for (at, place) in &self.places {
            let _ = writeln!(
                out,
                "  place {at} target {} owner {} since {} asked {} committed {:?}",
                place.target, place.owner, place.since, place.asked, place.committed
            );
        }
    }
}
