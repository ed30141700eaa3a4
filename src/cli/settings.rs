//! The server's flags, made out of the table of settings.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use flowmesh::config::{SETTINGS, Setting};

/// The flags that were given, by the setting's name.
#[derive(Clone, Debug, Default)]
pub struct SettingFlags(pub BTreeMap<&'static str, String>);

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        command.next_help_heading("Settings").args(SETTINGS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS {
            if let Some(text) = matches.get_one::<String>(setting.name) {
                self.0.insert(setting.name, text.clone());
            }
        }
        Ok(())
    }
}

/// Values are checked with the other settings, so that one message has the same words wherever a value comes from.
fn argument(setting: &'static Setting) -> Arg {
    let default = match setting.default_dev {
        Some(dev) => format!("{}; dev: {dev}", setting.default),
        None => setting.default.to_owned(),
    };
    let argument = Arg::new(setting.name)
        // clap wants names that live for ever; there is one command tree a process.
        .long(&*setting.flag().leak())
        .value_name(setting.value)
        .allow_hyphen_values(true)
        .help(format!("{} [{}; default: {default}]", setting.help, setting.env()));
    // `--auto-create` alone means true.
    if setting.value == "true|false" {
        argument.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        argument
    }
}
