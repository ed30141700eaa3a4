//! `flowmesh.v1.Schedule`: a schedule is its queue's, so each call but `List` is one command to that one's shard.

use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use flowmesh_model::group::Name;
use flowmesh_model::limits::SCHEDULE_LIST_BYTES_MAX;
use flowmesh_model::schedule::{
    MissedPolicy, ScheduleChanges, ScheduleSpec, ScheduleState, ScheduleStatus, Timing,
};
use flowmesh_model::settings::within;
use flowmesh_model::{
    Command, JobId, Kind, Millis, QueueCommand, Reject, Reply, ResourceInfo, ScheduleCommand, ScheduleReply,
};
use flowmesh_proto::v1;
use flowmesh_proto::v1::create_schedule_request::Timing as NewTiming;
use flowmesh_proto::v1::schedule_info::Timing as TimingMessage;
use flowmesh_proto::v1::update_schedule_request::Timing as ChangedTiming;
use prost::Message;

use super::admin::{PAGE_DEFAULT, PAGE_MAX, page};
use super::group::answer_later;
use super::queue::{existing, job_message, new_job, queue_shard};
use super::stream::or_default;
use super::{attempt, decode, dispatch, put, with_resource};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::respond::{Responder, wrong_reply};
use crate::edge::grpc::shared::CallFuture;

/// Times that `Next` tells if it is not said how many.
const TIMES_DEFAULT: u32 = 10;

/// `Schedule.Create`
pub fn create<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::CreateScheduleRequest = attempt!(responder, decode(message));
    let queue = request.queue.clone();
    let command = attempt!(responder, create_command(request));
    with_resource(edge, Kind::Queue, &queue, true, responder, move |edge, info, responder| {
        let queue = info.path.to_string();
        ask(edge, &info, command, responder, move |reply, out| {
            let ScheduleReply::Status(status, created) = reply else { return Err(wrong_reply()) };
            let schedule = Some(schedule_message(queue, *status));
            put(out, &v1::CreateScheduleResponse { schedule, created });
            Ok(())
        });
    })
}

fn create_command(request: v1::CreateScheduleRequest) -> Result<ScheduleCommand, Reject> {
    let missed = missed(request.missed()).unwrap_or_default();
    let timing = match request.timing {
        Some(NewTiming::Cron(expression)) => {
            Timing::Cron { expression: expression.into(), time_zone: request.time_zone.into() }
        }
        Some(NewTiming::AtMs(ms)) => Timing::Once(Millis(ms)),
        None => return Err(Reject::invalid("cron", "is missing; give cron or at_ms")),
    };
    let job = new_job(&request.job.unwrap_or_default())?;
    let spec = ScheduleSpec { timing, end: request.end_ms.map(Millis), missed, job };
    Ok(ScheduleCommand::Create { name: request.name.into(), spec, paused: request.paused })
}

/// What was said of missed times, if anything was.
fn missed(policy: v1::MissedPolicy) -> Option<MissedPolicy> {
    match policy {
        v1::MissedPolicy::Unspecified => None,
        v1::MissedPolicy::Skip => Some(MissedPolicy::Skip),
        v1::MissedPolicy::Once => Some(MissedPolicy::Once),
        v1::MissedPolicy::All => Some(MissedPolicy::All),
    }
}

/// `Schedule.Update`
pub fn update<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::UpdateScheduleRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.queue));
    let command = attempt!(responder, update_command(request));
    answer_status(edge, &info, command, responder);
    None
}

fn update_command(request: v1::UpdateScheduleRequest) -> Result<ScheduleCommand, Reject> {
    let missed = missed(request.missed());
    let (cron, at) = match request.timing {
        Some(ChangedTiming::Cron(expression)) => (Some(expression.into()), None),
        Some(ChangedTiming::AtMs(ms)) => (None, Some(Millis(ms))),
        None => (None, None),
    };
    let changes = ScheduleChanges {
        cron,
        at,
        time_zone: Some(request.time_zone).filter(|zone| !zone.is_empty()).map(Name::from),
        end: request.end_ms.map(|ms| Some(Millis(ms)).filter(|_| ms > 0)),
        missed,
        job: request.job.as_ref().map(new_job).transpose()?,
    };
    Ok(ScheduleCommand::Update { name: request.name.into(), changes: Box::new(changes) })
}

/// `Schedule.Describe`
pub fn describe<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    act(edge, message, responder, ScheduleCommand::Describe)
}

/// `Schedule.Pause`
pub fn pause<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    act(edge, message, responder, ScheduleCommand::Pause)
}

/// `Schedule.Resume`
pub fn resume<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    act(edge, message, responder, ScheduleCommand::Resume)
}

/// Carries a command out that answers with the schedule alone.
fn act<B: Backend>(
    edge: &Rc<Edge<B>>,
    message: Bytes,
    responder: Responder,
    command: impl FnOnce(Name) -> ScheduleCommand,
) -> Option<CallFuture> {
    let request: v1::ScheduleRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.queue));
    answer_status(edge, &info, command(request.name.into()), responder);
    None
}

/// Carries a command out and answers with the schedule as it is then.
fn answer_status<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    command: ScheduleCommand,
    responder: Responder,
) {
    let queue = info.path.to_string();
    ask(edge, info, command, responder, move |reply, out| {
        let ScheduleReply::Status(status, _) = reply else { return Err(wrong_reply()) };
        put(out, &schedule_message(queue, *status));
        Ok(())
    });
}

/// `Schedule.Delete`
pub fn delete<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ScheduleRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.queue));
    let queue = info.path.to_string();
    ask(edge, &info, ScheduleCommand::Delete(request.name.into()), responder, move |reply, out| {
        let ScheduleReply::Status(status, _) = reply else { return Err(wrong_reply()) };
        put(out, &v1::DeleteScheduleResponse { schedule: Some(schedule_message(queue, *status)) });
        Ok(())
    });
    None
}

/// `Schedule.RunNow`
pub fn run_now<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ScheduleRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.queue));
    ask(edge, &info, ScheduleCommand::RunNow(request.name.into()), responder, |reply, out| {
        let ScheduleReply::Fired(JobId(job_id)) = reply else { return Err(wrong_reply()) };
        put(out, &v1::RunNowResponse { job_id });
        Ok(())
    });
    None
}

/// `Schedule.Next`
pub fn next<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::NextTimesRequest = attempt!(responder, decode(message));
    let info = attempt!(responder, existing(edge, &request.queue));
    let times_max = or_default(request.count, TIMES_DEFAULT);
    let command = ScheduleCommand::Next { name: request.name.into(), times_max };
    ask(edge, &info, command, responder, |reply, out| {
        let ScheduleReply::Times(times) = reply else { return Err(wrong_reply()) };
        put(out, &v1::NextTimesResponse { times_ms: times.into_iter().map(Millis::get).collect() });
        Ok(())
    });
    None
}

fn ask<B: Backend>(
    edge: &Edge<B>,
    info: &ResourceInfo,
    command: ScheduleCommand,
    responder: Responder,
    encode: impl FnOnce(ScheduleReply, &mut BytesMut) -> Result<(), Reject> + 'static,
) {
    let command = Command::Queue(info.id, QueueCommand::Schedule(command));
    dispatch(edge, queue_shard(edge, info), command, responder, |reply, out| match reply {
        Reply::Schedule(reply) => encode(reply, out),
        _ => Err(wrong_reply()),
    });
}

/// `Schedule.List`
pub fn list<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: v1::ListSchedulesRequest = attempt!(responder, decode(message));
    attempt!(responder, within("page_size", request.page_size.into(), 0, PAGE_MAX));
    let size = or_default(request.page_size, PAGE_DEFAULT) as usize;
    let queues = attempt!(responder, queues(edge, &request));
    let edge = Rc::clone(edge);
    Some(answer_later(responder, async move { queues.list(&edge, size).await }))
}

/// Queues whose schedules a page has.
struct Queues {
    infos: Vec<Arc<ResourceInfo>>,
    /// Of the first, only schedules after this one.
    after: Option<Name>,
    /// Where there may be more queues; empty: there are none.
    rest: String,
    /// Whether it is about all queues: one that is deleted meanwhile is left out.
    all: bool,
}

/// The queues from a page's token on: `QUEUE` stands for those after it, `QUEUE NAME` for the rest of it and those after it.
fn queues<B: Backend>(edge: &Edge<B>, request: &v1::ListSchedulesRequest) -> Result<Queues, Reject> {
    let (token, after) = match request.page_token.split_once(' ') {
        Some((queue, name)) => (queue, Some(Name::from(name))),
        None => (request.page_token.as_str(), None),
    };
    if !request.queue.is_empty() {
        let infos = vec![existing(edge, &request.queue)?];
        return Ok(Queues { infos, after, rest: String::new(), all: false });
    }
    let page = page(
        edge,
        &v1::ListResourcesRequest {
            kind: v1::Kind::Queue.into(),
            prefix: request.prefix.clone(),
            page_size: PAGE_MAX as u32,
            page_token: token.to_owned(),
        },
    )?;
    let find = |path: &str| edge.backend.find(Kind::Queue, path);
    let begun = after.as_ref().and_then(|_| find(token));
    let after = after.filter(|_| begun.is_some());
    let queues = page.resources.iter().filter_map(|resource| find(&resource.path));
    Ok(Queues {
        infos: begun.into_iter().chain(queues).collect(),
        after,
        rest: page.next_page_token,
        all: true,
    })
}

impl Queues {
    /// Asks one queue after the other until there are enough.
    async fn list<B: Backend>(
        mut self,
        edge: &Edge<B>,
        size: usize,
    ) -> Result<v1::ListSchedulesResponse, Reject> {
        let mut page = v1::ListSchedulesResponse { next_page_token: self.rest, ..Default::default() };
        let (mut bytes, last) = (0, self.infos.len().saturating_sub(1));
        for (number, info) in self.infos.iter().enumerate() {
            let left = size - page.schedules.len();
            let schedules_max = u32::try_from(left).unwrap_or(u32::MAX);
            let list = ScheduleCommand::List { after: self.after.take(), schedules_max };
            let command = Command::Queue(info.id, QueueCommand::Schedule(list));
            let (schedules, more) = match edge.backend.call(queue_shard(edge, info), command).await {
                Ok(Reply::Schedule(ScheduleReply::List { schedules, more })) => (schedules, more),
                Ok(_) => return Err(wrong_reply()),
                Err(Reject::ResourceNotFound { .. }) if self.all => continue,
                Err(reject) => return Err(reject),
            };
            let queue = info.path.to_string();
            let messages = schedules.into_iter().map(|status| schedule_message(queue.clone(), status));
            for message in messages {
                bytes += message.encoded_len();
                page.schedules.push(message);
            }
            if more {
                let name = page.schedules.last().map_or("", |last| last.name.as_str());
                page.next_page_token = format!("{queue} {name}");
                break;
            }
            if (page.schedules.len() == size || bytes > SCHEDULE_LIST_BYTES_MAX) && number < last {
                page.next_page_token = queue;
                break;
            }
        }
        Ok(page)
    }
}

/// A schedule as a message.
fn schedule_message(queue: String, status: ScheduleStatus) -> v1::ScheduleInfo {
    let ScheduleSpec { timing, end, missed, job } = status.spec;
    let (timing, time_zone) = match timing {
        Timing::Once(Millis(at_ms)) => (TimingMessage::AtMs(at_ms), String::new()),
        Timing::Cron { expression, time_zone } => {
            (TimingMessage::Cron(expression.as_ref().to_owned()), time_zone.as_ref().to_owned())
        }
    };
    v1::ScheduleInfo {
        queue,
        name: status.name.as_ref().to_owned(),
        state: state_number(status.state),
        timing: Some(timing),
        time_zone,
        end_ms: end.map(Millis::get),
        missed: missed_number(missed),
        job: Some(job_message(&job)),
        next_at_ms: status.next_at.map(Millis::get),
        created_at_ms: status.created_at.get(),
        finished_at_ms: status.finished_at.map(Millis::get),
        fired_total: status.fired_total,
        skipped_total: status.skipped_total,
        last_job_id: status.last_fired.map(|(job, _)| job.get()),
        last_scheduled_at_ms: status.last_fired.map(|(_, at)| at.get()),
        held_back: status.held_back,
    }
}

fn state_number(state: ScheduleState) -> i32 {
    match state {
        ScheduleState::Active => v1::ScheduleState::Active.into(),
        ScheduleState::Paused => v1::ScheduleState::Paused.into(),
        ScheduleState::Finished => v1::ScheduleState::Finished.into(),
    }
}

fn missed_number(missed: MissedPolicy) -> i32 {
    match missed {
        MissedPolicy::Skip => v1::MissedPolicy::Skip.into(),
        MissedPolicy::Once => v1::MissedPolicy::Once.into(),
        MissedPolicy::All => v1::MissedPolicy::All.into(),
    }
}
