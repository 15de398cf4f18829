//! What `narmesh quorum` reads from files, and the pages that it writes for people.

use super::attestations::signed;
use super::{Outcome, Target, magnitude};
use crate::memory::MemoryBound;
use narmesh::attestations::{ImportError, Imported, Page, read_file};
use narmesh_protocol::{Attestation, BuilderKey, NixSecretKey, StoreDir, attestation_file};
use narmesh_protocol::{HashPart, NarHash, StorePath};
use narmesh_quorum::closure::{ClosurePath, Judged};
use narmesh_quorum::{
    Builder, Claim, FingerprintDigest, Ledger, LedgerLimits, NameDigest, PathReport, Policy, PolicyRules, Report,
    ReportPart, ReportScope, Require, Revocation, Served, VerifiedStatement, WallMs, find_no_longer_agreed,
};
use std::io::BufReader;

pub(super) const TARGETS: [Target; 2] = [
    Target {
        name: "attestation-file",
        run: file,
        seeds: file_seeds,
        words: &[
            b"\n",
            b"#",
            b"narmesh-attestations-1;/nix/store\n",
            b"builder-1:",
            b"\xff",
            b"\r\n",
            b" ",
            b";",
            b",",
            b"1;/nix/store/",
            b"7h7qgvs4kgzsn8a6rb273saxyqh4jxlz-x",
            b"1790000000000",
        ],
        input_bytes_max: 16 << 10,
    },
    Target {
        name: "quorum-page",
        run: page,
        seeds: page_seeds,
        words: &[
            b"|",
            b"</title>",
            b"<script>",
            b"<!--",
            b"]]>",
            b"&lt;",
            b"&#39;",
            b"'\"",
            b"\\u003c",
            b"\x1b[2J",
            b"\n",
            "\u{202e}".as_bytes(),
            "\u{2028}".as_bytes(),
            "\u{0}".as_bytes(),
        ],
        input_bytes_max: 2 << 10,
    },
];

/// A batch of lines is held together with the result of each line, and even a line of one byte is refused with a sentence.
const FILE_MEMORY: MemoryBound = MemoryBound { per_byte: 512, constant: 64 << 10 };
/// The lines that are verified at a time, and two more: the header and one line of the next batch.
const MORE_THAN_A_BATCH: usize = 8_194;

fn store_dir() -> StoreDir {
    StoreDir::parse("/nix/store").expect("a store directory")
}

fn key(seed: u8) -> NixSecretKey {
    NixSecretKey::from_seed(&format!("builder-{seed}"), &[seed; 32]).expect("a name")
}

/// A policy with one builder that counts: the one that signed what `signed` returns.
fn policy() -> Policy {
    let key = BuilderKey(key(3).public().bytes());
    let builder = Builder { name: "b".to_owned(), key, group: None, signs_only_own_builds: false };
    Policy::new(PolicyRules { builders: vec![builder], ..PolicyRules::default() }).expect("rules").0
}

fn of_a_stranger() -> Attestation {
    let statement = signed().remove(0).statement;
    Attestation::sign(&key(4), &store_dir(), statement, 1)
}

fn file_seeds() -> Vec<Vec<u8>> {
    let line = |key: &NixSecretKey, it: &Attestation| attestation_file::line(&store_dir(), &key.public(), it);
    let header = attestation_file::header(&store_dir());
    let lines: String = signed().iter().map(|it| line(&key(3), it)).collect();
    let stranger = line(&key(4), &of_a_stranger());
    let under_another_name = line(&key(4), &signed().remove(0));
    vec![
        header.clone().into_bytes(),
        format!("{header}{lines}").into_bytes(),
        format!("{header}# words\n\n{stranger}{under_another_name}{lines}no attestation").into_bytes(),
        format!("{header}{}{stranger}", "\n".repeat(MORE_THAN_A_BATCH)).into_bytes(),
        [header.as_bytes(), b"\xff\n", lines.as_bytes()].concat(),
    ]
}

/// Calls `read_file` as `narmesh quorum verify` and `import` do, and checks that all attestations handed on were really
/// signed.
fn read(
    input: impl std::io::BufRead,
    ours: Option<&StoreDir>,
    policy: Option<&Policy>,
) -> Result<Imported, ImportError> {
    let mut handed_on = 0;
    let mut lines = 0;
    let progress = |count| {
        assert!(count > lines, "progress goes on");
        lines = count;
        Ok(())
    };
    let result = read_file(input, ours, policy, progress, |verified| {
        for (stored, _) in verified {
            let is_ours = signed().contains(&stored.attestation) && stored.key.bytes() == key(3).public().bytes();
            assert!(is_ours || stored.attestation == of_a_stranger(), "handed on and never signed");
        }
        handed_on += verified.len();
        Ok(verified.len())
    });
    if let Ok(done) = &result {
        assert_eq!((done.verified, done.new), (handed_on, handed_on));
        assert_eq!(done.lines, done.verified + done.strangers + done.bad);
        assert_eq!(done.errors.len(), done.bad.min(10));
    }
    result
}

/// The expected result, line by line on one thread: how many lines verify, are of strangers, and are bad, and the number of
/// the first bad line.
fn expected(input: &[u8], policy: Option<&Policy>) -> Option<(usize, usize, usize, Option<usize>)> {
    let mut lines = input.split(|byte| *byte == b'\n');
    let header = str::from_utf8(lines.next()?).ok()?;
    let store_dir = attestation_file::parse_header(header).ok()?;
    let (mut verified, mut strangers, mut bad, mut first) = (0, 0, 0, None);
    for (line, number) in lines.zip(2..) {
        let parsed = str::from_utf8(line).map(|line| attestation_file::parse_line(&store_dir, line));
        match parsed {
            Ok(Ok(None)) => {}
            Ok(Ok(Some((_, it)))) if policy.is_some_and(|policy| !policy.knows(&it.builder)) => strangers += 1,
            Ok(Ok(Some((key, it)))) if it.verify(&store_dir, &key) => verified += 1,
            Ok(_) | Err(_) => {
                bad += 1;
                first = first.or(Some(number));
            }
        }
    }
    Some((verified, strangers, bad, first))
}

fn file(input: &[u8]) -> Outcome {
    let policy = policy();
    let verified = FILE_MEMORY.hold(input.len(), || read(input, None, None));
    let imported = FILE_MEMORY.hold(input.len(), || read(input, Some(&store_dir()), Some(&policy)));
    for (result, policy) in [(&verified, None), (&imported, Some(&policy))] {
        let Ok(done) = result else { continue };
        let first: Option<usize> = done.errors.first().map(|error| {
            let number = error.strip_prefix("line ").and_then(|rest| rest.split(':').next()?.parse().ok());
            number.expect("errors begin with the number of their line")
        });
        assert_eq!(Some((done.verified, done.strangers, done.bad, first)), expected(input, policy), "line by line");
    }
    if input.len() < 4 << 10 {
        let pieces = read(BufReader::with_capacity(7, input), None, None);
        assert_eq!(format!("{pieces:?}"), format!("{verified:?}"), "pieces do not matter");
    }
    match (verified, imported) {
        (Ok(verified), Ok(imported)) => {
            assert_eq!(
                (imported.lines, imported.strangers >= verified.verified - imported.verified),
                (verified.lines, true)
            );
            let first = verified.errors.first().map(|error| error.split(':').skip(1).collect::<String>());
            Outcome::of((verified.verified, imported.strangers, magnitude(verified.bad), first))
        }
        (verified, imported) => {
            assert!(imported.is_err(), "what is imported can be verified");
            Outcome::of((verified.is_ok(), imported.err().map(|error| std::mem::discriminant(&error))))
        }
    }
}

/// The names in a configuration, which may have been copied from anywhere, and the reason of a revocation.
struct Names<'a> {
    builders: [&'a str; 3],
    group: &'a str,
    why: &'a str,
}

fn page_seeds() -> Vec<Vec<u8>> {
    ["one|two|three|ours|stolen", "</title><img src=x onerror=pwned=1>|'|\"|&amp;|\u{202e}", ""]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// A ledger of three builders. Two of them agree on one path and disagree on another; one contradicts itself on a third
/// path. The third builder is revoked.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new(LedgerLimits::default());
    for (builder, path, result) in
        [(1, 1, 1), (2, 1, 1), (3, 1, 2), (1, 2, 3), (2, 2, 4), (1, 3, 5), (1, 3, 6), (3, 4, 7)]
    {
        let claim = Claim {
            fingerprint: FingerprintDigest([result; 32]),
            nar_hash: NarHash([result; 32]),
            nar_size: 1,
            name: NameDigest::of("x"),
        };
        let said =
            VerifiedStatement::from_record(BuilderKey([builder; 32]), HashPart([path; 20]), claim, Some(WallMs(1)), 1);
        ledger.insert(&said, Some(WallMs(5)));
    }
    let path = StorePath::new(HashPart([4; 20]), "x").expect("a name");
    ledger.note_served(Served { path, fingerprint: FingerprintDigest([7; 32]), at: WallMs(6) });
    ledger
}

/// All parts of the report.
fn parts(names: &Names<'_>) -> Vec<ReportPart> {
    let key = |number| BuilderKey([number; 32]);
    // The names are numbered, so that no two are equal and their order is always the same.
    let builder = |(number, name): (u8, &&str)| Builder {
        name: format!("{number}{name}"),
        key: key(number),
        group: (number == 1).then(|| names.group.to_owned()),
        signs_only_own_builds: false,
    };
    let rules = PolicyRules {
        builders: (1..).zip(&names.builders).map(builder).collect(),
        revoked: vec![Revocation { key: key(3), from: WallMs(2), why: names.why.to_owned() }],
        require: Some(Require { k: 1, overrides: Vec::new(), grace: None, veto: false }),
        ..PolicyRules::default()
    };
    let (policy, _) = Policy::new(rules).expect("names that differ");
    let ledger = ledger();
    let judged = (1..=5).map(|number| {
        let path = StorePath::new(HashPart([number; 20]), "x").expect("a name");
        let member = ClosurePath { path, references: Vec::new(), content_addressed: number == 5, held: None };
        Judged::alone(&policy, &ledger, &member)
    });
    let report = Report::paths(&policy, ReportScope::Path(names.why.to_owned()), judged.collect(), WallMs(9));
    let mut parts = vec![ReportPart::Head(Box::new(report.head().clone()))];
    parts.extend(report.conflicts().map(|path| ReportPart::Conflict(path.to_string())));
    parts.extend(find_no_longer_agreed(&policy, &ledger, None, 100).0.into_iter().map(ReportPart::NoLongerAgreed));
    parts.extend(
        report.judged_paths().map(|judged| ReportPart::Path(Box::new(PathReport::of(&policy, &ledger, judged)))),
    );
    parts
}

fn html(parts: &[ReportPart]) -> String {
    let mut page = Page::default();
    let mut text: String = parts.iter().map(|part| page.render_part(part)).collect();
    text += &page.end();
    text
}

/// The tags of a page without the text between them. The style and the script are the same on every page.
fn skeleton(html: &str) -> Vec<&str> {
    html.split('<').skip(1).map(|piece| piece.split('>').next().unwrap_or_default()).collect()
}

fn page(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let mut texts = text.splitn(5, '|').chain(std::iter::repeat(""));
    let mut next = || texts.next().unwrap_or_default();
    let names = Names { builders: [next(), next(), next()], group: next(), why: next() };
    let parts = parts(&names);
    for part in &parts {
        let line = serde_json::to_string(part).expect("a report is JSON");
        assert!(!line.contains('\n'), "one part, one line");
        assert_eq!(serde_json::from_str::<ReportPart>(&line).expect("and comes back"), *part);
    }
    let html = html(&parts);
    let plain = html_of_plain_names();
    assert_eq!(skeleton(&html), skeleton(plain), "a name is text, and never a tag");
    let quotes = |text: &str| text.matches(['"', '\'', '>']).count();
    assert_eq!(quotes(&html), quotes(plain), "nor ends one");
    let is_hidden = |character: char| {
        // The characters of the Unicode property Bidi_Control.
        let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || character.is_control() && character != '\n'
    };
    assert!(!html.contains(is_hidden), "what cannot be seen is shown by number");
    assert_eq!(html.lines().count(), plain.lines().count());
    let escaped = html.len().saturating_sub(plain.len());
    Outcome::of((magnitude(escaped), html.matches("&lt;").count().min(8), html.matches("\\u{").count().min(8)))
}

fn html_of_plain_names() -> &'static str {
    static PLAIN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    PLAIN.get_or_init(|| html(&parts(&Names { builders: ["x"; 3], group: "x", why: "x" })))
}
