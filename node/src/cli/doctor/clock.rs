//! The upstream caches, each asked once for its `nix-cache-info`: do they answer, and what time is it there?

use super::Facts;
use super::report::Look;
use crate::cli::findings::Finding;
use crate::cli::upstream_probe::{find_own_id, judge_cache_info};
use crate::settings::UpstreamSettings;
use futures::future::join_all;
use jiff::fmt::rfc2822::DateTimeParser;
use narmesh_upstream::{CacheInfo, Failure, FailureKind, Upstream};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a cache is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// A peer that is heard for the first time with a date this far off is not believed, seconds (`docs/operations.md`, "The
/// clock is wrong").
const OFF_MAX_S: u64 = 24 * 3_600;

pub(super) fn look(facts: &Facts, look: &mut Look) {
    // The commands have no runtime of their own; this look alone waits for the network.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return look.unseen(format!("the upstream caches: {error}")),
    };
    let (answers, own_id) = runtime.block_on(async {
        let ask_all = join_all(facts.settings.upstreams.iter().map(ask));
        tokio::join!(ask_all, find_own_id(facts.settings.gateway.listen))
    });
    let mut offs = Vec::new();
    for (upstream, answer) in facts.settings.upstreams.iter().zip(answers) {
        let date = answer.as_ref().ok().and_then(|info| info.as_ref()?.date.clone());
        offs.extend(date.and_then(|date| seconds_off(&date)));
        let (is_good, what) = judge_cache_info(answer, &facts.settings.store.store_dir, own_id.as_deref());
        if !is_good {
            let name = &upstream.cache.name;
            let bad = Finding::warning(format!("[[upstream]] {name:?} ({}) {what}", upstream.cache.place));
            look.found(
                bad.mended_by(
                    facts
                        .mender
                        .edit(&format!("another url below [[upstream]] {name:?}, or enabled = false until it answers")),
                ),
            );
        }
    }
    look_at_clock(facts, &mut offs, look);
}

async fn ask(upstream: &UpstreamSettings) -> Result<Option<CacheInfo>, Failure> {
    let failed = |detail: String| Failure::new(FailureKind::Timeout, detail);
    let settings = upstream.read().map_err(|error| failed(error.to_string()))?;
    let upstream = Upstream::new(settings)?;
    let late = |_| failed(format!("no answer within {} s", ANSWER_MAX.as_secs()));
    tokio::time::timeout(ANSWER_MAX, upstream.cache_info()).await.map_err(late)?
}

/// How far our clock is from that date; ahead is positive.
fn seconds_off(date: &str) -> Option<i64> {
    let theirs = DateTimeParser::new().parse_timestamp(date).ok()?.as_second();
    Some(i64::try_from(now_s()).ok()? - theirs)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One cache may be wrong itself, so the middle one of all that answered counts.
fn look_at_clock(facts: &Facts, offs: &mut [i64], look: &mut Look) {
    offs.sort_unstable();
    let middle = offs.get(offs.len() / 2).copied();
    let mend = |finding: Finding| match facts.mender.is_nixos() {
        true => finding.mended_by("services.timesyncd.enable = true; then nixos-rebuild switch"),
        false => finding.mended_by(facts.mender.as_root("timedatectl set-ntp true")),
    };
    if let Some(off) = middle.filter(|off| off.unsigned_abs() > OFF_MAX_S) {
        let way = if off > 0 { "ahead of" } else { "behind" };
        return look.found(mend(Finding::error(format!(
            "the clock of this machine is {} hours {way} that of the upstream caches: peers that have not heard of it before \
             do not believe what it announces, and certificates do not count",
            off.unsigned_abs().saturating_add(1_800) / 3_600
        ))));
    }
    let roster = facts.status().and_then(|status| status.mesh.as_ref()?.roster.as_ref());
    // Without caches, the roster is the only thing here that somebody else has dated.
    if let Some(ahead) =
        roster.and_then(|roster| roster.issued_unix_s.checked_sub(now_s())).filter(|it| *it > OFF_MAX_S)
    {
        return look.found(mend(Finding::warning(format!(
            "the roster of the mesh was signed {} hours from now: this clock is behind, or that of the machine with the mesh \
             key is ahead",
            ahead / 3_600
        ))));
    }
    if middle.is_none() {
        look_at_synchronisation(look, mend);
    }
}

/// Without a cache that says what time it is, what systemd says of the clock has to do.
fn look_at_synchronisation(look: &mut Look, mend: impl Fn(Finding) -> Finding) {
    let mut command = Command::new("timedatectl");
    command.args(["show", "--property=NTPSynchronized", "--value"]).stdin(Stdio::null()).stderr(Stdio::null());
    match command.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()) {
        Ok(said) if said == "no" => look.found(mend(Finding::note(
            "nothing keeps the clock right (NTPSynchronized=no): peers do not believe who is more than 24 hours off",
        ))),
        Ok(said) if said == "yes" => {}
        Ok(_) | Err(_) => {
            look.unseen("the clock: no upstream cache says what time it is, and timedatectl does not answer")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_http_are_compared_with_our_clock() {
        let now = i64::try_from(now_s()).unwrap();
        let off = seconds_off("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert!((off - (now - 784_111_777)).abs() < 5, "{off}");
        assert_eq!(seconds_off("yesterday"), None);
    }
}
