//! `narmesh quorum …`: who built the same thing.

mod ask;
mod attest;
mod report;

use self::ask::{ask, resolve_link};
use super::progress::Progress;
use super::{emit, eprint_line};
use crate::attestations::{Imported, Part, Question, read_file};
use crate::config::Config;
use crate::regular_file;
use crate::settings::Settings;
use anyhow::Context as _;
use clap::Subcommand;
use narmesh_quorum::Mode;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Show path by path which builders agree; the exit code is 0 only if at least one path was asked for and all are
    /// agreed
    Report(report::ReportArguments),
    /// Show which builders count for a path, which do not and why, and what would change the verdict
    Why(report::WhyArguments),
    /// Rebuild a path with `nix-build --check`, then attest it, or show how the result differs
    Attest(attest::Arguments),
    /// Write attestations as text: those of one path, or all
    Export(ExportArguments),
    /// Read attestations from such a text, and keep those of configured builders
    Import(FileArguments),
    /// Check every signature in such a text; needs neither a daemon nor a configuration
    Verify(FileArguments),
    /// Check the rules of a configuration
    #[command(subcommand)]
    Policy(PolicyCommand),
}

#[derive(Subcommand, Debug)]
pub(super) enum PolicyCommand {
    /// Check [[builder]], [[revoked_builders]] and [quorum] of a file, and explain what they require
    Check(FileArguments),
}

#[derive(clap::Args, Debug)]
pub(super) struct ExportArguments {
    /// A store path or its base name; without it, all attestations are written
    path: Option<String>,
    /// The file to write; standard output if absent
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(super) struct FileArguments {
    /// The file to read
    file: PathBuf,
}

/// Returns whether the command found all well: everything agreed, every line verified, the rebuild the same.
pub(super) fn quorum(config: &Path, command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Report(arguments) => report::report(config, arguments),
        Command::Why(arguments) => report::why(config, arguments),
        Command::Attest(arguments) => attest::attest(config, arguments),
        Command::Export(arguments) => export(config, arguments),
        Command::Import(arguments) => import(config, &arguments.file),
        Command::Verify(arguments) => verify(&arguments.file),
        Command::Policy(PolicyCommand::Check(arguments)) => check_policy(&arguments.file),
    }
}

fn export(config: &Path, arguments: &ExportArguments) -> anyhow::Result<bool> {
    let mut file = None;
    let mut lines = 0;
    let question = Question::Export { path: arguments.path.as_deref().map(resolve_link) };
    ask(config, question, None, |part| {
        let Part::Text(text) = part else { return Ok(()) };
        lines += text.bytes().filter(|byte| *byte == b'\n').count();
        let Some(name) = &arguments.output else { return Ok(emit(&text)?) };
        let file = match &mut file {
            Some(file) => file,
            None => file.insert(BufWriter::new(File::create(name).with_context(|| name.display().to_string())?)),
        };
        Ok(file.write_all(text.as_bytes())?)
    })?;
    if let (Some(mut file), Some(name)) = (file, &arguments.output) {
        file.flush()?;
        // The first line is the header.
        emit(&format!("{} attestations in {}\n", lines - 1, name.display()))?;
    }
    Ok(true)
}

fn import(config: &Path, file: &Path) -> anyhow::Result<bool> {
    let input = open_attestations(file)?;
    let mut result = None;
    ask(config, Question::Import, Some(input), |part| {
        if let Part::Imported(imported) = part {
            result = Some(imported);
        }
        Ok(())
    })?;
    let imported = result.context("the answer does not say what was imported")?;
    let Imported { lines, new, strangers, .. } = &imported;
    emit(&format!("{lines} attestations: {new} new, {strangers} by keys without a [[builder]]\n"))?;
    bad_lines(&imported)
}

/// Opens a file named by the user. Whatever else is there could be waited for, or read, for ever.
fn open_attestations(file: &Path) -> anyhow::Result<File> {
    regular_file::open_to_read(file)
        .with_context(|| format!("{}: accepted is a file as `narmesh quorum export` writes it", file.display()))
}

fn verify(file: &Path) -> anyhow::Result<bool> {
    let reader = BufReader::new(open_attestations(file)?);
    let progress = Progress::start("verifying", Some("lines"));
    let result = read_file(
        reader,
        None,
        None,
        |count| {
            progress.set_count(count as u64);
            Ok(())
        },
        |_| Ok(0),
    )?;
    drop(progress);
    emit(&format!("{} attestations, {} verify\n", result.lines, result.verified))?;
    bad_lines(&result)
}

fn bad_lines(result: &Imported) -> anyhow::Result<bool> {
    result.errors.iter().try_for_each(|error| emit(&format!("{}\n", printable(error))))?;
    if result.bad > result.errors.len() {
        emit(&format!("and {} more\n", result.bad - result.errors.len()))?;
    }
    Ok(result.bad == 0)
}

fn check_policy(file: &Path) -> anyhow::Result<bool> {
    let settings = Settings::check(Config::read(file)?, file)?;
    let own = match &settings.builder_key_file {
        // A policy may be checked on a machine that is not the one it is for.
        Some(path) if path.exists() => settings.read_builder_public_key()?,
        _ => None,
    };
    let (policy, warnings) = settings.quorum.policy(own.as_ref())?;
    let means = match policy.mode() {
        Mode::Off => "off: verdicts are not used",
        Mode::Observe => "observe: only reports and metrics",
        Mode::Prefer => "prefer: holders of what is agreed are asked first",
        Mode::Require => "require: only what is agreed is substituted",
    };
    if settings.quorum.takes_roster() {
        emit("the builders of the roster, which is not looked at, count as well\n")?;
    }
    let (builders, groups) = (policy.keys().count(), policy.groups());
    emit(&format!("{}: {builders} builders in {groups} groups; {means}\n", file.display()))?;
    if let Some(k) = policy.k_default() {
        let of = match settings.quorum.takes_roster() {
            true => "of these groups and those of the roster".to_owned(),
            false => format!("of {groups} groups"),
        };
        emit(&format!("{k} {of} must have got the same result\n"))?;
    }
    warnings.iter().try_for_each(|warning| emit(&format!("warning: {}\n", printable(&warning.to_string()))))?;
    Ok(true)
}

/// The text with its control characters replaced, so that a name from a file of somebody else cannot control the
/// terminal.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_no_file_is_refused_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("narmesh.toml");
        for (path, what) in regular_file::list_oddities(dir.path()) {
            for refused in [import(&config, &path), verify(&path)] {
                let message = crate::describe::describe(&refused.unwrap_err());
                assert!(message.starts_with(&path.display().to_string()) && message.contains(what), "{message}");
                assert!(message.contains("accepted is a file"), "{message}");
            }
        }
    }
}
