//! A streaming call: its two directions, its deadline and its end.

use std::future::pending;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flowmesh_model::{Millis, Reject};
use futures::FutureExt;
use futures::future::{Either, select};
use h2::server::SendResponse;

use super::Edge;
use super::head::Head;
use super::message::MessageReader;
use super::method::Method;
use super::outbound::{Gone, Outbound};
use super::respond::trailers_only;
use super::services;
use super::shared::ConnShared;
use super::status::Status;
use crate::edge::backend::Backend;
use crate::edge::error_map::GrpcCode;

/// Why a streaming call ends early.
#[derive(Debug)]
pub enum Ended {
    /// The client is told.
    Status(Status),
    /// There is no client any more.
    Gone,
}

impl<T: Into<Status>> From<T> for Ended {
    fn from(status: T) -> Self {
        Self::Status(status.into())
    }
}

/// What a client sends, and the way back.
pub struct StreamCall {
    /// The requests.
    pub reader: MessageReader,
    /// The connection's part.
    pub conn: Rc<ConnShared>,
    method: Method,
    respond: SendResponse<Bytes>,
    out: Option<Outbound>,
    began: Instant,
    counted: bool,
}

impl StreamCall {
    /// A call that was not answered yet.
    pub fn new(
        reader: MessageReader,
        respond: SendResponse<Bytes>,
        method: Method,
        conn: Rc<ConnShared>,
    ) -> Self {
        Self { reader, method, respond, out: None, began: conn.pass_began.get(), conn, counted: false }
    }

    /// Sends the headers, if that was not done; from then on errors come as trailers.
    ///
    /// # Errors
    /// The client is gone.
    pub fn open(&mut self) -> Result<(), Ended> {
        if self.out.is_none() {
            let sent = self.respond.send_response(self.conn.common.response(), false);
            self.out = Some(Outbound::new(sent.map_err(|_| Ended::Gone)?));
        }
        Ok(())
    }

    /// Sends messages that have their prefixes; opens the answer if needed.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send(&mut self, messages: Bytes) -> Result<(), Ended> {
        self.open()?;
        match &mut self.out {
            Some(out) => out.send(messages).await.map_err(|Gone| Ended::Gone),
            None => Err(Ended::Gone),
        }
    }

    /// The sending side and the receiving side, once the answer is open.
    pub fn split(&mut self) -> Option<(&mut MessageReader, &mut Outbound)> {
        Some((&mut self.reader, self.out.as_mut()?))
    }

    /// Ready once the client is gone.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        match &mut self.out {
            Some(out) => out.poll_gone(cx),
            None => self.respond.poll_reset(cx).map(|_| Gone),
        }
    }

    /// Waits for `future`, but not longer than there is a client and a server.
    ///
    /// # Errors
    /// The client is gone, or the server is shutting down.
    pub async fn until_over<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Ended> {
        let conn = Rc::clone(&self.conn);
        let mut closing = pin!(conn.closing());
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if self.poll_gone(cx).is_ready() {
                return Poll::Ready(Err(Ended::Gone));
            }
            closing.as_mut().poll(cx).map(|()| Err(Reject::ShuttingDown.into()))
        })
        .await
    }

    /// The next request; `None` once the client has half-closed.
    ///
    /// # Errors
    /// A message that cannot be read, or that the client or the server is going away.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Ended> {
        let conn = Rc::clone(&self.conn);
        let mut closing = pin!(conn.closing());
        std::future::poll_fn(|cx| {
            if let Poll::Ready(next) = self.reader.poll_message(cx) {
                return Poll::Ready(next.map_err(Ended::Status));
            }
            closing.as_mut().poll(cx).map(|()| Err(Reject::ShuttingDown.into()))
        })
        .await
    }

    /// The one request of a call whose client sends one.
    ///
    /// # Errors
    /// As [`StreamCall::next`], and none or several requests.
    pub async fn only(&mut self) -> Result<Bytes, Ended> {
        let message = std::future::poll_fn(|cx| self.reader.poll_unary(cx)).await?;
        self.reader.release();
        Ok(message)
    }

    fn finish(mut self, outcome: Result<(), Ended>) {
        let code = match &outcome {
            Ok(()) => GrpcCode::Ok,
            Err(Ended::Status(status)) => status.code(),
            Err(Ended::Gone) => GrpcCode::Cancelled,
        };
        self.count(code);
        let outcome = match outcome {
            Ok(()) => self.open().map(|()| None),
            Err(Ended::Status(status)) => Ok(Some(status)),
            Err(gone) => Err(gone),
        };
        match (outcome, &mut self.out) {
            (Ok(None), Some(out)) => out.end(self.conn.common.ok_trailers()),
            (Ok(Some(status)), Some(out)) => out.end(status.trailers()),
            (Ok(Some(status)), None) => {
                // Fails only where the client is gone.
                let _ = self.respond.send_response(trailers_only(&status), true);
            }
            (Ok(None), None) | (Err(_), _) => {}
        }
    }

    fn count(&mut self, code: GrpcCode) {
        if !std::mem::replace(&mut self.counted, true) {
            self.conn.common.counters.ended(self.method, code, self.began);
        }
    }
}

impl Drop for StreamCall {
    fn drop(&mut self) {
        self.count(GrpcCode::Cancelled);
    }
}

/// Carries out a streaming call to its end.
pub async fn run<B: Backend>(edge: Rc<Edge<B>>, head: Head, mut call: StreamCall) {
    let outcome = {
        let service = AssertUnwindSafe(services::streaming(&edge, head.method, &mut call)).catch_unwind();
        let limit = sleep_until(&edge, head.deadline);
        match select(pin!(service), pin!(limit)).await {
            Either::Left((Ok(outcome), _)) => outcome,
            Either::Left((Err(_), _)) => {
                tracing::error!(method = head.method.name(), "a call panicked");
                Err(Reject::Internal("the call panicked").into())
            }
            Either::Right(((), _)) => Err(Reject::DeadlineExceeded.into()),
        }
    };
    call.finish(outcome);
}

/// Returns at the deadline, never without one.
pub async fn sleep_until<B: Backend>(edge: &Edge<B>, deadline: Option<Millis>) {
    match deadline {
        Some(deadline) => {
            let span = Duration::from_millis(deadline.since(edge.backend.now()));
            edge.backend.sleep(span).await;
        }
        None => pending().await,
    }
}
