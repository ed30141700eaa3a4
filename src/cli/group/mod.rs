//! `flowmesh group`: list, [`describe`], watch; [`offsets`] and reset; remove-member, delete.

mod describe;
mod offsets;
mod selection;

use clap::{Args, Subcommand};
use flowmesh_proto::v1;
use serde::Serialize;

use super::args::{Format, Output, Server};
use super::confirm::Confirm;
use super::connection::client;
use super::failure::Failure;
use super::output::Out;
use super::pages::{PAGE_ITEMS, write_all};

/// Commands on consumer groups.
#[derive(Subcommand, Debug)]
pub enum GroupCommand {
    /// List groups, all pages
    List(ListArgs),
    /// Show members, who owns what and why, committed offsets and lag
    Describe(describe::DescribeArgs),
    /// Show the lag of each partition, again and again
    Watch(describe::WatchArgs),
    /// Show committed offsets, or forget them
    Offsets(offsets::OffsetsArgs),
    /// Move committed offsets of partitions that no member owns
    Reset(offsets::ResetArgs),
    /// Throw a member out; its partitions go to the others
    RemoveMember(RemoveMemberArgs),
    /// Delete a group with its offsets
    Delete(DeleteArgs),
}

/// Arguments of `group list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only those whose name or full path starts with this
    #[arg(short, long, default_value = "")]
    prefix: String,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `group remove-member`.
#[derive(Args, Debug)]
pub struct RemoveMemberArgs {
    /// The group
    group: String,
    /// The member, as `group describe` shows it
    #[arg(required_unless_present = "instance_id", conflicts_with = "instance_id")]
    member: Option<String>,
    /// The member that has this instance id
    #[arg(long, value_name = "ID")]
    instance_id: Option<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

/// Arguments of `group delete`.
#[derive(Args, Debug)]
pub struct DeleteArgs {
    /// The group
    group: String,
    /// Though it has members
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    server: Server,
}

#[derive(Serialize)]
struct GroupJson<'a> {
    path: &'a str,
    state: &'static str,
    epoch: u64,
    members: u32,
    partitions: u32,
    assigned: u32,
    offsets: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    empty_since_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> From<&'a v1::GroupSummary> for GroupJson<'a> {
    fn from(group: &'a v1::GroupSummary) -> Self {
        Self {
            path: &group.path,
            state: state_word(group.state()),
            epoch: group.epoch,
            members: group.members,
            partitions: group.partitions,
            assigned: group.assigned,
            offsets: group.offsets,
            empty_since_ms: group.empty_since_ms,
            error: group.error.as_ref().map(|error| error.message.as_str()),
        }
    }
}

#[derive(Serialize)]
struct MemberIdJson<'a> {
    member_id: &'a str,
}

#[derive(Serialize)]
struct PathJson<'a> {
    path: &'a str,
}

impl GroupCommand {
    /// Runs it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(args) => args.run().await,
            Self::Describe(args) => args.run().await,
            Self::Watch(args) => args.run().await,
            Self::Offsets(args) => args.run().await,
            Self::Reset(args) => args.run().await,
            Self::RemoveMember(args) => args.run().await,
            Self::Delete(args) => args.run().await,
        }
    }
}

/// The word of a state.
fn state_word(state: v1::GroupState) -> &'static str {
    match state {
        v1::GroupState::Unspecified => "unknown",
        v1::GroupState::Empty => "empty",
        v1::GroupState::Reconciling => "reconciling",
        v1::GroupState::Stable => "stable",
    }
}

/// The name alone where tenant and namespace are the defaults.
pub fn short_name<'a>(kind: &str, path: &'a str) -> &'a str {
    let in_defaults = path.strip_prefix("default/default/").and_then(|rest| rest.split_once('/'));
    in_defaults.filter(|(word, _)| *word == kind).map_or(path, |(_, name)| name)
}

impl ListArgs {
    async fn run(self) -> Result<(), Failure> {
        const COLUMNS: [&str; 7] = ["GROUP", "STATE", "MEMBERS", "PARTITIONS", "OWNED", "OFFSETS", "EPOCH"];
        let mut client = client!(group_client::GroupClient, self.server.connect().await?);
        let page = async |page_token| {
            let prefix = self.prefix.clone();
            let request = v1::ListGroupsRequest { prefix, page_size: PAGE_ITEMS, page_token };
            let page = client.list(self.server.request(request)).await?.into_inner();
            Ok((page.groups, page.next_page_token))
        };
        let json = |out: &mut Out, group: &_| out.json(&GroupJson::from(group));
        write_all(self.output.format, &COLUMNS, page, json, row).await
    }
}

fn row(group: &v1::GroupSummary) -> Vec<String> {
    let state = group.error.as_ref().map_or(state_word(group.state()), |error| &error.reason);
    vec![
        short_name("group", &group.path).to_owned(),
        state.to_owned(),
        group.members.to_string(),
        group.partitions.to_string(),
        group.assigned.to_string(),
        group.offsets.to_string(),
        group.epoch.to_string(),
    ]
}

impl RemoveMemberArgs {
    async fn run(self) -> Result<(), Failure> {
        let mut client = client!(group_client::GroupClient, self.server.connect().await?);
        let request = v1::RemoveMemberRequest {
            group: self.group,
            member_id: self.member.unwrap_or_default(),
            instance_id: self.instance_id.unwrap_or_default(),
        };
        let removed = client.remove_member(self.server.request(request)).await?.into_inner();
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&MemberIdJson { member_id: &removed.member_id })?,
            Format::Table => out.line(format!("{} is removed", removed.member_id).as_bytes())?,
        }
        out.flush()
    }
}

impl DeleteArgs {
    async fn run(self) -> Result<(), Failure> {
        self.confirm.ask(&format!("Delete group {} with its offsets?", self.group), "not deleted")?;
        let mut client = client!(group_client::GroupClient, self.server.connect().await?);
        let request = v1::DeleteGroupRequest { group: self.group, force: self.force };
        let deleted = client.delete(self.server.request(request)).await?.into_inner();
        let mut out = Out::new();
        match self.output.format {
            Format::Json => out.json(&PathJson { path: &deleted.path })?,
            Format::Table => out.line(format!("{} is deleted", deleted.path).as_bytes())?,
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_where_they_can_be() {
        assert_eq!(short_name("group", "default/default/group/g"), "g");
        assert_eq!(short_name("stream", "default/default/group/g"), "default/default/group/g");
        assert_eq!(short_name("group", "acme/prod/group/g"), "acme/prod/group/g");
    }
}
