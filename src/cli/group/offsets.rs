//! `flowmesh group offsets` and `group reset`: where a group is, and putting it elsewhere.

use clap::Args;
use flowmesh_proto::v1::{self, reset_offsets_request::To};
use serde::Serialize;

use super::selection::selection;
use super::short_name;
use crate::cli::args::{Format, Output, Server};
use crate::cli::confirm::Confirm;
use crate::cli::connection::client;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{Out, base64_text, readable, text, time};

/// Arguments of `group offsets`.
#[derive(Args, Debug)]
pub struct OffsetsArgs {
    /// The group
    group: String,
    /// Only these: STREAM, or STREAM:PARTITIONS as in logs:0,2,4-7; all unless given
    #[arg(value_name = "STREAM[:N,…]", value_parser = selection)]
    streams: Vec<v1::StreamPartitions>,
    /// Forget the offsets of the partitions named
    #[arg(long, requires = "streams")]
    delete: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `group reset`.
#[derive(Args, Debug)]
pub struct ResetArgs {
    /// The group
    group: String,
    /// Only these: STREAM, or STREAM:PARTITIONS as in logs:0,2,4-7; all unless given
    #[arg(value_name = "STREAM[:N,…]", value_parser = selection)]
    streams: Vec<v1::StreamPartitions>,
    #[command(flatten)]
    to: ToArgs,
    /// Only show what would be
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Where a reset goes: one of these.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct ToArgs {
    /// To the first record there is
    #[arg(long)]
    to_earliest: bool,
    /// To the next record to come
    #[arg(long)]
    to_latest: bool,
    /// To this record
    #[arg(long, value_name = "OFFSET")]
    to_offset: Option<u64>,
    /// To the first record appended at this time or later: ms since the Unix epoch
    #[arg(long, value_name = "MS")]
    to_time: Option<u64>,
    /// So many records on; back if negative
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    shift: Option<i64>,
}

impl ToArgs {
    fn to(&self) -> To {
        match (self.to_offset, self.to_time, self.shift) {
            (Some(offset), ..) => To::Offset(offset),
            (_, Some(ms), _) => To::TimestampMs(ms),
            (.., Some(records)) => To::Shift(records),
            _ if self.to_latest => To::Latest(true),
            _ => To::Earliest(true),
        }
    }
}

#[derive(Serialize)]
struct CommittedJson<'a> {
    stream: &'a str,
    partition: u32,
    offset: u64,
    committed_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_base64: Option<String>,
}

#[derive(Serialize)]
struct OutcomeJson<'a> {
    stream: &'a str,
    partition: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<u64>,
    offset: u64,
    backwards: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl OffsetsArgs {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut client = client!(group_client::GroupClient, self.server.connect().await?);
        if self.delete {
            let request = v1::DeleteOffsetsRequest { group: self.group, streams: self.streams };
            let deleted = client.delete_offsets(self.server.request(request)).await?.into_inner();
            return write_outcomes(self.output.format, &deleted.outcomes, "forgotten");
        }
        let request =
            v1::FetchOffsetsRequest { group: self.group, streams: self.streams, ..Default::default() };
        let offsets = client.fetch_offsets(self.server.request(request)).await?.into_inner().offsets;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => {
                for offset in &offsets {
                    out.json(&CommittedJson {
                        stream: &offset.stream,
                        partition: offset.partition,
                        offset: offset.offset,
                        committed_at_ms: offset.committed_at_ms,
                        metadata: text(&offset.metadata).filter(|text| !text.is_empty()),
                        metadata_base64: base64_text(&offset.metadata),
                    })?;
                }
            }
            Format::Table => {
                let row = |offset: &v1::CommittedOffset| {
                    vec![
                        short_name("stream", &offset.stream).to_owned(),
                        offset.partition.to_string(),
                        offset.offset.to_string(),
                        time(offset.committed_at_ms),
                        readable(&offset.metadata),
                    ]
                };
                let names = ["STREAM", "PARTITION", "OFFSET", "COMMITTED", "METADATA"];
                out.table(&names, offsets.iter().map(row).collect())?;
            }
        }
        out.flush()
    }
}

impl ResetArgs {
    pub(super) async fn run(self) -> Result<(), Failure> {
        if !self.dry_run {
            let question = format!("Move the offsets of group {}?", self.group);
            self.confirm.ask(&question, "not reset")?;
        }
        let mut client = client!(group_client::GroupClient, self.server.connect().await?);
        let request = v1::ResetOffsetsRequest {
            group: self.group,
            streams: self.streams,
            dry_run: self.dry_run,
            to: Some(self.to.to()),
        };
        let reset = client.reset_offsets(self.server.request(request)).await?.into_inner();
        write_outcomes(self.output.format, &reset.outcomes, if reset.dry_run { "would be" } else { "done" })
    }
}

/// Writes outcomes; fails as the first one that failed.
fn write_outcomes(format: Format, outcomes: &[v1::OffsetOutcome], done: &str) -> Result<(), Failure> {
    let mut out = Out::new();
    match format {
        Format::Json => {
            for outcome in outcomes {
                out.json(&OutcomeJson {
                    stream: &outcome.stream,
                    partition: outcome.partition,
                    previous: outcome.previous,
                    offset: outcome.offset,
                    backwards: outcome.backwards,
                    reason: outcome.error.as_ref().map(|error| error.reason.as_str()),
                    error: outcome.error.as_ref().map(|error| error.message.as_str()),
                })?;
            }
        }
        Format::Table => {
            let row = |outcome: &v1::OffsetOutcome| {
                vec![
                    short_name("stream", &outcome.stream).to_owned(),
                    outcome.partition.to_string(),
                    outcome.previous.map_or_else(|| "-".to_owned(), |offset| offset.to_string()),
                    outcome.offset.to_string(),
                    outcome.error.as_ref().map_or(done, |error| &error.reason).to_owned(),
                ]
            };
            let names = ["STREAM", "PARTITION", "BEFORE", "OFFSET", "OUTCOME"];
            out.table(&names, outcomes.iter().map(row).collect())?;
        }
    }
    out.flush()?;
    let failed: Vec<Refusal> =
        outcomes.iter().filter_map(|outcome| outcome.error.as_ref()).map(Refusal::of_item).collect();
    match failed.first() {
        None => Ok(()),
        Some(first) => Err(Failure::Partly {
            code: first.exit_code(),
            report: format!(
                "{} of {} partitions were refused; the first: {first}",
                failed.len(),
                outcomes.len()
            ),
        }),
    }
}
