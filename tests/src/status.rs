//! What `narmesh status --json` says.

use serde_json::Value;

/// One answer of `narmesh status --json`.
#[derive(Debug, Clone)]
pub struct Status(pub Value);

impl Status {
    /// The number at a JSON pointer, such as `/requests/narinfo`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    #[must_use]
    pub fn number(&self, pointer: &str) -> u64 {
        self.at(pointer).as_u64().unwrap_or_else(|| panic!("{pointer} is no number in {}", self.0))
    }

    /// The text at a JSON pointer, or `None` for null.
    ///
    /// # Panics
    /// When there is something else.
    #[track_caller]
    #[must_use]
    pub fn text(&self, pointer: &str) -> Option<&str> {
        match self.at(pointer) {
            Value::Null => None,
            Value::String(text) => Some(text),
            other => panic!("{pointer} is no text: {other}"),
        }
    }

    /// What is known about the peer that the configuration calls `name`; `None` when it is not on the allowlist.
    #[must_use]
    pub fn peer(&self, name: &str) -> Option<&Value> {
        self.at("/peers").as_array()?.iter().find(|peer| peer.get("name").is_some_and(|known| known == name))
    }

    /// Whether a connection with `name` is up.
    #[must_use]
    pub fn connected(&self, name: &str) -> bool {
        self.peer(name).and_then(|peer| peer.get("connected")).is_some_and(|connected| connected == true)
    }

    /// How many paths the newest summary of `name` advertises; `None` without one.
    #[must_use]
    pub fn summary_paths(&self, name: &str) -> Option<u64> {
        self.peer(name)?.pointer("/summary/paths")?.as_u64()
    }

    /// `(epoch, seq)` of the newest summary of `name`; `None` without one.
    #[must_use]
    pub fn summary_version(&self, name: &str) -> Option<(u64, u64)> {
        let summary = self.peer(name)?.get("summary")?;
        Some((summary.get("epoch")?.as_u64()?, summary.get("seq")?.as_u64()?))
    }

    #[track_caller]
    fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {}", self.0))
    }
}
