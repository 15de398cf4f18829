//! Which path an output of a derivation is: from our own store, from peers, and from the upstream caches.

use super::{GatewaySubstituter, Scope, Source};
use bytes::Bytes;
use narmesh_protocol::{Realisation, RealisationId, StorePath};
use narmesh_resolver::User;
use narmesh_store::{OfferedRealisation, StoreError};
use std::time::Duration;

/// Peers are nearer than caches: for so long they alone are asked.
const PEERS_FIRST: Duration = Duration::from_millis(100);

impl GatewaySubstituter {
    /// The realisation of this output, as this listener gives it.
    ///
    /// Where a policy demands that builders agree, our own Nix gets none that is not offered to everybody: they attest paths,
    /// and not whose outputs these are.
    pub(super) async fn bring_realisation(&self, id: RealisationId, find_user: impl FnOnce() -> User) -> Option<Bytes> {
        let own = match self.scope {
            Scope::Local => self.find_own_realisation(id.clone()).await,
            Scope::Serve | Scope::Site => self.find_offered_realisation(id.clone()).await,
        };
        let realisation = match (self.scope, own) {
            // What others are given has the signatures that peers may see, as a narinfo has.
            (Scope::Serve | Scope::Site, OfferedRealisation::Offered(realisation)) => {
                return Some(render(&realisation));
            }
            (Scope::Serve, OfferedRealisation::Absent) | (_, OfferedRealisation::Withheld) => return None,
            (Scope::Local | Scope::Site, _) if self.resolver.demands_agreement() => return None,
            (Scope::Local, OfferedRealisation::Offered(realisation)) => realisation,
            (Scope::Local | Scope::Site, OfferedRealisation::Absent) => {
                let found = self.ask_others(&id, find_user).await?;
                // What is private here leaves by no name.
                let is_private = |path: &StorePath| self.source(&path.hash_part()) == Source::Nobody;
                if is_private(&found.out_path) || found.dependents.values().any(is_private) {
                    return None;
                }
                found
            }
        };
        Some(render(&self.sign(realisation)))
    }

    /// The first realisation under a signature that counts which a peer or a cache gives.
    async fn ask_others(&self, id: &RealisationId, find_user: impl FnOnce() -> User) -> Option<Realisation> {
        let settings = self.resolver.settings();
        let longest = settings.narinfo_deadline_max;
        let of_peers = tokio::time::timeout(longest, self.peer_realisations.find(id, &settings.trusted));
        let mut of_peers = std::pin::pin!(async { of_peers.await.ok().flatten() });
        if let Ok(answer) = tokio::time::timeout(PEERS_FIRST, &mut of_peers).await {
            return match answer {
                Some(realisation) => Some(realisation),
                None => self.upstreams.find_realisation(id, find_user(), longest).await,
            };
        }
        let mut of_caches = std::pin::pin!(self.upstreams.find_realisation(id, find_user(), longest));
        tokio::select! {
            found = &mut of_peers => match found {
                Some(realisation) => Some(realisation),
                None => of_caches.await,
            },
            found = &mut of_caches => match found {
                Some(realisation) => Some(realisation),
                None => of_peers.await,
            },
        }
    }

    async fn find_own_realisation(&self, id: RealisationId) -> OfferedRealisation {
        let (store, settings) = (self.store().clone(), self.resolver.settings());
        let read = move || {
            let own = store.read_realisation(&id)?;
            let vouched = own.and_then(|own| own.vouched(&settings.trusted, settings.builder_key.as_ref()));
            let offered = vouched.map_or(OfferedRealisation::Absent, OfferedRealisation::Offered);
            Ok::<_, StoreError>(Some(offered))
        };
        super::files::ask(&self.resolver, read).await.ok().flatten().unwrap_or(OfferedRealisation::Absent)
    }

    /// What cannot be read counts as withheld: it may be.
    async fn find_offered_realisation(&self, id: RealisationId) -> OfferedRealisation {
        let offer = self.offer.clone();
        let find = move || offer.find_realisation(&id).map(Some);
        super::files::ask(&self.resolver, find).await.ok().flatten().unwrap_or(OfferedRealisation::Withheld)
    }

    /// Adds the signature of the gateway key, where our Nix trusts no other.
    fn sign(&self, mut realisation: Realisation) -> Realisation {
        if let Some(key) = &self.resolver.settings().gateway_key {
            let signature = key.sign(&realisation.fingerprint());
            realisation.signatures.retain(|other| other.key_name != signature.key_name);
            realisation.signatures.push(signature);
        }
        realisation
    }
}

fn render(realisation: &Realisation) -> Bytes {
    realisation.render().into()
}
