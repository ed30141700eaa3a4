//! All about a group, for people: who is there, whose each partition is, and why one is not with whom it should be.

use flowmesh_model::group::{
    GroupDescription, HeldUp, MemberDescription, Name, PartitionDescription, ranges,
};
use flowmesh_model::{GroupSettings, MemberNumber, Millis, PartitionRef};

use super::member::Member;
use super::place::Place;
use super::{Group, NOBODY};

impl Group {
    pub(super) fn describe(&self, settings: &GroupSettings, now: Millis) -> GroupDescription {
        let members = self.by_id.values().filter_map(|number| self.member(*number));
        GroupDescription {
            status: self.status(),
            members: members.map(|member| describe_member(member, settings, now)).collect(),
            partitions: self.places.iter().map(|(at, place)| self.describe_place(*at, place)).collect(),
        }
    }

    fn describe_place(&self, at: PartitionRef, place: &Place) -> PartitionDescription {
        PartitionDescription {
            at,
            owner: self.name_of(place.owner),
            target: self.name_of(place.target),
            held_up: self.held_up(at, place),
            committed: place.committed.as_deref().cloned(),
        }
    }

    fn name_of(&self, number: MemberNumber) -> Option<Name> {
        self.member(number).map(|member| member.id.clone())
    }

    /// Why no member works on the partition that shall; `None` if one does.
    fn held_up(&self, at: PartitionRef, place: &Place) -> Option<HeldUp> {
        let away = |number| self.member(number).is_some_and(|member| member.away);
        if place.owner != NOBODY {
            return match place.owner == place.target {
                true if away(place.owner) => Some(HeldUp::Away),
                true => None,
                false => Some(HeldUp::NotReleased),
            };
        }
        let shared = self.watched.get(&at.resource).is_some_and(|watched| watched.subscribers > 0);
        Some(match self.member(place.target) {
            Some(member) if member.away => HeldUp::Away,
            Some(member) if member.revoking > 0 => HeldUp::TargetReleasing,
            None if self.members.is_empty() => HeldUp::NoMembers,
            None if !shared => HeldUp::NotSubscribed,
            // Meant for a member, or dealt out by a tick within a moment.
            Some(_) | None => HeldUp::NotTaken,
        })
    }
}

fn describe_member(member: &Member, settings: &GroupSettings, now: Millis) -> MemberDescription {
    let heard = member.heard.get().unwrap_or(now);
    let revoking_since = (member.revoking > 0).then(|| member.revoking_since.unwrap_or(now));
    MemberDescription {
        id: member.id.clone(),
        instance: member.instance.clone(),
        client: member.client.clone(),
        host: member.host.clone(),
        epoch: member.epoch,
        joined_at: member.joined_at,
        subscribed: member.subscribed.clone(),
        assigned: ranges(member.owned.intersection(&member.target).copied()),
        revoking: ranges(member.owned.difference(&member.target).copied()),
        target: ranges(member.target.iter().copied()),
        away: member.away,
        last_heartbeat: heard,
        expires_at: heard.plus(settings.session_timeout_ms),
        revoke_until: revoking_since.map(|since| since.plus(settings.rebalance_timeout_ms)),
    }
}
