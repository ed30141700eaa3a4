//! gRPC messages in a stream's bytes: `| 1 byte: compressed | 4 bytes: length | message |`, one after the other, cut
//! anywhere by DATA frames.

/// Bytes before each message.
pub const GRPC_HEAD_BYTES: usize = 5;

/// A message above this is taken for damage; far above the server's own limit.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Not a gRPC message: compressed, which we never ask for, or absurdly long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadMessage;

/// Joins a stream's bytes to messages. Whole messages are handed on where they lie, without a copy.
#[derive(Debug, Default)]
pub struct Deframer {
    partial: Vec<u8>,
}

impl Deframer {
    /// Calls `message` with each message that `bytes` completes.
    ///
    /// # Errors
    /// [`BadMessage`].
    #[inline]
    pub fn push(&mut self, bytes: &[u8], mut message: impl FnMut(&[u8])) -> Result<(), BadMessage> {
        let mut rest = bytes;
        if !self.partial.is_empty() {
            rest = self.complete(rest)?;
            if !self.is_whole()? {
                return Ok(());
            }
            message(self.partial.get(GRPC_HEAD_BYTES..).unwrap_or_default());
            self.partial.clear();
        }
        while let Some((head, body)) = rest.split_first_chunk::<GRPC_HEAD_BYTES>() {
            let Some((whole, after)) = body.split_at_checked(length(*head)?) else { break };
            message(whole);
            rest = after;
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Forgets what was begun; for the next stream.
    pub fn clear(&mut self) {
        self.partial.clear();
    }

    /// Whether a message was begun and not completed.
    pub fn is_inside(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Moves what is missing of the message begun from `bytes`, and returns the rest.
    fn complete<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], BadMessage> {
        let mut rest = bytes;
        self.take(&mut rest, GRPC_HEAD_BYTES);
        if let Some(head) = self.partial.first_chunk::<GRPC_HEAD_BYTES>() {
            let target = GRPC_HEAD_BYTES + length(*head)?;
            self.take(&mut rest, target);
        }
        Ok(rest)
    }

    fn take(&mut self, rest: &mut &[u8], target: usize) {
        let missing = target.saturating_sub(self.partial.len()).min(rest.len());
        let (part, after) = rest.split_at(missing);
        self.partial.extend_from_slice(part);
        *rest = after;
    }

    fn is_whole(&self) -> Result<bool, BadMessage> {
        match self.partial.first_chunk::<GRPC_HEAD_BYTES>() {
            Some(head) => Ok(self.partial.len() == GRPC_HEAD_BYTES + length(*head)?),
            None => Ok(false),
        }
    }
}

#[inline]
fn length([compressed, a, b, c, d]: [u8; GRPC_HEAD_BYTES]) -> Result<usize, BadMessage> {
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if compressed != 0 || length > MESSAGE_BYTES_MAX { Err(BadMessage) } else { Ok(length) }
}

/// A message with its head.
pub fn frame_message(message: &impl prost::Message) -> Vec<u8> {
    let mut out = vec![0; GRPC_HEAD_BYTES];
    // A Vec grows as needed, so encoding cannot fail.
    let _ = message.encode(&mut out);
    set_length(&mut out, 0);
    out
}

/// Writes the length of the message whose head starts at `head_at` and which ends with `out`.
pub fn set_length(out: &mut [u8], head_at: usize) {
    let length = (out.len() - head_at - GRPC_HEAD_BYTES) as u32;
    if let Some(field) = out.get_mut(head_at + 1..head_at + GRPC_HEAD_BYTES) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_were_cut(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..12),
            cuts in proptest::collection::vec(1usize..30, 1..40),
        ) {
            let mut bytes = Vec::new();
            for message in &messages {
                let at = bytes.len();
                bytes.extend_from_slice(&[0; GRPC_HEAD_BYTES]);
                bytes.extend_from_slice(message);
                set_length(&mut bytes, at);
            }
            let (mut deframer, mut seen, mut rest) = (Deframer::default(), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                deframer.push(part, |message| seen.push(message.to_vec())).unwrap();
                rest = after;
            }
            prop_assert_eq!(seen, messages);
            prop_assert!(!deframer.is_inside());
        }
    }

    #[test]
    fn compressed_and_absurd_messages_are_refused() {
        assert_eq!(Deframer::default().push(&[1, 0, 0, 0, 0], |_| ()), Err(BadMessage));
        assert_eq!(Deframer::default().push(&[0, 255, 0, 0, 0], |_| ()), Err(BadMessage));
    }
}
