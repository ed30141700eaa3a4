//! `flowmesh stream append`: values or lines in, a report of what was acknowledged out.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_proto::v1;
use serde::Serialize;
use tokio::sync::mpsc;

use super::compression::Compression;
use super::producer::{Producer, Tally};
use crate::cli::args::{Format, Output, Server, duration, header};
use crate::cli::connection::client;
use crate::cli::failure::Failure;
use crate::cli::input::{self, Batch, Source};
use crate::cli::json_lines;
use crate::cli::output::Out;

/// Arguments of `stream append`.
#[derive(Args, Debug)]
pub struct AppendArgs {
    /// The stream
    stream: String,

    /// Values, one record each; - or none reads standard input, one record a line
    #[arg(allow_negative_numbers = true, conflicts_with = "file", value_name = "VALUE")]
    values: Vec<String>,

    /// Read records from a file, one a line; - is standard input
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Lines (or values) are JSON objects with key, value, headers and timestamp_ms
    #[arg(short, long)]
    json_lines: bool,

    /// The key of every record that has none of its own; decides the partition
    #[arg(short, long)]
    key: Option<String>,

    /// A header of every record; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<v1::Header>,

    /// The partition; else by key, or in turn by batch
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,

    /// Records in one batch at most; 1 to 10000
    #[arg(short, long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=BATCH_ITEMS_MAX as i64))]
    batch: u16,

    /// Send batches compressed, and keep them so; those that do not shrink go as they are
    #[arg(long, value_name = "CODEC")]
    compression: Option<Compression>,

    /// When the connection is lost, send again what was not acknowledged: nothing is lost, but such records may then
    /// stand in the stream twice
    #[arg(long)]
    retry: bool,

    /// Append each record once: when the connection is lost, send again with the same sequence numbers, by which the
    /// server recognises what it has. Needs --partition if the stream has several
    #[arg(long)]
    idempotent: bool,

    /// A name for the idempotent producer: whoever appended under it before is fenced
    #[arg(long, value_name = "NAME", requires = "idempotent")]
    producer_name: Option<String>,

    /// Append only if the first record gets this offset, else exit 5. Needs --partition if the stream has several
    #[arg(long, value_name = "OFFSET", conflicts_with = "retry")]
    expect_offset: Option<u64>,

    /// With --retry or --idempotent: how long to look for the server
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    give_up_after: Duration,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct TallyJson<'a> {
    stream: &'a str,
    appended: u64,
    #[serde(skip_serializing_if = "is_zero")]
    sent_again: u64,
    #[serde(skip_serializing_if = "is_zero")]
    recognised: u64,
    partitions: Vec<PartitionJson>,
}

#[derive(Serialize)]
struct PartitionJson {
    partition: u32,
    first_offset: u64,
    last_offset: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl AppendArgs {
    /// Runs it. Whatever happens, what was acknowledged is reported.
    pub async fn run(self) -> Result<(), Failure> {
        let records = self.records()?;
        let channel = self.server.connect().await?;
        let mut producer = Producer::new(self.stream.clone(), self.partition, self.server.timeout);
        if self.retry || self.idempotent {
            producer.retry_for(self.give_up_after);
        }
        if self.idempotent {
            let request = v1::InitProducerRequest {
                stream: self.stream.clone(),
                name: self.producer_name.clone().unwrap_or_default(),
            };
            let mut client = client!(stream_client::StreamClient, channel.clone());
            let given = client.init_producer(self.server.request(request)).await?.into_inner();
            producer.idempotent(given.id, given.epoch);
        }
        if let Some(compression) = self.compression {
            producer.compress(compression);
        }
        if let Some(offset) = self.expect_offset {
            producer.expect_offset(offset);
        }
        let (tally, outcome) = producer.run(channel, records).await;
        if outcome.is_ok() || tally.appended > 0 {
            self.report(&tally)?;
        }
        outcome
    }

    fn records(&self) -> Result<mpsc::Receiver<Result<Batch<v1::Record>, Failure>>, Failure> {
        let key = self.key.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes()));
        let (headers, json_lines) = (self.headers.clone(), self.json_lines);
        let parse = move |line: Bytes| -> Result<Option<v1::Record>, String> {
            if !json_lines {
                return Ok(Some(v1::Record {
                    key: key.clone(),
                    value: line,
                    headers: headers.clone(),
                    timestamp_ms: None,
                }));
            }
            if line.trim_ascii().is_empty() {
                return Ok(None);
            }
            let mut record = json_lines::record(&line)?;
            record.key = record.key.or_else(|| key.clone());
            record.headers.extend_from_slice(&headers);
            Ok(Some(record))
        };
        let batch = usize::from(self.batch);
        let source = match (&self.file, self.values.as_slice()) {
            (Some(path), _) => Source::of_path(path),
            (None, []) => Source::Stdin,
            (None, [only]) if only == "-" => Source::Stdin,
            (None, values) => {
                let record = |value: &String| parse(Bytes::copy_from_slice(value.as_bytes()));
                let records: Result<Vec<_>, String> = values.iter().map(record).collect();
                let records = records.map_err(|problem| Failure::Input(format!("a value {problem}")))?;
                return Ok(input::ready(records.into_iter().flatten(), batch, |record| record.value.len()));
            }
        };
        input::batches(&source, batch, parse)
    }

    fn report(&self, tally: &Tally) -> Result<(), Failure> {
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&TallyJson {
                stream: &self.stream,
                appended: tally.appended,
                sent_again: tally.sent_again,
                recognised: tally.recognised,
                partitions: tally
                    .partitions
                    .iter()
                    .map(|(&partition, &(first_offset, last_offset))| PartitionJson {
                        partition,
                        first_offset,
                        last_offset,
                    })
                    .collect(),
            })?,
            Format::Table => out.line(sentence(&self.stream, tally, self.idempotent).as_bytes())?,
        }
        out.flush()
    }
}

fn sentence(stream: &str, tally: &Tally, idempotent: bool) -> String {
    let records = if tally.appended == 1 { "record" } else { "records" };
    let range = |(partition, (first, last)): (&u32, &(u64, u64))| match tally.partitions.len() {
        1 if *partition == 0 => format!("offsets {first} to {last}"),
        _ => format!("partition {partition} offsets {first} to {last}"),
    };
    let ranges: Vec<String> = tally.partitions.iter().map(range).collect();
    let colon = if ranges.is_empty() { "" } else { ": " };
    let again = match tally.sent_again {
        0 => String::new(),
        n if idempotent => format!("; {n} were sent again, {} of them recognised", tally.recognised),
        n => format!("; {n} were sent again and may stand twice"),
    };
    format!("{} {records} appended to {stream}{colon}{}{again}", tally.appended, ranges.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_the_last_offsets() {
        let mut tally = Tally { appended: 3, ..Tally::default() };
        tally.partitions.insert(0, (5, 6));
        tally.partitions.insert(2, (0, 0));
        assert_eq!(
            sentence("logs", &tally, false),
            "3 records appended to logs: partition 0 offsets 5 to 6; partition 2 offsets 0 to 0"
        );
    }
}
