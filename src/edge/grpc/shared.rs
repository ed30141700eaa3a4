//! What calls share: with all of the core ([`Common`]), and with those of one connection ([`ConnShared`]).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

use flowmesh_model::Reject;
use futures::future::LocalBoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};

use super::config::GrpcConfig;
use super::counters::Counters;
use super::status::Status;
use crate::edge::backend::ServerFacts;

/// The content type of every gRPC answer.
pub const GRPC_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// The compressions taken.
pub const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Value of [`GRPC_ACCEPT_ENCODING`].
pub const ACCEPTED_ENCODINGS: HeaderValue = HeaderValue::from_static("identity,gzip");

/// One core's settings, counters and header maps that are sent again and again.
#[derive(Debug)]
pub struct Common {
    /// Settings.
    pub config: GrpcConfig,
    /// Counters.
    pub counters: Counters,
    /// What the server tells about itself.
    pub facts: ServerFacts,
    headers: HeaderMap,
    ok_trailers: HeaderMap,
    /// Bytes of large requests of all connections that are not complete.
    large_bytes: Cell<usize>,
}

impl Common {
    /// Of a core with these settings.
    pub fn new(config: GrpcConfig, facts: ServerFacts) -> Self {
        let mut headers = HeaderMap::with_capacity(1);
        headers.insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
        let mut ok_trailers = HeaderMap::with_capacity(1);
        ok_trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let large_bytes = Cell::new(0);
        Self { config, counters: Counters::default(), facts, headers, ok_trailers, large_bytes }
    }

    /// Takes so much of the core's budget for large requests; one is always allowed.
    ///
    /// # Errors
    /// OVERLOADED while the budget is used up.
    pub fn admit_large(&self, bytes: usize) -> Result<(), Status> {
        let before = self.large_bytes.get();
        if before > 0 && before + bytes > self.config.large_request_bytes_max {
            return Err(Reject::Overloaded { what: "large requests", retry_after_ms: 100 }.into());
        }
        self.large_bytes.set(before + bytes);
        Ok(())
    }

    /// Gives back what [`Common::admit_large`] took.
    pub fn refund_large(&self, bytes: usize) {
        debug_assert!(self.large_bytes.get() >= bytes, "refunded more than was taken");
        self.large_bytes.set(self.large_bytes.get().saturating_sub(bytes));
    }

    /// The headers before a body.
    pub fn response(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.headers_mut() = self.headers.clone();
        response
    }

    /// The trailers of a call that succeeded.
    pub fn ok_trailers(&self) -> HeaderMap {
        self.ok_trailers.clone()
    }
}

/// A call in progress that the connection polls.
pub type CallFuture = LocalBoxFuture<'static, ()>;

/// What the calls of one connection share.
pub struct ConnShared {
    /// The core's part.
    pub common: Rc<Common>,
    waker: Waker,
    /// Bytes of replies not taken by the client and of requests not yet complete.
    backlog_bytes: Cell<usize>,
    /// Calls that came up outside of the connection's own work.
    adopted: RefCell<Vec<CallFuture>>,
    /// The connection is gone; nobody polls calls any more.
    over: Cell<bool>,
    closing: Cell<bool>,
    closing_wakers: RefCell<Vec<Waker>>,
    turn: Cell<u32>,
    /// When the pass began that the connection is in.
    pub pass_began: Cell<Instant>,
}

impl ConnShared {
    /// Of a connection that `waker` wakes.
    pub fn new(common: Rc<Common>, waker: Waker) -> Self {
        Self {
            common,
            waker,
            backlog_bytes: Cell::new(0),
            adopted: RefCell::default(),
            over: Cell::new(false),
            closing: Cell::new(false),
            closing_wakers: RefCell::default(),
            turn: Cell::new(0),
            pass_began: Cell::new(Instant::now()),
        }
    }

    /// The next partition in turn, for records without a key.
    pub fn next_partition(&self, partitions: u32) -> u32 {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        turn % partitions.max(1)
    }

    /// Takes `bytes` of the connection's budget for what is in between, even beyond its end: a reply that exists is
    /// sent, it is further calls that are refused.
    pub fn charge(&self, bytes: usize) {
        self.backlog_bytes.set(self.backlog_bytes.get() + bytes);
    }

    /// Whether another call may begin.
    ///
    /// # Errors
    /// OVERLOADED while the budget is used up.
    pub fn admit(&self) -> Result<(), Status> {
        if self.backlog_bytes.get() > self.common.config.reply_backlog_bytes_max {
            return Err(Reject::Overloaded { what: "backlog of the connection", retry_after_ms: 100 }.into());
        }
        Ok(())
    }

    /// Gives back what was charged.
    pub fn refund(&self, bytes: usize) {
        debug_assert!(self.backlog_bytes.get() >= bytes, "refunded more than was charged");
        self.backlog_bytes.set(self.backlog_bytes.get().saturating_sub(bytes));
    }

    /// Hands the connection a call to poll; it is dropped if the connection is gone.
    pub fn adopt(&self, call: CallFuture) {
        if !self.over.get() {
            self.adopted.borrow_mut().push(call);
            self.waker.wake_by_ref();
        }
    }

    /// The connection is gone: calls handed over are dropped, now and from now on.
    pub fn end(&self) {
        self.over.set(true);
        self.close();
        drop(self.take_adopted());
    }

    /// The calls handed over since the last time.
    pub fn take_adopted(&self) -> Vec<CallFuture> {
        if self.adopted.borrow().is_empty() { Vec::new() } else { self.adopted.take() }
    }

    /// From now on calls that would go on for ever end.
    pub fn close(&self) {
        self.closing.set(true);
        self.closing_wakers.take().into_iter().for_each(Waker::wake);
    }

    /// Returns once the connection is closing.
    pub async fn closing(&self) {
        poll_fn(|cx| {
            if self.closing.get() {
                return Poll::Ready(());
            }
            let mut wakers = self.closing_wakers.borrow_mut();
            if !wakers.iter().any(|known| known.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
