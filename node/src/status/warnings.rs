//! What of the status somebody has to look at, in words, with what to do.

use super::Status;
use super::text::{duration, tell_removal};

/// Warnings of one kind that are told apart; further ones are counted.
const EACH_MAX: usize = 5;

/// Something to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// What is wrong.
    pub what: String,
    /// What the operator can do about it.
    pub todo: String,
}

/// Everything to look at, the worst first.
pub fn find_warnings(status: &Status) -> Vec<Warning> {
    let mut found = Vec::new();
    let mut warn = |what: String, todo: &str| found.push(Warning { what, todo: todo.to_owned() });
    if let Some(missing) = &status.store.missing {
        warn(
            format!("The store is not there: {missing}."),
            "Mount it, or correct [store] in the configuration. Until then Nix is told that nothing is here.",
        );
    }
    if let Some(error) = &status.config.error {
        warn(
            format!("The last reload was refused: {error}"),
            "Correct the configuration, try it with `narmesh check-config`, and reload. The settings before it stay in force.",
        );
    }
    let conflicts = status.quorum.as_ref().and_then(|quorum| quorum.paths.get("conflict")).copied().unwrap_or(0);
    if conflicts > 0 {
        warn(
            format!("Builders got different results for {conflicts} paths."),
            "`narmesh quorum report` names them, and `narmesh quorum why PATH` says who says what. A build that is not reproducible is the usual reason; a builder that lies is the one to look for.",
        );
    }
    if let Some((mesh, version)) = status.mesh.as_ref().and_then(|mesh| Some((mesh, mesh.removed_in_version?))) {
        warn(
            format!("Mesh: {}.", tell_removal(mesh, version)),
            "If that is a mistake, ask for a token (`narmesh mesh invite` on the machine with the mesh key), and use it here with `narmesh join TOKEN`. `narmesh leave` takes the mesh out of the configuration.",
        );
    }
    if status.mesh.as_ref().is_some_and(|mesh| mesh.roster.is_none()) {
        warn(
            "This machine is on no roster of its mesh.".to_owned(),
            "On the machine with the mesh key, `narmesh mesh invite` makes a token; `narmesh join TOKEN` here uses it.",
        );
    }
    for listener in &status.listeners {
        if listener.tls.as_ref().is_some_and(|tls| !tls.is_valid) {
            warn(
                format!("The certificate of {} is not valid now.", listener.address),
                "Renew it; the daemon takes the new files by itself. Look at the clock as well.",
            );
        }
        if let Some(error) = listener.tls.as_ref().and_then(|tls| tls.error.as_ref()) {
            warn(
                format!("The new certificate of {} cannot be used: {error}", listener.address),
                "Correct the files; until then clients see the certificate before it.",
            );
        }
    }
    let no_one = !status.peers.is_empty() && status.peers.iter().all(|peer| !peer.stats.connected);
    if no_one {
        warn(
            "No other machine is connected.".to_owned(),
            "`narmesh check-config --probe` dials each and says what is in the way: the network, a firewall, or an allowlist.",
        );
    }
    let mut each = |told: Vec<(String, &str)>| {
        let count = told.len();
        for (what, todo) in told.into_iter().take(EACH_MAX) {
            warn(what, todo);
        }
        if count > EACH_MAX {
            warn(
                format!("And {} more machines or caches like these.", count - EACH_MAX),
                "`narmesh status` names them.",
            );
        }
    };
    each(status.peers.iter().filter_map(|peer| {
        let left = peer.set_aside_s?;
        let last = peer.stats.last_misdeed.as_deref().unwrap_or("it broke a rule");
        Some((format!("{} is set aside for {}: {last}.", peer.name, duration(left)), "It ends by itself. If it comes again, look at that machine: its disk, its version, and who has its keys."))
    }).collect());
    each(
        status
            .peers
            .iter()
            .filter(|peer| peer.stats.allowed_there == Some(false))
            .map(|peer| {
                (
                    format!("{} does not have this machine on its allowlist.", peer.name),
                    "Put the lines that `narmesh id` prints here into the configuration there, and reload it.",
                )
            })
            .collect(),
    );
    each(status.peers.iter().filter_map(|peer| {
        let dir = peer.stats.store_dir_differs.as_ref()?;
        Some((format!("{} has another store directory, {dir}.", peer.name), "Nothing can be shared with it. Take it off the list, or give both machines the same store directory."))
    }).collect());
    each(status.upstreams.iter().filter(|cache| cache.state != "up").map(|cache| {
        let why = cache.last_failure.as_deref().unwrap_or("it does not answer");
        (format!("The cache {} is {}: {why}.", cache.name, cache.state), "It is tried again by itself, and builds go on without it. Look at the network, or at its operator's notices.")
    }).collect());
    found
}
