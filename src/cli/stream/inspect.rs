//! `flowmesh stream inspect`: the records around an offset, with all their parts.

use clap::Args;
use flowmesh_model::limits::BATCH_ITEMS_MAX;
use flowmesh_proto::v1::{self, read_request::Start, stream_client::StreamClient};
use prost::Message;
use serde::Serialize;
use tonic::Code;
use tonic::transport::Channel;

use super::filter::offsets;
use super::read::{RecordJson, json};
use crate::cli::args::{Format, Output, Server};
use crate::cli::connection::client;
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{Out, readable, time};

/// Arguments of `stream inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The stream
    stream: String,

    /// The partition
    #[arg(short, long, value_name = "P", default_value_t = 0)]
    partition: u32,

    /// The record to look at; it is marked
    #[arg(long, value_name = "N")]
    offset: u64,

    /// How many records before and behind it to show
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=AROUND_MAX))]
    around: u64,

    #[command(flatten)]
    output: Output,

    #[command(flatten)]
    server: Server,
}

/// Both sides and the record itself fit one read.
const AROUND_MAX: u64 = (BATCH_ITEMS_MAX as u64 - 1) / 2;

#[derive(Serialize)]
struct InspectedJson<'a> {
    /// Whether this is the one asked for.
    asked_for: bool,
    #[serde(flatten)]
    record: RecordJson<'a>,
    /// The record as it is stored.
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_bytes: Option<usize>,
    value_bytes: usize,
    /// The append it came with: its first record that is shown here.
    batch_offset: u64,
}

impl InspectArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut stream = client!(stream_client::StreamClient, self.server.connect().await?);
        let (first, end) = self.range(&mut stream).await?;
        let mut out = Out::new();
        let mut next = first;
        while next < end {
            let answer = self.read(&mut stream, next, end).await?;
            for batch in &answer.batches {
                self.show(batch, &mut out)?;
            }
            if answer.next_offset <= next {
                break;
            }
            next = answer.next_offset;
        }
        out.flush()
    }

    /// The offsets to show: the first one, and that behind the last.
    async fn range(&self, stream: &mut StreamClient<Channel>) -> Result<(u64, u64), Failure> {
        let request =
            v1::StreamStatusRequest { stream: self.stream.clone(), partitions: vec![self.partition] };
        let status = stream.status(self.server.request(request)).await?.into_inner();
        let (earliest, next) =
            status.partitions.first().map_or((0, 0), |p| (p.earliest_offset, p.next_offset));
        if !(earliest..next).contains(&self.offset) {
            return Err(self.outside(earliest, next));
        }
        let first = self.offset.saturating_sub(self.around).max(earliest);
        Ok((first, self.offset.saturating_add(self.around).saturating_add(1).min(next)))
    }

    fn outside(&self, earliest: u64, next: u64) -> Failure {
        let there_is = match next.checked_sub(1) {
            Some(last) if last >= earliest => format!("there are {earliest} to {last}"),
            _ => format!("there are none; the next one will have {next}"),
        };
        Failure::Refused(Refusal {
            code: Code::OutOfRange,
            reason: "OFFSET_OUT_OF_RANGE".to_owned(),
            message: format!(
                "partition {} has no record with offset {}: {there_is}",
                self.partition, self.offset
            ),
            retry_after_ms: None,
        })
    }

    async fn read(
        &self,
        stream: &mut StreamClient<Channel>,
        next: u64,
        end: u64,
    ) -> Result<v1::ReadResponse, Failure> {
        let request = v1::ReadRequest {
            stream: self.stream.clone(),
            partition: self.partition,
            start: Some(Start::Offset(next)),
            max_records: u32::try_from(end - next).unwrap_or(u32::MAX),
            ..v1::ReadRequest::default()
        };
        Ok(stream.read(self.server.request(request)).await?.into_inner())
    }

    fn show(&self, batch: &v1::RecordBatch, out: &mut Out) -> Result<(), Failure> {
        for (offset, record) in offsets(batch).zip(&batch.records) {
            let asked_for = offset == self.offset;
            match self.output.format {
                Format::Json => out.json(&InspectedJson {
                    asked_for,
                    record: json(batch, offset, record),
                    bytes: record.encoded_len(),
                    key_bytes: record.key.as_ref().map(bytes::Bytes::len),
                    value_bytes: record.value.len(),
                    batch_offset: batch.base_offset,
                })?,
                Format::Table => {
                    for line in lines(asked_for, batch.appended_at_ms, offset, record) {
                        out.line(line.as_bytes())?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// A record for people: a line about it, then one for each part.
fn lines(asked_for: bool, appended_at_ms: u64, offset: u64, record: &v1::Record) -> Vec<String> {
    let mark = if asked_for { '>' } else { ' ' };
    let produced =
        record.timestamp_ms.map_or_else(String::new, |ms| format!("  the producer's time {}", time(ms)));
    let mut lines = vec![format!(
        "{mark} {offset}  appended {}{produced}  {} bytes",
        time(appended_at_ms),
        record.encoded_len()
    )];
    let mut part = |name: &str, bytes: &[u8]| {
        lines.push(format!("    {name:<8}{}  ({} bytes)", readable(bytes), bytes.len()));
    };
    if let Some(key) = &record.key {
        part("key", key);
    }
    for header in &record.headers {
        part("header", &[header.name.as_bytes(), b" = ", &header.value].concat());
    }
    part("value", &record.value);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_asked_for_is_marked_and_every_part_is_shown() {
        let record = v1::Record {
            key: Some("user:7".into()),
            value: "a\nb".into(),
            headers: vec![v1::Header { name: "n".to_owned(), value: "v".into() }],
            timestamp_ms: Some(0),
        };
        assert_eq!(
            lines(true, 1000, 42, &record),
            [
                "> 42  appended 1970-01-01T00:00:01.000Z  the producer's time 1970-01-01T00:00:00.000Z  23 bytes",
                "    key     user:7  (6 bytes)",
                "    header  n = v  (5 bytes)",
                "    value   a·b  (3 bytes)",
            ]
        );
        assert!(lines(false, 0, 1, &v1::Record::default())[0].starts_with("  1  appended"));
    }
}
