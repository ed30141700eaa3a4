//! Finds the text of every setting: default, then file, then environment, then flag; the later wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::table::{SETTINGS, Setting};

/// The file that is read from the working directory when none is named.
pub const FILE: &str = "flowmesh.toml";

/// The environment variable that names the file, like `--config`.
pub const FILE_ENV: &str = "FLOWMESH_CONFIG";

/// Which defaults count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// `flowmesh serve`.
    #[default]
    Serve,
    /// `flowmesh dev`: what a first try wants.
    Dev,
}

/// Where settings may come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Which defaults count.
    pub mode: Mode,
    /// The file named on the command line or in the environment: it must exist.
    pub file: Option<PathBuf>,
    /// The directory whose [`FILE`] is read if none is named and it exists; `None`: look nowhere.
    pub working_dir: Option<PathBuf>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Flags given, by the setting's name.
    pub flags: BTreeMap<&'static str, String>,
}

impl Sources {
    /// This process's file and environment, with these flags.
    #[must_use]
    pub fn of_process(mode: Mode, file: Option<PathBuf>, flags: BTreeMap<&'static str, String>) -> Self {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok().filter(|name| name.starts_with("FLOWMESH_"))?;
                Some((name, value.to_string_lossy().into_owned()))
            })
            .collect();
        let named = environment.get(FILE_ENV).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self { mode, file: file.or(named), working_dir: Some(PathBuf::new()), environment, flags }
    }

    /// The file that will be read, if any.
    #[must_use]
    pub fn settings_file(&self) -> Option<PathBuf> {
        let standing = || self.working_dir.as_ref().map(|dir| dir.join(FILE)).filter(|path| path.exists());
        self.file.clone().or_else(standing)
    }

    /// Every setting's text and origin, in the order of the table, and what is wrong with the file.
    pub(super) fn gather(&self) -> (Vec<(String, Origin)>, Vec<ConfigError>) {
        let (mut from_file, errors) = match self.settings_file() {
            Some(path) => read_file(&path),
            None => (BTreeMap::new(), Vec::new()),
        };
        let given = SETTINGS
            .iter()
            .map(|setting| {
                let flag = || {
                    let text = self.flags.get(setting.name)?.clone();
                    Some((text, Origin::Flag(format!("--{}", setting.flag()))))
                };
                let environment = || {
                    let name = setting.env();
                    // An empty variable is how shells and compose files unset one.
                    let text = self.environment.get(&name).filter(|text| !text.is_empty())?.clone();
                    Some((text, Origin::Environment(name)))
                };
                flag()
                    .or_else(environment)
                    .or_else(|| from_file.remove(setting.name))
                    .unwrap_or_else(|| (default_text(setting, self.mode).to_owned(), Origin::Default))
            })
            .collect();
        (given, errors)
    }
}

fn default_text(setting: &Setting, mode: Mode) -> &'static str {
    match mode {
        Mode::Serve => setting.default,
        Mode::Dev => setting.default_dev.unwrap_or(setting.default),
    }
}

type FromFile = BTreeMap<&'static str, (String, Origin)>;

fn read_file(path: &Path) -> (FromFile, Vec<ConfigError>) {
    let fail = |error| (FromFile::new(), vec![error]);
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return fail(ConfigError::Malformed {
                path: path.to_owned(),
                problem: "it is not UTF-8 text".to_owned(),
            });
        }
        Err(error) => {
            return fail(ConfigError::Unreadable { path: path.to_owned(), problem: error.to_string() });
        }
    };
    let table = match DeTable::parse(&text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let problem = error.to_string().trim_end().to_owned();
            return fail(ConfigError::Malformed { path: path.to_owned(), problem });
        }
    };
    let mut entries: Vec<_> = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let (mut found, mut errors) = (FromFile::new(), Vec::new());
    for (key, value) in entries {
        let line = text.get(..key.span().start).unwrap_or_default().matches('\n').count() + 1;
        let origin = Origin::File { path: path.to_owned(), line };
        let key = key.into_inner();
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.name == key) {
            found.insert(setting.name, (value_text(value.get_ref()), origin));
        } else {
            let nearest = nearest(&key);
            errors.push(ConfigError::UnknownKey { key: key.into_owned(), origin, nearest });
        }
    }
    (found, errors)
}

/// A value as one would write it in a flag. What has no such form comes out as it would be refused.
fn value_text(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Array(items) => {
            items.iter().map(|item| value_text(item.get_ref())).collect::<Vec<_>>().join(",")
        }
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The setting whose name is closest, if it is close.
fn nearest(key: &str) -> Option<&'static str> {
    let key = key.to_ascii_lowercase().replace('-', "_");
    SETTINGS
        .iter()
        .map(|setting| (edits(&key, setting.name), setting.name))
        .min()
        .filter(|(edits, name)| *edits <= name.len() / 3)
        .map(|(_, name)| name)
        .or_else(|| SETTINGS.iter().map(|s| s.name).find(|name| key.len() >= 3 && name.starts_with(&key)))
}

/// How many letters must be added, removed or replaced to make `b` of `a` (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, above) in b.bytes().zip(row.iter_mut().skip(1)) {
            let best = (diagonal + usize::from(x != y)).min(*above + 1).min(left + 1);
            diagonal = *above;
            *above = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// Variables that look like a misspelt setting, with the setting they resemble. They are not refused: other programs
/// (container platforms among them) set variables with this prefix too.
#[must_use]
pub fn suspicious_variables(environment: &BTreeMap<String, String>) -> Vec<(String, String)> {
    environment
        .keys()
        .filter_map(|name| {
            let key = name.strip_prefix("FLOWMESH_")?.to_ascii_lowercase();
            if SETTINGS.iter().any(|setting| setting.name == key) {
                return None;
            }
            let close = SETTINGS.iter().find(|setting| edits(&key, setting.name) <= 2)?;
            Some((name.clone(), close.env()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, n) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("grpc_adr", "grpc_addr", 1)] {
            assert_eq!(edits(a, b), n, "{a} {b}");
            assert_eq!(edits(b, a), n, "{b} {a}");
        }
    }

    #[test]
    fn the_nearest_name_is_offered_only_if_it_is_near() {
        assert_eq!(nearest("grpc_adr"), Some("grpc_addr"));
        assert_eq!(nearest("grpc-addr"), Some("grpc_addr"));
        assert_eq!(nearest("checkpoint"), Some("checkpoint_interval_ms"));
        assert_eq!(nearest("zzzzzz"), None);
    }
}
