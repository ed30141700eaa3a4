//! What time and the catalog bring: sessions end, streams grow and go, partitions are dealt out anew, offsets expire.
//!
//! A tick does one of these, the first that there is something to do for, so that each rests on what is true by then:
//!
//! 1. members whose session is over, or who did not let go in time, are out;
//! 2. deleted streams are forgotten, streams that have grown are shared in full;
//! 3. partitions that are meant for nobody, though somebody subscribes, are dealt out;
//! 4. offsets of a group that has long had no members are forgotten.

use flowmesh_model::group::fact::{GroupFact, LeaveCause};
use flowmesh_model::group::ranges;
use flowmesh_model::{
    Catalog, Fact, GroupSettings, Millis, PartitionRef, ResourceId, ResourceInfo, Settings,
};

use super::Group;
use super::member::Member;

/// Offsets that one fact forgets: a tick is short.
const FORGET_MAX: usize = 1_000;

impl Group {
    /// When something is due next; may be early, never late.
    #[inline]
    pub fn next_due(&self) -> Option<Millis> {
        self.due
    }

    /// Makes the next tick look at everything: settings or streams may have changed.
    pub fn look_at_all(&mut self) {
        self.due = Some(Millis(0));
    }

    /// After a start: nobody has missed a heartbeat, each session begins anew with the next tick.
    pub fn begin_sessions(&mut self) {
        for member in self.members.values_mut() {
            member.heard.set(None);
            member.revoking_since = None;
        }
        self.look_at_all();
    }

    /// Appends what is due now, at most `facts_max` facts. If that is nothing, [`Group::next_due`] is exact from then on.
    pub fn tick(
        &mut self,
        id: ResourceId,
        info: Option<&ResourceInfo>,
        catalog: Option<&Catalog>,
        now: Millis,
        facts_max: usize,
        facts: &mut Vec<Fact>,
    ) {
        let (Some(Settings::Group(settings)), Some(catalog)) = (info.map(|info| &info.settings), catalog)
        else {
            // Not known yet, or deleted: the next catalog says so.
            self.due = None;
            return;
        };
        for member in self.members.values_mut() {
            if member.heard.get().is_none() {
                member.heard.set(Some(now));
            }
            if member.revoking > 0 && member.revoking_since.is_none() {
                member.revoking_since = Some(now);
            }
        }
        let before = facts.len();
        let mut add = |new: Vec<GroupFact>| {
            facts.extend(new.into_iter().take(facts_max).map(|fact| Fact::Group(id, fact)));
            facts.len() > before
        };
        let _ = add(self.departures(settings, now))
            || add(self.stream_news(catalog))
            || (self.needs_plan() && add(self.plan(settings.assignor, None).facts))
            || add(self.forgotten(settings, now));
        if facts.len() == before {
            self.due = self.due_after(settings);
        }
    }

    fn departures(&self, settings: &GroupSettings, now: Millis) -> Vec<GroupFact> {
        let left = self.members.iter().filter_map(|(number, member)| {
            let over = |at: Option<Millis>| at.is_some_and(|at| at <= now);
            let cause = if over(member.expires_at(settings.session_timeout_ms)) {
                LeaveCause::Expired
            } else if over(member.releases_by(settings.rebalance_timeout_ms)) {
                LeaveCause::Unreleased
            } else {
                return None;
            };
            Some(GroupFact::MemberLeft(*number, cause))
        });
        left.collect()
    }

    fn stream_news(&self, catalog: &Catalog) -> Vec<GroupFact> {
        let mut news = Vec::new();
        let mut next = Some(ResourceId(0));
        while let Some(from) = next {
            let from = PartitionRef { resource: from, partition: 0 };
            let Some(stream) = self.places.range(from..).next().map(|(at, _)| at.resource) else { break };
            next = stream.0.checked_add(1).map(ResourceId);
            match catalog.get(stream).map(|info| info.settings.partitions()) {
                Some(partitions) => {
                    let known = self.watched.get(&stream).filter(|watched| watched.subscribers > 0);
                    if known.is_some_and(|watched| watched.partitions < partitions) {
                        news.push(GroupFact::StreamWatched(stream, partitions));
                    }
                }
                None if stream <= catalog.last_id() => news.push(GroupFact::StreamForgotten(stream)),
                None => {}
            }
        }
        news
    }

    fn forgotten(&self, settings: &GroupSettings, now: Millis) -> Vec<GroupFact> {
        let over = self.offset_ends(settings).filter(|(_, end)| *end <= now).map(|(at, _)| at);
        let over = ranges(over.take(FORGET_MAX));
        if over.is_empty() { Vec::new() } else { vec![GroupFact::OffsetsForgotten(over)] }
    }

    /// When each committed offset is forgotten, if nothing happens.
    fn offset_ends(&self, settings: &GroupSettings) -> impl Iterator<Item = (PartitionRef, Millis)> {
        let kept_ms = settings.offsets_retention_ms;
        // How far a replay session is, is kept as long as it is.
        let empty_since = self.empty_since.filter(|_| self.replay.is_none());
        let places = empty_since.map(|since| (since, &self.places));
        places.into_iter().flat_map(move |(since, places)| {
            places.iter().filter_map(move |(at, place)| {
                let committed_at = place.committed.as_ref()?.committed_at;
                Some((*at, committed_at.max(since).plus(kept_ms)))
            })
        })
    }

    fn due_after(&self, settings: &GroupSettings) -> Option<Millis> {
        let members = self.members.values().flat_map(|member| {
            let ends = [
                member.expires_at(settings.session_timeout_ms),
                member.releases_by(settings.rebalance_timeout_ms),
            ];
            ends.into_iter().flatten()
        });
        members.chain(self.offset_ends(settings).map(|(_, end)| end)).min()
    }
}

impl Member {
    /// When it is out unless it lets go of what it must.
    fn releases_by(&self, rebalance_timeout_ms: u64) -> Option<Millis> {
        self.revoking_since.filter(|_| self.revoking > 0).map(|since| since.plus(rebalance_timeout_ms))
    }
}
