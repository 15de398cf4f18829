//! `narmesh quorum report` and `why`: each part of the answer is written as it arrives.

use super::ask::{ask, resolve_link};
use super::{emit, printable};
use crate::attestations::{Page, Part, Question, Scope};
use crate::cli::progress::Progress;
use crate::describe::escaped;
use crate::status::text::utc;
use anyhow::Context as _;
use narmesh_quorum::{ReportHead, ReportPart};
use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub(in crate::cli) struct ReportArguments {
    /// Only this path: a store path or its base name
    #[arg(long, value_name = "PATH", group = "scope")]
    path: Option<String>,
    /// This path and everything that it needs at run time
    #[arg(long, value_name = "PATH", group = "scope")]
    closure: Option<String>,
    /// Every path for which there is an attestation (the default)
    #[arg(long, group = "scope")]
    all: bool,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// Write a web page that any browser can open from the file
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(in crate::cli) struct WhyArguments {
    /// A store path or its base name
    path: String,
}

/// Returns whether everything asked for is agreed.
pub(super) fn report(config: &Path, arguments: &ReportArguments) -> anyhow::Result<bool> {
    let scope = match (&arguments.path, &arguments.closure) {
        (Some(text), _) => Scope::Path(resolve_link(text)),
        (None, Some(text)) => Scope::Closure(resolve_link(text)),
        (None, None) => Scope::All,
    };
    let seen = std::io::stdout().is_terminal();
    match &arguments.html {
        Some(name) => {
            let mut page = Page::default();
            let mut file = None;
            let head = each_part(config, scope, false, |part| {
                // Created only once there is something to write, so that a refusal leaves an older file as it was.
                let file = match &mut file {
                    Some(file) => file,
                    None => file.insert(BufWriter::new(File::create(name).context(name.display().to_string())?)),
                };
                Ok(file.write_all(page.render_part(&part).as_bytes())?)
            })?;
            if let Some(mut file) = file {
                file.write_all(page.end().as_bytes())?;
                file.flush()?;
            }
            emit(&format!("{}: {}\n", name.display(), totals(&head)))?;
            Ok(head.agreed)
        }
        None if arguments.json => {
            let mut json = Json::default();
            let head = each_part(config, scope, seen, |part| Ok(emit(&json.render_part(&part)?)?))?;
            emit(&json.end())?;
            Ok(head.agreed)
        }
        None => {
            let mut text = Text::default();
            let head = each_part(config, scope, seen, |part| Ok(emit(&text.render_part(&part))?))?;
            emit(&text.end(&head))?;
            Ok(head.agreed)
        }
    }
}

/// Returns whether the path is agreed.
pub(super) fn why(config: &Path, arguments: &WhyArguments) -> anyhow::Result<bool> {
    let head = each_part(config, Scope::Path(resolve_link(&arguments.path)), true, |part| {
        let ReportPart::Path(path) = part else { return Ok(()) };
        let sentences = path.sentences.iter().map(|sentence| printable(sentence) + "\n");
        Ok(emit(&sentences.collect::<String>())?)
    })?;
    Ok(head.agreed)
}

/// Hands each part of the report to `each`, and returns the head when all have come. `seen` says whether the user sees
/// the parts as they are written; if not, they are counted on standard error, as paths are while they are judged.
fn each_part(
    config: &Path,
    scope: Scope,
    seen: bool,
    mut each: impl FnMut(ReportPart) -> anyhow::Result<()>,
) -> anyhow::Result<ReportHead> {
    let (mut head, mut written) = (None, Written::default());
    ask(config, Question::Report(scope), None, |part| {
        let Part::Report(part) = part else { return Ok(()) };
        if let ReportPart::Head(found) = &part {
            head = Some((**found).clone());
        }
        if !seen {
            written.render_part(&part);
        }
        each(part)
    })?;
    head.context("the daemon's answer lacks its first part")
}

/// Counts the paths written so far, on standard error.
#[derive(Default)]
struct Written {
    progress: Option<Progress>,
}

impl Written {
    fn render_part(&mut self, part: &ReportPart) {
        match part {
            // The head comes once all paths are judged; until then the judged ones were counted.
            ReportPart::Head(_) => self.progress = Some(Progress::start("writing", Some("paths"))),
            ReportPart::Path(_) => self.progress.iter().for_each(Progress::add_one),
            ReportPart::Conflict(_) | ReportPart::NoLongerAgreed(_) => {}
        }
    }
}

/// The report as text for people.
#[derive(Default)]
struct Text {
    head: Option<ReportHead>,
}

impl Text {
    fn render_part(&mut self, part: &ReportPart) -> String {
        let text = match part {
            ReportPart::Head(head) => {
                self.head = Some((**head).clone());
                return String::new();
            }
            ReportPart::Conflict(path) => format!("CONFLICT {path}\n"),
            ReportPart::NoLongerAgreed(served) => {
                let at = utc(served.served_at_ms / 1_000);
                format!("NO LONGER AGREED {} was given to Nix at {at}: {}\n", served.path, served.why)
            }
            ReportPart::Path(path) => {
                let sentences: String = path.sentences.iter().map(|sentence| format!("  {sentence}\n")).collect();
                format!("{}\n{}\n{sentences}", self.weakest(), path.path)
            }
        };
        // Each line is made harmless by itself: names of paths and builders come from others.
        text.lines().map(|line| printable(line) + "\n").collect()
    }

    /// The weakest link, once: before the first path, after the conflicts and what is no longer agreed.
    fn weakest(&mut self) -> String {
        let head = self.head.take().filter(|head| !head.agreed);
        let weakest = head.and_then(|head| head.weakest);
        weakest.map_or_else(String::new, |weakest| format!("weakest link: {}\n", weakest.chain.join(" -> ")))
    }

    fn end(&self, head: &ReportHead) -> String {
        let names: Vec<_> = head.builders_from_roster.iter().map(|name| escaped(name)).collect();
        let from_roster = match names.as_slice() {
            [] => String::new(),
            names => format!("builders by the roster of the mesh: {}\n", names.join(", ")),
        };
        format!("\n{}\n{from_roster}", totals(head))
    }
}

/// The report as one JSON object, whose lists are written item by item.
#[derive(Default)]
struct Json {
    /// The number of [`LISTS`] begun so far.
    begun: usize,
    is_first: bool,
}

/// The lists of the object, in the order in which their parts arrive.
const LISTS: [&str; 3] = ["conflicts", "no_longer_agreed", "paths"];

impl Json {
    fn render_part(&mut self, part: &ReportPart) -> anyhow::Result<String> {
        let (list, item) = match part {
            ReportPart::Head(head) => {
                let mut text = serde_json::to_string(head)?;
                // Without its closing brace, because the lists follow.
                text.pop();
                return Ok(text);
            }
            ReportPart::Conflict(path) => (1, serde_json::to_string(path)?),
            ReportPart::NoLongerAgreed(served) => (2, serde_json::to_string(served)?),
            ReportPart::Path(path) => (3, serde_json::to_string(path)?),
        };
        let begun = self.begin(list);
        let comma = if std::mem::take(&mut self.is_first) { "" } else { "," };
        Ok(format!("{begun}{comma}\n{item}"))
    }

    fn begin(&mut self, list: usize) -> String {
        let mut text = String::new();
        for (number, name) in LISTS.iter().enumerate().take(list).skip(self.begun) {
            let end = if number == 0 { "" } else { "]" };
            text += &format!("{end},\n\"{name}\":[");
            self.is_first = true;
        }
        self.begun = self.begun.max(list);
        text
    }

    fn end(&mut self) -> String {
        self.begin(LISTS.len()) + "]}\n"
    }
}

fn totals(head: &ReportHead) -> String {
    let totals = &head.totals;
    if totals.paths == 0 {
        return "0 paths: nothing is attested here, so nothing is agreed (exit code 1)".to_owned();
    }
    format!(
        "{} paths: {} agreed ({} disputed), {} content-addressed, {} short, {} none, {} conflict; {} held here differ \
         from the agreed result",
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

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_quorum::TurnedReport;

    fn head() -> ReportPart {
        let json = r#"{"version":1,"made_at_ms":7,"scope":"all","mode":"require","k":2,"of":2,"agreed":false,"weakest":null,
            "totals":{"paths":1,"agreed":0,"conflict":0,"short":1,"none":0,"content_addressed":0,"disputed":0,"held_differs":0}}"#;
        ReportPart::Head(serde_json::from_str(json).unwrap())
    }

    fn conflict(name: &str) -> ReportPart {
        ReportPart::Conflict(name.to_owned())
    }

    fn json(parts: &[ReportPart]) -> serde_json::Value {
        let mut json = Json::default();
        let text: String = parts.iter().map(|part| json.render_part(part).unwrap()).collect();
        serde_json::from_str(&(text.clone() + &json.end())).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn json_is_one_object_even_if_lists_are_empty() {
        let empty = json(&[head()]);
        for list in LISTS {
            assert_eq!(empty[list], serde_json::json!([]), "{list}");
        }
        assert_eq!((&empty["version"], &empty["totals"]["short"]), (&1.into(), &1.into()));
        let turned = TurnedReport {
            path: "p".to_owned(),
            served_at_ms: 1,
            revoked_builders: vec!["b".to_owned()],
            why: "w".to_owned(),
        };
        let whole = json(&[head(), conflict("one"), conflict("two"), ReportPart::NoLongerAgreed(turned.clone())]);
        assert_eq!(whole["conflicts"], serde_json::json!(["one", "two"]));
        assert_eq!(whole["no_longer_agreed"][0]["revoked_builders"][0], "b");
        assert_eq!(json(&[head(), ReportPart::NoLongerAgreed(turned)])["conflicts"], serde_json::json!([]));
    }

    #[test]
    fn control_characters_in_names_do_not_reach_the_terminal() {
        let text = Text::default().render_part(&conflict("a\u{1b}[2Jb\u{7}"));
        assert_eq!(text, "CONFLICT a\u{fffd}[2Jb\u{fffd}\n");
    }

    #[test]
    fn paths_written_out_of_sight_are_counted() {
        let path = r#"{"path":"p","verdict":"short","k":2,"of":2,"fingerprints":[],"disputed_by":[],"vetoed":false,"void":[],
            "not_counted":[],"missing":[],"held":null,"needed_by":null,"needs_unknown":false,"served_at_ms":null,"turned":null,
            "policy":"","sentences":[]}"#;
        let path = ReportPart::Path(serde_json::from_str(path).unwrap());
        let mut written = Written::default();
        [&head(), &conflict("a"), &path, &path].into_iter().for_each(|part| written.render_part(part));
        assert_eq!(written.progress.as_ref().unwrap().count(), 2);
    }

    #[test]
    fn a_report_of_nothing_says_why_it_is_not_agreed() {
        let ReportPart::Head(mut head) = head() else { panic!("a head") };
        assert!(totals(&head).starts_with("1 paths: 0 agreed"));
        head.totals.paths = 0;
        assert_eq!(totals(&head), "0 paths: nothing is attested here, so nothing is agreed (exit code 1)");
    }
}
