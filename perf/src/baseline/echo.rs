//! The bare HTTP/2 echo: the server's runtime, the server's HTTP/2 library with the same settings, and nothing else.
//! Every unary call is answered with its own bytes.
//!
//! It does what a server could do at best: one task a connection, no task and no allocation of its own a call; all
//! requests that came are read, then answered, then written, with one system call each for reading and writing.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use flowmesh_rt::core::{CoreConfig, spawn_cores, spawn_local};
use flowmesh_rt::net::{BindError, Listener, TcpStream};
use futures::stream::{FuturesUnordered, StreamExt};
use h2::server::{Connection, SendResponse};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
const FRAME_BYTES_MAX: u32 = 256 * 1024;
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
const STREAMS_MAX: u32 = 1024;
const SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// Serves until the process ends. `listening` is told the address.
///
/// # Errors
/// The core could not be started, or the address not be listened on.
pub fn serve(
    address: SocketAddr,
    cpu: Option<usize>,
    listening: impl Fn(SocketAddr) + Clone + Send + 'static,
) -> anyhow::Result<()> {
    let config = CoreConfig { cpu, ..CoreConfig::default() };
    let cores = spawn_cores(&[config], "echo", move |_| {
        let listening = listening.clone();
        async move {
            let listener = Listener::bind(address)?;
            listening(listener.local_addr());
            accept_all(&listener).await
        }
    })?;
    cores.join()?.into_iter().collect::<Result<(), BindError>>()?;
    Ok(())
}

async fn accept_all(listener: &Listener) -> Result<(), BindError> {
    loop {
        if let Ok(stream) = listener.accept().await {
            spawn_local(connection(stream)).detach();
        }
    }
}

async fn connection(stream: TcpStream) {
    let round = Rc::new(Cell::new(0));
    let stream = OncePerRound { stream, round: Rc::clone(&round), read_pending_in: u64::MAX };
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .handshake::<_, Bytes>(stream);
    let mut handshake = std::pin::pin!(handshake);
    let next_round = || round.set(round.get() + 1);
    let shaken = poll_fn(|cx| {
        next_round();
        handshake.as_mut().poll(cx)
    });
    let Ok(mut connection) = shaken.await else { return };
    let mut answers = FuturesUnordered::new();
    poll_fn(|cx| {
        next_round();
        serve_round(&mut connection, &mut answers, cx)
    })
    .await;
}

/// Everything that can be done now: take requests, answer them, write. Ready when the connection is over.
fn serve_round(
    connection: &mut Connection<OncePerRound, Bytes>,
    answers: &mut FuturesUnordered<Answer>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    loop {
        match connection.poll_accept(cx) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                let mut answer = Answer::new(request, respond);
                if Pin::new(&mut answer).poll(cx).is_pending() {
                    answers.push(answer);
                }
            }
            Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
            Poll::Pending => break,
        }
    }
    while let Poll::Ready(Some(())) = answers.poll_next_unpin(cx) {}
    connection.poll_closed(cx).map(|_| ())
}

/// One call: first its body is gathered, then all of the answer is handed over.
struct Answer {
    body: RecvStream,
    respond: SendResponse<Bytes>,
    first: Bytes,
    more: Vec<u8>,
    sending: Option<(SendStream<Bytes>, Bytes)>,
}

impl Answer {
    fn new(request: Request<RecvStream>, respond: SendResponse<Bytes>) -> Self {
        let body = request.into_body();
        Self { body, respond, first: Bytes::new(), more: Vec::new(), sending: None }
    }

    /// Gathers the body. One DATA frame, the usual case, is not copied.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        loop {
            match std::task::ready!(self.body.poll_data(cx)) {
                Some(Ok(part)) => {
                    if self.body.flow_control().release_capacity(part.len()).is_err() {
                        return Poll::Ready(None);
                    }
                    if self.first.is_empty() {
                        self.first = part;
                    } else {
                        self.more.extend_from_slice(&part);
                    }
                }
                Some(Err(_)) => return Poll::Ready(None),
                None => return Poll::Ready(Some(())),
            }
        }
    }

    fn begin(&mut self) -> Option<()> {
        let mut head = Response::new(());
        head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let stream = self.respond.send_response(head, false).ok()?;
        let mut bytes = std::mem::take(&mut self.first);
        if !self.more.is_empty() {
            let mut whole = bytes.to_vec();
            whole.append(&mut self.more);
            bytes = whole.into();
        }
        self.sending = Some((stream, bytes));
        Some(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        let Some((stream, bytes)) = &mut self.sending else { return Poll::Ready(None) };
        // What is small goes without asking for room first: the peer's windows are larger by far.
        while bytes.len() > STREAM_WINDOW as usize / 16 {
            stream.reserve_capacity(bytes.len());
            match std::task::ready!(stream.poll_capacity(cx)) {
                Some(Ok(room)) => {
                    let part = bytes.split_to(room.min(bytes.len()));
                    if stream.send_data(part, false).is_err() {
                        return Poll::Ready(None);
                    }
                }
                _ => return Poll::Ready(None),
            }
        }
        let rest = std::mem::take(bytes);
        if !rest.is_empty() && stream.send_data(rest, false).is_err() {
            return Poll::Ready(None);
        }
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Poll::Ready(stream.send_trailers(trailers).ok())
    }
}

impl Future for Answer {
    type Output = ();

    /// A call whose stream failed is over too: there is nobody to tell.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.sending.is_none() {
            let gathered = std::task::ready!(self.poll_body(cx));
            if gathered.and_then(|()| self.begin()).is_none() {
                return Poll::Ready(());
            }
        }
        self.poll_send(cx).map(|_| ())
    }
}

/// The socket, which is asked for bytes at most once a round after it had none: h2 asks again for every request it
/// hands out, and each time would be a system call that brings nothing. The waker stays registered from the first.
struct OncePerRound {
    stream: TcpStream,
    round: Rc<Cell<u64>>,
    read_pending_in: u64,
}

impl AsyncRead for OncePerRound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let round = self.round.get();
        if self.read_pending_in == round {
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() {
            self.read_pending_in = round;
        }
        read
    }
}

impl AsyncWrite for OncePerRound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
