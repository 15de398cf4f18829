//! The builders of `narmesh status`, one line each.

use super::{escaped, table, utc};
use crate::status::{BuilderAudience, BuilderStatus};

/// Peers named in one cell; the JSON has all.
const NAMES_SHOWN_MAX: usize = 5;

pub(super) fn builder_table(builders: &[BuilderStatus]) -> String {
    if builders.is_empty() {
        return String::new();
    }
    let heading = ["name", "group", "attestations", "last", "peer", "told to", "revoked"];
    let mut rows = vec![heading.iter().map(ToString::to_string).collect::<Vec<_>>()];
    let or_none = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), escaped);
    rows.extend(builders.iter().map(|builder| {
        let revoked = builder.revoked.as_ref();
        vec![
            escaped(&builder.name),
            or_none(&builder.group),
            builder.attestations.to_string(),
            builder.last_unix_s.map_or_else(|| "-".to_owned(), utc),
            or_none(&builder.peer),
            told_to(builder),
            revoked.map_or_else(|| "-".to_owned(), |it| format!("from {}: {}", utc(it.from_unix_s), escaped(&it.why))),
        ]
    }));
    format!("\nbuilders: {}\n{}", builders.len(), table(&rows, 2))
}

/// Who may be told of a builder, and why not the others.
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
        BuilderAudience::Own => format!("{}: it is this machine", names(&builder.told)),
        BuilderAudience::Summary => whom(""),
        BuilderAudience::LastSummary => whom(", as when its node was here last"),
        BuilderAudience::Unknown => "nobody: whom its node tells was never heard".to_owned(),
        BuilderAudience::NoPeer => "nobody: no peer, so it comes as files alone".to_owned(),
    }
}
