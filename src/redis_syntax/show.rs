//! How what came of operations is shown to who gave a Redis command.

use bytes::Bytes;
use flowmesh_proto::v1;
use v1::operation_outcome::Result as Came;

/// An answer, in the kinds that Redis' protocol has.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// There is none.
    Nil,
    /// A word of the protocol, such as OK.
    Word(&'static str),
    /// A whole number.
    Integer(i64),
    /// A number.
    Decimal(f64),
    /// Bytes.
    Bytes(Bytes),
    /// Several.
    List(Vec<Shown>),
    /// Several, each with another.
    Pairs(Vec<(Shown, Shown)>),
}

/// In what a time is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds, rounded.
    Seconds,
    /// Milliseconds.
    Millis,
}

impl Unit {
    /// So many milliseconds.
    fn of(self, ms: u64) -> Shown {
        let value = match self {
            Self::Seconds => ms.saturating_add(500) / 1000,
            Self::Millis => ms,
        };
        Shown::Integer(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

/// How the outcomes of a command's operations are shown. Where nothing else is said, the command has one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// As it came; of several operations that are done, OK.
    Plain,
    /// OK, whatever came.
    Ok,
    /// As it came; nil if the condition did not hold.
    NilIfNot,
    /// What came of the first of two; that the condition of the second did not hold says nothing.
    FirstOfTwo,
    /// 1; 0 if the condition did not hold. Of several operations: if that of none did.
    OneIfDone,
    /// One for each operation; nil where the key holds something else.
    EachOrNil,
    /// Of how many operations it is true.
    HowMany,
    /// The first of what came, else nil.
    First,
    /// The first of what came, else 0.
    FirstOrZero,
    /// 1 if the first of what came is there, else 0.
    OneIfFound,
    /// What came without what belongs to it: fields without values, members without scores.
    Firsts,
    /// What belongs to what came: values.
    Seconds,
    /// What came; nil if that is nothing.
    NilIfEmpty,
    /// The key and what came; nil if that is nothing.
    KeyAndItems,
    /// Place and score.
    RankWithScore,
    /// The type of a key, as Redis calls it.
    TypeWord,
    /// How long a key lives; -1 for ever, -2 if there is none.
    KeyLeft(Unit),
    /// When a key ends; -1 never, -2 if there is none.
    KeyEnd(Unit),
    /// The same of fields.
    FieldsLeft(Unit),
    /// The same of fields.
    FieldEnds(Unit),
    /// What became of ends of fields: by these numbers, -2 if there is no such field.
    FieldChanges {
        /// It was changed.
        done: i64,
        /// It was not.
        kept: i64,
    },
    /// The cursor of the next page, and what came.
    Page {
        /// Without what belongs to it.
        firsts: bool,
    },
}

/// The cursor before the first page and after the last.
pub const CURSOR_START: &str = "0";

/// What stands before a name in a cursor, so that no name is [`CURSOR_START`].
pub const CURSOR_AFTER: u8 = b'>';

impl Show {
    /// The answer, or the first error that is not part of it.
    pub fn show(
        self,
        operations: &[v1::Operation],
        outcomes: Vec<v1::OperationOutcome>,
        now_ms: u64,
    ) -> Result<Shown, v1::Error> {
        match self {
            Self::EachOrNil => {
                let each = outcomes.into_iter().map(|outcome| tolerate(outcome, "WRONG_TYPE"));
                return Ok(Shown::List(
                    each.map(|came| nil_or(came.map(|came| came.map(plain)))).collect::<Result<_, _>>()?,
                ));
            }
            Self::HowMany => {
                let mut count = 0;
                for outcome in outcomes {
                    count += i64::from(is_true(&refuse(outcome)?));
                }
                return Ok(Shown::Integer(count));
            }
            Self::OneIfDone => {
                let mut done = 1;
                for outcome in outcomes {
                    if tolerate(outcome, "CONDITION_FAILED")?.is_none() {
                        done = 0;
                    }
                }
                return Ok(Shown::Integer(done));
            }
            Self::FirstOfTwo => {
                let mut outcomes = outcomes.into_iter();
                let first = outcomes.next().map(refuse).transpose()?;
                if let Some(second) = outcomes.next() {
                    tolerate(second, "CONDITION_FAILED")?;
                }
                return Ok(first.map_or(Shown::Nil, plain));
            }
            Self::NilIfNot => {
                let outcome = outcomes.into_iter().next().unwrap_or_default();
                return nil_or(tolerate(outcome, "CONDITION_FAILED").map(|came| came.map(plain)));
            }
            _ => {}
        }
        let mut first = None;
        for outcome in outcomes {
            let came = refuse(outcome)?;
            first.get_or_insert(came);
        }
        Ok(first.map_or(Shown::Nil, |came| self.one(operations, came, now_ms)))
    }

    fn one(self, operations: &[v1::Operation], came: Came, now_ms: u64) -> Shown {
        match self {
            Self::Ok => Shown::Word("OK"),
            Self::First => firsts(plain(came)).into_iter().next().unwrap_or(Shown::Nil),
            Self::FirstOrZero => match firsts(plain(came)).into_iter().next() {
                None | Some(Shown::Nil) => Shown::Integer(0),
                Some(first) => first,
            },
            Self::OneIfFound => {
                let first = firsts(plain(came)).into_iter().next();
                Shown::Integer(i64::from(!matches!(first, None | Some(Shown::Nil))))
            }
            Self::Firsts => Shown::List(firsts(plain(came))),
            Self::Seconds => match plain(came) {
                Shown::Pairs(pairs) => Shown::List(pairs.into_iter().map(|(_, second)| second).collect()),
                other => other,
            },
            Self::NilIfEmpty => match plain(came) {
                Shown::List(items) if items.is_empty() => Shown::Nil,
                shown => shown,
            },
            Self::KeyAndItems => match plain(came) {
                Shown::List(items) if items.is_empty() => Shown::Nil,
                Shown::Pairs(pairs) if pairs.is_empty() => Shown::Nil,
                items => {
                    let key = operations.first().map(|operation| operation.key.clone()).unwrap_or_default();
                    Shown::List(vec![Shown::Bytes(key), items])
                }
            },
            Self::RankWithScore => match came {
                Came::Rank(rank) if rank.found => {
                    Shown::List(vec![integer(rank.rank), Shown::Decimal(rank.score)])
                }
                _ => Shown::Nil,
            },
            Self::TypeWord => Shown::Word(match info(&came).map(v1::KeyInfo::r#type) {
                None | Some(v1::KeyType::Unspecified) => "none",
                Some(v1::KeyType::Bytes | v1::KeyType::Counter) => "string",
                Some(v1::KeyType::Hash) => "hash",
                Some(v1::KeyType::Set) => "set",
                Some(v1::KeyType::SortedSet) => "zset",
                Some(v1::KeyType::List) => "list",
            }),
            Self::KeyLeft(unit) => key_end(&came, unit, now_ms),
            Self::KeyEnd(unit) => key_end(&came, unit, 0),
            Self::FieldsLeft(unit) => field_ends(came, unit, now_ms),
            Self::FieldEnds(unit) => field_ends(came, unit, 0),
            Self::FieldChanges { done, kept } => field_changes(&came, done, kept),
            Self::Page { firsts: without } => page(came, without),
            Self::Plain
            | Self::NilIfNot
            | Self::FirstOfTwo
            | Self::OneIfDone
            | Self::EachOrNil
            | Self::HowMany => plain(came),
        }
    }
}

/// What came, or why nothing did.
fn refuse(outcome: v1::OperationOutcome) -> Result<Came, v1::Error> {
    match outcome.error {
        Some(error) => Err(error),
        None => Ok(outcome.result.unwrap_or(Came::Done(true))),
    }
}

/// The same; `None` if it was refused for that reason.
fn tolerate(outcome: v1::OperationOutcome, reason: &str) -> Result<Option<Came>, v1::Error> {
    match refuse(outcome) {
        Ok(came) => Ok(Some(came)),
        Err(error) if error.reason == reason => Ok(None),
        Err(error) => Err(error),
    }
}

fn nil_or(shown: Result<Option<Shown>, v1::Error>) -> Result<Shown, v1::Error> {
    shown.map(|shown| shown.unwrap_or(Shown::Nil))
}

fn is_true(came: &Came) -> bool {
    match came {
        Came::Flag(flag) => *flag,
        Came::Info(info) => info.found,
        _ => true,
    }
}

fn integer(value: u64) -> Shown {
    Shown::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn bytes_or_nil(value: Option<Bytes>) -> Shown {
    value.map_or(Shown::Nil, Shown::Bytes)
}

fn plain(came: Came) -> Shown {
    match came {
        Came::Done(_) => Shown::Word("OK"),
        Came::Flag(flag) => Shown::Integer(i64::from(flag)),
        Came::Flags(all) => {
            Shown::List(all.flags.into_iter().map(|flag| Shown::Integer(i64::from(flag))).collect())
        }
        Came::Integer(value) => Shown::Integer(value),
        Came::Integers(all) => Shown::List(
            all.integers.into_iter().map(|one| one.integer.map_or(Shown::Nil, Shown::Integer)).collect(),
        ),
        Came::Decimal(value) => Shown::Decimal(value),
        Came::MaybeDecimal(one) => one.decimal.map_or(Shown::Nil, Shown::Decimal),
        Came::Decimals(all) => Shown::List(
            all.decimals.into_iter().map(|one| one.decimal.map_or(Shown::Nil, Shown::Decimal)).collect(),
        ),
        Came::Value(one) => bytes_or_nil(one.value),
        Came::Values(all) => Shown::List(all.values.into_iter().map(|one| bytes_or_nil(one.value)).collect()),
        Came::Members(all) => Shown::List(all.members.into_iter().map(Shown::Bytes).collect()),
        Came::Pairs(all) => pairs(all),
        Came::Scored(all) => scored(all),
        Came::Rank(rank) => {
            if rank.found {
                integer(rank.rank)
            } else {
                Shown::Nil
            }
        }
        Came::Info(info) => Shown::Integer(i64::from(info.found)),
        Came::Changes(_) => field_changes(&came, 1, 0),
        Came::Ends(_) => field_ends(came, Unit::Millis, 0),
        Came::Page(_) => page(came, false),
    }
}

fn pairs(all: v1::Pairs) -> Shown {
    let pair = |pair: v1::FieldValue| (Shown::Bytes(pair.field), Shown::Bytes(pair.value));
    Shown::Pairs(all.pairs.into_iter().map(pair).collect())
}

fn scored(all: v1::Scored) -> Shown {
    let one = |one: v1::ScoredMember| (Shown::Bytes(one.member), Shown::Decimal(one.score));
    Shown::Pairs(all.members.into_iter().map(one).collect())
}

fn firsts(shown: Shown) -> Vec<Shown> {
    match shown {
        Shown::Pairs(pairs) => pairs.into_iter().map(|(first, _)| first).collect(),
        Shown::List(items) => items,
        other => vec![other],
    }
}

fn info(came: &Came) -> Option<&v1::KeyInfo> {
    match came {
        Came::Info(info) if info.found => Some(info),
        _ => None,
    }
}

/// When a key ends, less `from`.
fn key_end(came: &Came, unit: Unit, from: u64) -> Shown {
    info(came).map_or(NONE_SUCH, |info| end(info.expires_at_ms, unit, from))
}

/// There is no such key or field.
const NONE_SUCH: Shown = Shown::Integer(-2);

fn end(end: Option<u64>, unit: Unit, from: u64) -> Shown {
    end.map_or(Shown::Integer(-1), |at| unit.of(at.saturating_sub(from)))
}

fn field_ends(came: Came, unit: Unit, from: u64) -> Shown {
    let Came::Ends(ends) = came else { return plain(came) };
    let one = |field: v1::FieldEnd| {
        if field.found { end(field.expires_at_ms, unit, from) } else { NONE_SUCH }
    };
    Shown::List(ends.ends.into_iter().map(one).collect())
}

fn field_changes(came: &Came, done: i64, kept: i64) -> Shown {
    let Came::Changes(changes) = came else { return Shown::Nil };
    let one = |change| match change {
        v1::Change::Done => done,
        v1::Change::Kept => kept,
        v1::Change::Absent | v1::Change::Unspecified => -2,
    };
    Shown::List(changes.changes().map(|change| Shown::Integer(one(change))).collect())
}

fn page(came: Came, without: bool) -> Shown {
    use v1::page::Items;
    let Came::Page(page) = came else { return plain(came) };
    let items = match page.items {
        None => Shown::List(Vec::new()),
        Some(Items::Members(all)) => plain(Came::Members(all)),
        Some(Items::Pairs(all)) => pairs(all),
        Some(Items::Scored(all)) => scored(all),
    };
    let items = if without { Shown::List(firsts(items)) } else { items };
    let cursor = match page.next {
        None => Shown::Word(CURSOR_START),
        Some(next) => Shown::Bytes([&[CURSOR_AFTER], &next[..]].concat().into()),
    };
    Shown::List(vec![cursor, items])
}

impl Shown {
    /// Writes it as redis-cli does where nobody looks: one line an item. A list without items is no line.
    pub fn write_lines(&self, out: &mut Vec<u8>) {
        match self {
            Self::Nil => {}
            Self::Word(word) => out.extend_from_slice(word.as_bytes()),
            Self::Integer(value) => out.extend_from_slice(value.to_string().as_bytes()),
            Self::Decimal(value) => out.extend_from_slice(value.to_string().as_bytes()),
            Self::Bytes(bytes) => out.extend_from_slice(bytes),
            Self::List(items) => return items.iter().for_each(|item| item.write_lines(out)),
            Self::Pairs(pairs) => {
                return pairs.iter().for_each(|(first, second)| {
                    first.write_lines(out);
                    second.write_lines(out);
                });
            }
        }
        out.push(b'\n');
    }
}
