//! Partitions on the command line: `STREAM`, `STREAM:3`, `STREAM:0,2,4-7`.

use flowmesh_model::limits::PARTITIONS_MAX;
use flowmesh_proto::v1;

/// Reads a stream and those of its partitions that are named; none named: all.
pub fn selection(text: &str) -> Result<v1::StreamPartitions, String> {
    let (stream, list) = text.split_once(':').map_or((text, None), |(stream, list)| (stream, Some(list)));
    let partitions = list.map(|list| list.split(',').map(range).collect::<Option<Vec<_>>>());
    let partitions = match partitions {
        None => Some(Vec::new()),
        Some(ranges) => ranges.map(|ranges| ranges.into_iter().flatten().collect()),
    };
    match partitions {
        Some(partitions) if !stream.is_empty() => {
            Ok(v1::StreamPartitions { stream: stream.to_owned(), partitions })
        }
        _ => Err("allowed: STREAM, or STREAM:PARTITIONS as in logs:0,2,4-7".to_owned()),
    }
}

fn range(text: &str) -> Option<std::ops::Range<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < PARTITIONS_MAX).then(|| first..last + 1)
}

/// Partitions as they are written: `logs:0-3 orders:7`.
pub fn selection_text(streams: &[v1::StreamPartitions]) -> String {
    let text = |some: &v1::StreamPartitions| {
        let mut partitions = some.partitions.clone();
        partitions.sort_unstable();
        let ranges: Vec<String> = partitions
            .chunk_by(|a, b| a + 1 == *b)
            .filter_map(|run| match run {
                [] => None,
                [one] => Some(one.to_string()),
                [first, .., last] => Some(format!("{first}-{last}")),
            })
            .collect();
        format!("{}:{}", super::short_name("stream", &some.stream), ranges.join(","))
    };
    let texts: Vec<String> = streams.iter().filter(|some| !some.partitions.is_empty()).map(text).collect();
    if texts.is_empty() { "-".to_owned() } else { texts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_named_one_by_one_or_in_ranges() {
        let chosen = |text| selection(text).map(|chosen| (chosen.stream, chosen.partitions));
        assert_eq!(chosen("logs"), Ok(("logs".to_owned(), vec![])));
        assert_eq!(chosen("a/b/logs:0,2,4-6"), Ok(("a/b/logs".to_owned(), vec![0, 2, 4, 5, 6])));
        for bad in ["", ":1", "logs:", "logs:x", "logs:3-1", "logs:1-", "logs:0-1024"] {
            assert!(selection(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let some = v1::StreamPartitions { stream: "logs".to_owned(), partitions: vec![5, 0, 1, 2, 7] };
        let text = selection_text(std::slice::from_ref(&some));
        assert_eq!(text, "logs:0-2,5,7");
        assert_eq!(selection(&text).unwrap().partitions, vec![0, 1, 2, 5, 7]);
        assert_eq!(selection_text(&[]), "-");
    }
}
