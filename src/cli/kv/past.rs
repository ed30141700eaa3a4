//! `flowmesh kv history` and `flowmesh kv diff`, and what `--as-of` and `--at-version` of other commands mean.

use bytes::Bytes;
use clap::Args;
use flowmesh_proto::v1;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use v1::diff_request::{From, To};

use super::run::DecimalJson;
use super::{end_text, type_word};
use crate::cli::args::{Format, Output, Server, moment};
use crate::cli::connection::client;
use crate::cli::failure::Failure;
use crate::cli::output::{BytesJson, Out, readable, time};

/// Items of one page.
const PAGE: u64 = 1_000;

/// When a store is looked at.
#[derive(Args, Debug)]
pub struct AsOfArgs {
    /// As it was at a time: 2026-11-21T12:00:00Z, -1h, @MS; the store needs a history
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "at_version", value_parser = moment)]
    as_of: Option<u64>,
    /// As it was after a version; of several keys only on a server with one shard
    #[arg(long, value_name = "VERSION")]
    at_version: Option<u64>,
}

/// What the request of a call takes.
macro_rules! as_of {
    ($request:ident, $args:expr) => {{
        use flowmesh_proto::v1::$request::AsOf;
        let (time, version) = $args.given();
        time.map(AsOf::AsOfMs).or(version.map(AsOf::AtVersion))
    }};
}
pub(super) use as_of;

impl AsOfArgs {
    /// The time, or the version.
    pub const fn given(&self) -> (Option<u64>, Option<u64>) {
        (self.as_of, self.at_version)
    }

    /// Whether it is not now.
    pub const fn is_past(&self) -> bool {
        self.as_of.is_some() || self.at_version.is_some()
    }
}

/// Arguments of `kv history`.
#[derive(Args, Debug)]
pub struct HistoryArgs {
    /// The store; it needs a history
    store: String,
    /// The key
    key: String,
    /// Only versions behind this one
    #[arg(long, value_name = "VERSION", default_value_t = 0)]
    after: u64,
    /// At most so many
    #[arg(short = 'n', long)]
    limit: Option<u64>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `kv diff`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("first").required(true).args(["from", "from_version"])))]
pub struct DiffArgs {
    /// The store; it needs a history
    store: String,
    /// Then: 2026-11-21T12:00:00Z, -1h, @MS
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment)]
    from: Option<u64>,
    /// And later; now if not given
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = moment, conflicts_with = "from_version")]
    to: Option<u64>,
    /// Then: after this version; only on a server with one shard
    #[arg(long, value_name = "VERSION", requires = "to_version")]
    from_version: Option<u64>,
    /// And later: after this version
    #[arg(long, value_name = "VERSION", requires = "from_version", conflicts_with_all = ["from", "to"])]
    to_version: Option<u64>,
    /// Only keys that start with this
    #[arg(short, long, default_value = "")]
    prefix: String,
    /// At most so many keys
    #[arg(short = 'n', long)]
    limit: Option<u64>,
    /// Leave values and items out
    #[arg(short, long)]
    keys_only: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

impl HistoryArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let (mut out, mut rows) = (Out::new(), Vec::new());
        let (mut left, mut after) = (self.limit.unwrap_or(u64::MAX), self.after);
        while left > 0 {
            let request = v1::VersionsRequest {
                store: self.store.clone(),
                key: Bytes::copy_from_slice(self.key.as_bytes()),
                after_version: after,
                limit: u32::try_from(left.min(PAGE)).unwrap_or(u32::MAX),
            };
            let page = kv.versions(self.server.request(request)).await?.into_inner();
            left = left.saturating_sub(page.versions.len() as u64);
            for version in &page.versions {
                match self.output.format {
                    Format::Table => rows.push(version_row(version)),
                    Format::Json => out.json(&VersionJson(version))?,
                }
            }
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        if self.output.format == Format::Table {
            out.table(&["VERSION", "TIME", "TYPE", "EXPIRES", "VALUE"], rows)?;
        }
        out.flush()
    }
}

fn version_row(version: &v1::KeyVersion) -> Vec<String> {
    let at = version.at_ms.map_or_else(|| "before".to_owned(), time);
    let Some(entry) = version.entry.as_ref().filter(|entry| entry.found) else {
        return vec![version.version.to_string(), at, "gone".to_owned(), String::new(), String::new()];
    };
    vec![
        version.version.to_string(),
        at,
        type_word(entry.r#type()).to_owned(),
        end_text(entry.expires_at_ms),
        readable(&entry.value),
    ]
}

struct VersionJson<'a>(&'a v1::KeyVersion);

impl Serialize for VersionJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("version", &self.0.version)?;
        if let Some(at) = self.0.at_ms {
            map.serialize_entry("at_ms", &at)?;
        }
        match self.0.entry.as_ref().filter(|entry| entry.found) {
            Some(entry) => put_entry(&mut map, entry)?,
            None => map.serialize_entry("gone", &true)?,
        }
        map.end()
    }
}

fn is_plain(entry: &v1::GetEntry) -> bool {
    matches!(entry.r#type(), v1::KeyType::Bytes | v1::KeyType::Counter)
}

fn put_entry<M: SerializeMap>(map: &mut M, entry: &v1::GetEntry) -> Result<(), M::Error> {
    map.serialize_entry("type", type_word(entry.r#type()))?;
    if is_plain(entry) {
        map.serialize_entry("value", &BytesJson(&entry.value))?;
    }
    if let Some(end) = entry.expires_at_ms {
        map.serialize_entry("expires_at_ms", &end)?;
    }
    Ok(())
}

impl DiffArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let (mut out, mut rows) = (Out::new(), Vec::new());
        let from = self.from.map(From::FromMs).or(self.from_version.map(From::FromVersion));
        let mut to = self.to.map(To::ToMs).or(self.to_version.map(To::ToVersion));
        let (mut left, mut after) = (self.limit.unwrap_or(u64::MAX), None);
        while left > 0 {
            let request = v1::DiffRequest {
                store: self.store.clone(),
                prefix: Bytes::copy_from_slice(self.prefix.as_bytes()),
                from,
                to,
                after,
                limit: u32::try_from(left.min(PAGE)).unwrap_or(u32::MAX),
                keys_only: self.keys_only,
            };
            let page = kv.diff(self.server.request(request)).await?.into_inner();
            left = left.saturating_sub(page.keys.len() as u64);
            for key in &page.keys {
                match self.output.format {
                    Format::Table => rows.push(diff_row(key)),
                    Format::Json => out.json(&DiffJson { key, with_values: !self.keys_only })?,
                }
            }
            // All pages compare with the same time.
            to = to.or(Some(To::ToMs(page.to_ms)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if self.output.format == Format::Table {
            out.table(&["CHANGE", "KEY", "BEFORE", "AFTER"], rows)?;
        }
        out.flush()
    }
}

fn change_word(key: &v1::KeyDifference) -> &'static str {
    match (&key.before, &key.after) {
        (None, _) => "added",
        (_, None) => "removed",
        _ => "changed",
    }
}

fn diff_row(key: &v1::KeyDifference) -> Vec<String> {
    let show = |entry: &Option<v1::GetEntry>| match entry {
        None => String::new(),
        Some(entry) if is_plain(entry) => readable(&entry.value),
        Some(entry) if key.items.is_empty() => type_word(entry.r#type()).to_owned(),
        Some(entry) => {
            let more = if key.more { " or more" } else { "" };
            format!("{}, {}{more} items differ", type_word(entry.r#type()), key.items.len())
        }
    };
    vec![change_word(key).to_owned(), readable(&key.key), show(&key.before), show(&key.after)]
}

struct DiffJson<'a> {
    key: &'a v1::KeyDifference,
    with_values: bool,
}

impl Serialize for DiffJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("key", &BytesJson(&self.key.key))?;
        map.serialize_entry("change", change_word(self.key))?;
        if self.with_values {
            for (name, entry) in [("before", &self.key.before), ("after", &self.key.after)] {
                if let Some(entry) = entry {
                    map.serialize_entry(name, &EntryJson(entry))?;
                }
            }
        }
        if !self.key.items.is_empty() {
            let items: Vec<_> = self.key.items.iter().map(ItemDiffJson).collect();
            map.serialize_entry("items", &items)?;
        }
        if self.key.more {
            map.serialize_entry("more", &true)?;
        }
        map.end()
    }
}

struct EntryJson<'a>(&'a v1::GetEntry);

impl Serialize for EntryJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("version", &self.0.version)?;
        put_entry(&mut map, self.0)?;
        map.end()
    }
}

struct ItemDiffJson<'a>(&'a v1::ItemDifference);

impl Serialize for ItemDiffJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(index) = self.0.index {
            map.serialize_entry("index", &index)?;
        }
        let member = self.0.before.iter().chain(&self.0.after).map(|item| &item.member).next();
        if let Some(member) = member.filter(|_| self.0.index.is_none()) {
            map.serialize_entry("member", &BytesJson(member))?;
        }
        for (name, item) in [("before", &self.0.before), ("after", &self.0.after)] {
            if let Some(item) = item {
                map.serialize_entry(name, &ItemJson(item))?;
            }
        }
        map.end()
    }
}

/// A score, a value, or that the member is there.
struct ItemJson<'a>(&'a v1::KvItem);

impl Serialize for ItemJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let item = self.0;
        let mut map = serializer.serialize_map(None)?;
        match item.score {
            Some(score) => map.serialize_entry("score", &DecimalJson(score))?,
            None => map.serialize_entry("value", &BytesJson(&item.value))?,
        }
        if let Some(end) = item.expires_at_ms {
            map.serialize_entry("expires_at_ms", &end)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: &'static str) -> v1::GetEntry {
        v1::GetEntry {
            found: true,
            value: value.into(),
            version: 7,
            expires_at_ms: Some(9),
            r#type: v1::KeyType::Bytes.into(),
        }
    }

    fn text(value: &impl Serialize) -> String {
        serde_json::to_string(value).unwrap()
    }

    #[test]
    fn versions_and_differences_are_lines_that_name_what_they_have() {
        let version = v1::KeyVersion { version: 7, at_ms: Some(5), entry: Some(entry("v")) };
        assert_eq!(
            text(&VersionJson(&version)),
            r#"{"version":7,"at_ms":5,"type":"bytes","value":"v","expires_at_ms":9}"#
        );
        assert_eq!(version_row(&version)[2..], ["bytes", "1970-01-01T00:00:00.009Z", "v"]);
        let gone = v1::KeyVersion { version: 8, at_ms: None, entry: Some(v1::GetEntry::default()) };
        assert_eq!(text(&VersionJson(&gone)), r#"{"version":8,"gone":true}"#);
        assert_eq!(version_row(&gone), ["8", "before", "gone", "", ""]);
        let item = |score| v1::KvItem { member: "m".into(), score: Some(score), ..v1::KvItem::default() };
        let of_set = v1::GetEntry { r#type: v1::KeyType::SortedSet.into(), ..entry("") };
        let key = v1::KeyDifference {
            key: "k".into(),
            before: Some(of_set.clone()),
            after: Some(of_set),
            items: vec![v1::ItemDifference { index: None, before: Some(item(1.0)), after: Some(item(2.5)) }],
            more: true,
        };
        let both = r#"{"version":7,"type":"sorted_set","expires_at_ms":9}"#;
        let items = r#"[{"member":"m","before":{"score":1.0},"after":{"score":2.5}}]"#;
        let line = format!(
            r#"{{"key":"k","change":"changed","before":{both},"after":{both},"items":{items},"more":true}}"#
        );
        assert_eq!(text(&DiffJson { key: &key, with_values: true }), line);
        let row =
            ["changed", "k", "sorted_set, 1 or more items differ", "sorted_set, 1 or more items differ"];
        assert_eq!(diff_row(&key), row);
        let added = v1::KeyDifference { before: None, items: Vec::new(), more: false, ..key };
        assert_eq!(text(&DiffJson { key: &added, with_values: false }), r#"{"key":"k","change":"added"}"#);
    }
}
