//! What the system lets the daemon have: open files and memory.

use super::Facts;
use super::process::Process;
use super::report::Look;
use crate::cli::findings::Finding;
use crate::settings::Settings;
use crate::status::text::bytes;
use narmesh_http_gateway::GatewayLimits;
use narmesh_upstream::DecoderMemory;
use std::fs;
use std::path::Path;

/// Connections with one peer: one for control, one for NARs, and one that is just being replaced.
const FILES_PER_PEER: u64 = 3;
/// Databases, logs, sockets, and what the runtime has open.
const FILES_BESIDE: u64 = 64;
/// What peers can make the daemon hold: one by every means at once, and what all share (`docs/threat-model.md`, "What one
/// peer can make us hold").
const PEERS_BYTES: u64 = (145 + 117) << 20;
/// The files of cgroups, version 2.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What `contrib/systemd/narmesh.service` sets.
const UNIT_FILES: u64 = 16_384;

pub(super) fn look(facts: &Facts, look: &mut Look) {
    let Some(daemon) = facts.daemon else {
        return look.unseen("the limits of the daemon: it does not answer");
    };
    look_at_files(facts, daemon, look);
    look_at_memory(facts, daemon, look);
}

/// The daemon raises its soft limit to the hard one.
fn look_at_files(facts: &Facts, daemon: Process, look: &mut Look) {
    let text = match daemon.read("limits") {
        Ok(text) => text,
        Err(error) => return look.unseen(format!("the daemon's limit of open files: {error}")),
    };
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    let hard = line.and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u64>().ok());
    let wanted = files_wanted(&facts.settings);
    if let Some(hard) = hard.filter(|hard| *hard < wanted) {
        look.found(
            Finding::warning(format!(
                "the daemon may open {hard} files, and all connections and NARs that the configuration allows need {wanted}: \
                 the oldest clients are closed when it has no more"
            ))
            .mended_by(facts.mender.unit_setting("LimitNOFILE", &wanted.max(UNIT_FILES).to_string())),
        );
    }
}

fn files_wanted(settings: &Settings) -> u64 {
    let listeners = settings.gateway.listeners.iter().map(|listener| listener.connections_max as u64).sum::<u64>();
    let gateway = GatewayLimits::default().connections_max as u64;
    let peers = settings.peers.len() as u64 * FILES_PER_PEER;
    gateway + listeners + peers + u64::from(settings.limits.uploads_total) + FILES_BESIDE
}

fn look_at_memory(facts: &Facts, daemon: Process, look: &mut Look) {
    let group = match daemon.read("cgroup") {
        Ok(text) => text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned),
        Err(error) => return look.unseen(format!("the daemon's limit of memory: {error}")),
    };
    // No limit, or no cgroup: then the machine itself is the bound.
    let Some(limit) = group.and_then(|group| lowest_limit(Path::new(CGROUPS), &group)) else { return };
    let wanted = memory_wanted(&facts.settings);
    if limit < wanted {
        look.found(
            Finding::warning(format!(
                "the daemon may have {} of memory (memory.max of its cgroup), and what it may need is {}: \
                 limits.nar_buffer_bytes and a quarter more, {} to unpack what comes from caches, and {} for peers",
                bytes(limit),
                bytes(wanted),
                bytes(decoder_bytes(&facts.settings)),
                bytes(PEERS_BYTES)
            ))
            .mended_by(facts.mender.unit_setting("MemoryMax", &wanted.to_string())),
        );
    }
}

/// The lowest limit of the group and of those that it is in.
fn lowest_limit(root: &Path, group: &str) -> Option<u64> {
    let place = root.join(group.trim_start_matches('/'));
    let within = place.ancestors().take_while(|dir| dir.starts_with(root));
    let limits = within.filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok()?.trim().parse().ok());
    limits.min()
}

/// NARs of the own store, and tiny ones, have an eighth beside the others (`docs/configuration.md`).
fn memory_wanted(settings: &Settings) -> u64 {
    let nars = settings.limits.nar_buffer_bytes;
    nars + nars / 4 + decoder_bytes(settings) + PEERS_BYTES
}

fn decoder_bytes(settings: &Settings) -> u64 {
    if settings.upstreams.is_empty() { 0 } else { DecoderMemory::ALL_BYTES_MAX }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_limit_of_all_groups_around_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |dir: &str, limit: &str| {
            fs::create_dir_all(root.path().join(dir)).unwrap();
            fs::write(root.path().join(dir).join("memory.max"), limit).unwrap();
        };
        write("system.slice", "1000\n");
        write("system.slice/narmesh.service", "max\n");
        assert_eq!(lowest_limit(root.path(), "/system.slice/narmesh.service"), Some(1_000));
        write("system.slice/narmesh.service", "700\n");
        assert_eq!(lowest_limit(root.path(), "/system.slice/narmesh.service"), Some(700));
        assert_eq!(lowest_limit(root.path(), "/other"), None);
    }
}
