//! Operations of `Kv.Run` on one key: a counter that all clients add to, a sorted set that all of them use.
//!
//! A member of the sorted set is a key of [`keys`], and its score follows from its number.

use super::keys::{self, KEY_BYTES};
use super::ops::{BROKEN, OpKind, OpSpec, Wrong, put_bytes_field, put_number_field};
use super::wire::{FIXED_VARINT_BYTES, Fields, Value, fixed_varint, put_varint};

/// The counter, and the sorted set.
pub const COUNTER: &[u8] = b"counter";
/// See [`COUNTER`].
pub const SORTED_SET: &[u8] = b"sorted";
/// Members that a range asks for.
pub const RANGE: u64 = 10;
/// Bytes of a score.
const SCORE_BYTES: usize = 8;

/// The score of a member: a whole number that says nothing of the member's place in byte order.
pub fn score(number: u64) -> f64 {
    (u64::from_le_bytes(keys::stamp(number)) >> 12) as f64
}

/// Appends the operations of a call, and where in it what changes from call to call stands.
pub fn put(out: &mut Vec<u8>, spec: OpSpec, places: &mut Vec<(usize, Option<usize>)>) {
    let (key, number, action) = template(spec.kind);
    let mut operation = Vec::new();
    put_bytes_field(&mut operation, 1, key);
    put_varint(&mut operation, number << 3 | 2);
    put_varint(&mut operation, action.len() as u64);
    operation.extend(action);
    for _ in 0..spec.batch {
        put_bytes_field(out, 2, &operation);
        let end = out.len();
        match spec.kind {
            OpKind::SortedAdd => places.push((end - SCORE_BYTES - 1 - KEY_BYTES, Some(end - SCORE_BYTES))),
            OpKind::SortedRank => places.push((end - KEY_BYTES, None)),
            OpKind::SortedRange => {
                places.push((end - 2 * FIXED_VARINT_BYTES - 1, Some(end - FIXED_VARINT_BYTES)));
            }
            _ => {}
        }
    }
}

/// The key, the number of the action's field, and the action.
fn template(kind: OpKind) -> (&'static [u8], u64, Vec<u8>) {
    let (mut action, mut inner) = (Vec::new(), Vec::new());
    match kind {
        OpKind::Inspect => (SORTED_SET, 10, action),
        OpKind::SortedAdd => {
            put_bytes_field(&mut inner, 1, &[0; KEY_BYTES]);
            inner.push(2 << 3 | 1);
            inner.extend([0; SCORE_BYTES]);
            put_bytes_field(&mut action, 1, &inner);
            (SORTED_SET, 80, action)
        }
        OpKind::SortedRank => {
            put_bytes_field(&mut action, 1, &[0; KEY_BYTES]);
            (SORTED_SET, 86, action)
        }
        OpKind::SortedRange => {
            let (mut ranks, mut part) = (Vec::new(), Vec::new());
            for field in [1, 2] {
                ranks.push(field << 3);
                ranks.extend(fixed_varint(0));
            }
            put_bytes_field(&mut part, 1, &ranks);
            put_bytes_field(&mut action, 1, &part);
            (SORTED_SET, 87, action)
        }
        _ => {
            // One, as a sint64.
            put_number_field(&mut action, 1, 2);
            (COUNTER, 28, action)
        }
    }
}

/// Names a member and gives it its score, or says from which rank on.
#[inline]
pub fn set(bytes: &mut [u8], kind: OpKind, (first, second): (usize, Option<usize>), number: u64) {
    let mut put = |at: usize, what: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + what.len()) {
            place.copy_from_slice(what);
        }
    };
    let Some(second) = second else { return };
    if kind == OpKind::SortedRange {
        // Ranks are sint64: twice the number.
        put(first, &fixed_varint(2 * number));
        put(second, &fixed_varint(2 * (number + RANGE - 1)));
    } else {
        put(first, &keys::key_bytes(number));
        put(second, &score(number).to_le_bytes());
    }
}

/// Checks that all operations were done and answered as they must be.
#[inline]
pub fn check(message: &[u8], spec: OpSpec, may_miss: bool) -> Result<(), Wrong> {
    let mut outcomes = 0;
    for field in Fields(message) {
        let (1, Value::Bytes(outcome)) = field.map_err(|_| BROKEN)? else { continue };
        outcomes += 1;
        let mut answered = false;
        for field in Fields(outcome) {
            match (spec.kind, field.map_err(|_| BROKEN)?) {
                (_, (2, _)) => return Err("an operation failed"),
                (OpKind::Increment | OpKind::SortedAdd, (6, Value::Number(_))) => answered = true,
                (OpKind::Inspect, (17, Value::Bytes(info))) => answered = may_miss || starts_with_true(info),
                (OpKind::SortedRank, (16, Value::Bytes(rank))) => {
                    answered = may_miss || starts_with_true(rank);
                }
                (OpKind::SortedRange, (15, Value::Bytes(scored))) => {
                    answered = may_miss || Fields(scored).count() as u64 == RANGE;
                }
                _ => {}
            }
        }
        if !answered {
            return Err("an operation was answered otherwise");
        }
    }
    if outcomes == spec.batch { Ok(()) } else { Err("another number of outcomes") }
}

/// Whether the first field, `found`, says yes.
fn starts_with_true(message: &[u8]) -> bool {
    matches!(Fields(message).next(), Some(Ok((1, Value::Number(1)))))
}

#[cfg(test)]
mod tests {
    use flowmesh_proto::v1;
    use prost::Message;
    use v1::operation::Action;
    use v1::operation_outcome::Result as Shown;

    use super::*;
    use crate::http2::{GRPC_HEAD_BYTES, Methods};
    use crate::load::ops::Operation;

    fn operation(text: &str) -> Operation {
        let mut operation = Operation::new(text.parse().unwrap(), "things", &mut Methods::default());
        for place in 0..operation.keys() {
            operation.set_key(place, 3_000_000 + place as u64);
        }
        operation
    }

    fn actions(text: &str) -> Vec<(Vec<u8>, Action)> {
        let operation = operation(text);
        let request = v1::RunRequest::decode(&operation.bytes()[GRPC_HEAD_BYTES..]).unwrap();
        assert_eq!(request.store, "things");
        request.operations.into_iter().map(|op| (op.key.to_vec(), op.action.unwrap())).collect()
    }

    #[test]
    fn requests_are_what_the_api_says() {
        let increment = Action::Increment(v1::BytesIncrement { by: 1 });
        assert_eq!(actions("increment*2"), vec![(COUNTER.to_vec(), increment); 2]);
        let inspect = Action::Inspect(v1::KeyInspect {});
        assert_eq!(actions("inspect*2"), vec![(SORTED_SET.to_vec(), inspect); 2]);

        let added = actions("sorted-add*2");
        let member = v1::ScoredMember { member: "key-000003000001".into(), score: score(3_000_001) };
        let add = v1::SortedAdd { members: vec![member], ..Default::default() };
        assert_eq!(added[1], (SORTED_SET.to_vec(), Action::SortedAdd(add)));
        assert!(score(3_000_001) > 0.0 && added[0] != added[1]);

        let rank = v1::SortedRank { member: "key-000003000000".into(), reverse: false };
        assert_eq!(actions("sorted-rank"), vec![(SORTED_SET.to_vec(), Action::SortedRank(rank))]);

        let ranks = v1::RankRange { first: 3_000_000, last: 3_000_009 };
        let part = v1::SortedPart { part: Some(v1::sorted_part::Part::Ranks(ranks)) };
        let range = v1::SortedGetRange { part: Some(part), ..Default::default() };
        assert_eq!(actions("sorted-range"), vec![(SORTED_SET.to_vec(), Action::SortedRange(range))]);
    }

    fn check(text: &str, results: Vec<Shown>) -> bool {
        let outcome = |result| v1::OperationOutcome { version: 7, error: None, result: Some(result) };
        let outcomes = results.into_iter().map(outcome).collect();
        let answer = v1::RunResponse { outcomes, now_ms: 5 }.encode_to_vec();
        operation(text).check(&[], &answer, true, false).is_ok()
    }

    #[test]
    fn only_the_right_answers_count() {
        assert!(check("increment*2", vec![Shown::Integer(4), Shown::Integer(-5)]));
        assert!(!check("increment*2", vec![Shown::Integer(4)]));
        assert!(!check("increment", vec![Shown::Done(true)]));
        let rank = |found| Shown::Rank(v1::Rank { found, rank: 3, score: 1.5 });
        assert!(check("sorted-rank", vec![rank(true)]) && !check("sorted-rank", vec![rank(false)]));
        let info = |found| Shown::Info(v1::KeyInfo { found, len: 3, ..Default::default() });
        assert!(check("inspect", vec![info(true)]) && !check("inspect", vec![info(false)]));
        let scored = |count| {
            let member = v1::ScoredMember { member: "m".into(), score: 2.5 };
            Shown::Scored(v1::Scored { members: vec![member; count] })
        };
        assert!(check("sorted-range", vec![scored(10)]) && !check("sorted-range", vec![scored(9)]));
        let failed =
            v1::OperationOutcome { version: 0, error: Some(v1::Error::default()), result: Some(rank(true)) };
        let answer = v1::RunResponse { outcomes: vec![failed], now_ms: 5 }.encode_to_vec();
        assert!(operation("sorted-rank").check(&[], &answer, true, false).is_err());
    }
}
