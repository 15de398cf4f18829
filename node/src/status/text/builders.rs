//! The builders of `narmesh status`, one line each.

use super::{escaped, table, utc};
use crate::status::{BuilderAudience, BuilderStatus};
use crate::styles::Mark;

/// How many peers are named in one cell; the JSON names all.
const NAMES_SHOWN_MAX: usize = 5;

pub(super) fn builder_table(builders: &[BuilderStatus]) -> String {
    if builders.is_empty() {
        return String::new();
    }
    let heading = ["name", "group", "named by", "attestations", "last", "peer", "told to", "revoked"];
    let mut rows = vec![heading.iter().map(ToString::to_string).collect::<Vec<_>>()];
    let or_none = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), escaped);
    rows.extend(builders.iter().map(|builder| {
        let revoked = builder.revoked.as_ref();
        vec![
            escaped(&builder.name),
            or_none(&builder.group),
            if builder.from_roster { "roster" } else { "configuration" }.to_owned(),
            builder.attestations.to_string(),
            builder.last_unix_s.map_or_else(|| "-".to_owned(), utc),
            or_none(&builder.peer),
            told_to(builder),
            revoked.map_or_else(|| "-".to_owned(), |it| format!("from {}: {}", utc(it.from_unix_s), escaped(&it.why))),
        ]
    }));
    let heading = Mark::Heading.paint(format!("builders: {}", builders.len()));
    format!("\n{heading}\n{}", table(&rows, 2))
}

/// Which peers may be told of a builder's attestations, and why the others may not.
fn told_to(builder: &BuilderStatus) -> String {
    let names = |names: &[String]| {
        let shown: Vec<_> = names.iter().take(NAMES_SHOWN_MAX).map(|name| escaped(name)).collect();
        let more = names.len() - shown.len();
        match (shown.is_empty(), more) {
            (true, _) => "nobody".to_owned(),
            (false, 0) => shown.join(", "),
            (false, more) => format!("{} and {more} more", shown.join(", ")),
        }
    };
    let whom = |when: &str| match builder.not_told.as_slice() {
        [] => format!("{}{when}", names(&builder.told)),
        others => format!("{}{when}; its node does not tell {}", names(&builder.told), names(others)),
    };
    match builder.audience {
        BuilderAudience::Own => format!("{}: this machine is the builder", names(&builder.told)),
        BuilderAudience::Summary => whom(""),
        BuilderAudience::LastSummary => whom(", from the last summary of its node, which is away"),
        BuilderAudience::Unknown => "nobody: no summary has ever come from its node".to_owned(),
        BuilderAudience::NoPeer => "nobody: it has no peer, so its attestations come only as files".to_owned(),
    }
}
