//! `flowmesh stream offsets` and `stream trim`: which offset a time is, and deleting what lies before one.

use clap::Args;
use flowmesh_proto::v1::{self, stream_client::StreamClient};
use serde::Serialize;
use tonic::transport::Channel;

use super::start::StartAt;
use crate::cli::args::{Format, Output, Server};
use crate::cli::confirm::Confirm;
use crate::cli::connection::client;
use crate::cli::failure::Failure;
use crate::cli::output::{Out, time};

/// Arguments of `stream offsets`.
#[derive(Args, Debug)]
pub struct OffsetsArgs {
    /// The stream
    stream: String,
    /// What to look for: earliest, latest, an offset, or a time: 2026-11-21T12:00:00Z, -1h, @MS
    #[arg(long, default_value = "earliest", value_name = "WHERE", allow_hyphen_values = true)]
    at: StartAt,
    /// Only this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `stream trim`.
#[derive(Args, Debug)]
pub struct TrimArgs {
    /// The stream
    stream: String,
    /// The first record that stays: latest, an offset, or a time: 2026-11-21T12:00:00Z, -1h, @MS
    #[arg(long, value_name = "WHERE", allow_hyphen_values = true)]
    before: StartAt,
    /// Only this partition; may be repeated
    #[arg(short, long = "partition", value_name = "N")]
    partitions: Vec<u32>,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct FoundJson {
    partition: u32,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    appended_at_ms: Option<u64>,
}

#[derive(Serialize)]
struct TrimmedJson {
    partition: u32,
    earliest_offset: u64,
    next_offset: u64,
}

/// The offsets that a start stands for.
pub async fn find(
    client: &mut StreamClient<Channel>,
    server: &Server,
    stream: &str,
    partitions: &[u32],
    start: StartAt,
) -> Result<Vec<v1::FoundOffset>, Failure> {
    let request = v1::OffsetsForRequest {
        stream: stream.to_owned(),
        partitions: partitions.to_vec(),
        start: Some(start.find()),
    };
    Ok(client.offsets_for(server.request(request)).await?.into_inner().partitions)
}

impl OffsetsArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = client!(stream_client::StreamClient, self.server.connect().await?);
        let found = find(&mut client, &self.server, &self.stream, &self.partitions, self.at).await?;
        let mut out = Out::new();
        match self.output.format {
            Format::Json => {
                for &v1::FoundOffset { partition, offset, appended_at_ms } in &found {
                    out.json(&FoundJson { partition, offset, appended_at_ms })?;
                }
            }
            Format::Table => {
                let row = |found: &v1::FoundOffset| {
                    let appended = found.appended_at_ms.map_or_else(|| "to come".to_owned(), time);
                    vec![found.partition.to_string(), found.offset.to_string(), appended]
                };
                out.table(&["PARTITION", "OFFSET", "APPENDED"], found.iter().map(row).collect())?;
            }
        }
        out.flush()
    }
}

impl TrimArgs {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        let mut client = client!(stream_client::StreamClient, self.server.connect().await?);
        let places = self.places(&mut client).await?;
        let question = match places.as_slice() {
            [(partition, before)] => {
                format!("Delete the records of {} before {before} in partition {partition}?", self.stream)
            }
            _ => format!("Delete records of {} partitions of {}?", places.len(), self.stream),
        };
        self.confirm.ask(&question, "nothing was deleted")?;
        let (mut out, mut rows) = (Out::new(), Vec::new());
        for (partition, before_offset) in places {
            let request = v1::TrimRequest { stream: self.stream.clone(), partition, before_offset };
            let v1::TrimResponse { earliest_offset, next_offset } =
                client.trim(self.server.request(request)).await?.into_inner();
            match self.output.format {
                Format::Json => out.json(&TrimmedJson { partition, earliest_offset, next_offset })?,
                Format::Table => rows.push(
                    [u64::from(partition), earliest_offset, next_offset].map(|n| n.to_string()).to_vec(),
                ),
            }
        }
        if self.output.format == Format::Table {
            out.table(&["PARTITION", "EARLIEST", "NEXT"], rows)?;
        }
        out.flush()
    }

    /// Each partition with its first record that stays.
    async fn places(&self, client: &mut StreamClient<Channel>) -> Result<Vec<(u32, u64)>, Failure> {
        let StartAt::Offset(offset) = self.before else {
            let found = find(client, &self.server, &self.stream, &self.partitions, self.before).await?;
            return Ok(found.iter().map(|found| (found.partition, found.offset)).collect());
        };
        let request =
            v1::StreamStatusRequest { stream: self.stream.clone(), partitions: self.partitions.clone() };
        let partitions = client.status(self.server.request(request)).await?.into_inner().partitions;
        Ok(partitions.iter().map(|status| (status.partition, offset)).collect())
    }
}
