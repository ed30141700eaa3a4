//! Consumer groups: how soon partitions have an owner again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flowmesh_proto::v1;

use super::lab::Lab;
use super::row::{Goal, Round, Row, Unit};
use crate::http2::UnaryClient;
use crate::load::ops::paths;

/// Members of the group.
const MEMBERS: usize = 100;

/// Partitions of the stream that they share.
const PARTITIONS: u32 = 1_000;

/// Without a heartbeat for so long a member is out.
const SESSION_MS: u64 = 3_000;

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// A member that heartbeats when it is its turn.
#[derive(Default)]
struct Member {
    id: String,
    epoch: u64,
    version: u64,
    owned: BTreeSet<u32>,
    /// What it waits for, or has let go of only with its next heartbeat.
    unsettled: usize,
    /// What it was ever told to let go of.
    revoked: usize,
}

impl Member {
    fn beat(&mut self, client: &mut UnaryClient) -> anyhow::Result<()> {
        let partitions = self.owned.iter().copied().collect();
        let owned = v1::OwnedPartitions {
            streams: vec![v1::StreamPartitions { stream: "wide".to_owned(), partitions }],
        };
        let heartbeat = v1::HeartbeatRequest {
            group: "readers".to_owned(),
            member_id: self.id.clone(),
            member_epoch: self.epoch,
            streams: if self.epoch == 0 { vec!["wide".to_owned()] } else { Vec::new() },
            owned: Some(owned),
            known_version: self.version,
            ..Default::default()
        };
        let answer: v1::HeartbeatResponse = client.call(paths::HEARTBEAT, &heartbeat)?;
        (self.id, self.epoch, self.version) = (answer.member_id, answer.member_epoch, answer.version);
        self.owned = answer.assigned.iter().flat_map(|some| some.partitions.iter().copied()).collect();
        // What is revoked is let go of at once: the next heartbeat says so.
        let count =
            |some: &[v1::StreamPartitions]| some.iter().map(|some| some.partitions.len()).sum::<usize>();
        self.revoked += count(&answer.revoking);
        self.unsettled = count(&answer.revoking) + count(&answer.pending);
        Ok(())
    }
}

/// Heartbeats of all in turn, until all partitions have one owner and nothing is on its way to another.
fn settle(members: &mut [Member], client: &mut UnaryClient) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        for member in &mut *members {
            member.beat(client)?;
        }
        let owned: usize = members.iter().map(|member| member.owned.len()).sum();
        let different: BTreeSet<u32> =
            members.iter().flat_map(|member| member.owned.iter().copied()).collect();
        anyhow::ensure!(owned == different.len(), "a partition has two owners");
        let unsettled: usize = members.iter().map(|member| member.unsettled).sum();
        if owned == PARTITIONS as usize && unsettled == 0 {
            return Ok(());
        }
        anyhow::ensure!(began.elapsed() < DEADLINE, "{owned} of {PARTITIONS} partitions have an owner");
    }
}

/// One of a hundred members falls silent: from the end of its session until all its partitions are another's.
pub fn rebalance(lab: &Lab) -> anyhow::Result<Vec<Row>> {
    let guest = lab.start(1, &[])?;
    let mut client = UnaryClient::connect(guest.server()?.grpc, &[paths::CREATE, paths::HEARTBEAT])?;
    let stream = v1::StreamSettings { partitions: Some(PARTITIONS), ..Default::default() };
    let group = v1::GroupSettings { session_timeout_ms: Some(SESSION_MS), ..Default::default() };
    for (name, kind) in
        [("wide", v1::settings::Kind::Stream(stream)), ("readers", v1::settings::Kind::Group(group))]
    {
        let settings = Some(v1::Settings { kind: Some(kind) });
        let create = v1::CreateResourceRequest { name: name.to_owned(), settings, ..Default::default() };
        client.call::<v1::CreateResourceResponse>(paths::CREATE, &create)?;
    }
    let mut members: Vec<Member> = std::iter::repeat_with(Member::default).take(MEMBERS).collect();
    let mut rounds = Vec::new();
    let mut moved = 0;
    for _ in 0..lab.rounds {
        settle(&mut members, &mut client)?;
        for member in &mut members {
            member.revoked = 0;
        }
        // The last one is heard for the last time.
        let Some(mut gone) = members.pop() else { break };
        gone.beat(&mut client)?;
        let out = Instant::now() + Duration::from_millis(SESSION_MS);
        while Instant::now() < out {
            members.iter_mut().try_for_each(|member| member.beat(&mut client))?;
        }
        settle(&mut members, &mut client)?;
        rounds.push(Round { bare: None, measured: out.elapsed().as_secs_f64() * 1e6 });
        moved += members.iter().map(|member| member.revoked).sum::<usize>();
        members.push(Member::default());
    }
    let what = "1 of 100 members over 1 000 partitions falls silent: all owned again, after its session";
    let row = Row::new(what, Unit::Microseconds, Goal::AtMost(1e6), "", rounds);
    Ok(vec![row.with_note(&format!("{moved} partitions were taken from members that stayed"))])
}
