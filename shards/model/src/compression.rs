//! Compressed batches: one item that stands for all records of a batch, in the place where they would be.
//!
//! ```text
//! plain:       (0x1A, length, record)*            field 3 of a batch, see crate::record
//! compressed:  0x42, length, compressed batch     field 8 of a batch
//! ```
//!
//! | field of a compressed batch | tag | meaning |
//! |---|---|---|
//! | codec | 0x08 | 1: LZ4 frame, 2: Zstandard frame ([RFC 8878](https://www.rfc-editor.org/rfc/rfc8878)) |
//! | plain bytes | 0x10 | how long the packed records are |
//! | data | 0x1A | one frame, which holds the packed records |
//!
//! A batch is compressed by who appends it, or by the server where the stream's settings say so, travels and rests as it
//! is, and is decoded where only a part of it is wanted or a consumer does not know the codec. The first byte tells the two
//! forms apart.

use std::cell::RefCell;
use std::io::{Read, Write};

use bytes::{BufMut, Bytes, BytesMut};
use lz4_flex::frame::{BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use serde::{Deserialize, Serialize};

use crate::codec::{Malformed, bytes_len, put_bytes, put_varint, read_varint, varint_len};
use crate::limits::COMPRESSED_PLAIN_BYTES_MAX;
use crate::record::take_item;

/// The tag of a compressed batch.
pub const COMPRESSED_TAG: u8 = 0x42;
const CODEC_TAG: u8 = 0x08;
const PLAIN_BYTES_TAG: u8 = 0x10;
const DATA_TAG: u8 = 0x1A;

/// What zstd calls its default: about the ratio of zlib at several times its speed.
const ZSTD_LEVEL: i32 = 3;

/// How a batch is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// An LZ4 frame: fast.
    Lz4,
    /// A Zstandard frame: small.
    Zstd,
}

impl Codec {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Lz4, Self::Zstd];

    /// The word in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// The number on disk and in the API.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// The codec with a number.
    #[must_use]
    pub fn of_number(number: impl TryInto<u8>) -> Option<Self> {
        let number = number.try_into().ok()?;
        Self::ALL.into_iter().find(|codec| codec.number() == number)
    }
}

/// Which codecs a consumer decodes itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codecs(u8);

impl Codecs {
    /// With one more.
    #[must_use]
    pub const fn with(self, codec: Codec) -> Self {
        Self(self.0 | 1 << codec.number())
    }

    /// Whether it is one of them.
    #[must_use]
    pub const fn has(self, codec: Codec) -> bool {
        self.0 & (1 << codec.number()) != 0
    }
}

/// A compressed batch, read but not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed<'a> {
    /// How it is compressed.
    pub codec: Codec,
    /// How long the packed records are, by its own word.
    pub plain_bytes: usize,
    /// The frame.
    pub data: &'a [u8],
}

/// Whether these bytes are a compressed batch.
#[must_use]
#[inline]
pub fn is_compressed(batch: &[u8]) -> bool {
    batch.first() == Some(&COMPRESSED_TAG)
}

/// The codec of a batch; `None` if it is not compressed, or malformed.
#[must_use]
#[inline]
pub fn codec_of(batch: &[u8]) -> Option<Codec> {
    if is_compressed(batch) { Compressed::read(batch).ok().map(|compressed| compressed.codec) } else { None }
}

impl<'a> Compressed<'a> {
    /// Reads a batch for which [`is_compressed`] holds. Its fields may come in any order.
    ///
    /// # Errors
    /// [`Malformed`]: cut off, of an unknown codec, with an unknown field, or with anything behind it.
    pub fn read(batch: &'a [u8]) -> Result<Self, Malformed> {
        let (mut codec, mut plain_bytes, mut data) = (0, 0, &[][..]);
        let (inner, behind) = take_item(batch.get(1..).unwrap_or_default())?;
        if !behind.is_empty() {
            return Err(Malformed("more than one compressed batch, or records beside it"));
        }
        let mut rest = inner;
        while let Some((&tag, after)) = rest.split_first() {
            if tag == DATA_TAG {
                (data, rest) = take_item(after)?;
                continue;
            }
            let (value, used) = read_varint(after)?;
            rest = after.get(used..).unwrap_or_default();
            match tag {
                CODEC_TAG => codec = value,
                PLAIN_BYTES_TAG => plain_bytes = value,
                _ => return Err(Malformed("a compressed batch has an unknown field")),
            }
        }
        let codec = Codec::of_number(codec).ok_or(Malformed("a codec is neither LZ4 (1) nor ZSTD (2)"))?;
        let plain_bytes = usize::try_from(plain_bytes).unwrap_or(usize::MAX);
        Ok(Self { codec, plain_bytes, data })
    }

    /// The packed records.
    ///
    /// # Errors
    /// [`Malformed`]: not one frame of the codec, or not as long as said, or longer than
    /// [`COMPRESSED_PLAIN_BYTES_MAX`]. Nothing is decoded beyond that.
    pub fn decode(&self) -> Result<Bytes, Malformed> {
        if self.plain_bytes > COMPRESSED_PLAIN_BYTES_MAX {
            return Err(Malformed("a compressed batch is too large once decoded"));
        }
        let plain = match self.codec {
            Codec::Lz4 => decode_lz4(self.data, self.plain_bytes)?,
            Codec::Zstd => decode_zstd(self.data, self.plain_bytes)?,
        };
        if plain.len() != self.plain_bytes {
            return Err(Malformed("a compressed batch is not as long as it says once decoded"));
        }
        Ok(plain.into())
    }
}

fn decode_lz4(data: &[u8], plain_bytes: usize) -> Result<Vec<u8>, Malformed> {
    let mut plain = Vec::with_capacity(plain_bytes + 1);
    let mut rest = data;
    // One more than there may be shows that there is more, without decoding what there is.
    let read = FrameDecoder::new(&mut rest).take(plain_bytes as u64 + 1).read_to_end(&mut plain);
    read.map_err(|_| Malformed("a compressed batch is not an LZ4 frame"))?;
    Ok(plain)
}

thread_local! {
    static ZSTD_IN: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static ZSTD_OUT: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

fn decode_zstd(data: &[u8], plain_bytes: usize) -> Result<Vec<u8>, Malformed> {
    let wrong = |_| Malformed("a compressed batch is not a Zstandard frame");
    ZSTD_OUT.with_borrow_mut(|kept| {
        let mut decoder = kept.take().map_or_else(zstd::bulk::Decompressor::new, Ok).map_err(wrong)?;
        let plain = decoder.decompress(data, plain_bytes).map_err(wrong);
        *kept = Some(decoder);
        plain
    })
}

/// The batch with its records as they are: decoded if it is compressed.
///
/// # Errors
/// [`Malformed`]: see [`Compressed`].
#[inline]
pub fn plain(batch: &Bytes) -> Result<Bytes, Malformed> {
    if is_compressed(batch) { Compressed::read(batch)?.decode() } else { Ok(batch.clone()) }
}

/// A plain batch, compressed; `None` if that saves less than an eighth, or if it is too long to be compressed.
#[must_use]
pub fn compress(plain: &[u8], codec: Codec) -> Option<Bytes> {
    if plain.len() > COMPRESSED_PLAIN_BYTES_MAX {
        return None;
    }
    let data = match codec {
        Codec::Lz4 => encode_lz4(plain)?,
        Codec::Zstd => encode_zstd(plain)?,
    };
    (data.len() + plain.len() / 8 < plain.len()).then(|| pack(codec, plain.len(), &data))
}

fn pack(codec: Codec, plain_bytes: usize, data: &[u8]) -> Bytes {
    let inner = 2 + 1 + varint_len(plain_bytes as u64) + 1 + bytes_len(data.len());
    let mut out = BytesMut::with_capacity(1 + bytes_len(inner));
    out.put_u8(COMPRESSED_TAG);
    put_varint(&mut out, inner as u64);
    out.put_slice(&[CODEC_TAG, codec.number(), PLAIN_BYTES_TAG]);
    put_varint(&mut out, plain_bytes as u64);
    out.put_u8(DATA_TAG);
    put_bytes(&mut out, data);
    out.freeze()
}

fn encode_lz4(plain: &[u8]) -> Option<Vec<u8>> {
    let block_size = match plain.len() {
        0..=65_536 => BlockSize::Max64KB,
        65_537..=262_144 => BlockSize::Max256KB,
        262_145..=1_048_576 => BlockSize::Max1MB,
        _ => BlockSize::Max4MB,
    };
    let frame = FrameInfo::new().block_size(block_size);
    let mut encoder = FrameEncoder::with_frame_info(frame, Vec::with_capacity(plain.len() / 2));
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

fn encode_zstd(plain: &[u8]) -> Option<Vec<u8>> {
    ZSTD_IN.with_borrow_mut(|kept| {
        let mut encoder = match kept.take() {
            Some(encoder) => encoder,
            None => zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()?,
        };
        let data = encoder.compress(plain).ok();
        *kept = Some(encoder);
        data
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{PackedRecords, RecordPacker, RecordView};
    use crate::reject::Reject;
    use proptest::prelude::*;

    fn batch(records: u32) -> Bytes {
        let mut packer = RecordPacker::default();
        for number in 0..records {
            let value =
                format!("{{\"user\":{number},\"action\":\"login\",\"from\":\"10.0.0.{}\"}}", number % 256);
            packer.push(&RecordView { key: Some(b"key"), value: value.as_bytes(), ..Default::default() });
        }
        packer.finish()
    }

    #[test]
    fn what_is_compressed_is_smaller_and_read_back() {
        let plain = batch(1000);
        for codec in Codec::ALL {
            let packed = compress(&plain, codec).unwrap();
            assert!(packed.len() * 2 < plain.len(), "{codec:?}: {} of {}", packed.len(), plain.len());
            assert_eq!(codec_of(&packed), Some(codec));
            assert_eq!(super::plain(&packed).unwrap(), plain);
            let checked = PackedRecords::check(packed.clone()).unwrap();
            assert_eq!((checked.count(), checked.bytes()), (1000, &packed), "it rests as it came");
        }
        assert_eq!(codec_of(&plain), None);
        assert_eq!(super::plain(&plain).unwrap().as_ptr(), plain.as_ptr(), "a plain one is not copied");
    }

    #[test]
    fn what_does_not_shrink_stays_as_it_is() {
        let noise: Vec<u8> = (0..50u8).flat_map(|n| xxhash_rust::xxh3::xxh3_64(&[n]).to_le_bytes()).collect();
        let mut packer = RecordPacker::default();
        packer.push(&RecordView { value: &noise, ..Default::default() });
        let plain = packer.finish();
        assert!(Codec::ALL.into_iter().all(|codec| compress(&plain, codec).is_none()));
    }

    /// A batch with its fields as they are given.
    fn raw(codec: u8, plain_bytes: u64, data: &[u8]) -> Bytes {
        let mut inner = vec![DATA_TAG];
        put_bytes(&mut inner, data);
        inner.extend([CODEC_TAG, codec, PLAIN_BYTES_TAG]);
        put_varint(&mut inner, plain_bytes);
        let mut out = vec![COMPRESSED_TAG];
        put_bytes(&mut out, &inner);
        out.into()
    }

    #[test]
    fn a_batch_that_lies_is_refused_by_name() {
        let plain = batch(100);
        for codec in Codec::ALL {
            let packed = compress(&plain, codec).unwrap();
            let data = Compressed::read(&packed).unwrap().data.to_vec();
            let (number, len) = (codec.number(), plain.len() as u64);
            let refused = |bytes: Bytes| match PackedRecords::check(bytes) {
                Err(Reject::InvalidArgument { field: "records", reason }) => reason,
                other => panic!("{other:?}"),
            };
            assert!(PackedRecords::check(raw(number, len, &data)).is_ok(), "fields may come in any order");
            assert!(refused(raw(9, len, &data)).contains("neither LZ4 (1) nor ZSTD (2)"));
            assert!(refused(raw(number, len, b"no frame")).contains("frame"));
            assert!(refused(raw(number, len, &data[..data.len() / 2])).contains("batch"));
            assert!(refused(raw(number, len + 1, &data)).contains("not as long"));
            refused(raw(number, len - 1, &data));
            assert!(refused(raw(number, 1 << 40, &data)).contains("too large once decoded"));
            let mut twice = packed.to_vec();
            twice.extend(&packed);
            assert!(refused(twice.into()).contains("more than one"));
            let nested = compress(&packed.repeat(50), codec).unwrap();
            assert!(refused(nested).contains("another tag"), "a compressed batch holds plain records");
        }
    }

    #[test]
    fn a_bomb_is_not_decoded() {
        let bomb = vec![0u8; 64 << 20];
        let lz4 = encode_lz4(&bomb).unwrap();
        let zstd = encode_zstd(&bomb).unwrap();
        for (number, data) in [(1, lz4), (2, zstd)] {
            assert!(PackedRecords::check(raw(number, 1000, &data)).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(plain: Vec<u8>, times in 1usize..20) {
            let plain = plain.repeat(times);
            for codec in Codec::ALL {
                if let Some(packed) = compress(&plain, codec) {
                    prop_assert_eq!(&super::plain(&packed).unwrap()[..], &plain[..]);
                }
            }
        }

        #[test]
        fn noise_never_panics(noise: Vec<u8>, codec in 0u8..4, plain_bytes in 0u64..10_000) {
            let _ = PackedRecords::check(raw(codec, plain_bytes, &noise));
            let mut batch = vec![COMPRESSED_TAG];
            batch.extend(noise);
            let _ = super::plain(&batch.into());
        }
    }
}
