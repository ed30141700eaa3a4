//! One client connection: streams, windows, settings. Bytes in, bytes out; no I/O.
//!
//! A stream, seen from here:
//!
//! ```text
//! free ── open ──► open ── send(end) ──► asked ── END_STREAM or RST_STREAM from the peer ──► free
//!                    └───────────── END_STREAM or RST_STREAM from the peer ───────────────────▲
//! ```
//!
//! Streams live in a ring indexed by their number; a number whose place is still taken is skipped, which HTTP/2
//! allows, so that a look-up is one index and a long stream never moves. What a window does not let out waits in the
//! stream, in the order it was given.

use std::collections::VecDeque;

use super::frame::{self, Head, flag, kind, setting};
use super::hpack::{Answer, Decoder};
use super::request::{MethodId, RequestHeaders};

/// The window every stream starts with when it sends (RFC 9113, 6.9.2), until the peer's settings say otherwise.
const WINDOW_DEFAULT: i64 = 65_535;
/// The largest payload a peer takes unless it says otherwise.
const FRAME_BYTES_DEFAULT: usize = 16_384;
/// The largest payload we take. Large, because fewer frames cost less on both sides.
pub const FRAME_BYTES_MAX: u32 = 256 * 1024;
/// What the peer may send on one stream ahead of us. Several times what a socket buffers.
const STREAM_WINDOW: u32 = 16 * 1024 * 1024;
/// What the peer may send on all streams together ahead of us.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// What ends a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The peer broke the protocol.
    #[error("the server broke HTTP/2: {0}")]
    Malformed(&'static str),
    /// The peer ends the connection.
    #[error("the server closed the connection: GOAWAY {code} {debug:?}")]
    GoAway {
        /// Its reason, by number.
        code: u32,
        /// Its reason, in words.
        debug: String,
    },
}

/// A stream of this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRef(u32);

/// What happened on a stream. `tag` is what [`Connection::open`] was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The answer's head, or with `end` its trailers (or both in one).
    Headers {
        /// Whose.
        tag: u32,
        /// What they say.
        answer: Answer,
        /// Whether the stream is over.
        end: bool,
    },
    /// Bytes of the answer.
    Data {
        /// Whose.
        tag: u32,
        /// The bytes; they need not start or end with a message.
        bytes: &'a [u8],
        /// Whether the stream is over (without a status, so as an error).
        end: bool,
    },
    /// The peer gave the stream up.
    Reset {
        /// Whose.
        tag: u32,
        /// Why, by number.
        code: u32,
    },
}

/// Bytes that wait for a window.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
    end: bool,
}

#[derive(Debug, Default)]
struct Slot {
    /// 0: free.
    id: u32,
    tag: u32,
    window: i64,
    received: u32,
    asked: bool,
    pending: Option<Box<Pending>>,
}

/// The client's side of one connection.
#[derive(Debug)]
pub struct Connection {
    headers: RequestHeaders,
    decoder: Decoder,
    slots: Vec<Slot>,
    open: usize,
    next_id: u32,
    window: i64,
    received: u32,
    peer_stream_window: i64,
    peer_frame_bytes_max: usize,
    peer_streams_max: Option<u32>,
    /// Streams with something pending, oldest first.
    blocked: VecDeque<u32>,
    /// A header block of which more is to come: its first frame's head, and its bytes so far.
    fragment: Option<(Head, Vec<u8>)>,
    settled: bool,
    out: Vec<u8>,
    out_sent: usize,
}

impl Connection {
    /// A connection for up to `streams` streams at a time. The preface and our settings are in the output.
    pub fn new(headers: RequestHeaders, streams: usize) -> Self {
        let mut out = frame::PREFACE.to_vec();
        frame::put_settings(
            &mut out,
            &[
                (setting::ENABLE_PUSH, 0),
                (setting::INITIAL_WINDOW_SIZE, STREAM_WINDOW),
                (setting::MAX_FRAME_SIZE, FRAME_BYTES_MAX),
            ],
        );
        let more = CONNECTION_WINDOW - WINDOW_DEFAULT as u32;
        frame::put(&mut out, kind::WINDOW_UPDATE, 0, 0, &more.to_be_bytes());
        let places = (streams * 4).next_power_of_two().max(16);
        Self {
            headers,
            decoder: Decoder::default(),
            slots: std::iter::repeat_with(Slot::default).take(places).collect(),
            open: 0,
            next_id: 1,
            window: WINDOW_DEFAULT,
            received: 0,
            peer_stream_window: WINDOW_DEFAULT,
            peer_frame_bytes_max: FRAME_BYTES_DEFAULT,
            peer_streams_max: None,
            blocked: VecDeque::new(),
            fragment: None,
            settled: false,
            out,
            out_sent: 0,
        }
    }

    /// Whether the peer's settings are known. No stream should be opened before.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// How many streams the peer allows, if it said so.
    pub fn peer_streams_max(&self) -> Option<u32> {
        self.peer_streams_max
    }

    /// Streams now open.
    pub fn streams_open(&self) -> usize {
        self.open
    }

    /// The `grpc-message` of the last call that failed.
    pub fn last_message(&self) -> &str {
        self.decoder.message()
    }

    /// Opens a stream and sends the request's head. The caller keeps to the number of streams it asked for.
    pub fn open(&mut self, method: MethodId, tag: u32) -> StreamRef {
        let mask = self.slots.len() - 1;
        loop {
            let id = self.next_id;
            self.next_id += 2;
            let Some(slot) = self.slots.get_mut((id >> 1) as usize & mask) else { continue };
            if slot.id != 0 {
                assert!(self.open < mask, "more streams open than the connection was made for");
                continue;
            }
            *slot = Slot { id, tag, window: self.peer_stream_window, ..Slot::default() };
            self.open += 1;
            let block = self.headers.block(method);
            frame::put(&mut self.out, kind::HEADERS, flag::END_HEADERS, id, block);
            return StreamRef(id);
        }
    }

    /// Sends bytes on a stream, now or when the windows allow it; `end` says that they are the last. Bytes for a stream
    /// that is over are dropped.
    #[inline]
    pub fn send(&mut self, stream: StreamRef, bytes: &[u8], end: bool) {
        let mask = self.slots.len() - 1;
        let Some(slot) =
            self.slots.get_mut((stream.0 >> 1) as usize & mask).filter(|slot| slot.id == stream.0)
        else {
            return;
        };
        let length = bytes.len() as i64;
        if slot.pending.is_none() && length <= slot.window && length <= self.window {
            slot.window -= length;
            slot.asked |= end;
            self.window -= length;
            put_data(&mut self.out, stream.0, bytes, end, self.peer_frame_bytes_max);
            return;
        }
        if let Some(pending) = &mut slot.pending {
            pending.bytes.extend_from_slice(bytes);
            pending.end |= end;
        } else {
            slot.pending = Some(Box::new(Pending { bytes: bytes.to_vec(), sent: 0, end }));
            self.blocked.push_back(stream.0);
        }
        self.send_blocked();
    }

    /// Gives a stream up.
    pub fn reset(&mut self, stream: StreamRef) {
        if self.slot(stream.0).is_some() {
            frame::put(&mut self.out, kind::RST_STREAM, 0, stream.0, &frame::CANCEL.to_be_bytes());
            self.free(stream.0);
        }
    }

    /// What the socket should send.
    #[inline]
    pub fn output(&self) -> &[u8] {
        self.out.get(self.out_sent..).unwrap_or_default()
    }

    /// The socket took so many bytes of [`Connection::output`].
    #[inline]
    pub fn advance(&mut self, bytes: usize) {
        self.out_sent += bytes;
        if self.out_sent >= self.out.len() {
            self.out.clear();
            self.out_sent = 0;
        }
    }

    /// Takes frames off the front of `input` until one is an event, or no whole frame is left.
    ///
    /// # Errors
    /// [`ProtocolError`]: the connection is lost.
    #[inline]
    pub fn next_event<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        while let Some((head, payload)) = frame::take(input) {
            if head.length > FRAME_BYTES_MAX {
                return Err(ProtocolError::Malformed("a frame above our limit"));
            }
            let event = match head.kind {
                kind::DATA => self.on_data(head, payload)?,
                kind::HEADERS | kind::CONTINUATION => self.on_block(head, payload)?,
                _ => self.on_control(head, payload)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    #[inline]
    fn slot(&mut self, id: u32) -> Option<&mut Slot> {
        let mask = self.slots.len() - 1;
        self.slots.get_mut((id >> 1) as usize & mask).filter(|slot| slot.id == id)
    }

    fn free(&mut self, id: u32) {
        if let Some(slot) = self.slot(id) {
            *slot = Slot::default();
            self.open -= 1;
        }
    }

    /// The peer ended the stream. What it did not wait for is not sent.
    fn end(&mut self, id: u32) {
        if self.slot(id).is_some_and(|slot| !slot.asked) {
            frame::put(&mut self.out, kind::RST_STREAM, 0, id, &frame::CANCEL.to_be_bytes());
        }
        self.free(id);
    }

    #[inline]
    fn on_data<'a>(&mut self, head: Head, payload: &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        self.received += head.length;
        if self.received >= CONNECTION_WINDOW / 2 {
            frame::put(&mut self.out, kind::WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes());
            self.received = 0;
        }
        let end = head.has(flag::END_STREAM);
        let Some(slot) = self.slot(head.stream) else { return Ok(None) };
        let tag = slot.tag;
        slot.received += head.length;
        let received = slot.received;
        if end {
            self.end(head.stream);
        } else if received >= STREAM_WINDOW / 2 {
            slot.received = 0;
            frame::put(&mut self.out, kind::WINDOW_UPDATE, 0, head.stream, &received.to_be_bytes());
        }
        let bytes = frame::unpad(head, payload).ok_or(ProtocolError::Malformed("padding"))?;
        Ok(Some(Event::Data { tag, bytes, end }))
    }

    #[inline]
    fn on_block(&mut self, head: Head, payload: &[u8]) -> Result<Option<Event<'static>>, ProtocolError> {
        if head.kind == kind::HEADERS {
            if self.fragment.is_some() {
                return Err(ProtocolError::Malformed("a header block was cut off"));
            }
            let block = frame::unpad(head, payload).ok_or(ProtocolError::Malformed("padding"))?;
            if head.has(flag::END_HEADERS) {
                return self.on_headers(head, block);
            }
            self.fragment = Some((head, block.to_vec()));
            return Ok(None);
        }
        let (first, mut block) =
            self.fragment.take().ok_or(ProtocolError::Malformed("a continuation of nothing"))?;
        if first.stream != head.stream {
            return Err(ProtocolError::Malformed("a continuation on another stream"));
        }
        block.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.on_headers(first, &block);
        }
        self.fragment = Some((first, block));
        Ok(None)
    }

    #[inline]
    fn on_headers(&mut self, head: Head, block: &[u8]) -> Result<Option<Event<'static>>, ProtocolError> {
        let answer = self.decoder.decode(block).map_err(|_| ProtocolError::Malformed("HPACK"))?;
        let Some(slot) = self.slot(head.stream) else { return Ok(None) };
        let tag = slot.tag;
        let end = head.has(flag::END_STREAM);
        if end {
            self.end(head.stream);
        }
        Ok(Some(Event::Headers { tag, answer, end }))
    }

    fn on_control(&mut self, head: Head, payload: &[u8]) -> Result<Option<Event<'static>>, ProtocolError> {
        match head.kind {
            kind::SETTINGS if !head.has(flag::ACK) => self.on_settings(payload),
            kind::PING if !head.has(flag::ACK) => {
                frame::put(&mut self.out, kind::PING, flag::ACK, 0, payload);
            }
            kind::WINDOW_UPDATE => self.on_window(head.stream, payload),
            kind::RST_STREAM => return Ok(self.on_reset(head.stream, payload)),
            kind::GOAWAY => {
                let code = payload.get(4..).and_then(frame::number).unwrap_or_default();
                let debug = String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into_owned();
                return Err(ProtocolError::GoAway { code, debug });
            }
            kind::PUSH_PROMISE => return Err(ProtocolError::Malformed("a push, which we refuse")),
            _ => {}
        }
        Ok(None)
    }

    fn on_settings(&mut self, payload: &[u8]) {
        for (id, value) in frame::settings(payload) {
            match id {
                setting::HEADER_TABLE_SIZE => self.headers.limit_table(value as usize),
                setting::MAX_CONCURRENT_STREAMS => self.peer_streams_max = Some(value),
                setting::MAX_FRAME_SIZE => self.peer_frame_bytes_max = value as usize,
                setting::INITIAL_WINDOW_SIZE => {
                    let change = i64::from(value) - self.peer_stream_window;
                    self.peer_stream_window = i64::from(value);
                    self.slots.iter_mut().filter(|slot| slot.id != 0).for_each(|slot| slot.window += change);
                }
                _ => {}
            }
        }
        frame::put(&mut self.out, kind::SETTINGS, flag::ACK, 0, &[]);
        self.settled = true;
        self.send_blocked();
    }

    fn on_window(&mut self, stream: u32, payload: &[u8]) {
        let more = i64::from(frame::number(payload).unwrap_or_default());
        if stream == 0 {
            self.window += more;
        } else if let Some(slot) = self.slot(stream) {
            slot.window += more;
        }
        if !self.blocked.is_empty() {
            self.send_blocked();
        }
    }

    fn on_reset(&mut self, stream: u32, payload: &[u8]) -> Option<Event<'static>> {
        let tag = self.slot(stream)?.tag;
        self.free(stream);
        Some(Event::Reset { tag, code: frame::number(payload).unwrap_or_default() })
    }

    /// Sends what the windows allow, oldest stream first.
    fn send_blocked(&mut self) {
        for _ in 0..self.blocked.len() {
            let Some(id) = self.blocked.pop_front() else { return };
            if !self.send_pending(id) {
                self.blocked.push_back(id);
            }
        }
    }

    /// Whether nothing is left.
    fn send_pending(&mut self, id: u32) -> bool {
        let mask = self.slots.len() - 1;
        let Some(slot) = self.slots.get_mut((id >> 1) as usize & mask).filter(|slot| slot.id == id) else {
            return true;
        };
        let Some(pending) = &mut slot.pending else { return true };
        let rest = pending.bytes.get(pending.sent..).unwrap_or_default();
        let room = self.window.min(slot.window).max(0) as usize;
        let part = rest.get(..room.min(rest.len())).unwrap_or_default();
        let last = part.len() == rest.len();
        if part.is_empty() && !last {
            return false;
        }
        put_data(&mut self.out, id, part, last && pending.end, self.peer_frame_bytes_max);
        self.window -= part.len() as i64;
        slot.window -= part.len() as i64;
        pending.sent += part.len();
        if last {
            slot.asked |= pending.end;
            slot.pending = None;
        }
        last
    }
}

/// Appends DATA frames of at most `frame_bytes_max`; at least one, so that an end without bytes is sent too.
#[inline]
fn put_data(out: &mut Vec<u8>, stream: u32, bytes: &[u8], end: bool, frame_bytes_max: usize) {
    let mut rest = bytes;
    loop {
        let (part, after) = rest.split_at(rest.len().min(frame_bytes_max));
        let last = after.is_empty();
        frame::put(out, kind::DATA, if last && end { flag::END_STREAM } else { 0 }, stream, part);
        if last {
            return;
        }
        rest = after;
    }
}
