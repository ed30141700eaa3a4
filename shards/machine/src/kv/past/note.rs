//! What was before a fact, noted as it is applied: so recovery notes the same.

use bytes::Bytes;
use flowmesh_model::kv::Side;
use flowmesh_model::kv::fact::KvFact;

use super::{History, record};
use crate::held::Apply;
use crate::kv::Store;
use crate::kv::change::{read_field, read_score};
use crate::kv::pages::Look;
use crate::kv::tree::Cold;
use crate::kv::value::Collection;

/// Bytes of facts that undo, beyond which another record begins.
const PART_BYTES: usize = 64 * 1024;

impl Store {
    /// A key is about to hold something else, or nothing.
    #[inline]
    pub(in crate::kv) fn note_whole(&mut self, cx: &Apply<'_>, key: &[u8]) {
        if self.keeps_history() {
            let value = record::of_entry(self.entry(key));
            self.note(cx, key, value);
        }
    }

    /// Whether what changes is noted.
    #[inline]
    pub(in crate::kv) fn keeps_history(&self) -> bool {
        self.history.as_deref().is_some_and(History::is_on)
    }

    /// Facts but those that set bytes, delete and expire are about to be applied.
    pub(in crate::kv) fn note_fact(&mut self, cx: &Apply<'_>, fact: &KvFact) {
        if !self.keeps_history() {
            return;
        }
        match fact {
            KvFact::Counted { key, .. } => self.note_whole(cx, key),
            KvFact::Copied { to, .. } => self.note_whole(cx, to),
            KvFact::Renamed { key, to } => {
                self.note_whole(cx, to);
                let Some(entry) = self.entry(key) else { return };
                // The collection goes on under the other name, and with it its pages.
                let moved = entry.view().collection().map(|_| record::of_moved(entry, to));
                let value = moved.unwrap_or_else(|| record::of_entry(Some(entry)));
                self.note(cx, key, value);
            }
            // Noted where the key is removed.
            KvFact::Evicted { .. }
            | KvFact::PagesFreed { .. }
            | KvFact::HistoryKept { .. }
            | KvFact::HistoryTrimmed { .. } => {}
            _ => {
                let Some(key) = fact.key() else { return };
                match self.entry(key) {
                    None => self.note_whole(cx, key),
                    Some(entry) => {
                        let undo = entry
                            .view()
                            .collection()
                            .map(|collection| undo(collection, &self.pages.look(collection), fact));
                        let undo = undo.unwrap_or(Ok(Vec::new()));
                        let Ok(undo) = undo else { panic!("a page that changes is in memory: {fact:?}") };
                        self.note_part(cx, key, &undo);
                    }
                }
            }
        }
    }

    fn note(&mut self, cx: &Apply<'_>, key: &[u8], value: Vec<u8>) {
        let Some(history) = &mut self.history else { return };
        // What comes right behind a record of the same key and entry can never be looked at without it; only what undoes
        // something before that is looked at, too.
        let follows = history.last.as_ref().filter(|(_, last, place)| place.lsn == cx.at.lsn && *last == key);
        let is_shown = |(row, ..): &(Bytes, Bytes, _)| history.records.get(row).is_some_and(record::is_part);
        if follows.is_none_or(is_shown) {
            history.push(cx, key, value);
        }
    }

    fn note_part(&mut self, cx: &Apply<'_>, key: &[u8], undo: &[KvFact]) {
        let Some(entry) = self.slab.get(match self.place(key) {
            Some(place) => place,
            None => return,
        }) else {
            return;
        };
        let begin = record::of_part(entry);
        let Some(history) = &mut self.history else { return };
        let mut undo = undo.iter().peekable();
        loop {
            let follows =
                history.last.as_ref().filter(|(_, last, place)| place.lsn == cx.at.lsn && *last == key);
            if let Some((row, ..)) = follows {
                let row = row.clone();
                let Some(value) = history.records.get(&row) else {
                    panic!("a record of this entry is in memory")
                };
                if !record::is_part(value) {
                    return;
                }
                if value.len() < PART_BYTES {
                    let grown = history.records.grow(&row, |value| {
                        while value.len() < PART_BYTES
                            && let Some(fact) = undo.next()
                        {
                            record::add_undo(value, fact);
                        }
                    });
                    if let Some(part) = history.parts.values_mut().next_back() {
                        part.bytes += grown.unwrap_or(0);
                    }
                    if undo.peek().is_none() {
                        return;
                    }
                }
            }
            history.push(cx, key, begin.clone());
            if undo.peek().is_none() {
                return;
            }
        }
    }
}

/// Facts that make of a collection with a change what it is without, the last one first to be applied.
fn undo(collection: &Collection, pages: &Look<'_>, fact: &KvFact) -> Result<Vec<KvFact>, Cold> {
    let items = &collection.items;
    let field_before = |field: &Bytes| -> Result<KvFact, Cold> {
        Ok(match items.get(pages, field)?.map(read_field) {
            Some((end, value)) => KvFact::FieldSet {
                key: Bytes::new(),
                field: field.clone(),
                value: Bytes::copy_from_slice(value),
                expires_at: Some(end).filter(|end| end.0 != 0),
            },
            None => KvFact::FieldRemoved { key: Bytes::new(), field: field.clone(), expired: false },
        })
    };
    let score_before = |member: &Bytes| -> Result<KvFact, Cold> {
        let (key, member) = (Bytes::new(), member.clone());
        Ok(match items.get(pages, &member)?.map(read_score) {
            Some(score) => KvFact::ScoreSet { key, member, score },
            None => KvFact::ScoreRemoved { key, member },
        })
    };
    let value_at = |index: u64| -> Result<Option<Bytes>, Cold> {
        Ok(items.at(pages, index)?.map(|(_, value)| Bytes::copy_from_slice(value)))
    };
    let removed = |index: u64| KvFact::ItemsRemoved { key: Bytes::new(), index, count: 1 };
    Ok(match fact {
        KvFact::FieldSet { field, .. }
        | KvFact::FieldRemoved { field, .. }
        | KvFact::FieldEndSet { field, .. } => vec![field_before(field)?],
        KvFact::MemberAdded { member, .. } | KvFact::MemberRemoved { member, .. } => {
            let (key, member) = (Bytes::new(), member.clone());
            let was_there = items.get(pages, &member)?.is_some();
            vec![if was_there {
                KvFact::MemberAdded { key, member }
            } else {
                KvFact::MemberRemoved { key, member }
            }]
        }
        KvFact::ScoreSet { member, .. } | KvFact::ScoreRemoved { member, .. } => vec![score_before(member)?],
        KvFact::Pushed { side: Side::Front, .. } => vec![removed(0)],
        KvFact::Pushed { side: Side::Back, .. } => vec![removed(items.len())],
        KvFact::ItemInserted { index, .. } => vec![removed(*index)],
        KvFact::ItemSet { index, .. } => value_at(*index)?
            .map(|value| KvFact::ItemSet { key: Bytes::new(), index: *index, value })
            .into_iter()
            .collect(),
        KvFact::ItemsRemoved { index, count, .. } => {
            let (mut cursor, mut undo) = (items.before_rank(pages, *index)?, Vec::new());
            while undo.len() as u64 != *count
                && let Some((_, value)) = cursor.forward()?
            {
                let value = Bytes::copy_from_slice(value);
                undo.push(KvFact::ItemInserted { key: Bytes::new(), index: *index, value });
            }
            undo
        }
        KvFact::EndSet { .. } => Vec::new(),
        other => panic!("no fact about items of a collection: {other:?}"),
    })
}
