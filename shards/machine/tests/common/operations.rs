//! Operations on keys in golden scripts: `KEY VERB …`, several with `|` between them, `all` before them for all or none.

use bytes::Bytes;
use flowmesh_model::command::{SetIf, SetTtl};
use flowmesh_model::kv::{
    AddIf, BytesOp, Combine, End, EndIf, FieldTtl, HashOp, KeyOp, KvAction, KvOp, ListOp, Real, SetOp, Side,
    SortedOp, SortedRange,
};
use flowmesh_model::{KvCommand, Millis};

fn bytes(word: &str) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}

fn all(words: &[&str]) -> Vec<Bytes> {
    words.iter().map(|word| bytes(word)).collect()
}

fn real(word: &str) -> Real {
    Real::new(word.parse().unwrap()).unwrap()
}

fn number(word: &str) -> i64 {
    word.parse().unwrap()
}

/// `+5` in so many milliseconds, `1005` at that time, `-` never.
fn end(word: &str) -> End {
    match word.strip_prefix('+') {
        Some(ms) => End::In(ms.parse().unwrap()),
        None if word == "-" => End::Never,
        None => End::At(Millis(word.parse().unwrap())),
    }
}

/// A command of operations.
pub fn command(text: &str) -> KvCommand {
    let (atomic, ops) = match text.strip_prefix("all ") {
        Some(ops) => (true, ops),
        None => (false, text),
    };
    KvCommand::Run { ops: ops.split('|').map(operation).collect(), atomic, seed: 7 }
}

fn operation(text: &str) -> KvOp {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let condition = match words.last().and_then(|word| word.strip_prefix("if=")) {
        None => SetIf::Always,
        Some(what) => {
            words.pop();
            match what {
                "absent" => SetIf::Absent,
                "present" => SetIf::Present,
                value => SetIf::Value(bytes(value)),
            }
        }
    };
    let (key, rest) = words.split_first().expect("an operation has a key");
    KvOp { key: bytes(key), condition, action: action(rest) }
}

fn action(words: &[&str]) -> KvAction {
    let set = |op| KvAction::Set(op);
    let sorted = |op| KvAction::Sorted(op);
    let list = |op| KvAction::List(op);
    let hash = |op| KvAction::Hash(op);
    let plain = |op| KvAction::Bytes(op);
    let key = |op| KvAction::Key(op);
    match words {
        ["inspect"] => key(KeyOp::Inspect),
        ["delete"] => key(KeyOp::Delete),
        ["expire", at] => key(KeyOp::Expire(end(at), EndIf::Always)),
        ["rename", to] => key(KeyOp::Rename { to: bytes(to), if_absent: false }),
        ["copy", to] => key(KeyOp::Copy { to: bytes(to), replace: false }),
        ["get"] => plain(BytesOp::Get),
        ["set", value] => plain(BytesOp::Set { value: bytes(value), ttl: SetTtl::Default, with_old: false }),
        ["append", value] => plain(BytesOp::Append(bytes(value))),
        ["range", from, to] => plain(BytesOp::GetRange(number(from), number(to))),
        ["incr", by] => plain(BytesOp::Increment(number(by))),
        ["incrfloat", by] => plain(BytesOp::IncrementFloat(real(by))),
        ["hset", field, value] => {
            let fields = vec![(bytes(field), bytes(value))];
            hash(HashOp::Set { fields, if_absent: false, ttl: FieldTtl::Never })
        }
        ["hget", fields @ ..] => hash(HashOp::Get(all(fields))),
        ["hdel", fields @ ..] => hash(HashOp::Delete(all(fields))),
        ["hlen"] => hash(HashOp::Len),
        ["hincr", field, by] => hash(HashOp::Increment(bytes(field), number(by))),
        ["hexpire", at, fields @ ..] => {
            hash(HashOp::Expire { fields: all(fields), end: end(at), only: EndIf::Always })
        }
        ["hends", fields @ ..] => hash(HashOp::Ends(all(fields))),
        ["sadd", members @ ..] => set(SetOp::Add(all(members))),
        ["srem", members @ ..] => set(SetOp::Remove(all(members))),
        ["smembers"] => set(SetOp::All),
        ["spop", count] => set(SetOp::Pop(count.parse().unwrap())),
        ["sinter", into, others @ ..] => {
            let (how, into) = (Combine::Intersection, Some(bytes(into)));
            set(SetOp::Combine { how, others: all(others), into, count_only: None })
        }
        ["zadd", score, member] => {
            let members = vec![(real(score), bytes(member))];
            sorted(SortedOp::Add { members, only: AddIf::default(), changed: false })
        }
        ["zincr", member, by] => {
            sorted(SortedOp::Increment { member: bytes(member), by: real(by), only: AddIf::default() })
        }
        ["zrank", member] => sorted(SortedOp::Rank { member: bytes(member), reverse: false }),
        ["zrange", from, to] => {
            let range = SortedRange::Rank(number(from), number(to));
            sorted(SortedOp::Range { range, reverse: false, skip: 0, limit: None, into: None })
        }
        ["zpop", count] => sorted(SortedOp::Pop { max: false, count: count.parse().unwrap() }),
        ["push", values @ ..] => {
            list(ListOp::Push { side: Side::Back, values: all(values), if_present: false })
        }
        ["pop", count] => list(ListOp::Pop(Side::Front, count.parse().unwrap())),
        ["lrange", from, to] => list(ListOp::Range(number(from), number(to))),
        ["lset", index, value] => list(ListOp::SetAt(number(index), bytes(value))),
        ["linsert", pivot, value] => {
            list(ListOp::Insert { before: true, pivot: bytes(pivot), value: bytes(value) })
        }
        ["lrem", value, count] => list(ListOp::Remove(bytes(value), number(count))),
        ["lmove", to] => list(ListOp::Move { to: bytes(to), from: Side::Front, at: Side::Back }),
        other => panic!("no such operation: {other:?}"),
    }
}
