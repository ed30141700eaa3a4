//! What can be asked of one key of a store, and of what it holds: bytes, a counter, a hash, a set, a sorted set or a list.
//!
//! The operations are those of Redis 7's groups of the same names; the name of the command is at each. Where Redis has
//! several commands that differ in what they take or return, here is one with fields. What they do at the edges (an
//! absent key is an empty collection, a collection that lost its last member is gone, indexes below zero count from the
//! end) is the same. [`super::fact`] and [`fact`] say what becomes true.

pub mod change;
pub mod fact;
mod outcome;
pub mod past;
mod real;
pub mod snapshot;

pub use outcome::{KeyInfo, KvOutcome, KvResult};
pub use real::Real;

use bytes::Bytes;

use crate::command::{SetIf, SetTtl};
use crate::ids::Millis;

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KvType {
    /// Bytes.
    Bytes,
    /// An integer or a decimal; where bytes are asked for, its text.
    Counter,
    /// Fields with values, each of which may end at a time of its own.
    Hash,
    /// Members.
    Set,
    /// Members with scores, in the order of score and member.
    SortedSet,
    /// Values in the order they were put.
    List,
}

impl KvType {
    /// All types, by their byte on disk.
    pub const ALL: [Self; 6] =
        [Self::Bytes, Self::Counter, Self::Hash, Self::Set, Self::SortedSet, Self::List];

    /// Its name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Counter => "counter",
            Self::Hash => "hash",
            Self::Set => "set",
            Self::SortedSet => "sorted_set",
            Self::List => "list",
        }
    }
}

/// A number a counter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Whole.
    Integer(i64),
    /// With a fraction, or once it had one.
    Float(Real),
}

impl std::fmt::Display for Number {
    /// Its shortest text, without an exponent, as Redis writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
        }
    }
}

/// One operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvOp {
    /// The key, 1 to 1024 bytes.
    pub key: Bytes,
    /// What must hold of the key; else `CONDITION_FAILED`.
    pub condition: SetIf,
    /// What to do.
    pub action: KvAction,
}

/// What to do with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvAction {
    /// Whatever it holds.
    Key(KeyOp),
    /// Bytes and counters.
    Bytes(BytesOp),
    /// Hashes.
    Hash(HashOp),
    /// Sets.
    Set(SetOp),
    /// Sorted sets.
    Sorted(SortedOp),
    /// Lists.
    List(ListOp),
}

/// When something ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// After so many milliseconds.
    In(u64),
    /// At this time; if it has passed, at once.
    At(Millis),
    /// Never.
    Never,
}

/// Which ends may be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndIf {
    /// Any.
    #[default]
    Always,
    /// Of what has none. `NX`
    None,
    /// Of what has one. `XX`
    Some,
    /// Only to a later one; never is the latest. `GT`
    Later,
    /// Only to an earlier one. `LT`
    Earlier,
}

/// On a key, whatever it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyOp {
    /// What it holds, how much of it, its version and end. → [`KvResult::Info`]. `TYPE`, `PTTL`, `EXPIRETIME`, `EXISTS`
    Inspect,
    /// Nothing: only the condition counts. → [`KvResult::Done`]
    Check,
    /// Takes it away. → [`KvResult::Flag`]: was it there? `DEL`, `UNLINK`
    Delete,
    /// Gives it another end. → [`KvResult::Flag`]: was it changed? `PEXPIRE`, `PEXPIREAT`, `PERSIST`
    Expire(End, EndIf),
    /// Gives it another name, with its end as it is. → [`KvResult::Flag`]: false if it was not to replace what
    /// is there. `RENAME`, `RENAMENX`
    Rename {
        /// The new name; on the same partition.
        to: Bytes,
        /// Only if there is no such key.
        if_absent: bool,
    },
    /// Copies it with its end. → [`KvResult::Flag`]: false if it is absent or was not to replace what is there. `COPY`
    Copy {
        /// The copy's name; on the same partition.
        to: Bytes,
        /// Also if there is such a key.
        replace: bool,
    },
}

/// On bytes or a counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BytesOp {
    /// The value. → [`KvResult::Value`]. `GET`
    Get,
    /// Sets it, whatever it held. → [`KvResult::Done`], or [`KvResult::Value`] with what it held. `SET`, `GETSET`
    Set {
        /// The new value.
        value: Bytes,
        /// How long it lives.
        ttl: SetTtl,
        /// Answer with the value before, which must then be bytes or a counter.
        with_old: bool,
    },
    /// The value, which is then gone. → [`KvResult::Value`]. `GETDEL`
    GetDelete,
    /// The value, which gets another end. → [`KvResult::Value`]. `GETEX`
    GetExpire(End),
    /// Adds to the end of it. → [`KvResult::Integer`]: the length. `APPEND`
    Append(Bytes),
    /// The bytes from one index to another, both included; below zero from the end. → [`KvResult::Value`]. `GETRANGE`
    GetRange(i64, i64),
    /// Overwrites from an offset on; what lies before and was not there is zero. → [`KvResult::Integer`]: the length.
    /// `SETRANGE`
    SetRange(u64, Bytes),
    /// → [`KvResult::Integer`], 0 if it is absent. `STRLEN`
    Length,
    /// Adds to it; absent counts as 0. → [`KvResult::Integer`]. `INCRBY`
    Increment(i64),
    /// Adds to it; absent counts as 0. → [`KvResult::Float`]. `INCRBYFLOAT`
    IncrementFloat(Real),
}

/// A page of something that is in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageOf {
    /// Only what comes after this.
    pub after: Option<Bytes>,
    /// Only what matches this glob: `*`, `?`, `[a-z]`, `[^x]`, `\` before what is meant as it is.
    pub glob: Option<Bytes>,
    /// At most so many are looked at, at least 1.
    pub limit: u32,
}

/// On a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOp {
    /// Sets fields. → [`KvResult::Integer`]: how many are new. `HSET`, `HSETNX`
    Set {
        /// Fields and values.
        fields: Vec<(Bytes, Bytes)>,
        /// Only fields that are not there.
        if_absent: bool,
        /// How long they live; `None`: for ever, and `Keep` as before.
        ttl: FieldTtl,
    },
    /// Values of fields. → [`KvResult::Values`]. `HGET`, `HMGET`, `HEXISTS`
    Get(Vec<Bytes>),
    /// Takes fields away. → [`KvResult::Integer`]: how many were there. `HDEL`
    Delete(Vec<Bytes>),
    /// How long values are. → [`KvResult::Integers`]. `HSTRLEN`
    Lengths(Vec<Bytes>),
    /// → [`KvResult::Integer`]. `HLEN`
    Len,
    /// All of it. → [`KvResult::Pairs`]. `HGETALL`, `HKEYS`, `HVALS`
    All,
    /// Fields in byte order. → [`KvResult::Page`] of [`KvResult::Pairs`]. `HSCAN`
    Scan(PageOf),
    /// Adds to a field; absent counts as 0. → [`KvResult::Integer`]. `HINCRBY`
    Increment(Bytes, i64),
    /// Adds to a field; absent counts as 0. → [`KvResult::Float`]. `HINCRBYFLOAT`
    IncrementFloat(Bytes, Real),
    /// Fields by chance, with their values: so many different ones, or, below zero, so many with repetitions.
    /// → [`KvResult::Pairs`]. `HRANDFIELD`
    Random(i64),
    /// Gives fields another end. → [`KvResult::Changes`]. `HPEXPIRE`, `HPEXPIREAT`, `HPERSIST`
    Expire {
        /// Which.
        fields: Vec<Bytes>,
        /// When they end.
        end: End,
        /// Which ends may be changed.
        only: EndIf,
    },
    /// When fields end. → [`KvResult::Ends`]. `HPTTL`, `HPEXPIRETIME`
    Ends(Vec<Bytes>),
}

/// How long a field that is set lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldTtl {
    /// For ever.
    #[default]
    Never,
    /// As long as the value before it.
    Keep,
    /// So long.
    Until(End),
}

/// How sets are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// What is in all of them.
    Intersection,
    /// What is in any of them.
    Union,
    /// What is in the first and in none of the others.
    Difference,
}

/// On a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetOp {
    /// → [`KvResult::Integer`]: how many are new. `SADD`
    Add(Vec<Bytes>),
    /// → [`KvResult::Integer`]: how many were there. `SREM`
    Remove(Vec<Bytes>),
    /// → [`KvResult::Flags`]. `SISMEMBER`, `SMISMEMBER`
    Contains(Vec<Bytes>),
    /// → [`KvResult::Integer`]. `SCARD`
    Len,
    /// All members. → [`KvResult::Members`]. `SMEMBERS`
    All,
    /// Members in byte order. → [`KvResult::Page`] of [`KvResult::Members`]. `SSCAN`
    Scan(PageOf),
    /// Takes so many by chance away. → [`KvResult::Members`]. `SPOP`
    Pop(u64),
    /// Members by chance: so many different ones, or, below zero, so many with repetitions. → [`KvResult::Members`].
    /// `SRANDMEMBER`
    Random(i64),
    /// Moves a member to another set. → [`KvResult::Flag`]: was it there? `SMOVE`
    Move {
        /// The other set; on the same partition.
        to: Bytes,
        /// Which.
        member: Bytes,
    },
    /// Puts this set together with others. → [`KvResult::Members`]; with `into` or `count_only` [`KvResult::Integer`].
    /// `SINTER`, `SUNION`, `SDIFF`, each also with `STORE`; `SINTERCARD`
    Combine {
        /// How.
        how: Combine,
        /// The other sets; on the same partition.
        others: Vec<Bytes>,
        /// Stores what comes of it here, in place of what there is; on the same partition.
        into: Option<Bytes>,
        /// Answers only with how many there are, and stops counting at this many if it is not 0.
        count_only: Option<u64>,
    },
}

/// One end of a range of scores or members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound<T> {
    /// No end.
    Open,
    /// This one is in it.
    Included(T),
    /// This one is not.
    Excluded(T),
}

/// A part of a sorted set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SortedRange {
    /// By rank, both ends included; below zero from the end.
    Rank(i64, i64),
    /// By score.
    Score(Bound<Real>, Bound<Real>),
    /// By member, where all have the same score.
    Lex(Bound<Bytes>, Bound<Bytes>),
}

/// Which members [`SortedOp::Add`] takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddIf {
    /// Only new ones. `NX`
    pub absent: bool,
    /// Only those that are there. `XX`
    pub present: bool,
    /// Of those that are there, only to a greater score. `GT`
    pub greater: bool,
    /// Of those that are there, only to a smaller score. `LT`
    pub less: bool,
}

/// What becomes of the scores of a member that several sets have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregate {
    /// They are added.
    #[default]
    Sum,
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

/// On a sorted set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SortedOp {
    /// Adds members or changes scores. → [`KvResult::Integer`]: how many are new, or, with `changed`, new or changed. `ZADD`
    Add {
        /// Scores and members.
        members: Vec<(Real, Bytes)>,
        /// Which are taken.
        only: AddIf,
        /// Count changed ones too. `CH`
        changed: bool,
    },
    /// Adds to the score of a member; absent counts as 0. → [`KvResult::MaybeFloat`]: the new score, none if it was not
    /// taken. `ZINCRBY`, `ZADD INCR`
    Increment {
        /// Which.
        member: Bytes,
        /// How much.
        by: Real,
        /// Whether it is taken.
        only: AddIf,
    },
    /// → [`KvResult::Integer`]: how many were there. `ZREM`
    Remove(Vec<Bytes>),
    /// → [`KvResult::Floats`]. `ZSCORE`, `ZMSCORE`
    Scores(Vec<Bytes>),
    /// → [`KvResult::Integer`]. `ZCARD`
    Len,
    /// How many are in a range. → [`KvResult::Integer`]. `ZCOUNT`, `ZLEXCOUNT`
    Count(SortedRange),
    /// → [`KvResult::Rank`]. `ZRANK`, `ZREVRANK`
    Rank {
        /// Which.
        member: Bytes,
        /// Counted from the greatest.
        reverse: bool,
    },
    /// A range in order. → [`KvResult::Scored`], or with `into` [`KvResult::Integer`]. `ZRANGE`, `ZRANGESTORE`
    Range {
        /// Which. With `reverse` ranks count from the greatest.
        range: SortedRange,
        /// From the greatest to the smallest.
        reverse: bool,
        /// Leave out so many first; not by rank.
        skip: u64,
        /// At most so many; not by rank.
        limit: Option<u64>,
        /// Stores what comes of it here, in place of what there is; on the same partition.
        into: Option<Bytes>,
    },
    /// Takes a range away. → [`KvResult::Integer`]. `ZREMRANGEBYRANK`, `ZREMRANGEBYSCORE`, `ZREMRANGEBYLEX`
    RemoveRange(SortedRange),
    /// Takes the greatest or smallest away. → [`KvResult::Scored`]. `ZPOPMIN`, `ZPOPMAX`
    Pop {
        /// The greatest.
        max: bool,
        /// At most so many.
        count: u64,
    },
    /// Members by chance, as [`SetOp::Random`]. → [`KvResult::Scored`]. `ZRANDMEMBER`
    Random(i64),
    /// Members in byte order. → [`KvResult::Page`] of [`KvResult::Scored`]. `ZSCAN`
    Scan(PageOf),
    /// Puts this sorted set together with others. → [`KvResult::Scored`]; with `into` or `count_only`
    /// [`KvResult::Integer`]. `ZINTER`, `ZUNION`, `ZDIFF`, each also with `STORE`; `ZINTERCARD`
    Combine {
        /// How.
        how: Combine,
        /// The others; sorted sets, or sets with the score 1; on the same partition.
        others: Vec<Bytes>,
        /// What scores are multiplied with, this one's first; empty: 1.
        weights: Vec<Real>,
        /// What becomes of scores.
        aggregate: Aggregate,
        /// As [`SetOp::Combine`].
        into: Option<Bytes>,
        /// As [`SetOp::Combine`].
        count_only: Option<u64>,
    },
}

/// An end of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    Front,
    /// The last.
    Back,
}

/// On a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListOp {
    /// Puts values, one after the other. → [`KvResult::Integer`]: the length. `LPUSH`, `RPUSH`, and each with `X`
    Push {
        /// Where.
        side: Side,
        /// Which.
        values: Vec<Bytes>,
        /// Only if there is such a list.
        if_present: bool,
    },
    /// Takes so many. → [`KvResult::Members`]. `LPOP`, `RPOP`
    Pop(Side, u64),
    /// → [`KvResult::Integer`]. `LLEN`
    Len,
    /// The value at an index. → [`KvResult::Value`]. `LINDEX`
    At(i64),
    /// Sets the value at an index, which must be there. → [`KvResult::Done`]. `LSET`
    SetAt(i64, Bytes),
    /// Puts a value beside the first one that equals `pivot`. → [`KvResult::Integer`]: the length, or -1 if there is
    /// none. `LINSERT`
    Insert {
        /// Before it, not after.
        before: bool,
        /// Beside which.
        pivot: Bytes,
        /// What.
        value: Bytes,
    },
    /// Takes values away that equal this one: so many from the front, or, below zero, from the back; 0: all.
    /// → [`KvResult::Integer`]: how many. `LREM`
    Remove(Bytes, i64),
    /// Keeps only what lies from one index to another, both included. → [`KvResult::Done`]. `LTRIM`
    Trim(i64, i64),
    /// → [`KvResult::Members`]. `LRANGE`
    Range(i64, i64),
    /// Where a value is. → [`KvResult::Integers`]. `LPOS`
    Find {
        /// Which.
        value: Bytes,
        /// Begin with the so-many-th that equals it, from 1; below zero from the back.
        rank: i64,
        /// At most so many; 0: all.
        count: u64,
        /// Look at so many values at most; 0: at all.
        look_at: u64,
    },
    /// Takes a value from one end and puts it at an end of another list, or of the same. → [`KvResult::Value`]. `LMOVE`
    Move {
        /// The other list; on the same partition.
        to: Bytes,
        /// From where.
        from: Side,
        /// To where.
        at: Side,
    },
}

impl KvAction {
    /// Whether it can change anything.
    #[must_use]
    pub fn is_write(&self) -> bool {
        match self {
            Self::Key(op) => !matches!(op, KeyOp::Inspect | KeyOp::Check),
            Self::Bytes(op) => !matches!(op, BytesOp::Get | BytesOp::GetRange(..) | BytesOp::Length),
            Self::Hash(op) => matches!(
                op,
                HashOp::Set { .. }
                    | HashOp::Delete(_)
                    | HashOp::Increment(..)
                    | HashOp::IncrementFloat(..)
                    | HashOp::Expire { .. }
            ),
            Self::Set(op) => match op {
                SetOp::Add(_) | SetOp::Remove(_) | SetOp::Pop(_) | SetOp::Move { .. } => true,
                SetOp::Combine { into, .. } => into.is_some(),
                _ => false,
            },
            Self::Sorted(op) => match op {
                SortedOp::Add { .. }
                | SortedOp::Increment { .. }
                | SortedOp::Remove(_)
                | SortedOp::RemoveRange(_)
                | SortedOp::Pop { .. } => true,
                SortedOp::Range { into, .. } | SortedOp::Combine { into, .. } => into.is_some(),
                _ => false,
            },
            Self::List(op) => {
                !matches!(op, ListOp::Len | ListOp::At(_) | ListOp::Range(..) | ListOp::Find { .. })
            }
        }
    }

    /// Whether it can make the key, or another, hold more.
    #[must_use]
    pub fn adds(&self) -> bool {
        self.is_write()
            && match self {
                Self::Key(op) => matches!(op, KeyOp::Copy { .. }),
                Self::Bytes(op) => !matches!(op, BytesOp::GetDelete | BytesOp::GetExpire(_)),
                Self::Hash(op) => !matches!(op, HashOp::Delete(_) | HashOp::Expire { .. }),
                Self::Set(op) => !matches!(op, SetOp::Remove(_) | SetOp::Pop(_)),
                Self::Sorted(op) => {
                    !matches!(op, SortedOp::Remove(_) | SortedOp::RemoveRange(_) | SortedOp::Pop { .. })
                }
                Self::List(op) => !matches!(op, ListOp::Pop(..) | ListOp::Remove(..) | ListOp::Trim(..)),
            }
    }

    /// Bytes of values, fields and members that it brings.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let sum = |items: &[Bytes]| items.iter().map(Bytes::len).sum();
        match self {
            Self::Bytes(
                BytesOp::Set { value, .. } | BytesOp::Append(value) | BytesOp::SetRange(_, value),
            ) => value.len(),
            Self::Hash(HashOp::Set { fields, .. }) => {
                fields.iter().map(|(field, value)| field.len() + value.len()).sum()
            }
            Self::Set(SetOp::Add(members)) => sum(members),
            Self::Sorted(SortedOp::Add { members, .. }) => {
                members.iter().map(|(_, member)| member.len()).sum()
            }
            Self::List(ListOp::Push { values, .. }) => sum(values),
            _ => 0,
        }
    }

    /// The keys it names besides the operation's own.
    pub fn other_keys(&self) -> impl Iterator<Item = &Bytes> {
        let (one, many): (Option<&Bytes>, &[Bytes]) = match self {
            Self::Key(KeyOp::Rename { to, .. } | KeyOp::Copy { to, .. })
            | Self::Set(SetOp::Move { to, .. })
            | Self::List(ListOp::Move { to, .. }) => (Some(to), &[]),
            Self::Set(SetOp::Combine { others, into, .. })
            | Self::Sorted(SortedOp::Combine { others, into, .. }) => (into.as_ref(), others),
            Self::Sorted(SortedOp::Range { into, .. }) => (into.as_ref(), &[]),
            _ => (None, &[]),
        };
        one.into_iter().chain(many)
    }
}
