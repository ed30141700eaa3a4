//! Batches that travel compressed.

use std::io;

use bytes::Bytes;
use clap::ValueEnum;
use flowmesh_model::compression::{Codec, Compressed, compress};
use flowmesh_proto::v1;
use prost::Message;

use crate::cli::failure::Failure;

/// `--compression`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Fast
    Lz4,
    /// Small
    Zstd,
}

impl Compression {
    fn codec(self) -> Codec {
        match self {
            Self::Lz4 => Codec::Lz4,
            Self::Zstd => Codec::Zstd,
        }
    }

    /// The records in compressed form; `None` if that saves too little.
    pub fn compress(self, records: &[v1::Record]) -> Option<v1::CompressedRecords> {
        let plain = v1::RecordBatch { records: records.to_vec(), ..Default::default() }.encode_to_vec();
        let packed = compress(&plain, self.codec())?;
        let read = Compressed::read(&packed).ok()?;
        Some(v1::CompressedRecords {
            codec: read.codec.number().into(),
            plain_bytes: u32::try_from(read.plain_bytes).ok()?,
            data: packed.slice_ref(read.data),
        })
    }
}

/// The codecs that [`unpack`] knows.
pub fn accepted() -> Vec<i32> {
    Codec::ALL.iter().map(|codec| codec.number().into()).collect()
}

/// Puts the records of a compressed batch where plain ones are.
///
/// # Errors
/// The server sent what is no batch.
pub fn unpack(batch: &mut v1::RecordBatch) -> Result<(), Failure> {
    let Some(compressed) = batch.compressed.take() else { return Ok(()) };
    let wrong = |problem: String| Failure::Io {
        action: "read a compressed batch".to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, problem),
    };
    let codec = Codec::of_number(compressed.codec);
    let codec = codec.ok_or_else(|| wrong(format!("codec {}", compressed.codec)))?;
    let plain_bytes = compressed.plain_bytes as usize;
    let plain: Bytes = Compressed { codec, plain_bytes, data: &compressed.data }
        .decode()
        .map_err(|error| wrong(error.0.to_owned()))?;
    let decoded = v1::RecordBatch::decode(plain).map_err(|error| wrong(error.to_string()))?;
    batch.records = decoded.records;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_comes_back_as_it_was() {
        let records = vec![v1::Record { value: Bytes::from(vec![b'x'; 2000]), ..Default::default() }; 3];
        for compression in [Compression::Lz4, Compression::Zstd] {
            let compressed = compression.compress(&records);
            assert!(accepted().contains(&compressed.as_ref().unwrap().codec));
            let mut batch = v1::RecordBatch { compressed, count: 3, ..Default::default() };
            unpack(&mut batch).unwrap();
            assert_eq!((&batch.records, batch.compressed), (&records, None));
        }
        let compressed = Some(v1::CompressedRecords { codec: 9, ..Default::default() });
        assert!(unpack(&mut v1::RecordBatch { compressed, ..Default::default() }).is_err());
    }
}
