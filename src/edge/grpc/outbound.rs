//! The sending side of a streamed answer: never more in h2's buffers than the client's window and the settings allow.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

/// The client reset the call or disconnected; nobody is left to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// An answer that has its headers.
pub struct Outbound {
    stream: SendStream<Bytes>,
    queue: Bytes,
}

impl Outbound {
    /// Sends on that stream.
    pub fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, queue: Bytes::new() }
    }

    /// Sends bytes; returns once h2 has taken them all.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        debug_assert!(self.queue.is_empty(), "one send at a time");
        self.queue = bytes;
        poll_fn(|cx| self.poll_sent(cx)).await
    }

    /// Queues bytes for [`Outbound::poll_sent`]; only after that was ready.
    pub fn queue(&mut self, bytes: Bytes) {
        debug_assert!(self.queue.is_empty(), "one send at a time");
        self.queue = bytes;
    }

    /// Ready once h2 has taken all that was queued.
    ///
    /// # Errors
    /// The client is gone.
    pub fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        while !self.queue.is_empty() {
            self.stream.reserve_capacity(self.queue.len());
            let mut capacity = self.stream.capacity();
            while capacity == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(more)) => capacity = more,
                    Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
                }
            }
            let piece = self.queue.split_to(capacity.min(self.queue.len()));
            if self.stream.send_data(piece, false).is_err() {
                return Poll::Ready(Err(Gone));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once the client has reset the call or disconnected.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Gone> {
        self.stream.poll_reset(cx).map(|_| Gone)
    }

    /// Ends the answer.
    pub fn end(&mut self, trailers: HeaderMap) {
        // Fails only where the client is gone.
        let _ = self.stream.send_trailers(trailers);
    }
}
