//! What a replay session replays: fixed when it is created, and kept in the catalog.

use serde::{Deserialize, Serialize};

use super::Speed;
use crate::filter::{Condition, RecordFilter};
use crate::ids::{Offset, ResourceId};
use crate::limits;
use crate::path::{Kind, ResourcePath};
use crate::reject::Reject;
use crate::settings::{Durability, within};

/// A part of one partition: `from..until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayRange {
    /// Which.
    pub partition: u32,
    /// The first record.
    pub from: Offset,
    /// The record behind the last one; without, the session follows the stream and never completes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Offset>,
}

/// Settings of a replay session. Starts and ends that were given as times have become offsets when it was created.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplaySettings {
    /// The stream.
    pub stream: ResourceId,
    /// The full path of its sandbox.
    pub group: String,
    /// What is replayed, in order of partitions.
    pub partitions: Vec<ReplayRange>,
    /// How fast it begins.
    pub speed: Speed,
    /// Only these records; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<Condition>,
    /// Overrides the server's durability, for its progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub durability: Option<Durability>,
}

impl ReplaySettings {
    /// The path of its sandbox.
    ///
    /// # Errors
    /// As [`ResourcePath::parse`].
    pub fn group_path(&self) -> Result<ResourcePath, Reject> {
        ResourcePath::parse(Kind::Group, &self.group)
    }

    /// What is replayed of a partition, if it is.
    #[must_use]
    pub fn range(&self, partition: u32) -> Option<ReplayRange> {
        let place = self.partitions.binary_search_by_key(&partition, |range| range.partition);
        place.ok().and_then(|place| self.partitions.get(place)).copied()
    }

    /// Checks every value against its limits.
    ///
    /// # Errors
    /// [`Reject::InvalidArgument`], [`Reject::TooLarge`], [`Reject::IllegalFilter`].
    pub fn validate(&self) -> Result<(), Reject> {
        self.group_path()?;
        let (size, max) = (self.partitions.len() as u64, limits::GROUP_PARTITIONS_MAX as u64);
        if size > max {
            return Err(Reject::TooLarge { what: "partitions", size, max });
        }
        if self.partitions.is_empty() {
            return Err(Reject::invalid("partitions", "is empty; at least 1 is needed"));
        }
        if !self.partitions.is_sorted_by(|a, b| a.partition < b.partition) {
            return Err(Reject::invalid("partitions", "are not in order, or have one twice"));
        }
        for ReplayRange { partition, from, until } in &self.partitions {
            if until.is_some_and(|until| until < *from) {
                return Err(Reject::invalid(
                    "end",
                    format!("lies before the start in partition {partition}, which is {from}"),
                ));
            }
        }
        within("speed", self.speed.0, 0, limits::REPLAY_SPEED_MAX)?;
        RecordFilter::new(self.filter.iter().cloned()).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use bytes::Bytes;

    fn settings() -> ReplaySettings {
        let conditions = [
            Condition::KeyEquals(Bytes::from_static(b"k\xFF")),
            Condition::KeyPrefix(Bytes::new()),
            Condition::HeaderEquals { name: Bytes::from_static(b"n"), value: Bytes::from_static(b"v") },
            Condition::HeaderExists { name: Bytes::from_static(b"n") },
            Condition::JsonEquals { path: "$.a".to_owned(), value: "1".to_owned() },
        ];
        let range = |partition, until| ReplayRange { partition, from: Offset(4), until };
        ReplaySettings {
            stream: ResourceId(7),
            group: "default/default/group/replay.r".to_owned(),
            partitions: vec![range(0, Some(Offset(9))), range(3, None)],
            speed: Speed::REAL_TIME,
            filter: conditions.to_vec(),
            durability: None,
        }
    }

    #[test]
    fn the_form_on_disk_never_changes() {
        let json = concat!(
            r#"{"kind":"replay","stream":7,"group":"default/default/group/replay.r","partitions":"#,
            r#"[{"partition":0,"from":4,"until":9},{"partition":3,"from":4}],"speed":1000,"filter":"#,
            r#"[{"key_equals":"6bff"},{"key_prefix":""},{"header_equals":{"name":"6e","value":"76"}},"#,
            r#"{"header_exists":{"name":"6e"}},{"json_equals":{"path":"$.a","value":"1"}}]}"#
        );
        let settings = Settings::Replay(settings());
        assert_eq!(serde_json::to_string(&settings).unwrap(), json);
        assert_eq!(serde_json::from_str::<Settings>(json).unwrap(), settings);
        for bad in [r#""6bf""#, r#""6bxx""#] {
            assert!(serde_json::from_str::<Settings>(&json.replace(r#""6bff""#, bad)).is_err());
        }
    }

    #[test]
    fn what_cannot_be_replayed_is_refused() {
        assert_eq!(settings().validate(), Ok(()));
        let refused = |change: fn(&mut ReplaySettings)| {
            let mut settings = settings();
            change(&mut settings);
            settings.validate().unwrap_err().reason()
        };
        assert_eq!(refused(|s| s.partitions.clear()), "INVALID_ARGUMENT");
        assert_eq!(refused(|s| s.partitions.reverse()), "INVALID_ARGUMENT");
        assert_eq!(refused(|s| s.partitions.truncate(0)), "INVALID_ARGUMENT");
        assert_eq!(refused(|s| s.partitions[0].until = Some(Offset(3))), "INVALID_ARGUMENT");
        assert_eq!(refused(|s| s.speed = Speed(limits::REPLAY_SPEED_MAX + 1)), "INVALID_ARGUMENT");
        assert_eq!(refused(|s| s.group = "default/default/stream/g".to_owned()), "WRONG_KIND");
        assert_eq!(refused(|s| s.filter = vec![s.filter[0].clone(); 1000]), "ILLEGAL_FILTER");
        let range = ReplayRange { partition: 0, from: Offset(0), until: None };
        let mut many = settings();
        many.partitions = (0..=limits::GROUP_PARTITIONS_MAX as u32)
            .map(|partition| ReplayRange { partition, ..range })
            .collect();
        assert_eq!(many.validate().unwrap_err().reason(), "TOO_LARGE");
        many.partitions.pop();
        assert_eq!(many.validate(), Ok(()));
    }
}
