//! Asks the upstream caches which path an output of a derivation is.

use super::upstream_source::{LIMITED_WAIT_MAX, Source};
use super::upstreams::UpstreamSources;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use narmesh_protocol::{Realisation, RealisationId, TrustedKeys};
use narmesh_resolver::{SourceId, User, hedge_delay, pause_before_retry};
use narmesh_upstream::{Failure, FailureKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Signatures that are passed on with the one of the gateway, at most.
const SIGNATURES_MAX: usize = 15;

/// Why the realisation of a cache or a peer is not passed on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Distrust {
    #[error("its realisation is about another output")]
    OtherOutput,
    #[error("its signature by {0} of a realisation does not verify")]
    Forged(String),
    #[error("no key that counts for it signed its realisation")]
    Unsigned,
}

impl UpstreamSources {
    /// The realisation of this output that the first of the caches gives, with the signatures of its keys alone. The caches are
    /// asked in the order in which they are asked for paths, the next one when one takes long. `None` if no cache knows the
    /// output, or none says so within `longest`.
    pub(crate) async fn find_realisation(
        &self,
        id: &RealisationId,
        user: User,
        longest: Duration,
    ) -> Option<Realisation> {
        let deadline = Instant::now() + longest;
        let asked_in_turn = self.ask_in_turn(id, user);
        tokio::time::timeout_at(deadline, asked_in_turn).await.unwrap_or_else(|_| {
            tracing::debug!(%id, "no upstream said in time which path this output is");
            None
        })
    }

    async fn ask_in_turn(&self, id: &RealisationId, user: User) -> Option<Realisation> {
        let mut waiting = self.ranked(|source| source.may_know(id)).into_iter();
        let mut asked = FuturesUnordered::new();
        let mut hedge = Duration::ZERO;
        loop {
            match waiting.next() {
                Some(source) => {
                    let usual = source.upstream.latency().map(|latency| latency.mean());
                    hedge = hedge_delay(&SourceId::Upstream(source.id), usual);
                    asked.push(async move { source.find_realisation(id, user).await });
                }
                None if asked.is_empty() => return None,
                None => {}
            }
            // Without anybody else there is nothing to be quick for.
            let has_more = waiting.len() > 0;
            let hedged =
                async { if has_more { tokio::time::sleep(hedge).await } else { std::future::pending().await } };
            tokio::select! {
                answer = asked.next() => if let Some(Some(realisation)) = answer {
                    return Some(realisation);
                },
                () = hedged => {}
            }
        }
    }
}

impl Source {
    fn may_know(&self, id: &RealisationId) -> bool {
        self.may_be_asked_soon() && !self.realisation_misses.contains_key(id)
    }

    /// Asks this cache when it is this user's turn. `None` also if it fails: whoever asks is told 404 then, as for a narinfo.
    async fn find_realisation(self: Arc<Self>, id: &RealisationId, user: User) -> Option<Realisation> {
        let mut failures = 0;
        loop {
            let turn = self.take_turn(user, LIMITED_WAIT_MAX).await?;
            let answer = self.ask_realisation(id).await;
            drop(turn);
            let pause = match answer {
                Ok(answer) => return answer,
                // It was asked too much, which says nothing about what it has.
                Err(failure) if failure.kind == FailureKind::RateLimited => pause_before_retry(1)?,
                Err(failure) if self.may_answer_soon(&failure) => {
                    failures += 1;
                    pause_before_retry(failures)?
                }
                Err(_) => return None,
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask_realisation(&self, id: &RealisationId) -> Result<Option<Realisation>, Failure> {
        let answer = self.at_its_pace(self.upstream.realisation(id)).await?;
        let Some(text) = answer else {
            self.realisation_misses.insert(id.clone(), ());
            return Ok(None);
        };
        let refuse = |why: String| {
            let failure = Failure::new(FailureKind::BadNarInfo, why);
            self.upstream.note_failure(failure.clone());
            failure
        };
        let realisation = Realisation::parse(&text).map_err(|error| refuse(error.to_string()))?;
        match judge(realisation, id, &self.trusted) {
            Ok(realisation) if self.upstream.settings().allows(realisation.out_path.name()) => Ok(Some(realisation)),
            // That nobody signed it breaks no rule: Nix signs only what it builds itself.
            Ok(_) | Err(Distrust::Unsigned) => {
                tracing::debug!(upstream = self.upstream.settings().name, %id, "its realisation is not passed on");
                self.realisation_misses.insert(id.clone(), ());
                Ok(None)
            }
            Err(distrust) => Err(refuse(distrust.to_string())),
        }
    }
}

/// The realisation with those signatures alone that verify. It needs one, unlike a narinfo: that a path is its own address
/// says nothing about whose output it is, and Nix up to 2.34 believes whatever it is told.
pub(super) fn judge(
    mut realisation: Realisation,
    asked: &RealisationId,
    trusted: &TrustedKeys,
) -> Result<Realisation, Distrust> {
    // A right signature over another output would still be a lie.
    if realisation.id != *asked {
        return Err(Distrust::OtherOutput);
    }
    let fingerprint = realisation.fingerprint();
    let signatures = std::mem::take(&mut realisation.signatures);
    let (good, bad): (Vec<_>, Vec<_>) = signatures.into_iter().partition(|one| trusted.verifies(&fingerprint, one));
    realisation.signatures = good;
    realisation.signatures.truncate(SIGNATURES_MAX);
    // A bad signature under a name that we know is forged; under any other it says nothing.
    match (realisation.signatures.is_empty(), bad.into_iter().find(|one| trusted.by_name(&one.key_name).is_some())) {
        (false, _) => Ok(realisation),
        (true, Some(forged)) => Err(Distrust::Forged(forged.key_name)),
        (true, None) => Err(Distrust::Unsigned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::{NixSecretKey, StorePath};
    use std::collections::BTreeMap;

    #[test]
    fn a_realisation_needs_a_signature_of_a_key_that_counts() {
        let key = |name: &str, seed| NixSecretKey::from_seed(name, &[seed; 32]).unwrap();
        let (trusted, stranger) = (key("cache-1", 1), key("stranger-1", 2));
        let keys = TrustedKeys::new([trusted.public()]).unwrap();
        let id = |output: &str| RealisationId::new(&format!("sha256:{}", "0".repeat(64)), output).unwrap();
        let bare = Realisation {
            id: id("out"),
            out_path: StorePath::parse(&format!("{}-x", "0".repeat(32))).unwrap(),
            dependents: BTreeMap::new(),
            signatures: Vec::new(),
        };
        let signed = |by: &[&NixSecretKey]| {
            let signatures = by.iter().map(|key| key.sign(&bare.fingerprint())).collect();
            Realisation { signatures, ..bare.clone() }
        };
        let judge = |realisation: Realisation| judge(realisation, &id("out"), &keys);
        assert_eq!(judge(signed(&[&stranger, &trusted])), Ok(signed(&[&trusted])), "those of others are left out");
        assert_eq!(judge(bare.clone()), Err(Distrust::Unsigned));
        assert_eq!(judge(signed(&[&stranger])), Err(Distrust::Unsigned));
        let moved = Realisation {
            out_path: StorePath::parse(&format!("{}-y", "0".repeat(32))).unwrap(),
            ..signed(&[&trusted])
        };
        assert_eq!(judge(moved), Err(Distrust::Forged("cache-1".to_owned())));
        assert_eq!(judge(Realisation { id: id("doc"), ..signed(&[&trusted]) }), Err(Distrust::OtherOutput));
    }
}
