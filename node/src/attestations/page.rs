//! The report as one HTML file: it needs no server, makes no request, and can be read on a phone.
//!
//! Names come from strangers, so every text goes through [`escaped`]. The content security policy forbids everything
//! but the style and the script in the file itself.

use narmesh_quorum::{FingerprintReport, PathReport, ReportHead, ReportPart, ReportScope, State};
use std::fmt::{self, Write as _};

/// A page that is being written: gives the text of each part, in the order of the parts.
#[derive(Debug, Default)]
pub struct Page {
    head: Option<ReportHead>,
    section: Section,
}

/// The section of the page that was begun last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Section {
    #[default]
    Head,
    Conflicts,
    Served,
    Paths,
}

impl Page {
    /// The text that this part adds to the page.
    pub fn render_part(&mut self, part: &ReportPart) -> String {
        let mut text = String::new();
        self.write(&mut text, part).expect("a String takes everything");
        text
    }

    /// The text that ends the page.
    pub fn end(&mut self) -> String {
        let mut text = String::new();
        self.go_to(&mut text, Section::Paths)
            .and_then(|()| write!(text, "</main>\n{FOOT}<script>{SCRIPT}</script>\n</body>\n</html>\n"))
            .expect("a String takes everything");
        text
    }

    fn write(&mut self, text: &mut String, part: &ReportPart) -> fmt::Result {
        match part {
            ReportPart::Head(head) => {
                begin(text, head)?;
                self.head = Some((**head).clone());
                Ok(())
            }
            ReportPart::Conflict(path) => {
                self.go_to(text, Section::Conflicts)?;
                writeln!(text, "<li>{}</li>", escaped(path))
            }
            ReportPart::NoLongerAgreed(served) => {
                self.go_to(text, Section::Served)?;
                let (path, why, at) = (escaped(&served.path), escaped(&served.why), served.served_at_ms);
                writeln!(text, "<li>{path}: {why}; served <time data-ms=\"{at}\"></time></li>")
            }
            ReportPart::Path(path) => {
                self.go_to(text, Section::Paths)?;
                path_details(text, path)
            }
        }
    }

    fn go_to(&mut self, text: &mut String, section: Section) -> fmt::Result {
        if self.section == section {
            return Ok(());
        }
        // These two are lists, which have to be closed; the paths are closed by `end`.
        if matches!(self.section, Section::Conflicts | Section::Served) {
            writeln!(text, "</ul></section>")?;
        }
        self.section = section;
        match section {
            Section::Head => Ok(()),
            Section::Conflicts => writeln!(text, "<section class=\"alarm\"><h2>Conflicts</h2><ul>"),
            Section::Served => {
                writeln!(text, "<section class=\"alarm\"><h2>Served before, no longer agreed</h2><ul>")
            }
            Section::Paths => self.head.as_ref().map_or(Ok(()), |head| filter_form(text, head)),
        }
    }
}

fn begin(text: &mut String, head: &ReportHead) -> fmt::Result {
    let title = match &head.scope {
        ReportScope::Path(path) => format!("Quorum report of {path}"),
        ReportScope::Closure(path) => format!("Quorum report of the closure of {path}"),
        ReportScope::All => "Quorum report of all known paths".to_owned(),
    };
    let title = escaped(&title);
    write!(text, "{HEAD}<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n")?;
    let verdict = if head.agreed { "agreed" } else { "not agreed" };
    let class = if head.agreed { "agreed" } else { "conflict" };
    let k = head.k.map_or_else(|| "no number".to_owned(), |k| k.to_string());
    writeln!(
        text,
        "<p><strong class=\"{class}\">{verdict}</strong>: {k} of {} groups of builders must have got the same result; mode {}; report made <time data-ms=\"{}\"></time>.</p>",
        head.of,
        mode(head),
        head.made_at_ms
    )?;
    if let Some(weakest) = head.weakest.as_ref().filter(|_| !head.agreed) {
        let chain = weakest.chain.iter().map(|path| escaped(path)).collect::<Vec<_>>().join(" → ");
        writeln!(text, "<p>Weakest link ({}): {chain}</p>", state(weakest.verdict))?;
    }
    Ok(())
}

fn filter_form(text: &mut String, head: &ReportHead) -> fmt::Result {
    let totals = head.totals;
    let of = |name: &str, count: usize| {
        format!("<label class=\"{name}\"><input type=\"checkbox\" value=\"{name}\" checked> {name} {count}</label>\n")
    };
    write!(
        text,
        "<form id=\"filter\"><input type=\"search\" id=\"text\" placeholder=\"name, hash or builder\" aria-label=\"filter\">\n{}{}{}{}{}<output id=\"shown\">{} paths</output></form>\n<main>\n",
        of("conflict", totals.conflict),
        of("none", totals.none),
        of("short", totals.short),
        of("agreed", totals.agreed),
        of("content-addressed", totals.content_addressed),
        totals.paths,
    )
}

fn path_details(page: &mut String, path: &PathReport) -> fmt::Result {
    let name = state(path.verdict);
    let (hash_part, rest) = path.path.split_once('-').unwrap_or((&path.path, ""));
    let most = path.fingerprints.first().map_or(0, |most| most.groups);
    writeln!(
        page,
        "<details data-verdict=\"{name}\"><summary><span class=\"verdict {name}\">{name}</span> <span class=\"count\">{most}/{}</span> <span class=\"name\">{}</span> <span class=\"hash\">{}</span></summary>",
        path.k,
        escaped(rest),
        escaped(hash_part)
    )?;
    writeln!(page, "<ul>")?;
    path.sentences.iter().try_for_each(|sentence| writeln!(page, "<li>{}</li>", escaped(sentence)))?;
    if let Some(needed_by) = &path.needed_by {
        writeln!(page, "<li>Needed by {}</li>", escaped(needed_by))?;
    }
    writeln!(page, "</ul>")?;
    path.fingerprints.iter().try_for_each(|it| fingerprint(page, it))?;
    writeln!(page, "</details>")
}

fn fingerprint(page: &mut String, it: &FingerprintReport) -> fmt::Result {
    writeln!(
        page,
        "<dl><dt>NarHash</dt><dd>{}</dd><dt>NarSize</dt><dd>{}</dd><dt>Fingerprint</dt><dd>{}</dd><dt>Builders</dt><dd>{}</dd><dt>Groups</dt><dd>{}</dd></dl>",
        escaped(&it.nar_hash),
        it.nar_size,
        escaped(&it.fingerprint),
        escaped(&names(it)),
        it.groups
    )
}

/// The builders of a result, with a note at those that have only a bare signature.
fn names(it: &FingerprintReport) -> String {
    let name = |name: &String| match it.by_signature.contains(name) {
        true => format!("{name} (bare signature)"),
        false => name.clone(),
    };
    it.builders.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn state(state: State) -> &'static str {
    match state {
        State::Agreed => "agreed",
        State::Conflict => "conflict",
        State::Short => "short",
        State::None => "none",
        State::ContentAddressed => "content-addressed",
    }
}

fn mode(head: &ReportHead) -> &'static str {
    match head.mode {
        narmesh_quorum::Mode::Off => "off",
        narmesh_quorum::Mode::Observe => "observe",
        narmesh_quorum::Mode::Prefer => "prefer",
        narmesh_quorum::Mode::Require => "require",
    }
}

/// Escapes text for use in HTML, also in attributes in double quotes. Characters that change the writing direction, and
/// control characters, are shown as their numbers: a name could use them to look like another.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(character.escape_unicode());
            }
            other if other.is_control() => out.extend(other.escape_unicode()),
            other => out.push(other),
        }
    }
    out
}

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
"#;

const STYLE: &str = r"
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 0.75rem; overflow-wrap: anywhere; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 0.3rem 0; }
form { display: flex; flex-wrap: wrap; gap: 0.4rem 0.9rem; align-items: center; padding: 0.5rem 0; position: sticky; top: 0; background: Canvas; }
input[type=search] { flex: 1 1 14rem; font: inherit; padding: 0.3rem 0.5rem; }
details { border-top: 1px solid var(--line); padding: 0.3rem 0; }
summary { cursor: pointer; } .hash, .count { opacity: 0.7; font-size: 0.85rem; }
.verdict { display: inline-block; min-width: 4.6rem; font-weight: 600; }
.agreed { color: #1a7f37; } .conflict { color: #c4232c; } .short { color: #9a6700; } .none { color: #6b6b6b; } .content-addressed { color: #0b64c0; }
@media (prefers-color-scheme: dark) { .agreed { color: #4ac26b; } .conflict { color: #ff7b72; } .short { color: #d4a72c; } .none { color: #a0a0a0; } .content-addressed { color: #6cb6ff; } }
.alarm { border: 2px solid #c4232c; padding: 0.3rem 0.7rem; margin: 0.6rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 0.7rem; font-size: 0.85rem; margin: 0.4rem 0 0.4rem 0.8rem; }
dt { opacity: 0.7; } dd { margin: 0; font-family: ui-monospace, monospace; } ul { padding-left: 1.2rem; }
";

const FOOT: &str = "<footer><p>Agreement says that builders got the same bytes, not that their inputs were honest. Builders that take their compiler from one cache are not independent.</p></footer>\n";

const SCRIPT: &str = r##"
"use strict";
for (const time of document.querySelectorAll("time[data-ms]")) {
  time.textContent = new Date(Number(time.dataset.ms)).toISOString();
}
const rows = [...document.querySelectorAll("main > details")].map(row => [row, row.textContent.toLowerCase()]);
const text = document.getElementById("text"), boxes = [...document.querySelectorAll("#filter input[type=checkbox]")];
const filter = () => {
  const wanted = new Set(boxes.filter(box => box.checked).map(box => box.value));
  const part = text.value.trim().toLowerCase();
  let shown = 0;
  for (const [row, words] of rows) {
    row.hidden = !wanted.has(row.dataset.verdict) || !words.includes(part);
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = `${shown} of ${rows.length} paths`;
};
document.getElementById("filter").addEventListener("input", filter);
document.getElementById("filter").addEventListener("submit", event => event.preventDefault());
filter();
"##;

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{BuilderKey, HashPart, NarHash, StorePath};
    use narmesh_quorum::closure::{ClosurePath, Judged};
    use narmesh_quorum::{
        Builder, Claim, FingerprintDigest, Ledger, LedgerLimits, Mode, NameDigest, Policy, PolicyRules, Report,
        Require, TurnedReport, VerifiedStatement, WallMs,
    };

    fn page(names: [&str; 2]) -> String {
        let builder = |(seed, name): (u8, &str)| Builder {
            name: name.to_owned(),
            key: BuilderKey([seed; 32]),
            group: None,
            signs_only_own_builds: false,
        };
        let rules = PolicyRules {
            builders: (1..).zip(names).map(builder).collect(),
            mode: Mode::Observe,
            require: Some(Require { k: 2, overrides: Vec::new(), grace: None, veto: false }),
            ..PolicyRules::default()
        };
        let (policy, _) = Policy::new(rules).unwrap();
        let mut ledger = Ledger::new(LedgerLimits::default());
        let path = |number| StorePath::new(HashPart([number; 20]), "hello-2.10").unwrap();
        let mut say = |seed: u8, number: u8, result: u8| {
            let claim = Claim {
                fingerprint: FingerprintDigest([result; 32]),
                nar_hash: NarHash([result; 32]),
                nar_size: 1,
                name: NameDigest::of("hello-2.10"),
            };
            let hash_part = path(number).hash_part();
            let verified = VerifiedStatement::from_record(BuilderKey([seed; 32]), hash_part, claim, Some(WallMs(1)), 1);
            ledger.insert(&verified, Some(WallMs(1)));
        };
        say(1, 1, 1);
        say(2, 1, 1);
        say(1, 2, 1);
        say(2, 2, 2);
        let member =
            |number| ClosurePath { path: path(number), references: Vec::new(), content_addressed: false, held: None };
        let judged = [1, 2, 3].map(|number| Judged::alone(&policy, &ledger, &member(number)));
        let report = Report::paths(&policy, ReportScope::All, judged.into(), WallMs(1));
        let mut page = Page::default();
        let mut text = page.render_part(&ReportPart::Head(Box::new(report.head().clone())));
        for path in report.conflicts() {
            text += &page.render_part(&ReportPart::Conflict(path.to_string()));
        }
        let (path, why) = (path(1).to_string(), "turned".to_owned());
        let turned = TurnedReport { path, served_at_ms: 1, revoked_builders: Vec::new(), why };
        text += &page.render_part(&ReportPart::NoLongerAgreed(turned));
        for judged in report.judged_paths() {
            text += &page.render_part(&ReportPart::Path(Box::new(PathReport::of(&policy, &ledger, judged))));
        }
        text + &page.end()
    }

    #[test]
    fn conflicts_come_first_and_every_path_has_its_details() {
        let page = page(["a", "b"]);
        assert_eq!(page.matches("<details ").count(), 3);
        let at = |verdict: &str| page.find(&format!("data-verdict=\"{verdict}\"")).unwrap();
        assert!(at("conflict") < at("none") && at("none") < at("agreed"));
        let heading = |text: &str| page.find(&format!("<h2>{text}</h2>")).unwrap();
        assert!(heading("Conflicts") < heading("Served before, no longer agreed"));
        assert!(heading("Served before, no longer agreed") < at("conflict"));
        for element in ["section", "ul", "main", "form", "details"] {
            let [opened, closed] =
                [format!("<{element}"), format!("</{element}>")].map(|tag| page.matches(&tag).count());
            assert_eq!(opened, closed, "{element}");
        }
        assert!(page.contains("is in conflict: builders got 2 different results"));
        for source in ["http:", "https:", "src=\"", "url("] {
            assert!(!page.contains(source), "{source}: the page fetches nothing");
        }
    }

    #[test]
    fn hostile_names_stay_text() {
        let page = page(["<script>alert(1)</script>", "\"><img onerror='x' \u{202e}&amp;\u{7}"]);
        assert_eq!((page.matches("<script").count(), page.matches("<img").count()), (1, 0));
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(page.contains("&quot;&gt;&lt;img onerror=&#39;x&#39; \\u{202e}&amp;amp;\\u{7}"));
        assert!(!page.contains('\u{202e}') && !page.contains('\u{7}'));
    }
}
