//! `grpc.health.v1.Health`: can this server take requests?

use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use flowmesh_proto::health::health_check_response::ServingStatus;
use flowmesh_proto::health::{HealthCheckRequest, HealthCheckResponse};

use super::{answer, attempt, decode, put};
use crate::edge::backend::Backend;
use crate::edge::error_map::GrpcCode;
use crate::edge::grpc::Edge;
use crate::edge::grpc::message::put_message;
use crate::edge::grpc::method::Method;
use crate::edge::grpc::respond::Responder;
use crate::edge::grpc::shared::CallFuture;
use crate::edge::grpc::status::Status;
use crate::edge::grpc::streaming::{Ended, StreamCall};

/// How often a watched state is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// `Health.Check`
pub fn check<B: Backend>(edge: &Rc<Edge<B>>, message: Bytes, responder: Responder) -> Option<CallFuture> {
    let request: HealthCheckRequest = attempt!(responder, decode(message));
    if !is_known(&request.service) {
        let text = format!("there is no service {:?}", request.service);
        responder.fail(Status::new(GrpcCode::NotFound, "UNKNOWN_SERVICE", text));
        return None;
    }
    answer(responder, &HealthCheckResponse { status: state(edge).into() });
    None
}

/// `Health.Watch`
pub async fn watch<B: Backend>(edge: &Rc<Edge<B>>, call: &mut StreamCall) -> Result<(), Ended> {
    let request: HealthCheckRequest = decode(call.only().await?)?;
    let known = is_known(&request.service);
    let mut last = None;
    loop {
        let now = if known { state(edge) } else { ServingStatus::ServiceUnknown };
        if last != Some(now) {
            send(call, now).await?;
            last = Some(now);
        }
        let pause = edge.backend.sleep(WATCH_INTERVAL);
        if let Err(ended) = call.until_over(pause).await {
            if known && matches!(ended, Ended::Status(_)) {
                send(call, ServingStatus::NotServing).await?;
            }
            return Err(ended);
        }
    }
}

async fn send(call: &mut StreamCall, status: ServingStatus) -> Result<(), Ended> {
    let mut out = BytesMut::new();
    put_message(&mut out, |out| put(out, &HealthCheckResponse { status: status.into() }));
    call.send(out.freeze()).await
}

fn state<B: Backend>(edge: &Edge<B>) -> ServingStatus {
    if edge.backend.is_serving() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// Whether that is the server (the empty name) or one of its services.
fn is_known(service: &str) -> bool {
    let of = |method: &Method| method.name().split_once('/').map_or("", |(service, _)| service);
    service.is_empty() || Method::ALL.iter().any(|method| of(method) == service)
}
