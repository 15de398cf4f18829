//! `narmesh quorum attest PATH`: builds the path again and attests it only if the result is the same.

use super::ask::{Files, read, resolve_link};
use super::{emit, printable};
use crate::attestations::{OwnBuilds, OwnStatement, Part, Queries, Question};
use crate::cli::client::{REPLY_TIMEOUT, control_socket};
use crate::cli::progress::Progress;
use crate::control::{ControlError, ask_in_parts};
use crate::settings::Settings;
use anyhow::{Context as _, bail};
use narmesh_protocol::{NixSecretKey, TrustedKeys};
use narmesh_store::Offer;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// The most differences that are printed one by one.
const DIFFERENCES_SHOWN_MAX: usize = 20;

#[derive(clap::Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// A store path that is in the store here, with its derivation
    path: String,
    /// Further arguments for nix-build, such as `--option sandbox true`
    #[arg(last = true)]
    nix_build: Vec<String>,
}

/// Who signs: the running daemon, which tells its peers at once, or this process if no daemon runs.
enum Signer {
    Daemon(PathBuf),
    Here(Box<Here>),
}

/// What this process needs to sign in place of a daemon.
struct Here {
    files: Files,
    offer: Offer,
    key: NixSecretKey,
}

/// Returns whether the path is attested now, or needs no attestation.
pub(super) fn attest(config: &Path, arguments: &Arguments) -> anyhow::Result<bool> {
    let path = resolve_link(&arguments.path);
    // A rebuild may take hours, so whoever may not attest is refused before it.
    let (signer, before) = Signer::find(config, &path)?;
    let Some(deriver) = &before.deriver else {
        emit(&format!("{} is content-addressed: it needs no attestation\n", before.path))?;
        return Ok(true);
    };
    let settings = Settings::load(config)?;
    if !rebuild(&settings, deriver, &arguments.nix_build)? {
        let ours = settings.store.real_dir.join(&before.path);
        let attested = if before.attested { "what was built first stays attested" } else { "it is not attested" };
        emit(&format!("{} came out differently: not reproducible on this machine; {attested}\n", before.path))?;
        let other = with_suffix(&ours, ".check");
        match differences(&ours, &other) {
            Ok(differences) => emit(&differences)?,
            Err(error) => emit(&format!("the two results cannot be compared: {error}\n"))?,
        }
        return Ok(false);
    }
    let word = signer.attest_path(&path, true)?;
    let attested = if before.attested { "attested already" } else { "and attested" };
    emit(&format!("{}: built again with the same result, {attested} by {}\n", word.path, printable(&word.by)))?;
    Ok(true)
}

impl Signer {
    /// Finds who signs, and asks what it says about `path` before anything is built.
    fn find(config: &Path, path: &str) -> anyhow::Result<(Self, OwnStatement)> {
        let daemon = Self::Daemon(control_socket(config));
        match daemon.attest_path(path, false) {
            Ok(word) => Ok((daemon, word)),
            // Any other failure is the daemon's own answer, and must not be gone around.
            Err(error) if matches!(error.downcast_ref(), Some(ControlError::NotRunning { .. })) => {
                let here = Self::Here(Box::new(Here::open(config)?));
                let word = here.attest_path(path, false)?;
                Ok((here, word))
            }
            Err(error) => Err(error),
        }
    }

    fn attest_path(&self, path: &str, rebuilt: bool) -> anyhow::Result<OwnStatement> {
        let question = Question::Attest { path: path.to_owned(), rebuilt };
        let mut word = None;
        let mut keep = |part| {
            if let Part::Word(said) = part {
                word = Some(said);
            }
        };
        match self {
            Self::Daemon(socket) => {
                let _progress = Progress::start("asking the daemon", None);
                read(&mut ask_in_parts(socket, question, REPLY_TIMEOUT)?, |part| {
                    keep(part);
                    Ok(())
                })?;
            }
            Self::Here(here) => {
                let Here { files, offer, key } = &**here;
                let (store, ledger) = (&files.store, &files.ledger);
                let queries = Queries { store, ledger, own: Some(OwnBuilds { store, offer, ledger, key }) };
                queries.answer(&question, io::empty(), |part| {
                    keep(part);
                    Ok(())
                })?;
            }
        }
        word.context("the answer does not say whether it is attested; is the daemon another version?")
    }
}

impl Here {
    fn open(config: &Path) -> anyhow::Result<Self> {
        let files = Files::open(config, true)?;
        let key = files
            .settings
            .read_secrets()?
            .builder_key
            .context("trust.builder_key_file is not set: nothing to sign with")?;
        files.say_that_no_daemon_runs(config);
        let policy = files.settings.offer_policy(TrustedKeys::default(), Some(key.clone()), true);
        let offer = Offer::start(Arc::clone(&files.store), policy, Box::new(|_| {}))?;
        Ok(Self { files, offer, key })
    }
}

/// Builds again, and returns whether all outputs came out the same.
fn rebuild(settings: &Settings, deriver: &str, further: &[String]) -> anyhow::Result<bool> {
    let mut command = Command::new("nix-build");
    command.arg(format!("{}/{deriver}", settings.store.store_dir.as_str())).args([
        "--check",
        "--keep-failed",
        "--no-out-link",
    ]);
    let root = settings.store.real_dir.to_str().and_then(|real| real.strip_suffix("/nix/store"));
    if let Some(root) = root.filter(|root| !root.is_empty() && settings.store.store_dir.as_str() == "/nix/store") {
        command.args(["--store", &format!("local?root={root}")]);
    }
    let progress = Progress::start("building again", None);
    let output = command.args(further).output().context("nix-build cannot be started")?;
    drop(progress);
    if output.status.success() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("may not be deterministic") || said.contains("differs from previous round") {
        return Ok(false);
    }
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    bail!("nix-build --check failed: {}", printable(last));
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The files that differ, each with the first difference, as text.
fn differences(ours: &Path, other: &Path) -> io::Result<String> {
    let mut found = Vec::new();
    compare(ours, other, "", &mut found)?;
    let mut text: String =
        found.iter().take(DIFFERENCES_SHOWN_MAX).map(|line| format!("  {}\n", printable(line))).collect();
    if found.len() > DIFFERENCES_SHOWN_MAX {
        text += &format!("  and {} more\n", found.len() - DIFFERENCES_SHOWN_MAX);
    }
    Ok(text + &format!("the other result is kept in {}\n", other.display()))
}

fn compare(ours: &Path, other: &Path, name: &str, found: &mut Vec<String>) -> io::Result<()> {
    let (one, two) = (fs::symlink_metadata(ours)?, fs::symlink_metadata(other)?);
    let shown = if name.is_empty() { "the path itself" } else { name };
    if one.file_type() != two.file_type() {
        found.push(format!("{shown}: another type of file"));
    } else if one.is_symlink() {
        let targets = (fs::read_link(ours)?, fs::read_link(other)?);
        if targets.0 != targets.1 {
            found.push(format!("{shown}: links to {:?} and {:?}", targets.0, targets.1));
        }
    } else if one.is_dir() {
        let names =
            |path| -> io::Result<BTreeSet<_>> { fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect() };
        let (ours_has, other_has) = (names(ours)?, names(other)?);
        for entry in ours_has.union(&other_has) {
            let below = format!("{name}/{}", entry.to_string_lossy());
            match (ours_has.contains(entry), other_has.contains(entry)) {
                (true, true) => compare(&ours.join(entry), &other.join(entry), &below, found)?,
                (true, false) => found.push(format!("{below}: only in the first result")),
                (false, _) => found.push(format!("{below}: only in the second result")),
            }
        }
    } else {
        // A NAR holds no other permission than whether the owner may execute the file.
        if (one.permissions().mode() ^ two.permissions().mode()) & 0o100 != 0 {
            found.push(format!("{shown}: executable in one result only"));
        }
        let (one, two) = (fs::read(ours)?, fs::read(other)?);
        if one != two {
            let at = one.iter().zip(&two).position(|(one, two)| one != two).unwrap_or(one.len().min(two.len()));
            found.push(format!("{shown}: {} and {} bytes, differing from byte {at} on", one.len(), two.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_by_file_and_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for (root, text) in [(&one, "same\nold"), (&two, "same\nnew")] {
            fs::create_dir_all(root.join("bin")).unwrap();
            fs::write(root.join("bin/app"), text).unwrap();
            fs::write(root.join("equal"), "x").unwrap();
        }
        fs::write(two.join("more"), "x").unwrap();
        std::os::unix::fs::symlink("a", one.join("link")).unwrap();
        std::os::unix::fs::symlink("b", two.join("link")).unwrap();
        let text = differences(&one, &two).unwrap();
        assert!(text.contains("/bin/app: 8 and 8 bytes, differing from byte 5 on"), "{text}");
        assert!(text.contains("/more: only in the second result") && text.contains("/link: links to"), "{text}");
        assert!(!text.contains("equal"), "{text}");
    }
}
