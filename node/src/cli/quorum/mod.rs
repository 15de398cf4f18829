//! `narmesh quorum …`: who built the same thing.

mod ask;
mod attest;
mod report;

use self::ask::{ask, named};
use super::{emit, eprint_line};
use crate::config::Config;
use crate::quorum::{self, Imported, Part, Question};
use crate::settings::Settings;
use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use narmesh_quorum::Mode;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Which builders agree, path by path; exit code 0 only if everything asked for is agreed, and that is something
    Report(report::ReportArguments),
    /// Which builders count for a path, which do not and why, and what would change the verdict
    Why(report::WhyArguments),
    /// Rebuild a path with `nix-build --check`, then attest it, or say how the result differs
    Attest(attest::Arguments),
    /// Write attestations as text: one path's, or all
    Export(ExportArguments),
    /// Take attestations of configured builders from such a text
    Import(FileArguments),
    /// Check every signature in such a text; needs neither a daemon nor a configuration
    Verify(FileArguments),
    /// The rules
    #[command(subcommand)]
    Policy(PolicyCommand),
}

#[derive(Subcommand, Debug)]
pub(super) enum PolicyCommand {
    /// Check [[builder]], [[revoked_builders]] and [quorum] of a file, and say what they ask for
    Check(FileArguments),
}

#[derive(clap::Args, Debug)]
pub(super) struct ExportArguments {
    /// A store path or its base name; all attestations if absent
    path: Option<String>,
    /// Where to; standard output if absent
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(super) struct FileArguments {
    /// The file
    file: PathBuf,
}

/// Returns whether all is well: agreed, verified, built the same.
pub(super) fn quorum(config: &Path, command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Report(arguments) => report::report(config, arguments),
        Command::Why(arguments) => report::why(config, arguments),
        Command::Attest(arguments) => attest::attest(config, arguments),
        Command::Export(arguments) => export(config, arguments),
        Command::Import(arguments) => import(config, &arguments.file),
        Command::Verify(arguments) => verify(&arguments.file),
        Command::Policy(PolicyCommand::Check(arguments)) => policy_check(&arguments.file),
    }
}

fn export(config: &Path, arguments: &ExportArguments) -> anyhow::Result<bool> {
    let mut file = None;
    let mut lines = 0;
    let question = Question::Export { path: arguments.path.as_deref().map(named) };
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
        // All but the first line.
        emit(&format!("{} attestations in {}\n", lines - 1, name.display()))?;
    }
    Ok(true)
}

fn import(config: &Path, file: &Path) -> anyhow::Result<bool> {
    let input = File::open(file).with_context(|| file.display().to_string())?;
    let mut result = None;
    ask(config, Question::Import, Some(input), |part| {
        if let Part::Imported(imported) = part {
            result = Some(imported);
        }
        Ok(())
    })?;
    let imported = result.context("the answer does not say what became of the file")?;
    let Imported { lines, new, strangers, .. } = &imported;
    emit(&format!("{lines} attestations: {new} new, {strangers} by keys that are no [[builder]]\n"))?;
    bad_lines(&imported)
}

fn verify(file: &Path) -> anyhow::Result<bool> {
    let reader = BufReader::new(File::open(file).with_context(|| file.display().to_string())?);
    let bar = progress("lines");
    let result = quorum::read_file(
        reader,
        None,
        None,
        |count| {
            bar.set_position(count as u64);
            Ok(())
        },
        |_| Ok(0),
    )?;
    bar.finish_and_clear();
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

fn policy_check(file: &Path) -> anyhow::Result<bool> {
    let settings = Settings::check(Config::read(file)?, file)?;
    let own = match &settings.builder_key_file {
        Some(path) if path.exists() => settings.builder_public_key()?,
        _ => None,
    };
    let (policy, warnings) = settings.quorum.policy(own.as_ref())?;
    let means = match policy.mode() {
        Mode::Off => "off: as Nix alone",
        Mode::Observe => "observe: reports and metrics alone",
        Mode::Prefer => "prefer: holders of what is agreed are asked first",
        Mode::Require => "require: nothing is substituted that is not agreed",
    };
    let (builders, groups) = (policy.keys().count(), policy.groups());
    emit(&format!("{}: {builders} builders in {groups} groups; {means}\n", file.display()))?;
    if let Some(k) = policy.k_default() {
        emit(&format!("{k} of {groups} groups must have got the same\n"))?;
    }
    warnings.iter().try_for_each(|warning| emit(&format!("warning: {}\n", printable(&warning.to_string()))))?;
    Ok(true)
}

/// Names in the configuration are our own, those of keys in files are not: neither plays with the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// Nothing for the first second, then how far it is; on standard error, if that is a terminal.
fn progress(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{spinner}} {{pos}} {what}, {{elapsed}}"));
    let bar = ProgressBar::new_spinner();
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}
