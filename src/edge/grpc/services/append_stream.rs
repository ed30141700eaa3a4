//! `Stream.AppendStream`: a pipelined producer.
//!
//! ```text
//! message ─► placed, dispatched ─► shard ─► ack into the outbox ─► all that gathered in one message
//!    ▲ not read while too much is in flight: the client's window closes
//! ```

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use flowmesh_model::{Kind, Reject, ResourceInfo};
use flowmesh_proto::v1;

use super::append::{AppendCall, AppendOptions, append};
use super::outbox::{Outbox, Ticket};
use crate::edge::backend::Backend;
use crate::edge::grpc::Edge;
use crate::edge::grpc::outbound::Gone;
use crate::edge::grpc::shared::ConnShared;
use crate::edge::grpc::status::{Status, item_error};
use crate::edge::grpc::streaming::{Ended, StreamCall};

/// `AppendStreamResponse.acks`
const ACKS: u8 = 1;

/// Appends of one turn before the acknowledgements get theirs.
const TURN_MAX: usize = 256;

/// Serves one producer.
pub async fn append_stream<B: Backend>(edge: &Rc<Edge<B>>, call: &mut StreamCall) -> Result<(), Ended> {
    call.open()?;
    let conn = Rc::clone(&call.conn);
    let mut closing = std::pin::pin!(conn.closing());
    let mut producer = Producer { edge, stream: String::new(), outbox: Rc::default(), ended: None };
    loop {
        let step = poll_fn(|cx| {
            if producer.ended.is_none() && closing.as_mut().poll(cx).is_ready() {
                producer.ended = Some(Err(Reject::ShuttingDown.into()));
            }
            producer.poll_step(call, cx)
        });
        match step.await? {
            Step::Create(pending) => {
                let found = edge.backend.resolve(Kind::Stream, &producer.stream, true).await;
                producer.append(&conn, found, pending);
                call.reader.release();
            }
            Step::End => return producer.ended.unwrap_or(Ok(())).map_err(Ended::Status),
        }
    }
}

/// An append that was read.
struct Pending {
    options: AppendOptions,
    records: Bytes,
    sequence: u64,
    ticket: Ticket,
}

struct Producer<'a, B: Backend> {
    edge: &'a Rc<Edge<B>>,
    /// The stream of the message before.
    stream: String,
    outbox: Rc<Outbox>,
    /// No more messages come: the call ends like this once all answers are out.
    ended: Option<Result<(), Status>>,
}

/// What the call does next.
enum Step {
    /// The stream of this append must be created first.
    Create(Pending),
    /// All is answered.
    End,
}

impl<B: Backend> Producer<'_, B> {
    fn poll_step(&mut self, call: &mut StreamCall, cx: &mut Context<'_>) -> Poll<Result<Step, Ended>> {
        self.outbox.watch(cx);
        loop {
            let taken = self.take_messages(call, cx);
            if let Some(step) = taken.create {
                return Poll::Ready(Ok(step));
            }
            let Some((_, out)) = call.split() else { return Poll::Ready(Err(Ended::Gone)) };
            match out.poll_sent(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Gone)) => return Poll::Ready(Err(Ended::Gone)),
                Poll::Pending => return Poll::Pending,
            }
            if let Some(acks) = self.outbox.take() {
                out.queue(acks);
            } else if self.ended.is_some() && self.outbox.is_idle() {
                return Poll::Ready(Ok(Step::End));
            } else if !taken.more {
                return self.poll_gone(call, cx);
            }
        }
    }

    fn poll_gone(&self, call: &mut StreamCall, cx: &mut Context<'_>) -> Poll<Result<Step, Ended>> {
        // While messages are read, the reader notices.
        if self.ended.is_none() && !self.outbox.is_full() {
            return Poll::Pending;
        }
        call.poll_gone(cx).map(|Gone| Err(Ended::Gone))
    }

    fn take_messages(&mut self, call: &mut StreamCall, cx: &mut Context<'_>) -> Taken {
        let mut taken = Taken { create: None, more: false };
        for _ in 0..TURN_MAX {
            if self.ended.is_some() || self.outbox.is_full() {
                break;
            }
            match call.reader.poll_message(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Some(message))) => {
                    taken.more = true;
                    taken.create = self.take_message(&call.conn, &message).map(Step::Create);
                    if taken.create.is_some() {
                        return taken;
                    }
                }
                Poll::Ready(Ok(None)) => self.ended = Some(Ok(())),
                Poll::Ready(Err(status)) => self.ended = Some(Err(status)),
            }
        }
        call.reader.release();
        taken
    }

    /// Hands a message's records over; gives them back if their stream must be created first.
    fn take_message(&mut self, conn: &ConnShared, message: &Bytes) -> Option<Pending> {
        let AppendCall { stream, options, records, sequence } = match AppendCall::read(message) {
            Ok(read) => read,
            Err(reject) => {
                self.ended = Some(Err(reject.into()));
                return None;
            }
        };
        if !stream.is_empty() && stream != self.stream {
            stream.clone_into(&mut self.stream);
        }
        if self.stream.is_empty() {
            self.ended = Some(Err(Reject::invalid("stream", "is empty in the first message").into()));
            return None;
        }
        let pending = Pending { options, records, sequence, ticket: self.outbox.expect(message.len()) };
        match self.edge.backend.find(Kind::Stream, &self.stream) {
            Some(info) => self.append(conn, Ok(info), pending),
            None => return Some(pending),
        }
        None
    }

    fn append(&self, conn: &ConnShared, found: Result<Arc<ResourceInfo>, Reject>, pending: Pending) {
        let Pending { options, records, sequence, ticket } = pending;
        match found {
            Ok(info) => append(self.edge, conn, &info, options, records, move |outcome| {
                acknowledge(&ticket, sequence, outcome);
            }),
            Err(reject) => acknowledge(&ticket, sequence, Err(reject)),
        }
    }
}

/// What one turn of reading brought.
struct Taken {
    create: Option<Step>,
    /// Whether there was a message, so that there may be more.
    more: bool,
}

fn acknowledge(ticket: &Ticket, sequence: u64, outcome: Result<v1::AppendResponse, Reject>) {
    let ack = match outcome {
        Ok(done) => v1::AppendAck {
            sequence,
            partition: done.partition,
            base_offset: done.base_offset,
            count: done.count,
            appended_at_ms: done.appended_at_ms,
            error: None,
            parts: done.parts,
            duplicate: done.duplicate,
        },
        Err(reject) => v1::AppendAck { sequence, error: Some(item_error(&reject)), ..Default::default() },
    };
    ticket.outbox().push(ACKS, &ack);
}
