//! `flowmesh kv`: set, get, delete, exists and scan; [`run`] has Redis' commands, [`whole`] what is asked of a key or a
//! store as such, [`past`] what was, [`export`] and [`import`] carry keys as the [`lines`] of a file, [`watch`] follows changes.

mod export;
mod import;
mod lines;
mod past;
mod run;
mod watch;
mod whole;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use flowmesh_model::limits::KV_VALUE_BYTES_MAX;
use flowmesh_proto::v1::{self, set_entry};
use serde::Serialize;

use super::args::{Format, Output, Server, ValueFormat, duration, millis, moment};
use super::connection::client;
use super::failure::{Failure, Refusal};
use super::input::Source;
use super::output::{Out, base64_text, readable, text, time};
use past::{AsOfArgs, as_of};

type KvClient = v1::kv_client::KvClient<tonic::transport::Channel>;

/// Commands on key-value stores.
#[derive(Subcommand, Debug)]
pub enum KvCommand {
    /// Set a key
    Set(SetArgs),
    /// Write a key's value to standard output; exit 3 if there is no such key
    Get(GetArgs),
    /// Delete keys; exit 3 if none of them was there
    Delete(DeleteArgs),
    /// Say whether keys are there; exit 3 if one is not
    Exists(ExistsArgs),
    /// List keys in byte order, all pages
    Scan(ScanArgs),
    /// Carry out a command as in redis-cli, or many of standard input: kv do STORE HSET user:1 name Ada
    Do(run::DoArgs),
    /// Say what a key holds; exit 3 if there is no such key
    Type(whole::TypeArgs),
    /// Say how many keys there are
    Count(whole::CountArgs),
    /// Write a key by chance; exit 3 if there is none
    Random(whole::RandomArgs),
    /// Delete all keys
    Clear(whole::ClearArgs),
    /// Write all keys as lines of JSON, with what they hold and when they end
    Export(export::ExportArgs),
    /// Set keys from lines of JSON, as export writes them
    Import(import::ImportArgs),
    /// List what a key held, the oldest version first; the store needs a history
    History(past::HistoryArgs),
    /// List keys that held something else at one time than at another; the store needs a history
    Diff(past::DiffArgs),
    /// Write changes as lines of JSON as they are made, from now on or after all that is there; the store needs a feed
    Watch(watch::WatchArgs),
}

/// Arguments of `kv set`.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("source").required(true).args(["value", "file"])))]
#[command(group(clap::ArgGroup::new("condition").args(["if_absent", "if_present", "if_version", "if_value"])))]
#[command(group(clap::ArgGroup::new("end").args(["ttl", "keep_ttl", "expires_at"])))]
pub struct SetArgs {
    /// The store
    store: String,
    /// The key
    key: String,
    /// The value; - reads standard input
    #[arg(allow_negative_numbers = true)]
    value: Option<String>,
    /// Read the value from a file
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// How long the value lives; else as the store's default_ttl_ms says, else for ever
    #[arg(long, value_name = "TIME", value_parser = duration)]
    ttl: Option<Duration>,
    /// Let it live as long as the value before it
    #[arg(long)]
    keep_ttl: bool,
    /// Let it live until then: a time, @MS, or so long from now (+10m)
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    expires_at: Option<u64>,
    /// Only if there is no such key
    #[arg(long)]
    if_absent: bool,
    /// Only if the key is there
    #[arg(long)]
    if_present: bool,
    /// Only if the key has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Only if the key holds this
    #[arg(long, value_name = "VALUE")]
    if_value: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `kv get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// The store
    store: String,
    /// The key
    key: String,
    #[command(flatten)]
    as_of: AsOfArgs,
    /// How it is written; value: the bytes as they are, without a line break
    #[arg(short, long, default_value = "value", value_name = "FORMAT")]
    output: ValueFormat,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `kv delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The store
    store: String,
    /// The keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    /// Only if the key (exactly one) has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `kv exists`.
#[derive(Args, Debug)]
pub struct ExistsArgs {
    /// The store
    store: String,
    /// The keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `kv scan`.
#[derive(Args, Debug)]
pub struct ScanArgs {
    /// The store
    store: String,
    /// Only keys that start with this
    #[arg(short, long, default_value = "")]
    prefix: String,
    /// Only this key and those behind it
    #[arg(long, value_name = "KEY")]
    start: Option<String>,
    /// Only keys before this one
    #[arg(long, value_name = "KEY")]
    end: Option<String>,
    /// Only keys that match: * any bytes, ? one, [a-z] one of these
    #[arg(short, long, value_name = "PATTERN")]
    glob: Option<String>,
    /// From the last key to the first
    #[arg(short, long)]
    reverse: bool,
    /// Only what comes after this key, which must be among those that are scanned
    #[arg(long, value_name = "KEY")]
    after: Option<String>,
    /// At most so many keys
    #[arg(short = 'n', long)]
    limit: Option<u64>,
    /// Leave the values out
    #[arg(short, long)]
    keys_only: bool,
    #[command(flatten)]
    as_of: AsOfArgs,
    /// How they are written; value: KEY, a tab, and the value
    #[arg(short, long, default_value = "value", value_name = "FORMAT")]
    output: ValueFormat,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct EntryJson<'a> {
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    r#type: &'static str,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
}

#[derive(Serialize)]
struct KeyJson<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exists: Option<bool>,
}

impl KvCommand {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Set(args) => args.run().await,
            Self::Get(args) => args.run().await,
            Self::Delete(args) => args.run().await,
            Self::Exists(args) => args.run().await,
            Self::Scan(args) => args.run().await,
            Self::Do(args) => args.run().await,
            Self::Type(args) => args.run().await,
            Self::Count(args) => args.run().await,
            Self::Random(args) => args.run().await,
            Self::Clear(args) => args.run().await,
            Self::Export(args) => args.run().await,
            Self::Import(args) => args.run().await,
            Self::History(args) => args.run().await,
            Self::Diff(args) => args.run().await,
            Self::Watch(args) => args.run().await,
        }
    }
}

impl SetArgs {
    fn entry(&self) -> Result<v1::SetEntry, Failure> {
        let value = match (&self.file, self.value.as_deref()) {
            (Some(path), _) => Source::of_path(path).read_whole(KV_VALUE_BYTES_MAX)?,
            (None, Some("-")) => Source::Stdin.read_whole(KV_VALUE_BYTES_MAX)?,
            (None, value) => Bytes::copy_from_slice(value.unwrap_or_default().as_bytes()),
        };
        let ttl = match (self.keep_ttl, self.ttl, self.expires_at) {
            (true, ..) => Some(set_entry::Ttl::KeepTtl(true)),
            (_, Some(ttl), _) => Some(set_entry::Ttl::TtlMs(millis(ttl))),
            (.., at) => at.map(set_entry::Ttl::ExpiresAtMs),
        };
        let condition = match (self.if_absent, self.if_present, self.if_version, &self.if_value) {
            (true, ..) => Some(set_entry::Condition::IfAbsent(true)),
            (_, true, ..) => Some(set_entry::Condition::IfPresent(true)),
            (_, _, Some(version), _) => Some(set_entry::Condition::IfVersion(version)),
            (.., value) => value
                .as_ref()
                .map(|value| set_entry::Condition::IfValue(Bytes::copy_from_slice(value.as_bytes()))),
        };
        Ok(v1::SetEntry { key: Bytes::copy_from_slice(self.key.as_bytes()), value, ttl, condition })
    }

    async fn run(self) -> Result<(), Failure> {
        let entry = self.entry()?;
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let request = v1::SetRequest { store: self.store, entries: vec![entry] };
        let response = kv.set(self.server.request(request)).await?.into_inner();
        let outcome = response.outcomes.into_iter().next().unwrap_or_default();
        if let Some(error) = &outcome.error {
            return Err(Failure::Refused(Refusal::of_item(error)));
        }
        let mut out = Out::new();
        match self.output.format {
            Format::Table => {
                out.line(format!("{} is set, version {}", self.key, outcome.version).as_bytes())?;
            }
            Format::Json => out.json(&KeyJson {
                key: &self.key,
                version: Some(outcome.version),
                deleted: None,
                exists: None,
            })?,
        }
        out.flush()
    }
}

impl GetArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let key = Bytes::copy_from_slice(self.key.as_bytes());
        let as_of = as_of!(get_request, self.as_of);
        let request = v1::GetRequest { store: self.store.clone(), keys: vec![key.clone()], as_of };
        let response = kv.get(self.server.request(request)).await?.into_inner();
        let entry = response.entries.into_iter().next().filter(|entry| entry.found).ok_or(Failure::Absent)?;
        if let Some(command) = reading(entry.r#type()) {
            return Err(self.no_value(entry.r#type(), command));
        }
        let entry = v1::ScanEntry {
            key,
            value: entry.value,
            version: entry.version,
            expires_at_ms: entry.expires_at_ms,
            r#type: entry.r#type,
        };
        let mut out = Out::new();
        match self.output {
            ValueFormat::Value => out.raw(&entry.value)?,
            ValueFormat::Table => out.table(&COLUMNS, vec![row(&entry)])?,
            ValueFormat::Json => out.json(&entry_json(&entry, true))?,
        }
        out.flush()
    }
}

impl GetArgs {
    /// A collection has no value of its own.
    fn no_value(&self, holds: v1::KeyType, command: &str) -> Failure {
        let (store, key) = (&self.store, &self.key);
        let message = format!(
            "{key} holds a {}, not a value; read it with `flowmesh kv do {store} {command}`",
            type_word(holds),
            command = command.replace("KEY", key),
        );
        let reason = "WRONG_TYPE".to_owned();
        Failure::Refused(Refusal {
            code: tonic::Code::FailedPrecondition,
            reason,
            message,
            retry_after_ms: None,
        })
    }
}

/// The command that reads all of a collection; `None` for what has a value.
fn reading(holds: v1::KeyType) -> Option<&'static str> {
    match holds {
        v1::KeyType::Unspecified | v1::KeyType::Bytes | v1::KeyType::Counter => None,
        v1::KeyType::Hash => Some("HGETALL KEY"),
        v1::KeyType::Set => Some("SMEMBERS KEY"),
        v1::KeyType::SortedSet => Some("ZRANGE KEY 0 -1 WITHSCORES"),
        v1::KeyType::List => Some("LRANGE KEY 0 -1"),
    }
}

/// What a key holds, by its name in the API.
fn type_word(holds: v1::KeyType) -> &'static str {
    match holds {
        v1::KeyType::Unspecified => "unknown",
        v1::KeyType::Bytes => "bytes",
        v1::KeyType::Counter => "counter",
        v1::KeyType::Hash => "hash",
        v1::KeyType::Set => "set",
        v1::KeyType::SortedSet => "sorted_set",
        v1::KeyType::List => "list",
    }
}

impl DeleteArgs {
    async fn run(self) -> Result<(), Failure> {
        if self.if_version.is_some() && self.keys.len() != 1 {
            return Err(Failure::Usage("--if-version takes exactly one key".to_owned()));
        }
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let request =
            v1::DeleteRequest { store: self.store, keys: as_bytes(&self.keys), if_version: self.if_version };
        let deleted = kv.delete(self.server.request(request)).await?.into_inner().deleted;
        write_flags(self.output.format, &self.keys, &deleted, "deleted", |key, flag| KeyJson {
            key,
            version: None,
            deleted: Some(flag),
            exists: None,
        })?;
        if deleted.contains(&true) { Ok(()) } else { Err(Failure::Absent) }
    }
}

impl ExistsArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let request = v1::ExistsRequest { store: self.store, keys: as_bytes(&self.keys) };
        let exists = kv.exists(self.server.request(request)).await?.into_inner().exists;
        write_flags(self.output.format, &self.keys, &exists, "there", |key, flag| KeyJson {
            key,
            version: None,
            deleted: None,
            exists: Some(flag),
        })?;
        if exists.contains(&false) { Err(Failure::Absent) } else { Ok(()) }
    }
}

/// One answer a key: `KEY deleted`, `KEY not there`.
fn write_flags<'a>(
    format: Format,
    keys: &'a [String],
    flags: &[bool],
    word: &str,
    json: impl Fn(&'a str, bool) -> KeyJson<'a>,
) -> Result<(), Failure> {
    let mut out = Out::new();
    for (key, &flag) in keys.iter().zip(flags) {
        match format {
            Format::Table => {
                out.line(format!("{key} {}", if flag { word } else { "not there" }).as_bytes())?;
            }
            Format::Json => out.json(&json(key, flag))?,
        }
    }
    out.flush()
}

/// When a key ends, for people.
fn end_text(end: Option<u64>) -> String {
    end.map_or_else(|| "never".to_owned(), time)
}

/// An operation that asks for nothing beforehand.
fn operation(key: Bytes, action: v1::operation::Action) -> v1::Operation {
    v1::Operation { key, condition: None, action: Some(action) }
}

fn as_bytes(keys: &[String]) -> Vec<Bytes> {
    keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect()
}

const COLUMNS: [&str; 5] = ["KEY", "TYPE", "VERSION", "EXPIRES", "VALUE"];

fn row(entry: &v1::ScanEntry) -> Vec<String> {
    let holds = entry.r#type();
    vec![
        readable(&entry.key),
        type_word(holds).to_owned(),
        entry.version.to_string(),
        end_text(entry.expires_at_ms),
        readable(&entry.value),
    ]
}

fn entry_json(entry: &v1::ScanEntry, with_value: bool) -> EntryJson<'_> {
    let holds = entry.r#type();
    let with_value = with_value && reading(holds).is_none();
    EntryJson {
        key: text(&entry.key),
        key_base64: base64_text(&entry.key),
        value: text(&entry.value).filter(|_| with_value),
        value_base64: base64_text(&entry.value).filter(|_| with_value),
        r#type: type_word(holds),
        version: entry.version,
        expires_at_ms: entry.expires_at_ms,
    }
}

impl ScanArgs {
    async fn run(self) -> Result<(), Failure> {
        const PAGE: u64 = 1_000;
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let mut out = Out::new();
        let mut left = self.limit.unwrap_or(u64::MAX);
        let bytes = |key: &String| Bytes::copy_from_slice(key.as_bytes());
        let mut after = self.after.as_ref().map(bytes);
        while left > 0 {
            let request = v1::ScanRequest {
                store: self.store.clone(),
                prefix: bytes(&self.prefix),
                start: self.start.as_ref().map(bytes),
                end: self.end.as_ref().map(bytes),
                glob: self.glob.as_ref().map(bytes),
                reverse: self.reverse,
                after,
                limit: u32::try_from(left.min(PAGE)).unwrap_or(u32::MAX),
                keys_only: self.keys_only,
                as_of: as_of!(scan_request, self.as_of),
            };
            let page = kv.scan(self.server.request(request)).await?.into_inner();
            self.write(&mut out, &page.entries)?;
            left = left.saturating_sub(page.entries.len() as u64);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        out.flush()
    }

    fn write(&self, out: &mut Out, entries: &[v1::ScanEntry]) -> Result<(), Failure> {
        match self.output {
            ValueFormat::Table => return out.table(&COLUMNS, entries.iter().map(row).collect()),
            ValueFormat::Json => {
                for entry in entries {
                    out.json(&entry_json(entry, !self.keys_only))?;
                }
            }
            ValueFormat::Value => {
                for entry in entries {
                    out.raw(&entry.key)?;
                    if !self.keys_only {
                        out.raw(b"\t")?;
                        out.raw(&entry.value)?;
                    }
                    out.raw(b"\n")?;
                }
            }
        }
        Ok(())
    }
}
