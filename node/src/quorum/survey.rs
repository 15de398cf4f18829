//! Reports: what the store holds, held against what the ledger knows.

use super::live::LiveLedger;
use super::members::{closure_members, members_of};
use super::now;
use narmesh_protocol::StorePath;
use narmesh_quorum::{Report, ReportScope};
use narmesh_store::NixStore;
use serde::{Deserialize, Serialize};

/// What a report is about. Paths are `<hash part>-<name>`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// One path.
    Path(String),
    /// A path with all that it needs at run time.
    Closure(String),
    /// All of which anything is attested.
    All,
}

/// Makes one. `progress` hears the number of paths so far. Blocks, on the disk.
pub fn survey(
    ledger: &LiveLedger,
    store: &NixStore,
    scope: &Scope,
    progress: impl FnMut(usize),
) -> anyhow::Result<Report> {
    ledger.flush()?;
    let (policy, now) = (ledger.policy(), now());
    Ok(match scope {
        Scope::Path(path) => {
            let path = StorePath::parse(path)?;
            let members = ledger.on_disk(|db| Ok(members_of(store, db, std::slice::from_ref(&path))))??;
            let scope = ReportScope::Path(path.to_string());
            ledger.read(|ledger| Report::paths(&policy, ledger, scope, &members, now))
        }
        Scope::Closure(root) => {
            let root = StorePath::parse(root)?;
            let members = ledger.on_disk(|db| Ok(closure_members(store, db, &root, progress)))??;
            ledger.read(|ledger| Report::closure(&policy, ledger, &root, &members, now))
        }
        Scope::All => {
            let members = ledger.on_disk(|db| Ok(members_of(store, db, &db.paths()?)))??;
            ledger.read(|ledger| Report::paths(&policy, ledger, ReportScope::All, &members, now))
        }
    })
}
