//! The command line: parses the arguments and makes one call for each command. The only place that prints.
#![expect(clippy::print_stderr, reason = "a command line tells its user of errors by printing")]

mod advertised;
mod check_config;
mod client;
mod completions;
mod dashboard;
mod demo;
mod doctor;
mod findings;
mod id;
mod init;
mod join;
mod log;
mod man;
mod mesh;
mod mesh_list;
mod mesh_place;
mod nix_conf;
mod nix_keys;
mod nix_substituters;
mod nix_version;
mod progress;
mod quorum;
mod rekey;
mod reload;
mod requests;
mod run;
mod screen;
mod serve;
mod setup_nix;
mod startable;
mod status;
mod token;
mod top;
mod upstream_probe;
mod why;

use crate::config::DEFAULT_FILE;
use crate::describe::describe;
use crate::styles::{wants_colours, without_colours};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
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
    /// Write a commented configuration and the keys, and print what the other machines and nix.conf need
    Init(init::Arguments),
    /// Run the daemon until SIGTERM; SIGHUP reloads the configuration
    Run(run::Arguments),
    /// Print this node's peer id, its [[peer]] lines and its builder key
    Id(id::Arguments),
    /// Make a mesh, invite machines to it, and change who its members are
    #[command(subcommand)]
    Mesh(mesh::Command),
    /// Join the mesh of another machine with the token that `narmesh mesh invite` printed there
    Join(join::Arguments),
    /// Leave the mesh: its members are no peers of this machine any more
    Leave,
    /// Check the configuration, whether the daemon could start with it, and how it fits Nix's; with --probe, dial the
    /// peers
    CheckConfig(check_config::Arguments),
    /// Look for everything that is commonly wrong on this machine, and name the command that mends each fault
    Doctor(doctor::Arguments),
    /// Say whether peers get anything of this machine, or switch it on or off (on battery, on a metered line)
    Serve(serve::Arguments),
    /// Make, list and revoke the tokens of [[gateway.listener]] with a tokens_file
    #[command(subcommand)]
    Token(token::Command),
    /// Make the running daemon read its configuration again, as SIGHUP does, and say whether it is in force
    Reload,
    /// Show the state of the running daemon: peers, summaries, requests, bytes
    Status(OutputArguments),
    /// Show live what is on its way and from whom, and what has ended; q ends it. Without a terminal, print it once
    Top,
    /// Show exactly what leaves this machine, and what is withheld and why
    Advertised(OutputArguments),
    /// Show what would happen if Nix asked for a store path now, and what happened the last time
    Why(why::Arguments),
    /// Show what the resolver decided, and the NARs that Nix asked for: from whom each came, and how it ended
    ///
    /// Kept in memory, since the daemon started: the last 10,000 NARs, and the last decisions about 1,024 paths.
    Log(requests::Arguments),
    /// Print a link to pages about all this, on loopback; it can be opened once, within a minute
    ///
    /// For example xdg-open "$(narmesh dashboard)". What it opens lasts until it was not used for an hour. To see it from
    /// another machine, forward its port: ssh -L PORT:127.0.0.1:PORT.
    Dashboard(dashboard::Arguments),
    /// Compare what builders built: reports, attestations, the rules
    ///
    /// report, why, attest, export and import ask the running daemon. Whoever may use `status` may use them, except
    /// attest and import, which are for root and the daemon's user. If no daemon runs, they read its state directory
    /// themselves, and say so.
    #[command(subcommand)]
    Quorum(quorum::Command),
    /// Run three daemons with three Nix stores on this machine: build on one, substitute on the others
    Demo(demo::Arguments),
    /// Print what a shell needs to complete the commands and options
    Completions(completions::Arguments),
    /// Write the manual pages, one for each command
    Man(man::Arguments),
}

#[derive(clap::Args, Debug)]
struct OutputArguments {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Parses the arguments of the process and runs the command that they name. `commit` is what the program was built from, if
/// that is known; `--version` names it.
pub fn main(commit: Option<&str>) -> ExitCode {
    let Arguments { config, command } = parse(commit);
    let done = match command {
        Command::Init(arguments) => init::init(&config, &arguments).map(|()| true),
        Command::Run(arguments) => run::run(&config, &arguments).map(|()| true),
        Command::Id(arguments) => id::id(&config, &arguments).map(|()| true),
        Command::Mesh(command) => mesh::mesh(&config, &command).map(|()| true),
        Command::Join(arguments) => join::join(&config, &arguments).map(|()| true),
        Command::Leave => mesh::leave(&config).map(|()| true),
        Command::CheckConfig(arguments) => check_config::check_config(&config, &arguments),
        Command::Doctor(arguments) => doctor::doctor(&config, &arguments),
        Command::Serve(arguments) => serve::serve(&config, &arguments).map(|()| true),
        Command::Token(command) => token::token(&config, &command).map(|()| true),
        Command::Reload => reload::reload(&config).map(|()| true),
        Command::Status(output) => status::status(&config, output.json).map(|()| true),
        Command::Top => top::top(&config).map(|()| true),
        Command::Advertised(output) => advertised::advertised(&config, output.json).map(|()| true),
        Command::Why(arguments) => why::why(&config, &arguments).map(|()| true),
        Command::Log(arguments) => requests::log(&config, &arguments).map(|()| true),
        Command::Dashboard(arguments) => dashboard::dashboard(&config, &arguments).map(|()| true),
        Command::Quorum(command) => quorum::quorum(&config, &command),
        Command::Demo(arguments) => demo::demo(arguments).map(|()| true),
        Command::Completions(arguments) => completions::completions(Arguments::command(), &arguments).map(|()| true),
        Command::Man(arguments) => man::man(Arguments::command(), &arguments).map(|()| true),
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

/// Parses the arguments; wrong ones, `--help` and `--version` end the process.
fn parse(commit: Option<&str>) -> Arguments {
    let mut known = Arguments::command();
    if let Some(commit) = commit {
        // Clap keeps the text as long as the process lives.
        known = known.version(&*format!("{} ({commit})", env!("CARGO_PKG_VERSION")).leak());
    }
    Arguments::from_arg_matches(&known.get_matches()).unwrap_or_else(|error| error.exit())
}

/// Writes to standard output; a reader that went away (`| head`) is not an error.
fn emit(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes a report of ours that has colours, without them where they are not wanted.
fn emit_coloured(text: &str) -> io::Result<()> {
    if wants_colours() { emit(text) } else { emit(&without_colours(text)) }
}

/// Prints a remark to standard error, so that it does not mix with the answer.
fn eprint_line(text: &str) {
    eprintln!("narmesh: {text}");
}

/// Writes a report as JSON or as text.
fn emit_report<R: serde::Serialize>(report: &R, json: bool, text: impl FnOnce(&R) -> String) -> anyhow::Result<()> {
    match json {
        true => emit(&(serde_json::to_string_pretty(report)? + "\n"))?,
        false => emit_coloured(&text(report))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn config_option_works_before_and_after_the_command() {
        for line in [["narmesh", "--config", "/x", "status"], ["narmesh", "status", "--config", "/x"]] {
            assert_eq!(Arguments::parse_from(line).config, PathBuf::from("/x"));
        }
        assert_eq!(Arguments::parse_from(["narmesh", "id"]).config, PathBuf::from(DEFAULT_FILE));
    }
}
