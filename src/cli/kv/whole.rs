//! `flowmesh kv type`, `count`, `random` and `clear`: what is known of a key, and what is asked of a whole store.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use flowmesh_proto::v1;
use serde::Serialize;
use v1::operation::Action;
use v1::operation_outcome::Result as Came;

use super::past::{AsOfArgs, as_of};
use super::{end_text, operation, type_word};
use crate::cli::args::{Format, Output, Server, ValueFormat};
use crate::cli::confirm::Confirm;
use crate::cli::connection::client;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{Out, base64_text, readable, text};

/// How long clearing a store may take beyond the timeout of a call.
const CLEAR_PATIENCE: Duration = Duration::from_hours(24);

/// Arguments of `kv type`.
#[derive(Args, Debug)]
pub struct TypeArgs {
    /// The store
    store: String,
    /// The key
    key: String,
    #[command(flatten)]
    as_of: AsOfArgs,
    /// How it is written; value: bytes, counter, hash, set, sorted_set or list
    #[arg(short, long, default_value = "value", value_name = "FORMAT")]
    output: ValueFormat,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `kv count`.
#[derive(Args, Debug)]
pub struct CountArgs {
    /// The store
    store: String,
    /// How it is written; value: the number of keys
    #[arg(short, long, default_value = "value", value_name = "FORMAT")]
    output: ValueFormat,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `kv random`.
#[derive(Args, Debug)]
pub struct RandomArgs {
    /// The store
    store: String,
    /// How it is written; value: the key
    #[arg(short, long, default_value = "value", value_name = "FORMAT")]
    output: ValueFormat,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `kv clear`.
#[derive(Args, Debug)]
pub struct ClearArgs {
    /// The store
    store: String,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct TypeJson<'a> {
    key: &'a str,
    r#type: &'static str,
    len: u64,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
    memory_bytes: u64,
}

#[derive(Serialize)]
struct CountJson {
    keys: u64,
    expiring: u64,
    memory_bytes: u64,
    cold: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct RandomJson<'a> {
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    r#type: &'static str,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
}

#[derive(Serialize)]
struct ClearJson {
    deleted: u64,
}

impl TypeArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let inspect =
            operation(Bytes::copy_from_slice(self.key.as_bytes()), Action::Inspect(v1::KeyInspect {}));
        let as_of = as_of!(run_request, self.as_of);
        let request = v1::RunRequest { store: self.store, operations: vec![inspect], atomic: false, as_of };
        let outcomes = kv.run(self.server.request(request)).await?.into_inner().outcomes;
        let outcome = outcomes.into_iter().next().unwrap_or_default();
        if let Some(error) = &outcome.error {
            return Err(Failure::Refused(Refusal::of_item(error)));
        }
        let Some(Came::Info(info)) = outcome.result.filter(is_found) else { return Err(Failure::Absent) };
        let word = type_word(info.r#type());
        let mut out = Out::new();
        match self.output {
            ValueFormat::Value => out.line(word.as_bytes())?,
            ValueFormat::Table => out.table(
                &["KEY", "TYPE", "LEN", "VERSION", "EXPIRES", "MEMORY"],
                vec![vec![
                    readable(self.key.as_bytes()),
                    word.to_owned(),
                    info.len.to_string(),
                    info.version.to_string(),
                    end_text(info.expires_at_ms),
                    info.memory_bytes.to_string(),
                ]],
            )?,
            ValueFormat::Json => out.json(&TypeJson {
                key: &self.key,
                r#type: word,
                len: info.len,
                version: info.version,
                expires_at_ms: info.expires_at_ms,
                memory_bytes: info.memory_bytes,
            })?,
        }
        out.flush()
    }
}

fn is_found(came: &Came) -> bool {
    matches!(came, Came::Info(info) if info.found)
}

impl CountArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let request = v1::StoreStatusRequest { store: self.store };
        let status = kv.status(self.server.request(request)).await?.into_inner();
        let mut out = Out::new();
        match self.output {
            ValueFormat::Value => out.line(status.keys.to_string().as_bytes())?,
            ValueFormat::Table => out.table(
                &["KEYS", "EXPIRING", "MEMORY", "COLD", "BYTES"],
                vec![vec![
                    status.keys.to_string(),
                    status.expiring.to_string(),
                    status.memory_bytes.to_string(),
                    status.cold.to_string(),
                    status.bytes.to_string(),
                ]],
            )?,
            ValueFormat::Json => out.json(&CountJson {
                keys: status.keys,
                expiring: status.expiring,
                memory_bytes: status.memory_bytes,
                cold: status.cold,
                bytes: status.bytes,
            })?,
        }
        out.flush()
    }
}

impl RandomArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let request = v1::RandomRequest { store: self.store };
        let response = kv.random(self.server.request(request)).await?.into_inner();
        let entry = response.entry.ok_or(Failure::Absent)?;
        let word = type_word(entry.r#type());
        let mut out = Out::new();
        match self.output {
            ValueFormat::Value => out.line(&entry.key)?,
            ValueFormat::Table => out.table(
                &["KEY", "TYPE", "VERSION", "EXPIRES"],
                vec![vec![
                    readable(&entry.key),
                    word.to_owned(),
                    entry.version.to_string(),
                    end_text(entry.expires_at_ms),
                ]],
            )?,
            ValueFormat::Json => out.json(&RandomJson {
                key: text(&entry.key),
                key_base64: base64_text(&entry.key),
                r#type: word,
                version: entry.version,
                expires_at_ms: entry.expires_at_ms,
            })?,
        }
        out.flush()
    }
}

impl ClearArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        self.confirm.ask(&format!("Delete all keys of {}?", self.store), "not cleared")?;
        let mut kv = client!(kv_client::KvClient, self.server.connect().await?);
        let request = v1::ClearRequest { store: self.store.clone() };
        let request = self.server.waiting_request(request, CLEAR_PATIENCE);
        let deleted = kv.clear(request).await?.into_inner().deleted;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&ClearJson { deleted })?,
            Format::Table => {
                out.line(format!("{} is empty, {deleted} keys are deleted", self.store).as_bytes())?;
            }
        }
        out.flush()
    }
}
