//! Names of what the daemon keeps in its state directory, so that no other file of the configuration is put there.

/// The state of the last run.
pub(crate) const STATE_FILE: &str = "state.sqlite";
/// The attestations.
pub(crate) const LEDGER_FILE: &str = "quorum.sqlite";
/// The directory of peers' summaries.
pub(crate) const SUMMARIES_DIR: &str = "summaries";
/// The gateway key.
pub(crate) const GATEWAY_KEY_FILE: &str = "gateway.key";
/// The newest roster of the mesh.
pub(crate) const ROSTER_FILE: &str = "roster";
/// The mesh key.
pub(crate) const MESH_KEY_FILE: &str = "mesh.key";
/// The mesh key that is about to take the place of that one.
pub(crate) const NEXT_MESH_KEY_FILE: &str = "mesh.key.next";
/// A roster of another mesh key, which contradicts the newest one.
pub(crate) const OTHER_ROSTER_FILE: &str = "roster.other";
/// What says that this machine was removed from the mesh.
pub(crate) const REMOVAL_FILE: &str = "removal";
/// Who may join the mesh.
pub(crate) const INVITATIONS_FILE: &str = "invitations";
/// What this machine changed in the roster.
pub(crate) const EDITS_FILE: &str = "mesh.edits";
/// What those lock who change the seven files above.
pub(crate) const MESH_LOCK_FILE: &str = "mesh.lock";
/// What came from each source on each day of the last week.
pub(crate) const TOTALS_FILE: &str = "totals";
/// The switch of `narmesh serve`: `on` or `off`; absent when the configuration decides.
pub(crate) const SERVE_FILE: &str = "serve";
