//! Filters at the edge: from the message to a [`RecordFilter`], and what it leaves of the records a shard returned.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use flowmesh_model::filter::{Condition, RecordFilter};
use flowmesh_model::record::RecordSlices;
use flowmesh_model::reply::RecordRun;
use flowmesh_model::{Millis, Offset, Reject};
use flowmesh_proto::v1;
use flowmesh_proto::v1::filter_condition::Condition as Wire;

/// The filter of a request; `None` if there is none, or one without conditions.
///
/// # Errors
/// `ILLEGAL_FILTER`.
pub fn read_filter(filter: Option<v1::Filter>) -> Result<Option<RecordFilter>, Reject> {
    let conditions = read_conditions(filter)?;
    if conditions.is_empty() {
        return Ok(None);
    }
    RecordFilter::new(conditions).map(Some)
}

/// The conditions of a request's filter, to be kept.
///
/// # Errors
/// `ILLEGAL_FILTER`: one without a kind.
pub fn read_conditions(filter: Option<v1::Filter>) -> Result<Vec<Condition>, Reject> {
    let conditions = filter.unwrap_or_default().conditions;
    (0u32..).zip(conditions).map(|(number, condition)| read_condition(number, condition)).collect()
}

/// Conditions as a message has them; `None` without any.
pub fn filter_message(conditions: &[Condition]) -> Option<v1::Filter> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let condition = |condition: &Condition| match condition {
        Condition::KeyEquals(key) => Wire::KeyEquals(key.clone()),
        Condition::KeyPrefix(prefix) => Wire::KeyPrefix(prefix.clone()),
        Condition::HeaderEquals { name, value } => {
            Wire::HeaderEquals(v1::Header { name: text(name), value: value.clone() })
        }
        Condition::HeaderExists { name } => Wire::HeaderExists(text(name)),
        Condition::JsonEquals { path, value } => {
            Wire::JsonEquals(v1::JsonEquals { path: path.clone(), value: value.clone() })
        }
    };
    let conditions: Vec<v1::FilterCondition> =
        conditions.iter().map(|known| v1::FilterCondition { condition: Some(condition(known)) }).collect();
    (!conditions.is_empty()).then_some(v1::Filter { conditions })
}

fn read_condition(number: u32, condition: v1::FilterCondition) -> Result<Condition, Reject> {
    match condition.condition {
        Some(Wire::KeyEquals(key)) => Ok(Condition::KeyEquals(key)),
        Some(Wire::KeyPrefix(prefix)) => Ok(Condition::KeyPrefix(prefix)),
        Some(Wire::HeaderEquals(v1::Header { name, value })) => {
            Ok(Condition::HeaderEquals { name: name.into(), value })
        }
        Some(Wire::HeaderExists(name)) => Ok(Condition::HeaderExists { name: name.into() }),
        Some(Wire::JsonEquals(v1::JsonEquals { path, value })) => Ok(Condition::JsonEquals { path, value }),
        None => Err(Reject::IllegalFilter {
            condition: number,
            part: "condition",
            at: 0,
            problem: "is empty, or of a kind that this server does not know".to_owned(),
        }),
    }
}

/// How much may still match.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// So many records.
    pub records: u32,
    /// So many packed bytes.
    pub bytes: usize,
    /// Whether one record is taken even if it has more bytes: the first.
    pub even_larger: bool,
}

impl Room {
    /// No bound but that of what is looked at.
    pub const UNBOUNDED: Self = Self { records: u32::MAX, bytes: usize::MAX, even_larger: true };

    fn take(&mut self, bytes: usize) -> bool {
        let fits = self.records > 0 && (bytes <= self.bytes || self.even_larger);
        if fits {
            self.records -= 1;
            self.bytes = self.bytes.saturating_sub(bytes);
            self.even_larger = false;
        }
        fits
    }
}

/// What a filter left of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickedRun {
    /// The first record's offset.
    pub base: Offset,
    /// How many there are, perhaps none.
    pub count: u32,
    /// When they were appended.
    pub appended_at: Millis,
    /// The packed records.
    pub records: Bytes,
    /// Each one's distance from `base`; empty if there is no gap.
    pub deltas: Vec<u64>,
    /// The offset behind the last record that was looked at.
    pub next: Offset,
}

/// Picks the records of a run that match, as long as there is room. Looks no further than where it is used up.
pub fn pick(filter: &RecordFilter, run: &RecordRun, room: &mut Room) -> PickedRun {
    let mut picked = Picker::default();
    let mut slices = RecordSlices::new(&run.records);
    let mut next = run.base;
    while room.records > 0 {
        let start = run.records.len() - slices.rest().len();
        let Some(Ok(record)) = slices.next() else { break };
        if filter.matches(record) {
            let end = run.records.len() - slices.rest().len();
            if !room.take(end - start) {
                break;
            }
            picked.add(next.get() - run.base.get(), start..end);
        }
        next = next.plus(1);
    }
    picked.finish(run, next)
}

/// Gathers neighbours, so that what was not cut up is not copied.
#[derive(Debug, Default)]
struct Picker {
    pieces: Vec<Range<usize>>,
    places: Vec<u64>,
}

impl Picker {
    fn add(&mut self, place: u64, bytes: Range<usize>) {
        self.places.push(place);
        match self.pieces.last_mut() {
            Some(last) if last.end == bytes.start => last.end = bytes.end,
            _ => self.pieces.push(bytes),
        }
    }

    fn finish(self, run: &RecordRun, next: Offset) -> PickedRun {
        let first = self.places.first().copied().unwrap_or(0);
        let deltas: Vec<u64> = self.places.iter().map(|place| place - first).collect();
        let dense = (0..).zip(&deltas).all(|(index, delta)| index == *delta);
        PickedRun {
            base: run.base.plus(first),
            count: deltas.len() as u32,
            appended_at: run.appended_at,
            records: join(&run.records, &self.pieces),
            deltas: if dense { Vec::new() } else { deltas },
            next,
        }
    }
}

fn join(bytes: &Bytes, pieces: &[Range<usize>]) -> Bytes {
    match pieces {
        [] => Bytes::new(),
        [one] => bytes.slice(one.clone()),
        several => {
            let mut joined = BytesMut::with_capacity(several.iter().map(ExactSizeIterator::len).sum());
            for piece in several {
                joined.extend_from_slice(bytes.get(piece.clone()).unwrap_or_default());
            }
            joined.freeze()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_model::record::{RecordPacker, RecordView};
    use proptest::prelude::*;

    /// A run of records whose keys are these, each value of a size of its own.
    fn run(keys: &[bool]) -> RecordRun {
        let mut packer = RecordPacker::default();
        for (index, wanted) in keys.iter().enumerate() {
            let value = vec![index as u8; index % 7];
            let key: &[u8] = if *wanted { b"yes" } else { b"no" };
            packer.push(&RecordView { key: Some(key), value: &value, ..RecordView::default() });
        }
        let count = packer.count();
        RecordRun { base: Offset(100), count, appended_at: Millis(5), records: packer.finish() }
    }

    fn yes() -> RecordFilter {
        RecordFilter::new([Condition::KeyEquals(Bytes::from_static(b"yes"))]).unwrap()
    }

    proptest! {
        /// Picking piece by piece, with whatever room there is each time, gives what matches, once and in order.
        #[test]
        fn what_matches_is_picked_with_its_offset(
            keys in prop::collection::vec(any::<bool>(), 1..40),
            records in 1u32..5,
            bytes in 0usize..40,
        ) {
            let whole = run(&keys);
            let mut rest = whole.clone();
            let mut found = Vec::new();
            while rest.count > 0 {
                let mut room = Room { records, bytes, even_larger: true };
                let picked = pick(&yes(), &rest, &mut room);
                prop_assert!(picked.count <= records && picked.next > rest.base);
                prop_assert!(picked.count <= 1 || picked.records.len() <= bytes);
                let offset = |index| match picked.deltas.as_slice() {
                    [] => picked.base.plus(index as u64),
                    deltas => picked.base.plus(deltas[index]),
                };
                for (index, record) in RecordSlices::new(&picked.records).enumerate() {
                    found.push((offset(index).get() - 100, record.unwrap().to_vec()));
                }
                prop_assert_eq!(RecordSlices::new(&picked.records).count(), picked.count as usize);
                let skip = (picked.next.get() - rest.base.get()) as u32;
                let cut = flowmesh_model::record::prefix_len(&rest.records, skip);
                rest = RecordRun {
                    base: picked.next,
                    count: rest.count - skip,
                    appended_at: rest.appended_at,
                    records: rest.records.slice(cut..),
                };
            }
            let expected: Vec<_> = (0u64..).zip(RecordSlices::new(&whole.records)).zip(&keys)
                .filter(|(_, wanted)| **wanted)
                .map(|((place, record), _)| (place, record.unwrap().to_vec()))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn neighbours_are_handed_on_without_a_copy_and_without_deltas() {
        let whole = run(&[false, true, true, true, false]);
        let mut room = Room::UNBOUNDED;
        let picked = pick(&yes(), &whole, &mut room);
        assert_eq!((picked.base, picked.count, picked.next), (Offset(101), 3, Offset(105)));
        assert!(picked.deltas.is_empty());
        assert!(whole.records.as_ptr_range().contains(&picked.records.as_ptr()));
    }

    #[test]
    fn a_condition_without_a_kind_is_refused_with_its_number() {
        let filter = |conditions| Some(v1::Filter { conditions });
        assert_eq!(read_filter(None), Ok(None));
        assert_eq!(read_filter(filter(vec![])), Ok(None));
        let fine = v1::FilterCondition { condition: Some(Wire::HeaderExists("n".into())) };
        assert!(read_filter(filter(vec![fine.clone()])).unwrap().is_some());
        let reject = read_filter(filter(vec![fine, v1::FilterCondition::default()])).unwrap_err();
        assert!(matches!(reject, Reject::IllegalFilter { condition: 1, .. }), "{reject:?}");
    }
}
