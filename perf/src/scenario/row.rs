//! One row of the results: what was measured, against what, and whether that is enough.

use serde::Serialize;

use crate::load::LoadResult;
use crate::report::{micros, short};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Calls a second.
    CallsPerS,
    /// Records a second.
    RecordsPerS,
    /// Jobs a second.
    JobsPerS,
    /// Keys a second.
    KeysPerS,
    /// Facts a second.
    FactsPerS,
    /// 10⁶ bytes a second.
    MegabytesPerS,
    /// Microseconds.
    Microseconds,
    /// Bytes.
    Bytes,
    /// 2²⁰ bytes.
    Mebibytes,
    /// Hundredths of a core.
    CorePercent,
}

impl Unit {
    /// A figure in words.
    pub fn text(self, figure: f64) -> String {
        match self {
            Self::CallsPerS => format!("{} calls/s", short(figure)),
            Self::RecordsPerS => format!("{} records/s", short(figure)),
            Self::JobsPerS => format!("{} jobs/s", short(figure)),
            Self::KeysPerS => format!("{} keys/s", short(figure)),
            Self::FactsPerS => format!("{} facts/s", short(figure)),
            Self::MegabytesPerS => format!("{} MB/s", short(figure)),
            Self::Microseconds => micros(figure),
            Self::Bytes => format!("{figure:.1} bytes"),
            Self::Mebibytes => format!("{figure:.1} MiB"),
            Self::CorePercent => format!("{figure:.2} % of a core"),
        }
    }
}

/// Whether a target was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was.
    Met,
    /// It was not.
    Missed,
    /// It was, but calls failed or answers were wrong, so it does not count.
    Wrong,
    /// It could not be measured.
    Failed,
    /// There is no target; for information.
    Noted,
}

impl Verdict {
    /// The word in tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Wrong => "WRONG",
            Self::Failed => "FAILED",
            Self::Noted => "-",
        }
    }
}

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At least so much of the bare limit.
    ShareAtLeast(f64),
    /// At most so many times the bare limit.
    TimesAtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// At most `times` × the bare limit + `plus`.
    TimesPlusAtMost {
        /// See above.
        times: f64,
        /// See above, in the row's unit.
        plus: f64,
    },
    /// Anything.
    None,
}

/// One round: the limit, if there is one to measure, and the server.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// The machine's limit.
    pub bare: Option<f64>,
    /// The server.
    pub measured: f64,
}

/// A row of the results.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The scenario's name.
    pub scenario: String,
    /// What was measured.
    pub what: String,
    /// What it must be, in words.
    pub target: String,
    /// What the figures count.
    pub unit: Unit,
    /// The server's median.
    pub measured: f64,
    /// What the bare limit is.
    pub bare_what: String,
    /// The limit's median.
    pub bare: Option<f64>,
    /// The median of the rounds' ratios.
    pub ratio: Option<f64>,
    /// Whether it is enough.
    pub verdict: Verdict,
    /// Every round.
    pub rounds: Vec<Round>,
    /// What else is to be said.
    pub note: String,
    /// Every run of load, in order.
    pub loads: Vec<LoadResult>,
}

impl Row {
    /// A row from its rounds.
    pub fn new(what: impl Into<String>, unit: Unit, goal: Goal, bare_what: &str, rounds: Vec<Round>) -> Self {
        let measured = median(rounds.iter().map(|round| round.measured));
        let bare = !rounds.is_empty() && rounds.iter().all(|round| round.bare.is_some());
        let bare = bare.then(|| median(rounds.iter().filter_map(|round| round.bare)));
        let ratio = bare.map(|_| {
            median(
                rounds
                    .iter()
                    .filter_map(|round| Some(round.measured / round.bare.filter(|bare| *bare > 0.0)?)),
            )
        });
        Self {
            scenario: String::new(),
            what: what.into(),
            target: goal.text(unit, bare_what),
            unit,
            measured,
            bare_what: bare_what.to_owned(),
            bare,
            ratio,
            verdict: goal.verdict(measured, bare, ratio),
            rounds,
            note: String::new(),
            loads: Vec::new(),
        }
    }

    /// A row that could not be measured.
    pub fn failed(what: &str, why: &str) -> Self {
        let row = Self::new(what, Unit::CallsPerS, Goal::None, "", Vec::new());
        Self { verdict: Verdict::Failed, note: why.to_owned(), ..row }
    }

    /// With the runs behind it. Failed calls or wrong answers spoil the verdict.
    #[must_use]
    pub fn with_loads(mut self, loads: Vec<LoadResult>) -> Self {
        let errors: u64 = loads.iter().map(|load| load.errors).sum();
        if errors > 0 {
            self.verdict = Verdict::Wrong;
            let what: Vec<&str> = loads
                .iter()
                .flat_map(|load| &load.ops)
                .flat_map(|op| op.errors.keys().map(String::as_str))
                .take(3)
                .collect();
            self = self.with_note(&format!("{errors} errors: {}", what.join("; ")));
        }
        if let Some(server) = loads.iter().rev().find_map(|load| load.server.as_ref()) {
            let busy = loads.last().and_then(|load| load.client_busy.first()).copied().unwrap_or(0.0);
            self = self.with_note(&format!(
                "server {:.2} µs of all threads, {:.2} µs of its core a call; generator {:.0} % busy",
                server.us_per_call,
                server.busiest_us_per_call,
                busy * 100.0
            ));
        }
        self.loads = loads;
        self
    }

    /// With more to say.
    #[must_use]
    pub fn with_note(mut self, note: &str) -> Self {
        if !self.note.is_empty() {
            self.note.push_str("; ");
        }
        self.note.push_str(note);
        self
    }

    /// The row in a line.
    pub fn line(&self) -> String {
        let ratio = self.ratio.map_or(String::new(), |ratio| format!(" = {ratio:.2} × {}", self.bare_what));
        let (what, note) = (&self.what, &self.note);
        match self.verdict {
            Verdict::Failed => format!("{what}: FAILED: {note}"),
            verdict => format!(
                "{what}: {}{ratio}, {} ({})",
                self.unit.text(self.measured),
                verdict.word(),
                self.target
            ),
        }
    }
}

impl Goal {
    fn verdict(self, measured: f64, bare: Option<f64>, ratio: Option<f64>) -> Verdict {
        let met = match self {
            Self::ShareAtLeast(share) => ratio.is_some_and(|ratio| ratio >= share),
            Self::TimesAtMost(times) => ratio.is_some_and(|ratio| ratio <= times),
            Self::AtLeast(figure) => measured >= figure,
            Self::AtMost(figure) => measured <= figure,
            Self::TimesPlusAtMost { times, plus } => bare.is_some_and(|bare| measured <= times * bare + plus),
            Self::None => return Verdict::Noted,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }

    fn text(self, unit: Unit, bare: &str) -> String {
        match self {
            Self::ShareAtLeast(share) => format!("≥ {:.0} % of {bare}", share * 100.0),
            Self::TimesAtMost(times) => format!("≤ {times} × {bare}"),
            Self::AtLeast(figure) => format!("≥ {}", unit.text(figure)),
            Self::AtMost(figure) => format!("≤ {}", unit.text(figure)),
            Self::TimesPlusAtMost { times, plus } => format!("≤ {times} × {bare} + {}", unit.text(plus)),
            Self::None => "for information".to_owned(),
        }
    }
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => at(odd / 2),
        even => f64::midpoint(at(even / 2 - 1), at(even / 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(pairs: &[(f64, f64)]) -> Vec<Round> {
        pairs.iter().map(|&(bare, measured)| Round { bare: Some(bare), measured }).collect()
    }

    #[test]
    fn medians_are_in_the_middle() {
        for (figures, middle) in [(&[3.0, 1.0, 2.0][..], 2.0), (&[4.0, 1.0, 2.0, 3.0], 2.5), (&[], 0.0)] {
            assert!((median(figures.iter().copied()) - middle).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn the_ratio_is_that_of_rounds_measured_together() {
        // The machine became half as fast in the middle; each round's ratio says 0.9 all the same.
        let row = Row::new(
            "x",
            Unit::CallsPerS,
            Goal::ShareAtLeast(0.85),
            "echo",
            rounds(&[(100.0, 90.0), (50.0, 45.0), (50.0, 45.0)]),
        );
        assert_eq!((row.ratio, row.verdict), (Some(0.9), Verdict::Met));
        assert_eq!(row.target, "≥ 85 % of echo");
    }

    #[test]
    fn goals_are_met_or_missed() {
        let verdict =
            |goal, pairs: &[(f64, f64)]| Row::new("x", Unit::Microseconds, goal, "b", rounds(pairs)).verdict;
        assert_eq!(verdict(Goal::TimesAtMost(1.3), &[(10.0, 13.0)]), Verdict::Met);
        assert_eq!(verdict(Goal::TimesAtMost(1.3), &[(10.0, 13.1)]), Verdict::Missed);
        let p99 = Goal::TimesPlusAtMost { times: 2.0, plus: 500.0 };
        assert_eq!(verdict(p99, &[(100.0, 700.0)]), Verdict::Met);
        assert_eq!(verdict(p99, &[(100.0, 701.0)]), Verdict::Missed);
        assert_eq!(verdict(Goal::AtLeast(5.0), &[(1.0, 5.0)]), Verdict::Met);
        assert_eq!(verdict(Goal::AtMost(5.0), &[(1.0, 5.1)]), Verdict::Missed);
        let nothing = Row::new("x", Unit::CallsPerS, Goal::ShareAtLeast(0.5), "b", Vec::new());
        assert_eq!((nothing.verdict, nothing.ratio), (Verdict::Missed, None));
    }
}
