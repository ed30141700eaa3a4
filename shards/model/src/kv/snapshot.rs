//! What a reader remembers of a snapshot of one shard, so that it knows of each change in the feed whether the snapshot has it.
//!
//! A snapshot is read in parts, in the order of keys, each as of one entry of the shard's log. So all that is remembered is
//! where parts end, and as of which entry they are: nothing for each key. A change is in the snapshot exactly if its version
//! is not beyond the entry of the part that has the place of its key, whether or not the key was there.

use bytes::Bytes;

use super::change::{SnapshotFrom, SnapshotPart};
use crate::ids::Lsn;

/// Which changes a snapshot of one shard has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotBounds {
    /// Keys up to this one, itself included or not, are as of this entry, unless an earlier one has them.
    parts: Vec<(Bytes, bool, Lsn)>,
    /// All others.
    rest: Lsn,
}

impl SnapshotBounds {
    /// Notes a part that was asked for from there.
    pub fn note(&mut self, from: &SnapshotFrom, part: &SnapshotPart) {
        match (from, &part.next) {
            // A list that began anew is as of later than what lies before it.
            (SnapshotFrom::Within { .. }, _) => {
                if let Some(last) = self.parts.last_mut().filter(|_| part.again) {
                    last.2 = part.upto;
                }
            }
            (_, None) => self.rest = part.upto,
            (_, Some(SnapshotFrom::Within { key, .. })) => {
                self.parts.push((key.clone(), false, part.upto));
                self.parts.push((key.clone(), true, part.upto));
            }
            (_, Some(SnapshotFrom::Behind(key))) => self.parts.push((key.clone(), true, part.upto)),
            (_, Some(SnapshotFrom::Start)) => {}
        }
    }

    /// Whether the snapshot has a change of that version.
    #[must_use]
    pub fn has(&self, key: &[u8], version: Lsn) -> bool {
        let ends_before = |(end, included, _): &(Bytes, bool, Lsn)| {
            if *included { end[..] < *key } else { end[..] <= *key }
        };
        let index = self.parts.partition_point(ends_before);
        version <= self.parts.get(index).map_or(self.rest, |part| part.2)
    }

    /// Beyond this entry it has nothing.
    #[must_use]
    pub fn last(&self) -> Lsn {
        self.parts.iter().map(|part| part.2).chain([self.rest]).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::change::ItemsFrom;

    fn part(next: Option<SnapshotFrom>, upto: u64, again: bool) -> SnapshotPart {
        SnapshotPart { changes: Vec::new(), next, upto: Lsn(upto), again }
    }

    fn b(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn a_change_is_in_the_part_that_has_the_place_of_its_key() {
        let mut bounds = SnapshotBounds::default();
        let behind = |key| SnapshotFrom::Behind(b(key));
        let within =
            SnapshotFrom::Within { key: b("m"), collection: 1, version: Lsn(1), items: ItemsFrom::Start };
        bounds.note(&SnapshotFrom::Start, &part(Some(behind("f")), 10, false));
        bounds.note(&behind("f"), &part(Some(within.clone()), 20, false));
        bounds.note(&within, &part(Some(within.clone()), 25, false));
        bounds.note(&within, &part(Some(within.clone()), 30, true));
        bounds.note(&within, &part(Some(behind("m")), 35, false));
        bounds.note(&behind("m"), &part(None, 40, false));
        for (key, last) in [("a", 10), ("f", 10), ("g", 20), ("l", 20), ("m", 30), ("n", 40), ("z", 40)] {
            assert!(bounds.has(key.as_bytes(), Lsn(last)), "{key}");
            assert!(!bounds.has(key.as_bytes(), Lsn(last + 1)), "{key}");
        }
        assert_eq!(bounds.last(), Lsn(40));
    }
}
