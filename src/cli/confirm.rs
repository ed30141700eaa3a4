//! Asking before something is done that cannot be undone.

use std::io::{self, IsTerminal, Write};

use clap::Args;

use super::failure::Failure;

/// Whether to ask.
#[derive(Args, Clone, Copy, Debug)]
pub struct Confirm {
    /// Do not ask, where standard input is a terminal
    #[arg(short, long)]
    yes: bool,
}

impl Confirm {
    /// Asks, where there is somebody to ask; fails with `refused` if the answer is no.
    pub fn ask(self, question: &str, refused: &str) -> Result<(), Failure> {
        if self.yes || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Ok(());
        }
        eprint!("{question} [y/N] ");
        let _ = io::stderr().flush();
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(Failure::io("read the answer"))?;
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            Ok(())
        } else {
            Err(Failure::Usage(refused.to_owned()))
        }
    }
}
