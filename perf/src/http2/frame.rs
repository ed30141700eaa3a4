//! HTTP/2 frames (RFC 9113, section 4 and 6).
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 3 | payload length, big-endian |
//! | 3 | 1 | type |
//! | 4 | 1 | flags |
//! | 5 | 4 | stream, big-endian; the top bit is ignored |
//! | 9 | … | payload |

/// Bytes before a frame's payload.
pub const HEAD_BYTES: usize = 9;

/// What a client sends before its first frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The type of a frame.
pub mod kind {
    /// A stream's bytes.
    pub const DATA: u8 = 0;
    /// A header block that opens a stream, answers it or ends it.
    pub const HEADERS: u8 = 1;
    /// Advice, deprecated.
    pub const PRIORITY: u8 = 2;
    /// A stream ends at once.
    pub const RST_STREAM: u8 = 3;
    /// What a side wants of its peer.
    pub const SETTINGS: u8 = 4;
    /// Refused by us in the settings.
    pub const PUSH_PROMISE: u8 = 5;
    /// Are you there.
    pub const PING: u8 = 6;
    /// The connection ends.
    pub const GOAWAY: u8 = 7;
    /// More may be sent.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames; which mean what depends on the type.
pub mod flag {
    /// DATA, HEADERS: the sender's side of the stream ends.
    pub const END_STREAM: u8 = 0x1;
    /// SETTINGS, PING: an answer.
    pub const ACK: u8 = 0x1;
    /// HEADERS, CONTINUATION: the block is complete.
    pub const END_HEADERS: u8 = 0x4;
    /// DATA, HEADERS: the payload starts with a pad length.
    pub const PADDED: u8 = 0x8;
    /// HEADERS: five bytes of priority come first.
    pub const PRIORITY: u8 = 0x20;
}

/// Settings by number.
pub mod setting {
    /// Bytes of the HPACK table the sender decodes with.
    pub const HEADER_TABLE_SIZE: u16 = 1;
    /// Whether push is allowed.
    pub const ENABLE_PUSH: u16 = 2;
    /// Streams the peer may have open.
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// A new stream's window.
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    /// The largest payload the sender takes.
    pub const MAX_FRAME_SIZE: u16 = 5;
}

/// The error code of a stream that nobody wants any more.
pub const CANCEL: u32 = 8;

/// A frame without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of payload.
    pub length: u32,
    /// See [`kind`].
    pub kind: u8,
    /// See [`flag`].
    pub flags: u8,
    /// 0: the connection.
    pub stream: u32,
}

impl Head {
    /// Whether a flag is set.
    #[inline]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The head as it travels.
    #[inline]
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let [_, length @ ..] = self.length.to_be_bytes();
        let mut bytes = [0; HEAD_BYTES];
        let (start, stream) = bytes.split_at_mut(5);
        let (length_at, rest) = start.split_at_mut(3);
        length_at.copy_from_slice(&length);
        rest.copy_from_slice(&[self.kind, self.flags]);
        stream.copy_from_slice(&self.stream.to_be_bytes());
        bytes
    }

    /// Reads what [`Head::encode`] wrote.
    #[inline]
    pub fn decode(bytes: [u8; HEAD_BYTES]) -> Self {
        let [high, middle, low, kind, flags, stream @ ..] = bytes;
        Self {
            length: u32::from_be_bytes([0, high, middle, low]),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }
}

/// Takes a whole frame off the front, if it is there.
#[inline]
pub fn take<'a>(input: &mut &'a [u8]) -> Option<(Head, &'a [u8])> {
    let (head, rest) = input.split_first_chunk::<HEAD_BYTES>()?;
    let head = Head::decode(*head);
    let (payload, rest) = rest.split_at_checked(head.length as usize)?;
    *input = rest;
    Some((head, payload))
}

/// Appends a frame.
pub fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let head = Head { length: payload.len() as u32, kind, flags, stream };
    out.extend_from_slice(&head.encode());
    out.extend_from_slice(payload);
}

/// Appends a SETTINGS frame.
pub fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    let mut payload = Vec::with_capacity(settings.len() * 6);
    for (id, value) in settings {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    put(out, kind::SETTINGS, 0, 0, &payload);
}

/// The settings of a SETTINGS payload; a stray tail is left out.
pub fn settings(payload: &[u8]) -> impl Iterator<Item = (u16, u32)> + '_ {
    payload.chunks_exact(6).filter_map(|chunk| {
        let (id, value) = chunk.split_first_chunk::<2>()?;
        Some((u16::from_be_bytes(*id), u32::from_be_bytes(*value.first_chunk::<4>()?)))
    })
}

/// The big-endian number at the front.
pub fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// A DATA or HEADERS payload without pad length, padding and priority. `None`: more padding than payload.
#[inline]
pub fn unpad(head: Head, payload: &[u8]) -> Option<&[u8]> {
    let mut body = payload;
    if head.has(flag::PADDED) {
        let (&pad, rest) = body.split_first()?;
        body = rest.get(..rest.len().checked_sub(usize::from(pad))?)?;
    }
    if head.kind == kind::HEADERS && head.has(flag::PRIORITY) {
        body = body.get(5..)?;
    }
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_frame_reads_back(kind: u8, flags: u8, stream in 0u32..1 << 31, payload: Vec<u8>, tail: Vec<u8>) {
            let mut bytes = Vec::new();
            put(&mut bytes, kind, flags, stream, &payload);
            for cut in 0..bytes.len() {
                prop_assert!(take(&mut &bytes[..cut]).is_none());
            }
            bytes.extend_from_slice(&tail);
            let mut input = &bytes[..];
            let (head, body) = take(&mut input).unwrap();
            prop_assert_eq!(head, Head { length: payload.len() as u32, kind, flags, stream });
            prop_assert_eq!(body, &payload[..]);
            prop_assert_eq!(input, &tail[..]);
        }

        #[test]
        fn settings_read_back(list: Vec<(u16, u32)>) {
            let mut bytes = Vec::new();
            put_settings(&mut bytes, &list);
            prop_assert_eq!(settings(&bytes[HEAD_BYTES..]).collect::<Vec<_>>(), list);
        }
    }

    #[test]
    fn padding_is_cut_off_and_never_beyond_the_payload() {
        let head = Head { length: 0, kind: kind::DATA, flags: flag::PADDED, stream: 1 };
        assert_eq!(unpad(head, &[2, b'a', 0, 0]), Some(&b"a"[..]));
        assert_eq!(unpad(head, &[4, b'a', 0, 0]), None);
        let head = Head { kind: kind::HEADERS, flags: flag::PADDED | flag::PRIORITY, ..head };
        assert_eq!(unpad(head, &[1, 0, 0, 0, 0, 0, b'h', 0]), Some(&b"h"[..]));
    }
}
