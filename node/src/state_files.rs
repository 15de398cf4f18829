//! Names of what the daemon keeps in its state directory, so that no other file of the configuration is put there.

/// The state of the last run.
pub(crate) const STATE_FILE: &str = "state.sqlite";
/// The attestations.
pub(crate) const LEDGER_FILE: &str = "quorum.sqlite";
/// The directory of peers' summaries.
pub(crate) const SUMMARIES_DIR: &str = "summaries";
/// The gateway key.
pub(crate) const GATEWAY_KEY_FILE: &str = "gateway.key";
/// The switch of `narmesh serve`: `on` or `off`; absent when the configuration decides.
pub(crate) const SERVE_FILE: &str = "serve";
