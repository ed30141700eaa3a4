//! `flowmesh stream read`: records in order, one value a line, resumed where it was after a loss.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use flowmesh_proto::v1::{self, stream_client::StreamClient};
use serde::Serialize;
use tonic::Request;
use tonic::transport::Channel;

use super::compression::{accepted, unpack};
use super::filter::{Filters, next_offset, offsets};
use super::offsets::find;
use super::start::StartAt;
use crate::cli::args::{Server, ValueFormat, duration};
use crate::cli::connection::{Backoff, client};
use crate::cli::failure::{Failure, Refusal};
use crate::cli::output::{Headers, Out, base64_text, readable, text, time};

/// Arguments of `stream read`.
#[derive(Args, Debug)]
pub struct ReadArgs {
    /// The stream
    stream: String,

    /// Where to start: earliest, latest, an offset, or a time: 2026-11-21T12:00:00Z, -1h, @MS
    #[arg(long, default_value = "earliest", value_name = "WHERE", allow_hyphen_values = true)]
    from: StartAt,

    /// Only this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,

    #[command(flatten)]
    filters: Filters,

    /// Read the stream as it was at a time: 2026-11-21T12:00:00Z, -1h, @MS. What retention has taken since is gone
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "follow", value_parser = past)]
    as_of: Option<u64>,

    /// Stop after so many records
    #[arg(short = 'n', long)]
    limit: Option<u64>,

    /// At the end wait for more; go on after a restart of the server
    #[arg(short, long)]
    follow: bool,

    /// How long to look for a server that went away; with --follow for ever unless given
    #[arg(long, value_name = "TIME", value_parser = duration)]
    give_up_after: Option<Duration>,

    /// How records are written; value: the value alone, one a line
    #[arg(short, long, default_value = "value", value_name = "FORMAT")]
    output: ValueFormat,

    #[command(flatten)]
    server: Server,
}

/// How long a read that is to end looks for a server that went away.
const PATIENCE: Duration = Duration::from_mins(1);

/// A time, as starts have it.
fn past(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(StartAt::Time(ms)) => Ok(ms),
        _ => Err("allowed: a time (2026-11-21T12:00:00Z, 2026-11-21), so long ago (-1h), or @MS".to_owned()),
    }
}

/// A record as one JSON object.
#[derive(Serialize)]
pub struct RecordJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<&'a str>,
    partition: u32,
    offset: u64,
    appended_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "no_headers")]
    headers: Headers<'a>,
}

fn no_headers(headers: &Headers<'_>) -> bool {
    headers.0.is_empty()
}

/// A read that knows where it is.
struct Reader {
    args: ReadArgs,
    out: Out,
    /// The next offset of each partition that was read from.
    next: BTreeMap<u32, u64>,
    left: u64,
}

impl ReadArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let client = client!(stream_client::StreamClient, self.server.connect().await?);
        let patience = self.give_up_after.or_else(|| (!self.follow).then_some(PATIENCE));
        let mut backoff = Backoff::new(patience);
        let left = self.limit.unwrap_or(u64::MAX);
        let mut reader = Reader { args: self, out: Out::new(), next: BTreeMap::new(), left };
        if reader.left == 0 {
            return Ok(());
        }
        reader.pin(client.clone()).await?;
        loop {
            match reader.subscribe(client.clone(), &mut backoff).await? {
                None => return reader.out.flush(),
                Some(refusal) => backoff.wait(refusal).await?,
            }
        }
    }
}

impl Reader {
    /// Turns `latest` and times into offsets, so that nothing is passed over if the connection is lost before the first
    /// record.
    async fn pin(&mut self, mut client: StreamClient<Channel>) -> Result<(), Failure> {
        let ReadArgs { stream, partitions, server, from, as_of, .. } = &self.args;
        // Where it ended then is where what came later starts.
        let from = match (from, as_of) {
            (StartAt::Latest, Some(at)) => &StartAt::Time(at + 1),
            (StartAt::Time(from), Some(at)) => &StartAt::Time((*from).min(at + 1)),
            (from, _) => from,
        };
        if matches!(from, StartAt::Latest | StartAt::Time(_)) {
            let found = find(&mut client, server, stream, partitions, *from).await?;
            self.next = found.iter().map(|found| (found.partition, found.offset)).collect();
        }
        Ok(())
    }

    fn request(&self) -> v1::SubscribeRequest {
        v1::SubscribeRequest {
            stream: self.args.stream.clone(),
            partitions: self.args.partitions.clone(),
            start: Some(self.args.from.subscribe()),
            from: self
                .next
                .iter()
                .map(|(&partition, &offset)| v1::PartitionOffset { partition, offset })
                .collect(),
            max_batch_bytes: 0,
            stop_at_end: !self.args.follow,
            filter: self.args.filters.message(),
            accept_compression: accepted(),
            as_of_ms: self.args.as_of,
        }
    }

    /// One Subscribe call. `None`: everything was read. A refusal: it broke off, and may go on later.
    async fn subscribe(
        &mut self,
        mut client: StreamClient<Channel>,
        backoff: &mut Backoff,
    ) -> Result<Option<Refusal>, Failure> {
        let mut batches = match client.subscribe(Request::new(self.request())).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(Some(Refusal::of_status(&status))),
        };
        loop {
            match batches.message().await {
                Ok(Some(mut batch)) => {
                    backoff.succeeded();
                    unpack(&mut batch)?;
                    self.write(&batch)?;
                    self.out.flush()?;
                    if self.left == 0 {
                        return Ok(None);
                    }
                }
                Ok(None) if self.args.follow => {
                    let status = tonic::Status::unavailable("the server ended the call");
                    return Ok(Some(Refusal::of_status(&status)));
                }
                Ok(None) => return Ok(None),
                Err(status) => return Ok(Some(Refusal::of_status(&status))),
            }
        }
    }

    fn write(&mut self, batch: &v1::RecordBatch) -> Result<(), Failure> {
        for (offset, record) in offsets(batch).zip(&batch.records) {
            // After a loss the first batch may start with records that were written before it.
            if self.next.get(&batch.partition).is_some_and(|next| offset < *next) {
                continue;
            }
            match self.args.output {
                ValueFormat::Value => self.out.line(&record.value)?,
                ValueFormat::Table => self.out.line(row(batch, offset, record).as_bytes())?,
                ValueFormat::Json => self.out.json(&json(batch, offset, record))?,
            }
            self.next.insert(batch.partition, offset + 1);
            self.left -= 1;
            if self.left == 0 {
                return Ok(());
            }
        }
        let next = self.next.entry(batch.partition).or_default();
        *next = next_offset(batch).max(*next);
        Ok(())
    }
}

fn row(batch: &v1::RecordBatch, offset: u64, record: &v1::Record) -> String {
    row_of(batch.partition, batch.appended_at_ms, offset, record)
}

/// Columns of a fixed width, since the rows are not known beforehand: partition, offset, time, key, value.
pub fn row_of(partition: u32, appended_at_ms: u64, offset: u64, record: &v1::Record) -> String {
    let key = record.key.as_deref().map_or_else(|| "-".to_owned(), readable);
    let (time, value) = (time(appended_at_ms), readable(&record.value));
    format!("{partition:>4} {offset:>10}  {time}  {key:<16}  {value}")
}

/// One record of a batch for a JSON line.
pub fn json<'a>(batch: &v1::RecordBatch, offset: u64, record: &'a v1::Record) -> RecordJson<'a> {
    json_of(None, batch.partition, batch.appended_at_ms, offset, record)
}

/// A record for a JSON line; with its stream where there may be several.
pub fn json_of<'a>(
    stream: Option<&'a str>,
    partition: u32,
    appended_at_ms: u64,
    offset: u64,
    record: &'a v1::Record,
) -> RecordJson<'a> {
    RecordJson {
        stream,
        partition,
        offset,
        appended_at_ms,
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref().and_then(text),
        key_base64: record.key.as_deref().and_then(base64_text),
        value: text(&record.value),
        value_base64: base64_text(&record.value),
        headers: Headers(&record.headers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::json_lines;

    #[test]
    fn what_is_read_as_json_can_be_appended_again() {
        let record = v1::Record {
            key: Some(vec![0xFF].into()),
            value: "a\"b\n".into(),
            headers: vec![v1::Header { name: "n".to_owned(), value: "v".into() }],
            timestamp_ms: Some(3),
        };
        let batch = v1::RecordBatch { base_offset: 5, partition: 1, ..Default::default() };
        let line = serde_json::to_vec(&json(&batch, 5, &record)).unwrap();
        assert_eq!(json_lines::record(&line).unwrap(), record);
    }
}
