//! The answer of a unary call: headers, one message and trailers, or trailers alone.
//!
//! An answer is sent from wherever it becomes known, usually from the shard's release of a reply: no task and no waker
//! per call. h2 wakes the connection, which writes all answers of a pass at once.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use flowmesh_engine::ReplySink;
use flowmesh_model::kv::KvOutcome;
use flowmesh_model::kv::past::{KeyDiff, KeyVersion};
use flowmesh_model::{Millis, Reject, Reply};
use h2::server::SendResponse;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};

use super::message::put_message;
use super::method::Method;
use super::outbound::Outbound;
use super::services::large_values;
use super::shared::{ConnShared, GRPC_CONTENT_TYPE};
use super::status::Status;
use crate::edge::error_map::GrpcCode;

/// Larger answers are sent as the client's window allows, smaller ones are handed to h2 at once.
const LARGE_REPLY_BYTES: usize = 64 * 1024;

/// The right and duty to answer one unary call. Dropped without an answer, it answers with an error.
pub struct Responder {
    send: RefCell<Option<SendResponse<Bytes>>>,
    method: Method,
    deadline: Option<Millis>,
    began: Instant,
    conn: Rc<ConnShared>,
}

impl Responder {
    /// For a call on that connection.
    pub fn new(
        send: SendResponse<Bytes>,
        method: Method,
        deadline: Option<Millis>,
        conn: Rc<ConnShared>,
    ) -> Self {
        Self { send: RefCell::new(Some(send)), method, deadline, began: conn.pass_began.get(), conn }
    }

    /// When the client stops waiting.
    pub fn deadline(&self) -> Option<Millis> {
        self.deadline
    }

    /// Answers with the message that `encode` writes; `bytes_expected` sizes the buffer.
    pub fn answer(self, bytes_expected: usize, encode: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::with_capacity(bytes_expected + super::message::PREFIX_BYTES);
        put_message(&mut out, encode);
        self.send(out.freeze());
    }

    /// Answers with a message that has its prefix.
    pub fn send(mut self, message: Bytes) {
        let Some(mut send) = self.send.get_mut().take() else { return };
        self.conn.common.counters.ended(self.method, GrpcCode::Ok, self.began);
        if message.len() > LARGE_REPLY_BYTES {
            return send_large(send, vec![message], &self.conn);
        }
        // Each of these fails only where the client is gone; then there is nobody to tell.
        let common = &self.conn.common;
        if let Ok(mut stream) = send.send_response(common.response(), false)
            && stream.send_data(message, false).is_ok()
        {
            let _ = stream.send_trailers(common.ok_trailers());
        }
    }

    /// Answers with a large message that has its prefix, in pieces.
    fn send_pieces(mut self, pieces: Vec<Bytes>) {
        let Some(send) = self.send.get_mut().take() else { return };
        self.conn.common.counters.ended(self.method, GrpcCode::Ok, self.began);
        send_large(send, pieces, &self.conn);
    }

    /// Answers with an error.
    pub fn fail(mut self, status: impl Into<Status>) {
        self.fail_with(&status.into());
    }

    fn fail_with(&mut self, status: &Status) {
        if let Some(mut send) = self.send.get_mut().take() {
            self.conn.common.counters.ended(self.method, status.code(), self.began);
            // Fails only where the client is gone.
            let _ = send.send_response(trailers_only(status), true);
        }
    }

    /// Whether the client reset the call or disconnected.
    pub fn is_cancelled(&self) -> bool {
        self.poll_cancelled(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Ready once the client reset the call or disconnected.
    pub fn poll_cancelled(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.send.borrow_mut().as_mut() {
            Some(send) => send.poll_reset(cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    /// Returns once the connection is closing.
    pub fn closing(&self) -> impl Future<Output = ()> {
        self.conn.closing()
    }

    /// What the calls of the connection share.
    pub fn conn_rc(&self) -> Rc<ConnShared> {
        Rc::clone(&self.conn)
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.send.get_mut().is_some() {
            let reject = if thread::panicking() {
                Reject::Internal("the call panicked")
            } else if self.is_cancelled() {
                Reject::Cancelled
            } else {
                Reject::ShuttingDown
            };
            self.fail_with(&Status::from(&reject));
        }
    }
}

fn send_large(mut send: SendResponse<Bytes>, pieces: Vec<Bytes>, conn: &Rc<ConnShared>) {
    let Ok(stream) = send.send_response(conn.common.response(), false) else { return };
    let bytes = pieces.iter().map(Bytes::len).sum();
    conn.charge(bytes);
    let refund = Refund { conn: Rc::clone(conn), bytes };
    conn.adopt(Box::pin(async move {
        let mut out = Outbound::new(stream);
        for piece in pieces {
            if out.send(piece).await.is_err() {
                return;
            }
        }
        out.end(refund.conn.common.ok_trailers());
    }));
}

struct Refund {
    conn: Rc<ConnShared>,
    bytes: usize,
}

impl Drop for Refund {
    fn drop(&mut self) {
        self.conn.refund(self.bytes);
    }
}

/// The answer of a call that failed before it sent anything.
pub fn trailers_only(status: &Status) -> Response<()> {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    status.write(&mut headers);
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

/// Answers a call with a shard's reply, as `encode` puts it.
pub struct UnarySink<F> {
    responder: Responder,
    encode: F,
}

impl<F: FnOnce(Reply, &mut BytesMut) -> Result<(), Reject> + 'static> UnarySink<F> {
    /// A sink for [`crate::edge::backend::Backend::dispatch`].
    pub fn boxed(responder: Responder, encode: F) -> Box<dyn ReplySink> {
        Box::new(Self { responder, encode })
    }
}

impl<F: FnOnce(Reply, &mut BytesMut) -> Result<(), Reject> + 'static> ReplySink for UnarySink<F> {
    fn deliver(self: Box<Self>, outcome: Result<Reply, Reject>) {
        let Self { responder, encode } = *self;
        if let Ok(Reply::Values(values)) = &outcome
            && let Some(pieces) = large_values(values)
        {
            return responder.send_pieces(pieces);
        }
        let mut out = BytesMut::with_capacity(outcome.as_ref().map_or(0, reply_bytes));
        let encoded = outcome.and_then(|reply| {
            let mut encoded = Ok(());
            put_message(&mut out, |out| encoded = encode(reply, out));
            encoded
        });
        match encoded {
            Ok(()) => responder.send(out.freeze()),
            Err(reject) => responder.fail(reject),
        }
    }

    fn is_closed(&self) -> bool {
        self.responder.is_cancelled()
    }
}

/// About how many bytes a reply takes, so that its buffer need not grow.
fn reply_bytes(reply: &Reply) -> usize {
    const SMALL: usize = 64;
    SMALL
        + match reply {
            Reply::Records(records) => records.runs.iter().map(|run| run.records.len() + SMALL).sum(),
            Reply::Reserved(jobs) => {
                jobs.iter().map(|job| job.payload.len() + job.headers.len() + SMALL).sum()
            }
            Reply::Values(values) => {
                values.iter().map(|value| value.as_ref().map_or(2, |v| v.value.len() + 40)).sum()
            }
            Reply::Scanned { entries, .. } => {
                entries.iter().map(|(key, value)| key.len() + value.value.len() + 40).sum()
            }
            Reply::KvVersions { versions, .. } => {
                let bytes = |v: &KeyVersion| v.value.as_ref().map_or(0, |value| value.value.len()) + 40;
                versions.iter().map(bytes).sum()
            }
            Reply::KvDiff { keys, .. } => keys.iter().map(KeyDiff::bytes).sum(),
            Reply::Kv(outcomes) => {
                let bytes = |outcome: &KvOutcome| outcome.result.bytes();
                outcomes.iter().map(|outcome| outcome.as_ref().map_or(SMALL, bytes) + SMALL).sum()
            }
            Reply::Enqueued(jobs) => jobs.len() * 10,
            Reply::Cancelled(outcomes) => outcomes.len() * 4,
            Reply::Job(job) => job.payload.len() + job.headers.len() + 4 * SMALL,
            Reply::Jobs { jobs, .. } => {
                jobs.iter().map(|job| job.payload.len() + job.headers.len() + 2 * SMALL).sum()
            }
            Reply::Settled(outcomes) => outcomes.len() * 2,
            Reply::Extended(outcomes) => outcomes.len() * 10,
            Reply::Written(outcomes) => outcomes.len() * 13,
            Reply::Flags(flags) => flags.len(),
            Reply::KvSnapshot(part) => {
                part.changes.iter().map(|(key, change)| key.len() + change.len()).sum()
            }
            Reply::Appended { .. }
            | Reply::Producer { .. }
            | Reply::StreamStatus { .. }
            | Reply::OffsetFound { .. }
            | Reply::Trimmed { .. }
            | Reply::KvStatus(_)
            | Reply::KvCleared { .. }
            | Reply::Group(_)
            | Reply::Replay(_)
            | Reply::Schedule(_)
            | Reply::Worker(_)
            | Reply::WorkerOnQueue(_)
            | Reply::Transfer(_)
            | Reply::QueueStatus(..)
            | Reply::Swept { .. }
            | Reply::Resource { .. } => 0,
        }
}

/// What a call gets that was answered with the reply of another command: a bug.
pub fn wrong_reply() -> Reject {
    Reject::Internal("a command was answered with another command's reply")
}
