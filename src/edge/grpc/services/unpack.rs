//! Compressed batches on their way out: as they rest to a consumer that knows the codec, decoded to all others.

use flowmesh_model::Reject;
use flowmesh_model::codec::Malformed;
use flowmesh_model::compression::{Codec, Codecs, codec_of, is_compressed};
use flowmesh_model::record::{prefix_len, records_within};
use flowmesh_model::reply::{RecordRun, RecordRuns};

/// The codecs that a request names.
///
/// # Errors
/// A number that is none.
pub fn read_codecs(numbers: &[i32]) -> Result<Codecs, Reject> {
    numbers.iter().try_fold(Codecs::default(), |codecs, &number| {
        let unknown = || {
            Reject::invalid(
                "accept_compression",
                format!("{number} is no codec; there are 1 (LZ4) and 2 (ZSTD)"),
            )
        };
        Codec::of_number(number).map(|codec| codecs.with(codec)).ok_or_else(unknown)
    })
}

/// The same records, with every batch decoded that the consumer cannot decode. Decoding stops before more than
/// `bytes_max` packed bytes, as a read of plain ones would have, except for the first record, which always comes.
///
/// # Errors
/// A batch that cannot be decoded; all were when they were appended.
pub fn readable(records: RecordRuns, accepts: Codecs, bytes_max: usize) -> Result<RecordRuns, Reject> {
    let is_accepted = |run: &RecordRun| codec_of(&run.records).is_some_and(|codec| accepts.has(codec));
    let needs_decoding = |run: &RecordRun| is_compressed(&run.records) && !is_accepted(run);
    if !records.runs.iter().any(needs_decoding) {
        return Ok(records);
    }
    let (mut runs, mut bytes_left) = (Vec::with_capacity(records.runs.len()), bytes_max);
    let (count, mut next) = (records.runs.len(), records.next);
    for run in records.runs {
        if bytes_left == 0 && !runs.is_empty() {
            next = run.base;
            break;
        }
        let run = if needs_decoding(&run) { run.plain().map_err(undecodable)? } else { run };
        let end = run.base.plus(run.count.into());
        let run = cut(run, bytes_left, runs.is_empty());
        bytes_left = bytes_left.saturating_sub(run.records.len());
        let run_end = run.base.plus(run.count.into());
        if run.count > 0 {
            runs.push(run);
        }
        if run_end < end {
            next = run_end;
            break;
        }
    }
    debug_assert!(!runs.is_empty() || count == 0, "the first record always comes");
    Ok(RecordRuns { runs, next, ..records })
}

fn undecodable(error: Malformed) -> Reject {
    tracing::error!(reason = error.0, "a batch that was checked when it was appended cannot be decoded");
    Reject::Internal("a compressed batch cannot be decoded")
}

/// As many records as fit into `bytes_max`, at least one if `first`. A compressed run is not cut.
fn cut(run: RecordRun, bytes_max: usize, first: bool) -> RecordRun {
    if run.records.len() <= bytes_max || codec_of(&run.records).is_some() {
        return run;
    }
    let (mut count, mut len) = records_within(&run.records, bytes_max);
    if count == 0 && first {
        (count, len) = (1, prefix_len(&run.records, 1));
    }
    RecordRun { count, records: run.records.slice(..len), ..run }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use flowmesh_model::compression::compress;
    use flowmesh_model::record::{RecordPacker, RecordSlices, RecordView};
    use flowmesh_model::{Millis, Offset};

    const RECORDS: u32 = 100;

    fn plain_run(base: u64) -> RecordRun {
        let mut packer = RecordPacker::default();
        for _ in 0..RECORDS {
            packer.push(&RecordView { value: &[7; 100], ..Default::default() });
        }
        let records = packer.finish();
        RecordRun { base: Offset(base), count: RECORDS, appended_at: Millis(1), records }
    }

    fn packed_run(base: u64, codec: Codec) -> RecordRun {
        let run = plain_run(base);
        RecordRun { records: compress(&run.records, codec).unwrap(), ..run }
    }

    fn runs(runs: Vec<RecordRun>) -> RecordRuns {
        let next = runs.last().map_or(Offset(0), |run| run.base.plus(run.count.into()));
        RecordRuns { runs, next, earliest: Offset(0), high_watermark: Offset(1000) }
    }

    #[test]
    fn who_knows_the_codec_gets_batches_as_they_rest() {
        let all = runs(vec![packed_run(0, Codec::Lz4), plain_run(100), packed_run(200, Codec::Zstd)]);
        let both = Codecs::default().with(Codec::Lz4).with(Codec::Zstd);
        assert_eq!(readable(all.clone(), both, 1), Ok(all.clone()));
        let one = readable(all.clone(), Codecs::default().with(Codec::Zstd), usize::MAX).unwrap();
        assert_eq!(one, runs(vec![plain_run(0), plain_run(100), all.runs[2].clone()]));
        let none = readable(all, Codecs::default(), usize::MAX).unwrap();
        assert_eq!(none, runs(vec![plain_run(0), plain_run(100), plain_run(200)]));
    }

    #[test]
    fn what_grows_beyond_the_limit_comes_with_the_next_read() {
        let all = runs(vec![packed_run(0, Codec::Lz4), packed_run(100, Codec::Lz4)]);
        let each = plain_run(0).records.len() / RECORDS as usize;
        for (bytes_max, records) in
            [(1, 1), (each * 10 + 1, 10), (each * 100, 100), (each * 150, 150), (each * 200, 200)]
        {
            let read = readable(all.clone(), Codecs::default(), bytes_max).unwrap();
            assert_eq!(read.next, Offset(records), "{bytes_max}");
            assert_eq!(read.runs.iter().map(|run| u64::from(run.count)).sum::<u64>(), records);
            let bytes: Vec<u8> = read.runs.iter().flat_map(|run| run.records.to_vec()).collect();
            assert_eq!(RecordSlices::new(&bytes).flatten().count() as u64, records);
        }
    }

    #[test]
    fn a_codec_that_is_none_is_refused() {
        assert!(read_codecs(&[1, 2, 1]).unwrap().has(Codec::Zstd));
        for number in [0, 3, -1] {
            assert!(matches!(
                read_codecs(&[number]),
                Err(Reject::InvalidArgument { field: "accept_compression", .. })
            ));
        }
        let broken = RecordRun { records: Bytes::from_static(&[0x42, 2, 8, 9]), ..plain_run(0) };
        assert!(readable(runs(vec![broken]), Codecs::default(), 10).is_err());
    }
}
