//! When the times of a cron expression come.
//!
//! Pure: the rules of time zones are part of the program, and no clock is read. Where the clocks of a zone are set
//! forward or back, an expression whose second, minute and hour are single values fires once: after the gap if its time
//! falls into one, the first time if it comes twice. Any other fires whenever the clocks show what it says.

use std::sync::LazyLock;

use croner::errors::CronError;
use croner::parser::{CronParser, Year};
use flowmesh_model::limits::{CRON_BYTES_MAX, CRON_YEARS_MAX};
use flowmesh_model::{Millis, Reject};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, Zoned};

use crate::limit::size;

/// Each field, and what may stand in it besides `*`, lists, ranges and steps.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of month", "1 to 31, L, W, ?"),
    ("month", "1 to 12, JAN to DEC"),
    ("day of week", "0 to 7, SUN to SAT, L, #, ?, + before it"),
];

const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * SUN"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The time zone of that name.
pub(super) fn zone(name: &str) -> Result<TimeZone, Reject> {
    ZONES.get(name).map_err(|_| Reject::UnknownTimeZone { name: name.to_owned() })
}

/// A cron expression in a time zone.
pub(super) struct Cron {
    cron: croner::Cron,
    zone: TimeZone,
}

impl Cron {
    /// Of an expression and a zone. `from` is the earliest time that matters: times are looked for up to
    /// [`CRON_YEARS_MAX`] years later.
    pub fn new(expression: &str, time_zone: &str, from: Millis) -> Result<Self, Reject> {
        size("cron", expression.as_bytes(), CRON_BYTES_MAX)?;
        let fields = fields(expression)?;
        let zone = zone(time_zone)?;
        let year = zoned(from, &zone).map_or(i64::from(croner::YEAR_UPPER_LIMIT), |at| i64::from(at.year()));
        let last = (year + CRON_YEARS_MAX).min(croner::YEAR_UPPER_LIMIT.into());
        let cron = parse(&fields, &format!("{year}-{last}")).map_err(|error| fault(&fields, &error))?;
        Ok(Self { cron, zone })
    }

    /// The first time later than `at`.
    pub fn after(&self, at: Millis) -> Option<Millis> {
        let next = self.cron.find_next_occurrence(&zoned(at, &self.zone)?, false).ok()?;
        millis(&next).filter(|next| *next > at)
    }

    /// The last time not later than `at`.
    pub fn last(&self, at: Millis) -> Option<Millis> {
        let second = Millis(at.0 - at.0 % 1_000);
        millis(&self.cron.find_previous_occurrence(&zoned(second, &self.zone)?, true).ok()?)
    }
}

fn zoned(at: Millis, zone: &TimeZone) -> Option<Zoned> {
    Some(Timestamp::from_millisecond(at.0.try_into().ok()?).ok()?.to_zoned(zone.clone()))
}

fn millis(at: &Zoned) -> Option<Millis> {
    at.timestamp().as_millisecond().try_into().ok().map(Millis)
}

/// A field of an expression: which, at which byte, its text.
type Field<'a> = (usize, usize, &'a str);

fn fields(expression: &str) -> Result<Vec<Field<'_>>, Reject> {
    let nickname = NICKNAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(expression.trim()));
    let expression = nickname.map_or(expression, |(_, meaning)| meaning);
    let words: Vec<&str> = expression.split_ascii_whitespace().collect();
    if !matches!(words.len(), 5 | 6) {
        return Err(Reject::IllegalCron {
            part: "expression",
            at: 0,
            problem: format!(
                "has {} fields; allowed: 5 (minute, hour, day of month, month, day of week), or 6 with the second \
                 first, or @yearly, @monthly, @weekly, @daily, @hourly",
                words.len()
            ),
        });
    }
    let first = FIELDS.len() - words.len();
    // A word is a part of the expression: its place in memory is its place in there.
    let place = |word: &str| word.as_ptr() as usize - expression.as_ptr() as usize;
    Ok(words.into_iter().enumerate().map(|(n, word)| (first + n, place(word), word)).collect())
}

fn parse(fields: &[Field<'_>], years: &str) -> Result<croner::Cron, CronError> {
    let mut text = String::from(if fields.len() == FIELDS.len() { "" } else { "0 " });
    for (_, _, field) in fields {
        text.push_str(field);
        text.push(' ');
    }
    text.push_str(years);
    CronParser::builder().year(Year::Required).build().parse(&text)
}

/// What is wrong: the first field that is no field by itself.
fn fault(fields: &[Field<'_>], error: &CronError) -> Reject {
    let alone = |field: &Field<'_>| {
        let any = |&(number, at, text)| (number, at, if number == field.0 { text } else { "*" });
        parse(&fields.iter().map(any).collect::<Vec<_>>(), "*").err()
    };
    let wrong = fields.iter().find_map(|field| Some((field, alone(field)?)));
    match wrong.and_then(|(field, error)| Some((field, FIELDS.get(field.0)?, error))) {
        Some((&(_, at, text), &(part, allowed), error)) => Reject::IllegalCron {
            part,
            at: at as u64,
            problem: format!("`{text}`: {}; allowed: {allowed}", words(&error)),
        },
        None => Reject::IllegalCron { part: "expression", at: 0, problem: words(error) },
    }
}

fn words(error: &CronError) -> String {
    let words = match error {
        CronError::IllegalCharacters(_) => "has an illegal character",
        CronError::InvalidPattern(words) | CronError::ComponentError(words) => words,
        CronError::EmptyPattern
        | CronError::InvalidDate
        | CronError::InvalidTime
        | CronError::TimeSearchLimitExceeded => "cannot be read",
    };
    words.trim_end_matches('.').to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> Millis {
        Millis(text.parse::<Timestamp>().unwrap().as_millisecond().try_into().unwrap())
    }

    /// The times after `from`, as the clocks of the zone show them.
    fn times(expression: &str, zone_name: &str, from: &str, count: usize) -> Vec<String> {
        let from = ms(from);
        let cron = Cron::new(expression, zone_name, from).unwrap();
        let times = std::iter::successors(cron.after(from), |at| cron.after(*at)).take(count);
        times.map(|at| zoned(at, &cron.zone).unwrap().strftime("%a %d %b %H:%M:%S %:z").to_string()).collect()
    }

    #[test]
    fn expressions_mean_what_they_do_elsewhere() {
        for (expression, first) in [
            ("*/15 * * * *", "Sat 21 Nov 12:15:00 +00:00"),
            ("30 6 * * MON-FRI", "Mon 23 Nov 06:30:00 +00:00"),
            ("30 6 * * 7", "Sun 22 Nov 06:30:00 +00:00"),
            ("0 0 L * *", "Mon 30 Nov 00:00:00 +00:00"),
            ("0 0 * * FRI#L", "Fri 27 Nov 00:00:00 +00:00"),
            ("0 0 * * 5#2", "Fri 11 Dec 00:00:00 +00:00"),
            ("0 0 13 * FRI", "Fri 27 Nov 00:00:00 +00:00"),
            ("0 0 13 * +FRI", "Fri 13 Aug 00:00:00 +00:00"),
            ("*/10 * * * * *", "Sat 21 Nov 12:00:10 +00:00"),
            ("0 0 29 FEB ?", "Tue 29 Feb 00:00:00 +00:00"),
            ("@hourly", "Sat 21 Nov 13:00:00 +00:00"),
            ("@Daily", "Sun 22 Nov 00:00:00 +00:00"),
            ("@yearly", "Fri 01 Jan 00:00:00 +00:00"),
        ] {
            assert_eq!(times(expression, "UTC", "2026-11-21T12:00:00Z", 1), [first], "{expression}");
        }
    }

    #[test]
    fn a_time_in_a_gap_comes_after_it_and_one_that_comes_twice_fires_once() {
        let spring = "2026-03-28T12:00:00Z";
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", spring, 2),
            ["Sun 29 Mar 03:00:00 +02:00", "Mon 30 Mar 02:30:00 +02:00"]
        );
        assert_eq!(
            times("30 2,3 * * *", "Europe/Berlin", spring, 2),
            ["Sun 29 Mar 03:30:00 +02:00", "Mon 30 Mar 02:30:00 +02:00"]
        );
        let autumn = "2026-10-24T23:30:00Z";
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", autumn, 2),
            ["Sun 25 Oct 02:30:00 +02:00", "Mon 26 Oct 02:30:00 +01:00"]
        );
        assert_eq!(
            times("*/30 2 * * *", "Europe/Berlin", autumn, 4),
            [
                "Sun 25 Oct 02:00:00 +02:00",
                "Sun 25 Oct 02:30:00 +02:00",
                "Sun 25 Oct 02:00:00 +01:00",
                "Sun 25 Oct 02:30:00 +01:00"
            ]
        );
    }

    #[test]
    fn looking_back_finds_what_looking_ahead_found() {
        let (from, until) = (ms("2026-01-01T00:00:00Z"), ms("2027-01-01T00:00:00Z"));
        for zone in [
            "Europe/Berlin",
            "America/New_York",
            "Australia/Lord_Howe",
            "Africa/Casablanca",
            "America/Havana",
            "Atlantic/Azores",
            "Africa/Cairo",
            "America/Santiago",
            "Antarctica/Troll",
            "Asia/Tehran",
            "UTC",
        ] {
            for expression in [
                "30 2 * * *",
                "0 0 * * *",
                "0 */2 * * *",
                "30 1,2,3 * * *",
                "*/20 0-3 * * *",
                "0 0 L * *",
                "15 1 * * SUN",
            ] {
                let cron = Cron::new(expression, zone, from).unwrap();
                let mut at = cron.after(from).unwrap();
                while let Some(next) = cron.after(at).filter(|next| *next < until) {
                    assert!(next > at);
                    for looked in [at, at.plus(1), Millis(u64::midpoint(at.0, next.0)), Millis(next.0 - 1)] {
                        assert_eq!(cron.last(looked), Some(at), "{expression} in {zone} before {looked}");
                        let after = cron.after(looked);
                        assert_eq!(after, Some(next), "{expression} in {zone} after {looked}");
                    }
                    at = next;
                }
            }
        }
    }

    #[test]
    fn what_is_illegal_is_refused_with_the_place_and_what_is_allowed() {
        let refused = |expression: &str| match Cron::new(expression, "UTC", Millis(0)).err() {
            Some(Reject::IllegalCron { part, at, problem }) => (part, at, problem),
            other => panic!("{expression}: {other:?}"),
        };
        for (expression, part, at) in [
            ("60 * * * *", "minute", 0),
            ("*  24 * * *", "hour", 3),
            ("* * 0 * *", "day of month", 4),
            ("* * * FOO *", "month", 6),
            ("* * * * 8", "day of week", 8),
            ("* * * * 1#6", "day of week", 8),
            ("61 * * * * *", "second", 0),
            ("*/0 * * * *", "minute", 0),
            ("5-1 * * * *", "minute", 0),
            ("1,x * * * *", "minute", 0),
            ("\u{fc} * * * *", "minute", 0),
            ("", "expression", 0),
            ("* * * *", "expression", 0),
            ("* * * * * * *", "expression", 0),
            ("@reboot", "expression", 0),
        ] {
            let (where_, byte, problem) = refused(expression);
            assert_eq!((where_, byte), (part, at), "{expression}: {problem}");
            assert!(problem.contains("allowed: "), "{problem}");
        }
        assert_eq!(refused("* 24 * * *").2, "`24`: number out of bounds; allowed: 0 to 23");
        let long = "1,".repeat(200);
        assert!(matches!(Cron::new(&long, "UTC", Millis(0)), Err(Reject::TooLarge { what: "cron", .. })));
        let unknown = Cron::new("@daily", "Europe/Atlantis", Millis(0)).err();
        assert_eq!(unknown, Some(Reject::UnknownTimeZone { name: "Europe/Atlantis".into() }));
    }

    #[test]
    fn what_never_comes_is_found_out_soon() {
        for never in ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *"] {
            let cron = Cron::new(never, "Europe/Berlin", ms("2026-11-21T12:00:00Z")).unwrap();
            assert_eq!(cron.after(ms("2026-11-21T12:00:00Z")), None);
        }
        assert!(Cron::new("@daily", "UTC", Millis(u64::MAX)).unwrap().after(Millis(u64::MAX)).is_none());
    }
}
