//! Commands in a terminal of their own.

use std::process::Command;

use crate::{TestNode, finish, narmesh_binary};

/// What a command wrote to its terminal, and how it left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InTerminal {
    /// What was written.
    pub seen: String,
    /// Whether the command ended by itself, with exit code 0.
    pub is_success: bool,
    /// Whether the terminal is as it was before.
    pub is_restored: bool,
}

impl TestNode {
    /// Runs a command of `narmesh` in a terminal. Once it has drawn a screen, `keys` are typed there; `signal:TERM` sends a
    /// signal instead, and `nothing` waits for the end.
    ///
    /// # Panics
    /// When there is no Python, or no terminal.
    #[must_use]
    pub fn narmesh_in_a_terminal(&self, arguments: &[&str], keys: &str, environment: &[(&str, &str)]) -> InTerminal {
        let mut python = Command::new("python3");
        python.args(["-c", include_str!("in_a_terminal.py"), keys]).arg(narmesh_binary());
        python.arg("--config").arg(self.config_file()).args(arguments);
        // Those who run the tests may have said what they want of colours; `CI` counts as a wish for them.
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            python.env_remove(name);
        }
        python.env("TERM", "xterm-256color").envs(environment.iter().copied());
        let printed = finish(&mut python).expect_success("python3");
        let (end, seen) = printed.split_once('\n').expect("how it ended");
        InTerminal { seen: seen.to_owned(), is_success: end.starts_with("0 "), is_restored: end.ends_with(" True") }
    }
}
