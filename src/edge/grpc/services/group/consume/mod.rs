//! `Group.Consume`: membership, reads and commits of one consumer on one call.
//!
//! - [`membership`]: the heartbeat that is always under way, and leaving at the end.
//! - [`start`]: where a partition starts.
//! - [`flow`]: records of the partitions, each read for itself, pushed in turn as far as there is credit.
//! - [`replayed`]: what is different for a consumer of a replay session.
//! - [`session`]: what the group says and what the consumer says, and what follows from it.
//!
//! Here: the call, which sends one thing after the other, at the client's pace.

mod flow;
mod membership;
mod replayed;
mod session;
mod start;

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use flowmesh_model::compression::Codecs;
use flowmesh_model::limits::REPLY_BYTES_MAX;
use flowmesh_model::settings::within;
use flowmesh_model::{Kind, Reject};
use flowmesh_proto::v1;

use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::message::malformed;
use crate::edge::grpc::outbound::Gone;
use crate::edge::grpc::services::filter::read_filter;
use crate::edge::grpc::services::replay;
use crate::edge::grpc::services::stream::or_default;
use crate::edge::grpc::services::unpack::read_codecs;
use crate::edge::grpc::services::{check_not_empty, decode};
use crate::edge::grpc::status::Status;
use crate::edge::grpc::streaming::{Ended, StreamCall};
use flow::Flows;
use session::Session;

/// Bytes of one read where the client does not say.
const BATCH_BYTES_DEFAULT: u32 = 256 * 1024;

/// Messages of one turn before the answers get theirs.
const TURN_MAX: usize = 64;

/// Serves one consumer.
pub async fn consume<B: Backend>(edge: &Rc<Edge<B>>, call: &mut StreamCall) -> Result<(), Ended> {
    let (mut hello, first) = hello(call).await?;
    check_not_empty("streams", hello.streams.len())?;
    let codecs = read_codecs(&hello.accept_compression)?;
    let flows = match read_filter(hello.filter.take())? {
        None => Flows::new(edge, batch_bytes(&hello)?, codecs),
        Some(filter) => Flows::new(edge, batch_bytes(&hello)?, Codecs::default()).with_filter(filter),
    };
    let group = edge.backend.resolve(Kind::Group, &hello.group, true).await?;
    let session = Session::new(edge, group, &hello, flows)?;
    serve(session, first, call).await
}

/// Serves one consumer of a replay session.
pub async fn consume_replay<B: Backend>(edge: &Rc<Edge<B>>, call: &mut StreamCall) -> Result<(), Ended> {
    let (hello, first) = hello(call).await?;
    if !hello.streams.is_empty() {
        return Err(Reject::invalid("streams", "are those of the session: leave them out").into());
    }
    if hello.filter.is_some() {
        return Err(Reject::invalid("filter", "is that of the session: leave it out").into());
    }
    // Every record gets a header more, so none is sent as it rests.
    let flows = Flows::new(edge, batch_bytes(&hello)?, Codecs::default());
    let session = replay::Session::find(edge, &hello.group)?;
    let session = Session::of_replay(edge, session, &hello, flows)?;
    serve(session, first, call).await
}

/// The first message, with its hello taken out.
async fn hello(call: &mut StreamCall) -> Result<(v1::ConsumeHello, v1::ConsumeRequest), Ended> {
    let Some(first) = call.next().await? else { return Err(malformed("the call has no message").into()) };
    let mut first: v1::ConsumeRequest = decode(first)?;
    let hello =
        first.hello.take().ok_or_else(|| Reject::invalid("hello", "is missing in the first message"))?;
    Ok((hello, first))
}

fn batch_bytes(hello: &v1::ConsumeHello) -> Result<u32, Reject> {
    within("max_batch_bytes", hello.max_batch_bytes.into(), 0, REPLY_BYTES_MAX as u64)?;
    Ok(or_default(hello.max_batch_bytes, BATCH_BYTES_DEFAULT))
}

async fn serve<B: Backend>(
    mut session: Session<B>,
    first: v1::ConsumeRequest,
    call: &mut StreamCall,
) -> Result<(), Ended> {
    session.take_request(first, 0)?;
    call.open()?;
    call.reader.release();
    let mut consumer = Consumer { session, ended: None };
    let conn = Rc::clone(&call.conn);
    let mut closing = pin!(conn.closing());
    poll_fn(|cx| {
        if consumer.ended.is_none() && closing.as_mut().poll(cx).is_ready() {
            consumer.ended = Some(Err(Reject::ShuttingDown.into()));
        }
        consumer.poll_consume(call, cx)
    })
    .await
}

struct Consumer<B: Backend> {
    session: Session<B>,
    /// No more requests come: the call ends like this once all answers are out.
    ended: Option<Result<(), Status>>,
}

impl<B: Backend> Consumer<B> {
    fn poll_consume(&mut self, call: &mut StreamCall, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.session.outbox.watch(cx);
        loop {
            let more = self.take_requests(call, cx);
            if self.ended.is_some() {
                // Commits are still answered; records that nobody can commit here are not pushed.
                let _ = self.session.poll_checks(cx);
            } else if let Err(reject) = self.session.poll(cx) {
                self.ended = Some(Err(reject.into()));
            } else if self.session.is_over() {
                self.ended = Some(Ok(()));
            }
            let Some((_, out)) = call.split() else { return Poll::Ready(Err(Ended::Gone)) };
            match ready!(out.poll_sent(cx)) {
                Ok(()) => {}
                Err(Gone) => return Poll::Ready(Err(Ended::Gone)),
            }
            if let Some(messages) = self.session.outbox.take() {
                out.queue(messages);
                continue;
            }
            if self.ended.is_some() {
                if self.session.outbox.is_idle() {
                    return Poll::Ready(self.ended.take().unwrap_or(Ok(())).map_err(Ended::Status));
                }
            } else if let Some(records) = self.session.push(cx) {
                out.queue(records);
                continue;
            }
            if !more {
                return call.poll_gone(cx).map(|Gone| Err(Ended::Gone));
            }
        }
    }

    /// Takes requests that are there; says whether there may be more.
    fn take_requests(&mut self, call: &mut StreamCall, cx: &mut Context<'_>) -> bool {
        let mut more = false;
        for _ in 0..TURN_MAX {
            if self.ended.is_some() || self.session.outbox.is_full() {
                break;
            }
            match call.reader.poll_message(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(message))) => {
                    more = true;
                    let bytes = message.len();
                    let taken = decode(message).and_then(|request| self.take_request(request, bytes));
                    self.ended = taken.err().map(|reject| Err(reject.into()));
                }
                Poll::Ready(Ok(None)) => self.ended = Some(Ok(())),
                Poll::Ready(Err(status)) => self.ended = Some(Err(status)),
            }
        }
        call.reader.release();
        more
    }

    fn take_request(&mut self, request: v1::ConsumeRequest, bytes: usize) -> Result<(), Reject> {
        if request.hello.is_some() {
            return Err(Reject::invalid("hello", "belongs in the first message only"));
        }
        self.session.take_request(request, bytes)
    }
}
