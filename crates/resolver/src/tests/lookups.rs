//! One request is one lookup, however often it asks who claims the path.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use narmesh_protocol::wire::{NarInfoReply, NarRequest};
use narmesh_protocol::{HashPart, NarHash, NarUrl, StoreDir, TrustedKeys};
use narmesh_store::{NixStore, StoreLocation};

use super::Nothing;
use crate::builders::Builders;
use crate::source::{Candidate, Candidates, Line, NarFeed, NoAnswer, Observation, SourceId, Sources};
use crate::{Compress, FindUser, Lookup, NoNar, Resolver, ResolverSettings, TransferSettings};

/// One source, which claims the path whose hash part begins with 1 and does not have it.
struct Claims {
    source: SourceId,
    lookups: Arc<AtomicUsize>,
}

impl Sources for Claims {
    fn candidates(&self, part: &HashPart) -> Candidates {
        let candidate = Candidate { source: self.source, summary_epoch: 1 };
        Candidates { ranked: self.is_claimed(part).then_some(candidate).into_iter().collect(), ..Candidates::default() }
    }

    fn look_up(&self, part: &HashPart) -> bool {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        self.is_claimed(part)
    }

    fn is_claimed(&self, part: &HashPart) -> bool {
        part.0[0] == 1
    }

    fn summary_epoch(&self, _: &SourceId) -> Option<u64> {
        Some(1)
    }

    fn ask(&self, _: SourceId, _: HashPart) -> BoxFuture<'static, Result<NarInfoReply, NoAnswer>> {
        Box::pin(std::future::ready(Ok(NarInfoReply::Absent)))
    }

    fn prepare(&self, _: SourceId) {}

    fn request(&self, _: SourceId, _: NarRequest) -> BoxFuture<'static, io::Result<Box<dyn NarFeed>>> {
        Box::pin(std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())))
    }

    fn line(&self, _: &SourceId) -> Line {
        Line::default()
    }

    fn observe(&self, _: SourceId, _: Observation) {}
}

fn make_resolver(sources: Claims) -> Resolver {
    let nowhere = std::path::PathBuf::from("/nonexistent/narmesh");
    let store_dir = StoreDir::parse("/nix/store").expect("it is one");
    let location =
        StoreLocation { store_dir, real_dir: nowhere.join("store"), state_dir: nowhere.clone(), log_dir: nowhere };
    let nothing = Arc::new(Nothing::default());
    let settings = ResolverSettings {
        trusted: TrustedKeys::default(),
        builder_key: None,
        priority: 30,
        narinfo_deadline: Duration::from_secs(1),
        narinfo_deadline_max: Duration::from_secs(1),
        transfer: TransferSettings { stall_timeout: Duration::from_secs(5), compress: Compress::Never },
        signers: Vec::new(),
        gateway_key: None,
    };
    let builders: Arc<dyn Builders> = Arc::clone(&nothing) as _;
    let store = NixStore::open(location).expect("it reads as empty");
    Resolver::new(store, Arc::new(sources), nothing, builders, settings, 16 << 20, None)
}

#[tokio::test]
async fn one_request_is_one_lookup_whoever_claims_the_path() {
    let lookups = Arc::<AtomicUsize>::default();
    let resolver = make_resolver(Claims { source: SourceId::random(), lookups: Arc::clone(&lookups) });
    let counted = || lookups.swap(0, Ordering::Relaxed);
    let [claimed, unknown] = [1, 2].map(|first| HashPart([first; 20]));
    assert_eq!((resolver.look_up(unknown), counted()), (Lookup::Absent, 1));
    assert_eq!((resolver.look_up(claimed), counted()), (Lookup::Ask, 1));
    let nobody: FindUser = Arc::new(|| None);
    assert_eq!(resolver.find_narinfo(claimed, &nobody).await, None);
    assert_eq!(counted(), 0, "the same request goes on");
    let url = NarUrl::new(claimed, NarHash([1; 32]), 1_024);
    assert!(matches!(resolver.fetch_nar(url, 0, false, Arc::new(|| None)).await, Err(NoNar::Gone)));
    assert_eq!(counted(), 0, "its narinfo was a request before");
}
