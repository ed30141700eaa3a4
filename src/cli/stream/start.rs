//! Where a read starts, as a word of the command line: a word, an offset, or a time.

use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use flowmesh_proto::v1::{offsets_for_request, subscribe_request};

use crate::cli::args::{duration, millis};

/// Where a read starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the first record there is.
    Earliest,
    /// At the next one to come.
    Latest,
    /// At the record with this offset.
    Offset(u64),
    /// At the first record that was appended then or later: ms since the Unix epoch.
    Time(u64),
}

/// What is allowed.
const ALLOWED: &str = "allowed: earliest, latest, an offset, a time (2026-11-21T12:00:00Z, 2026-11-21), so long ago \
                       (-1h), or @MS since the Unix epoch";

impl FromStr for StartAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || ALLOWED.to_owned();
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Some(ms) = text.strip_prefix('@') {
            return ms.parse().map(Self::Time).map_err(|_| refused());
        }
        if let Some(span) = text.strip_prefix('-') {
            let ago = duration(span).map(millis).map_err(|_| refused())?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map(millis).unwrap_or_default();
            return Ok(Self::Time(now.saturating_sub(ago)));
        }
        match text.parse() {
            Ok(offset) => Ok(Self::Offset(offset)),
            Err(_) => rfc_3339(text).map(Self::Time).ok_or_else(refused),
        }
    }
}

impl StartAt {
    /// As `Subscribe` takes it.
    pub fn subscribe(self) -> subscribe_request::Start {
        use subscribe_request::Start;
        match self {
            Self::Earliest => Start::Earliest(true),
            Self::Latest => Start::Latest(true),
            Self::Offset(offset) => Start::Offset(offset),
            Self::Time(ms) => Start::TimestampMs(ms),
        }
    }

    /// As `OffsetsFor` takes it.
    pub fn find(self) -> offsets_for_request::Start {
        use offsets_for_request::Start;
        match self {
            Self::Earliest => Start::Earliest(true),
            Self::Latest => Start::Latest(true),
            Self::Offset(offset) => Start::Offset(offset),
            Self::Time(ms) => Start::TimestampMs(ms),
        }
    }
}

/// Milliseconds since the epoch of an RFC 3339 time, or of the start of a day (UTC).
fn rfc_3339(text: &str) -> Option<u64> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let days = days_of(date)?;
    let ms = time.map_or(Some(0), ms_of_day)?;
    u64::try_from(days * 86_400_000 + ms).ok()
}

/// So many digits, and nothing else.
fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|c| c.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Days since 1970-01-01 of `YYYY-MM-DD` (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days_of(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let (year, month, day) =
        (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if parts.next().is_some() || !(1..=month_days).contains(&day) {
        return None;
    }
    let shifted = if month > 2 { year } else { year - 1 };
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let (era, year_of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}

/// Milliseconds of `HH:MM:SS[.fraction]` and its offset from UTC, which may lead into another day.
fn ms_of_day(time: &str) -> Option<i64> {
    let (clock, shift_minutes) = if let Some(clock) = time.strip_suffix(['Z', 'z']) {
        (clock, 0)
    } else {
        let (clock, shift) = time.split_at_checked(time.rfind(['+', '-'])?)?;
        let (sign, shift) = (if shift.starts_with('-') { -1 } else { 1 }, shift.get(1..)?);
        let (hours, minutes) = shift.split_once(':')?;
        let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
        if hours > 23 || minutes > 59 {
            return None;
        }
        (clock, sign * (hours * 60 + minutes))
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = clock.split(':');
    let (hours, minutes, seconds) =
        (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    // 60: a leap second.
    if parts.next().is_some() || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    let ms = digits(&format!("{:0<3}", fraction.get(..fraction.len().min(3))?), 3)?;
    digits(fraction, fraction.len())?;
    Some(((hours * 60 + minutes - shift_minutes) * 60 + seconds) * 1000 + ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::time;
    use proptest::prelude::*;

    #[test]
    fn a_start_is_a_word_an_offset_or_a_time() {
        let time = |text: &str| match text.parse() {
            Ok(StartAt::Time(ms)) => ms,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!("earliest".parse(), Ok(StartAt::Earliest));
        assert_eq!("latest".parse(), Ok(StartAt::Latest));
        assert_eq!("17".parse(), Ok(StartAt::Offset(17)));
        assert_eq!(time("@1700000000123"), 1_700_000_000_123);
        assert_eq!(time("1970-01-01T00:00:00Z"), 0);
        assert_eq!(time("2023-11-14T22:13:20.123456Z"), 1_700_000_000_123);
        assert_eq!(time("2023-11-15T00:13:20.1+02:00"), 1_700_000_000_100);
        assert_eq!(time("2023-11-14 17:13:20-05:00"), 1_700_000_000_000);
        assert_eq!(time("2024-02-29"), 1_709_164_800_000);
        let hour_ago = millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap()) - 3_600_000;
        assert!(time("-1h").abs_diff(hour_ago) < 60_000);
    }

    #[test]
    fn what_is_no_start_is_refused() {
        for text in [
            "first",
            "-",
            "-1 fortnight",
            "@",
            "@x",
            "2023-02-29",
            "2023-13-01",
            "2023-00-01",
            "2023-1-01",
            "2023-11-14T24:00:00Z",
            "2023-11-14T22:13:20",
            "2023-11-14T22:13Z",
            "2023-11-14T22:13:20.Z",
            "2023-11-14T22:13:20.xZ",
            "2023-11-14T22:13:20+25:00",
            "1960-01-01",
            "",
            "é-01-01",
        ] {
            let refused = text.parse::<StartAt>();
            assert!(
                refused.as_ref().is_err_and(|why| why.contains("allowed: earliest")),
                "{text}: {refused:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_time_that_is_written_is_read_back(ms in 0u64..253_402_300_800_000) {
            prop_assert_eq!(time(ms).parse::<StartAt>(), Ok(StartAt::Time(ms)));
        }

        #[test]
        fn noise_never_panics(noise: String) {
            let _ = noise.parse::<StartAt>();
        }
    }
}
