//! Names in `streams`, and which files of a directory count.
//!
//! | name | what |
//! |---|---|
//! | `<resource>-<partition>` | the directory of a partition |
//! | `<base>.seg` | records from offset `base` on, without a gap |
//! | `<base>-<end>.seg` | compacted: what is left of `base..end` |
//! | `compaction.tmp` | a compacted file that is being written, or was when the server stopped |
//!
//! Offsets have 20 digits. A compacted file replaces all others within its range; those that are still there are stale:
//! the server stopped before it removed them.

use std::path::Path;

use super::sorted::Sorted;
use flowmesh_model::{Offset, PartitionRef, ResourceId};

/// The one file of a partition that is being compacted.
pub(super) const UNFINISHED: &str = "compaction.tmp";

/// Files by their first offset; compacted ones with where they end.
pub(super) type Files = Sorted<Offset, Option<Offset>>;

/// The name of a file that starts at `base`, and, if it is compacted, ends at `end`.
pub(super) fn file_name(base: Offset, end: Option<Offset>) -> String {
    match end {
        None => format!("{:020}.seg", base.0),
        Some(end) => format!("{:020}-{:020}.seg", base.0, end.0),
    }
}

fn parse_offset(digits: &str) -> Option<Offset> {
    let is_one = digits.len() == 20 && digits.bytes().all(|c| c.is_ascii_digit());
    is_one.then(|| digits.parse().ok().map(Offset))?
}

fn parse_file_name(name: &Path) -> Option<(Offset, Option<Offset>)> {
    let stem = name.to_str()?.strip_suffix(".seg")?;
    match stem.split_once('-') {
        None => Some((parse_offset(stem)?, None)),
        Some((base, end)) => {
            let (base, end) = (parse_offset(base)?, parse_offset(end)?);
            (base < end).then_some((base, Some(end)))
        }
    }
}

/// Which files of a directory count, and the names of those that a compacted one replaces.
pub(super) fn sort_out<P: AsRef<Path>>(names: &[P]) -> (Files, Vec<String>) {
    let mut found: Vec<_> = names.iter().filter_map(|name| parse_file_name(name.as_ref())).collect();
    // What reaches further comes first: it replaces what starts in the same place.
    found.sort_unstable_by_key(|&(base, end)| (base, std::cmp::Reverse(end)));
    let (mut files, mut stale, mut covered) = (Files::new(), Vec::new(), Offset(0));
    for (base, end) in found {
        if base < covered {
            stale.push(file_name(base, end));
        } else {
            files.insert(base, end);
            covered = end.unwrap_or(covered);
        }
    }
    (files, stale)
}

pub(super) fn dir_name(at: PartitionRef) -> String {
    format!("{}-{}", at.resource, at.partition)
}

pub(super) fn parse_dir_name(name: &Path) -> Option<PartitionRef> {
    let (resource, partition) = name.to_str()?.split_once('-')?;
    let at =
        PartitionRef { resource: ResourceId(resource.parse().ok()?), partition: partition.parse().ok()? };
    (Path::new(&dir_name(at)) == name).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let at = PartitionRef { resource: ResourceId(12), partition: 3 };
        assert_eq!(parse_dir_name(Path::new("12-3")), Some(at));
        assert_eq!(parse_dir_name(Path::new(&dir_name(at))), Some(at));
        for other in ["012-3", "12", "12-", "a-b", "12-3-4", "+1-2"] {
            assert_eq!(parse_dir_name(Path::new(other)), None, "{other}");
        }
        for (base, end) in [(Offset(7), None), (Offset(7), Some(Offset(9)))] {
            assert_eq!(parse_file_name(Path::new(&file_name(base, end))), Some((base, end)));
        }
        let empty = file_name(Offset(7), Some(Offset(7)));
        for other in ["7.seg", "00000000000000000007.log", "x", "7-9.seg", UNFINISHED, &empty] {
            assert_eq!(parse_file_name(Path::new(other)), None, "{other}");
        }
    }

    /// A file by its first letter: where it starts, and where it ends if it is compacted.
    fn name((base, end): (u64, u64)) -> String {
        file_name(Offset(base), (end > 0).then_some(Offset(end)))
    }

    /// What there is, and which of it counts.
    type Row = (&'static str, &'static [(u64, u64)], &'static [(u64, u64)]);

    #[test]
    fn a_compacted_file_replaces_all_within_its_range() {
        let rows: [Row; 8] = [
            ("no compaction", &[(0, 0), (40, 0), (97, 0)], &[(0, 0), (40, 0), (97, 0)]),
            ("all is removed", &[(0, 97), (97, 0)], &[(0, 97), (97, 0)]),
            ("nothing is removed yet", &[(0, 0), (0, 97), (40, 0), (97, 0)], &[(0, 97), (97, 0)]),
            ("some is removed", &[(0, 97), (40, 0), (97, 0)], &[(0, 97), (97, 0)]),
            ("one of one", &[(0, 0), (0, 40), (40, 0)], &[(0, 40), (40, 0)]),
            ("again, with more", &[(0, 40), (0, 97), (40, 97), (97, 0)], &[(0, 97), (97, 0)]),
            ("the first is trimmed", &[(40, 0), (40, 97), (60, 0), (97, 130)], &[(40, 97), (97, 130)]),
            ("a removed one is back", &[(0, 97), (20, 40), (60, 80)], &[(0, 97)]),
        ];
        for (what, there, expected) in rows {
            let names: Vec<String> = there.iter().copied().map(name).chain([UNFINISHED.to_owned()]).collect();
            let (files, stale) = sort_out(&names);
            let found: Vec<_> =
                files.iter().map(|(base, end)| (base.0, end.map_or(0, |end| end.0))).collect();
            assert_eq!(found, expected, "{what}");
            assert_eq!(stale.len(), there.len() - expected.len(), "{what}");
            let expected: Vec<String> = expected.iter().copied().map(name).collect();
            assert!(stale.iter().all(|stale| names.contains(stale) && !expected.contains(stale)), "{what}");
        }
    }
}
