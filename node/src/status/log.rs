//! `narmesh log`: what the resolver decided, and the NARs that Nix asked for.

use super::text::{bytes, escaped, table, utc};
use serde::{Deserialize, Serialize};

/// Most entries that one answer has.
pub const LOG_ENTRIES_MAX: usize = 20_000;

/// What is asked of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LogQuery {
    /// Only about this path: a store path, a base name, or a hash part.
    pub path: Option<String>,
    /// Only what this peer or upstream cache had a part in: its name or peer id.
    pub peer: Option<String>,
    /// Only what ended like this.
    pub outcome: Option<LogOutcome>,
    /// Only entries of this kind.
    #[serde(default)]
    pub kind: Option<LogKind>,
    /// Only of this time or later, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// Only what came after this place in the log.
    pub after: Option<LogPlace>,
    /// Most entries, the latest; at most [`LOG_ENTRIES_MAX`].
    pub most: usize,
    /// Also each step of a lookup and of a NAR.
    pub steps: bool,
}

/// A place in the log: what was read up to there is not read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LogPlace {
    /// Number of lookup events before it.
    pub lookups: u64,
    /// Number of beginnings and ends of NARs before it.
    pub nars: u64,
}

/// What the log has.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LogReport {
    /// The entries, the oldest first.
    pub entries: Vec<LogEntry>,
    /// The place after them.
    pub place: LogPlace,
    /// Whether earlier entries were forgotten.
    pub forgotten: bool,
}

/// One entry.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogEntry {
    /// About the narinfo of a path, or a step.
    Lookup(LookupEntry),
    /// A NAR that Nix asked for.
    Nar(NarEntry),
}

/// A kind of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// NARs.
    Nar,
    /// Narinfos, and steps.
    Narinfo,
}

/// What happened in a lookup.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LookupEntry {
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The hash part of the path.
    pub hash_part: String,
    /// The name of the peer or upstream cache that it is about.
    pub source: Option<String>,
    /// What came of the lookup; absent for a step.
    pub outcome: Option<LogOutcome>,
    /// What happened, in words.
    pub sentence: String,
}

/// A NAR that Nix asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NarEntry {
    /// The number of the request.
    pub number: u64,
    /// The hash part of the path.
    pub hash_part: String,
    /// The name of the path, if it is known.
    pub name: Option<String>,
    /// NarSize, bytes.
    pub nar_size: u64,
    /// The first byte that Nix asked for.
    pub first_byte: u64,
    /// When the request began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// How long it took, or has taken so far, milliseconds.
    pub took_ms: u64,
    /// How it ended.
    pub outcome: LogOutcome,
    /// Bytes that Nix got.
    pub given_bytes: u64,
    /// Whether it came from our own store.
    pub own: bool,
    /// The sources that sent it, each with its share.
    pub sources: Vec<NarShare>,
    /// The first sources that were left on the way, which is what a switch is.
    pub left: Vec<NarSwitch>,
    /// How many were left.
    pub left_count: u64,
}

/// What one source sent of a NAR.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NarShare {
    /// The name of the peer or upstream cache.
    pub source: String,
    /// The first byte that came from it.
    pub first_byte: u64,
    /// Bytes that came from it.
    pub bytes: u64,
}

/// A source that was left before the NAR was whole.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NarSwitch {
    /// The name of the peer or upstream cache.
    pub source: String,
    /// Up to this byte the NAR was there.
    pub at: u64,
    /// Why it was left, in words.
    pub why: String,
}

/// What became of a lookup or of a NAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogOutcome {
    /// Nix got the narinfo.
    Found,
    /// Nix was told that the path is not here.
    NotFound,
    /// The policy did not let Nix have it.
    Refused,
    /// The NAR is on its way.
    #[default]
    Running,
    /// Nix got the NAR.
    Delivered,
    /// Nix was told that the NAR is not here.
    Gone,
    /// Nix was told to ask again for the NAR: who holds it is there, and could not be asked.
    NotNow,
    /// The NAR ended short.
    CutShort,
    /// Nix hung up.
    Left,
}

impl LogOutcome {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::NotFound => "not found",
            Self::Refused => "refused",
            Self::Running => "running",
            Self::Delivered => "delivered",
            Self::Gone => "gone",
            Self::NotNow => "not now",
            Self::CutShort => "cut short",
            Self::Left => "Nix left",
        }
    }
}

impl LogReport {
    /// The output of `narmesh log`.
    pub fn text(&self) -> String {
        let rows: Vec<_> = self.entries.iter().map(LogEntry::row).collect();
        table(&rows, 0)
    }
}

impl LogEntry {
    /// The cells of its line; nothing in them controls a terminal.
    fn row(&self) -> Vec<String> {
        let (at_unix_ms, what, outcome, path, said) = match self {
            Self::Lookup(lookup) => {
                let (what, outcome) = match lookup.outcome {
                    Some(outcome) => ("narinfo", outcome.word()),
                    None => ("step", ""),
                };
                (lookup.at_unix_ms, what, outcome, lookup.hash_part.clone(), lookup.sentence.clone())
            }
            Self::Nar(nar) => (nar.started_unix_ms, "NAR", nar.outcome.word(), nar.path(), nar.said()),
        };
        let time = utc(at_unix_ms / 1_000);
        vec![time, what.to_owned(), outcome.to_owned(), escaped(&path), escaped(&said)]
    }
}

impl NarEntry {
    /// The base name of the path, as far as it is known.
    pub fn path(&self) -> String {
        match &self.name {
            Some(name) => format!("{}-{name}", self.hash_part),
            None => self.hash_part.clone(),
        }
    }

    /// Bytes that Nix asked for.
    pub fn wanted_bytes(&self) -> u64 {
        self.nar_size.saturating_sub(self.first_byte)
    }

    /// Bytes that are here already: those that came, or that Nix got, whichever is more.
    pub fn arrived_bytes(&self) -> u64 {
        let came = self.sources.iter().map(|share| share.bytes).sum::<u64>();
        came.max(self.given_bytes).min(self.wanted_bytes())
    }

    /// Bytes per second so far.
    pub fn rate(&self) -> u64 {
        let rate = u128::from(self.arrived_bytes()) * 1_000 / u128::from(self.took_ms.max(1));
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// From whom it came, in words.
    pub fn from(&self) -> String {
        if self.own {
            return "our own store".to_owned();
        }
        match self.sources.as_slice() {
            [] if self.outcome == LogOutcome::Running => "nobody yet".to_owned(),
            [] => "nobody".to_owned(),
            [only] => only.source.clone(),
            several => {
                let shares = several.iter().map(|share| format!("{} ({})", share.source, bytes(share.bytes)));
                shares.collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// Whom it left on the way and why, in words; empty if nobody.
    pub fn switches(&self) -> String {
        let left = self.left.iter().map(|left| format!("left {} at {}: {}", left.source, bytes(left.at), left.why));
        let mut words = left.collect::<Vec<_>>().join("; ");
        let more = self.left_count.saturating_sub(self.left.len() as u64);
        if more > 0 {
            words += &format!("; and {more} more times");
        }
        words
    }

    fn said(&self) -> String {
        let seconds = self.took_ms as f64 / 1e3;
        let (size, rate) = (bytes(self.wanted_bytes()), bytes(self.rate()));
        let mut said = match self.outcome {
            LogOutcome::Running => {
                format!("{} of {size}, {rate}/s, from {}", bytes(self.arrived_bytes()), self.from())
            }
            LogOutcome::Delivered => format!("{size} in {seconds:.2} s, {rate}/s, from {}", self.from()),
            LogOutcome::CutShort | LogOutcome::Left => {
                format!("after {} of {size} and {seconds:.2} s, from {}", bytes(self.given_bytes), self.from())
            }
            LogOutcome::NotNow => {
                format!("{size}, after {seconds:.2} s: who holds it is there, and could not be asked; Nix asks again")
            }
            LogOutcome::Gone | LogOutcome::Found | LogOutcome::NotFound | LogOutcome::Refused => {
                format!("{size}, after {seconds:.2} s: nobody could send it")
            }
        };
        let switches = self.switches();
        if !switches.is_empty() {
            said += &format!("; {switches}");
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_from_whom_and_why_it_was_switched_and_control_no_terminal() {
        let share = |source: &str, first_byte, bytes| NarShare { source: source.to_owned(), first_byte, bytes };
        let left = NarSwitch { source: "ho\u{1b}[31mlder".to_owned(), at: 1 << 20, why: "line\nbroke".to_owned() };
        let nar = NarEntry {
            hash_part: "0".repeat(32),
            name: Some("lib-1.0".to_owned()),
            nar_size: 3 << 20,
            took_ms: 1_500,
            outcome: LogOutcome::Delivered,
            given_bytes: 3 << 20,
            sources: vec![share("ho\u{1b}[31mlder", 0, 1 << 20), share("other", 1 << 20, 2 << 20)],
            left: vec![left],
            left_count: 3,
            ..NarEntry::default()
        };
        let lookup = LookupEntry {
            hash_part: "1".repeat(32),
            outcome: Some(LogOutcome::NotFound),
            sentence: "answered 404: nobody".to_owned(),
            ..LookupEntry::default()
        };
        let entries = vec![LogEntry::Lookup(lookup), LogEntry::Nar(nar)];
        let text = LogReport { entries, ..LogReport::default() }.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        let expected = "3.0 MiB in 1.50 s, 2.0 MiB/s, from ho\\u{1b}[31mlder (1.0 MiB), other (2.0 MiB); left \
                        ho\\u{1b}[31mlder at 1.0 MiB: line\\u{a}broke; and 2 more times";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("1970-01-01 00:00:00 UTC  narinfo  not found  1111"), "{text}");
    }
}
