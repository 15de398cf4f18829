//! The configuration: what `check-config` says of it as well.

use super::Facts;
use super::report::Look;
use crate::cli::findings::{Finding, of_configuration, startable_findings};
use crate::cli::startable::check_startable;
use rustix::process::geteuid;

pub(super) fn look(facts: &Facts, look: &mut Look) {
    let user = facts.daemon.and_then(super::process::Process::user_id);
    // Another user's rights say nothing about the daemon's. Without a daemon, root has to be able to make all of it.
    if geteuid().is_root() || user == Some(geteuid().as_raw()) {
        startable_findings(check_startable(&facts.settings)).into_iter().for_each(|finding| look.found(finding));
    } else {
        look.unseen("whether the daemon could start: its ports and directories are for its user and root to try");
    }
    match of_configuration(&facts.settings, &facts.keys, &facts.nix, facts.version, &facts.mender) {
        Ok(findings) => findings.into_iter().for_each(|finding| look.found(finding)),
        Err(error) => {
            let refused = Finding::error(format!("the rules of [quorum] are refused: {error}"));
            look.found(refused.mended_by(facts.mender.narmesh("check-config")));
        }
    }
}
