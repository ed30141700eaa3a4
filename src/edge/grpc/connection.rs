//! One connection: one task that drives h2, accepts calls and polls those that take their time.
//!
//! ```text
//! pass: accept all calls ─► most are answered or handed to a shard on the spot
//!       poll the others (streams, calls that wait for more than one reply or for their body)
//!       again, while anything was woken meanwhile
//!       write to the socket what came of it
//! ```
//! Answers that a shard releases outside of a pass wake the task, which then writes them all.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use h2::server::{Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Edge;
use super::config::GrpcConfig;
use super::head::{Head, Refusal};
use super::io::{IoHandle, PassIo, pass_io};
use super::message::MessageReader;
use super::respond::{Responder, trailers_only};
use super::services;
use super::shared::{CallFuture, ConnShared};
use super::streaming::{self, StreamCall, sleep_until};
use super::vigil::{Duty, Signs, Vigil};
use super::waker::PassWaker;
use crate::edge::backend::Backend;
use flowmesh_model::Reject;

/// Rounds of one pass before other tasks of the core get their turn.
const ROUNDS_MAX: usize = 8;

/// Calls that a client may reset before they are accepted. All that came is read before calls are accepted, so after a
/// stall many calls of a patient client may have timed out at once; far more are an attack.
const RESETS_PENDING_MAX: usize = 256;

/// What h2 may spend on small DATA frames that were not read yet: enough for a whole connection window of messages of
/// 100 bytes, each in a frame of its own.
const FRAME_OVERHEAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Serves one connection until the client leaves, `shutdown` is ready and all calls have ended, or time is up.
/// Dropping it drops the connection with all its calls.
pub async fn serve_connection<IO, B>(
    socket: IO,
    edge: Rc<Edge<B>>,
    shutdown: impl Future<Output = ()> + 'static,
) where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    B: Backend,
{
    let _open = Open::new(&edge);
    let Some((h2, io)) = handshake(socket, &edge).await else { return };
    let mut driver = Driver::new(h2, io, edge, shutdown.boxed_local());
    poll_fn(|cx| driver.poll(cx)).await;
}

/// Counts the connection while it lives.
struct Open<B: Backend>(Rc<Edge<B>>);

impl<B: Backend> Open<B> {
    fn new(edge: &Rc<Edge<B>>) -> Self {
        edge.common.counters.opened();
        Self(Rc::clone(edge))
    }
}

impl<B: Backend> Drop for Open<B> {
    fn drop(&mut self) {
        self.0.common.counters.closed();
    }
}

async fn handshake<IO, B>(socket: IO, edge: &Edge<B>) -> Option<(Connection<PassIo<IO>, Bytes>, IoHandle<IO>)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    B: Backend,
{
    let config = &edge.common.config;
    let (io, handle) = pass_io(socket);
    let mut handshake = builder(config).handshake(io);
    let mut limit = edge.backend.sleep(config.handshake_timeout);
    let h2 = poll_fn(|cx| {
        handle.begin_pass();
        let done = Pin::new(&mut handshake).poll(cx);
        if done.is_pending() && limit.poll_unpin(cx).is_ready() {
            return Poll::Ready(None);
        }
        if handle.has_more() {
            cx.waker().wake_by_ref();
        }
        match handle.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(None),
            _ => done.map(Result::ok),
        }
    })
    .await?;
    Some((h2, handle))
}

fn builder(config: &GrpcConfig) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_frame_size(config.frame_bytes_max)
        .max_header_list_size(config.header_bytes_max)
        .max_concurrent_streams(config.streams_max)
        .max_send_buffer_size(config.send_buffer_bytes)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .data_frame_budget(FRAME_OVERHEAD_BYTES_MAX);
    builder
}

struct Driver<IO, B: Backend> {
    h2: Connection<PassIo<IO>, Bytes>,
    io: IoHandle<IO>,
    edge: Rc<Edge<B>>,
    conn: Rc<ConnShared>,
    calls: FuturesUnordered<CallFuture>,
    pass: Arc<PassWaker>,
    waker: Waker,
    pings: Option<PingPong>,
    vigil: Vigil,
    timer: LocalBoxFuture<'static, ()>,
    shutdown: Option<LocalBoxFuture<'static, ()>>,
    accepted: u64,
}

/// The connection is over.
struct Over;

impl<IO, B> Driver<IO, B>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    B: Backend,
{
    fn new(
        mut h2: Connection<PassIo<IO>, Bytes>,
        io: IoHandle<IO>,
        edge: Rc<Edge<B>>,
        shutdown: LocalBoxFuture<'static, ()>,
    ) -> Self {
        let pass = Arc::new(PassWaker::default());
        let waker = Waker::from(Arc::clone(&pass));
        let mut vigil = Vigil::new(Instant::now());
        let (_, look) = vigil.look(&edge.common.config, Instant::now(), Signs::default());
        Self {
            pings: h2.ping_pong(),
            conn: Rc::new(ConnShared::new(Rc::clone(&edge.common), waker.clone())),
            timer: edge.backend.sleep(look),
            h2,
            io,
            edge,
            calls: FuturesUnordered::new(),
            pass,
            waker,
            vigil,
            shutdown: Some(shutdown),
            accepted: 0,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.pass.begin(cx.waker());
        self.conn.pass_began.set(Instant::now());
        self.io.begin_pass();
        let waker = self.waker.clone();
        let mut inner = Context::from_waker(&waker);
        let over = self.rounds(&mut inner);
        let flushed = self.io.poll_flush(&mut inner);
        self.pass.end();
        if over.is_err() || matches!(flushed, Poll::Ready(Err(_))) {
            return Poll::Ready(());
        }
        if self.io.has_more() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn rounds(&mut self, cx: &mut Context<'_>) -> Result<(), Over> {
        for round in 1.. {
            self.accept_all(cx)?;
            self.calls.extend(self.conn.take_adopted());
            while let Poll::Ready(Some(())) = self.calls.poll_next_unpin(cx) {}
            self.watch(cx)?;
            if !self.pass.take() {
                break;
            }
            if round == ROUNDS_MAX {
                cx.waker().wake_by_ref();
                break;
            }
        }
        Ok(())
    }

    fn accept_all(&mut self, cx: &mut Context<'_>) -> Result<(), Over> {
        loop {
            // What woke the connection before this is done by this poll and by what the round polls after it.
            self.pass.take();
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.accept(cx, request, respond),
                Poll::Ready(Some(Err(_)) | None) => return Err(Over),
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn accept(
        &mut self,
        cx: &mut Context<'_>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        self.accepted += 1;
        let (parts, body) = request.into_parts();
        let head = match Head::read(&parts, || self.edge.backend.now()) {
            Ok(head) => head,
            Err(refusal) => return self.refuse(&refusal, &mut respond),
        };
        if let Err(status) = self.conn.admit() {
            self.edge.common.counters.call(Some(head.method), status.code());
            // Fails only where the client is gone.
            let _ = respond.send_response(trailers_only(&status), true);
            return;
        }
        let bytes_max = head.method.message_bytes_max();
        let mut reader = MessageReader::new(body, head.encoding, bytes_max, Rc::clone(&self.conn));
        if head.method.is_streaming() {
            let call = StreamCall::new(reader, respond, head.method, Rc::clone(&self.conn));
            let run = streaming::run(Rc::clone(&self.edge), head, call);
            return self.calls.push(run.boxed_local());
        }
        let responder = Responder::new(respond, head.method, head.deadline, Rc::clone(&self.conn));
        match reader.poll_unary(cx) {
            Poll::Ready(Ok(message)) => {
                if let Some(rest) = start(&self.edge, head, message, responder) {
                    self.calls.push(rest);
                }
                // Its window goes back with the reader, now that the call is admitted.
            }
            Poll::Ready(Err(status)) => responder.fail(status),
            Poll::Pending => {
                let call = read_and_start(Rc::clone(&self.edge), head, reader, responder);
                self.calls.push(call.boxed_local());
            }
        }
    }

    fn refuse(&self, refusal: &Refusal, respond: &mut SendResponse<Bytes>) {
        if let Refusal::Grpc(method, status) = refusal {
            self.edge.common.counters.call(*method, status.code());
        }
        // Fails only where the client is gone.
        let _ = respond.send_response(refusal.response(), true);
    }

    /// Shutdown, pings and timeouts.
    fn watch(&mut self, cx: &mut Context<'_>) -> Result<(), Over> {
        if let Some(shutdown) = &mut self.shutdown
            && shutdown.poll_unpin(cx).is_ready()
        {
            self.shutdown = None;
            self.vigil.drain(Instant::now());
            self.go_away(cx);
        }
        if let Some(pings) = &mut self.pings {
            // Whether it was a pong does not matter: anything received is a sign of life.
            let _ = pings.poll_pong(cx);
        }
        while self.timer.poll_unpin(cx).is_ready() {
            self.look(cx)?;
        }
        Ok(())
    }

    fn look(&mut self, cx: &mut Context<'_>) -> Result<(), Over> {
        let signs = Signs { received: self.io.received(), calls: self.accepted, busy: self.h2.has_streams() };
        let (duty, next) = self.vigil.look(&self.edge.common.config, Instant::now(), signs);
        match duty {
            Duty::Wait => {}
            Duty::Ping => {
                if let Some(pings) = &mut self.pings {
                    // Fails if one is under way: then that one is waited for.
                    let _ = pings.send_ping(Ping::opaque());
                }
            }
            Duty::GoAway => self.go_away(cx),
            Duty::Drop => return Err(Over),
        }
        self.timer = self.edge.backend.sleep(next);
        Ok(())
    }

    fn go_away(&mut self, cx: &mut Context<'_>) {
        self.h2.graceful_shutdown();
        self.conn.close();
        // The drain has a time limit of its own, earlier than what the timer waits for.
        self.timer = self.edge.backend.sleep(self.edge.common.config.drain_timeout);
        cx.waker().wake_by_ref();
    }
}

impl<IO, B: Backend> Drop for Driver<IO, B> {
    fn drop(&mut self) {
        self.conn.end();
    }
}

/// Hands a unary call to its service; what is left to do for it is returned.
fn start<B: Backend>(
    edge: &Rc<Edge<B>>,
    head: Head,
    message: Bytes,
    responder: Responder,
) -> Option<CallFuture> {
    let started = catch_unwind(AssertUnwindSafe(|| services::unary(edge, head.method, message, responder)));
    let Ok(rest) = started else {
        tracing::error!(method = head.method.name(), "a call panicked");
        return None;
    };
    let rest = AssertUnwindSafe(rest?).catch_unwind();
    let guarded = async move {
        if rest.await.is_err() {
            tracing::error!(method = head.method.name(), "a call panicked");
        }
    };
    Some(guarded.boxed_local())
}

/// Waits for the rest of a unary call's body, until its deadline.
async fn read_and_start<B: Backend>(
    edge: Rc<Edge<B>>,
    head: Head,
    mut reader: MessageReader,
    responder: Responder,
) {
    let read = {
        let read = std::pin::pin!(poll_fn(|cx| reader.poll_unary(cx)));
        let limit = std::pin::pin!(sleep_until(&edge, head.deadline));
        match futures::future::select(read, limit).await {
            futures::future::Either::Left((read, _)) => read,
            futures::future::Either::Right(_) => Err(Reject::DeadlineExceeded.into()),
        }
    };
    match read {
        Ok(message) => {
            if let Some(rest) = start(&edge, head, message, responder) {
                drop(reader);
                rest.await;
            }
        }
        Err(status) => responder.fail(status),
    }
}
