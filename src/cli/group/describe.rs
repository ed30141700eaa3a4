//! `flowmesh group describe`: who owns what and why, and how far behind; `group watch`: the same lag again and again.

use clap::Args;
use flowmesh_proto::v1::{self, group_client::GroupClient};
use serde::Serialize;
use tonic::transport::Channel;

use super::selection::selection_text;
use super::{GroupJson, short_name, state_word};
use crate::cli::args::{Format, Output, Server};
use crate::cli::connection::client;
use crate::cli::failure::Failure;
use crate::cli::output::{Out, base64_text, text, time};
use crate::cli::watch::Watch;

/// Arguments of `group describe`.
#[derive(Args, Debug)]
pub struct DescribeArgs {
    /// The group
    group: String,
    /// Say lag in time, too; reads one record of each partition that lags
    #[arg(long)]
    time_lag: bool,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `group watch`.
#[derive(Args, Debug)]
pub struct WatchArgs {
    /// The group
    group: String,
    #[command(flatten)]
    watch: Watch,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct DescribeJson<'a> {
    #[serde(flatten)]
    group: Option<GroupJson<'a>>,
    assignor: &'a str,
    session_timeout_ms: u64,
    rebalance_timeout_ms: u64,
    #[serde(rename = "member_list")]
    members: Vec<MemberJson<'a>>,
    #[serde(rename = "partition_list")]
    partitions: Vec<PartitionJson<'a>>,
}

#[derive(Serialize)]
struct MemberJson<'a> {
    member_id: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    instance_id: &'a str,
    epoch: u64,
    streams: &'a [String],
    assigned: Vec<StreamJson<'a>>,
    revoking: Vec<StreamJson<'a>>,
    target: Vec<StreamJson<'a>>,
    away: bool,
    joined_at_ms: u64,
    last_heartbeat_at_ms: u64,
    expires_at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoke_until_ms: Option<u64>,
}

#[derive(Serialize)]
struct StreamJson<'a> {
    stream: &'a str,
    partitions: &'a [u32],
}

#[derive(Serialize)]
struct PartitionJson<'a> {
    stream: &'a str,
    partition: u32,
    owner: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    target: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'a str,
    committed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    committed_at_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_base64: Option<String>,
    earliest_offset: Option<u64>,
    next_offset: Option<u64>,
    lag: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl DescribeArgs {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut client = client!(group_client::GroupClient, self.server.connect().await?);
        let request =
            v1::DescribeGroupRequest { group: self.group, with_time_lag: self.time_lag, without_lag: false };
        let group = client.describe(self.server.request(request)).await?.into_inner();
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&json(&group))?,
            Format::Table => write_tables(&mut out, &group)?,
        }
        out.flush()
    }
}

impl WatchArgs {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let mut client: GroupClient<Channel> =
            client!(group_client::GroupClient, self.server.connect().await?);
        let ask = async || {
            let group = self.group.clone();
            let request = v1::DescribeGroupRequest { group, with_time_lag: true, without_lag: false };
            client.describe(self.server.request(request)).await.map(tonic::Response::into_inner)
        };
        self.watch.run(ask, write_lag).await
    }
}

fn write_lag(out: &mut Out, format: Format, group: &v1::DescribeGroupResponse) -> Result<(), Failure> {
    match format {
        Format::Json => out.json(&json(group)),
        Format::Table => {
            out.line(headline(group).as_bytes())?;
            out.table(&PARTITION_COLUMNS, group.partitions.iter().map(partition_row).collect())
        }
    }
}

fn headline(group: &v1::DescribeGroupResponse) -> String {
    let lag: u64 = group.partitions.iter().filter_map(|p| p.lag).sum();
    let summary = group.group.clone().unwrap_or_default();
    format!(
        "{}: {}, {} members, {} partitions, lag {lag}, assignor {}, epoch {}",
        short_name("group", &summary.path),
        state_word(summary.state()),
        summary.members,
        summary.partitions,
        group.assignor,
        summary.epoch,
    )
}

const MEMBER_COLUMNS: [&str; 7] = ["MEMBER", "NAME", "INSTANCE", "EPOCH", "OWNS", "LETS GO OF", "HEARD OF"];
const PARTITION_COLUMNS: [&str; 8] =
    ["STREAM", "PARTITION", "OWNER", "COMMITTED", "NEXT", "LAG", "BEHIND", "WHY"];

fn write_tables(out: &mut Out, group: &v1::DescribeGroupResponse) -> Result<(), Failure> {
    out.line(headline(group).as_bytes())?;
    if !group.members.is_empty() {
        out.line(b"")?;
    }
    out.table(&MEMBER_COLUMNS, group.members.iter().map(member_row).collect())?;
    if !group.partitions.is_empty() {
        out.line(b"")?;
    }
    out.table(&PARTITION_COLUMNS, group.partitions.iter().map(partition_row).collect())
}

fn member_row(member: &v1::GroupMember) -> Vec<String> {
    let heard = if member.away { "away" } else { "" };
    vec![
        member.member_id.clone(),
        or_dash(&member.name),
        or_dash(&member.instance_id),
        member.member_epoch.to_string(),
        selection_text(&member.assigned),
        selection_text(&member.revoking),
        format!("{} {heard}", time(member.last_heartbeat_at_ms)).trim_end().to_owned(),
    ]
}

fn partition_row(partition: &v1::GroupPartition) -> Vec<String> {
    let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    vec![
        short_name("stream", &partition.stream).to_owned(),
        partition.partition.to_string(),
        or_dash(&partition.owner),
        number(partition.committed),
        number(partition.next_offset),
        number(partition.lag),
        partition.lag_ms.map_or_else(|| "-".to_owned(), behind),
        why(partition),
    ]
}

/// Why there is no owner, or no lag.
fn why(partition: &v1::GroupPartition) -> String {
    match &partition.error {
        Some(error) => format!("{}: {}", error.reason, error.message),
        None => partition.why.clone(),
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// A span in words that fit a column.
fn behind(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..600_000 => format!("{} s", ms / 1000),
        600_000..36_000_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

fn json(group: &v1::DescribeGroupResponse) -> DescribeJson<'_> {
    DescribeJson {
        group: group.group.as_ref().map(GroupJson::from),
        assignor: &group.assignor,
        session_timeout_ms: group.session_timeout_ms,
        rebalance_timeout_ms: group.rebalance_timeout_ms,
        members: group.members.iter().map(member_json).collect(),
        partitions: group.partitions.iter().map(partition_json).collect(),
    }
}

fn member_json(member: &v1::GroupMember) -> MemberJson<'_> {
    MemberJson {
        member_id: &member.member_id,
        name: &member.name,
        instance_id: &member.instance_id,
        epoch: member.member_epoch,
        streams: &member.streams,
        assigned: stream_json(&member.assigned),
        revoking: stream_json(&member.revoking),
        target: stream_json(&member.target),
        away: member.away,
        joined_at_ms: member.joined_at_ms,
        last_heartbeat_at_ms: member.last_heartbeat_at_ms,
        expires_at_ms: member.expires_at_ms,
        revoke_until_ms: member.revoke_until_ms,
    }
}

fn stream_json(streams: &[v1::StreamPartitions]) -> Vec<StreamJson<'_>> {
    streams.iter().map(|some| StreamJson { stream: &some.stream, partitions: &some.partitions }).collect()
}

fn partition_json(partition: &v1::GroupPartition) -> PartitionJson<'_> {
    PartitionJson {
        stream: &partition.stream,
        partition: partition.partition,
        owner: Some(partition.owner.as_str()).filter(|owner| !owner.is_empty()),
        target: &partition.target,
        why: &partition.why,
        committed: partition.committed,
        committed_at_ms: partition.committed_at_ms,
        metadata: text(&partition.metadata).filter(|text| !text.is_empty()),
        metadata_base64: base64_text(&partition.metadata),
        earliest_offset: partition.earliest_offset,
        next_offset: partition.next_offset,
        lag: partition.lag,
        lag_ms: partition.lag_ms,
        error: partition.error.as_ref().map(|error| error.message.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_without_an_owner_says_why() {
        let partition = v1::GroupPartition {
            stream: "default/default/stream/logs".to_owned(),
            partition: 3,
            committed: Some(5),
            next_offset: Some(9),
            lag: Some(4),
            lag_ms: Some(61_000),
            why: "kept until m1 has let go".to_owned(),
            ..Default::default()
        };
        let row = partition_row(&partition);
        assert_eq!(row, ["logs", "3", "-", "5", "9", "4", "61 s", "kept until m1 has let go"]);
        let text = serde_json::to_string(&partition_json(&partition)).unwrap();
        assert!(text.contains(r#""owner":null"#) && text.contains(r#""why":"kept"#), "{text}");
    }

    #[test]
    fn spans_fit_their_column() {
        let spans =
            [(0, "0 ms"), (9_999, "9999 ms"), (10_000, "10 s"), (600_000, "10 min"), (36_000_000, "10 h")];
        for (ms, words) in spans {
            assert_eq!(behind(ms), words);
        }
    }
}
