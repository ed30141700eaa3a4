//! A store's invariants, and its state as text.

use std::fmt::Write;

use bytes::Bytes;
use flowmesh_model::kv::KvType;
use flowmesh_model::{Millis, Space};

use super::change::{self, read_field};
use super::cold::ColdCount;
use super::tree::Order;
use super::value::Collection;
use super::{Entry, Store, View, index, memory_bytes};
use crate::changes::Seals;
use crate::keys::Home;

impl Store {
    /// Checks every invariant.
    pub fn check(&self, seals: &Seals) {
        let (mut memory, mut expiring, mut pages, mut cold) = (0, 0, 0, ColdCount::default());
        for place in self.ordered.iter() {
            let Some(entry) = self.slab.get(place) else { panic!("a key in order that is not there") };
            assert_eq!(self.place(entry.key()), Some(place), "a key in order but not in the table");
            let due = entry.next_end();
            memory += memory_bytes(entry, due);
            if due.0 != 0 {
                assert!(self.expiry.contains(&(due, place)));
                expiring += 1;
            }
            cold.add(entry);
            assert!(
                !entry.is_cold() || entry.mark.is_settled(),
                "only what the index has is cold: {entry:?}"
            );
            if let Some(collection) = entry.view().collection() {
                pages += self.check_collection(collection);
            }
            if seals.is_listed(entry.mark) && seals.are_made() {
                assert!(self.changes.has_listed(&place), "a key is marked but not listed: {entry:?}");
            }
        }
        assert_eq!(self.cold, cold);
        self.slab.check();
        self.ordered.check(&self.slab);
        assert_eq!(self.slab.len(), self.ordered.len());
        assert_eq!(self.table.len(), self.ordered.len());
        assert_eq!(self.expiry.len(), expiring);
        assert_eq!(self.memory_bytes, memory);
        self.pages.check(seals, pages);
        if let Some(eviction) = &self.eviction {
            eviction.check(&self.slab);
        }
    }

    /// Checks a collection. Returns how many pages it has.
    fn check_collection(&self, collection: &Collection) -> usize {
        let pages = self.pages.look(collection);
        assert!(collection.items.len() > 0, "a collection without members is gone");
        let mut numbers = collection.items.check(&pages, collection.order_of_items());
        numbers.extend(collection.order.check(&pages, Order::ByKey));
        assert!(
            numbers.iter().all(|no| *no < collection.next_page),
            "numbers of pages are given out in order"
        );
        let mut cursor = collection.items.before_rank(&pages, 0).unwrap_or_else(|_| panic!("in memory"));
        let (mut ordered, mut first, mut last) = (0, Millis(0), Millis(0));
        while let Ok(Some((key, item))) = cursor.forward() {
            let by = match collection.holds {
                KvType::SortedSet => item.to_vec(),
                KvType::Hash => match read_field(item).0 {
                    Millis(0) => continue,
                    end => {
                        first = if first.0 == 0 { end } else { first.min(end) };
                        last = last.max(end);
                        end.0.to_be_bytes().to_vec()
                    }
                },
                _ => continue,
            };
            let rank = collection.order.rank(&pages, &change::ordered(&by, key));
            assert!(matches!(rank, Ok(Ok(_))), "what has an order is in it");
            ordered += 1;
        }
        assert_eq!(collection.order.len(), ordered);
        assert_eq!(collection.first_end, first);
        assert_eq!(collection.last_end, if ordered == collection.items.len() { last } else { Millis(0) });
        numbers.len()
    }

    /// The state as text; cold values as this says that the index has them.
    pub fn dump(&self, home: &Home, index: &dyn Fn(Space, &Bytes) -> Option<Bytes>, out: &mut String) {
        let _ = writeln!(out, "  last removal {}", self.last_removal);
        for entry in self.ordered.iter().filter_map(|place| self.slab.get(place)) {
            let (key, version, end) =
                (Bytes::copy_from_slice(entry.key()), entry.version(), entry.expires_at());
            let text = match entry.view().cold() {
                Some(_) => cold_text(entry, index(Space::Keys, &home.entry_key(&key))),
                None => self.text_of(entry.view()),
            };
            let _ = writeln!(out, "  {key:?} = {text} version {version} ends {end:?}");
        }
    }

    /// What a key holds, as text.
    fn text_of(&self, value: View<'_>) -> String {
        let Some(collection) = value.collection() else {
            return format!("{:?}", value.text().unwrap_or_default());
        };
        let pages = self.pages.look(collection);
        let mut out = format!("{} {}:", collection.holds.as_str(), collection.number);
        let Ok(mut cursor) = collection.items.before_rank(&pages, 0) else { return out };
        while let Ok(Some((key, item))) = cursor.forward() {
            let (key, item) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(item));
            let _ = write!(out, " {key:?}={item:?}");
        }
        out
    }
}

/// A value as the index has it.
fn cold_text(entry: &Entry, found: Option<Bytes>) -> String {
    let Some(found) = found else { return "cold".to_owned() };
    match index::read_bytes(found) {
        Ok(Some(found)) if found.version == entry.version() => format!("{:?}", Some(found.bytes)),
        Ok(Some(found)) => format!("version {} in the index", found.version),
        Ok(None) | Err(_) => "something else in the index".to_owned(),
    }
}
