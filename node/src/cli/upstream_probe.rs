//! `check-config --probe`: what each upstream cache says of itself.

use super::emit;
use super::progress::Progress;
use crate::describe::plainly;
use crate::settings::Settings;
use anyhow::Context as _;
use futures::future::join_all;
use narmesh_protocol::{StoreDir, TrustedKeys};
use narmesh_upstream::{CacheInfo, Failure, Place, ProxyChoice, Upstream, UpstreamSettings};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Our own gateway, if it runs, answers within this.
const OWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the files that the upstream caches name and makes their clients, as the daemon does; contacts nobody.
pub(super) fn open_upstreams(settings: &Settings) -> anyhow::Result<Vec<Arc<Upstream>>> {
    let open = |upstream: &crate::settings::UpstreamSettings| {
        let read = upstream.read()?;
        Upstream::new(read).with_context(|| format!("the client of [[upstream]] {:?}", upstream.cache.name))
    };
    settings.upstreams.iter().map(open).collect()
}

/// Asks each cache for its `nix-cache-info` and prints what it says. Returns whether all of them can be used.
pub(super) fn probe_upstreams(settings: &Settings, upstreams: &[Arc<Upstream>]) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let progress = Progress::start("asking the caches", None);
    let (answers, own_id) = runtime.block_on(async {
        let answers = join_all(upstreams.iter().map(|upstream| upstream.cache_info()));
        tokio::join!(answers, find_own_id(settings.gateway.listen))
    });
    drop(progress);
    let mut are_good = true;
    for (upstream, answer) in upstreams.iter().zip(answers) {
        let (is_good, what) = judge_cache_info(answer, &settings.store.store_dir, own_id.as_deref());
        are_good &= is_good;
        emit(&format!("{}: {what}\n", upstream.settings().name))?;
    }
    Ok(are_good)
}

/// The id of the daemon that runs with this configuration, if one does.
pub(super) async fn find_own_id(gateway: SocketAddr) -> Option<String> {
    let place = Place::parse(&format!("http://{gateway}")).ok()?;
    let settings = UpstreamSettings {
        name: "this gateway".to_owned(),
        place,
        trusted: TrustedKeys::default(),
        tier: 0,
        include: Vec::new(),
        exclude: Vec::new(),
        credentials: None,
        proxy: ProxyChoice::Direct,
        extra_certificates: Vec::new(),
        connect_timeout: OWN_TIMEOUT,
        stall_timeout: OWN_TIMEOUT,
    };
    Upstream::new(settings).ok()?.cache_info().await.ok()??.daemon
}

/// Whether a cache that answers so can be used, and why, in words.
pub(super) fn judge_cache_info(
    answer: Result<Option<CacheInfo>, Failure>,
    ours: &StoreDir,
    own_id: Option<&str>,
) -> (bool, String) {
    match answer {
        // First: it answers well, and yet has nothing that this machine does not have itself.
        Ok(Some(CacheInfo { daemon: Some(id), .. })) if own_id == Some(id.as_str()) => {
            (false, "leads back to this gateway, which would ask itself: remove the entry".to_owned())
        }
        Err(failure) => (false, format!("NOT reachable: {}", plainly(&failure.to_string()))),
        Ok(None) => (false, "has no nix-cache-info: its url is not that of a binary cache".to_owned()),
        Ok(Some(CacheInfo { store_dir: Some(theirs), .. })) if theirs != ours.as_str() => {
            (false, format!("has paths of the store directory {theirs:?}, and this node of {:?}", ours.as_str()))
        }
        Ok(Some(CacheInfo { took, .. })) => (true, format!("reachable, answered after {} ms", took.as_millis())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstream_is_good_only_if_it_is_a_cache_of_our_store_directory() {
        let ours = StoreDir::parse("/nix/store").unwrap();
        let answer = |store_dir: Option<&str>| {
            let (store_dir, took) = (store_dir.map(str::to_owned), Duration::from_millis(7));
            Ok(Some(CacheInfo { store_dir, took, daemon: Some("0123".to_owned()), date: None }))
        };
        assert_eq!(
            judge_cache_info(answer(Some("/nix/store")), &ours, Some("0000")),
            (true, "reachable, answered after 7 ms".into())
        );
        assert!(judge_cache_info(answer(None), &ours, None).0);
        let (is_good, why) = judge_cache_info(answer(Some("/gnu/store")), &ours, None);
        assert!(!is_good && why.contains("/gnu/store"), "{why}");
        assert!(!judge_cache_info(Ok(None), &ours, None).0);
        let (is_good, why) = judge_cache_info(answer(None), &ours, Some("0123"));
        assert!(!is_good && why.contains("leads back"), "{why}");
    }
}
