//! `narmesh quorum …`: who built the same thing.

mod attest;

use super::emit;
use crate::config::Config;
use crate::quorum::{self, Imported, LedgerDb, LiveLedger, Scope, Stored};
use crate::settings::Settings;
use crate::status::text::utc;
use anyhow::{Context as _, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use narmesh_protocol::{StorePath, attestation_file};
use narmesh_quorum::{Mode, Report};
use narmesh_store::{NixStore, Store as _, StoreLocation};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Which builders agree, path by path; exit code 0 only if everything asked for is agreed
    Report(ReportArguments),
    /// Which builders count for a path, which do not and why, and what would change the verdict
    Why(WhyArguments),
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
pub(super) struct ReportArguments {
    /// One path: a store path or its base name
    #[arg(long, value_name = "PATH", group = "scope")]
    path: Option<String>,
    /// A path with all that it needs at run time
    #[arg(long, value_name = "PATH", group = "scope")]
    closure: Option<String>,
    /// Every path of which anything is attested (the default)
    #[arg(long, group = "scope")]
    all: bool,
    /// JSON for programs
    #[arg(long)]
    json: bool,
    /// Write a page that any browser shows, without a server
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(super) struct WhyArguments {
    /// A store path or its base name
    path: String,
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

/// What every command on the ledger works with.
struct Desk {
    settings: Settings,
    store: Arc<NixStore>,
    ledger: LiveLedger,
}

/// Returns whether all is well: agreed, verified, built the same.
pub(super) fn quorum(config: &Path, command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Report(arguments) => report(config, arguments),
        Command::Why(arguments) => why(config, &arguments.path),
        Command::Attest(arguments) => attest::attest(config, arguments),
        Command::Export(arguments) => export(config, arguments),
        Command::Import(arguments) => import(config, &arguments.file),
        Command::Verify(arguments) => verify(&arguments.file),
        Command::Policy(PolicyCommand::Check(arguments)) => policy_check(&arguments.file),
    }
}

impl Desk {
    fn open(config: &Path, writing: bool) -> anyhow::Result<Self> {
        let settings = Settings::load(config)?;
        let own = settings.builder_public_key()?;
        let (policy, _) = settings.quorum.policy(own.as_ref())?;
        let (state_dir, store_dir) = (&settings.node.state_dir, &settings.store.store_dir);
        if !writing {
            // Not made by who only looks.
            LedgerDb::open_existing(state_dir, store_dir)?;
        }
        let location = StoreLocation {
            store_dir: store_dir.clone(),
            real_dir: settings.store.real_dir.clone(),
            state_dir: settings.store.state_dir.clone(),
        };
        let store = NixStore::open(location).context("the Nix store")?;
        let held = Arc::clone(&store);
        let ledger = LiveLedger::new(state_dir, store_dir, policy, Box::new(move |part| held.contains(part)));
        ledger.catch_up()?;
        Ok(Self { settings, store, ledger })
    }

    /// Also of links into the store, such as `./result`.
    fn path(&self, text: &str) -> anyhow::Result<StorePath> {
        let store_dir = &self.settings.store.store_dir;
        let linked = std::fs::read_link(text).ok();
        let text = linked.as_deref().and_then(Path::to_str).unwrap_or(text);
        let parsed = if text.starts_with('/') { store_dir.parse_path(text) } else { StorePath::parse(text) };
        parsed.with_context(|| format!("{text:?} is no path of {}", store_dir.as_str()))
    }
}

fn report(config: &Path, arguments: &ReportArguments) -> anyhow::Result<bool> {
    let desk = Desk::open(config, false)?;
    let progress = progress("paths");
    let base_name = |text: &String| anyhow::Ok(desk.path(text)?.to_string());
    let scope = match (&arguments.path, &arguments.closure) {
        (Some(text), _) => Scope::Path(base_name(text)?),
        (None, Some(text)) => Scope::Closure(base_name(text)?),
        (None, None) => Scope::All,
    };
    let report = quorum::survey(&desk.ledger, &desk.store, &scope, |count| tell(&progress, count))?;
    progress.finish_and_clear();
    match &arguments.html {
        Some(file) => {
            std::fs::write(file, quorum::html(&report)).with_context(|| file.display().to_string())?;
            emit(&format!("{}: {}\n", file.display(), totals(&report)))?;
        }
        None => super::emit_report(&report, arguments.json, text)?,
    }
    Ok(report.agreed)
}

fn why(config: &Path, path: &str) -> anyhow::Result<bool> {
    let desk = Desk::open(config, false)?;
    let scope = Scope::Path(desk.path(path)?.to_string());
    let report = quorum::survey(&desk.ledger, &desk.store, &scope, |_| ())?;
    let sentences = report.paths.iter().flat_map(|path| &path.sentences);
    emit(&sentences.map(|sentence| printable(sentence) + "\n").collect::<String>())?;
    Ok(report.agreed)
}

fn export(config: &Path, arguments: &ExportArguments) -> anyhow::Result<bool> {
    let desk = Desk::open(config, false)?;
    let hash_part = arguments.path.as_deref().map(|text| desk.path(text)).transpose()?.map(|path| path.hash_part());
    let store_dir = desk.ledger.store_dir();
    let mut text = attestation_file::header(store_dir);
    let mut count = 0;
    let mut file = arguments.output.as_ref().map(File::create).transpose()?.map(BufWriter::new);
    let mut failed = None;
    let mut each = |stored: Stored| {
        count += 1;
        text.push_str(&attestation_file::line(store_dir, &stored.key, &stored.attestation));
        if text.len() > 1 << 20 {
            failed = failed.take().or_else(|| write_out(file.as_mut(), &text).err());
            text.clear();
        }
    };
    desk.ledger.on_disk(|db| db.attestations(hash_part.as_ref(), &mut each))?;
    failed.map_or(Ok(()), Err)?;
    write_out(file.as_mut(), &text)?;
    if let (Some(mut file), Some(name)) = (file, &arguments.output) {
        file.flush()?;
        emit(&format!("{count} attestations in {}\n", name.display()))?;
    }
    Ok(true)
}

fn write_out(file: Option<&mut BufWriter<File>>, text: &str) -> anyhow::Result<()> {
    Ok(file.map_or_else(|| emit(text), |file| file.write_all(text.as_bytes()))?)
}

fn import(config: &Path, file: &Path) -> anyhow::Result<bool> {
    let desk = Desk::open(config, true)?;
    if !desk.settings.quorum.has_builders() {
        bail!("no [[builder]] in {}: nobody's attestations count, so none are kept", config.display());
    }
    let reader = BufReader::new(File::open(file).with_context(|| file.display().to_string())?);
    let bar = progress("lines");
    let imported = quorum::import(reader, &desk.ledger, |count| tell(&bar, count))?;
    bar.finish_and_clear();
    let Imported { lines, new, strangers, .. } = &imported;
    emit(&format!("{lines} attestations: {new} new, {strangers} by keys that are no [[builder]]\n"))?;
    bad_lines(&imported)
}

fn verify(file: &Path) -> anyhow::Result<bool> {
    let reader = BufReader::new(File::open(file).with_context(|| file.display().to_string())?);
    let bar = progress("lines");
    let result = quorum::read_file(reader, None, None, |count| tell(&bar, count), |_| Ok(0))?;
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
    let asks = match policy.mode() {
        Mode::Off => "nothing: as Nix alone",
        Mode::Observe => "nothing, but reports",
        Mode::Prefer => "that holders of what is agreed are asked first",
        Mode::Require => "that nothing is substituted that is not agreed",
    };
    let (builders, groups) = (policy.keys().count(), policy.groups());
    emit(&format!("{}: {builders} builders in {groups} groups; the policy asks for {asks}\n", file.display()))?;
    if let Some(k) = policy.k_default() {
        emit(&format!("{k} of {groups} groups must have got the same\n"))?;
    }
    warnings.iter().try_for_each(|warning| emit(&format!("warning: {}\n", printable(&warning.to_string()))))?;
    Ok(true)
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for path in &report.conflicts {
        text += &format!("CONFLICT {path}\n");
    }
    for served in &report.no_longer_agreed {
        let at = utc(served.served_at_ms / 1_000);
        text += &format!("NO LONGER AGREED {} was given to Nix at {at}: {}\n", served.path, served.why);
    }
    if let Some(weakest) = report.weakest.as_ref().filter(|_| !report.agreed) {
        text += &format!("weakest link: {}\n", weakest.chain.join(" -> "));
    }
    for path in &report.paths {
        text += &format!("\n{}\n", path.path);
        text += &path.sentences.iter().map(|sentence| format!("  {sentence}\n")).collect::<String>();
    }
    text += &format!("\n{}\n", totals(report));
    text.lines().map(|line| printable(line) + "\n").collect()
}

fn totals(report: &Report) -> String {
    let totals = &report.totals;
    format!(
        "{} paths: {} agreed ({} disputed), {} content-addressed, {} short, {} none, {} conflict; {} held here are not what was agreed on",
        totals.paths,
        totals.agreed,
        totals.disputed,
        totals.content_addressed,
        totals.short,
        totals.none,
        totals.conflict,
        totals.held_differs
    )
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

fn tell(bar: &ProgressBar, count: usize) {
    bar.set_position(count as u64);
}
