//! A group's part of checkpoints.

use bytes::{Bytes, BytesMut};
use flowmesh_model::codec::{Malformed, Reader, put_varint};
use flowmesh_model::{GroupEpoch, IndexWrite, Lsn, MemberNumber, Millis, ResourceId, Space};

use super::{Group, Item, NOBODY, WATCHED_BYTES, Watched, member, place};
use crate::changes::{Change, Mark, Seals, Touch, image, removal};
use crate::keys::{GroupKey, Home};
use crate::replay::Session;

impl Group {
    /// Appends what the group counts and which streams it shares, in their form in the index.
    ///
    /// | field | size | meaning |
    /// |---|---|---|
    /// | epoch, last member, last LSN | varint each | |
    /// | empty since | varint | ms + 1; 0: it has members |
    /// | streams | varint, then that many times: stream, partitions | those that members share |
    /// | session | the rest | of the replay session that it is the sandbox of, if it is |
    pub fn encode_counters(&self, out: &mut BytesMut) {
        put_varint(out, self.epoch.0);
        put_varint(out, u64::from(self.last_member.0));
        put_varint(out, self.last_lsn.0);
        put_varint(out, self.empty_since.map_or(0, |since| since.0.saturating_add(1)));
        put_varint(out, self.watched.len() as u64);
        for (stream, watched) in &self.watched {
            put_varint(out, stream.0);
            put_varint(out, u64::from(watched.partitions));
        }
        if let Some(session) = &self.replay {
            session.encode(out);
        }
    }

    /// Reads what [`Group::encode_counters`] wrote.
    pub fn restore_counters(&mut self, reader: &mut Reader) -> Result<(), Malformed> {
        self.epoch = GroupEpoch(reader.varint()?);
        self.last_member = MemberNumber(reader.varint_u32()?);
        self.last_lsn = Lsn(reader.varint()?);
        self.empty_since = reader.varint()?.checked_sub(1).map(Millis);
        for _ in 0..reader.varint()? {
            let (stream, partitions) = (ResourceId(reader.varint()?), reader.varint_u32()?);
            self.watched.insert(stream, Watched { partitions, subscribers: 0 });
        }
        self.memory_bytes = WATCHED_BYTES * self.watched.len() as u64;
        if !reader.is_empty() {
            let session = Session::decode(reader)?;
            self.memory_bytes += session.memory_bytes();
            self.replay = Some(Box::new(session));
        }
        Ok(())
    }

    /// Takes a member or a place out of the index.
    pub fn restore_item(&mut self, key: &[u8], value: Bytes) -> Result<(), Malformed> {
        match GroupKey::read(key)? {
            GroupKey::Member(number) => {
                let member = member::decode(value)?;
                if number > self.last_member || number == NOBODY {
                    return Err(Malformed("a member beyond its group's last"));
                }
                self.memory_bytes += member.memory_bytes();
                self.members.insert(number, Box::new(member));
            }
            GroupKey::Place(at) => {
                let place = place::decode(value)?;
                self.count(&place);
                self.places.insert(at, place);
            }
        }
        Ok(())
    }

    /// All of the group has been restored: builds what follows from it.
    pub fn finish_restore(&mut self) -> Result<(), Malformed> {
        for (number, member) in &self.members {
            for stream in &member.subscribed {
                if let Some(watched) = self.watched.get_mut(stream) {
                    watched.subscribers += 1;
                }
            }
            let named = self.by_id.insert(member.id.clone(), *number);
            let instance = member.instance.clone();
            let instance = instance.and_then(|instance| self.by_instance.insert(instance, *number));
            if named.is_some() || instance.is_some() {
                return Err(Malformed("two members with one name"));
            }
        }
        self.current = self.members.values().filter(|member| member.epoch == self.epoch).count();
        for (at, place) in &self.places {
            if place.target != NOBODY {
                let member = self.members.get_mut(&place.target);
                member.ok_or(Malformed("a partition for no member"))?.target.insert(*at);
            }
            if place.owner != NOBODY {
                let member = self.members.get_mut(&place.owner);
                let member = member.ok_or(Malformed("a partition of no member"))?;
                member.owned.insert(*at);
                member.revoking += usize::from(place.owner != place.target);
            }
        }
        self.look_at_all();
        Ok(())
    }

    /// Takes the changes into the sealed state.
    pub fn seal(&mut self) {
        self.changes.seal();
    }

    /// Writes at most `items_max` sealed changes. Returns how many it looked at: fewer means that is all.
    pub fn collect(
        &mut self,
        home: &Home,
        seals: &Seals,
        items_max: usize,
        out: &mut Vec<IndexWrite>,
    ) -> usize {
        for count in 0..items_max {
            match self.changes.next() {
                None => return count,
                Some(Change::Gone(item)) => out.push(removal(Space::Groups, key(home, item))),
                Some(Change::Listed(item)) => {
                    if let Some(value) = self.sealed_image(seals, item) {
                        out.push(image(Space::Groups, key(home, item), value));
                    }
                }
            }
        }
        items_max
    }

    /// The image of an item that is as it was at the seal; it counts as written.
    fn sealed_image(&mut self, seals: &Seals, item: Item) -> Option<Bytes> {
        let mark = self.mark(item).filter(|mark| seals.is_sealed(**mark))?;
        Seals::written(mark);
        match item {
            Item::Member(number) => self.members.get(&number).map(|member| member::encode(member)),
            Item::Place(at) => self.places.get(&at).map(place::encode),
        }
    }

    fn mark(&mut self, item: Item) -> Option<&mut Mark> {
        match item {
            Item::Member(number) => self.members.get_mut(&number).map(|member| &mut member.mark),
            Item::Place(at) => self.places.get_mut(&at).map(|place| &mut place.mark),
        }
    }

    /// The sealed state is in the index.
    pub fn sealed_written(&mut self) {
        self.changes.sealed_written();
    }

    /// The sealed state did not get into the index.
    pub fn unseal(&mut self, seals: &Seals) {
        let (changed, gone) = self.changes.unseal();
        for item in changed {
            if self.mark(item).is_some_and(|mark| seals.touch(mark) != Touch::Known) {
                self.changes.list(item);
            }
        }
        for item in gone {
            match self.mark(item) {
                Some(mark) => mark.set_in_index(),
                None => self.changes.list_gone(item),
            }
        }
    }

    /// Takes at most `items_max` items of a dropped group out of memory and appends the keys the index has of them to
    /// `gone`. Returns how many it took: fewer means that is all.
    pub fn bury(&mut self, home: &Home, items_max: usize, gone: &mut Vec<(Space, Bytes)>) -> usize {
        for count in 0..items_max {
            let (item, in_index) = if let Some((number, member)) = self.members.pop_first() {
                (Item::Member(number), member.mark.in_index())
            } else if let Some((at, place)) = self.places.pop_first() {
                (Item::Place(at), place.mark.in_index())
            } else if let Some(Change::Gone(item)) = self.changes.next() {
                (item, true)
            } else {
                return count;
            };
            if in_index {
                gone.push((Space::Groups, key(home, item)));
            }
        }
        items_max
    }
}

fn key(home: &Home, item: Item) -> Bytes {
    match item {
        Item::Member(number) => home.member_key(number),
        Item::Place(at) => home.place_key(at),
    }
}
