//! `narmesh quorum report` and `why`: each part is written as it comes.

use super::ask::{ask, named};
use super::{emit, printable, progress};
use crate::quorum::{Page, Part, Question, Scope};
use crate::status::text::utc;
use anyhow::Context as _;
use indicatif::ProgressBar;
use narmesh_quorum::{ReportHead, ReportPart};
use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub(in crate::cli) struct ReportArguments {
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
pub(in crate::cli) struct WhyArguments {
    /// A store path or its base name
    path: String,
}

/// Whether everything asked for is agreed.
pub(super) fn report(config: &Path, arguments: &ReportArguments) -> anyhow::Result<bool> {
    let scope = match (&arguments.path, &arguments.closure) {
        (Some(text), _) => Scope::Path(named(text)),
        (None, Some(text)) => Scope::Closure(named(text)),
        (None, None) => Scope::All,
    };
    let seen = std::io::stdout().is_terminal();
    match &arguments.html {
        Some(name) => {
            let mut page = Page::default();
            let mut file = None;
            let head = each_part(config, scope, false, |part| {
                // Not before there is something to write: a refusal leaves what was there.
                let file = match &mut file {
                    Some(file) => file,
                    None => file.insert(BufWriter::new(File::create(name).context(name.display().to_string())?)),
                };
                Ok(file.write_all(page.part(&part).as_bytes())?)
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
            let head = each_part(config, scope, seen, |part| Ok(emit(&json.part(&part)?)?))?;
            emit(&json.end())?;
            Ok(head.agreed)
        }
        None => {
            let mut text = Text::default();
            let head = each_part(config, scope, seen, |part| Ok(emit(&text.part(&part))?))?;
            emit(&text.end(&head))?;
            Ok(head.agreed)
        }
    }
}

/// Whether it is agreed.
pub(super) fn why(config: &Path, arguments: &WhyArguments) -> anyhow::Result<bool> {
    let head = each_part(config, Scope::Path(named(&arguments.path)), true, |part| {
        let ReportPart::Path(path) = part else { return Ok(()) };
        let sentences = path.sentences.iter().map(|sentence| printable(sentence) + "\n");
        Ok(emit(&sentences.collect::<String>())?)
    })?;
    Ok(head.agreed)
}

/// Gives the head, when all parts were there. `seen` says whether somebody sees each as it is written; else they are counted on
/// standard error, as paths are while they are judged.
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
            written.part(&part);
        }
        each(part)
    })?;
    head.context("the answer has no beginning")
}

/// Counts paths that are written.
#[derive(Default)]
struct Written {
    bar: Option<ProgressBar>,
}

impl Written {
    fn part(&mut self, part: &ReportPart) {
        match part {
            // What was judged was counted until now.
            ReportPart::Head(_) => self.bar = Some(progress("paths written")),
            ReportPart::Path(_) => self.bar.iter().for_each(|bar| bar.inc(1)),
            ReportPart::Conflict(_) | ReportPart::NoLongerAgreed(_) => {}
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
    }
}

/// For people.
#[derive(Default)]
struct Text {
    head: Option<ReportHead>,
}

impl Text {
    fn part(&mut self, part: &ReportPart) -> String {
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
        text.lines().map(|line| printable(line) + "\n").collect()
    }

    /// Once, after what is worse.
    fn weakest(&mut self) -> String {
        let head = self.head.take().filter(|head| !head.agreed);
        let weakest = head.and_then(|head| head.weakest);
        weakest.map_or_else(String::new, |weakest| format!("weakest link: {}\n", weakest.chain.join(" -> ")))
    }

    fn end(&self, head: &ReportHead) -> String {
        format!("\n{}\n", totals(head))
    }
}

/// One object, whose lists are written item by item.
#[derive(Default)]
struct Json {
    /// How many of [`LISTS`] are begun.
    begun: usize,
    is_first: bool,
}

/// In the order of the parts.
const LISTS: [&str; 3] = ["conflicts", "no_longer_agreed", "paths"];

impl Json {
    fn part(&mut self, part: &ReportPart) -> anyhow::Result<String> {
        let (list, item) = match part {
            ReportPart::Head(head) => {
                let mut text = serde_json::to_string(head)?;
                // The object goes on.
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
        let text: String = parts.iter().map(|part| json.part(part).unwrap()).collect();
        serde_json::from_str(&(text.clone() + &json.end())).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn the_json_is_one_object_whatever_is_missing() {
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
    fn hostile_names_do_not_play_with_the_terminal() {
        let text = Text::default().part(&conflict("a\u{1b}[2Jb\u{7}"));
        assert_eq!(text, "CONFLICT a\u{fffd}[2Jb\u{fffd}\n");
    }

    #[test]
    fn what_nobody_sees_being_written_is_counted() {
        let path = r#"{"path":"p","verdict":"short","k":2,"of":2,"fingerprints":[],"disputed_by":[],"vetoed":false,"void":[],
            "not_counted":[],"missing":[],"held":null,"needed_by":null,"needs_unknown":false,"served_at_ms":null,"turned":null,
            "policy":"","sentences":[]}"#;
        let path = ReportPart::Path(serde_json::from_str(path).unwrap());
        let mut written = Written::default();
        [&head(), &conflict("a"), &path, &path].into_iter().for_each(|part| written.part(part));
        assert_eq!(written.bar.as_ref().unwrap().position(), 2);
    }

    #[test]
    fn a_report_of_nothing_says_why_it_is_not_agreed() {
        let ReportPart::Head(mut head) = head() else { panic!("a head") };
        assert!(totals(&head).starts_with("1 paths: 0 agreed"));
        head.totals.paths = 0;
        assert_eq!(totals(&head), "0 paths: nothing is attested here, so nothing is agreed (exit code 1)");
    }
}
