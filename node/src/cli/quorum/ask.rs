//! Asks a question of the running daemon or, if none runs, of the files that it would have open.

use super::eprint_line;
use crate::attestations::{LiveLedger, Part, Queries, Question};
use crate::cli::client::{REPLY_TIMEOUT, control_socket};
use crate::cli::progress::Progress;
use crate::control::{ControlError, PartReader, ask_in_parts};
use crate::daemon::with_members;
use crate::settings::Settings;
use anyhow::{Context as _, bail};
use narmesh_store::NixStore;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;
use std::sync::Arc;

/// Hands each part of the answer to `each`, except progress and notes, which go to standard error.
pub(super) fn ask(
    config: &Path,
    question: Question,
    input: Option<File>,
    mut each: impl FnMut(Part) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut progress = match question {
        Question::Import => Progress::start("reading", Some("lines")),
        _ => Progress::start("judging", Some("paths")),
    };
    let mut shown = |part| match part {
        Part::Progress(count) => {
            progress.set_count(count as u64);
            Ok(())
        }
        Part::Note(note) => {
            progress.suspend(|| eprint_line(&note));
            Ok(())
        }
        part @ (Part::Report(_)
        | Part::Text(_)
        | Part::Imported(_)
        | Part::Word(_)
        | Part::Done
        | Part::Refused { .. }) => {
            progress.end();
            each(part)
        }
    };
    match ask_in_parts(&control_socket(config), question.clone(), REPLY_TIMEOUT) {
        Ok(mut answer) => {
            let fed = input.map(|file| answer.feed(file)).transpose()?;
            read(&mut answer, shown)?;
            // The answer is complete, so the thread that sends the file has ended: with its last byte, or with an
            // error.
            fed.map_or(Ok(Ok(())), |fed| fed.join().map_err(|_| anyhow::anyhow!("reading the file panicked")))??;
            Ok(())
        }
        Err(ControlError::NotRunning { .. }) => {
            let files = Files::open(config, question == Question::Import)?;
            files.say_that_no_daemon_runs(config);
            let queries = Queries { store: &files.store, ledger: &files.ledger, own: None };
            let mut failed = None;
            let answered = match input {
                Some(file) => queries.answer(&question, BufReader::new(file), |part| keep(shown(part), &mut failed)),
                None => queries.answer(&question, io::empty(), |part| keep(shown(part), &mut failed)),
            };
            failed.map_or(answered, Err)
        }
        Err(error) => Err(error.into()),
    }
}

/// Hands every part of the daemon's answer to `each`; a refusal is an error.
pub(super) fn read(answer: &mut PartReader, mut each: impl FnMut(Part) -> anyhow::Result<()>) -> anyhow::Result<()> {
    loop {
        match answer.next_part()? {
            Part::Done => return Ok(()),
            Part::Refused { why } => bail!("the daemon refused: {why}"),
            part => each(part)?,
        }
    }
}

/// Keeps an error that is not one of reading or writing in `failed`, and ends the answer with an I/O error in its
/// place.
fn keep(done: anyhow::Result<()>, failed: &mut Option<anyhow::Error>) -> io::Result<()> {
    done.map_err(|error| {
        *failed = Some(error);
        io::ErrorKind::Interrupted.into()
    })
}

/// The store path or base name that `text` is, or that the link `text` (such as `./result`) points to.
pub(super) fn resolve_link(text: &str) -> String {
    let linked = std::fs::read_link(text).ok();
    linked.as_deref().and_then(Path::to_str).unwrap_or(text).to_owned()
}

/// What a running daemon would have open.
pub(super) struct Files {
    pub(super) settings: Settings,
    pub(super) store: Arc<NixStore>,
    pub(super) ledger: LiveLedger,
}

impl Files {
    pub(super) fn open(config: &Path, writing: bool) -> anyhow::Result<Self> {
        let settings = Settings::load(config)?;
        let settings = match settings.read_secrets() {
            Ok(secrets) => with_members(&settings, &secrets.peer_id(), None),
            // Without the node key it is not known which member this is, and the rules of the file stand alone.
            Err(_) => settings,
        };
        let own = settings.read_builder_public_key()?;
        let (policy, _) = settings.quorum.policy(own.as_ref())?;
        let (state_dir, store_dir) = (&settings.node.state_dir, &settings.store.store_dir);
        let location = settings.store.clone();
        let store = NixStore::open(location).context("the Nix store")?;
        let held = Arc::clone(&store);
        let ledger = LiveLedger::new(state_dir, store_dir, policy, Box::new(move |part| held.contains(part)));
        let ledger = ledger.named(settings.quorum.key_names(own.as_ref()));
        // Who only reads must not create the file.
        let ledger = if writing { ledger } else { ledger.looking() };
        ledger.keep(settings.quorum.keep.iter().copied());
        ledger.catch_up()?;
        Ok(Self { settings, store, ledger })
    }

    pub(super) fn say_that_no_daemon_runs(&self, config: &Path) {
        eprint_line(&format!(
            "no daemon runs: this is what is in {}, judged by the rules in {}",
            self.settings.node.state_dir.display(),
            config.display()
        ));
    }
}
