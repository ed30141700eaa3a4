//! Little helpers that every format here shares.

use crate::disk::ALIGN;

/// [`ALIGN`] as positions count.
pub(crate) const PAGE: u64 = ALIGN as u64;

/// The next multiple of [`ALIGN`].
pub(crate) const fn round_up(bytes: usize) -> usize {
    bytes.div_ceil(ALIGN) * ALIGN
}

/// SplitMix64: spreads a seed over all 64 bits. Not cryptographic; its input is a secret here.
pub(crate) const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Reads little-endian fields off the front of bytes whose length was checked before.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.0 = rest;
                *head
            }
            None => [0; N],
        }
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// The checksum of a header with its own four checksum bytes at `hole` left out.
pub(crate) fn crc_around(fields: &[u8], hole: usize) -> u32 {
    let before = crc32c::crc32c(fields.get(..hole).unwrap_or_default());
    crc32c::crc32c_append(before, fields.get(hole + 4..).unwrap_or_default())
}

/// Copies `bytes` to a place that has room for them.
pub(crate) fn put_at(out: &mut [u8], at: usize, bytes: &[u8]) {
    let room = out.get_mut(at..at + bytes.len());
    assert!(room.is_some(), "bytes are put to a place that has room for them");
    if let Some(room) = room {
        room.copy_from_slice(bytes);
    }
}
