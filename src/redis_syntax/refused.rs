//! Commands of Redis' groups for keys that have no equivalent, and what to use instead.

use super::Group;

/// Commands of a group that are refused for the same reason.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// Their group.
    pub group: Group,
    /// Their names.
    pub names: &'static [&'static str],
    /// What to use instead, and why there is none: one sentence.
    pub instead: &'static str,
}

const fn refused(group: Group, names: &'static [&'static str], instead: &'static str) -> Refused {
    Refused { group, names, instead }
}

const WAITS: &str =
    "Nothing waits for a list or a sorted set; a queue does: `queue reserve --wait`, or `queue work`.";

/// The commands.
pub const REFUSED: &[Refused] = &[
    refused(
        Group::String,
        &["LCS"],
        "The longest common subsequence takes time in the square of the values; read both and compare in the client.",
    ),
    refused(
        Group::Generic,
        &["DUMP", "MIGRATE", "RESTORE"],
        "There is no binary form of a single key; `kv export` and `kv import` carry keys with their ends as JSON lines.",
    ),
    refused(
        Group::Generic,
        &["KEYS"],
        "A whole store is not listed in one answer; `kv scan --prefix` does it page by page, in order.",
    ),
    refused(
        Group::Generic,
        &["MOVE"],
        "Stores have no numbered databases; read the key, write it into the other store and delete it.",
    ),
    refused(
        Group::Generic,
        &["OBJECT"],
        "How a key is kept is not shown; `kv type -o json` says type, length, memory, version and end.",
    ),
    refused(
        Group::Generic,
        &["SCAN"],
        "`kv scan` walks over a store in byte order, with a prefix; its cursor is a key.",
    ),
    refused(
        Group::Generic,
        &["SORT", "SORT_RO"],
        "Nothing is sorted when it is read; keep a sorted set, or read with LRANGE or SMEMBERS and sort in the client.",
    ),
    refused(
        Group::Generic,
        &["WAIT", "WAITAOF"],
        "A write is on disk when it is answered, unless durability is set otherwise; there are no replicas to wait for.",
    ),
    refused(Group::List, &["BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH"], WAITS),
    refused(Group::SortedSet, &["BZMPOP", "BZPOPMAX", "BZPOPMIN"], WAITS),
];

/// Of other groups, those one may look for here first.
pub const ELSEWHERE: &[(&str, &str)] = &[
    ("DBSIZE", "`kv count` says how many keys a store has."),
    ("FLUSHDB", "`kv clear` deletes all keys of a store."),
    ("FLUSHALL", "`kv clear` deletes all keys of a store; there is no way to empty all stores at once."),
    ("SELECT", "Stores have names instead of numbers: name another store."),
    ("MULTI", "Give all commands at once: `kv do --atomic STORE -`, or `Kv.Run` with `atomic`."),
    ("EXEC", "Give all commands at once: `kv do --atomic STORE -`, or `Kv.Run` with `atomic`."),
    ("WATCH", "Give conditions with the commands: `Kv.Run` with `if_version` or `if_value`."),
    ("EVAL", "There are no scripts; an atomic batch with conditions does what most of them are for."),
    ("EVALSHA", "There are no scripts; an atomic batch with conditions does what most of them are for."),
    ("PUBLISH", "Streams carry messages: `stream append`."),
    ("SUBSCRIBE", "Streams carry messages: `stream read --follow`."),
    ("XADD", "Streams are a kind of their own: `stream append`."),
    ("XREAD", "Streams are a kind of their own: `stream read`."),
    ("XREADGROUP", "Streams are a kind of their own: `stream consume`."),
];
