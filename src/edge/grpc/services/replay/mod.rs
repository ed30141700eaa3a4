//! `flowmesh.v1.Replay`, the unary calls. Here: which session is meant, and what is done to one as a whole. [`create`]:
//! starts and ends become offsets; [`describe`]: sessions as messages; [`step`]: the next records by hand; [`marked`]: the
//! headers of replayed records. Consuming is the group's, with the session's bounds, pace and filter.

mod create;
mod describe;
pub mod marked;
mod step;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flowmesh_model::command::ReadFrom;
use flowmesh_model::replay::{ReplayProgress, ReplayRef, ReplayStatus, Speed};
use flowmesh_model::{
    CatalogCommand, Command, Kind, Millis, Offset, Reject, ReplayCommand, ReplaySettings, Reply,
    ResourceInfo, Settings, ShardId,
};
use flowmesh_proto::v1;
use flowmesh_proto::v1::seek_replay_request::All;

use super::group::{answer_later, group_shard};
use super::offsets::find_offset;
use super::stream::partition_status;
use super::{attempt, decode};
use crate::edge::backend::{Backend, missing};
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

pub use create::create;
pub use describe::{list, state_number};
pub use step::step;

use describe::session_message;

/// A session that there is.
#[derive(Clone, Debug)]
pub struct Session {
    /// The session.
    pub info: Arc<ResourceInfo>,
    /// Its sandbox.
    pub group: Arc<ResourceInfo>,
    /// Its stream, unless that was deleted.
    pub stream: Option<Arc<ResourceInfo>>,
    /// What it replays.
    pub settings: ReplaySettings,
}

impl Session {
    /// The session of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn find<B: Backend>(edge: &Edge<B>, name: &str) -> Result<Self, Reject> {
        let info = edge.backend.find(Kind::Replay, name).ok_or_else(|| missing(Kind::Replay, name))?;
        Self::of(edge, info)
    }

    fn of<B: Backend>(edge: &Edge<B>, info: Arc<ResourceInfo>) -> Result<Self, Reject> {
        let Settings::Replay(settings) = &info.settings else { return Err(wrong_reply()) };
        let settings = settings.clone();
        let group = edge.backend.find(Kind::Group, &settings.group);
        let group = group.ok_or_else(|| missing(Kind::Group, &settings.group))?;
        let stream = edge.backend.catalog().get(settings.stream).cloned();
        Ok(Self { info, group, stream, settings })
    }

    /// How shards know it.
    pub fn at(&self) -> ReplayRef {
        ReplayRef { session: self.info.id, group: self.group.id }
    }

    /// Its stream.
    ///
    /// # Errors
    /// It was deleted.
    pub fn stream(&self) -> Result<&Arc<ResourceInfo>, Reject> {
        let path = || format!("stream {}, which was deleted", self.settings.stream);
        self.stream.as_ref().ok_or_else(|| Reject::ResourceNotFound { path: path() })
    }

    /// Carries a command out and says how the session is then.
    ///
    /// # Errors
    /// The command's.
    pub async fn ask<B: Backend>(
        &self,
        edge: &Edge<B>,
        command: ReplayCommand,
    ) -> Result<ReplayStatus, Reject> {
        let shard = group_shard(edge, &self.group);
        match edge.backend.call(shard, Command::Replay(self.at(), command)).await? {
            Reply::Replay(status) => Ok(*status),
            _ => Err(wrong_reply()),
        }
    }

    /// How it is.
    ///
    /// # Errors
    /// Its shard cannot say.
    pub async fn status<B: Backend>(&self, edge: &Edge<B>) -> Result<ReplayStatus, Reject> {
        self.ask(edge, ReplayCommand::Status { known: None, wait_until: None }).await
    }

    /// The time of the earliest record to come: from there the pace counts. `None` if there is none yet, or the session
    /// has no pace.
    async fn record_time<B: Backend>(
        &self,
        edge: &Edge<B>,
        speed: Speed,
        partitions: &[ReplayProgress],
    ) -> Result<Option<Millis>, Reject> {
        if speed == Speed::MAX {
            return Ok(None);
        }
        let stream = self.stream()?;
        let mut earliest = None;
        for at in partitions.iter().filter(|at| !at.is_done()) {
            let partition = at.range.partition;
            let first = Offset(partition_status(edge, stream, partition).await?.earliest_offset);
            let next = ReadFrom::Offset(at.position.max(first));
            let found = find_offset(edge, stream, partition, next).await?;
            let beyond = at.range.until.is_some_and(|until| found.offset >= until.get());
            if let Some(ms) = found.appended_at_ms.filter(|_| !beyond) {
                earliest = Some(earliest.map_or(Millis(ms), |before: Millis| before.min(Millis(ms))));
            }
        }
        Ok(earliest)
    }
}

/// A speed as the API has it.
///
/// # Errors
/// It is none.
#[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "what is cast was checked")]
fn speed_of(speed: f64) -> Result<Speed, Reject> {
    let is_speed = speed == 0.0 || (0.001..=1_000_000.0).contains(&speed);
    if !is_speed {
        let allowed = "allowed: 0, as fast as possible, or 0.001 to 1000000 times as fast as it was";
        return Err(Reject::invalid("speed", format!("is {speed}; {allowed}")));
    }
    Ok(Speed((speed * 1000.0).round() as u64))
}

/// A speed as messages have it.
pub fn speed_number(speed: Speed) -> f64 {
    // At most a million thousandfold: exact.
    speed.0 as f64 / 1000.0
}

/// Carries out what `command` makes of a session and how it is, and answers with how it is then.
fn act<B, F>(
    edge: &Rc<Edge<B>>,
    name: &str,
    responder: Responder,
    command: impl FnOnce(Rc<Edge<B>>, Session) -> F + 'static,
) -> Option<CallFuture>
where
    B: Backend,
    F: Future<Output = Result<ReplayCommand, Reject>>,
{
    let session = attempt!(responder, Session::find(edge, name));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let command = command(Rc::clone(&edge), session.clone()).await?;
        let status = session.ask(&edge, command).await?;
        Ok(session_message(&session, &status))
    }))
}

/// `Replay.Start`
pub fn start<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ReplayRequest = attempt!(responder, decode(message));
    act(edge, &request.session, responder, |edge, session| async move {
        let now = session.status(&edge).await?;
        let record_time = session.record_time(&edge, now.pace.speed, &now.partitions).await?;
        Ok(ReplayCommand::Start { record_time })
    })
}

/// `Replay.Pause`
pub fn pause<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ReplayRequest = attempt!(responder, decode(message));
    act(edge, &request.session, responder, |_, _| async { Ok(ReplayCommand::Pause) })
}

/// `Replay.Resume`
pub fn resume<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ReplayRequest = attempt!(responder, decode(message));
    act(edge, &request.session, responder, |edge, session| async move {
        let now = session.status(&edge).await?;
        let record_time = session.record_time(&edge, now.pace.speed, &now.partitions).await?;
        Ok(ReplayCommand::Resume { record_time })
    })
}

/// `Replay.Stop`
pub fn stop<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ReplayRequest = attempt!(responder, decode(message));
    act(edge, &request.session, responder, |_, _| async { Ok(ReplayCommand::Stop) })
}

/// `Replay.Fail`
pub fn fail<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::FailReplayRequest = attempt!(responder, decode(message));
    let error = request.error.into();
    act(edge, &request.session, responder, |_, _| async { Ok(ReplayCommand::Fail { error }) })
}

/// `Replay.Describe`
pub fn describe<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ReplayRequest = attempt!(responder, decode(message));
    act(edge, &request.session, responder, |_, _| async {
        Ok(ReplayCommand::Status { known: None, wait_until: None })
    })
}

/// `Replay.SetSpeed`
pub fn set_speed<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::SetReplaySpeedRequest = attempt!(responder, decode(message));
    let speed = attempt!(responder, speed_of(request.speed));
    act(edge, &request.session, responder, move |edge, session| async move {
        let now = session.status(&edge).await?;
        let record_time = session.record_time(&edge, speed, &now.partitions).await?;
        Ok(ReplayCommand::SetSpeed { speed, record_time })
    })
}

/// `Replay.Seek`
pub fn seek<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::SeekReplayRequest = attempt!(responder, decode(message));
    if request.all.is_none() && request.to.is_empty() {
        responder.fail(Reject::invalid(
            "to",
            "is missing; give one of start, end, timestamp_ms, or single places",
        ));
        return None;
    }
    let name = request.session.clone();
    act(edge, &name, responder, move |edge, session| async move {
        let mut now = session.status(&edge).await?;
        let mut to = Vec::with_capacity(now.partitions.len());
        for at in &mut now.partitions {
            let partition = at.range.partition;
            let named = request.to.iter().find(|place| place.partition == partition);
            let offset = match (named, request.all) {
                (Some(place), _) => Offset(place.offset),
                (None, Some(all)) => place_of(&edge, &session, at, all).await?,
                (None, None) => continue,
            };
            at.position = offset;
            to.push((partition, offset));
        }
        // What is none of the session's is refused by its shard.
        let foreign = request.to.iter().filter(|place| session.settings.range(place.partition).is_none());
        to.extend(foreign.map(|place| (place.partition, Offset(place.offset))));
        let record_time = session.record_time(&edge, now.pace.speed, &now.partitions).await;
        // A place that is none of the stream's: what is wrong with it the session's shard says.
        Ok(ReplayCommand::Seek { to, record_time: record_time.unwrap_or(None) })
    })
}

/// Where one partition goes.
async fn place_of<B: Backend>(
    edge: &Edge<B>,
    session: &Session,
    at: &ReplayProgress,
    all: All,
) -> Result<Offset, Reject> {
    let (partition, range) = (at.range.partition, at.range);
    let within = |offset: u64| {
        let offset = Offset(offset).max(range.from);
        range.until.map_or(offset, |until| offset.min(until))
    };
    match (all, range.until) {
        (All::Start(_), _) => Ok(range.from),
        (All::End(_), Some(until)) => Ok(until),
        (All::End(_), None) => {
            let state = partition_status(edge, session.stream()?, partition).await?;
            Ok(within(state.next_offset))
        }
        (All::TimestampMs(ms), _) => {
            let from = ReadFrom::Timestamp(Millis(ms));
            Ok(within(find_offset(edge, session.stream()?, partition, from).await?.offset))
        }
    }
}

/// `Replay.Delete`
pub fn delete<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ReplayRequest = attempt!(responder, decode(message));
    let name = request.session;
    let info = attempt!(
        responder,
        edge.backend.find(Kind::Replay, &name).ok_or_else(|| missing(Kind::Replay, &name))
    );
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move {
        let delete = CatalogCommand::Delete { path: info.path.clone() };
        match edge.backend.call(ShardId(0), Command::Catalog(delete)).await? {
            Reply::Resource { info, .. } => Ok(v1::DeleteReplayResponse { path: info.path.to_string() }),
            _ => Err(wrong_reply()),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_as_fast_as_possible_or_a_factor() {
        for (speed, thousandths) in [(0.0, 0), (0.001, 1), (1.0, 1000), (2.5, 2500), (1e6, 1_000_000_000)] {
            assert_eq!(speed_of(speed), Ok(Speed(thousandths)));
            assert!((speed_number(Speed(thousandths)) - speed).abs() < f64::EPSILON);
        }
        for bad in [-1.0, 0.0009, 1e6 + 1.0, f64::NAN, f64::INFINITY, -0.5] {
            assert!(speed_of(bad).is_err(), "{bad} was accepted");
        }
    }
}
