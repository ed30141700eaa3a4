//! gRPC's framing: each message behind five bytes, a flag that says whether it is compressed, and its length.
//!
//! ```text
//! request body ─► DATA frames ─► [MessageReader] ─► messages: slices of a frame where they fit in one, else copied
//! [message] ─► the five bytes and the encoded message in one buffer ─► reply
//! ```

use std::io::Read;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::read::GzDecoder;
use flowmesh_model::Reject;
use flowmesh_model::limits::MESSAGE_BYTES_MAX;
use h2::RecvStream;

use super::shared::ConnShared;
use super::status::Status;
use crate::edge::error_map::GrpcCode;

/// Bytes before each message.
pub const PREFIX_BYTES: usize = 5;

/// Writes one message, with its prefix, behind what is in `out`.
pub fn put_message(out: &mut BytesMut, encode: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, PREFIX_BYTES);
    encode(out);
    let len = (out.len() - start - PREFIX_BYTES) as u32;
    if let Some(prefix) = out.get_mut(start + 1..start + PREFIX_BYTES) {
        prefix.copy_from_slice(&len.to_be_bytes());
    }
}

/// Whether and how messages of a request may be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// Those with the flag are gzip.
    Gzip,
}

/// Takes messages out of a request's body.
pub struct MessageReader {
    body: RecvStream,
    encoding: Encoding,
    bytes_max: usize,
    conn: Rc<ConnShared>,
    /// What is left of the last frame.
    chunk: Bytes,
    /// A message that began in an earlier frame; its bytes are charged to the connection.
    partial: BytesMut,
    /// What it takes of the core's budget for large messages.
    large: usize,
    /// A unary call's message, while the end of the body is waited for.
    first: Option<Bytes>,
    /// Bytes handed out whose receive window was not given back.
    unreleased: usize,
}

impl MessageReader {
    /// A reader of that body, whose messages have at most so many bytes.
    pub fn new(body: RecvStream, encoding: Encoding, bytes_max: usize, conn: Rc<ConnShared>) -> Self {
        Self {
            body,
            encoding,
            bytes_max,
            conn,
            chunk: Bytes::new(),
            partial: BytesMut::new(),
            large: 0,
            first: None,
            unreleased: 0,
        }
    }

    /// The one message of a unary call, once the body has ended behind it.
    ///
    /// # Errors
    /// No message, more than one, or what [`MessageReader::poll_message`] finds.
    pub fn poll_unary(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Status>> {
        if self.first.is_none() {
            match ready!(self.poll_message(cx))? {
                Some(message) => self.first = Some(message),
                None => return Poll::Ready(Err(malformed("the call has no message"))),
            }
        }
        let ended = self.chunk.is_empty() && self.body.is_end_stream();
        if !ended && ready!(self.poll_message(cx))?.is_some() {
            return Poll::Ready(Err(malformed("a call that takes one message has several")));
        }
        Poll::Ready(Ok(self.first.take().unwrap_or_default()))
    }

    /// The next message; `None` at the end of the body. Give its window back with [`MessageReader::release`] once it
    /// was admitted.
    ///
    /// # Errors
    /// A message that is too large, cut off or cannot be decompressed; `CANCELLED` if the client reset the stream.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            if let Some((flag, message)) = self.take_complete()? {
                return Poll::Ready(self.decompressed(flag, message).map(Some));
            }
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => self.chunk = data,
                Some(Err(_)) => return Poll::Ready(Err(Reject::Cancelled.into())),
                None if self.partial.is_empty() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(malformed("the last message is cut off"))),
            }
        }
    }

    /// Gives the client back the window of all messages handed out so far.
    pub fn release(&mut self) {
        if self.unreleased > 0 {
            // It fails only where the stream is gone, and the window with it.
            let _ = self.body.flow_control().release_capacity(self.unreleased);
            self.unreleased = 0;
        }
    }

    /// A message that is complete in `chunk`, or in `partial` and `chunk`. Else all of `chunk` is in `partial`.
    fn take_complete(&mut self) -> Result<Option<(u8, Bytes)>, Status> {
        if self.partial.is_empty() {
            match self.split_prefix(&self.chunk)? {
                Some((flag, len)) if self.chunk.len() - PREFIX_BYTES >= len => {
                    self.chunk.advance(PREFIX_BYTES);
                    self.unreleased += PREFIX_BYTES + len;
                    return Ok(Some((flag, self.chunk.split_to(len))));
                }
                _ => {}
            }
        }
        while !self.chunk.is_empty() {
            let prefix = self.split_prefix(&self.partial)?;
            let whole = PREFIX_BYTES + prefix.map_or(0, |(_, len)| len);
            let taken = self.chunk.len().min(whole - self.partial.len());
            self.gather(taken)?;
            if let Some((flag, len)) = self.split_prefix(&self.partial)? {
                let whole = PREFIX_BYTES + len;
                if self.partial.len() < whole {
                    self.expect(whole)?;
                    continue;
                }
                self.conn.refund(self.partial.len());
                self.give_back_large();
                let mut message = self.partial.split().freeze();
                message.advance(PREFIX_BYTES);
                return Ok(Some((flag, message)));
            }
        }
        Ok(None)
    }

    /// A message of so many bytes comes in many frames: it gets memory of its size at once, which costs nothing until it is
    /// filled, so that it is not copied as it grows.
    fn expect(&mut self, whole: usize) -> Result<(), Status> {
        if whole > MESSAGE_BYTES_MAX && self.large == 0 {
            self.conn.common.admit_large(whole)?;
            self.large = whole;
        }
        if self.partial.capacity() < whole {
            let mut exact = BytesMut::with_capacity(whole);
            exact.extend_from_slice(&self.partial);
            self.partial = exact;
        }
        Ok(())
    }

    fn give_back_large(&mut self) {
        self.conn.common.refund_large(std::mem::take(&mut self.large));
    }

    /// Flag and length at the start of a message, if they are there. A length that is not allowed is refused here, before
    /// anything is kept.
    fn split_prefix(&self, bytes: &[u8]) -> Result<Option<(u8, usize)>, Status> {
        let Some((flag, len)) = split_prefix(bytes) else { return Ok(None) };
        // What is compressed is decompressed in one go, while all others wait.
        let bytes_max = if flag == 0 { self.bytes_max } else { MESSAGE_BYTES_MAX };
        if len > bytes_max { Err(too_large(len, bytes_max)) } else { Ok(Some((flag, len))) }
    }

    /// Copies the start of `chunk` behind `partial`. The window is given back at once, since a message may be larger
    /// than the window; the connection's budget bounds the sum instead.
    fn gather(&mut self, bytes: usize) -> Result<(), Status> {
        self.conn.admit()?;
        let piece = self.chunk.split_to(bytes);
        self.conn.charge(bytes);
        self.partial.extend_from_slice(&piece);
        let _ = self.body.flow_control().release_capacity(bytes);
        Ok(())
    }

    fn decompressed(&self, flag: u8, message: Bytes) -> Result<Bytes, Status> {
        match (flag, self.encoding) {
            (0, _) => Ok(message),
            (1, Encoding::Gzip) => gunzip(&message),
            (1, Encoding::Identity) => Err(Status::new(
                GrpcCode::Internal,
                "INVALID_ARGUMENT",
                "a message is marked as compressed but the call has no grpc-encoding",
            )),
            _ => Err(malformed("a message starts with an unknown flag")),
        }
    }
}

impl Drop for MessageReader {
    fn drop(&mut self) {
        self.conn.refund(self.partial.len());
        self.give_back_large();
    }
}

/// Flag and length at the start of a message, if they are there.
fn split_prefix(bytes: &[u8]) -> Option<(u8, usize)> {
    let &[flag, a, b, c, d] = bytes.first_chunk::<PREFIX_BYTES>()?;
    Some((flag, u32::from_be_bytes([a, b, c, d]) as usize))
}

/// Decompresses, but never beyond the limit.
fn gunzip(message: &[u8]) -> Result<Bytes, Status> {
    let mut plain = Vec::with_capacity(message.len().saturating_mul(3).min(MESSAGE_BYTES_MAX));
    GzDecoder::new(message)
        .take(MESSAGE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|_| malformed("a message is no valid gzip"))?;
    if plain.len() > MESSAGE_BYTES_MAX {
        Err(too_large(plain.len(), MESSAGE_BYTES_MAX))
    } else {
        Ok(plain.into())
    }
}

fn too_large(len: usize, bytes_max: usize) -> Status {
    Status::new(
        GrpcCode::ResourceExhausted,
        "TOO_LARGE",
        format!("a message has {len} bytes or more; at most {bytes_max} are allowed, decompressed"),
    )
}

/// A body that is not gRPC.
pub fn malformed(what: &'static str) -> Status {
    Reject::invalid("message", what).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_message_stands_behind_its_prefix() {
        let mut out = BytesMut::from(&b"before"[..]);
        put_message(&mut out, |out| out.put_slice(b"abc"));
        assert_eq!(&out[6..], b"\0\0\0\0\x03abc");
        assert_eq!(split_prefix(&out[6..]), Some((0, 3)));
        assert_eq!(split_prefix(b"\0\0\0\0"), None);
    }

    #[test]
    fn gzip_is_undone_and_bombs_are_refused() {
        assert_eq!(gunzip(&gzip(b"hello")).unwrap(), "hello");
        assert_eq!(gunzip(b"noise").unwrap_err().code(), GrpcCode::InvalidArgument);
        assert!(gunzip(&gzip(&vec![0; MESSAGE_BYTES_MAX])).is_ok());
        let bomb = gunzip(&gzip(&vec![0; MESSAGE_BYTES_MAX * 16])).unwrap_err();
        assert_eq!(bomb.code(), GrpcCode::ResourceExhausted);
    }
}
