//! The command line: raw arguments to one call each. The only place that prints.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line talks to its user by printing")]

mod advertised;
mod check_config;
mod client;
mod demo;
mod id;
mod init;
mod log;
mod nix_conf;
mod nix_keys;
mod nix_version;
mod quorum;
mod run;
mod startable;
mod status;
mod why;

use crate::config::DEFAULT_FILE;
use crate::describe::describe;
use clap::{Parser, Subcommand};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Peer-to-peer Nix substituter: machines that trust each other share what they built.
#[derive(Parser, Debug)]
#[command(name = "narmesh", version, about, max_term_width = 110)]
struct Arguments {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Write a commented configuration and the keys, and say what the other machines and Nix need
    Init(init::Arguments),
    /// Run the daemon until SIGTERM; SIGHUP reloads the configuration
    Run(run::Arguments),
    /// Print this node's peer id, its [[peer]] lines and its builder key
    Id(id::Arguments),
    /// Check the configuration and whether a daemon could start with it, compare it with Nix's, and dial the peers if asked to
    CheckConfig(check_config::Arguments),
    /// How the running daemon is: peers, summaries, requests, bytes
    Status(OutputArguments),
    /// Exactly what leaves this machine, and what is withheld and why
    Advertised(OutputArguments),
    /// What would happen to a store path now, and what happened last
    Why(why::Arguments),
    /// Who built the same thing: reports, attestations, the rules
    ///
    /// report, why, export and import ask the running daemon: whoever may ask for `status` may, but for import, which is for
    /// root and the daemon's user. Without a daemon they read its state directory themselves, and say so.
    #[command(subcommand)]
    Quorum(quorum::Command),
    /// Three daemons, three Nix stores: build on one, substitute on the others, on this machine
    Demo(demo::Arguments),
}

#[derive(clap::Args, Debug)]
struct OutputArguments {
    /// JSON for programs
    #[arg(long)]
    json: bool,
}

/// Parses the arguments of the process and does what they say.
pub fn main() -> ExitCode {
    let Arguments { config, command } = Arguments::parse();
    let done = match command {
        Command::Init(arguments) => init::init(&config, &arguments).map(|()| true),
        Command::Run(arguments) => run::run(&config, &arguments).map(|()| true),
        Command::Id(arguments) => id::id(&config, &arguments).map(|()| true),
        Command::CheckConfig(arguments) => check_config::check_config(&config, &arguments),
        Command::Status(output) => status::status(&config, output.json).map(|()| true),
        Command::Advertised(output) => advertised::advertised(&config, output.json).map(|()| true),
        Command::Why(arguments) => why::why(&config, &arguments).map(|()| true),
        Command::Quorum(command) => quorum::quorum(&config, &command),
        Command::Demo(arguments) => demo::demo(&arguments).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("narmesh: {}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn emit(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// A remark beside the answer, on standard error.
fn eprint_line(text: &str) {
    eprintln!("narmesh: {text}");
}

/// Writes a report as JSON or as text.
fn emit_report<R: serde::Serialize>(report: &R, json: bool, text: impl FnOnce(&R) -> String) -> anyhow::Result<()> {
    let rendered = if json { serde_json::to_string_pretty(report)? + "\n" } else { text(report) };
    Ok(emit(&rendered)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_configuration_may_stand_before_and_after_the_command() {
        for line in [["narmesh", "--config", "/x", "status"], ["narmesh", "status", "--config", "/x"]] {
            assert_eq!(Arguments::parse_from(line).config, PathBuf::from("/x"));
        }
        assert_eq!(Arguments::parse_from(["narmesh", "id"]).config, PathBuf::from(DEFAULT_FILE));
    }
}
