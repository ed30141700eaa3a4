//! `flowmesh kv watch`: changes of a store as lines of JSON.
//!
//! ```text
//! {"key":"k","change":"set","version":7,"type":"bytes","value":"v"}
//! {"key":"h","change":"field_set","version":8,"member":"f","value":"1","old":{"value":"0"}}
//! {"key":"h","change":"expire","version":9}
//! ```
//! Bytes that are not UTF-8 are objects with `base64`.

use bytes::Bytes;
use clap::Args;
use flowmesh_model::kv::change::ChangeKind;
use flowmesh_proto::v1::{self, KvChangeKind};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use tonic::{Request, Status};
use v1::watch_request::{Keys, Start};

use super::KvClient;
use super::run::DecimalJson;
use crate::cli::args::Server;
use crate::cli::base64;
use crate::cli::connection::{Backoff, client};
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{BytesJson, Out};

/// Arguments of `kv watch`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("keys").args(["key", "prefix"])))]
#[command(group(clap::ArgGroup::new("start").args(["snapshot", "from_version", "earliest", "resume"])))]
pub struct WatchArgs {
    /// The store; it needs a feed
    store: String,
    /// Only this key
    #[arg(short, long)]
    key: Option<String>,
    /// Only keys that start with this
    #[arg(short, long)]
    prefix: Option<String>,
    /// Begin with all that is there, as changes called present; {"snapshot_done":true} stands behind them
    #[arg(long)]
    snapshot: bool,
    /// Begin behind this version; with several shards only with --key
    #[arg(long, value_name = "VERSION")]
    from_version: Option<u64>,
    /// Begin with the oldest change that the feed has
    #[arg(long)]
    earliest: bool,
    /// Begin where another watch with --show-resume was
    #[arg(long, value_name = "TOKEN", value_parser = token)]
    resume: Option<Bytes>,
    /// Write {"resume":TOKEN} behind changes: where to go on
    #[arg(long)]
    show_resume: bool,
    /// Stop after so many changes
    #[arg(short = 'n', long)]
    limit: Option<u64>,
    #[command(flatten)]
    server: Server,
}

fn token(text: &str) -> Result<Bytes, String> {
    let bytes = base64::decode(text).ok_or_else(|| "allowed: what --show-resume writes".to_owned())?;
    Ok(Bytes::from(bytes))
}

/// A change of a key as an object.
struct EventJson<'a>(&'a v1::WatchEvent);

impl Serialize for EventJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nothing = v1::KvChange::default();
        let change = self.0.change.as_ref().unwrap_or(&nothing);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("key", &BytesJson(&self.0.key))?;
        map.serialize_entry("change", kind_word(change.kind()))?;
        map.serialize_entry("version", &change.version)?;
        put_type(&mut map, change.holds())?;
        if !change.member.is_empty() || is_of_member(change.kind()) {
            map.serialize_entry("member", &BytesJson(&change.member))?;
        }
        if has_value(change) && change.value_bytes.is_none() {
            map.serialize_entry("value", &BytesJson(&change.value))?;
        }
        put(&mut map, "value_bytes", change.value_bytes)?;
        put(&mut map, "score", change.score.map(DecimalJson))?;
        put(&mut map, "index", change.index)?;
        put(&mut map, "count", change.count)?;
        put(&mut map, "other", change.other.as_ref().map(|other| BytesJson(other)))?;
        if !change.items.is_empty() {
            map.serialize_entry("items", &ItemsJson(&change.items, change.holds()))?;
        }
        put(&mut map, "more", Some(true).filter(|_| change.more))?;
        put(&mut map, "expires_at_ms", change.expires_at_ms)?;
        put(&mut map, "old", change.old.as_ref().map(OldJson))?;
        map.end()
    }
}

struct ItemsJson<'a>(&'a [v1::KvItem], v1::KeyType);

impl Serialize for ItemsJson<'_> {
    /// As lines of an export have them.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut items = serializer.serialize_seq(Some(self.0.len()))?;
        for item in self.0 {
            let (member, value) = (BytesJson(&item.member), BytesJson(&item.value));
            match (self.1, item.expires_at_ms) {
                (v1::KeyType::Hash, None) => items.serialize_element(&(member, value))?,
                (v1::KeyType::Hash, Some(end)) => items.serialize_element(&(member, value, end))?,
                (v1::KeyType::SortedSet, _) => {
                    items.serialize_element(&(member, DecimalJson(item.score.unwrap_or_default())))?;
                }
                (v1::KeyType::List, _) => items.serialize_element(&value)?,
                _ => items.serialize_element(&member)?,
            }
        }
        items.end()
    }
}

struct OldJson<'a>(&'a v1::KvOld);

impl Serialize for OldJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let old = self.0;
        let mut map = serializer.serialize_map(None)?;
        put_type(&mut map, old.holds())?;
        put(&mut map, "value", old.value.as_ref().map(|value| BytesJson(value)))?;
        put(&mut map, "value_bytes", old.value_bytes)?;
        put(&mut map, "score", old.score.map(DecimalJson))?;
        put(&mut map, "items", old.items)?;
        if !old.values.is_empty() {
            let values: Vec<_> = old.values.iter().map(|value| BytesJson(value)).collect();
            map.serialize_entry("values", &values)?;
        }
        put(&mut map, "expires_at_ms", old.expires_at_ms)?;
        map.end()
    }
}

fn put<M: SerializeMap, T: Serialize>(map: &mut M, name: &str, value: Option<T>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, &value))
}

fn put_type<M: SerializeMap>(map: &mut M, holds: v1::KeyType) -> Result<(), M::Error> {
    put(map, "type", Some(super::type_word(holds)).filter(|_| holds != v1::KeyType::Unspecified))
}

/// The name of a kind, as in the header of a record.
fn kind_word(kind: KvChangeKind) -> &'static str {
    let index = usize::try_from(kind as i32 - 1).ok();
    index.and_then(|index| ChangeKind::ALL.get(index)).map_or("unknown", |kind| kind.as_str())
}

fn is_of_member(kind: KvChangeKind) -> bool {
    use KvChangeKind as Kind;
    matches!(
        kind,
        Kind::FieldSet
            | Kind::FieldDelete
            | Kind::FieldExpire
            | Kind::FieldEnd
            | Kind::MemberAdd
            | Kind::MemberRemove
            | Kind::ScoreSet
            | Kind::ScoreRemove
    )
}

/// Whether the value counts.
fn has_value(change: &v1::KvChange) -> bool {
    use KvChangeKind as Kind;
    match change.kind() {
        Kind::Set | Kind::FieldSet | Kind::PushFront | Kind::PushBack | Kind::ItemSet | Kind::ItemInsert => {
            true
        }
        Kind::Rename | Kind::Copy | Kind::Present => {
            matches!(change.holds(), v1::KeyType::Bytes | v1::KeyType::Counter)
        }
        _ => false,
    }
}

#[derive(Serialize)]
struct DoneJson {
    snapshot_done: bool,
}

#[derive(Serialize)]
struct ResumeJson {
    resume: String,
}

/// A watch that knows where it is.
struct Watcher {
    args: WatchArgs,
    out: Out,
    resume: Option<Bytes>,
    left: u64,
}

impl WatchArgs {
    /// Runs it. A watch goes on after a restart of the server, unless its snapshot was not complete.
    pub async fn run(self) -> Result<(), Failure> {
        let kv = client!(kv_client::KvClient, self.server.connect().await?);
        let (resume, left) = (self.resume.clone(), self.limit.unwrap_or(u64::MAX));
        let mut watcher = Watcher { args: self, out: Out::new(), resume, left };
        let mut backoff = Backoff::new(None);
        while watcher.left > 0 {
            let Err(status) = watcher.follow(kv.clone(), &mut backoff).await? else { break };
            let refusal = Refusal::of_status(&status);
            if watcher.args.snapshot && watcher.resume.is_none() {
                return Err(Failure::Refused(refusal));
            }
            backoff.wait(refusal).await?;
        }
        watcher.out.flush()
    }
}

impl Watcher {
    fn request(&self) -> v1::WatchRequest {
        let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
        let args = &self.args;
        let keys = args.key.as_ref().map(|key| Keys::Key(bytes(key)));
        let start = match (&self.resume, args.snapshot, args.from_version, args.earliest) {
            (Some(token), ..) => Some(Start::Resume(token.clone())),
            (_, true, ..) => Some(Start::Snapshot(true)),
            (_, _, Some(version), _) => Some(Start::FromVersion(version)),
            (.., true) => Some(Start::Earliest(true)),
            _ => None,
        };
        v1::WatchRequest {
            store: args.store.clone(),
            keys: keys.or_else(|| args.prefix.as_ref().map(|prefix| Keys::Prefix(bytes(prefix)))),
            start,
        }
    }

    /// One call, until enough was written or it breaks off.
    async fn follow(
        &mut self,
        mut kv: KvClient,
        backoff: &mut Backoff,
    ) -> Result<Result<(), Status>, Failure> {
        let mut messages = match kv.watch(Request::new(self.request())).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            match messages.message().await {
                Ok(Some(message)) => {
                    backoff.succeeded();
                    self.write(&message)?;
                    self.out.flush()?;
                    if self.left == 0 {
                        return Ok(Ok(()));
                    }
                }
                Ok(None) => return Ok(Err(Status::unavailable("the server ended the call"))),
                Err(status) => return Ok(Err(status)),
            }
        }
    }

    fn write(&mut self, message: &v1::WatchResponse) -> Result<(), Failure> {
        for event in &message.events {
            if self.left == 0 {
                return Ok(());
            }
            self.out.json(&EventJson(event))?;
            self.left -= 1;
        }
        if message.snapshot_done {
            self.out.json(&DoneJson { snapshot_done: true })?;
        }
        if !message.resume.is_empty() {
            self.resume = Some(message.resume.clone());
            if self.args.show_resume {
                self.out.json(&ResumeJson { resume: base64::encode(&message.resume) })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(kind: KvChangeKind, change: v1::KvChange) -> String {
        let change = Some(v1::KvChange { kind: kind.into(), version: 7, ..change });
        serde_json::to_string(&EventJson(&v1::WatchEvent { key: Bytes::from_static(b"k"), change })).unwrap()
    }

    #[test]
    fn changes_are_lines_that_name_what_they_have() {
        let set = v1::KvChange {
            holds: v1::KeyType::Bytes.into(),
            value: Bytes::from_static(b"\xff"),
            expires_at_ms: Some(9),
            old: Some(v1::KvOld { value: Some(Bytes::from_static(b"o")), ..v1::KvOld::default() }),
            ..v1::KvChange::default()
        };
        assert_eq!(
            json(KvChangeKind::Set, set),
            r#"{"key":"k","change":"set","version":7,"type":"bytes","value":{"base64":"/w=="},"expires_at_ms":9,"old":{"value":"o"}}"#
        );
        let item = v1::KvItem {
            member: Bytes::from_static(b"m"),
            score: Some(f64::INFINITY),
            ..v1::KvItem::default()
        };
        let whole = v1::KvChange {
            holds: v1::KeyType::SortedSet.into(),
            items: vec![item],
            more: true,
            other: Some(Bytes::from_static(b"j")),
            ..v1::KvChange::default()
        };
        assert_eq!(
            json(KvChangeKind::Rename, whole),
            r#"{"key":"k","change":"rename","version":7,"type":"sorted_set","other":"j","items":[["m","inf"]],"more":true}"#
        );
        let large = v1::KvChange {
            holds: v1::KeyType::Bytes.into(),
            value_bytes: Some(1_048_577),
            old: Some(v1::KvOld { value_bytes: Some(2_000_000), ..v1::KvOld::default() }),
            ..v1::KvChange::default()
        };
        assert_eq!(
            json(KvChangeKind::Set, large),
            r#"{"key":"k","change":"set","version":7,"type":"bytes","value_bytes":1048577,"old":{"value_bytes":2000000}}"#
        );
        let push = json(KvChangeKind::PushBack, v1::KvChange::default());
        assert_eq!(push, r#"{"key":"k","change":"push_back","version":7,"value":""}"#);
        assert_eq!(
            json(KvChangeKind::Expire, v1::KvChange::default()),
            r#"{"key":"k","change":"expire","version":7}"#
        );
    }
}
