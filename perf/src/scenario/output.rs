//! Results on paper: a table for people and JSON for programs, with all that is needed to measure again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::lab::Lab;
use super::row::{Row, Verdict};
use crate::meter;
use crate::report;

/// The machine and the program that were measured.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// The day, in UTC.
    pub date: String,
    /// The processor.
    pub processor: String,
    /// Cores.
    pub cores: usize,
    /// Memory, in 2³⁰ bytes.
    pub memory_gib: f64,
    /// The kernel.
    pub kernel: String,
    /// The file system under the data directory.
    pub file_system: String,
    /// The commit, with `-dirty` if something was changed since.
    pub commit: String,
    /// The command.
    pub command: String,
    /// Core of the first shard, core of the generator, rounds, seconds of each measurement.
    pub how: String,
}

/// All results with their setting.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine and the program.
    pub setting: Setting,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Report {
    /// The results of a lab.
    pub fn new(lab: &Lab, rows: Vec<Row>) -> Self {
        Self { setting: Setting::of(lab), rows }
    }

    /// The rows, for people.
    pub fn table(&self) -> String {
        let mut table = report::table(&["what", "measured", "bare limit", "ratio", "target", "verdict"]);
        for row in &self.rows {
            table.add_row(cells(row));
        }
        table.to_string()
    }

    /// Writes `DATE-NAME.md` and `.json`.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, dir: &Path, name: &str) -> anyhow::Result<Vec<PathBuf>> {
        fs::create_dir_all(dir)?;
        let base = format!("{}-{name}", self.setting.date);
        let (markdown, json) = (dir.join(format!("{base}.md")), dir.join(format!("{base}.json")));
        fs::write(&markdown, self.markdown(name))?;
        fs::write(&json, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(vec![markdown, json])
    }

    fn markdown(&self, name: &str) -> String {
        let s = &self.setting;
        let met = self.rows.iter().filter(|row| row.verdict == Verdict::Met).count();
        let judged = self.rows.iter().filter(|row| row.verdict != Verdict::Noted).count();
        let mut text = format!(
            "# {name}, {}\n\n{met} of {judged} targets met. Medians of all rounds; a ratio is the median of the ratios of \
             rounds measured one after the other.\n\n- machine: {}, {} cores, {:.0} GiB, {}, {}\n- commit: {}\n- command: \
             `{}`\n- {}\n\n",
            s.date, s.processor, s.cores, s.memory_gib, s.kernel, s.file_system, s.commit, s.command, s.how
        );
        text.push_str(
            "| what | measured | bare limit | ratio | target | verdict |\n|---|---:|---:|---:|---|---|\n",
        );
        for row in &self.rows {
            text += &format!("| {} |\n", cells(row).join(" | "));
        }
        text.push_str("\n## Notes\n\n");
        for row in self.rows.iter().filter(|row| !row.note.is_empty()) {
            text += &format!("- **{}**: {}\n", row.what, row.note.replace('\n', "\n  "));
        }
        text
    }
}

fn cells(row: &Row) -> Vec<String> {
    let measured = if row.verdict == Verdict::Failed { "-".to_owned() } else { row.unit.text(row.measured) };
    let bare = row.bare.map_or("-".to_owned(), |bare| row.unit.text(bare));
    let ratio = row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    vec![row.what.clone(), measured, bare, ratio, row.target.clone(), row.verdict.word().to_owned()]
}

impl Setting {
    fn of(lab: &Lab) -> Self {
        let command: Vec<String> = std::env::args().collect();
        let program =
            command.first().and_then(|path| Path::new(path).file_name()?.to_str()).unwrap_or("flowmesh");
        let rest = command.get(1..).unwrap_or_default().join(" ");
        Self {
            date: today(),
            processor: line_of("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| "unknown processor".to_owned()),
            cores: meter::cores(),
            memory_gib: line_of("/proc/meminfo", "MemTotal")
                .and_then(|text| text.split_ascii_whitespace().next()?.parse::<f64>().ok())
                .map_or(0.0, |kib| kib / f64::from(1 << 20)),
            kernel: output_of("uname", &["-sr"]),
            file_system: output_of("stat", &["-f", "-c", "%T", &lab.dir.to_string_lossy()]),
            commit: output_of("git", &["describe", "--always", "--dirty", "--exclude", "*"]),
            command: format!("{program} {rest}"),
            how: format!(
                "first shard on core {}, generator on core {}, {} rounds of {} s each{}",
                lab.server_cpu,
                lab.client_cpu,
                lab.rounds,
                lab.duration.as_secs_f64(),
                if lab.spin { ", generator spinning" } else { "" }
            ),
        }
    }
}

fn line_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn output_of(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success());
    output.map_or("unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn today() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    let (year, month, day) = civil(days as i64);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Year, month and day of a day since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
    }
}
